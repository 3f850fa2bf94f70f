"""`detrkit train`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated

import tyro

from detrkit.config import ModelConfig, TrainConfig, load_config
from detrkit.utils.console import console
from detrkit.utils.errors import DetrkitError
from detrkit.utils.ranges import as_option


@dataclass(frozen=True)
class Train:
    """Train a model on a dataset, or resume a run.

    The defaults are the published ones of DETR: 300 epochs, AdamW, ImageNet backbone. With --recipe or --resume the
    defaults shown here are that recipe's or run's. Options given on the command line come on top.

    Such as:

    detrkit train my_data --recipe small --overfit 8

    detrkit train my_data --recipe small --out runs/first

    detrkit train my_data --recipe finetune --init-from detr-r50

    detrkit train my_data --masks --freeze-detector runs/first

    detrkit train --resume runs/first

    torchrun --nproc-per-node 8 -m detrkit train coco --recipe detr-150
    """

    dataset: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")] = None
    """The dataset: a folder of COCO, Pascal VOC, YOLO, parquet or CSV, or a COCO json, data.yaml or CSV; the layout is
    recognized."""
    recipe: str | None = None
    """A YAML file with settings, or the name of one that comes with detrkit: small, finetune, detr-150, detr-500,
    panoptic-coco, cppe5, quickstart, shapes-panoptic."""
    resume: str | None = None
    """The folder of a run: continue it exactly where it stopped."""
    config: TrainConfig = field(default_factory=TrainConfig)

    def run(self) -> int:
        """Train; return 0 when the run ended, 1 when --overfit could not learn."""
        from detrkit.engine.metrics import evaluated_parts, format_metrics, overfit_metric, part_name
        from detrkit.engine.relations import check_config
        from detrkit.engine.training import train

        config = self.config if self.dataset is None else self.config.changed(data={"path": self.dataset})
        if not config.data.path:
            raise DetrkitError("no dataset: give its path, as in `detrkit train my_data`, or --resume a run")
        check_config(config, format_field=as_option)
        result = train(config, resume=self.resume is not None)
        if result.metrics is None:
            console.print(f"weights: {result.best}")
            return 0
        for part in evaluated_parts(result.metrics):
            console.print(f"{part_name(part)}:\n{part.table()}")
        if result.test_metrics is not None:
            console.print(f"test: {format_metrics(result.test_metrics)}")
        console.print(f"report:  {result.report}\nweights: {result.best}")
        if result.can_learn is not None:
            verdict = "the pipeline can learn" if result.can_learn else "the pipeline did NOT learn them: train longer?"
            name, value = overfit_metric(result.metrics)
            console.print(f"overfit: {name} {value * 100:.1f} on {result.overfitted} images: {verdict}")
            return 0 if result.can_learn else 1
        return 0


def with_defaults(argv: Sequence[str]) -> Train:
    """Return the command's defaults for a command line: those of its --recipe or --resume, if it names one.

    Raises:
        DetrkitError: the recipe or run is missing or not readable.
    """
    sources = {}
    for option in ("--recipe", "--resume"):
        for i, word in enumerate(argv):
            if word == option and i + 1 < len(argv):
                sources[option] = argv[i + 1]
            elif word.startswith(option + "="):
                sources[option] = word.partition("=")[2]
    if len(sources) == 2:
        raise DetrkitError("--recipe and --resume: a resumed run keeps its own settings, so give one of them")
    if "--recipe" in sources:
        return Train(config=load_config(sources["--recipe"]))
    if "--resume" in sources:
        saved = Path(sources["--resume"]) / "config.yaml"
        if not os.path.isfile(saved):  # False for an impossible path, for which Path.is_file raises an error
            raise DetrkitError(f"{saved}: not there, so {sources['--resume']} is no run to resume")
        return Train(config=load_config(saved).changed(run={"out": sources["--resume"]}))
    return Train()


def with_values(argv: Sequence[str]) -> list[str]:
    """Return a command line in which the model's switches have a value: `--masks` alone becomes `--masks True`.

    Unset switches mean as the model was published, so there are three values, and tyro needs one of them.
    """
    switches = {"--" + f.name.replace("_", "-") for f in fields(ModelConfig) if f.type == "bool | None"}
    words: list[str] = []
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        words.append(word)
        if word in switches and following not in ("True", "False", "None"):
            words.append("True")
    return words
