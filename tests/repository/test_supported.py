"""docs/supported.md is what docs/supported.py makes of the code's tables and of onnx's schemas."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import onnx
import pytest

from quark.onnx.operators.table import OPERATORS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("supported", ROOT / "docs" / "supported.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(onnx.defs.onnx_opset_version() < 28, reason="the page is made with an onnx that knows opset 28")
def test_the_page_is_up_to_date(script: ModuleType) -> None:
    """A newer onnx with a newer opset fails here, too: look at what is new, then run the script."""
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), "run python docs/supported.py"


@pytest.mark.parametrize("op_type", OPERATORS)
def test_onnx_knows_no_attribute_that_is_not_supported(script: ModuleType, op_type: str) -> None:
    """Attributes are left out that models lose when they are raised to an opset with Q/DQ."""
    schemas = script.versions(op_type)
    newest = schemas[max(schemas)]
    assert set(newest.attributes) == set(OPERATORS[op_type].attributes)
    older = {name for schema in schemas.values() for name in schema.attributes} - set(OPERATORS[op_type].attributes)
    assert older <= {"spatial"}, "of BatchNormalization until opset 8"


def test_an_attribute_that_onnx_gains_is_an_error(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATORS, "Gemm", replace(OPERATORS["Gemm"], attributes=("alpha", "beta", "transA")))
    with pytest.raises(ValueError, match=r"OPERATORS\['Gemm'\] and the code, or onnx, differ in transB"):
        script.page()


def test_an_operator_that_the_loss_gains_is_an_error(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(script.LIMITS, "Tanh")
    with pytest.raises(ValueError, match="LIMITS and the code, or onnx, differ in Tanh"):
        script.page()


def test_versions_are_those_in_force(script: ModuleType) -> None:
    """Opset 7 has Conv as of 1, Gemm as of 7; each operator's newest is onnx's."""
    assert [next(iter(script.versions(op_type))) for op_type in ("Conv", "Gemm", "LayerNormalization")] == [1, 7, 17]
    for op_type in OPERATORS:
        assert max(script.versions(op_type)) == onnx.defs.get_schema(op_type).since_version


@pytest.mark.parametrize("page", ["README.md", "docs/patterns.md", "docs/compatibility.md"])
def test_other_pages_link_to_it(page: str) -> None:
    assert "supported.md" in (ROOT / page).read_text(encoding="utf-8")
