"""Checkpoints by their name on the Hugging Face Hub: "facebook/detr-resnet-50", "owner/name@revision".

huggingface_hub downloads and keeps them: its cache, HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT, tokens and file locks apply
as in every other program. Only the configuration, the preprocessor's configuration and the weights are fetched; the
configuration comes first, so that a model of another architecture costs no download.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from detrkit.utils.console import Terminal
from detrkit.utils.documents import shown
from detrkit.utils.download import DownloadError, sha256
from detrkit.utils.errors import DetrkitError
from detrkit.utils.similar import nearest_names
from detrkit.utils.visible import first_line

log = logging.getLogger(__name__)

SCHEME = "hf://"
# repositories of the published models, for the messages; any other of the same architectures is read as well
KNOWN = (
    "facebook/detr-resnet-50",
    "facebook/detr-resnet-50-dc5",
    "facebook/detr-resnet-101",
    "facebook/detr-resnet-101-dc5",
    "facebook/detr-resnet-50-panoptic",
    "facebook/detr-resnet-50-dc5-panoptic",
    "facebook/detr-resnet-101-panoptic",
    "SenseTime/deformable-detr",
    "SenseTime/deformable-detr-single-scale",
    "SenseTime/deformable-detr-single-scale-dc5",
    "SenseTime/deformable-detr-with-box-refine",
    "SenseTime/deformable-detr-with-box-refine-two-stage",
    *(f"PekingU/rtdetr_{size}vd" for size in ("r18", "r34", "r50", "r101")),
    *(f"PekingU/rtdetr_v2_{size}vd" for size in ("r18", "r34", "r50", "r101")),
)
_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # a .bin file is read without running code from it
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
# pathlib turns hf:// into hf:/
_NAME = re.compile(rf"(?P<scheme>hf:/{{1,2}})?(?P<repository>{_PART}/{_PART})(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_FILES = (".pth", ".pt", ".bin", ".safetensors", ".pdparams", ".json", ".npz", ".yaml", ".csv")
# folders that many projects have: a path in one that is not there is a mistake, not a question for the Hub
_FOLDERS = ("runs", "checkpoints", "weights", "models", "output", "outputs", "data")
_said: set[str] = set()  # local names of which it was said that they are taken before the Hub's
_SHA256 = re.compile(r"[0-9a-f]{64}")  # what the Hub calls a file of weights, and its cache too


class HubName(NamedTuple):
    """A repository on the Hub.

    Attributes:
        repository: "owner/name".
        revision: branch, tag or commit; None for the main branch.
    """

    repository: str
    revision: str | None

    def __str__(self) -> str:
        """Return the name as it is typed."""
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"


def hub_name(text: str | Path) -> HubName | None:
    """Return the repository that a checkpoint's name stands for, or None for a path.

    A file or folder of that name is taken before the Hub, and so is everything in a folder that is there: a mistyped
    `runs/frist` is no question for the Hub, also before there are any runs. "hf://owner/name" always means the Hub.
    """
    match = _NAME.fullmatch(str(text))
    if match is None:
        return None
    name = HubName(match["repository"], match["revision"])
    if match["scheme"]:
        return name
    path = Path(text)
    try:
        here = os.path.lexists(path) or path.parent.is_dir()
    except OSError:
        return None
    if here and name.repository in KNOWN and str(text) not in _said:
        _said.add(str(text))
        log.warning("%s: taken is what is here under this name; %s%s is the model on the Hub", path, SCHEME, name)
    local = here or path.parts[0].lower() in _FOLDERS or path.suffix.lower() in _FILES
    return None if local else name


def download_checkpoint(name: HubName) -> Path:
    """Return the folder of a repository's checkpoint in the Hub's cache, downloaded at the first use.

    Weights are compared with the SHA-256 by which the Hub names them; all files are of one commit.

    Raises:
        DownloadError: no such repository, revision or file; one that needs a login; the Hub cannot be reached and the
            cache does not have it; a download that is cut or is not the file that the Hub names.
        DetrkitError: a model that detrkit does not have.
    """
    from huggingface_hub.errors import RemoteEntryNotFoundError

    with _one_line(name):
        try:
            config = _fetch(name, _CONFIG)
        except RemoteEntryNotFoundError as error:
            raise DownloadError(
                f"{name}: this repository has no {_CONFIG}: not a model of transformers", error
            ) from error
        _check_kind(name, config)
        commit = HubName(name.repository, config.parent.name)  # the branch may move between two files
        if not _known_missing(commit, _PREPROCESSOR):
            try:
                _fetch(commit, _PREPROCESSOR)
            except RemoteEntryNotFoundError:
                log.info("%s has no %s: the published preparation is taken", name, _PREPROCESSOR)
        for file in _WEIGHTS:
            if _known_missing(commit, file):
                continue
            try:
                weights = _fetch(commit, file)
            except RemoteEntryNotFoundError:
                continue
            _verify(name, weights)
            return weights.parent
    raise DownloadError(f"{name}: this repository has no weights: none of {', '.join(_WEIGHTS)}", "no weights")


def _fetch(name: HubName, file: str) -> Path:
    """Return a file of a repository from the cache or the network."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    revision = name.revision
    if not _cached(name, file):
        # fails at once where there is no network; hf_hub_download would try for 23 s
        address = hf_hub_url(name.repository, file, revision=revision)
        size = get_hf_file_metadata(address).size
        if file in _WEIGHTS:
            told = "" if size is None else f" ({size / 1e6:.1f} MB)"
            Terminal(stderr=True).print(f"downloading {name.repository}: {file}{told}", soft_wrap=True, highlight=False)
    return Path(hf_hub_download(name.repository, file, revision=revision))


