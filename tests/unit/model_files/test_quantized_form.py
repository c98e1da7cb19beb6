"""In which form a model is quantized, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from foreign import OnnxruntimeReader
from onnx import helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
from small_models import Reader, samples, separable_cnn

from quark.onnx import AdaRoundConfig, ModelError, finetune
from quark.onnx.model_files.quantized_form import check_is_float, check_is_qdq, is_quantized


def of_nodes(*op_types: str, domain: str = "com.microsoft") -> onnx.ModelProto:
    nodes = [helper.make_node(op, ["x"], [f"y{i}"], domain=domain) for i, op in enumerate(op_types)]
    return helper.make_model(helper.make_graph(nodes, "g", [], []))


FORMS = {
    "DynamicQuantizeLinear": "quantized dynamically",
    "DynamicQuantizeLSTM": "quantized dynamically",
    "DynamicQuantizeMatMul": "quantized dynamically",
    "ConvInteger": "quantized dynamically",
    "MatMulIntegerToFloat": "quantized dynamically",
    "QLinearConv": "QOperator",
    "QGemm": "QOperator",
    "QOrderedMatMul": "QOperator",
    "MatMulNBits": "quantized weights alone",
    "MatMulBnb4": "quantized weights alone",
    "MatMulFpQ4": "quantized weights alone",
    "GatherBlockQuantized": "quantized weights alone",
    "BFPQuantizeDequantize": "form of another tool",
    "ExtendedQuantizeLinear": "form of another tool",
    "FixNeuron": "form of another tool",
}


@pytest.mark.parametrize("op_type", FORMS)
def test_every_other_form_sends_to_the_float_model(op_type: str) -> None:
    for model in (of_nodes("Relu", op_type), of_nodes(op_type, "DequantizeLinear")):
        assert is_quantized(model)
        with pytest.raises(ModelError, match=rf"{FORMS[op_type]}.*{op_type} 'y[01]'.*float model that it was made"):
            check_is_float(model)
        todo = "with Q/DQ" if FORMS[op_type] == "QOperator" else "float model .*with ModelQuantizer"
        with pytest.raises(ModelError, match=rf"{FORMS[op_type]}.*{todo}"):
            check_is_qdq(model, has_layers=False)


def test_q_dq_is_sent_to_finetune() -> None:
    for op_type in ("QuantizeLinear", "DequantizeLinear"):
        for domain in ("", "ai.onnx", "com.microsoft"):
            model = of_nodes(op_type, domain=domain)
            check_is_qdq(model, has_layers=False)
            with pytest.raises(ModelError, match=r"quantized already.*quark\.onnx\.finetune\(\)"):
                check_is_float(model)


def test_some_nodes_of_another_form_among_q_dq() -> None:
    model = of_nodes("DequantizeLinear", "QLinearAdd")
    check_is_qdq(model, has_layers=True)
    with pytest.raises(ModelError, match="QOperator"):
        check_is_qdq(model, has_layers=False)


def test_float_models() -> None:
    model = of_nodes("Conv", "Relu", "Add", "Cast", "Where", "Equal", "Sqrt", "QuickGelu", "Round")
    assert not is_quantized(model)
    check_is_float(model)
    with pytest.raises(ModelError, match="no Q/DQ: quantize it first"):
        check_is_qdq(model, has_layers=True)


def test_in_bodies_and_functions() -> None:
    inner = of_nodes("DynamicQuantizeLinear").graph
    node = helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    assert is_quantized(helper.make_model(helper.make_graph([node], "g", [], [])))
    function = helper.make_function("own", "F", ["x"], ["y0"], list(inner.node), [helper.make_opsetid("", 17)])
    assert is_quantized(helper.make_model(helper.make_graph([], "g", [], []), functions=[function]))


def test_both_entry_points_say_the_same_of_what_onnxruntime_made(tmp_path: Path) -> None:
    model, float_path, path = separable_cnn(), tmp_path / "float.onnx", tmp_path / "quantized.onnx"
    data = samples(model, 12)
    onnx.save(model, float_path)
    quantize_dynamic(float_path, path, weight_type=QuantType.QUInt8)
    dynamic = onnx.load(path)
    quantize_static(float_path, path, OnnxruntimeReader(data), quant_format=QuantFormat.QOperator)
    for quantized, form in ((dynamic, "dynamically"), (onnx.load(path), "QOperator")):
        with pytest.raises(ModelError, match=f"{form}.*: give the float model"):
            check_is_float(quantized)
        with pytest.raises(ModelError, match=f"the quantized model is quantized .*{form}"):
            finetune(model, quantized, None, Reader(data), AdaRoundConfig())
        with pytest.raises(ModelError, match="the float model is quantized: pass the model"):
            finetune(quantized, quantized, None, Reader(data), AdaRoundConfig())
