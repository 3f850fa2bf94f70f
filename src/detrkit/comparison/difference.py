"""`compare`: differences of two recordings, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor

from detrkit.comparison.recording import Recording
from detrkit.comparison.stages import RELATIVE_STAGES, order_of, tolerance_of
from detrkit.utils.errors import DetrkitError


@dataclass(frozen=True)
class StageDifference:
    """Difference of one stage of two recordings, candidate A and reference B.

    Attributes:
        name: of the stage.
        shapes: of A's tensor and of B's.
        absolute: the largest difference of two values; NaN if only one of two values is NaN, infinite if the shapes
            differ.
        relative: `absolute` as a share of B's largest value.
        limit: the largest `absolute` that counts as agreement.
    """

    name: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    absolute: float
    relative: float
    limit: float

    @property
    def agrees(self) -> bool:
        """True if the stage is within its tolerance (NaN is not)."""
        return self.absolute <= self.limit


@dataclass(frozen=True)
class Comparison:
    """Result of comparing two recordings.

    Attributes:
        names: of A and B.
        differences: of the stages that both have, in the order the data meets them.
        missing: stages that only A has, and stages that only B has.
    """

    names: tuple[str, str]
    differences: list[StageDifference]
    missing: tuple[list[str], list[str]]

    @property
    def agrees(self) -> bool:
        """True if every stage is within its tolerance."""
        return self.first is None

    @property
    def first(self) -> StageDifference | None:
        """The first stage beyond its tolerance."""
        return next((d for d in self.differences if not d.agrees), None)

    @property
    def first_unequal(self) -> StageDifference | None:
        """The first stage that is not bitwise equal: for the same code on one machine, the first with other weights."""
        return next((d for d in self.differences if d.absolute != 0), None)

    def table(self) -> Table:
        """Format all stages as a table for a terminal."""
        table = Table(title=f"A {self.names[0]}   B {self.names[1]}", title_justify="left", title_style="")
        table.add_column("stage", no_wrap=True)
        table.add_column("shape", no_wrap=True)
        for heading in ("difference", "relative", "tolerance"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        for d in self.differences:
            shape_a, shape_b = (" x ".join(map(str, shape)) or "-" for shape in d.shapes)
            shape = shape_a if shape_a == shape_b else f"{shape_a} | {shape_b}"
            verdict = "same" if d.absolute == 0 else "ok" if d.agrees else "DIFFERS"
            numbers = [f"{value:.1e}" if value else "0" for value in (d.absolute, d.relative, d.limit)]
            table.add_row(d.name, shape, *numbers, verdict)
        return table

    def summary(self) -> list[str]:
        """Summarize the table in a few lines."""
        lines = []
        for letter, names in zip("AB", self.missing, strict=True):
            if names:
                lines.append(f"only in {letter}: {', '.join(names)}")
        if self.first is None:
            lines.append(f"all {len(self.differences)} stages agree within tolerance")
        else:
            lines.append(
                f"first stage beyond its tolerance: {self.first.name} "
                f"({self.first.absolute:.1e}, tolerance {self.first.limit:.1e})"
            )
        if self.first_unequal is None:
            lines.append("every stage is the same to the bit")
        elif self.first_unequal is not self.first:
            lines.append(f"first difference of any size: {self.first_unequal.name} ({self.first_unequal.absolute:.1e})")
        return lines


def compare(a: Recording, b: Recording, *, tolerance: float | None = None) -> Comparison:
    """Compare two recordings of the same input.

    Args:
        a: recording of the candidate.
        b: recording of the reference.
        tolerance: for all stages; by default each stage has its own. A stage agrees if no value differs by more than
            tolerance x max(1, root mean square of B's stage); for mask attention, by default, by more than tolerance x
            B's largest value.

    Raises:
        DetrkitError: no common stage, or recordings of different inputs.
    """
    for part, of_a, of_b in (("input", a.pixels, b.pixels), ("target.boxes", _boxes(a), _boxes(b))):
        if of_a is not None and of_b is not None and not torch.equal(of_a, of_b):
            raise DetrkitError(f"{b.name}: its {part} is not that of {a.name}; compare recordings of one input")
    common = sorted(set(a.stages) & set(b.stages), key=order_of)
    if not common:
        raise DetrkitError(
            f"{b.name}: no stage in common with {a.name}; it has {_few(b.stages)}, the other {_few(a.stages)}"
        )
    missing = [sorted(set(x.stages) - set(y.stages), key=order_of) for x, y in ((a, b), (b, a))]
    differences = [_difference(name, a.stages[name], b.stages[name], tolerance) for name in common]
    return Comparison((a.name, b.name), differences, (missing[0], missing[1]))


def _boxes(recording: Recording) -> Tensor | None:
    return None if recording.target is None else recording.target.boxes


def _few(stages: Mapping[str, Tensor]) -> str:
    return ", ".join(list(stages)[:4]) + ", ..." if stages else "none"


def _difference(name: str, a: Tensor, b: Tensor, tolerance: float | None) -> StageDifference:
    shapes = tuple(a.shape), tuple(b.shape)
    factor = tolerance_of(name) if tolerance is None or not a.is_floating_point() else tolerance  # an index is exact
    a, b = a.double(), b.double()
    finite = b[b.isfinite()]
    largest, rms = (float(finite.abs().max()), float(finite.square().mean().sqrt())) if finite.numel() else (0.0, 0.0)
    if shapes[0] != shapes[1]:
        absolute = float("inf")
    else:
        difference = (a - b).abs().masked_fill(a == b, 0.0)  # equal infinities do not differ
        difference = difference.masked_fill(a.isnan() & b.isnan(), 0.0)
        absolute = float(difference.max()) if difference.numel() else 0.0  # NaN wins
    relative = absolute / largest if largest else absolute
    scale = largest if tolerance is None and name in RELATIVE_STAGES else max(1.0, rms)
    return StageDifference(name, shapes, absolute, relative, factor * scale)
