"""`detrkit data download`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table
from tyro.conf import Positional

from detrkit.utils.console import table_console
from detrkit.utils.errors import SettingError
from detrkit.utils.names import full_path


@dataclass(frozen=True)
class DataDownload:
    """Download a public dataset, verified and ready to train on.

    coco: COCO 2017 from cocodataset.org: 118,287 images to train on, 5000 for validation, 80 classes, boxes and masks.
    The archives are 20.4 GB, on the disk 21.3 GB remain; --only val: 1.07 GB, of which 0.87 GB remain. coco-panoptic:
    the same and 0.86 GB of panoptic annotations, in the same folder; images that are there are not downloaded again.

    cppe5: CPPE-5, medical protective equipment: 1000 images to train on, 29 to test on, 5 classes (240 MB).

    An interrupted download goes on when the command is run again. Archives are compared with their SHA-256 (cppe5:
    MD5). COCO's are downloaded into the folder and removed once they are unpacked; that of cppe5 is kept in
    DETRKIT_HOME (by default ~/.cache/detrkit).

    Such as:

    detrkit data download coco --only val

    detrkit data download coco-panoptic --to /data/coco
    """

    name: Positional[Literal["coco", "coco-panoptic", "cppe5"]]
    """The dataset."""
    to: Path | None = None
    """The folder to make. By default coco or cppe5, here."""
    only: Literal["train", "val"] | None = None
    """Of COCO: this split alone. Its annotations are in one archive with the other split's."""
    archive: Annotated[Path | None, tyro.conf.arg(aliases=("--archives",))] = None
    """Unpack this file (dataset.tar.gz of cppe5), or the official zip files in this folder (of COCO), instead of
    downloading: for machines without a network."""
    keep_archives: bool = False
    """Of COCO: keep the downloaded archives, in the folder archives/ of the dataset's."""
    mirror: Annotated[str | None, tyro.conf.arg(metavar="URL")] = None
    """Of COCO: download from this address, which has the paths of http://images.cocodataset.org. By default that of the
    variable DETRKIT_COCO_URL, or the official one."""
    force: bool = False
    """Of cppe5: replace a dataset that detrkit wrote there and nobody has changed since."""

    def run(self) -> int:
        """Download the dataset and print what it holds and what to do with it."""
        return self._cppe5() if self.name == "cppe5" else self._coco()

    def _coco(self) -> int:
        """Download COCO.

        Raises:
            SettingError: an option that it does not have.
        """
        from detrkit.data.tools.coco2017 import download_coco

        if self.force:
            raise SettingError("--force is for cppe5: what COCO's folder has is kept; remove a part to get it anew")
        panoptic = self.name == "coco-panoptic"
        root = download_coco(
            self.to or Path("coco"),
            panoptic=panoptic,
            splits=("train", "val") if self.only is None else (self.only,),
            archives=self.archive,
            keep_archives=self.keep_archives,
            url=self.mirror,
        )
        console = table_console()
        console.print(str(root), soft_wrap=True)
        folder, model = str(self.to or "coco"), "detr-r50-panoptic" if panoptic else "detr-r50"
        recipe = "panoptic-coco" if panoptic else "detr-150"
        if self.only != "train":
            words = shlex.join(["detrkit", "eval", model, folder, "--split", "val2017"])
            console.print(f"evaluate on it: {words}", soft_wrap=True)
        if self.only is None:
            console.print(
                f"train on it: {shlex.join(['detrkit', 'train', folder, '--recipe', recipe])}", soft_wrap=True
            )
        return 0

    def _cppe5(self) -> int:
        """Download CPPE-5.

        Raises:
            SettingError: an option that it does not have.
        """
        from detrkit.data import open_dataset
        from detrkit.data.tools.cppe5 import download_cppe5

        for option, value in (
            ("--only", self.only),
            ("--keep-archives", self.keep_archives),
            ("--mirror", self.mirror),
        ):
            if value:
                raise SettingError(f"{option} is for coco and coco-panoptic: leave it out")
        root = download_cppe5(self.to or Path(self.name), archive=self.archive, force=self.force)
        table = Table(title="CPPE-5", title_justify="left")
        table.add_column("split")
        for name in ("images", "unusable (not of the annotated size)", "objects in the others"):
            table.add_column(name, justify="right")
        for split in ("train", "test"):
            dataset = open_dataset(root, split=split, unusable="skip")
            objects = sum(int((~r.crowd).sum()) for r in dataset.records)
            table.add_row(split, *map(str, (len(dataset) + dataset.skipped, dataset.skipped, objects)))
        console = table_console()
        console.print(table)
        console.print(str(full_path(root)), soft_wrap=True)
        words = shlex.join(["detrkit", "train", str(self.to or self.name), "--recipe", self.name])
        console.print(f"train on it: {words}", soft_wrap=True)
        return 0
