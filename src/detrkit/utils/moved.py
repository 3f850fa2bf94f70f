"""Modules under the names that they had in earlier versions.

`import detrkit.checkpoint` gives the module `detrkit.weights.checkpoint` itself, with a DeprecationWarning, so that
code written for the earlier layout runs on. The public names of `detrkit` (`detrkit.load`, ...) never moved.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from importlib.abc import Loader

# earlier module, or package with its modules -> present one; both below `detrkit`
MOVED = {
    "benchmark": "profiling",
    "benchmark.machine": "utils.machine",
    "benchmark.measuring": "profiling.profile",
    "benchmark.pictures": "profiling.generated_images",
    "benchmark.stopwatch": "profiling.timer",
    "build": "weights.build",
    "checkpoint": "weights.checkpoint",
    "classes": "structures.classes",
    "coco_classes": "structures.coco_classes",
    "comparison.peer": "comparison.transformers_runner",
    "comparison.sides": "comparison.runners",
    "console": "utils.console",
    "convert.files": "weights.files",
    "convert.huggingface": "weights.huggingface",
    "convert.huggingface_folder": "weights.huggingface_config",
    "convert.keymap": "weights.keymap",
    "convert.official": "weights.official",
    "convert.paddle": "weights.paddle",
    "convert.told": "weights.infer",
    "data.check": "data.tools.check",
    "data.check_images": "data.tools.check_images",
    "data.check_panoptic": "data.tools.check_panoptic",
    "data.convert": "data.tools.convert",
    "data.cppe5": "data.tools.cppe5",
    "data.preview": "visualize.preview",
    "data.shapes": "data.tools.shapes",
    "download": "utils.download",
    "engine.figures": "engine.metrics",
    "engine.gathering": "engine.evaluation_loop",
    "engine.steps": "engine.phases",
    "engine.update": "engine.train_step",
    "errors": "utils.errors",
    "evaluation.panoptic_truth": "evaluation.panoptic_ground_truth",
    "models.batch": "structures.batch",
    "models.outputs": "structures.outputs",
    "models.panoptic_postprocess": "models.postprocess",
    "profiling.measuring": "profiling.profile",
    "ops.pages": "ops.malloc",
    "profiling.pictures": "profiling.generated_images",
    "profiling.stopwatch": "profiling.timer",
    "published": "models.pretrained",
    "registry": "models.registry",
    "reproduction.journal": "reproduction.results_log",
    "reproduction.hub": "compat.hub",
    "reproduction.official_command": "compat.main",
    "results": "structures.results",
    "utils.ahead": "utils.prefetch",
    "utils.own_files": "utils.overwriting",
}


def present_name(name: str) -> str | None:
    """Return the present full name of a module by its earlier one; None for modules that did not move."""
    if not name.startswith("detrkit."):
        return None
    before = name.removeprefix("detrkit.")
    rest = ""
    while before not in MOVED:
        before, dot, last = before.rpartition(".")
        if not dot:
            return None
        rest = f".{last}{rest}"
    return f"detrkit.{MOVED[before]}{rest}"


class MovedModules:
    """Finder and loader of modules by their earlier names.

    The base classes of `importlib.abc`, which Python does not ask for, would take half the time of `import detrkit`.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for an earlier name, None for all others."""
        return None if present_name(fullname) is None else ModuleSpec(fullname, cast("Loader", self))

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module that the earlier name stands for."""
        present = present_name(spec.name)
        assert present is not None
        warnings.warn(f"{spec.name} is now {present}", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(present)
        # the import system will set the spec of the earlier name; `exec_module` restores this one
        spec.loader_state = {"__spec__": module.__spec__, "__loader__": module.__loader__, "__name__": module.__name__}
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the module's own spec; it has been executed under its present name."""
        spec = module.__spec__
        if spec is not None and isinstance(spec.loader, MovedModules):
            vars(module).update(spec.loader_state)


def install() -> None:
    """Make earlier names importable; called once, by `import detrkit`."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, MovedModules())
