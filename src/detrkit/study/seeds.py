"""Several seeds of one model: its runs together, and the mean and the spread of a metric over them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from detrkit.evaluation.metrics import percent
from detrkit.study.config import Member, StudyConfig
from detrkit.study.results import MemberResult

MemberResults = Sequence[tuple[Member, MemberResult]]  # every run, in the order of members and seeds


class MemberRuns(NamedTuple):
    """The runs of one member.

    Attributes:
        member: the model.
        runs: their results, in the order of their seeds.
    """

    member: Member
    runs: Sequence[MemberResult]

    @property
    def done(self) -> list[MemberResult]:
        """The runs that have trained to their end and been evaluated."""
        return [run for run in self.runs if run.done]

    @property
    def curves(self) -> list[Mapping[str, Any]]:
        """The rows of epochs.csv of all runs that are done, or, if none is, of those that have begun."""
        return [row for run in self.done or self.runs for row in run.curves]

    def spreads(self) -> dict[str, Spread]:
        """Compute mean and standard deviation of every metric that the runs have, also of the classes'."""
        measured = [run.all_metrics() for run in self.done]
        names = dict.fromkeys(name for metrics in measured for name in metrics)
        return {name: spread_of(m[name] for m in measured if name in m) for name in names}


class Spread(NamedTuple):
    """Mean and spread of a metric over the runs of a member.

    Attributes:
        mean: in [0, 1].
        std: sample standard deviation (divided by seeds - 1); None for one run.
        seeds: number of runs.
    """

    mean: float
    std: float | None
    seeds: int

    def text(self) -> str:
        """Format it in percent: "64.4 ± 0.8", "64.4" for one run."""
        return percent(self.mean) if self.std is None else f"{percent(self.mean)} ± {percent(self.std)}"


def spread_of(values: Iterable[float]) -> Spread:
    """Compute mean and sample standard deviation of one or more values."""
    values = list(values)
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def by_member(results: MemberResults) -> list[MemberRuns]:
    """Group runs by their member, in the order in which members and runs come."""
    groups: dict[str, MemberRuns] = {}
    for member, result in results:
        runs = groups[member.name].runs if member.name in groups else []
        groups[member.name] = MemberRuns(member, [*runs, result])
    return list(groups.values())


def run_heading(study: StudyConfig, member: Member, result: MemberResult) -> str:
    """Return the name of a run for readers: that of its member, with the seed if the member has several."""
    return next((run.heading for run in study.runs(member) if run.folder == result.folder), member.heading)


def failures(study: StudyConfig, results: MemberResults) -> list[tuple[str, str]]:
    """Return name and reason of every run that failed."""
    return [(run_heading(study, m, r), r.failure) for m, r in results if r.failure]
