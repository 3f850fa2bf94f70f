"""`detrkit eval` of results from elsewhere: COCO's results file, or panoptic results with their PNGs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrkit.utils.console import console
from detrkit.utils.errors import DetrkitError
from detrkit.utils.names import not_hidden

if TYPE_CHECKING:
    from PIL import Image

    from detrkit.data import Dataset
    from detrkit.evaluation import DetectionGroundTruth, Metrics, PanopticMetrics
    from detrkit.evaluation.result_table import IouType

_EXAMPLES = 8  # images on the sheet of a report


def results_file(path: Path) -> Path | None:
    """Return the json of the results that `path` stands for; None if it stands for no results.

    It is the json itself, or a folder of panoptic PNGs with the json of its name beside it or one json in it.
    """
    if path.is_file():
        return path if path.suffix == ".json" else None
    if not path.is_dir() or next(not_hidden(path, "*.png"), None) is None or next(path.glob("*.safetensors"), None):
        return None
    beside = path.parent / f"{path.name}.json"
    inside = list(not_hidden(path, "*.json"))
    if beside.is_file():
        return beside
    return inside[0] if len(inside) == 1 else None


def evaluate_results(
    results: Path, data: Path, *, split: str | None, max_dets: int, out: Path, iou_type: IouType | None = None
) -> list[Metrics | PanopticMetrics]:
    """Evaluate results, write a report and return the metrics: panoptic ones, or those of boxes and of masks.

    Args:
        results: COCO's list of detections with boxes, with masks (RLE or polygons) or with both, or the json of
            panoptic results.
        data: a dataset, or the json of its annotations, which needs no images.
        split: of the dataset.
        max_dets: detections counted per image and class.
        out: folder of the report.
        iou_type: boxes ("bbox") or masks ("segm") alone; by default those of both that the results and the ground truth
            have.

    Raises:
        DetrkitError: a malformed file, or one that does not belong to the dataset.
    """
    from detrkit.evaluation import report_folder, write_report
    from detrkit.evaluation.ground_truth import read_json

    content = read_json(results)
    if not isinstance(content, list) and not _panoptic_entries(content):
        raise DetrkitError(
            f"{results}: no results: expected COCO's list of detections, or panoptic annotations with segments_info"
        )
    ground_truth = data.name if data.is_file() else f"{data.name} {split or ''}".strip()
    settings: dict[str, Any] = {"results": results.name, "ground truth": ground_truth}
    if isinstance(content, list):
        settings["max detections"] = max_dets
        report = _detections(results, content, data, split, max_dets, iou_type)
    else:
        report = _panoptic(results, data, split)
    with report_folder(out):
        write_report(out, title=f"{results.stem} on {ground_truth}", settings=settings, **report)
    return [report[kind] for kind in ("panoptic", "metrics", "masks") if report.get(kind) is not None]


def _panoptic_entries(content: Any) -> bool:
    """Return whether a json holds panoptic results: `annotations`, each with `segments_info`."""
    entries = content.get("annotations") if isinstance(content, dict) else None
    return isinstance(entries, list) and all(isinstance(e, dict) and "segments_info" in e for e in entries[:1])


def _detections(
    results: Path, entries: list[Any], data: Path, split: str | None, max_dets: int, iou_type: IouType | None
) -> dict[str, Any]:
    """Compute average precision of boxes and masks, if there are any, as arguments of `write_report`."""
    from detrkit.evaluation import confusion_matrix, evaluate_detections
    from detrkit.evaluation.diagnosis import reason_for_zero
    from detrkit.evaluation.result_table import ResultTable, has_masks
    from detrkit.evaluation.unknown_classes import UnknownClasses

    kinds: list[IouType] = [iou_type] if iou_type else ["bbox", "segm"]
    if iou_type is None and not has_masks(entries):
        kinds = ["bbox"]
    elif iou_type is None and not any(isinstance(e, dict) and e.get("bbox") for e in entries):
        kinds = ["segm"]
    ground_truth = _ground_truth(data, split, masks="segm" in kinds)
    if kinds == ["bbox", "segm"] and ground_truth.segmentations is None and len(ground_truth):
        console.print(f"{results}: the masks are not evaluated: {ground_truth.source} has none for each object")
        kinds = ["bbox"]
    metrics, *masks = [
        evaluate_detections(ground_truth, results, max_dets=max_dets, iou_type=kind, scores=True) for kind in kinds
    ]
    missing = UnknownClasses.of(ground_truth, {e["category_id"] for e in entries}, ())
    notes = [missing.without_results()] if missing and entries else []
    if metrics.iou_type == "bbox":
        reason = reason_for_zero(ground_truth, ResultTable.load(entries, ground_truth), metrics.AP)
        notes += [reason] if reason else []
    for note in notes:
        console.print(f"warning: {note}")
    return {
        "metrics": metrics,
        "masks": masks[0] if masks else None,
        "notes": notes,
        "confusion": confusion_matrix(ground_truth, results) if "bbox" in kinds else None,
    }


def _ground_truth(data: Path, split: str | None, *, masks: bool) -> DetectionGroundTruth:
    """Load the ground truth of a dataset, or of the json of its annotations; with masks if it has them.

    Raises:
        DetrkitError: a malformed file or an unknown split.
    """
    from detrkit.data import open_dataset
    from detrkit.evaluation import DetectionGroundTruth

    if data.is_file():
        return DetectionGroundTruth.load(data)
    try:
        dataset = open_dataset(data, split=split, masks=masks)
    except DetrkitError:
        if not masks:
            raise
        dataset = open_dataset(data, split=split)  # whose annotations have boxes alone, or whose layout has no masks
    for note in dataset.evaluation_notes:
        console.print(note, markup=False)
    return DetectionGroundTruth.load(dataset.things().ground_truth())


def _panoptic(results: Path, data: Path, split: str | None) -> dict[str, Any]:
    """Compute panoptic quality, and examples if there are images, as arguments of `write_report`."""
    from detrkit.data import open_dataset
    from detrkit.evaluation import PanopticGroundTruth, evaluate_panoptic

    dataset = None if data.is_file() else open_dataset(data, split=split, layout="coco-panoptic")
    ground_truth = (
        PanopticGroundTruth.load(data)
        if dataset is None
        else PanopticGroundTruth.load(*dataset.panoptic_ground_truth())
    )
    metrics = evaluate_panoptic(ground_truth, None, results)
    sheet = None if dataset is None else _panoptic_examples(results, dataset)
    return {"metrics": None, "panoptic": metrics, "sheet": sheet}


def _panoptic_examples(results: Path, dataset: Dataset) -> Image.Image:
    """Draw images spread over the dataset, with ground truth and prediction."""
    from PIL import Image

    from detrkit.evaluation import PanopticGroundTruth, read_panoptic
    from detrkit.structures.panoptic import PanopticResult
    from detrkit.visualize import SheetRow, comparison_sheet

    content, id_map = dataset.panoptic_ground_truth()
    ground_truth = PanopticGroundTruth.load(content, id_map)
    count = min(_EXAMPLES, len(dataset))
    indices = [round(i * (len(dataset) - 1) / max(1, count - 1)) for i in range(count)]
    records = [dataset.records[i] for i in indices]
    predictions = read_panoptic(results, ground_truth.classes, [record.image_id for record in records])
    rows = []
    for index, record, prediction in zip(indices, records, predictions, strict=True):
        image = Image.fromarray(dataset.image(index).permute(1, 2, 0).numpy())
        info = content["annotations"][index]["segments_info"]
        annotated = PanopticResult.from_coco(id_map(record.image_id), info, ground_truth.classes)
        rows.append(SheetRow(image, annotated, prediction, record.file.name))
    return comparison_sheet(rows)
