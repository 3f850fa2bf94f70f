"""Functions and files of src stay short enough to be read at once."""

from __future__ import annotations

import ast
from pathlib import Path

import detrkit

SRC = Path(detrkit.__file__).parent
MAX_FUNCTION_LINES = 60  # of code: without docstring, comments and blank lines
MAX_FILE_LINES = 400

# function -> why it is longer
LONG_FUNCTIONS = {
    "engine/evaluating.py:evaluate": "half of it are its arguments and the check of their ranges",
    "models/deformable_base.py:__init__": "half of it are its arguments; then an assignment for each part",
    "data/readers/coco.py:_objects": "all annotations of a file at once, as arrays: a call for each would take minutes",
}


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> int:
    """Count the lines of a function without its docstring, comments and blank lines."""
    first = function.body[0]
    has_docstring = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    skipped = range(first.lineno, first.end_lineno + 1) if has_docstring else range(0)
    numbers = (n for n in range(function.lineno, function.end_lineno + 1) if n not in skipped)
    return sum(1 for n in numbers if lines[n - 1].strip() and not lines[n - 1].strip().startswith("#"))


def test_the_count_leaves_out_docstring_comments_and_blank_lines():
    source = 'def f(a):\n    """Doc.\n\n    More.\n    """\n\n    # why\n    b = a\n    return b\n'
    assert code_lines(ast.parse(source).body[0], source.splitlines()) == 3


def test_functions_are_short():
    long = {}
    for file in sorted(SRC.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                count = code_lines(node, text.splitlines())
                if count > MAX_FUNCTION_LINES:
                    long[f"{file.relative_to(SRC).as_posix()}:{node.name}"] = count
    assert not {name: count for name, count in long.items() if name not in LONG_FUNCTIONS}
    assert not set(LONG_FUNCTIONS) - set(long)  # an exception that is short by now


def test_files_are_short():
    lengths = {
        file.relative_to(SRC).as_posix(): len(file.read_text(encoding="utf-8").splitlines())
        for file in SRC.rglob("*.py")
    }
    assert not {name: length for name, length in lengths.items() if length > MAX_FILE_LINES}
