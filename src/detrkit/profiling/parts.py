"""Parts of an iteration, and the modules of a model that belong to them."""

from __future__ import annotations

from torch import nn

from detrkit.detector import has_masks
from detrkit.utils.timing import (
    BACKWARD,
    CLIPPING,
    LOSSES,
    NORMALIZING,
    POSTPROCESSING,
    READING,
    RESIZING,
    STEPPING,
)

BATCHING = "batching, transfers"
BACKBONE, GLUE, ENCODER, DECODER = "backbone", "projection, positions", "encoder", "decoder"
PROPOSALS, HEADS, MASKS = "proposals", "heads", "masks"
LOADING, MATCHING, REST = "loading", "matching", "rest of the step"

# children of the models by name; other time in a model's forward pass is GLUE
_CHILDREN = {
    "backbone": BACKBONE,
    "encoder": ENCODER,
    **dict.fromkeys(("proposal_memory", "proposal_memory_norm", "proposal_query", "proposal_query_norm"), PROPOSALS),
    "decoder": DECODER,
    **dict.fromkeys(("class_head", "class_heads", "box_head", "box_heads"), HEADS),
    "segmentation": MASKS,
}
_MODEL = (BACKBONE, GLUE, ENCODER, PROPOSALS, DECODER, HEADS, MASKS)
MODEL_PARTS = (*_MODEL, BACKWARD)  # whose time is that of the model alone
# parts in the order of execution
ORDER = {
    "predicting": (READING, RESIZING, NORMALIZING, BATCHING, *_MODEL, POSTPROCESSING),
    "training": (LOADING, *_MODEL, MATCHING, LOSSES, BACKWARD, CLIPPING, STEPPING, REST),
}


def modules_of(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return the modules of a model whose forward passes are parts, with the names of these."""
    modules = [(model, GLUE)]
    for name, child in model.named_children():
        if name in _CHILDREN:
            # a list of layers has no forward pass of its own
            layers = list(child) if isinstance(child, nn.ModuleList) else [child]
            modules += [(layer, _CHILDREN[name]) for layer in layers]
    if has_masks(model):
        # computes masks for the post-processing or the losses
        modules.append((model.get_submodule("segmentation.head"), MASKS))
    return modules