def _cached(name: HubName, file: str) -> bool:
    """Return whether the cache has a file, of the revision as it was when it was last looked up."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name.repository, file, revision=name.revision), str)


def _known_missing(name: HubName, file: str) -> bool:
    """Return whether the cache has noted that a commit does not have a file."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    return try_to_load_from_cache(name.repository, file, revision=name.revision) is _CACHED_NO_EXIST


def _check_kind(name: HubName, config: Path) -> None:
    """Check that detrkit has the architecture, before the weights are downloaded.

    Raises:
        DetrkitError: another one; says which there are.
    """
    from detrkit.weights.huggingface_config import KINDS

    try:
        content = json.loads(config.read_bytes())
        kind = content.get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise DetrkitError(f"{name}: its {_CONFIG} is damaged ({first_line(error)})") from error
    if kind not in KINDS:
        raise DetrkitError(
            f"{name}: a model of another architecture: its model_type is {shown(kind)}; detrkit reads "
            f"{', '.join(KINDS)}, such as {KNOWN[0]} and SenseTime/deformable-detr"
        )


def _verify(name: HubName, file: Path) -> None:
    """Compare a file with the SHA-256 that the Hub names it by; a file with another one is removed from the cache.

    Raises:
        DownloadError: it is not that file.
    """
    content = file.resolve()
    if not _SHA256.fullmatch(content.name):
        return  # the server named none, or the file system of the cache has no links
    digest = sha256(content)
    if digest == content.name:
        return
    file.unlink(missing_ok=True)
    content.unlink(missing_ok=True)
    reason = f"its SHA-256 starts with {digest[:8]}, not with {content.name[:8]}"
    raise DownloadError(
        f"{name}: {file.name} is not the file that the Hub names: {reason}; it is removed from the cache: run again",
        reason,
    )


@contextmanager
def _one_line(name: HubName) -> Iterator[None]:
    """Turn the exceptions of huggingface_hub into one line that says what to do.

    Raises:
        DownloadError: see `download_checkpoint`.
    """
    from huggingface_hub import constants, errors

    try:
        yield
    except (DetrkitError, errors.RemoteEntryNotFoundError):
        raise
    except errors.GatedRepoError as error:
        where = f"{constants.ENDPOINT}/{name.repository}"
        reason = (
            f"its owner asks for agreement: accept the conditions at {where} and log in (hf auth login, or HF_TOKEN)"
        )
        raise DownloadError(f"{name}: {reason}", reason) from error
    except errors.RepositoryNotFoundError as error:
        raise DownloadError(_not_found(name), "no such repository") from error
    except errors.RevisionNotFoundError as error:
        reason = f"no revision {name.revision!r} in this repository: a branch, a tag or a commit"
        raise DownloadError(f"{name}: {reason}", reason) from error
    except errors.OfflineModeIsEnabled as error:
        raise _unreachable(name, "HF_HUB_OFFLINE is set") from error
    except errors.LocalEntryNotFoundError as error:
        offline = isinstance(error.__cause__, errors.OfflineModeIsEnabled)
        reason = "HF_HUB_OFFLINE is set" if offline else f"{constants.ENDPOINT} cannot be reached"
        raise _unreachable(name, reason) from error
    except errors.HFValidationError as error:
        raise DownloadError(f"{name}: no name of a repository on the Hub ({first_line(error)})", error) from error
    except OSError as error:  # also HTTP errors, a full disk, another size than the server stated
        raise _cut(name, error.strerror or first_line(error)) from error
    except Exception as error:  # of its HTTP library, which is another one in each of its versions
        library, kind = type(error).__module__.partition(".")[0], type(error).__name__
        if not library.startswith(("httpx", "httpcore", "requests", "urllib3")):
            raise
        if kind.startswith(("Connect", "Proxy", "Timeout", "Pool")):
            raise _unreachable(name, f"{constants.ENDPOINT} cannot be reached") from error
        raise _cut(name, first_line(error)) from error


def _unreachable(name: HubName, reason: str) -> DownloadError:
    """Return the error for a repository that neither the Hub nor the cache gives."""
    from huggingface_hub import constants

    return DownloadError(
        f"{name}: no such file or folder, and no answer from the Hugging Face Hub: {reason}, and the cache "
        f"({constants.HF_HUB_CACHE}) does not have all of it. Put {_CONFIG}, {_PREPROCESSOR} and {_WEIGHTS[0]} into a "
        "folder and give its path",
        reason,
    )


def _cut(name: HubName, reason: str) -> DownloadError:
    """Return the error for a download that did not succeed."""
    return DownloadError(f"{name}: cannot be downloaded ({reason}); run again", reason)


def _not_found(name: HubName) -> str:
    """Return the line for a repository that is not there, with a similar name if there is one."""
    near = nearest_names([name.repository], KNOWN).get(name.repository)
    hint = f"; did you mean {near}?" if near else "; a private one needs a login (hf auth login, or HF_TOKEN)"
    return f"{name}: no such file or folder, and no such model on the Hugging Face Hub{hint}"
