"""The stub _core.pyi says what the extension module has: every name, and every signature."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from types import ModuleType

import pytest

from quark.onnx import _core

STUB = Path(inspect.getfile(_core)).parent / "_core.pyi"
KINDS = inspect.Parameter

Definition = ast.FunctionDef | ast.ClassDef


def definitions(body: list[ast.stmt]) -> dict[str, Definition]:
    """Public functions and classes of a stub's or class's body, less those that only type checkers know."""
    return {
        node.name: node
        for node in body
        if isinstance(node, Definition) and not node.name.startswith("_") and "type_check_only" not in decorators(node)
    }


def decorators(node: Definition) -> list[str]:
    return [ast.unparse(d) for d in node.decorator_list]


def public(thing: ModuleType | type) -> dict[str, object]:
    return {name: value for name, value in vars(thing).items() if not name.startswith("_")}


def stub_parameters(function: ast.FunctionDef) -> list[inspect.Parameter]:
    a = function.args
    positional = [*((p, KINDS.POSITIONAL_ONLY) for p in a.posonlyargs)]
    positional += [(p, KINDS.POSITIONAL_OR_KEYWORD) for p in a.args]
    defaults = [None] * (len(positional) - len(a.defaults)) + a.defaults
    pairs = [(p, kind, default) for (p, kind), default in zip(positional, defaults, strict=True)]
    pairs += [(p, KINDS.KEYWORD_ONLY, d) for p, d in zip(a.kwonlyargs, a.kw_defaults, strict=True)]
    return [
        KINDS(p.arg, kind, default=ast.literal_eval(default) if default else KINDS.empty) for p, kind, default in pairs
    ]


def own_parameters(function: object) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())  # type: ignore[arg-type]


STUB_BODY = definitions(ast.parse(STUB.read_text()).body)
FUNCTIONS = {n: d for n, d in STUB_BODY.items() if isinstance(d, ast.FunctionDef)}
CLASSES = {n: d for n, d in STUB_BODY.items() if isinstance(d, ast.ClassDef)}
METHODS = [
    (cls, method, node)
    for cls, definition in CLASSES.items()
    for method, node in definitions(definition.body).items()
    if isinstance(node, ast.FunctionDef)
]


def test_the_stub_has_every_name() -> None:
    assert sorted(STUB_BODY) == sorted(public(_core))
    assert len(FUNCTIONS) > 2
    assert len(CLASSES) > 2


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    assert stub_parameters(FUNCTIONS[name]) == own_parameters(getattr(_core, name))


@pytest.mark.parametrize("name", [name for name, definition in CLASSES.items() if not definition.bases])
def test_classes(name: str) -> None:
    definition, cls = CLASSES[name], getattr(_core, name)
    assert sorted(definitions(definition.body)) == sorted(public(cls))
    assert "final" in decorators(definition)  # of a type without Py_TPFLAGS_BASETYPE
    with pytest.raises(TypeError, match="not an acceptable base type"):
        type("Derived", (cls,), {})
    new = next(n for n in definition.body if isinstance(n, ast.FunctionDef) and n.name == "__new__")
    assert stub_parameters(new)[1:] == own_parameters(cls)


@pytest.mark.parametrize(("cls", "method", "node"), METHODS, ids=[f"{c}.{m}" for c, m, _ in METHODS])
def test_methods(cls: str, method: str, node: ast.FunctionDef) -> None:
    attribute = public(getattr(_core, cls))[method]
    if "property" in decorators(node):
        assert inspect.isgetsetdescriptor(attribute)
    else:
        assert stub_parameters(node)[1:] == own_parameters(attribute)[1:]  # self has another kind


@pytest.mark.parametrize("name", STUB_BODY)
def test_docstrings(name: str) -> None:
    doc = inspect.getdoc(getattr(_core, name))
    assert doc
    assert (ast.get_docstring(STUB_BODY[name]) or "").split("\n")[0] == doc.split("\n")[0]
