"""The settings of a study and their YAML form: shared settings, members, seeds, published metrics."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ConfigDict

from detrkit.config import TrainConfig
from detrkit.engine.resuming import first_difference
from detrkit.utils.errors import DetrkitError
from detrkit.utils.ranges import LARGEST_SEED, StudySeeds
from detrkit.utils.settings_files import read_yaml, shipped, validated
from detrkit.visualize.colors import LINE_COLORS

_STRICT = ConfigDict(extra="forbid")
_FOLDER = "recipes/studies"
_HINT = "see docs/studies.md for the fields"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")  # it names a folder
# Settings that a member may override: its model and how that is trained (None: every field of the section). Data and
# number of epochs are never among them: the members share one budget.
_MEMBER_SETTINGS: Mapping[str, frozenset[str] | None] = {
    "model": None,
    "loss": None,
    "optim": frozenset({"lr", "lr_backbone", "lr_sampling_factor"}),
    "run": frozenset({"init_from"}),
}


@dataclass(frozen=True, kw_only=True)
class PublishedMetrics:
    """Published metrics of a member, in [0, 1].

    Attributes:
        mAP: mean over IoU 0.5 to 0.95 and classes.
        mAP50, mAP75: at one IoU.
        small, medium, large: mAP of objects below 32 x 32, up to 96 x 96, above 96 x 96 pixels.
        classes: AP of single classes, by name.
    """

    __pydantic_config__ = _STRICT

    mAP: float | None = None
    mAP50: float | None = None
    mAP75: float | None = None
    small: float | None = None
    medium: float | None = None
    large: float | None = None
    classes: dict[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Return the metrics that are known, by the names of `MemberResult.all_metrics`."""
        plain = {name: value for name, value in asdict(self).items() if name != "classes" and value is not None}
        return plain | {f"class {name}": value for name, value in self.classes.items()}


@dataclass(frozen=True, kw_only=True)
class Member:
    """One model of a study.

    Attributes:
        name: of its folder.
        title: of its row; by default the name.
        seeds: number of seeds to train it with; None: that of the study.
        model, loss: fields of these sections that override the shared ones.
        optim: likewise: lr, lr_backbone, lr_sampling_factor.
        run: likewise: init_from.
        published: its published metrics.
    """

    __pydantic_config__ = _STRICT

    name: str
    title: str = ""
    seeds: StudySeeds | None = None
    model: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)
    optim: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    published: PublishedMetrics | None = None

    @property
    def heading(self) -> str:
        """Name of the member in tables and plots."""
        return self.title or self.name

    @property
    def overrides(self) -> dict[str, dict[str, Any]]:
        """Settings that override the shared ones, by section."""
        return {section: getattr(self, section) for section in _MEMBER_SETTINGS}


