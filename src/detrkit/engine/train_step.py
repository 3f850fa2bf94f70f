"""One training step: forward, losses, backward, clipping, optimizer step, in this order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel

from detrkit.engine.fabric import Fabric
from detrkit.engine.processes import global_normalizers
from detrkit.models.compiled import CompiledForward
from detrkit.models.criterion import Normalizers, SetCriterion
from detrkit.models.matcher import NonFiniteError
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Target
from detrkit.utils.timing import BACKWARD, CLIPPING, LOSSES, STEPPING, NoTimer, PartTimer

if TYPE_CHECKING:
    from lightning_fabric.wrappers import _FabricModule


class TrainStep:
    """Training step on one global batch, which may come in parts.

    The host waits for a device twice: for the matching costs (once more for those of two-stage proposals), and for all
    the numbers of the step together.

    Args:
        fabric: launched.
        model: from `fabric.setup`.
        optimizer: from `fabric.setup`.
        criterion: of the model.
        queries: of the model.
        clip_max_norm: largest global gradient norm; 0 for no clipping.
        all_reduce_mean: averages scalars over the processes, in one transfer.
        average: moving average of a model's weights, or None.
        averaged: the plain model whose weights are averaged.
        compiled: the model's forward pass, if it may be compiled: it is told when a backward pass is over.

    Attributes:
        timer: enters a part at each stage of a step (`detrkit.utils.timing`); by default it measures nothing.
    """

    def __init__(
        self,
        fabric: Fabric,
        model: _FabricModule,
        optimizer: AdamW,
        criterion: SetCriterion,
        *,
        queries: int,
        clip_max_norm: float,
        all_reduce_mean: Callable[[dict[str, Tensor]], dict[str, float]],
        average: AveragedModel | None = None,
        averaged: nn.Module | None = None,
        compiled: CompiledForward | None = None,
    ) -> None:
        self.fabric, self.model, self.optimizer, self.criterion = fabric, model, optimizer, criterion
        self.queries, self.clip_max_norm, self.all_reduce_mean = queries, clip_max_norm, all_reduce_mean
        self.average, self.averaged, self.compiled = average, averaged, compiled
        self.timer: PartTimer = NoTimer()

    def __call__(self, parts: Sequence[tuple[Batch, list[Target]]]) -> dict[str, float]:
        """Run one training step.

        Args:
            parts: this process's share of the global batch; the images on its device, as a `Loader` places them.

        Returns:
            The loss terms averaged over the processes, "loss", their weighted sum, and "grad_norm" before clipping.

        Raises:
            NonFiniteError: an output, a loss or the gradient is NaN or infinite; the weights are unchanged.
        """
        terms = self._gradients(parts)
        if self.clip_max_norm > 0:
            with self.timer.part(CLIPPING):
                norm = self.fabric.clip_gradients(
                    self.model, self.optimizer, max_norm=self.clip_max_norm, error_if_nonfinite=False
                )
            assert isinstance(norm, Tensor)
            terms["grad_norm"] = norm.detach()  # the same in all processes
        values = self.all_reduce_mean(terms)
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            term = next((name for name in bad if name not in ("loss", "grad_norm")), bad[0])
            what = "the gradient" if term == "grad_norm" else term
            raise NonFiniteError(what, [target.image_id for _, targets in parts for target in targets])
        with self.timer.part(STEPPING):
            self.optimizer.step()
        if self.average is not None and self.averaged is not None:
            self.average.update_parameters(self.averaged)
        return values

    def _gradients(self, parts: Sequence[tuple[Batch, list[Target]]]) -> dict[str, Tensor]:
        """Compute the gradient of all parts; return the terms and the loss of this process."""
        fabric = self.fabric
        # the objects of the whole global batch are counted first, so that its split does not change the result
        counts = global_normalizers(
            self.criterion, [targets for _, targets in parts], self.queries, fabric.device, fabric.world_size
        )
        terms: dict[str, Tensor] = {}
        self.optimizer.zero_grad(set_to_none=True)
        for i, (batch, targets) in enumerate(parts):
            moved = [t.to(fabric.device) for t in targets]
            more = i + 1 < len(parts)
            with fabric.no_backward_sync(self.model, enabled=fabric.world_size > 1 and more):
                losses, total = self._losses(batch, moved, counts)
                with self.timer.part(BACKWARD):
                    fabric.backward(total)
            if self.compiled is not None:
                self.compiled.took(fabric.device)
            for name, value in {"loss": total, **losses}.items():
                # diagnostics are means over images, not shares of a sum
                share = value.detach() / len(parts) if name.startswith(("class_", "card")) else value.detach()
                terms[name] = terms[name] + share if name in terms else share
        return terms

    def _losses(
        self, batch: Batch, targets: Sequence[Target], normalizers: Normalizers
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the loss terms of one part, and their weighted sum; free the outputs."""
        outputs = self.model(batch, targets)
        with self.timer.part(LOSSES):
            losses = self.criterion(outputs, targets, normalizers=normalizers)
            return losses, self.criterion.total(losses)
