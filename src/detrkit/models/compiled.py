"""Forward passes by `torch.compile`, for sizes of input for which they are measured to be faster.

A compiled graph is of one size of input. Compiling takes from half a minute to some minutes, and on a CPU detrkit's own
kernels are often as fast. So a size is tried when it has come several times: compiled and plain passes take turns, on
real inputs, and the faster way is used from then on. At most `MOST_SIZES` sizes are tried; graphs are kept on the disk
by PyTorch, so that the next process compiles in a fraction of the time.
"""

from __future__ import annotations

import copy
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from detrkit.backbones.resnet import ResNetBackbone
from detrkit.layers.folding import fold_for_good
from detrkit.models.base import DetectionModel
from detrkit.models.denoising_base import DenoisingModel
from detrkit.structures.batch import Batch, TracedBatch
from detrkit.structures.outputs import Capturing, Outputs, Target
from detrkit.utils.download import home
from detrkit.utils.errors import SettingError

log = logging.getLogger("detrkit.compile")

MOST_SIZES = 4  # that are tried; further ones run plainly
SEEN = 3  # passes of a size before it is tried: sizes that do not come again are not worth it
PAIRS = 5  # of timed passes, after which the way is chosen
PASSES = SEEN + 1 + 2 * PAIRS  # of a size until its way is chosen
LEAST_GAIN = 1.03  # times faster that the compiled passes must be
CACHE = "TORCHINDUCTOR_CACHE_DIR"

Way = Literal["plain", "compiled"]
Compile = Callable[[Callable[..., Any]], Callable[..., Any]]


class Size(NamedTuple):
    """What a graph depends on.

    Attributes:
        shape: of the images, (B, 3, H, W).
        padded: whether images are padded to it.
        dtype: of the images.
        defer_masks: as of the model.
    """

    shape: tuple[int, ...]
    padded: bool
    dtype: torch.dtype
    defer_masks: bool | None

    def __str__(self) -> str:
        count, _, height, width = self.shape
        padded = ", padded" if self.padded else ""
        return f"{count} image{'' if count == 1 else 's'} of {width} x {height} pixels{padded}"


@dataclass
class _Trial:
    """What is known of a size.

    Attributes:
        passes: so far.
        seconds: of the timed passes of each way.
        chosen: the way from now on; None: not known yet.
        gain: times that the compiled passes were faster, once both are timed.
    """

    passes: int = 0
    seconds: dict[Way, list[float]] = field(default_factory=lambda: {"plain": [], "compiled": []})
    chosen: Way | None = None
    gain: float | None = None

    @property
    def tried(self) -> bool:
        """Whether compiled passes have been made, or are to be made next."""
        return self.gain is not None or (self.chosen is None and self.passes >= SEEN)

    def next_way(self) -> tuple[Way, bool]:
        """Return the way of the next pass, and whether it is timed: the first compiled pass compiles."""
        if self.chosen is not None:
            return self.chosen, False
        if self.passes <= SEEN:
            return ("compiled" if self.passes == SEEN else "plain"), False
        return ("plain" if (self.passes - SEEN) % 2 else "compiled"), True

    def took(self, way: Way, seconds: float) -> None:
        """Note the time of a pass; after the last one, choose."""
        self.seconds[way].append(seconds)
        if min(map(len, self.seconds.values())) >= PAIRS:
            plain, compiled = (statistics.median(self.seconds[name]) for name in ("plain", "compiled"))
            self.gain = plain / compiled
            self.chosen = "compiled" if self.gain >= LEAST_GAIN else "plain"


class _Pass(NamedTuple):
    """A pass that has begun."""

    size: Size
    way: Way
    timed: bool
    began: float


