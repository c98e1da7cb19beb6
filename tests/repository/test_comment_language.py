"""Comments and docstrings are sentences or name what they describe: none begins with a fragment such as "Of the layer",
"The same for rows" or "Those of the weight".
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("quark_onnx", "csrc", "tests", "benchmarks", "examples", "docs")
SUFFIXES = {".py", ".pyi", ".c", ".h", ".inc", ".cl"}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
FRAGMENT = re.compile(r"(Of|The same|That|Those|To be|Likewise)\b")
# A literal of C, so that what looks like a comment inside it is none; or a comment in one of its two forms.
C_TOKEN = re.compile(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|/\*(?P<block>.*?)\*/|//(?P<line>[^\n]*)', re.DOTALL)


def c_comments(text: str) -> Iterator[tuple[int, str]]:
    """The first line and the words of each comment; lines that begin with // one below the other are one comment."""
    last = -1
    for token in C_TOKEN.finditer(text):
        line = text.count("\n", 0, token.start()) + 1
        if token["block"] is not None:
            yield line, token["block"]
        elif token["line"] is not None:
            if line != last + 1:
                yield line, token["line"]
            last = line


def python_comments(text: str) -> Iterator[tuple[int, str]]:
    """The first line and the words of each comment and docstring; lines of # one below the other are one comment."""
    last = -1
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            line, alone = token.start[0], token.line.lstrip().startswith("#")
            if not alone or line != last + 1:
                yield line, token.string.lstrip("#!:")
            last = line if alone else -1
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, DOCUMENTED) and (docstring := ast.get_docstring(node)):
            yield node.body[0].lineno, docstring


def fragments(text: str, suffix: str) -> list[int]:
    """The lines where a comment or docstring begins with a fragment."""
    comments = python_comments(text) if suffix in {".py", ".pyi"} else c_comments(text)
    return [line for line, words in comments if FRAGMENT.match(words.strip())]


def sources() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES)


def test_comments_are_sentences() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}" for path in sources() for line in fragments(path.read_text(), path.suffix)
    ]
    assert not found, f"comments and docstrings need a subject and a verb, but begin with a fragment at {found}"


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".py", 'def f():\n    """Of a layer."""\n'),
        (".py", 'class A:\n    """\n    The same for rows.\n    """\n'),
        (".py", "# Of samples.\nx = 1\n"),
        (".py", 'def f():\n    """Those of a weight."""\n'),
        (".h", "/* That of a row. */\nint x;\n"),
        (".py", "x = 1  # The same, as bytes\n"),
        (".c", "int x;\n/* Of one row. */\n"),
        (".h", "int x;\n/*\n   The same as bytes. */\n"),
        (".c", "int x; // Of rows\n"),
    ],
)
def test_fragments_are_found(suffix: str, text: str) -> None:
    assert len(fragments(text, suffix)) == 1


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".py", 'def f():\n    """Offsets of the samples."""\n    return """Of text."""\n'),
        (".py", "x = 1\n# What is kept\n# Of them is one.\n"),
        (".c", 'const char *x = "/* Of text */";\n'),
        (".c", "int x; // what is kept\n       // Of them\n"),
    ],
)
def test_sentences_and_text_are_left_alone(suffix: str, text: str) -> None:
    assert not fragments(text, suffix)
