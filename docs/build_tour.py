"""Run the tour, examples/tour.py, and write its page and its notebook from what it prints and draws.

python docs/build_tour.py                      docs/tour.md, docs/images/tour/ and examples/tour.ipynb
python docs/build_tour.py --carry RUN NAME     the weights, config and log of a training run, as examples/tour/NAME*

tests/test_tour.py runs the tour again and compares: `differences` says how.
"""

from __future__ import annotations

import argparse
import base64
import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import jupytext
import nbformat
import yaml
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "examples" / "tour.py"
NOTEBOOK = ROOT / "examples" / "tour.ipynb"
PAGE = ROOT / "docs" / "tour.md"
PICTURES = ROOT / "docs" / "images" / "tour"
WEIGHTS = ROOT / "examples" / "tour"

# of the training log that is carried
COLUMNS = ("loss", "loss_ce", "loss_bbox", "loss_giou", "class_error", "cardinality_error")
_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?%?")
_PAGE_LINK = re.compile(r"\]\((?=[\w-]+\.md)")  # to a page beside docs/tour.md


def source() -> nbformat.NotebookNode:
    """Read the script as a notebook without outputs.

    A cell that draws one picture names it: `# %% picture="backbone" alt="what it shows"`.
    """
    notebook = jupytext.read(SOURCE, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell.source = cell.source.strip("\n")
        if cell.cell_type == "markdown":
            cell.source = _PAGE_LINK.sub("](../docs/", cell.source)
    return notebook


def executed() -> nbformat.NotebookNode:
    """Run the tour in a fresh kernel and return the notebook with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: an assertion of the tour failed.
    """
    notebook = source()
    resources = {"metadata": {"path": str(SOURCE.parent)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources, record_timing=False).execute()
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        for output in pictures:
            output.data["image/png"] = base64.b64encode(_small(base64.b64decode(output.data["image/png"]))).decode()
            output.data.pop("text/plain", None)
            output.metadata = nbformat.from_dict({"image/png": {"alt": cell.metadata["alt"]}})
        if len(pictures) != ("picture" in cell.metadata):
            raise ValueError(
                f'{len(pictures)} pictures of a cell: name one by `# %% picture="..." alt="..."`\n{cell.source}'
            )
        if any(output.get("name") == "stderr" for output in cell.outputs):
            raise ValueError(f"the tour warns: {cell.outputs}")
    return notebook


def _small(png: bytes) -> bytes:
    """Return a PNG with 256 colors, a third of the size."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        buffer, "PNG", optimize=True
    )
    return buffer.getvalue()


def printed(cell: nbformat.NotebookNode) -> str:
    """Return what a code cell prints."""
    return "".join(output.text for output in cell.get("outputs", []) if output.output_type == "stream")


def pictures(notebook: nbformat.NotebookNode) -> dict[str, bytes]:
    """Return the PNG files of a notebook by name."""
    return {
        f"{cell.metadata['picture']}.png": base64.b64decode(output.data["image/png"])
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    }


def page(notebook: nbformat.NotebookNode) -> str:
    """Return the notebook as a page of the documentation: text, code, what it prints, what it draws."""
    parts = ["<!-- written by docs/build_tour.py from examples/tour.py: change that -->"]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source.replace("](../docs/", "]("))
            continue
        parts.append(f"```python\n{cell.source}\n```")
        if text := printed(cell).strip("\n"):
            parts.append(f"```text\n{text}\n```")
        if name := cell.metadata.get("picture"):
            parts.append(f"![{cell.metadata['alt']}](images/tour/{name}.png)")
    return "\n\n".join(parts) + "\n"


def differences(old: str, new: str) -> list[str]:
    """Compare two texts: words exactly, numbers up to the noise between machines, whitespace not at all.

    A whole number must be equal. One with decimals may differ by two units of the last that is printed or by 1%, a
    percentage by 2, one with an exponent by 20%.
    """
    skeletons = [" ".join(_NUMBER.sub("#", text).split()) for text in (old, new)]
    if skeletons[0] != skeletons[1]:
        at = next((i for i, (a, b) in enumerate(zip(*skeletons, strict=False)) if a != b), min(map(len, skeletons)))
        return [f"{skeletons[0][max(0, at - 40) : at + 40]!r} is now {skeletons[1][max(0, at - 40) : at + 40]!r}"]
    pairs = zip(_NUMBER.findall(old), _NUMBER.findall(new), strict=True)
    return [f"{a} is now {b}" for a, b in pairs if not _alike(a, b)]


def _alike(a: str, b: str) -> bool:
    """Compare two printed numbers."""
    x, y = (float(text.rstrip("%").replace(",", "")) for text in (a, b))
    if "e" in a:
        return abs(x - y) <= 0.2 * max(abs(x), abs(y))
    if a.endswith("%"):
        return abs(x - y) <= 2
    decimals = len(a.partition(".")[2])
    return x == y if decimals == 0 else abs(x - y) <= max(2.01 * 10**-decimals, 0.01 * abs(x))


def write() -> None:
    """Run the tour and write page, pictures and notebook."""
    notebook = executed()
    PICTURES.mkdir(parents=True, exist_ok=True)
    for old in PICTURES.glob("*.png"):
        old.unlink()
    for name, png in pictures(notebook).items():
        (PICTURES / name).write_bytes(png)
    PAGE.write_text(page(notebook), encoding="utf-8")
    nbformat.write(notebook, NOTEBOOK)


def carry(run: Path, name: str) -> None:
    """Write the weights of a run as float16, with its config and its log, without the paths of this machine."""
    from detrkit.weights.checkpoint import load_any, save_model

    model, spec = load_any(run / "best.safetensors")
    state = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    training = {key: value for key, value in spec.training.items() if key != "init_from"}
    save_model(WEIGHTS / f"{name}.safetensors", state, replace(spec, training=training))

    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"].pop("path")
    config["run"] = {key: value for key, value in config["run"].items() if key not in ("out", "init_from")}
    (WEIGHTS / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    _carry_log(run, name)


def _carry_log(run: Path, name: str) -> None:
    """Write the log of a run: the means of each epoch."""
    with (run / "epochs.csv").open() as file, (WEIGHTS / f"{name}-epochs.csv").open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["epoch", *COLUMNS, "AP50"])
        for line in csv.DictReader(file):
            numbers = [line[f"train/{column}"] for column in COLUMNS] + [line["val/AP50"]]
            writer.writerow([line["epoch"], *(f"{float(value):.4f}" if value else "" for value in numbers)])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--carry", nargs=2, metavar=("RUN", "NAME"), help="a run folder, and the name of its files")
    args = parser.parse_args()
    if args.carry:
        carry(Path(args.carry[0]), args.carry[1])
    else:
        write()


if __name__ == "__main__":
    main()
