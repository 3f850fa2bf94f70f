"""`detrkit export`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table

from detrkit.cli.preflight import check_dataset, check_model, check_weights
from detrkit.utils.console import console
from detrkit.utils.errors import DetrkitError
from detrkit.utils.folders import check_replaceable
from detrkit.utils.ranges import BatchSize, Count, Points
from detrkit.utils.web_runtime import HOW, WebRuntime

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


@dataclass(frozen=True)
class Export:
    """Export a model to a file of ONNX, OpenVINO or torch.export that computes the same numbers, or to none.

    The file's outputs are compared with those of the model in PyTorch before it gets its name: for 1, 2 and 8 images,
    square and not, padded and not, an image alone and in a batch; with --data also the AP. A report of it stands beside
    the file. Number, height and width of the images stay free, unless --fixed and --batch fix them. The file says its
    classes and how to prepare images; detrkit predict and detrkit eval take it in place of a checkpoint.

    ONNX needs pip install 'detrkit[export]', OpenVINO 'detrkit[export,openvino]'.

    Such as:

    detrkit export runs/first --out detr.onnx

    detrkit export runs/first --out detr.xml --data my_data

    detrkit export runs/first --out detr.onnx --fixed 640x640 --batch 1 --postprocess

    detrkit export runs/first --out detr-int8.onnx --int8 my_data

    detrkit export runs/first --out detr-bf16.xml --half bf16 --data my_data

    detrkit export runs/first --out detr.onnx --page detr-page --web-runtime package
    """

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A checkpoint, a run's folder, a model name for its published weights, or one on the Hugging Face Hub."""
    out: Path
    """The file: .onnx, .xml (OpenVINO, with a .bin beside it) or .pt2 (torch.export). FILE.report.md and
    FILE.report.json are written, too."""
    format: Literal["onnx", "openvino", "torch"] | None = None
    """The format; by default as the name of the file says."""
    model: str | None = None
    """Model name, such as detr-r50, for files that do not name their model."""
    fixed: Annotated[str | None, tyro.conf.arg(metavar="HxW")] = None
    """The only height and width of the input in pixels, such as 640x640, for runtimes that need one; images are padded
    to it."""
    batch: BatchSize | None = None
    """The only number of images, for runtimes that need one."""
    postprocess: bool = False
    """Let the graph compute detections, too: scores, labels and boxes in pixels of the original images."""
    data: str | None = None
    """A dataset to compare the AP on; classes are matched by name."""
    split: str | None = "val"
    """The split of it."""
    images: Count = 500
    """Images of it at most, the first ones."""
    int8: str | None = None
    """Compute backbone and encoder in INT8: a dataset whose training images set the ranges. AP is measured in float32
    and INT8, on --split of --data or, without it, of this dataset. ONNX and OpenVINO."""
    half: Literal["bf16", "fp16"] | None = None
    """Compute in half precision: OpenVINO in bf16 or fp16 where this CPU does, ONNX in fp16. Needs --data, on which AP
    is measured in float32 and in half precision."""
    calibration_images: Count = 100
    """Images at most that set the ranges of INT8."""
    max_drop: Points | None = None
    """Points of AP that the file may have less, otherwise none is written; by default 0.1, in half precision 0.2,
    in INT8 0.5."""
    page: Path | None = None
    """Also make a folder with a page that runs the .onnx file in a browser, from any static server."""
    web_runtime: str | None = None
    """For --page: a folder with the npm package onnxruntime-web, whose files are copied, or its https address."""
    timing: bool = True
    """Measure time and memory of both at the model's input size."""
    force: bool = False
    """Replace files that are there already."""

    def check(self) -> None:
        """Check what needs no torch.

        Raises:
            DetrkitError: no such weights, model or dataset, or a file name or size that is none.
        """
        check_weights(self.checkpoint)
        check_model(self.model)
        check_dataset(self.data)
        check_dataset(self.int8)
        self._check_page()
        self._fixed()
        wanted = list(SUFFIXES.values()) if self.format is None else [SUFFIXES[self.format]]
        if self.out.suffix not in wanted:
            raise DetrkitError(f"--out {self.out}: the name of the file must end with {' or '.join(wanted)}")

    def run(self) -> int:
        """Export and print the report."""
        from detrkit.exporting.export import export, report_paths

        report = export(
            self.checkpoint,
            self.out,
            format=self.format,
            name=self.model,
            fixed=self._fixed(),
            batch=self.batch,
            postprocess=self.postprocess,
            data=self.data,
            split=self.split,
            images=self.images,
            int8=self.int8,
            half=self.half,
            calibration_images=self.calibration_images,
            max_drop=self.max_drop,
            timing=self.timing,
            force=self.force,
            quiet=False,
        )
        table = Table(show_header=False, box=None)
        for name, value in report.rows:
            table.add_row(name, value)
        console.print(table)
        console.print(f"report: {report_paths(self.out)[0]}", markup=False)
        if self.page is not None and self.web_runtime is not None:
            from detrkit.exporting.browser import write_browser_page

            write_browser_page(self.out, self.page, runtime=self.web_runtime, force=self.force)
            console.print(f"page: python -m http.server --directory {self.page}", markup=False)
        return 0

    def _check_page(self) -> None:
        """Check what the page needs, before anything takes time.

        Raises:
            DetrkitError: no .onnx file, no runtime, or a folder that may not be replaced.
        """
        if self.page is None:
            if self.web_runtime is not None:
                raise DetrkitError("--web-runtime is of the page: name its folder with --page, too")
            return
        if self.out.suffix != ".onnx":
            raise DetrkitError(f"--page {self.page}: a browser runs .onnx files: let --out end with .onnx")
        if self.web_runtime is None:
            raise DetrkitError(f"--page {self.page}: say with --web-runtime where onnxruntime-web is; {HOW}")
        WebRuntime.find(self.web_runtime)
        check_replaceable(self.page, force=self.force)

    def _fixed(self) -> tuple[int, int] | None:
        """Return the fixed (height, width) in pixels.

        Raises:
            DetrkitError: another form than HxW, or a side without pixels.
        """
        if self.fixed is None:
            return None
        match = _SIZE.fullmatch(self.fixed)
        if match is None or 0 in (sides := (int(match[1]), int(match[2]))) or max(sides) > 65_536:
            raise DetrkitError(f"--fixed {self.fixed[:40]}: height and width in pixels are expected, such as 640x640")
        return sides
