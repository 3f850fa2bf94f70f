"""`detrkit compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from detrkit.cli.preflight import check_dataset, check_model, check_weights
from detrkit.utils.console import console, table_console
from detrkit.utils.devices import DeviceName
from detrkit.utils.errors import DetrkitError
from detrkit.utils.existing import check_exists
from detrkit.utils.ranges import AnyInteger, Pixels, Tolerance, WideSeed

if TYPE_CHECKING:
    from detrkit.comparison import ModelRunner, Recording
    from detrkit.comparison.inputs import ModelInput
    from detrkit.weights.checkpoint import ModelSpec


@dataclass(frozen=True)
class Compare:
    """Run two models on the same input and find the stage at which they begin to differ.

    The stages are the backbone's, projections, position encodings, each encoder and decoder layer, logits, boxes,
    masks, and with objects each loss term. The exit status is 0 where all agree within tolerance, 1 where one does not.

    Such as:

    detrkit compare official.pth mine.safetensors

    detrkit compare mine.safetensors exported_folder --framework transformers --input noise

    detrkit compare detr-r50:0 --save stages.npz
    """

    a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """A checkpoint, a run's folder, a model name for its published weights or with a seed (detr-r50:0) for weights from
    it, a name on the Hugging Face Hub, or a file of stages (.npz)."""
    b: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="B")] = None
    """The same; may be left out with --save."""
    framework: Literal["detrkit", "transformers"] = "detrkit"
    """Framework that runs B; transformers runs the folder of its own model."""
    model: str | None = None
    """Model name, such as detr-r50-dc5, for weights that do not name their model."""
    input: str | None = None
    """ones (the default), noise, or an image file. A file of stages holds its own."""
    size: tuple[Pixels, Pixels] | None = None
    """Height and width of ones and noise in pixels; by default 800 1199, of models of squares (RT-DETR) their input."""
    seed: WideSeed = 0
    """Seed of the noise."""
    data: str | None = None
    """Take the input, and the objects for the losses, from this dataset."""
    split: str | None = "val"
    """The dataset's split."""
    image_id: AnyInteger | None = None
    """The dataset's id of the image; by default the first with objects."""
    tolerance: Tolerance | None = None
    """The largest difference of any stage whose root mean square is at most 1 (of others in proportion); by default
    each stage has its own."""
    save: Path | None = None
    """Write the stages of A to this file (.npz); it replaces an earlier file of stages, no other file."""
    device: DeviceName = "cpu"
    """Device of both models."""

    def check(self) -> None:
        """Check what needs no torch.

        Raises:
            DetrkitError: no such weights, stages, model or dataset.
        """
        for side in (self.a, self.b):
            if side is not None and str(side).endswith(".npz"):
                check_exists(side, "stage file")
            else:
                check_weights(side, seeded=True)
        check_model(self.model)
        if self.input is None:
            check_dataset(self.data)
        elif self.input not in ("ones", "noise"):
            check_dataset(self.input)

    def run(self) -> int:
        """Compare and print the table."""
        from detrkit.comparison import Recording, compare, open_runner, record, save_recording
        from detrkit.comparison.recording import load_recording
        from detrkit.detector import as_device

        if self.b is None and self.save is None:
            raise DetrkitError("nothing to compare with: give B, or --save FILE.npz to keep the stages of A")
        if self.save is not None and self.save.suffix != ".npz":
            raise DetrkitError(f"--save {self.save}: the name must end with .npz")
        if self.save is not None and self.save.exists():
            try:
                load_recording(self.save)
            except DetrkitError as error:
                raise DetrkitError(
                    f"--save {self.save} is there and is no file of stages: choose another name, or remove it"
                ) from error
        device = as_device(self.device)
        a = open_runner(self.a, model=self.model, device=device)
        b = None if self.b is None else open_runner(self.b, framework=self.framework, model=self.model, device=device)
        model_input = self._input(a, b)
        candidate = a if isinstance(a, Recording) else record(a, model_input.pixels, model_input.target)
        if self.save is not None:
            console.print(f"stages: {save_recording(self.save, candidate)}")
        if b is None:
            return 0
        reference = b if isinstance(b, Recording) else record(b, model_input.pixels, model_input.target)
        comparison = compare(candidate, reference, tolerance=self.tolerance)
        table_console().print(comparison.table())
        for line in comparison.summary():
            console.print(line)
        return 0 if comparison.agrees else 1

    def _input(self, a: ModelRunner | Recording, b: ModelRunner | Recording | None) -> ModelInput:
        """Return the input of both models.

        Raises:
            DetrkitError: options that contradict each other, or files that cannot be read.
        """
        from detrkit.comparison import Recording
        from detrkit.comparison.inputs import ModelInput, dataset_input, default_size, made_input, picture_input

        for recording in (a, b):
            if isinstance(recording, Recording) and recording.pixels is not None:
                if self.input is not None or self.data is not None:
                    raise DetrkitError(f"{recording.name} holds its input: leave out --input and --data")
                return ModelInput(recording.pixels, recording.target)
        if self.data is not None:
            if self.input is not None:
                raise DetrkitError("--input and --data: give one of them")
            masks = any(not isinstance(one, Recording) and one.has_masks for one in (a, b) if one is not None)
            return dataset_input(self.data, _spec(a, b), split=self.split, image_id=self.image_id, masks=masks)
        if self.input in (None, "ones", "noise"):
            return made_input(self.input or "ones", self.size or default_size(_spec(a, b)), seed=self.seed)
        assert self.input is not None
        return picture_input(self.input, _spec(a, b))


def _spec(a: ModelRunner | Recording, b: ModelRunner | Recording | None) -> ModelSpec:
    """Return the spec that prepares an image: that of the first detrkit model, else the published one."""
    from detrkit.comparison import DetrkitRunner
    from detrkit.weights.checkpoint import ModelSpec

    return next((runner.spec for runner in (a, b) if isinstance(runner, DetrkitRunner)), ModelSpec("detr-r50"))
