"""`detrkit train`."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from detrkit.utils.ranges import as_option, field_hints

if TYPE_CHECKING:
    from detrkit.engine.budget import TimeLimit

AUTO = "auto"  # the recipe that is chosen for data and machine

_CHOSEN_DATA = (("data", "size"), ("data", "max_size"), ("data", "batch_size"), ("data", "augment"))
_NO_DATASET = "no dataset: give its path, as in `detrkit train my_data`, or --resume a run"


@dataclass(frozen=True)
class Train:
    """Train a model on a dataset, or resume a run.

    Without --recipe the settings are chosen for the data and the machine: the model, the size of the images, the batch
    and the number of epochs. What was chosen is printed with its reasons. With --recipe or --resume the defaults shown
    here are that recipe's or run's. Options given on the command line come on top of either.

    Such as:

    detrkit train my_data --overfit 8

    detrkit train my_data --out runs/first

    detrkit train my_data --minutes 30 --out runs/first

    detrkit train my_data --recipe finetune --init-from detr-r50

    detrkit train my_data more_data --weights 3 1 --out runs/both

    detrkit train my_data --masks --freeze-detector runs/first

    detrkit train --resume runs/first

    torchrun --nproc-per-node 8 -m detrkit train coco --recipe detr-150
    """

    datasets: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")] = ()
    """The dataset: a folder of COCO, Pascal VOC, YOLO, parquet or CSV, or a COCO json, data.yaml or CSV; the layout is
    recognized. Several are trained on together, with classes of the same name as one."""
    recipe: str | None = None
    """A YAML file with settings, or the name of one that comes with detrkit; auto (the default) chooses. By your case
    own-data, few-images, dense, small-objects, from-scratch, realtime (for a CPU), finetune (of --init-from); all:
    {recipes}."""
    resume: str | None = None
    """The folder of a run: continue it exactly where it stopped."""
    config: TrainConfig = field(default_factory=TrainConfig)
    typed: Annotated[tuple[str, ...] | None, tyro.conf.Fixed, tyro.conf.Suppress] = None
    """The settings that the command line gives, as "optim.epochs"; None for a resumed run."""

    @staticmethod
    def with_defaults(words: Sequence[str]) -> Train:
        """Return the command's defaults for the words after it, see `with_defaults`."""
        return with_defaults(words)

    @staticmethod
    def chosen_settings(default: Train) -> frozenset[tuple[str, ...]]:
        """Return the paths of the settings that are chosen for data and machine, if the defaults are of no recipe."""
        if default.config != TrainConfig():
            return frozenset()
        paths = {("config", *path) for path, _ in field_hints(TrainConfig)}
        return frozenset(p for p in paths if p[1] in ("model", "optim") or p[1:] in _CHOSEN_DATA)

    @staticmethod
    def check_typed(typed: Typed) -> None:
        """Check what needs no torch, before the defaults are chosen.

        Raises:
            DetrkitError: a path or a name that is not there, or a folder that holds another run.
        """
        resumed, recipe, out = typed.last("resume"), typed.last("recipe"), typed.last("out")
        if not typed.positionals and resumed is None and recipe is None:
            raise DetrkitError(_NO_DATASET)
        if recipe not in (None, AUTO):
            check_recipe(recipe)
        check_folders([*typed.positionals, typed.last("val-data")])
        check_model(typed.last("model"))
        check_weights(typed.last("init-from"))
        check_weights(typed.last("freeze-detector"))
        if out is None and recipe in (None, AUTO):
            out = RunConfig.out
        # torchrun may restart a run in its folder; one that is being written has a message of its own
        if resumed is None and out is not None and attempt() == 0 and not (expanded_path(out) / LOCK).exists():
            check_free(Path(out))

    def run(self) -> int:
        """Train; return 0 when the run ended, 1 when --overfit could not learn."""
        from detrkit.cli.measured import print_measured
        from detrkit.engine.metrics import evaluated_parts, format_metrics
        from detrkit.engine.relations import check_config
        from detrkit.engine.training import train

        config = self.config
        if self.datasets:
            config = config.changed(data={"path": self.datasets[0], "more_paths": self.datasets[1:]})
        if not config.data.path:
            raise DetrkitError(_NO_DATASET)
        config, lines, limit = self._settings(config)
        check_config(config, format_field=as_option)
        for line in lines:
            console.print(line)
        shorten = self.typed is not None and "optim.epochs" in self.typed and "optim.warmup_steps" not in self.typed
        resume = self.resume is not None
        result = train(config, resume=resume, shorten_warmup=shorten, reasons=lines, limit=limit)
        following = f"next: {shlex.join(['detrkit', 'predict', str(result.folder)])} IMAGES_OR_FOLDER"
        if result.metrics is None:
            console.print(f"weights: {result.best}\n{following}")
            return 0
        print_measured(evaluated_parts(result.metrics))
        if result.test_metrics is not None:
            console.print(f"test: {format_metrics(result.test_metrics)}")
        console.print(f"report:  {result.report}\nweights: {result.best}")
        if not config.run.overfit:
            console.print(following)
        if result.verdict is not None:
            console.print(result.verdict)
        return 1 if result.can_learn is False else 0

    def _settings(self, config: TrainConfig) -> tuple[TrainConfig, list[str], TimeLimit | None]:
        """Return the settings of the run, the lines that say what was chosen or adapted, and a time for the run.

        Raises:
            DetrkitError: settings that exclude each other; a dataset that is missing or not readable.
        """
        from detrkit.engine.facts import choose_settings
        from detrkit.engine.other_model import for_other_model
        from detrkit.engine.overfit import smaller_input
        from detrkit.engine.relations import check_datasets
        from detrkit.engine.schedule import with_epochs
        from detrkit.engine.splits import data_sources

        if self.typed is None:
            return config, [], None
        if "run.minutes" in self.typed and "optim.epochs" in self.typed and not config.run.overfit:
            raise DetrkitError("--minutes and --epochs: the minutes set the epochs, so give one of them")
        limit = None
        if self.recipe in (None, AUTO):
            check_datasets(config, format_field=as_option)  # in the words of the command line
            settings = choose_settings(data_sources(config), config, fixed=self.typed)
            config, lines, limit = settings
        else:
            recipe = load_config(self.recipe)
            config, left_out = for_other_model(config, recipe, self.typed)
            before, optim = recipe.optim, config.optim
            fitted = with_epochs(
                dataclasses.replace(optim, epochs=before.epochs, mask_epochs=before.mask_epochs),
                optim.epochs,
                mask_epochs=optim.mask_epochs,
                keep_drop="optim.lr_drop" in self.typed,
            )
            config, lines = dataclasses.replace(config, optim=fitted.optim), [left_out, fitted.words]
            if "model.backbone_weights" in self.typed and "run.init_from" not in self.typed and config.run.init_from:
                lines.append(f"first weights: those of the backbone alone, not {config.run.init_from} as in the recipe")
                config = config.changed(run={"init_from": None})
        if config.run.overfit and "data.size" not in self.typed:
            config, line = smaller_input(config)
            lines = [*lines, line]
        return config, [line for line in lines if line], limit


def typed_settings(argv: Sequence[str]) -> tuple[str, ...]:
    """Return the settings that a command line gives, as "optim.epochs", in the order of the fields."""
    options = {
        word.partition("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_")
        for word in argv
        if word.startswith("--")
    }
    names = {path: "model" if path == ("model", "name") else path[-1] for path, _ in field_hints(TrainConfig)}
    return tuple(".".join(path) for path, name in names.items() if name in options)


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
    typed = typed_settings(argv)
    if sources.get("--recipe", AUTO) != AUTO:
        return Train(config=load_config(sources["--recipe"]), typed=typed)
    if "--resume" in sources:
        saved = Path(sources["--resume"]) / "config.yaml"
        if not os.path.isfile(saved):  # False for an impossible path, for which Path.is_file raises an error
            raise DetrkitError(f"{saved}: not there, so {sources['--resume']} is no run to resume")
        return Train(config=load_config(saved).changed(run={"out": sources["--resume"]}))
    return Train(typed=typed)
