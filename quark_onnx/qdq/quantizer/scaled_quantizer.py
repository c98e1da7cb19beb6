"""onnxruntime's QDQ quantizer, with scales of the kind that is asked for, and such that every bias fits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization.calibrate import TensorData
from onnxruntime.quantization.qdq_quantizer import QDQQuantTensorType
from onnxruntime.quantization.quant_utils import get_qmin_qmax_for_qType

from quark.onnx import _core
from quark.onnx.config.spec import ScaleType
from quark.onnx.layers.weight_layers import WeightLayer, weight_layer
from quark.onnx.qdq.int32_bias import bias_limit, costs_little, scales_for_bias
from quark.onnx.qdq.quantizer.indexed_model import IndexedQuantizer

__all__ = ["ScaledQuantizer"]


class ScaledQuantizer(IndexedQuantizer):
    """Takes the scale of every range to the next larger one of its kind, and the zero point along.

    Attributes:
        notes: what was done in another way than usual, a line each.
    """

    def __init__(self, **arguments: Any) -> None:
        self.notes: list[str] = []
        self._scales_of_biases: dict[str, NDArray[np.float32]] = {}  # in place of the weight's
        super().__init__(**arguments)

    def scales_of(self, tensor: str, *, weight: bool) -> ScaleType:
        """The kind of a tensor's scales. A constant that is no weight has the format of activations."""
        raise NotImplementedError

    def adjust_tensor_ranges(self) -> None:
        """Softmax: [0, 1] less one step, or a power of two would spend half of its integers on what lies above 1."""
        super().adjust_tensor_ranges()
        nodes = (node for node in self.model.nodes() if node.op_type == "Softmax" and self.should_quantize_node(node))
        for tensor in (node.output[0] for node in nodes):
            if tensor in self.tensors_range and self.scales_of(tensor, weight=False) is ScaleType.PowerOf2:
                quant_type, symmetric = self._integers(tensor)
                qmin, qmax = get_qmin_qmax_for_qType(quant_type, symmetric=symmetric)
                steps = int(qmax) - int(qmin)
                highest = np.float32(steps / (1 << steps.bit_length()))
                self.tensors_range[tensor] = TensorData(lowest=np.float32(0), highest=highest)

    def calc_graph_quant_params(self) -> dict[str, Any]:
        """The parameters of all activations.

        One that is always 0 gets the range 0 to 1: by onnxruntime's rule, a scale of 1, biases behind it would be
        rounded to multiples of the weight's scale.
        """
        found: dict[str, Any] = super().calc_graph_quant_params()
        for tensor, params in found.items():
            kind, given = self.scales_of(tensor, weight=False), self._given(tensor)
            if "scale" in given:
                continue
            low, high = self.tensors_range[tensor].range_value
            low, high = given.get("rmin", low), given.get("rmax", high)
            is_zero = not (low or high)
            if is_zero or kind is not ScaleType.Float32:
                limits = np.array([[low], [1 if is_zero else high]], np.float32)
                self._set(params.original, limits, kind, symmetric=self._integers(tensor)[1])
        return found

    def _given(self, tensor: str) -> dict[str, Any]:
        """What is given of an activation."""
        given: dict[str, Any] = self.tensor_quant_overrides.get_per_tensor_overrides(tensor, default_val={})
        return given

    def _integers(self, tensor: str) -> tuple[int, bool]:
        """Type of an activation, and whether it is symmetric."""
        given = self._given(tensor)
        quant_type = given["quant_type"].tensor_type if "quant_type" in given else self.activation_qType
        return quant_type, bool(given.get("symmetric", self.is_activation_symmetric))

    def _calc_initializer_quant_params(self) -> dict[str, Any]:
        found: dict[str, Any] = super()._calc_initializer_quant_params()
        constants = {tensor.name: tensor for tensor in self.model.model.graph.initializer}
        for name, params in found.items():
            is_weight = self.tensors_to_quantize[name].tensor_type is QDQQuantTensorType.WEIGHT
            kind = self.scales_of(name, weight=is_weight)
            if kind is ScaleType.Float32 or self.tensor_quant_overrides.overrides_scale_zp(name):
                continue
            values, axis = numpy_helper.to_array(constants[name]), params.get("axis")
            by_type = self.is_weight_symmetric(params["quant_type"]) if is_weight else self.is_activation_symmetric
            symmetric = self.tensor_quant_overrides.get(name, [{}])[0].get("symmetric", axis is not None or by_type)
            lanes = values.reshape(-1, 1) if axis is None else np.moveaxis(values, axis, -1)
            self._set(params, lanes.reshape(-1, lanes.shape[-1]), kind, symmetric=symmetric)
        return found

    def source_of(self, tensor: str) -> str:
        """The tensor that an activation shares its parameters with; itself where it has its own."""
        info = self.tensors_to_quantize.get(tensor)
        while info is not None and info.is_shared:
            tensor = info.quant_para_provider.input_name
            info = self.tensors_to_quantize.get(tensor)
        return tensor

    def _adjust_weight_quant_params_for_bias_tensors(self) -> None:
        """Enlarge the scales of weights whose bias would not fit, or leave the bias in float where that costs too much.

        onnxruntime's enlarges those of symmetric int8 and int16 weights, whatever becomes of the weights, and leaves
        no room for products.
        """
        if self.qdq_disable_weight_adjust_for_int32_bias:
            return
        constants = {tensor.name: tuple(tensor.dims) for tensor in self.model.model.graph.initializer}
        nodes = {node.name: node for node in self.model.nodes()}
        for bias, where in list(self.bias_to_quantize.items()):
            layer = weight_layer(nodes[where.node_name], constants)
            weight, inputs = self.initializer_quant_params.get(where.weight_name), self._params(where.input_name)
            if layer is not None and weight is not None and inputs is not None:
                self._fit_bias(bias, layer, weight, inputs)

    def _fit_bias(self, bias: str, layer: WeightLayer, weight: Any, inputs: Any) -> None:
        rows = layer.layout.rows(numpy_helper.to_array(self.model.get_initializer(layer.weight)))
        tensor = self.model.get_initializer(bias)
        values, scale = numpy_helper.to_array(tensor), weight["scale"]
        input_bits = np.iinfo(inputs["zero_point"].dtype).bits
        limit = bias_limit(rows.shape[1], _reach(inputs) if input_bits == 8 else 0, _reach(weight))
        larger = scales_for_bias(values, float(inputs["scale"]), scale, limit)
        if (larger <= scale).all():
            return
        power = 1.0  # what the scale of a normalization multiplies has the variance 1
        if not layer.attributes.normalizes:
            power = max(map(abs, self.tensors_range[self.source_of(layer.input)].range_value)) ** 2
        output = self._params(layer.output)
        if costs_little(rows, scale, larger, float(power), 0.0 if output is None else float(output["scale"])):
            kind = self.scales_of(layer.weight, weight=True)
            weight["scale"] = _rounded_up(larger.astype(np.float32), kind)
            return
        if input_bits == 16 or np.iinfo(weight["zero_point"].dtype).bits == 16:
            self._scales_of_biases[bias] = np.asarray(
                larger, np.float32
            )  # no integer kernel expects that of the weight
            return
        beta = self.bias_to_quantize.pop(bias).beta  # it is a part of the scale that the bias would have
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(values * np.float32(beta), values.dtype), bias))
        self.notes.append(
            f"bias {bias!r} of node {layer.node_name!r} stays in float: it reaches {np.abs(values).max():.3g}, and in "
            f"int32 would make the steps of the weight up to {(larger / scale).max():.3g} times as large; run it "
            "with session.disable_quant_qdq=1, or onnxruntime's optimisation makes it int32 all the same"
        )

    def quantize_bias_static_impl(
        self, bias_name: str, input_scale: Any, weight_scale: Any, *more: Any, **options: Any
    ) -> Any:
        """The integers of a bias, whose scale may be one of its own."""
        own = self._scales_of_biases.get(bias_name, weight_scale)
        return super().quantize_bias_static_impl(bias_name, input_scale, own, *more, **options)

    def _params(self, tensor: str) -> Any:
        """The parameters of an activation that is quantized, or None."""
        tensor = self.source_of(tensor)
        found = self.quantization_params.get(tensor) if tensor in self.tensors_to_quantize else None
        return found and found.original

    @staticmethod
    def _set(params: Any, values: NDArray[np.floating], kind: ScaleType, *, symmetric: bool) -> None:
        """The parameters of some ranges: those of the columns of values."""
        qmin, qmax = get_qmin_qmax_for_qType(params["quant_type"], symmetric=symmetric)
        found = [
            _core.affine_from_range(float(low), float(high), int(qmin), int(qmax), symmetric, kind.name)
            for low, high in zip(values.min(axis=0), values.max(axis=0), strict=True)
        ]
        shape = params["scale"].shape
        params["scale"] = np.array([scale for scale, _ in found], np.float32).reshape(shape)
        params["zero_point"] = np.array([zero for _, zero in found], params["zero_point"].dtype).reshape(shape)


def _reach(params: Any) -> int:
    """The largest distance of a quantizer's integers from its zero points."""
    zero_points, is_signed = params["zero_point"].astype(np.int64), params["zero_point"].dtype.kind == "i"
    symmetric = is_signed and not zero_points.any()  # then the lowest integer is not used
    qmin, qmax = get_qmin_qmax_for_qType(params["quant_type"], symmetric=symmetric)
    return int(max((int(qmax) - zero_points).max(), (zero_points - int(qmin)).max()))


def _rounded_up(scales: NDArray[np.float32], kind: ScaleType) -> NDArray[np.float32]:
    """The next larger scales of a kind; those of that kind stay."""
    if kind is ScaleType.Float32:
        return scales
    found = [_core.affine_from_range(0.0, float(scale), 0, 1, False, kind.name)[0] for scale in scales.reshape(-1)]
    return np.array(found, np.float32).reshape(scales.shape)
