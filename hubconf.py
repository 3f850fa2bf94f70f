"""The entries of torch.hub, with the names and arguments of facebookresearch/detr.

A call moves over by changing the repository:

    model, postprocessor = torch.hub.load(REPOSITORY, "detr_resnet50", pretrained=True, return_postprocessor=True)

or from a clone: `torch.hub.load(FOLDER, "detr_resnet50", source="local", pretrained=True)`. The models take a list of
(3, H, W) tensors, a (B, 3, H, W) tensor or a NestedTensor, and return the official dict. One argument is new:
padding="exact" (the outputs of an image do not depend on its batch), or "official" (they do, as published).
"""

import sys
from pathlib import Path

dependencies = ["torch", "torchvision", "numpy", "scipy", "PIL", "safetensors", "yaml", "rich", "pydantic", "tyro"]

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))  # hub clones the repository, but does not install it

from detrkit.compat.hub import hub_model as _hub_model  # noqa: E402


def _box_model(name, pretrained, num_classes, return_postprocessor, padding):
    options = {"num_classes": num_classes, "return_postprocessor": return_postprocessor, "padding": padding}
    return _hub_model(name, pretrained=pretrained, threshold=0.0, **options)


def _panoptic_model(name, pretrained, num_classes, threshold, return_postprocessor, padding):
    options = {"num_classes": num_classes, "return_postprocessor": return_postprocessor, "padding": padding}
    return _hub_model(name, pretrained=pretrained, threshold=threshold, **options)


def detr_resnet50(pretrained=False, num_classes=91, return_postprocessor=False, padding="exact"):
    """DETR R50, published with AP 42.0 / AP50 62.4 on COCO val2017."""
    return _box_model("detr-r50", pretrained, num_classes, return_postprocessor, padding)


def detr_resnet50_dc5(pretrained=False, num_classes=91, return_postprocessor=False, padding="exact"):
    """DETR R50-DC5 (dilated last stage), published with AP 43.3 / AP50 63.1 on COCO val2017."""
    return _box_model("detr-r50-dc5", pretrained, num_classes, return_postprocessor, padding)


def detr_resnet101(pretrained=False, num_classes=91, return_postprocessor=False, padding="exact"):
    """DETR R101, published with AP 43.5 / AP50 63.8 on COCO val2017."""
    return _box_model("detr-r101", pretrained, num_classes, return_postprocessor, padding)


def detr_resnet101_dc5(pretrained=False, num_classes=91, return_postprocessor=False, padding="exact"):
    """DETR R101-DC5, published with AP 44.9 / AP50 64.7 on COCO val2017."""
    return _box_model("detr-r101-dc5", pretrained, num_classes, return_postprocessor, padding)


def detr_resnet50_panoptic(
    pretrained=False, num_classes=250, threshold=0.85, return_postprocessor=False, padding="exact"
):
    """Panoptic DETR R50, published with PQ 43.4 on COCO val2017; `threshold` is of the segments' scores."""
    return _panoptic_model("detr-r50-panoptic", pretrained, num_classes, threshold, return_postprocessor, padding)


def detr_resnet50_dc5_panoptic(
    pretrained=False, num_classes=250, threshold=0.85, return_postprocessor=False, padding="exact"
):
    """Panoptic DETR R50-DC5, published with PQ 44.6 on COCO val2017; `threshold` is of the segments' scores."""
    return _panoptic_model("detr-r50-dc5-panoptic", pretrained, num_classes, threshold, return_postprocessor, padding)


def detr_resnet101_panoptic(
    pretrained=False, num_classes=250, threshold=0.85, return_postprocessor=False, padding="exact"
):
    """Panoptic DETR R101, published with PQ 45.1 on COCO val2017; `threshold` is of the segments' scores."""
    return _panoptic_model("detr-r101-panoptic", pretrained, num_classes, threshold, return_postprocessor, padding)
