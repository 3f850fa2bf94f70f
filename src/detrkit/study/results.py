"""The result of a run of a member: read from its folder, where it is stored as result.json."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from detrkit.config import TrainConfig
from detrkit.engine.evaluating import evaluate
from detrkit.engine.examples import display_threshold
from detrkit.engine.logs import CsvLog
from detrkit.engine.processes import StopSignals
from detrkit.evaluation import Metrics
from detrkit.study.config import MemberRun
from detrkit.utils.atomic import write_atomic, write_errors
from detrkit.utils.console import FIRST_PROCESS
from detrkit.utils.errors import DetrkitError
from detrkit.utils.machine import machine_line
from detrkit.weights.checkpoint import load_model

RESULT, FAILURE, LAST = "result.json", "failure.txt", "eval-last"


@dataclass(frozen=True, kw_only=True)
class MemberResult:
    """Result of a run of a member: with one of its seeds.

    Attributes:
        name: of the member.
        seed: of the run.
        folder: name of the run's folder in that of the study.
        epochs: number of trained epochs.
        figures: mAP, mAP50, mAP75, small, medium, large of the last epoch in [0, 1], -1 where there are no objects.
        classes: AP of every class of the last epoch, by name.
        best: mAP of the best evaluation during training, on the validation split.
        best_epoch: its epoch.
        parameters: number of trainable parameters.
        seconds: time of an epoch's steps, median over the epochs.
        memory: peak in training, MiB; None where it cannot be measured.
        shown_above: the score above which detections are drawn.
        machine: description of the machine that evaluated it, as a rule the one that trained it.
        failure: reason why there are no metrics, or "".
        curves: rows of epochs.csv.
    """

    name: str
    seed: int | None = None
    folder: str = ""
    epochs: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)
    classes: Mapping[str, float] = field(default_factory=dict)
    best: float | None = None
    best_epoch: int | None = None
    parameters: int | None = None
    seconds: float | None = None
    memory: float | None = None
    shown_above: float = 0.5
    machine: str = ""
    failure: str = ""
    curves: Sequence[Mapping[str, Any]] = ()

    @property
    def done(self) -> bool:
        """Whether the run has trained to its end and been evaluated."""
        return bool(self.figures)

    def all_metrics(self) -> dict[str, float]:
        """Return the metrics and those of the classes ("class NAME") in [0, 1], without those that have no objects."""
        metrics = {**self.figures, **{f"class {name}": value for name, value in self.classes.items()}}
        return {name: value for name, value in metrics.items() if value >= 0}

    def to_json(self) -> dict[str, Any]:
        """Return all but the curves as plain JSON values."""
        return {k: v for k, v in asdict(self).items() if k != "curves"}


def read_result(study_folder: Path, run: MemberRun) -> MemberResult:
    """Read the state of a run from its folder: done, failed, under way, or not begun.

    Args:
        study_folder: the study's folder.
        run: of a member.

    Raises:
        DetrkitError: a damaged result.json.
    """
    folder = study_folder / run.folder
    rows = CsvLog(folder / "epochs.csv", key="epoch").rows()
    names: dict[str, Any] = {"name": run.member.name, "seed": run.seed, "folder": run.folder}
    if (folder / RESULT).exists():
        try:
            plain = json.loads((folder / RESULT).read_text(encoding="utf-8"))
            return replace(MemberResult(**plain, curves=rows), **names)
        except (ValueError, TypeError) as error:
            raise DetrkitError(
                f"{folder / RESULT}: damaged ({error}); delete it, and the same command evaluates the run again"
            ) from error
    failure = ""
    if (folder / FAILURE).exists():
        failure = next(iter((folder / FAILURE).read_text(encoding="utf-8", errors="replace").splitlines()), "failed")
    return replace(_of_log(rows), **names, failure=failure)


def evaluate_last(
    folder: Path, run: MemberRun, config: TrainConfig, split: str, *, stop: StopSignals | None = None
) -> None:
    """Evaluate the weights of the last epoch and write result.json; each process of the run must call it.

    Args:
        folder: of a run that has ended.
        run: of a member.
        config: of the run.
        split: to evaluate on.
        stop: stop signals, checked between batches.

    Raises:
        Stopped: a stop signal came.
    """
    model, spec = load_model(folder / "last.pt")
    data, options = config.data, config.run
    metrics = evaluate(
        (model, spec),
        data.val_data or data.path,
        split=split,
        batch_size=data.eval_batch_size or data.batch_size,
        max_dets=options.max_dets,
        device=None if options.device == "auto" else options.device,
        precision=options.precision,
        workers=data.workers,
        out=folder / LAST,
        stop=stop,
        quiet=False,
    )
    if not FIRST_PROCESS:
        return
    result = replace(
        _of_log(CsvLog(folder / "epochs.csv", key="epoch").rows()),
        name=run.member.name,
        seed=run.seed,
        folder=run.folder,
        figures=_table_metrics(metrics),
        classes={name: row["AP"] for name, row in metrics.per_class.items()},
        parameters=trainable(model, config),
        shown_above=display_threshold(spec),
        machine=_machine(config),
    )
    with write_errors(folder / FAILURE):
        (folder / FAILURE).unlink(missing_ok=True)
    write_atomic(folder / RESULT, json.dumps(result.to_json(), indent=2) + "\n")


def _of_log(rows: Sequence[Mapping[str, Any]]) -> MemberResult:
    """Summarize the rows of epochs.csv."""
    evaluated = [(float(r["val/AP"]), int(r["epoch"])) for r in rows if r.get("val/AP")]
    best, epoch = max(evaluated, key=lambda pair: pair[0], default=(None, None))  # the first of equals
    memory = max((float(r.get("peak_memory_mib") or 0) for r in rows), default=0)
    return MemberResult(
        name="",
        epochs=len(rows),
        best=best,
        best_epoch=epoch,
        seconds=statistics.median(float(r["seconds"]) for r in rows) if rows else None,
        memory=memory or None,
        curves=rows,
    )


def _table_metrics(metrics: Metrics) -> dict[str, float]:
    """Return the metrics of the table, by its headings."""
    names = {"mAP": "AP", "mAP50": "AP50", "mAP75": "AP75", "small": "APs", "medium": "APm", "large": "APl"}
    return {heading: float(metrics[name]) for heading, name in names.items()}


def trainable(model: nn.Module, config: TrainConfig) -> int:
    """Count the parameters that train under a config: a learning rate of 0 freezes the backbone."""
    frozen = "backbone." if config.optim.lr_backbone <= 0 else "\0"
    return sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and not n.startswith(frozen))


def _machine(config: TrainConfig) -> str:
    """Describe the machine of a run in one line."""
    processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    on_gpu = torch.cuda.is_available() and config.run.device != "cpu"
    return machine_line("cuda" if on_gpu else "cpu", processes=processes)
