"""Fine-tunes a detector on your data, evaluates it, and draws its detections.

python examples/finetune.py my_data --init-from detr-r50      a COCO, Pascal VOC, YOLO, parquet or CSV dataset
python examples/finetune.py my_data --init-from runs/first    from your weights
"""

from __future__ import annotations

import argparse

import detrkit
from detrkit.config import load_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a dataset's folder")
    parser.add_argument("--init-from", required=True, help="a model name, a checkpoint, or a run directory")
    parser.add_argument("--out", default="runs/tuned", help="folder of the new run")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument(
        "--lr", type=float, default=1e-4, help="learning rate of the transformer; the backbone's is a tenth"
    )
    args = parser.parse_args()

    # A recipe is a YAML file of settings; `changed` replaces some of them, section by section. The class head starts
    # anew where the classes differ; everything else that fits is kept.
    config = load_config("finetune", data=args.data).changed(
        optim={
            "epochs": args.epochs,
            "lr": args.lr,
            "lr_backbone": args.lr / 10,
            "lr_drop": max(1, args.epochs * 4 // 5),
        },
        run={"init_from": args.init_from, "out": args.out},
    )
    result = detrkit.train(config)
    print(f"best checkpoint: {result.best}, report: {result.report}")

    metrics = detrkit.evaluate(result.best, args.data)  # the validation split; the same numbers as in the report
    print(f"AP {100 * metrics['AP']:.1f}, AP50 {100 * metrics['AP50']:.1f}")


if __name__ == "__main__":
    main()
