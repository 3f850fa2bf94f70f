"""The digest of a model's weights, which tells results of one model from those of another."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def weights_sha256(model: nn.Module) -> str:
    """Return the SHA-256 of a model's tensors, whatever file they came from.

    Digested are, in the order of the names, each tensor's name, dtype and shape, in a line of text, and its bytes.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
