"""The building blocks of the models.

Shapes are written with these letters, here and in `models`:

    B  images of a batch            H  attention heads
    Q  object queries               L  feature levels, or layers of an encoder or decoder
    S  tokens: cells of all maps    P  sampled points per head and level
    D  width of the transformer     C  channels, or classes
    h, w  height and width, in cells of a map or in pixels of an image

Boxes are cxcywh in [0, 1] of the image without padding. Masks of padding are bool, True where padded.
"""

from detrkit.layers.attention import AttentionOutput, MultiHeadAttention
from detrkit.layers.checkpointing import set_checkpointing
from detrkit.layers.mlp import MLP
from detrkit.layers.norms import FrozenBatchNorm2d, GroupNorm
from detrkit.layers.position import LearnedPositionEncoding, SinePositionEncoding, position_encoding
from detrkit.layers.transformer import Decoder, DecoderLayer, DecoderOutput, Encoder, EncoderLayer, EncoderOutput

__all__ = [
    "MLP",
    "AttentionOutput",
    "Decoder",
    "DecoderLayer",
    "DecoderOutput",
    "Encoder",
    "EncoderLayer",
    "EncoderOutput",
    "FrozenBatchNorm2d",
    "GroupNorm",
    "LearnedPositionEncoding",
    "MultiHeadAttention",
    "SinePositionEncoding",
    "position_encoding",
    "set_checkpointing",
]
