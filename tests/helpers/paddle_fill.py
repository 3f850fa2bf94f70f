"""Weights of PaddleDetection's models by the goldens' formula: the same where recorded and where read.

NumPy alone, so that it runs beside Paddle.
"""

from __future__ import annotations

import numpy as np

from goldens import filler

# parts of names that tell the formula what a parameter is for
ROLES = (
    ("_variance", "running_var"),
    ("_mean", "running_mean"),
    ("branch2c.norm", "bn3"),
    ("short.norm", "downsample.1"),
    ("score_head", "class_embed"),
    ("bbox_head", "bbox_embed"),
    ("cross_attn.in_proj", "multihead_attn.in_proj"),
    ("cross_attn.out_proj", "multihead_attn.out_proj"),
    ("query_pos_embed", "query_embed"),
    ("tgt_embed", "tgt.query_embed"),
    ("level_embed.weight", "level_embed"),
)


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 array of a parameter, under Paddle's name and in its shape."""
    role = name
    for theirs, ours in ROLES:
        role = role.replace(theirs, ours)
    if len(shape) == 2 and not name.endswith("_embed.weight"):  # (in, out), the formula is for (out, in)
        return np.ascontiguousarray(filler.fill(role, shape[::-1]).T)
    return filler.fill(role, shape)
