"""Small RT-DETRs of transformers with random weights, and detrkit's of the same sizes."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import (
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
)

from detrkit.models.rtdetr import RTDETR
from detrkit.weights.build import build_model
from helpers.weights import randomize

SMALL: dict[str, Any] = {
    "num_classes": 5,
    "backbone_width": 8,
    "backbone_norm": "frozen",
    "enc_hidden_dim": 32,
    "enc_dim_feedforward": 48,
    "enc_expansion": 0.5,
    "hidden_dim": 64,
    "dim_feedforward": 40,
    "dec_layers": 3,
    "nheads": 4,
    "num_queries": 20,
}
_DEPTHS = {"presnet10": [1, 1, 1, 1], "presnet18": [2, 2, 2, 2], "presnet50": [3, 4, 6, 3]}


def small(name: str, *, backbone: str = "presnet10", **options: Any) -> RTDETR:
    """detrkit's model."""
    return randomize(build_model(name, **{**SMALL, "backbone": backbone, **options}))  # type: ignore[return-value]


def peer(name: str, *, backbone: str = "presnet10", **options: Any) -> nn.Module:
    """Transformers' model of the sizes of `small`, with other random weights."""
    second = name.startswith("rtdetrv2")
    wide = 4 if backbone == "presnet50" else 1
    body = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8 * 2**i * wide for i in range(4)],
        depths=_DEPTHS[backbone],
        layer_type="bottleneck" if wide == 4 else "basic",
        out_indices=[2, 3, 4],
    )
    config, model = (RTDetrV2Config, RTDetrV2ForObjectDetection) if second else (RTDetrConfig, RTDetrForObjectDetection)
    made = model(
        config(
            backbone_config=body,
            encoder_hidden_dim=32,
            encoder_in_channels=body.hidden_sizes[1:],
            encoder_ffn_dim=48,
            hidden_expansion=0.5,
            d_model=64,
            decoder_ffn_dim=40,
            decoder_in_channels=[32] * 3,
            decoder_layers=3,
            decoder_attention_heads=4,
            encoder_attention_heads=4,
            num_queries=20,
            num_labels=5,
            tie_word_embeddings=False,
            **options,
        )
    )
    kept = {n: t.clone() for n, t in made.state_dict().items() if n.endswith("n_points_scale")}
    randomize(made, seed=1)
    made.load_state_dict(kept, strict=False)
    for i in range(3 if second else 0):  # of which either counts
        made.class_embed[i].load_state_dict(made.model.decoder.class_embed[i].state_dict())
        made.bbox_embed[i].load_state_dict(made.model.decoder.bbox_embed[i].state_dict())
    return made.eval()