class CompiledForward:
    """The forward pass of a model, compiled where it is faster; it takes the place of `model.forward`.

    Passes for which no graph is made are plain: those that capture attention, of a model in the other mode, with ground
    truth as input (denoising), or of padded images where the model computes image by image.

    Args:
        model: in eval mode, or in training.
        training: compile the passes of training, whose time is that until `took` is called, after the backward pass;
            else those of inference, of a copy whose norms are folded. A weight that is changed starts all anew.
        compile: a function of one size; by default `torch.compile` without breaks in the graph.

    Attributes:
        model: the model.
        trials: what is known of each size.
    """

    def __init__(self, model: DetectionModel, *, training: bool = False, compile: Compile | None = None) -> None:
        self.model = model
        self.training = training
        self.trials: dict[Size, _Trial] = {}
        self.settled = False
        self.failure = ""
        self._compile = compile or _by_inductor
        self._graphs: dict[Size, Callable[..., Outputs]] = {}
        self._source: DetectionModel | None = None  # of the graphs
        self._state: list[tuple[int, int]] | None = None  # of its weights
        self._open: _Pass | None = None  # of training, until its backward pass is over

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has: the model and the settings; graphs are of this process and of these weights."""
        anew: dict[str, Any] = {"trials": {}, "_graphs": {}, "_source": None, "_state": None, "_open": None}
        return vars(self) | anew

    def __call__(
        self,
        images: Sequence[Tensor] | Batch,
        targets: Sequence[Target] | None = None,
        capture: Capturing = False,
        defer_masks: bool | None = None,
    ) -> Outputs:
        """Compute the outputs; arguments and result as of the model."""
        plain = type(self.model).forward
        size = None if capture or not isinstance(images, Batch) else self._size(images, targets, defer_masks)
        if size is None:
            return plain(self.model, images, targets, capture, defer_masks)
        assert isinstance(images, Batch)
        way, timed = self.trials[size].next_way()
        begun = _Pass(size, way, timed, _now(images.images.device) if timed else 0.0)
        if way == "compiled":
            outputs = self._compiled(size, images)
            if outputs is None:
                return plain(self.model, images, targets, capture, defer_masks)
        else:
            outputs = plain(self.model, images, targets, capture, defer_masks)
        if self.training:
            self._open = begun
        else:
            self._over(begun, images.images.device)
        return outputs

    def took(self, device: torch.device) -> None:
        """Note that a pass of training is over, with its backward pass.

        Args:
            device: of the images; the time is that of its work, too.
        """
        begun, self._open = self._open, None
        if begun is not None:
            self._over(begun, device)

    def _over(self, begun: _Pass, device: torch.device) -> None:
        """Note the time of a pass, and choose if it was the last one to time."""
        size, way, timed, began = begun
        trial = self.trials.get(size)
        if trial is None:  # forgotten by another thread
            return
        trial.passes += 1
        if timed:
            trial.took(way, _now(device) - began)
            if trial.chosen is not None:
                self._graphs = {s: graph for s, graph in self._graphs.items() if self.trials[s].chosen != "plain"}
                log.info("%s", self._line(size, trial))

    def settle(self) -> None:
        """Try no further size: what was not chosen to be compiled runs plainly from now on."""
        self.settled = True
        for trial in self.trials.values():
            trial.chosen = trial.chosen or "plain"

    def report(self) -> list[str]:
        """Return a line for each size that was tried or compiled, and one for the rest."""
        if self.failure:
            return [f"torch.compile failed, so nothing was compiled: {self.failure}"]
        lines = [self._line(size, trial) for size, trial in self.trials.items() if trial.gain is not None]
        if all(trial.gain is None for trial in self.trials.values()):
            lines.append(f"torch.compile: no size of input came {PASSES} times, which it takes to see whether it pays")
        elif len(lines) < len(self.trials):
            lines.append(
                f"other sizes were not compiled: they came less than {PASSES} times, or after {MOST_SIZES} others"
            )
        return lines

    def _line(self, size: Size, trial: _Trial) -> str:
        how = "compiled" if trial.chosen == "compiled" else "not compiled, which would be"
        return f"{size}: {how} {trial.gain:.2f} times as fast"

    def _size(self, batch: Batch, targets: Sequence[Target] | None, defer_masks: bool | None) -> Size | None:
        """Return the size of a pass that may be compiled, known from now on; None of one that may not."""
        model = self.model
        denoising = self.training and targets is not None and takes_targets(model)
        if self.failure or model.training != self.training or torch.is_grad_enabled() != self.training or denoising:
            return None
        if batch.padded and (model.segmentation is not None or not takes_mask(model)):
            return None
        self._check_weights()
        size = Size(tuple(batch.images.shape), batch.padded, batch.images.dtype, defer_masks)
        trial = self.trials.setdefault(size, _Trial())
        if trial.chosen is None and trial.passes == SEEN:
            others = sum(one.tried for one in self.trials.values() if one is not trial)
            if self.settled or others >= MOST_SIZES:
                trial.chosen = "plain"
        return size

    def _check_weights(self) -> None:
        """Forget the graphs of inference if a weight was changed since: they are of a copy."""
        if self._state is not None and self._state != _state_of(self.model):
            self.trials, self._graphs, self._source, self._state = {}, {}, None, None

    def _compiled(self, size: Size, batch: Batch) -> Outputs | None:
        """Compute the outputs by the graph of a size, which is made if there is none; None if that fails."""
        traced = TracedBatch(batch.images, padding=batch.mask()) if size.padded else batch
        graph = self._graphs.get(size)
        try:
            if graph is None:
                graph = self._graphs[size] = self._compile(self._function(traced, size.defer_masks))
                if self.training:
                    _try_backward(graph(traced), self.model)
            return graph(traced)
        except Exception as error:  # of the compiler, of any kind: the plain pass says whether the input is at fault
            if self.trials[size].passes > SEEN:
                raise
            self.failure = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            warnings.warn(f"torch.compile failed, computing without it: {self.failure}", stacklevel=2)
            self._graphs, self._open = {}, None
            return None

    def _function(self, batch: Batch, defer_masks: bool | None) -> Callable[[Batch], Outputs]:
        """Return what is compiled."""
        if self._source is None:
            self._source = self.model
            if not self.training:
                self._state = _state_of(self.model)
                with torch.inference_mode(False), torch.no_grad():
                    folded = copy.deepcopy(_plain(self.model)).requires_grad_(False)
                    fold_for_good(folded, lambda: folded(batch, defer_masks=True))
                self._source = folded
        model, forward = self._source, type(self.model).forward
        return lambda batch: forward(model, batch, None, False, defer_masks)


def compiled(model: DetectionModel) -> DetectionModel:
    """Return a model of the same parts whose forward passes of inference are compiled where that is faster.

    Args:
        model: in eval mode; it is not changed.

    Raises:
        SettingError: an exported model, whose graph is fixed.
    """
    if not any(True for _ in model.parameters()):
        raise SettingError("compile: an exported model is compiled already: leave it out")
    made = _plain(model)
    made.forward = CompiledForward(made)  # type: ignore[method-assign]
    return made


def compile_training(model: DetectionModel) -> CompiledForward:
    """Let a model compute its passes of training by `torch.compile` where that is faster, in place.

    Args:
        model: that is trained; copies made of it before stay as they are.

    Returns:
        Its forward pass, whose `took` is to be called after each backward pass.
    """
    forward = CompiledForward(model, training=True)
    model.forward = forward  # type: ignore[method-assign]
    return forward


def compiled_forward(model: nn.Module) -> CompiledForward | None:
    """Return what `compiled` has put into a model, or None."""
    forward = vars(model).get("forward")
    return forward if isinstance(forward, CompiledForward) else None


def takes_targets(model: DetectionModel) -> bool:
    """Return whether a model's passes of training have ground truth as input, so that its graphs would differ.

    Those of models of other packages may.
    """
    return isinstance(model, DenoisingModel) or not type(model).__module__.startswith("detrkit.")


def takes_mask(model: DetectionModel) -> bool:
    """Return whether a model computes padded images at once, with a mask: torchvision's ResNets, or as published."""
    return isinstance(model.backbone, ResNetBackbone) or model.backbone.padding == "official"


