"""The original evaluation commands, word for word: `main.py` of facebookresearch/detr becomes `reproduce.py`.

    python reproduce.py --no_aux_loss --eval --batch_size 1 --backbone resnet101 --dilation \
        --resume https://dl.fbaipublicfiles.com/detr/detr-r101-dc5-a2e86def.pth --coco_path coco

`python reproduce.py --help` lists the arguments; `detrkit reproduce` does all of it at once.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))  # also in a clone that is not installed

from detrkit.compat.main import main

if __name__ == "__main__":
    sys.exit(main())
