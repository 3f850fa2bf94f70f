"""The building blocks of the models."""

from detrkit.layers.attention import MultiHeadAttention
from detrkit.layers.checkpointing import set_checkpointing
from detrkit.layers.mlp import MLP
from detrkit.layers.norms import FrozenBatchNorm2d, GroupNorm
from detrkit.layers.position import LearnedPositionEncoding, SinePositionEncoding, position_encoding
from detrkit.layers.transformer import Decoder, DecoderLayer, Encoder, EncoderLayer

__all__ = [
    "MLP",
    "Decoder",
    "DecoderLayer",
    "Encoder",
    "EncoderLayer",
    "FrozenBatchNorm2d",
    "GroupNorm",
    "LearnedPositionEncoding",
    "MultiHeadAttention",
    "SinePositionEncoding",
    "position_encoding",
    "set_checkpointing",
]
