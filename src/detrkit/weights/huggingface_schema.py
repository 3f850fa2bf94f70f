"""Fields read from a Hugging Face directory's files, with their types and ranges.

`ModelSpec` has the ranges of what they mean together.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict  # pydantic needs it below Python 3.12, and brings it

from detrkit.models.spec import Mean, ShortSide, Std
from detrkit.utils.ranges import Decay, Layers, Width

Number = Annotated[int, Field(strict=True, ge=0, le=10**9)]
Truth = Annotated[bool, Field(strict=True)]


@with_config(ConfigDict(extra="allow"))
class Resnet(TypedDict, total=False):
    """Fields of `backbone_config` in config.json."""

    model_type: str
    embedding_size: Annotated[Width, Field(strict=True)]
    backbone: str | None
    output_stride: Number | None
    out_indices: list[Number] | None


@with_config(ConfigDict(extra="allow", allow_inf_nan=False))
class Config(TypedDict, total=False):
    """Fields of config.json."""

    model_type: str
    d_model: Annotated[Width, Field(strict=True)]
    encoder_layers: Annotated[int, Field(strict=True, ge=0, le=1000)]
    decoder_layers: Annotated[Layers, Field(strict=True)]
    encoder_attention_heads: Annotated[Width, Field(strict=True)]
    decoder_attention_heads: Annotated[Width, Field(strict=True)]
    encoder_ffn_dim: Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
    decoder_ffn_dim: Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
    num_queries: Annotated[int, Field(strict=True, ge=1, le=100_000)]
    two_stage_num_proposals: Annotated[int, Field(strict=True, ge=1, le=100_000)]
    dropout: Annotated[Decay, Field(strict=True)]
    num_feature_levels: Annotated[int, Field(strict=True, ge=1, le=10)]
    encoder_n_points: Annotated[int, Field(strict=True, ge=1, le=1000)]
    decoder_n_points: Annotated[int, Field(strict=True, ge=1, le=1000)]
    with_box_refine: Truth
    two_stage: Truth
    dilation: Truth | None
    position_embedding_type: Literal["sine", "learned"]
    backbone: str | None
    backbone_config: Resnet | None
    encoder_hidden_dim: Annotated[Width, Field(strict=True)]
    hidden_expansion: Annotated[float, Field(gt=0, le=100)]
    num_denoising: Annotated[int, Field(strict=True, ge=0, le=10_000)]
    decoder_method: Literal["default", "discrete"]
    freeze_backbone_batch_norms: Truth
    id2label: dict[str, str] | None
    detrkit: dict[str, Any] | None


@with_config(ConfigDict(extra="allow", allow_inf_nan=False))
class Preprocessor(TypedDict, total=False):
    """Fields of preprocessor_config.json."""

    size: Any  # a number or an object: see `huggingface_config`
    max_size: Number | None
    resample: Number | None
    do_resize: Truth | None
    do_rescale: Truth | None
    do_normalize: Truth | None
    rescale_factor: Annotated[float, Field(strict=True)]
    image_mean: tuple[Mean, Mean, Mean]
    image_std: tuple[Std, Std, Std]


@with_config(ConfigDict(extra="allow"))
class Edges(TypedDict, total=False):
    """Image size as transformers writes it since 4.27."""

    shortest_edge: ShortSide
    longest_edge: Annotated[int, Field(strict=True, ge=1)] | None
