"""What a new operator and a new number format cost: one object each, in one file each, of a copy of the package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import quark.onnx

OPERATOR = """        Operator(
            op_type="FusedMatMul",  # onnxruntime's own: Gemm without a bias
            family=GemmAttributes,
            attributes=("alpha", "transA", "transB"),
            weight="the second input",
            bias_input=None,
            domains=("com.microsoft",),
            quantizer_op_type="Gemm",
        ),
"""
FORMAT = """
DATA_TYPES["Byte"] = DataType(
    name="Byte", bits=8, element_type="INT8", quantizer="QInt8", first_opset=13, roles=_ALL, near=2,
    missing="nothing else is supported here",
)
"""
RUN = """
import json, sys
import numpy as np, onnx
from onnx import helper, numpy_helper, TensorProto
from quark.onnx import AdaRoundConfig, CLEConfig, ModelQuantizer, QConfig, QLayerConfig, QTensorConfig, UInt8Spec
from quark.onnx.config.data_type import DATA_TYPES

generator = np.random.default_rng(0)
weights = {name: generator.normal(size=shape).astype(np.float32)
           for name, shape in {"w": (16, 24), "v": (8, 24)}.items()}
graph = helper.make_graph(
    [helper.make_node("FusedMatMul", ["x", "w"], ["h"], "first", domain="com.microsoft"),
     helper.make_node("Relu", ["h"], ["r"], "relu"),
     helper.make_node("FusedMatMul", ["r", "v"], ["y"], "second", domain="com.microsoft", transB=1)],
    "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8])],
    [numpy_helper.from_array(values, name) for name, values in weights.items()])
imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
model = helper.make_model(graph, opset_imports=imports, ir_version=8)
data = generator.normal(size=(256, 16)).astype(np.float32)
weight = QTensorConfig(data_type=DATA_TYPES["Byte"])
tuning = AdaRoundConfig(target_op_type=["FusedMatMul"], solver=sys.argv[1], num_iterations=60)
quantizer = ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=weight), algo_config=[CLEConfig(), tuning]))
result = quantizer.quantize_model(model, None, data)
types = {tensor.name: tensor.data_type for tensor in result.graph.initializer}
weights_of = {node.input[0]: types[node.input[0]] for node in result.graph.node
              if node.op_type == "DequantizeLinear" and node.input[0] in types}
report = quantizer.report
print(json.dumps({
    "nodes": [[node.name, node.op_type, node.domain] for node in result.graph.node if "Linear" not in node.op_type],
    "quantized": weights_of,
    "layers": [[layer.name, layer.op_type, layer.accepted, layer.before[0], layer.after[0]]
               for layer in report.layers],
    "pairs": [[pair.head, pair.tail, pair.reason] for pair in report.pairs],
    "config": str(quantizer.config),
}))
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to import the extended package from."""
    root = tmp_path_factory.mktemp("extended")
    package = root / "quark" / "onnx"
    shutil.copytree(Path(quark.onnx.__path__[0]), package, ignore=shutil.ignore_patterns("__pycache__"))
    table = package / "operators" / "table.py"
    before, after = table.read_text().split("    for operator in (\n")
    table.write_text(f"{before}    for operator in (\n{OPERATOR}{after}")
    formats = package / "config" / "data_type.py"
    formats.write_text(formats.read_text() + FORMAT)
    return root


@pytest.mark.parametrize("solver", ["least_squares", "gradient"])
def test_a_new_operator_and_a_new_format_are_quantized_finetuned_and_reported(extended: Path, solver: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(extended)}
    ran = subprocess.run(
        [sys.executable, "-c", RUN, solver], capture_output=True, text=True, env=environment, cwd=extended, check=False
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    operator = ["FusedMatMul", "com.microsoft"]
    assert [["first", *operator], ["second", *operator]] == [
        node for node in found["nodes"] if node[1] == "FusedMatMul"
    ]
    int8 = 3  # onnx.TensorProto.INT8
    assert found["quantized"] == {"w_quantized": int8, "v_quantized": int8}
    assert [layer[:3] for layer in found["layers"]] == [[name, "FusedMatMul", True] for name in ("first", "second")]
    assert all(after < before for *_, before, after in found["layers"])
    assert found["pairs"] == [["first", "second", ""]]
    assert "Byte" in found["config"]