class MemberRun(NamedTuple):
    """One run of a member: with one of its seeds.

    Attributes:
        member: the model.
        seed: of weights, order and augmentation.
        folder: name of the run's folder in that of the study: the member's name, "NAME-seed4" for further seeds.
        heading: the member's, with the seed if the member has several.
    """

    member: Member
    seed: int
    folder: str
    heading: str


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Shapes that a study generates when no dataset is given, see `write_shapes`.

    Attributes:
        images: number of images, by split.
        seed: of the images.
        options: fields of `ShapesOptions`.
    """

    __pydantic_config__ = _STRICT

    images: dict[str, int]
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Settings of several models under one budget.

    Attributes:
        members: in the order of the table.
        title: of the page.
        source: of the published metrics.
        seeds: number of seeds to train each member with, unless it says otherwise: `train.run.seed` and those after it.
        train: what all members share: data, epochs, batch, schedule.
        generate: the data to generate when no dataset is given.
    """

    __pydantic_config__ = _STRICT

    members: tuple[Member, ...]
    title: str = "Study"
    source: str = ""
    seeds: StudySeeds = 1
    train: TrainConfig = field(default_factory=TrainConfig)
    generate: Generate | None = None

    def runs(self, member: Member) -> tuple[MemberRun, ...]:
        """Return the runs of a member, one for each of its seeds."""
        first, count = self.train.run.seed, member.seeds or self.seeds
        return tuple(
            MemberRun(
                member,
                seed,
                member.name if seed == first else f"{member.name}-seed{seed}",
                member.heading if count == 1 else f"{member.heading}, seed {seed}",
            )
            for seed in range(first, first + count)
        )

    def all_runs(self) -> tuple[MemberRun, ...]:
        """Return the runs of all members, in the order of the members."""
        return tuple(run for member in self.members for run in self.runs(member))

    def config(self, member: Member, *, seed: int | None = None) -> TrainConfig:
        """Return the settings of a member's run.

        Args:
            member: one of `members`.
            seed: of the run; None: the first.

        Raises:
            DetrkitError: an override that is unknown or of the wrong type.
        """
        plain = yaml.safe_load(self.train.to_yaml())
        for section, values in member.overrides.items():
            plain[section] = plain.get(section, {}) | values
        if seed is not None:
            plain["run"] = plain.get("run", {}) | {"seed": seed}
        return validated(TrainConfig, plain, f"members.{member.name}", hint=_HINT)

    def color(self, member: Member) -> str:
        """Return the member's color in tables and plots, "#rrggbb"."""
        return LINE_COLORS[self.members.index(member)]

    def split(self) -> str:
        """Return the split of the tables: the test split if there is one, which no run has seen."""
        return self.train.data.test_split or str(self.train.data.val_split)

    def to_yaml(self) -> str:
        """Format the settings as the YAML that `load_study` reads."""
        members = [asdict(m) for m in self.members]
        for member in members:
            member["published"] = _without_empty(member["published"] or {})
        plain = {
            "title": self.title,
            "source": self.source,
            "seeds": self.seeds,
            "generate": None if self.generate is None else asdict(self.generate),
            "train": yaml.safe_load(self.train.to_yaml()),
            "members": [_without_empty(m) for m in members],
        }
        return yaml.safe_dump(_without_empty(plain), sort_keys=False)


def studies() -> list[str]:
    """Return the names of the studies that come with detrkit."""
    return shipped(_FOLDER)


def load_study(
    source: str | Path,
    *,
    data: str | None = None,
    seeds: int | None = None,
    shared: Mapping[str, Mapping[str, Any]] | None = None,
) -> StudyConfig:
    """Read a study's YAML, or a study by name.

    Args:
        source: a YAML file, or one of `studies()`.
        data: the dataset's path; overrides the file's.
        seeds: number of seeds to train each member with; overrides the file's, also those of its members.
        shared: fields that override those under `train`, by section. With other epochs the drop of a step schedule
            moves in proportion: from epoch 40 of 50 to 8 of 10. A test_split of "none" means none.

    Raises:
        DetrkitError: no such file, not YAML, a field that is unknown, of the wrong type or not for a member; names
            file and field.
    """
    plain = read_yaml(source, expected="title, train, members", folder=_FOLDER)
    members = plain.get("members")
    if not isinstance(members, list) or not members:
        raise DetrkitError(f"{source}: members: give a list of the models to train ({_HINT})")
    for i, member in enumerate(members):
        _check_shared(member, f"{source}: members.{i}")
    study = validated(StudyConfig, plain, str(source), hint=_HINT)
    changes = {section: dict(values) for section, values in (shared or {}).items()}
    if data is not None:
        changes["data"] = {**changes.get("data", {}), "path": data}
    if changes.get("data", {}).get("test_split") == "none":
        changes["data"]["test_split"] = None
    optim = changes.get("optim", {})
    if "epochs" in optim:
        before = study.train.optim
        optim.setdefault("lr_drop", max(1, round(before.lr_drop * optim["epochs"] / before.epochs)))
    study = dataclasses.replace(study, train=study.train.changed(**changes))
    if seeds is not None:
        members = tuple(dataclasses.replace(m, seeds=None) for m in study.members)
        study = dataclasses.replace(study, seeds=seeds, members=members)
    _check(study, str(source))
    return study


