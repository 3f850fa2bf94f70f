"""Finds the two files of onnxruntime-web that a page needs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from detrkit.utils.documents import parse_json
from detrkit.utils.errors import DetrkitError, SettingError

SCRIPT = "ort.wasm.bundle.min.mjs"
WASM = "ort-wasm-simd-threaded.wasm"
FOLDER = "onnxruntime-web"  # of the page, and of npm
HOW = "get it by: npm pack onnxruntime-web && tar xf onnxruntime-web-*.tgz, and name the folder package"
_ADDRESS = re.compile(r"https://[A-Za-z0-9.-]+(?::\d+)?(?:/[A-Za-z0-9._~@%+-]+)*/?")


@dataclass(frozen=True)
class WebRuntime:
    """Where a page finds onnxruntime-web.

    Attributes:
        folder: a folder with its files, which are copied into the page's; None: `address` is used.
        address: of the folder of its files in the network, ending with "/"; "" with `folder`.
        version: of it; "" if nothing says so.
    """

    folder: Path | None
    address: str
    version: str

    @classmethod
    def find(cls, runtime: str | Path) -> WebRuntime:
        """Find the files.

        Args:
            runtime: a folder with onnxruntime-web's files, or one that holds it (the unpacked package, a project with
                node_modules); or the https address of such a folder.

        Raises:
            DetrkitError: none of its files are there; says how to get them.
            SettingError: an address of another form.
        """
        text = str(runtime)
        if text.startswith(("https:", "http:")):
            if not isinstance(runtime, str) or not _ADDRESS.fullmatch(text):
                raise SettingError(
                    f"web runtime {text[:200]!r}: the https address of a folder is expected, without ? and #, such as "
                    "that of onnxruntime-web's dist at a CDN"
                )
            return cls(None, text.rstrip("/") + "/", "")
        path = Path(runtime)
        for folder in (path, path / "dist", path / "node_modules" / FOLDER / "dist"):
            if (folder / SCRIPT).is_file() and (folder / WASM).is_file():
                return cls(folder, "", _version(folder.parent / "package.json"))
        raise DetrkitError(f"{path}: holds no onnxruntime-web ({SCRIPT} and {WASM}): {HOW}")


def _version(package: Path) -> str:
    """Return the version that npm's package states; "" if there is none."""
    try:
        plain = parse_json(package.read_text(encoding="utf-8"), str(package))
    except (OSError, ValueError, DetrkitError):
        return ""
    version = plain.get("version") if isinstance(plain, dict) else None
    return version if isinstance(version, str) else ""
