"""`ExportReport`: what was checked and measured of an exported file, as Markdown and JSON beside it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detrkit.exporting.gates import Gate
from detrkit.exporting.measuring import AccuracyCheck, Cost
from detrkit.exporting.reduced import ReducedCheck
from detrkit.models.spec import ModelSpec
from detrkit.runtimes.metadata import ExportInfo, preprocessing_words
from detrkit.utils.visible import markdown

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was checked and measured of an exported file.

    Attributes:
        files: names of the files that were written, the model's first.
        size: bytes of them together.
        spec: of the model, as in the file.
        info: of the graph.
        runtime: that computed the file's outputs, with its version.
        machine: processor, cores, threads, versions.
        gates: comparisons of outputs, all passed.
        accuracy: AP on a dataset, or None.
        model_cost, exported_cost: time and memory in PyTorch and in the runtime, or None.
        reduced: AP, size and time beside those in float32, of a file in INT8 or half precision; None of others. All
            but this is of the file in float32.
        seconds: that recording and writing took.
        memory_mib: by which the memory of the process grew at most meanwhile.
    """

    files: tuple[str, ...]
    size: int
    spec: ModelSpec
    info: ExportInfo
    runtime: str
    machine: Mapping[str, str | int]
    gates: Sequence[Gate]
    accuracy: AccuracyCheck | None
    model_cost: Cost | None
    exported_cost: Cost | None
    reduced: ReducedCheck | None
    seconds: float
    memory_mib: float

    @property
    def differences(self) -> dict[str, float]:
        """The largest difference of every output over all gates."""
        largest: dict[str, float] = {}
        for gate in self.gates:
            for output, difference in gate.differences.items():
                largest[output] = max(difference, largest.get(output, 0.0))
        return largest

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON values."""
        return {
            "files": list(self.files),
            "bytes": self.size,
            "model": json.loads(self.spec.to_json()),
            "graph": dataclasses.asdict(self.info),
            "runtime": self.runtime,
            "machine": dict(self.machine),
            "gates": [dataclasses.asdict(gate) for gate in self.gates],
            "largest differences": self.differences,
            "accuracy": None
            if self.accuracy is None
            else {**dataclasses.asdict(self.accuracy), "drop": self.accuracy.drop},
            "PyTorch": None if self.model_cost is None else dataclasses.asdict(self.model_cost),
            "exported": None if self.exported_cost is None else dataclasses.asdict(self.exported_cost),
            "reduced precision": None
            if self.reduced is None
            else {**dataclasses.asdict(self.reduced), "drop": self.reduced.drop},
            "export seconds": self.seconds,
            "export memory, MiB": self.memory_mib,
        }

    @property
    def rows(self) -> list[tuple[str, str]]:
        """The report as lines of two columns, for a terminal."""
        info = self.info
        size = "any, sides from " + str(info.least_side)
        size += "" if info.largest_side is None else f" to {info.largest_side}"
        if info.fixed is not None:
            size = f"{info.fixed[0]} x {info.fixed[1]}"
        rows = [
            ("file", f"{self.files[0]}, {self.size / MIB:.1f} MiB"),
            ("model", f"{self.spec.name}, {self.spec.num_classes} classes"),
            ("runtime", self.runtime),
            ("input", f"{', '.join(info.inputs)}; images {info.batch or 'any'}, height and width {size} pixels"),
            ("outputs", ", ".join(info.outputs)),
            ("gates", f"{len(self.gates)} passed"),
        ]
        tolerance = {output: limit for gate in self.gates for output, limit in gate.tolerance.items()}
        for output, difference in self.differences.items():
            rows.append((f"  {output}", f"differ by at most {difference:.2g} (passes: {tolerance[output]:g})"))
        if self.accuracy is not None:
            check = self.accuracy
            rows.append((
                f"AP, {check.images} images of {check.data}",
                f"{100 * check.model:.2f} in PyTorch, {100 * check.exported:.2f} exported",
            ))  # fmt: skip
        if self.model_cost is not None and self.exported_cost is not None:
            ours, theirs = self.model_cost, self.exported_cost
            rows.append((
                f"{ours.height} x {ours.width}, ms an image",
                f"{1000 * ours.seconds:.0f} in PyTorch, {1000 * theirs.seconds:.0f} exported "
                f"(slowest {1000 * ours.slowest:.0f}, {1000 * theirs.slowest:.0f})",
            ))  # fmt: skip
            rows.append(
                ("memory of a pass, MiB", f"{ours.memory_mib:.0f} in PyTorch, {theirs.memory_mib:.0f} exported")
            )
        rows += [] if self.reduced is None else _reduced_rows(self.reduced)
        rows.append(("export", f"{self.seconds:.0f} s, {self.memory_mib:.0f} MiB"))
        return rows

    def to_markdown(self) -> str:
        """Format as a Markdown page."""
        lines = [f"# {markdown(self.files[0])}", "", "| | |", "|---|---|"]
        lines += [f"| {markdown(name.strip())} | {markdown(value)} |" for name, value in self.rows]
        lines += ["", "## Preprocessing", "", preprocessing_words(self.spec, self.info.fixed) + ".", ""]
        outputs = list(self.differences)
        lines += [
            "## Gates",
            "",
            f"| compared with PyTorch | {' | '.join(outputs)} |",
            "|---" * (len(outputs) + 1) + "|",
        ]
        for gate in self.gates:
            cells = [f"{gate.differences[o]:.2g}" if o in gate.differences else "" for o in outputs]
            lines.append(f"| {gate.name} | {' | '.join(cells)} |")
        lines += [
            "",
            "Largest absolute differences; " + ", ".join(f"{o} pass up to {t:g}" for o, t in self._limits()) + ".",
        ]
        lines += ["", "Machine: " + ", ".join(f"{key} {value}" for key, value in self.machine.items()) + "."]
        if self.info.source:
            lines += ["", f"Weights: {markdown(self.info.source)}, SHA-256 {self.info.sha256}."]
        return "\n".join(lines) + "\n"

    def _limits(self) -> list[tuple[str, float]]:
        limits = {output: limit for gate in self.gates for output, limit in gate.tolerance.items()}
        return list(limits.items())


def _reduced_rows(check: ReducedCheck) -> list[tuple[str, str]]:
    """Return the lines of a report on reduced precision."""
    word = check.precision
    calibrated = f", calibrated on {check.calibration_images} images" if check.calibration_images else ""
    rows = [
        (word, check.computed + calibrated),
        (
            f"  AP, {check.images} images of {check.data}",
            f"{100 * check.float_ap:.2f} in float32, {100 * check.ap:.2f} in {word}",
        ),
        ("  size of float32", f"{check.float_bytes / MIB:.1f} MiB"),
    ]
    if check.float_cost is not None and check.cost is not None:
        floats, less = check.float_cost, check.cost
        rows.append((
            f"  {floats.height} x {floats.width}, ms an image",
            f"{1000 * floats.seconds:.1f} in float32, {1000 * less.seconds:.1f} in {word} "
            f"(slowest {1000 * floats.slowest:.1f}, {1000 * less.slowest:.1f})",
        ))  # fmt: skip
    return rows
