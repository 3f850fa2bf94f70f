"""The pages say what is so: commands parse, names exist, links lead somewhere, tables are fresh."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import itertools
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml

from detrkit.cli import _parse
from detrkit.config import TrainConfig, recipes
from detrkit.utils.errors import UsageError

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
# characters that end a command's words
_ENDS = {"#", "&&", "||", "|", ";", ">"}


def blocks(page: Path, language: str) -> list[str]:
    """Fenced code of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """The words after `detrkit` of every command line in a shell text; also after `-m detrkit` and `srun detrkit`."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;>")
        lexer.whitespace_split = True
        words = list(lexer)
        if "detrkit" in words:
            rest = words[words.index("detrkit") + 1 :]
            found.append(rest[: next((i for i, w in enumerate(rest) if w in _ENDS), len(rest))])
    return found


COMMANDS = [
    pytest.param(words, id=f"{page.stem}: {' '.join(words)}")
    for page in PAGES
    for block in blocks(page, "bash")
    for words in commands(block)
]
PYTHON = [
    pytest.param(code, id=f"{page.relative_to(DOCS)} {k}")
    for page in PAGES
    for k, code in enumerate(blocks(page, "python"))
]


@cache
def tables(name="option_tables"):
    """The module that makes the option tables, or another beside it."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_shell_texts_are_read():
    text = "x && detrkit eval a 'b c' | tail  # detrkit no\ntorchrun -m detrkit train \\\n  d > log\ndetrkit models;\n"
    assert commands(text) == [["eval", "a", "b c"], ["train", "d"], ["models"]]
    assert len(COMMANDS) > 30 and len(PYTHON) > 8


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS)
def test_commands_parse(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for option, value in itertools.pairwise(words):  # what the command reads while it parses
        if option in ("--resume", "--recipe") and value not in recipes():
            file = Path(value) / "config.yaml" if option == "--resume" else Path(value)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(TrainConfig().to_yaml())
    command = _parse(words)
    assert callable(command.run)


@pytest.mark.parametrize(
    "words", [["train", "x", "--no-such"], ["eval", "x"], ["data", "turn", "x"], ["train", "--lr"]]
)
def test_wrong_commands_would_be_seen(words, capsys):
    with pytest.raises(UsageError):
        _parse(words)


def wrong_names(code: str) -> list[str]:
    """What a Python text uses of detrkit that is not there: names, and keywords of functions."""
    wrong = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "detrkit":
            module = importlib.import_module(node.module)
            wrong += [a.name for a in node.names if not hasattr(module, a.name)]
        if isinstance(node, ast.Attribute) and (path := dotted(node)) and resolved(path) is None:
            wrong.append(path)
        if isinstance(node, ast.Call) and (path := dotted(node.func)) and (target := resolved(path)) is not None:
            parameters = inspect.signature(target).parameters
            if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                wrong += [f"{path}({k.arg})" for k in node.keywords if k.arg not in parameters]
    return wrong


def dotted(node: ast.expr) -> str | None:
    """`detrkit.a.b` of an expression, or None for anything else."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name) and node.id == "detrkit" and names:
        return ".".join(["detrkit", *reversed(names)])
    return None


def resolved(path: str) -> object | None:
    """What a dotted name stands for, or None."""
    value: object = importlib.import_module("detrkit")
    for name in path.split(".")[1:]:
        if not hasattr(value, name):
            return None
        value = getattr(value, name)
    return value


@pytest.mark.parametrize("code", PYTHON)
def test_python_compiles_and_its_names_exist(code):
    compile(code, "page", "exec")
    assert wrong_names(code) == []


def test_wrong_names_would_be_seen():
    code = "import detrkit\nfrom detrkit.config import nothing\ndetrkit.lood('x')\ndetrkit.load('x', weight=1)\n"
    assert sorted(wrong_names(code)) == ["detrkit.load(weight)", "detrkit.lood", "nothing"]


def slug(heading: str) -> str:
    """The anchor of a heading."""
    plain = re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def anchors(page: Path) -> set[str]:
    """Everything in a page that a link may point at."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = {slug(h) for h in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    return headings | set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_links_and_pictures_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)[^)]*\)", text):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        there = target.is_file() and DOCS in target.parents
        if not there or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_api_page_names_exist():
    paths = re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    missing = []
    for path in paths:
        module, _, name = path.rpartition(".")
        if not hasattr(importlib.import_module(module), name):
            missing.append(path)
    assert missing == []
    listed = {p.split(".")[1] for p in paths}
    import detrkit

    assert set(detrkit.__all__) - {"__version__"} <= listed


@pytest.mark.parametrize("page", ["training.md", "models.md"])
def test_tables_are_fresh(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    assert tables().rendered(text) == text, "run: python docs/option_tables.py"


def test_measured_tables_are_fresh():
    measured = tables("measured_tables")
    for page in measured.pages():
        text = page.read_text(encoding="utf-8")
        assert measured.written(text) == text, "run: python docs/measured_tables.py"


def test_every_setting_has_a_table_row_and_its_option_is_real(capsys):
    text = (DOCS / "training.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        _parse(["train", "--help-all"])
    help_text = capsys.readouterr().out
    for section, kind in tables().SECTIONS.items():
        table = re.search(rf"<!-- table: {section} -->(.*?)<!-- end -->", text, re.DOTALL)[1]
        rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
        assert rows == list(kind.__dataclass_fields__)
        for option in re.findall(r"`(--[\w-]+)`", table):
            assert re.search(rf"{option}\b", help_text), option


def test_every_page_is_in_the_navigation():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())

    def files(entry):
        if isinstance(entry, str):
            return [entry]
        return [f for part in (entry if isinstance(entry, list) else entry.values()) for f in files(part)]

    listed = files(config["nav"])
    assert len(listed) == len(set(listed))
    pages = {str(p.relative_to(DOCS)) for p in PAGES}
    # measured results are listed by a page of their own
    results = (DOCS / "results" / "index.md").read_text()
    linked = {f"results/{name}" for name in re.findall(r"\]\((?:\./)?([\w.-]+\.md)\)", results)}
    assert pages - linked == set(listed)


def test_no_machine_paths():
    for page in [*PAGES, ROOT / "mkdocs.yml"]:
        assert not re.search(r"(?<![\w.])/(work|tmp|home|root)/", page.read_text(encoding="utf-8")), page


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("status", [0, 2, 138])
def test_the_slurm_script_starts_goes_on_and_requeues(tmp_path, started, status):
    """With stand-ins for Slurm: a run that has begun is resumed, and SIGUSR1's status puts the job back."""
    (script,) = (block for block in blocks(DOCS / "training.md", "bash") if "#SBATCH" in block)
    if started:  # all that a node which dies in the first epoch leaves
        (tmp_path / "runs" / "tuned").mkdir(parents=True)
        (tmp_path / "runs" / "tuned" / "config.yaml").write_text("")
    slurm = f"srun() {{ echo srun $*; return {status}; }}; scontrol() {{ echo scontrol $*; }}; SLURM_JOB_ID=7\n"
    done = subprocess.run(["bash", "-c", slurm + script], cwd=tmp_path, capture_output=True, text=True)
    words = "--resume runs/tuned" if started else "my_data --init-from detr-r50 --out runs/tuned"
    requeued = ["scontrol requeue 7"] if status == 138 else []
    assert done.stdout.splitlines() == [f"srun detrkit train {words}", *requeued]
    assert (done.returncode, done.stderr) == (status, "")