def _plain(model: DetectionModel) -> DetectionModel:
    """Return a model of the same parts, with the forward pass of its class."""
    made = copy.copy(model)
    vars(made).pop("forward", None)
    return made


def keep_graphs() -> None:
    """Let PyTorch keep compiled graphs in detrkit's folder, unless `TORCHINDUCTOR_CACHE_DIR` names another.

    PyTorch's own default is below the temporary folder; it writes it into that variable when it is imported.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if os.environ.get(CACHE) in (None, "", default_cache_dir()):
        os.environ[CACHE] = str(home() / "compiled")


def _by_inductor(function: Callable[..., Any]) -> Callable[..., Any]:
    keep_graphs()
    return torch.compile(function, fullgraph=True, dynamic=False)


def _state_of(model: nn.Module) -> list[tuple[int, int]]:
    """Return what changes with a model's weights."""
    tensors = [*model.parameters(), *model.buffers()]
    return [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]


def _try_backward(outputs: Outputs, model: nn.Module) -> None:
    """Compute gradients that nobody uses, so that the backward pass is compiled, too, or fails here."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    torch.autograd.grad(outputs.logits.sum() + outputs.boxes.sum(), parameters, allow_unused=True)


def _now(device: torch.device) -> float:
    """Return the time, when a device's work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
