"""`RunResult`, and the report that a run ends with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrkit.config import TrainConfig
from detrkit.data.sampling_report import sampling_cells
from detrkit.engine import run_folder
from detrkit.engine.evaluation_loop import EvaluationAccumulator
from detrkit.engine.examples import display_threshold, example_sheet
from detrkit.engine.logs import CsvLog
from detrkit.engine.metrics import format_metrics, selection_metric
from detrkit.engine.objects import count_objects
from detrkit.engine.splits import Splits, data_name
from detrkit.evaluation import Metrics, write_report
from detrkit.utils.console import console
from detrkit.utils.documents import read_text
from detrkit.weights.checkpoint import load_model


@dataclass(frozen=True)
class RunResult:
    """Result of a run.

    Attributes:
        folder: the run's folder.
        metrics: of the best checkpoint on the validation split (with overfit: on the few images), or None. Boxes; with
            `masks` and `panoptic` of models that have them.
        test_metrics: of the same checkpoint on the test split, or None.
        best: best.safetensors.
        report: report.md, or None without a validation split.
        can_learn: with overfit: whether AP50 (on panoptic data, PQ) reached 0.9; otherwise None.
        overfitted: with overfit: number of images, fewer than asked for if there are no more.
        verdict: with overfit: in words, whether it can learn, or is learning, and how to go on; else None.
    """

    folder: Path
    metrics: Metrics | None
    test_metrics: Metrics | None
    best: Path
    report: Path | None
    can_learn: bool | None = None
    overfitted: int | None = None
    verdict: str | None = None


def finish(
    config: TrainConfig,
    splits: Splits,
    evaluations: dict[str, EvaluationAccumulator],
    folder: Path,
    seconds: float,
    world: int,
) -> RunResult:
    """Write the report of the best checkpoint, which `world` processes trained in so many seconds."""
    best = folder / "best.safetensors"
    if splits.val is None:
        return RunResult(folder, None, None, best, None)
    model, spec = load_model(best)
    metrics = {split: evaluation.compute() for split, evaluation in evaluations.items()}
    rows: list[dict[str, Any]] = CsvLog(folder / "epochs.csv", key="epoch").rows()
    settings: dict[str, Any] = {
        "model": " ".join([spec.name, *(f"{k}={v}" for k, v in spec.options.items())]),
        "dataset": f"{splits.val.name if splits.evaluated else data_name(config)}, split {splits.val.split}, "
        f"{len(splits.val)} images",
        "input": spec.input_words,
        "best epoch": f"{spec.training.get('epoch')} of {len(rows)}, {_reason(metrics['val'])}",
        "images per step": config.data.batch_size * config.optim.accumulate * world,
        **count_objects(splits.learned).rows(),
        **({} if splits.sampling is None else sampling_cells(splits.sampling)),
        "seed": config.run.seed,
    }
    chosen = folder / run_folder.CHOICE
    if chosen.is_file():
        settings["settings chosen"] = "; ".join(line.strip() for line in read_text(chosen).splitlines() if line.strip())
    if config.run.freeze_detector is not None:
        settings["frozen detector"] = Path(config.run.freeze_detector).name
    if "test" in metrics and splits.test is not None:
        settings[f"test: split {splits.test.split}, {len(splits.test)} images"] = format_metrics(metrics["test"])
    reason = evaluations["val"].objects.reason_for_zero(metrics["val"])
    if reason:
        console.print(f"warning: {reason}")
    report = write_report(
        folder,
        notes=[reason] if reason else [],
        metrics=metrics["val"],
        masks=metrics["val"].masks,
        panoptic=metrics["val"].panoptic,
        title=f"{spec.name} on {data_name(config)}",
        settings=settings,
        confusion=evaluations["val"].objects.confusion(score=display_threshold(spec)),
        sheet=example_sheet(model, spec, splits.val),
        curves=rows,
        timing={"training, minutes": round(seconds / 60, 1)},
    )
    return RunResult(folder, metrics["val"], metrics.get("test"), best, report)


def _reason(metrics: Metrics) -> str:
    """Say by which metric the best epoch was selected."""
    name, value = selection_metric(metrics)
    return f"by its {name}" if value >= 0 else f"the last evaluated: {name} is n/a"
