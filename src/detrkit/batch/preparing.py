"""What comes before a prediction in shards: refusals without torch, and the plan that all workers share."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from detrkit import __version__
from detrkit.batch.leases import Leases
from detrkit.batch.plan import LEASES, Plan, RowFormat, check_model, check_plan, check_sources, make_plan, read_plan
from detrkit.batch.results import check_format
from detrkit.batch.sources import Source, find_sources
from detrkit.utils.atomic import make_folder
from detrkit.utils.errors import SettingError
from detrkit.utils.names import full_path
from detrkit.utils.ranges import Range

if TYPE_CHECKING:
    from detrkit.detector import Detector

LeaseSeconds = Annotated[float, Range(ge=0.5, le=86_400)]

_PAUSE = 0.2  # seconds between two looks for a plan that another worker makes
_DIGITS = 12  # of the weights' digest in the name of a model


def check_shards(chosen: Sequence[int], shards: int) -> list[int]:
    """Return the chosen shards, all if none is chosen.

    Raises:
        SettingError: there is no such shard.
    """
    wrong = [number for number in chosen if not 0 <= number < shards]
    if wrong:
        raise SettingError(f"shard {wrong[0]}: must be from 0 to {shards - 1}, as there are {shards} shards")
    return list(dict.fromkeys(chosen)) or list(range(shards))


class Preparation:
    """What is done before a model is loaded: the sources are found, and a folder of something else is refused.

    Args:
        names: of the sources.
        out: the folder for the results.
        shards: their number.
        rows: format of the results.

    Attributes:
        sources: of the images.
        out: the absolute path of the folder.
        is_new: whether the folder had no plan.

    Raises:
        DetrkitError: a source is not there, or the folder holds something else.
    """

    def __init__(self, names: Sequence[str], out: str | Path, *, shards: int, rows: RowFormat) -> None:
        self._shards, self._rows = shards, rows
        check_format(rows)
        self.sources: list[Source] = find_sources(names)
        self.out = full_path(out)
        plan = read_plan(self.out)
        self.is_new = plan is None
        if plan is not None:
            check_plan(plan, self.out, shards=shards, rows=rows)

    def plan(self, detector: Detector, *, threshold: float | str | None, masks: bool, lease_seconds: float) -> Plan:
        """Return the folder's plan, which is made if there is none: by one worker, while others wait.

        Args:
            detector: that will predict.
            threshold: as of `Detector.predict`.
            masks: as of `predict_folder`.
            lease_seconds: as of `predict_folder`.

        Raises:
            DetrkitError: as `predict_folder`.
        """
        from detrkit.weights.digest import weights_sha256

        settings = settings_of(detector, threshold, masks)
        model = f"{detector.spec.name}-{weights_sha256(detector.model)[:_DIGITS]}"
        make_folder(self.out)
        leases = Leases(self.out / LEASES, stale_seconds=lease_seconds)
        try:
            while (plan := read_plan(self.out)) is None:
                lease = leases.acquire("plan")
                if lease is None:
                    time.sleep(_PAUSE)
                    continue
                with lease:
                    if read_plan(self.out) is None:
                        return make_plan(
                            self.out,
                            self.sources,
                            shards=self._shards,
                            rows=self._rows,
                            model=model,
                            settings=settings,
                        )
        finally:
            leases.close()
        check_plan(plan, self.out, shards=self._shards, rows=self._rows)
        check_sources(plan, self.out, self.sources)
        check_model(plan, self.out, model, settings)
        return plan


def settings_of(detector: Detector, threshold: float | str | None, masks: bool) -> dict[str, Any]:
    """Return what the results depend on beside the weights and the images, by the words of messages."""
    from detrkit.detector import has_masks

    limit = detector.resolve_threshold(threshold)
    spec = detector.spec
    return {
        "threshold": "auto" if isinstance(limit, tuple) else limit,
        "size": spec.size,
        "max_size": spec.max_size,
        **({} if detector.tiling is None else {"tiles": str(detector.tiling)}),
        "masks": masks and has_masks(detector.model),
        "dtype": str(detector.dtype).removeprefix("torch."),
        "description": hashlib.sha256(spec.to_json().encode()).hexdigest()[:_DIGITS],  # classes, normalization, ...
        "version": __version__,
    }
