"""Records what PaddleDetection's own modules compute: python tests/weights/record_paddle.py PADDLEDETECTION_FOLDER

Needs paddlepaddle (3.3.1 was used, on a CPU) and a checkout of PaddleDetection (666f597 was used), of which only the
modules of the two models are imported, without what ppdet asks for besides. Writes names and shapes of all parameters,
and logits and boxes of every fifth query, into tests/weights/paddle.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
# the goldens' own module needs detrkit, the formula needs nothing
sys.modules["goldens"] = types.ModuleType("goldens")
sys.modules["goldens"].__path__ = [str(HERE.parent / "goldens")]

from goldens import filler  # noqa: E402
from helpers.paddle_fill import fill  # noqa: E402

MODELS = {"detr_r50": (False, 50), "detr_r101": (False, 101), "deformable_detr_r50": (True, 50)}


def modules(folder: Path) -> tuple:
    """The modules of PaddleDetection that the models are made of."""
    for name in ("", ".core", ".modeling", ".modeling.transformers", ".modeling.heads", ".modeling.backbones"):
        package = types.ModuleType(f"ppdet{name}")
        package.__path__ = [str(folder / f"ppdet{name}".replace(".", "/"))]
        sys.modules[package.__name__] = package
    workspace = types.ModuleType("ppdet.core.workspace")
    workspace.register = workspace.serializable = lambda made: made
    sys.modules[workspace.__name__] = workspace
    for name in ("six", "pycocotools", "pycocotools.mask", "ppdet.modeling.ops"):  # of parts that are not used
        sys.modules[name] = types.ModuleType(name)
    sys.modules["pycocotools"].mask = sys.modules["pycocotools.mask"]
    sys.modules["ppdet.modeling"].ops = sys.modules["ppdet.modeling.ops"]
    names = ("backbones.resnet", "transformers.detr_transformer", "transformers.deformable_transformer")
    return tuple(importlib.import_module(f"ppdet.modeling.{name}") for name in (*names, "heads.detr_head"))


def main() -> None:
    """Records all models."""
    import paddle

    resnet, detr, deformable_detr, heads = modules(Path(sys.argv[1]))
    for name, (deformable, depth) in MODELS.items():
        # configs/detr/_base_/detr_r50.yml, configs/deformable_detr/_base_/deformable_detr_r50.yml
        model = paddle.nn.Layer()
        model.backbone = resnet.ResNet(depth=depth, freeze_at=0, return_idx=[1, 2, 3] if deformable else [3])
        channels = [shape.channels for shape in model.backbone.out_shape]
        if deformable:
            model.transformer = deformable_detr.DeformableTransformer(in_feats_channel=channels)
            model.detr_head = heads.DeformableDETRHead(num_classes=80, hidden_dim=256, nhead=8)
        else:
            model.transformer = detr.DETRTransformer(backbone_num_channels=channels[-1])
            model.detr_head = heads.DETRHead(num_classes=80, hidden_dim=256, nhead=8)
        model.eval()
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        for key, value in model.state_dict().items():
            value.set_value(fill(key, shapes[key]))
        image = paddle.to_tensor(filler.image("paddle", 192, 256)[None])
        with paddle.no_grad():
            features = model.backbone({"image": image})
            boxes, logits, _ = model.detr_head(model.transformer(features, None, {}), features)
        rows = ",\n".join(f" {json.dumps(key)}: {list(shape)}" for key, shape in shapes.items())
        (HERE / "paddle" / f"{name}.json").write_text(f"{{\n{rows}\n}}\n")
        np.savez_compressed(HERE / "paddle" / f"{name}.npz", logits=logits.numpy()[0, ::5], boxes=boxes.numpy()[0, ::5])
        print(name, len(shapes), "std over queries", logits.numpy().std(1).mean(), boxes.numpy().std(1).mean())


if __name__ == "__main__":
    main()
