"""One run of a study: trained to its end, evaluated, and its failure noted."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch.distributed as dist

from detrkit.engine.job import peer_gone
from detrkit.engine.memory import free_unused
from detrkit.engine.processes import StopSignals
from detrkit.engine.training import train
from detrkit.study.config import MemberRun, StudyConfig
from detrkit.study.results import FAILURE, evaluate_last
from detrkit.utils.atomic import write_atomic
from detrkit.utils.console import console
from detrkit.utils.errors import DetrkitError, Interrupted, PeerError


def train_and_evaluate(study: StudyConfig, run: MemberRun, folder: Path, *, resume: bool, watch: StopSignals) -> None:
    """Train a run to its end and evaluate its last weights; a failure is noted in its folder.

    Args:
        study: with its data.
        run: of one of its members.
        folder: of the study.
        resume: whether to resume it.
        watch: of the study's process.

    Raises:
        Interrupted: asked to stop; everything is saved.
        Exception: of a run of several processes, after it has been noted.
    """
    place = folder / run.folder
    config = study.config(run.member, seed=run.seed).changed(run={"out": str(place)})
    free_unused()  # of the run before
    try:
        train(config, resume=resume)
        with watch.waiting():
            evaluate_last(place, run, config, study.split(), stop=watch)
    except Interrupted:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, DetrkitError) else f"{type(error).__name__}: {error}"
        reason = " ".join(reason.split())  # in one line
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if several and (peer_gone(error) or isinstance(error, PeerError)):
            raise  # the process that failed says why
        write_atomic(place / FAILURE, f"{reason}\n\n{traceback.format_exc()}")
        if several:
            raise
        console.print(f"{run.heading} failed: {reason}")
