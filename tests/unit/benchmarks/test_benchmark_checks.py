"""A result that is not sound must not reach the benchmark's tables."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("model_checks")


def quantized_gemm() -> onnx.ModelProto:
    constants = {
        "w": np.arange(12, dtype=np.int8).reshape(4, 3),
        "w_scale": np.float32(0.5),
        "w_zero_point": np.int8(0),
    }
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", list(constants), ["w_float"], name="dequantize"),
            helper.make_node("Gemm", ["x", "w_float"], ["y"], name="gemm"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def set_constant(name: str, value: Any) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        (constant,) = (i for i in model.graph.initializer if i.name == name)
        constant.CopyFrom(numpy_helper.from_array(np.asarray(value), name))

    return change


def rename_node(model: onnx.ModelProto) -> None:
    model.graph.node[1].name = "other"


def drop_zero_point(model: onnx.ModelProto) -> None:
    del model.graph.node[0].input[2]
    del model.graph.initializer[2]


def raise_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 18


def save_both(folder: Path, change: Callable[[onnx.ModelProto], None]) -> tuple[Path, Path]:
    plain, finetuned = quantized_gemm(), quantized_gemm()
    change(finetuned)
    paths = folder / "plain.onnx", folder / "finetuned.onnx"
    for model, path in zip((plain, finetuned), paths, strict=True):
        onnx.save(model, path)
    return paths


def test_integer_weights_may_differ(checks: Any, tmp_path: Path) -> None:
    new_weight = set_constant("w", np.zeros((4, 3), np.int8))
    assert checks.check_only_integers_differ(*save_both(tmp_path, new_weight)) == 1
    assert checks.check_only_integers_differ(*save_both(tmp_path, lambda _: None)) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_constant("w_scale", np.float32(0.25)), "'w_scale' differs"),
        (set_constant("w_zero_point", np.int8(1)), "'w_zero_point' differs"),
        (set_constant("w", np.zeros((4, 3), np.uint8)), "type or shape"),
        (set_constant("w", np.zeros((3, 4), np.int8)), "type or shape"),
        (rename_node, "more than initializers"),
        (raise_opset, "more than initializers"),
        (drop_zero_point, "w_zero_point"),
    ],
)
def test_nothing_else_may_differ(
    checks: Any, tmp_path: Path, change: Callable[[onnx.ModelProto], None], message: str
) -> None:
    with pytest.raises(checks.CheckError, match=message):
        checks.check_only_integers_differ(*save_both(tmp_path, change))


def test_outputs_must_be_finite(checks: Any, tmp_path: Path) -> None:
    good, bad = save_both(tmp_path, set_constant("w_scale", np.float32(np.inf)))
    checks.check_runs(good)
    with pytest.raises(checks.CheckError, match="output 'y' is not finite"):
        checks.check_runs(bad)
