"""`download_cppe5`: CPPE-5, medical protective equipment in 1000 + 29 images (Dagli and Shaikh, arXiv:2112.09569)."""

from __future__ import annotations

import shutil
import tarfile
import zlib
from pathlib import Path

from detrkit.utils.download import DownloadError, download, home, md5
from detrkit.utils.errors import DetrkitError
from detrkit.utils.folders import check_replaceable, new_directory
from detrkit.utils.names import full_path

MD5 = "f4e043f983cff94ef82ef7d57a879212"
# The two places that the dataset's README names (github.com/Rishit-dagli/CPPE-Dataset). The bucket in older loaders
# denies access: whoever downloads has to pay.
URLS = (
    "https://github.com/Rishit-dagli/CPPE-Dataset/releases/download/v0.1.0/dataset.tar.gz",
    "https://drive.usercontent.google.com/download?id=1MGnaAfbckUmigGUvihz7uiHGC6rBIbvr&export=download&confirm=t",
)
_ARCHIVE = "cppe5-dataset.tar.gz"  # what the cache calls it
# Four times what the published archive holds (1031 files in 240 MB), so that no archive fills the disk.
_MAX_FILES, _MAX_BYTES = 4_000, 1 << 30


def download_cppe5(to: str | Path, *, archive: str | Path | None = None, force: bool = False) -> Path:
    """Make the folder `to` with annotations/train.json, annotations/test.json and images/*.png.

    The archive is kept in `home() / "datasets"`, so that only the first call needs the network. The folder appears only
    when it is complete.

    Args:
        to: the folder to make.
        archive: dataset.tar.gz, if it has been fetched by other means.
        force: replace a dataset that detrkit wrote at `to` and nobody has changed.

    Returns:
        The folder.

    Raises:
        DetrkitError: `to` exists, no URL serves the archive, or it is not the published one.
    """
    to = full_path(to)
    check_replaceable(to, force=force)
    if archive is None:
        archive = _fetch()
    else:
        archive = full_path(archive)
        _verify(archive)
    with new_directory(to, force=force) as root:
        _unpack(archive, root)
    return to


def _fetch() -> Path:
    """Download the archive from the first URL that serves it.

    Raises:
        DetrkitError: none does, or the connection was cut for good; then the next call resumes.
    """
    folder = home() / "datasets"
    part = folder / f"{_ARCHIVE}.part"
    reasons = []
    for url in URLS:
        try:
            return download(url, md5_digest=MD5, folder=folder, name=_ARCHIVE)
        except DownloadError as error:
            if part.exists() and part.stat().st_size:
                raise  # another URL might not resume it, but begin anew
            reasons.append(f"{url} ({error.reason})")
    raise DetrkitError(
        f"cannot download CPPE-5 from {' or '.join(reasons)}. Fetch dataset.tar.gz elsewhere and name it: "
        "detrkit data download cppe5 --archive dataset.tar.gz"
    )


def _verify(archive: Path) -> None:
    """Check that `archive` is the published one.

    Raises:
        DetrkitError: it is not, or cannot be read.
    """
    if archive.exists() and not archive.is_file():
        raise DetrkitError(f"{archive}: not a regular file")
    try:
        digest = md5(archive)
    except OSError as error:
        raise DetrkitError(f"{archive}: cannot be read ({error.strerror})") from error
    if digest != MD5:
        raise DetrkitError(f"{archive} is not the published dataset.tar.gz: its MD5 is {digest}, not {MD5}")


def _unpack(archive: Path, root: Path) -> None:
    """Unpack into `root`, without a folder around annotations/ and images/ if the archive has one.

    Raises:
        DetrkitError: a damaged archive, one that would write elsewhere or holds links, one that is too large, or one of
            another content.
    """
    files = size = 0

    def plain(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
        """Accept a member that is a file or a folder below `path`, within the limits."""
        nonlocal files, size
        files, size = files + 1, size + member.size
        if files > _MAX_FILES or size > _MAX_BYTES:
            limit = f"{_MAX_FILES} files or {_MAX_BYTES >> 20} MiB"
            raise DetrkitError(f"{archive}: not unpacked, it is not safe (it holds more than {limit})")
        if not (member.isreg() or member.isdir()):
            raise DetrkitError(f"{archive}: not unpacked, it is not safe ({member.name!r} is a link or a device)")
        return tarfile.data_filter(member, path)

    try:
        with tarfile.open(archive) as tar:
            tar.extractall(root, filter=plain)
    except tarfile.FilterError as error:
        raise DetrkitError(f"{archive}: not unpacked, it is not safe ({error})") from error
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DetrkitError(f"{archive}: damaged archive ({error})") from error
    except OSError as error:
        raise DetrkitError(f"{archive}: cannot be unpacked to {root.parent} ({error.strerror or error})") from error
    top = next((file.parent.parent for file in sorted(root.glob("**/annotations/train.json"))), None)
    if top is None:
        raise DetrkitError(f"{archive}: no annotations/train.json in it")
    if top != root:
        for entry in top.iterdir():
            entry.rename(root / entry.name)
        shutil.rmtree(root / top.relative_to(root).parts[0])