def check_same(before: StudyConfig, now: StudyConfig, file: Path) -> None:
    """Check that the settings of a resumed study have not changed; members and seeds may be added and left out.

    Args:
        before: the study as it was started.
        now: the study to run.
        file: where `before` is from.

    Raises:
        DetrkitError: they differ; names the field.
    """
    where, difference = "train", first_difference(before.train, now.train, epochs=True)
    paths = before.train.data.path, now.train.data.path
    if Path(paths[0]).name != Path(paths[1]).name:  # it may have moved
        difference = f"data.path was {paths[0]!r}, now it is {paths[1]!r}"
    earlier = {m.name: m for m in before.members}
    for member in now.members:
        if difference is None and member.name in earlier:
            where = f"members.{member.name}"
            difference = first_difference(before.config(earlier[member.name]), now.config(member), epochs=True)
    if difference is None and now.generate != before.generate:
        where, difference = "generate", f"was {before.generate}, now it is {now.generate}"
    if difference is not None:
        raise DetrkitError(
            f"{file}: {where}{'.' if where != 'generate' else ' '}{difference}: a study goes on with the settings it "
            "began with; give those, or another --out"
        )


def _check_shared(member: Any, where: str) -> None:
    """Check that a member sets nothing that all members share.

    Raises:
        DetrkitError: it sets data, epochs or the like; names the field.
    """
    if not isinstance(member, dict):
        raise DetrkitError(f"{where}: expected name, model, ...; found {type(member).__name__} ({_HINT})")
    for section in ("data", *_MEMBER_SETTINGS):
        values, allowed = member.get(section, {}), _MEMBER_SETTINGS.get(section, frozenset())
        if allowed is None or not isinstance(values, dict):
            continue
        extra = sorted(set(values) - allowed)
        if extra:
            raise DetrkitError(
                f"{where}.{section}.{extra[0]}: the members share one budget, so this is no member's own: give it "
                "under train (a member's own are model, loss, optim.lr, lr_backbone, lr_sampling_factor, run.init_from)"
            )


def _check(study: StudyConfig, source: str) -> None:
    """Check the members and the shared settings of a study.

    Raises:
        DetrkitError: an impossible setting; names the field and the fix.
    """
    names = [m.name for m in study.members]
    if len(names) > len(LINE_COLORS):
        raise DetrkitError(f"{source}: members: {len(names)} are more than one plot can distinguish: at most 8")
    for i, name in enumerate(names):
        if not _NAME.fullmatch(name):
            raise DetrkitError(f"{source}: members.{i}.name is {name!r}: use letters, digits and . _ + - for a folder")
        if name in names[:i]:
            raise DetrkitError(f"{source}: members.{i}.name is {name!r} again: give each member a name of its own")
        heading = study.members[i].heading
        if heading in [m.heading for m in study.members[:i]]:
            raise DetrkitError(f"{source}: members.{i}.title is {heading!r} again: give each member one of its own")
    _check_runs(study, source)
    train = study.train
    if train.data.val_split in (None, "none"):
        raise DetrkitError(f"{source}: train.data.val_split: a study needs a split to evaluate on")
    for name, count in (("patience", train.run.patience), ("overfit", train.run.overfit)):
        if count:
            raise DetrkitError(f"{source}: train.run.{name} is {count}: leave it out, all members train for as long")
    for member in study.members:
        for name, value in (member.published or PublishedMetrics()).metrics().items():
            if not 0 <= value <= 1:
                raise DetrkitError(f"{source}: members.{member.name}.published.{name} is {value}: give it in [0, 1]")
        try:
            study.config(member)
        except DetrkitError as error:
            raise DetrkitError(f"{source}: {error}") from error


def _check_runs(study: StudyConfig, source: str) -> None:
    """Check seeds and folders of a study's runs.

    Raises:
        DetrkitError: no seeds, a seed is too large, or two runs have one folder; names the fix.
    """
    of_folder: dict[str, MemberRun] = {}
    for member in study.members:
        if not study.runs(member):
            raise DetrkitError(f"{source}: {member.heading}: seeds is {study.seeds}: give 1 or more")
    for run in study.all_runs():
        if run.seed > LARGEST_SEED:
            raise DetrkitError(f"{source}: {run.heading}: seeds end at {LARGEST_SEED}: give a smaller first one")
        if run.folder in of_folder:
            raise DetrkitError(
                f"{source}: members.{run.member.name}: its seed {run.seed} would have the folder {run.folder} of the "
                f"member {of_folder[run.folder].member.name}: give one of them another name"
            )
        of_folder[run.folder] = run


def _without_empty(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping without unset values."""
    return {k: v for k, v in plain.items() if v is not None and v not in ("", {})}
