"""`detrkit eval`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from detrkit.cli.inference import Inference
from detrkit.cli.preflight import check_dataset, check_weights
from detrkit.utils.console import FIRST_PROCESS, console
from detrkit.utils.devices import DeviceName
from detrkit.utils.errors import DetrkitError
from detrkit.utils.layouts import Layout
from detrkit.utils.names import checked_name, expanded_path
from detrkit.utils.ranges import BatchSize, Count, InputSize, Share, Workers

if TYPE_CHECKING:
    from detrkit.evaluation import Metrics, PanopticMetrics


@dataclass(frozen=True)
class Eval:
    """Evaluate a checkpoint, or results from elsewhere, on a dataset: average precision, with a report.

    The masks of a model that has them are evaluated, too: by their average precision or, on a panoptic dataset, by the
    panoptic quality of things and stuff.

    The batch size does not change the result. Under torchrun the processes share the images.

    Results in COCO's formats are evaluated as they are, with --split, --max-dets and --out: boxes and masks by their
    average precision, panoptic results by their panoptic quality.

    Such as:

    detrkit eval runs/first my_data --split test

    detrkit eval detr-r50 coco --split val2017 --batch-size 8

    detrkit eval panoptic_results.json coco --split val2017
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A checkpoint, a run's folder, a model name for its published weights, or one on the Hugging Face Hub
    (facebook/detr-resnet-50). Or results: COCO's results json, or the
    json of panoptic results, whose PNGs are in the folder of its name."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """The dataset: a folder of COCO, Pascal VOC, YOLO, parquet or CSV, or a COCO json, data.yaml or CSV. Classes are
    matched by name; those of results by their ids."""
    split: str | None = "val"
    """The split to evaluate on."""
    layout: Layout | None = None
    """The kind of files to read; by default it is recognized. From a folder with COCO instances and COCO panoptic files
    a model with masks is evaluated on the panoptic ones."""
    iou_type: Literal["bbox", "segm"] | None = None
    """For results: evaluate boxes (bbox) or masks (segm) alone; by default what the results have. For a model: bbox is
    --no-masks."""
    masks: bool = True
    """Evaluate the masks of a model that has them; --no-masks: its boxes alone."""
    out: Path | None = None
    """Folder of report.md, metrics.json, results.json (COCO format), panoptic.json with its PNGs, and images; by
    default eval-SPLIT in a run's folder, else eval-MODEL-SPLIT here."""
    batch_size: BatchSize = 2
    """Images per process and step."""
    size: InputSize | None = None
    """Short side of the input in pixels; by default the checkpoint's."""
    max_size: InputSize | None = None
    """Longest side in pixels; by default the checkpoint's."""
    max_dets: Count = 100
    """Detections counted per image."""
    threshold: Share | None = None
    """Panoptic: score above which a query becomes a segment; by default 0.85 as published, 0.4 for Deformable DETR,
    whose scores are lower."""
    device: DeviceName | None = None
    """cpu, cuda, cuda:1, mps, ... or the number of a GPU; by default a GPU if there is one."""
    workers: Workers | None = None
    """Processes that load images; by default 0 on a CPU, else CPU cores - 1, at most 4."""
    limit: Count | None = None
    """Evaluate only this many images, the first ones."""
    inference: Inference = field(default_factory=Inference)
    timeout: Count | None = None
    """Seconds that a process waits for another one, one that loads images too, before it gives up; by default 300 for
    all to come under torchrun or Slurm, 1800 later."""
    per_class: Annotated[bool, tyro.conf.arg(aliases=("--verbose",))] = False
    """Print every class; by default at most the five best and the five worst. The report has all."""
    save_thresholds: bool = False
    """Write the suggested score thresholds into the checkpoint, a .safetensors file of detrkit or a run's folder, for
    detrkit predict. Those of a run are of its validation split already."""

    def check(self) -> None:
        """Check what needs no torch.

        Raises:
            DetrkitError: no such model, results or dataset.
        """
        check_weights(self.model)
        check_dataset(self.data)
        self.inference.check()

    def run(self) -> int:
        """Evaluate and print tables and paths."""
        from detrkit.cli.measured import print_measured
        from detrkit.cli.results import evaluate_results, results_file
        from detrkit.evaluation import PanopticMetrics

        folder = None if self.out is None else expanded_path(self.out)
        source = expanded_path(self.model)
        results = results_file(source)
        if folder is None:
            split = re.sub(r"[\[\]:%]+", "-", checked_name(self.split or "all", "--split")).strip("-")  # of a part
            inside = source.is_dir() and results is None
            folder = source / f"eval-{split}" if inside else Path(f"eval-{source.stem}-{split}")
        if self.save_thresholds:
            self._check_thresholds(results)
        if results is not None:
            measured = evaluate_results(
                results,
                Path(self.data),
                split=self.split,
                max_dets=self.max_dets,
                out=folder,
                iou_type=self.iou_type,
            )
        else:
            measured = self._evaluate_model(folder)
        print_measured(measured, per_class=self.per_class)
        if self.save_thresholds:
            _save_thresholds(self.model, measured)
        console.print(f"report:  {folder / 'report.md'}")
        if results is None:
            console.print(f"results: {folder / 'results.json'}")
            if any(isinstance(part, PanopticMetrics) for part in measured):
                console.print(f"         {folder / 'panoptic.json'}")
        return 0

    def _check_thresholds(self, results: Path | None) -> None:
        """Check before hours of work that thresholds can be saved.

        Raises:
            DetrkitError: results instead of a checkpoint, or a checkpoint that does not hold thresholds.
        """
        from detrkit.weights.thresholds import file_of_thresholds

        if results is not None:
            raise DetrkitError(f"--save-thresholds: {results} holds results, no weights; leave it out")
        file_of_thresholds(self.model)

    def _evaluate_model(self, folder: Path) -> list[Metrics | PanopticMetrics]:
        """Run the model over the dataset; write report and results into `folder`."""
        from detrkit.engine import evaluate
        from detrkit.engine.metrics import evaluated_parts

        if self.iou_type == "segm":
            raise DetrkitError("--iou-type segm: of a model, boxes and masks are evaluated together; leave it out")
        metrics = evaluate(
            self.model,
            self.data,
            split=self.split,
            layout=self.layout,
            masks=self.masks and self.iou_type != "bbox",
            batch_size=self.batch_size,
            size=self.size,
            max_size=self.max_size,
            max_dets=self.max_dets,
            threshold=self.threshold,
            device=self.device,
            precision=self.inference.precision,
            workers=self.workers,
            limit=self.limit,
            num_queries=self.inference.num_queries,
            **self.inference.arguments,  # type: ignore[arg-type]
            out=folder,
            timeout=self.timeout,
            quiet=False,
        )
        return evaluated_parts(metrics)


def _save_thresholds(checkpoint: str, measured: Sequence[Metrics | PanopticMetrics]) -> None:
    """Write the suggested thresholds into a checkpoint, in the first process, and say so."""
    from detrkit.weights.thresholds import save_thresholds

    scores = next((one for part in measured if (one := getattr(part, "scores", None)) is not None), None)
    thresholds = None if scores is None else scores.suggest()
    if thresholds is None:
        console.print("warning: no thresholds were saved: none separates right detections from wrong ones")
    elif FIRST_PROCESS:
        console.print(f"saved:   {save_thresholds(checkpoint, thresholds)} with these thresholds")
