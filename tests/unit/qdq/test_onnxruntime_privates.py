"""A canary: what qdq/ overrides or reads of onnxruntime.quantization, without a promise that it stays."""

from __future__ import annotations

import inspect

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantType, calibrate, quant_utils
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer, QDQQuantTensorType
from onnxruntime.quantization.registry import CreateQDQQuantizer
from small_models import build

from quark.onnx.qdq.quantizer.format_quantizer import FormatQuantizer

# Method: the parameters that we pass on or take over. More with a default may follow.
METHODS = {
    "adjust_tensor_ranges": ("self",),
    "calc_graph_quant_params": ("self",),
    "_calc_initializer_quant_params": ("self",),
    "_adjust_weight_quant_params_for_bias_tensors": ("self",),
    "try_replacing_upstream_output": ("self", "upstream_output_name", "output_name"),
    "quantize_output_same_as_input": ("self", "output_name", "input_name", "node_name"),
    "quantize_activation_tensor": ("self", "tensor_name"),
    "quantize_weight_tensor": ("self", "tensor_name"),
    "quantize_weight_tensor_per_channel": ("self", "tensor_name", "axis"),
    "is_tensor_quantized": ("self", "tensor_name"),
    "quantize_bias_tensor": ("self", "node_name", "bias_name", "input_name", "weight_name"),
    "is_weight_symmetric": ("self", "weight_quant_type"),
    "should_quantize_node": ("self", "node"),
    "quantize_model": ("self",),
    "quantize_bias_static_impl": ("self", "bias_name", "input_scale", "weight_scale", "beta", "bias_scale_dtype"),
    "is_input_a_initializer": ("self", "input_name"),
    "_quantize_normal_tensors": ("self",),
    "_quantize_bias_tensors": ("self",),
    "_get_tensor_quantization_scale": ("self", "tensor_name", "consumer_node_name"),
}  # fmt: skip
ARGUMENTS = {
    "model", "per_channel", "reduce_range", "weight_qType", "activation_qType", "tensors_range", "nodes_to_quantize",
    "nodes_to_exclude", "op_types_to_quantize", "extra_options",
}  # fmt: skip
FUNCTIONS = {
    quant_utils.get_qmin_qmax_for_qType: ("qType", "reduce_range", "symmetric"),
    quant_utils.add_infer_metadata: ("model",),
    CreateQDQQuantizer: ("onnx_quantizer", "node"),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_its_parameters(name: str) -> None:
    method = getattr(QDQQuantizer, name, None)
    assert method is not None, f"onnxruntime's QDQQuantizer has no {name} any more: see quark_onnx/qdq/quantizer"
    signature = inspect.signature(method).parameters
    found = tuple(signature)[: len(METHODS[name])]
    assert found == METHODS[name], f"QDQQuantizer.{name} takes {found} now: see its callers in graph/"
    required = [p.name for p in signature.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    assert set(required) <= set(METHODS[name]), f"QDQQuantizer.{name} needs {required} now"


def test_every_override_is_listed() -> None:
    """What a subclass in qdq/quantizer redefines of onnxruntime's class is in METHODS."""
    ours = [cls for cls in FormatQuantizer.__mro__ if cls.__module__.startswith("quark.onnx")]
    overridden = {name for cls in ours for name in vars(cls) if hasattr(QDQQuantizer, name)}
    kept = {name for name in overridden if not name.startswith("__")}
    assert kept <= METHODS.keys(), f"not in METHODS: {sorted(kept - METHODS.keys())}"


@pytest.mark.parametrize(("function", "names"), FUNCTIONS.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_a_function_has_its_parameters(function: object, names: tuple[str, ...]) -> None:
    found = tuple(inspect.signature(function).parameters)[: len(names)]
    assert found == names, f"{function.__name__} takes {found} now"


def test_the_constructor_takes_our_arguments() -> None:
    missing = ARGUMENTS - inspect.signature(QDQQuantizer.__init__).parameters.keys()
    assert not missing, f"QDQQuantizer takes no {sorted(missing)} any more: see qdq/insert_qdq.py"


class Checked(QDQQuantizer):
    """Looks at itself where qdq/quantizer/scaled_quantizer.py does."""

    def _adjust_weight_quant_params_for_bias_tensors(self) -> None:
        for name in (
            "model", "tensors_range", "tensors_to_quantize", "tensor_quant_overrides", "activation_qType",
            "is_activation_symmetric", "initializer_quant_params", "quantization_params", "bias_to_quantize",
            "qdq_disable_weight_adjust_for_int32_bias", "quantized_value_map",
        ):  # fmt: skip
            assert hasattr(self, name), f"QDQQuantizer has no attribute {name} any more"
        for name in ("nodes", "initializer", "get_initializer"):
            assert hasattr(self.model, name), f"ONNXModel has no {name} any more"
        for name in ("get_per_tensor_overrides", "overrides_scale_zp", "get"):
            assert hasattr(self.tensor_quant_overrides, name), f"TensorQuantOverrides has no {name} any more"
        assert self.tensors_to_quantize["w"].tensor_type is QDQQuantTensorType.WEIGHT
        shared = self.tensors_to_quantize["y"]
        assert shared.is_shared
        assert shared.quant_para_provider.input_name == "t"
        weight = self.initializer_quant_params["w"]
        assert weight.get("axis") is None
        assert {"scale", "zero_point", "quant_type"} <= set(weight)
        assert {"scale", "zero_point"} <= set(self.quantization_params["x"].original)
        bias = self.bias_to_quantize["b"]
        assert (bias.input_name, bias.weight_name, bias.beta) == ("x", "w", 1.0)
        self.was_checked = True


def test_a_quantizer_has_the_attributes_that_are_read() -> None:
    """And the entries of its tables theirs."""
    data = calibrate.TensorData(lowest=np.float32(-1), highest=np.float32(1))
    assert data.range_value == (-1, 1)
    text = "(float[N,4] x) => (float[N,2] y) { t = Gemm(x, w, b) [view] y = Reshape(t, s) }"
    model = onnx.shape_inference.infer_shapes(build(text, w=np.ones((4, 2)), b=np.ones(2), s=np.array([-1, 2])))
    quant_utils.add_infer_metadata(model)
    quantizer = Checked(
        model=model, per_channel=False, reduce_range=False, weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8, tensors_range=dict.fromkeys(("x", "t", "y"), data), nodes_to_quantize=[],
        nodes_to_exclude=[], op_types_to_quantize=["Gemm", "Reshape"], extra_options={},
    )  # fmt: skip
    quantizer.quantize_model()
    assert quantizer.was_checked, "quantize_model() calls _adjust_weight_quant_params_for_bias_tensors() no more"
