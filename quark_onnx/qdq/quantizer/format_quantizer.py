"""onnxruntime's QDQ quantizer where tensors have formats of their own, or no range."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from quark.onnx.config.spec import ScaleType
from quark.onnx.qdq.qdq_options import QdqOptions
from quark.onnx.qdq.quant_overrides import TensorFormat
from quark.onnx.qdq.quantizer.scaled_quantizer import ScaledQuantizer
from quark.onnx.qdq.weight_params import WIDEST

__all__ = ["FormatQuantizer"]


class FormatQuantizer(ScaledQuantizer):
    """Minds that tensors have formats of their own, which onnxruntime's looks at only when it comes to scales."""

    def __init__(self, *, options: QdqOptions, **arguments: Any) -> None:
        self._options = options
        super().__init__(**arguments)
        self._overshooting = {node.name for node in self.model.nodes() if _overshoots(node)}

    def scales_of(self, tensor: str, *, weight: bool) -> ScaleType:
        usual = self._options.weight_format if weight else self._options.activation_format
        return self._options.formats.get(tensor, usual).scales

    def try_replacing_upstream_output(self, upstream_output_name: str, output_name: str) -> bool:
        """Take a Relu or Clip away, if the range of its output's quantizer does its work.

        A tensor without parameters of its own, at which onnxruntime's raises KeyError, shares those of another, as the
        output of a Transpose or MaxPool does. Where nothing else reads it, it was given a range before; where several
        nodes do, it cannot be replaced, and needs none.
        """
        options = self._options
        quantizer = options.formats.get(output_name, options.activation_format)
        clips = not (quantizer.symmetric or quantizer.reaches_beyond or output_name in options.overrides)
        own = options.formats.get(upstream_output_name, quantizer) != quantizer
        if output_name in options.without_range:
            return False  # there is no quantizer that could do the clipping
        if not clips or own or self._is_always_zero(output_name) or upstream_output_name in options.overrides:
            return False
        known = upstream_output_name in self.quantization_params
        return known and bool(super().try_replacing_upstream_output(upstream_output_name, output_name))

    def quantize_activation_tensor(self, tensor_name: str) -> None:
        """Mark a tensor that can be quantized: one with a range, or a constant with a scale that float32 holds."""
        constant, without = self.initializers.get(tensor_name), self._options.without_range
        if constant is not None:
            marked = constant.data_type != onnx.TensorProto.FLOAT or _has_scale(numpy_helper.to_array(constant))
        else:
            marked = not without or tensor_name in self.tensors_range
        if marked and tensor_name not in without:
            super().quantize_activation_tensor(tensor_name)

    def quantize_weight_tensor(self, tensor_name: str) -> None:
        """Mark a weight that does not stay in float."""
        if tensor_name not in self._options.without_range:
            super().quantize_weight_tensor(tensor_name)

    def quantize_weight_tensor_per_channel(self, tensor_name: str, axis: int) -> None:
        """Mark one with a scale for each channel."""
        if tensor_name not in self._options.without_range:
            super().quantize_weight_tensor_per_channel(tensor_name, axis)

    def quantize_bias_tensor(
        self, node_name: str, bias_name: str, input_name: str, weight_name: str, beta: float = 1.0
    ) -> None:
        """Mark a bias, whose scale needs one of the input."""
        if self.is_tensor_quantized(input_name) or not self._options.without_range:
            super().quantize_bias_tensor(node_name, bias_name, input_name, weight_name, beta)

    def _is_always_zero(self, tensor: str) -> bool:
        """Then its quantizer has the range 0 to 1."""
        known = self.tensors_range.get(tensor) if self.tensors_range is not None else None
        return known is not None and not (known.lowest or known.highest)

    def quantize_output_same_as_input(self, output_name: str, input_name: str, node_name: str) -> None:
        """Let the output of a view share the parameters of its input, unless it has others, or needs them."""
        without_range = self._options.without_range and not self.is_tensor_quantized(input_name)
        if without_range or node_name in self._overshooting:
            self.quantize_activation_tensor(output_name)
            return
        shared = self._format(input_name)
        if output_name in self._options.overrides or self._options.formats.get(output_name, shared) != shared:
            self.quantize_activation_tensor(output_name)
        else:
            super().quantize_output_same_as_input(output_name, input_name, node_name)

    def _format(self, tensor: str) -> TensorFormat:
        return self._options.formats.get(self.source_of(tensor), self._options.activation_format)


def _overshoots(node: onnx.NodeProto) -> bool:
    """Whether values lie beyond the input's range, as of cubic Resize; onnxruntime lets both share a scale."""
    modes = [attribute.s for attribute in node.attribute if attribute.name == "mode"]
    return node.op_type == "Resize" and not node.domain and modes == [b"cubic"]


def _has_scale(values: NDArray[np.float32]) -> bool:
    return values.size == 0 or bool(float(values.max()) - float(values.min()) <= WIDEST)  # NaN is no less
