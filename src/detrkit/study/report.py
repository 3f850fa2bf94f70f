"""The page of a study with its plots and examples, and the same numbers as CSV and JSON."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image, ImageColor

from detrkit.data import Dataset
from detrkit.engine.examples import evenly_spaced
from detrkit.engine.splits import Splits
from detrkit.evaluation.metrics import markdown_table
from detrkit.structures.detections import Detections
from detrkit.study.config import StudyConfig
from detrkit.study.results import LAST, MemberResult
from detrkit.study.seeds import MemberResults, MemberRuns, by_member, failures, run_heading
from detrkit.study.tables import classes_of_other_dataset, study_tables, table_csv
from detrkit.utils.atomic import write_atomic
from detrkit.utils.image_files import image_bytes
from detrkit.utils.visible import markdown
from detrkit.visualize import SheetRow, as_detections, models_sheet
from detrkit.visualize.curves import png_bytes, study_curves

EXAMPLE_IMAGES = 6  # on the sheet
STUDY_FILES = ("study.md", "table.csv", "results.json", "curves.png", "examples.png")  # in its folder


def write_study(folder: Path, study: StudyConfig, results: MemberResults, splits: Splits) -> Path:
    """Write study.md, table.csv, results.json, curves.png and examples.png over those of an earlier call.

    The page is written last, so that everything it links exists.

    Args:
        folder: of the study.
        study: its settings.
        results: every run with its result so far.
        splits: its data.

    Returns:
        The path of study.md.
    """
    write_atomic(folder / "table.csv", table_csv(results))
    members = by_member(results)
    write_atomic(folder / "results.json", json.dumps(_record(study, results), indent=2) + "\n")
    colors = {m.member.heading: study.color(m.member) for m in members}
    overall, *others = study_tables(study, results)
    parts = [f"# {markdown(study.title)}", _summary(study, splits), overall.markdown(), _column_notes(study)]

    curves = {m.member.heading: m.curves for m in members if m.curves}
    if curves:
        write_atomic(folder / "curves.png", png_bytes(study_curves(curves, colors)))
        parts += ["## Convergence", "![mAP, mAP50 and loss over the epochs](curves.png)"]
        parts.append(f"{_BAND} {_LOSSES}" if _several(members) else _LOSSES)
    for table in others:
        parts += [f"## {markdown(table.title)}", table.markdown()]
    parts += _sources(study, results)

    done = [m for m in members if m.done]
    if done:
        dataset = splits.test or splits.val
        assert dataset is not None  # a study without one is refused when it is read
        shown = [(m.member, m.done[0]) for m in done]
        detections = {m.heading: _detections(folder / r.folder, r, dataset) for m, r in shown}
        write_atomic(folder / "examples.png", image_bytes(_sheet(dataset, detections, colors).convert("RGB")))
        above = ", ".join(f"{markdown(run_heading(study, m, r))} {r.shown_above:g}" for m, r in shown)
        links = ", ".join(
            f"[{markdown(run_heading(study, m.member, r))}]({r.folder}/{LAST}/report.md)" for m in done for r in m.done
        )
        parts += ["## Examples", "![Image, ground truth and every model](examples.png)"]
        parts += [f"Drawn are scores above: {above}. Small images are enlarged. More of each model: {links}."]
    failed = [list(pair) for pair in failures(study, results)]
    if failed:
        parts += ["## Failures", markdown_table(["model", "reason"], failed)]
    parts += ["## Settings", *_settings(study), *_machines(study, results), _FILES]
    return write_atomic(folder / "study.md", "\n\n".join(parts) + "\n")


_BAND = "A line is the mean over the seeds of a model, its band reaches from the lowest to the highest."
_LOSSES = "The losses of models of different kinds are sums of different terms: compare their shapes, not their values."

_FILES = (
    "[study.yaml](study.yaml) repeats the study; [table.csv](table.csv) and [results.json](results.json) hold its "
    "numbers."
)


def _record(study: StudyConfig, results: MemberResults) -> dict[str, Any]:
    """Return what results.json holds: every run, and mean and standard deviation over the seeds of every member."""
    return {
        "title": study.title,
        "split": study.split(),
        "members": [r.to_json() for _, r in results],
        "over_seeds": {
            m.member.name: {name: spread._asdict() for name, spread in m.spreads().items()} for m in by_member(results)
        },
    }


def _several(members: Sequence[MemberRuns]) -> bool:
    """Return whether a member has several seeds."""
    return any(len(m.runs) > 1 for m in members)


def _summary(study: StudyConfig, splits: Splits) -> str:
    """Format the page's first sentence."""
    optim, dataset = study.train.optim, splits.test or splits.val
    count = len(dataset) if dataset is not None else 0
    return (
        f"{len(study.members)} models under one budget: {optim.epochs} epochs of the same {len(splits.train):,} images "
        f"({markdown(splits.train.name)}, split {markdown(str(splits.train.split))}), evaluated on the {count:,} of "
        f"split {markdown(study.split())}."
    )


