"""Writes the folder of a page: the page, its worker, the model and its description, and the runtime."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path
from typing import Any

from detrkit.models.registry import architecture
from detrkit.models.spec import ModelSpec
from detrkit.runtimes.metadata import ExportInfo
from detrkit.runtimes.model import load_exported
from detrkit.utils.errors import SettingError
from detrkit.utils.folders import new_directory
from detrkit.utils.pages import asset, code_hash, filled, script_of
from detrkit.utils.visible import one_line
from detrkit.utils.web_runtime import FOLDER, SCRIPT, WASM, WebRuntime

_PACKAGE = "detrkit.exporting.browser"
_LOOK = "detrkit.explanation.page"  # whose colors and panels the page has
SHARED = ("preprocess.js", "detections.js")


def write_browser_page(
    model: str | Path, folder: str | Path, *, runtime: str | Path, title: str | None = None, force: bool = False
) -> Path:
    """Write a folder with a page that detects objects in a browser, by an exported model.

    Any static server shows it, such as `python -m http.server`, and nothing else is asked for: images stay in the
    browser. It resizes and normalizes as `ImageProcessor`, and has the detections of `Detector.predict`; masks are not
    drawn.

    Args:
        model: a .onnx file of `detrkit.export`.
        folder: to make: index.html, worker.js, model.onnx, model.json and onnxruntime-web's two files.
        runtime: a folder with onnxruntime-web (the unpacked npm package), whose files are copied; or its https address
            at a CDN, which the page then needs.
        title: of the page; by default the model's name.
        force: replace a folder that was written so, if it is unchanged since.

    Returns:
        The path of index.html.

    Raises:
        DetrkitError: no exported model, no onnxruntime-web, or a folder that may not be replaced.
        SettingError: a file of another format.
    """
    model, folder = Path(model), Path(folder)
    found = WebRuntime.find(runtime)
    if model.suffix != ".onnx":
        raise SettingError(f"{model}: a browser runs .onnx files: export the checkpoint as one")
    exported, spec = load_exported(model)
    info = exported.info
    del exported
    with new_directory(folder, force=force) as temporary:
        shutil.copyfile(model, temporary / "model.onnx")
        described = description(info, spec, found, model.stat().st_size)
        (temporary / "model.json").write_text(json.dumps(described, indent=1, allow_nan=False) + "\n", "utf-8")
        (temporary / "index.html").write_text(_page(title or f"Objects by {spec.name}", found), "utf-8")
        worker = script_of(*(asset(_PACKAGE, name) for name in (*SHARED, "worker.js")))
        (temporary / "worker.js").write_text(worker, "utf-8")
        if found.folder is not None:
            (temporary / FOLDER).mkdir()
            for name in (SCRIPT, WASM):
                shutil.copyfile(found.folder / name, temporary / FOLDER / name)
    return folder / "index.html"


def description(info: ExportInfo, spec: ModelSpec, runtime: WebRuntime, size: int) -> dict[str, Any]:
    """Return what the page's scripts need to know, as plain JSON values.

    Args:
        info: of the graph.
        spec: of the model.
        runtime: of the page.
        size: bytes of the model's file.
    """
    thresholds, classes = spec.score_thresholds, spec.classes
    logits = spec.num_classes
    folder = f"{FOLDER}/" if runtime.folder is not None else runtime.address
    return {
        "name": spec.name,
        "names": None if classes is None else [one_line(name) for name in classes.names],
        "numClasses": logits if classes is None else len(classes.used_names),
        "activation": info.activation,
        "numQueries": info.num_queries,
        "topK": info.num_select or max(100, info.num_queries),
        "threshold": architecture(spec.name).thresholds.predict if thresholds is None else thresholds.general,
        "thresholds": None if thresholds is None else list(thresholds.per_label(classes, logits)),
        "size": spec.size,
        "maxSize": spec.max_size,
        "square": spec.square,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "inputs": list(info.inputs),
        "masked": info.masked,
        "exact": spec.padding == "exact",
        "leastSide": info.least_side,
        "largestSide": info.largest_side,
        "fixed": None if info.fixed is None else list(info.fixed),
        "batch": info.batch,
        "source": info.source,
        "sha256": info.sha256,
        "detrkit": info.detrkit,
        "bytes": size,
        "runtime": {"script": folder + SCRIPT, "wasm": folder + WASM, "version": runtime.version},
    }


def _page(title: str, runtime: WebRuntime) -> str:
    """Return the text of index.html."""
    style = asset(_LOOK, "page.css") + asset(_PACKAGE, "page.css")
    script = script_of(asset(_LOOK, "colors.js"), *(asset(_PACKAGE, name) for name in (*SHARED, "main.js")))
    origins = "'self'" if not runtime.address else "'self' " + "/".join(runtime.address.split("/")[:3])
    policy = (
        f"default-src 'none'; img-src data: blob:; style-src '{code_hash(style)}'; "
        f"script-src '{code_hash(script)}' {origins} 'wasm-unsafe-eval'; worker-src 'self'; connect-src {origins}; "
        "base-uri 'none'; form-action 'none'"
    )
    values = {"POLICY": policy, "TITLE": html.escape(one_line(title)), "STYLE": style, "SCRIPT": script}
    return filled(asset(_PACKAGE, "page.html"), values)
