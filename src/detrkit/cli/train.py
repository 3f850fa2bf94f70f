"""`detrkit train`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from detrkit.cli.preflight import check_folders, check_model, check_recipe, check_weights
from detrkit.cli.spelling import Typed
from detrkit.config import RunConfig, TrainConfig, load_config
from detrkit.engine.run_files import check_free
from detrkit.utils.console import console
from detrkit.utils.errors import DetrkitError
from detrkit.utils.launch import attempt
from detrkit.utils.lock import NAME as LOCK
from detrkit.utils.names import expanded_path
from detrkit.utils.ranges import as_option

_NO_DATASET = "no dataset: give its path, as in `detrkit train my_data`, or --resume a run"


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

    @staticmethod
    def with_defaults(words: Sequence[str]) -> Train:
        """Return the command's defaults for the words after it, see `with_defaults`."""
        return with_defaults(words)

    @staticmethod
    def check_typed(typed: Typed) -> None:
        """Check what needs no torch, before the defaults are chosen.

        Raises:
            DetrkitError: a path or a name that is not there, or a folder that holds another run.
        """
        resumed, recipe, out = typed.last("resume"), typed.last("recipe"), typed.last("out")
        if not typed.positionals and resumed is None and recipe is None:
            raise DetrkitError(_NO_DATASET)
        if recipe is not None:
            check_recipe(recipe)
        check_folders([*typed.positionals, typed.last("val-data")])
        check_model(typed.last("model"))
        check_weights(typed.last("init-from"))
        check_weights(typed.last("freeze-detector"))
        if out is None and recipe is None:
            out = RunConfig.out
        # torchrun may restart a run in its folder; one that is being written has a message of its own
        if resumed is None and out is not None and attempt() == 0 and not (expanded_path(out) / LOCK).exists():
            check_free(Path(out))

    def run(self) -> int:
        """Train; return 0 when the run ended, 1 when --overfit could not learn."""
        from detrkit.cli.measured import print_measured
        from detrkit.engine.metrics import evaluated_parts, format_metrics, overfit_metric
        from detrkit.engine.relations import check_config
        from detrkit.engine.training import train

        config = self.config if self.dataset is None else self.config.changed(data={"path": self.dataset})
        if not config.data.path:
            raise DetrkitError(_NO_DATASET)
        check_config(config, format_field=as_option)
        result = train(config, resume=self.resume is not None)
        if result.metrics is None:
            console.print(f"weights: {result.best}")
            return 0
        print_measured(evaluated_parts(result.metrics))
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