def _column_notes(study: StudyConfig) -> str:
    """Explain the columns of the first table."""
    first, count = study.train.run.seed, max(len(study.runs(m)) for m in study.members)
    chance = f"One run each with seed {first}: small differences may be chance."
    if count > 1:
        chance = (
            f"Seeds from {first} on, as many as the column says: where there are several, metrics are mean ± sample "
            "standard deviation over them, epoch is the median and memory the largest. table.csv has every run."
        )
    return (
        "Metrics are COCO's in percent, of the weights after the last epoch: the same budget for all, and no epoch "
        "chosen by its result (the best one is in table.csv). small, medium, large: objects below 32 x 32, up to "
        "96 x 96, above 96 x 96 pixels. parameters: those that train. epoch: the median time of an epoch's steps with "
        "their data, without evaluation. memory: the peak in training, on a GPU what torch allocated there, on a CPU "
        f"the resident size of the process. {chance}"
    )


def _sources(study: StudyConfig, results: MemberResults) -> list[str]:
    """Name the source of the published metrics, or the reason why they are left out."""
    parts = []
    if study.source and any(m.published is not None for m, _ in results):
        parts.append(f"Published metrics: {study.source}")
    other_classes = sorted({name for m, r in results for name in classes_of_other_dataset(m, r)})
    if other_classes:
        lacking = ", ".join(map(markdown, other_classes))
        parts.append(
            f"The published metrics are of another dataset, with classes that this one lacks ({lacking}): they are "
            "left out."
        )
    return parts


def _settings(study: StudyConfig) -> list[str]:
    """Format the settings that the members share, and the overrides of each member."""
    shared = yaml.safe_load(study.train.to_yaml())
    shared["data"].pop("path", None)  # paths of this machine say nothing elsewhere
    shared["run"].pop("out", None)
    rows = [
        [
            m.heading,
            ", ".join(f"{section}.{k} {v}" for section, values in m.overrides.items() for k, v in values.items()),
        ]
        for m in study.members
    ]
    text = yaml.safe_dump(shared, sort_keys=False)
    return [markdown_table(["model", "overrides"], rows), f"All share:\n\n```yaml\n{text}```"]


def _machines(study: StudyConfig, results: MemberResults) -> list[str]:
    """Format the machine of the study, by run only if there are several machines."""
    machines = {run_heading(study, m, r): r.machine for m, r in results if r.machine}
    if len(set(machines.values())) > 1:
        return [markdown_table(["model", "machine"], [list(pair) for pair in machines.items()])]
    return [f"Machine: {markdown(text)}." for text in set(machines.values())]


def _detections(run: Path, result: MemberResult, dataset: Dataset) -> list[Detections]:
    """Read a member's detections in the images of the sheet from its evaluation, so that no model is run again."""
    entries = json.loads((run / LAST / "results.json").read_text(encoding="utf-8"))
    by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        if entry["score"] > result.shown_above:
            by_image[entry["image_id"]].append(entry)
    label_of = dataset.classes.label_of
    detections = []
    for index in evenly_spaced(len(dataset), EXAMPLE_IMAGES):
        rows = by_image[dataset.records[index].image_id]
        xywh = torch.tensor([r["bbox"] for r in rows]).reshape(-1, 4)
        boxes = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
        labels = torch.tensor([label_of[r["category_id"]] for r in rows], dtype=torch.int64)
        detections.append(Detections(boxes, torch.tensor([r["score"] for r in rows]), labels, classes=dataset.classes))
    return detections


def _sheet(dataset: Dataset, detections: dict[str, list[Detections]], colors: dict[str, str]) -> Image.Image:
    """Draw image, ground truth and the detections of every model side by side."""
    rows = []
    for index in evenly_spaced(len(dataset), EXAMPLE_IMAGES):
        sample = dataset[index]
        image = Image.fromarray(sample.image.as_subclass(torch.Tensor).permute(1, 2, 0).numpy())
        name = sample.file.name if sample.file is not None else str(sample.image_id)
        rows.append(SheetRow(image, as_detections(sample.boxes, sample.labels, dataset.classes), caption=name))
    return models_sheet(rows, detections, [ImageColor.getrgb(colors[heading])[:3] for heading in detections])
