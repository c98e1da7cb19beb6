"""onnxruntime's QDQ quantizer, with scales that are powers of two or int16 mantissas where that is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization.calibrate import TensorData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer, QDQQuantTensorType
from onnxruntime.quantization.quant_utils import get_qmin_qmax_for_qType

from quark.onnx import _core
from quark.onnx.quantization.config.spec import ScaleType

__all__ = ["ScaledQuantizer"]


class ScaledQuantizer(QDQQuantizer):  # type: ignore[misc]  # onnxruntime has no types
    """Takes the scale of every range to the next larger one of its kind, and the zero point along.

    Args:
        activations: the kind of the scales of activations, and of constants that take their type (of an Add, say).
        weights: the kind of the scales of weights.
        **arguments: of onnxruntime's quantizer.
    """

    def __init__(self, *, activations: ScaleType, weights: ScaleType, **arguments: Any) -> None:
        self._activations, self._weights = activations, weights
        super().__init__(**arguments)  # computes the parameters of the activations

    def adjust_tensor_ranges(self) -> None:
        """Softmax: [0, 1] less one step, or a power of two would spend half of its integers on what lies above 1."""
        super().adjust_tensor_ranges()
        if self._activations is not ScaleType.PowerOf2 or self.tensors_range is None:
            return
        qmin, qmax = get_qmin_qmax_for_qType(self.activation_qType, symmetric=self.is_activation_symmetric)
        steps = int(qmax) - int(qmin)
        highest = np.float32(steps / (1 << steps.bit_length()))
        for node in self.model.nodes():
            if node.op_type == "Softmax" and self.should_quantize_node(node):
                self.tensors_range[node.output[0]] = TensorData(lowest=np.float32(0), highest=highest)

    def calc_quant_params(self, tensor_data: TensorData, quant_overrides: dict[str, Any]) -> Any:
        """The parameters of an activation with a range."""
        found = super().calc_quant_params(tensor_data, quant_overrides)
        if self._activations is not ScaleType.Float32 and "scale" not in quant_overrides:
            low = quant_overrides.get("rmin", tensor_data.range_value[0])
            high = quant_overrides.get("rmax", tensor_data.range_value[1])
            symmetric = bool(quant_overrides.get("symmetric", self.is_activation_symmetric))
            self._set(found, np.array([[low], [high]]), self._activations, symmetric=symmetric)
        return found

    def _calc_initializer_quant_params(self) -> dict[str, Any]:
        found: dict[str, Any] = super()._calc_initializer_quant_params()
        constants = {tensor.name: tensor for tensor in self.model.initializer()}
        for name, params in found.items():
            is_weight = self.tensors_to_quantize[name].tensor_type is QDQQuantTensorType.WEIGHT
            kind = self._weights if is_weight else self._activations
            if kind is ScaleType.Float32 or self.tensor_quant_overrides.overrides_scale_zp(name):
                continue
            values, axis = numpy_helper.to_array(constants[name]), params.get("axis")
            by_type = self.is_weight_symmetric(params["quant_type"]) if is_weight else self.is_activation_symmetric
            symmetric = self.tensor_quant_overrides.get(name, [{}])[0].get("symmetric", axis is not None or by_type)
            lanes = values.reshape(-1, 1) if axis is None else np.moveaxis(values, axis, -1)
            self._set(params, lanes.reshape(-1, lanes.shape[-1]), kind, symmetric=symmetric)
        return found

    def _adjust_weight_quant_params_for_bias_tensors(self) -> None:
        super()._adjust_weight_quant_params_for_bias_tensors()
        if self._weights is not ScaleType.Float32:
            for bias in self.bias_to_quantize.values():
                params = self.initializer_quant_params.get(bias.weight_name)
                if params is not None:
                    params["scale"] = _rounded_up(params["scale"], self._weights)

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


def _rounded_up(scales: NDArray[np.float32], kind: ScaleType) -> NDArray[np.float32]:
    """The next larger scales of a kind; those of that kind stay."""
    found = [_core.affine_from_range(0.0, float(scale), 0, 1, False, kind.name)[0] for scale in scales.reshape(-1)]
    return np.array(found, np.float32).reshape(scales.shape)
