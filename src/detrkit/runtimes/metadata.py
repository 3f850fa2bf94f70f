"""`ExportInfo`: what an exported file says of its graph, beside the `ModelSpec` of its model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field

from detrkit.models.spec import ModelSpec
from detrkit.utils.documents import parse_json, shown
from detrkit.utils.errors import DetrkitError
from detrkit.utils.schema import validated_as

VERSION = 1  # of the description of a graph
SPEC_KEY = "detrkit"  # of the model's spec among the metadata of a file
INFO_KEY = "detrkit_export"
_WRONG = "no exported model of detrkit"

Format = Literal["onnx", "openvino", "torch"]
Half = Literal["bf16", "fp16"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES: Mapping[str, Format] = {".onnx": "onnx", ".xml": "openvino", ".pt2": "torch"}

Side = Annotated[int, Field(strict=True, ge=1, le=65_536)]
Number = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
Switch = Annotated[bool, Field(strict=True)]

INPUTS = {
    "images": "(B, 3, H, W) float32, RGB, resized and normalized as under preprocessing, zero where padded",
    "padding_mask": "(B, H, W) bool, true at the right and the bottom where an image is padded",
    "target_sizes": "(B, 2) int64 height and width in pixels of the original images",
}
OUTPUTS = {
    "logits": "(B, Q, C) of the classes; with softmax the last column is no object",
    "boxes": "(B, Q, 4) cxcywh in [0, 1], relative to each image without padding",
    "masks": "(B, Q, h, w) logits at a quarter of the padded size, zero where padded",
    "proposal_index": "(B, Q) int64, the tokens of the encoder that became the queries",
    "scores": "(B, K) of the detections",
    "labels": "(B, K) int64 of the detections",
    "queries": "(B, K) int64 of the detections",
    "pixel_boxes": "(B, K, 4) xyxy in pixels of the original images",
}


@dataclass(frozen=True, kw_only=True)
class ExportInfo:
    """Description of an exported graph.

    Attributes:
        detrkit: version that wrote it.
        format: of the file.
        inputs, outputs: names, in the order of the graph.
        least_side: pixels; both sides of the input are at least this.
        largest_side: pixels that a side may have, or None: any.
        fixed: (height, width) in pixels of the only input that it takes, or None: any.
        batch: the only number of images that it takes, or None: any.
        num_queries: Q.
        num_select: detections of an image of models that select them (DINO, RT-DETR), or None.
        activation: of the logits, "softmax" over classes and no object, or "sigmoid" of each.
        threshold: score above which a detection counts, where the spec suggests none.
        source: name of the weights, without a folder; "" for a model in memory.
        sha256: of that file; "" for a model in memory.
        int8: stages of the model whose layers compute in 8 bits, such as "backbone"; none: no INT8.
        half: half precision that the file computes in, or None: float32.
    """

    __pydantic_config__ = ConfigDict(extra="ignore", allow_inf_nan=False)

    detrkit: str
    format: Format
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    least_side: Side
    largest_side: Side | None
    fixed: tuple[Side, Side] | None
    batch: Number | None
    num_queries: Number
    num_select: Number | None
    activation: Literal["softmax", "sigmoid"]
    threshold: float
    source: str
    sha256: str
    int8: tuple[Literal["backbone", "encoder"], ...] = ()
    half: Half | None = None

    @property
    def masked(self) -> bool:
        """Whether the graph takes a padding mask."""
        return "padding_mask" in self.inputs

    def metadata(self, spec: ModelSpec) -> dict[str, str]:
        """Return the metadata of a file, text by key: for detrkit, and in words for others.

        Args:
            spec: of the model.
        """
        plain = {"version": VERSION, **dataclasses.asdict(self)}
        names = [] if spec.classes is None else list(spec.classes.names)
        return {
            SPEC_KEY: spec.to_json(),
            INFO_KEY: json.dumps(plain),
            "inputs": json.dumps({name: INPUTS[name] for name in self.inputs}),
            "outputs": json.dumps({name: OUTPUTS[name] for name in self.outputs}),
            "preprocessing": preprocessing_words(spec, self.fixed),
            "class_names": json.dumps(names, ensure_ascii=False),
        }

    @classmethod
    def from_json(cls, text: str) -> ExportInfo:
        """Read the description that `metadata` wrote.

        Raises:
            DetrkitError: none, one with a field that is missing or out of range, or one of a later version.
        """
        plain = parse_json(text, _WRONG)
        if not isinstance(plain, Mapping):
            raise DetrkitError(f"{_WRONG} (its description is {shown(plain)}: an object expected)")
        version = plain.get("version")
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise DetrkitError(f"{_WRONG} (version is {shown(version)}: must be a whole number from 1)")
        if version > VERSION:
            raise DetrkitError(f"exported by a later detrkit (format {shown(version)}): upgrade detrkit to read it")
        fields = {field.name for field in dataclasses.fields(cls)}
        try:
            info: ExportInfo = validated_as(cls, {name: value for name, value in plain.items() if name in fields})
        except (ValueError, TypeError) as error:
            raise DetrkitError(f"{_WRONG} ({error})") from error
        unknown = [name for name in info.inputs if name not in INPUTS]
        if unknown or not {"logits", "boxes"} <= set(info.outputs) or "images" not in info.inputs:
            raise DetrkitError(f"{_WRONG} (its inputs are {shown(list(info.inputs))}, outputs {shown(info.outputs)})")
        return info


def read_metadata(metadata: Mapping[str, Any]) -> tuple[ExportInfo, ModelSpec]:
    """Read what a file says of its graph and its model.

    Args:
        metadata: of the file, text by key.

    Raises:
        DetrkitError: no file of `detrkit export`, a damaged description, or one of a later version.
    """
    for key in (SPEC_KEY, INFO_KEY):
        if not isinstance(metadata.get(key), str):
            raise DetrkitError(
                f"{_WRONG}: it has no description ({key} among its metadata), so that nobody knows its classes and "
                "how to prepare images; `detrkit export` writes files with one"
            )
    return ExportInfo.from_json(metadata[INFO_KEY]), ModelSpec.from_json(metadata[SPEC_KEY])


def preprocessing_words(spec: ModelSpec, fixed: tuple[int, int] | None = None) -> str:
    """Say in words how an image becomes an input, for those who read the file without detrkit."""
    if spec.square:
        resize = f"resize to exactly {spec.size} x {spec.size} pixels, whatever its shape"
    else:
        limit = "" if spec.max_size is None else f", but its longest side to at most {spec.max_size}"
        resize = f"resize so that the short side has {spec.size} pixels{limit}, keeping the shape"
    mean, std = (" ".join(f"{value:g}" for value in values) for values in (spec.mean, spec.std))
    size = "" if fixed is None else f" to exactly {fixed[0]} x {fixed[1]} (height x width)"
    pad = "" if spec.square else f"; pad with zeros at the right and the bottom{size}, marked in the mask"
    return (
        f"RGB, upright (EXIF orientation applied); {resize}: bilinear with antialiasing, rounded to 8 bits; divide by "
        f"255, subtract the mean ({mean}), divide by the deviation ({std}){pad}"
    )
