"""Insert Q/DQ: from a float model and the parameters of its quantization to the quantized model.

onnxruntime.quantization's QDQ quantizer places the nodes, in the form that onnxruntime's kernels fuse; the
ranges of the activations and, where given, the scales of the weights are ours.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorData
from onnxruntime.quantization.quant_utils import add_infer_metadata
from onnxruntime.quantization.registry import CreateQDQQuantizer

from quark.onnx.errors import ModelError
from quark.onnx.graph.editor import reads
from quark.onnx.qdq.blockwise import input_axes, write_blocks
from quark.onnx.qdq.fused_activations import drop_qdq_before_activations
from quark.onnx.qdq.irremovable_activations import irremovable_activations
from quark.onnx.qdq.per_tensor_weights import one_scale_weights
from quark.onnx.qdq.propagated_views import quantize_propagated_views
from quark.onnx.qdq.qdq_options import QdqOptions
from quark.onnx.qdq.quant_overrides import Overrides, TensorFormat, format_overrides
from quark.onnx.qdq.quantizer.diverted_log import diverted_log
from quark.onnx.qdq.quantizer.format_quantizer import FormatQuantizer
from quark.onnx.qdq.quantizer.stand_ins import put_back_operators, put_in_stand_ins
from quark.onnx.qdq.weight_params import WeightParams

__all__ = ["QdqModel", "calibration_tensors", "insert_qdq", "qdq_model"]

_LOG = logging.getLogger(__name__)


def calibration_tensors(model: onnx.ModelProto, options: QdqOptions) -> list[str]:
    """The activations whose range `insert_qdq` needs, in graph order.

    These are the tensors that get Q/DQ with parameters of their own, as onnxruntime's quantizer decides. Left
    out are outputs of operators that keep the parameters of their input (Reshape, MaxPool, ...), inputs of a
    Relu or Clip that get the range of its output, and the output of Softmax, which gets [0, 1].

    Args:
        model: a prepared model; not changed.
        options: those that `insert_qdq` will get.
    """
    options = _with_irremovable_excluded(model.graph, options)
    # Each range is an object of its own: where the quantizer puts another one in its place, it shows.
    ranges = {name: _tensor_data(0.0, 1.0) for name in _float_activations(model.graph)}
    owner = {id(data): name for name, data in ranges.items()}
    with diverted_log(_LOG.name):
        quantizer = _quantizer(model, dict(ranges), {}, options)
        for node in quantizer.model.nodes():
            if quantizer.should_quantize_node(node):
                CreateQDQQuantizer(quantizer, node).quantize()
    needed = {
        owner.get(id(quantizer.tensors_range[name]))
        for name, info in quantizer.tensors_to_quantize.items()
        if name in quantizer.tensors_range and not info.is_shared
    }
    return [name for name in ranges if name in needed]


@dataclass(frozen=True, eq=False)
class QdqModel:
    """A quantized model.

    Attributes:
        model: its nodes are in topological order.
        notes: what was done in another way than usual, a line each.
    """

    model: onnx.ModelProto
    notes: tuple[str, ...]


def insert_qdq(
    model: onnx.ModelProto,
    ranges: Mapping[str, tuple[float, float]],
    weight_params: Mapping[str, WeightParams],
    options: QdqOptions,
) -> onnx.ModelProto:
    """The model that `qdq_model` makes."""
    return qdq_model(model, ranges, weight_params, options).model


def qdq_model(
    model: onnx.ModelProto,
    ranges: Mapping[str, tuple[float, float]],
    weight_params: Mapping[str, WeightParams],
    options: QdqOptions,
) -> QdqModel:
    """Make the quantized model: Q/DQ on activations, integer weights, int32 biases.

    Scales and zero points are those of onnxruntime's quantize_static for the same ranges, or the next larger scales of
    the kind that the options name; what is always 0 gets the range 0 to 1. The scale of a weight is enlarged where a
    bias would leave no room in 32 bits for the layer's products (`bias_limit`); where that would cost much of the
    weight, the bias stays in float. Before opset 21, Q and DQ of 4 and 16 bits are onnxruntime's, of the domain
    com.microsoft.

    Args:
        model: a prepared float model; not changed.
        ranges: tensor -> (lowest, highest) for at least the `calibration_tensors`; widened to hold 0.
        weight_params: weight initializer -> its parameters, or a bias that has a format. One that is missing gets those
            of its minimum and maximum.
        options: what is quantized.

    Raises:
        ModelError: a range is missing or not finite, a weight's parameters do not fit it, or a scale would not be a
            positive number.
    """
    options = _with_irremovable_excluded(model.graph, options)
    weight_formats = {name: options.formats.get(name, options.weight_format) for name in weight_params}
    overrides = {
        name: _overrides(params, weight_formats[name].quant_type)
        for name, params in weight_params.items()
        if not params.block
    }
    try:
        with diverted_log(_LOG.name) as records:
            quantizer = _quantizer(model, _tensor_ranges(model.graph, ranges, options), overrides, options)
            result: onnx.ModelProto = quantizer.quantize_model()
    except ValueError as error:
        raise ModelError(f"onnxruntime cannot quantize the model: {error}") from error
    for record in records:
        if _LOG.isEnabledFor(record.levelno):
            _LOG.handle(record)
    _avoid_lowest_integer(result.graph, [name for name, own in weight_formats.items() if own.symmetric])
    write_blocks(result.graph, _weights_in_blocks(model.graph, options), weight_params)
    put_back_operators(result.graph, model.graph)
    _sort_nodes(result.graph)
    drop_qdq_before_activations(result, options.is_fused)
    quantize_propagated_views(result)
    _check_scales(result.graph)
    return QdqModel(result, tuple(quantizer.notes))


def _quantizer(
    model: onnx.ModelProto,
    ranges: dict[str, TensorData],
    overrides: Overrides,
    options: QdqOptions,
) -> Any:
    """onnxruntime's quantizer; `overrides` are those of the weights whose scales are known."""
    one_scale = {name: [{"quant_type": options.weight_type}] for name in one_scale_weights(model)}
    overrides = {
        **(one_scale if options.per_channel else {}),
        **format_overrides(model.graph, options.formats, options.weight_format, one_scale),
        **overrides,
        **options.overrides,
    }
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    op_types, excluded = put_in_stand_ins(copy.graph, options.op_types, options.excluded_nodes)
    add_infer_metadata(copy)  # or the quantizer writes the model to a file to infer the shapes that it has
    return FormatQuantizer(
        options=options,
        model=copy,
        per_channel=options.per_channel,
        reduce_range=False,
        weight_qType=options.weight_type,
        activation_qType=options.activation_type,
        tensors_range=ranges,
        nodes_to_quantize=[],
        nodes_to_exclude=excluded,
        op_types_to_quantize=op_types,
        extra_options={
            "ActivationSymmetric": options.activation_symmetric,
            "WeightSymmetric": options.weight_symmetric,
            "TensorQuantOverrides": overrides,
            "QuantizeBias": options.quantize_biases,
            "QDQDisableWeightAdjustForInt32Bias": not options.quantize_biases,
            "ForceQuantizeNoInputCheck": options.quantize_views,
        },
    )


def _tensor_data(lowest: float, highest: float) -> TensorData:
    return TensorData(lowest=np.float32(lowest), highest=np.float32(highest))


def _float_activations(graph: onnx.GraphProto) -> list[str]:
    """The float32 inputs and node outputs, in graph order."""
    values = (*graph.input, *graph.value_info, *graph.output)
    floats = {v.name for v in values if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    made = (name for node in graph.node for name in node.output)
    return [name for name in (*(value.name for value in graph.input), *made) if name in floats]


def _tensor_ranges(
    graph: onnx.GraphProto, ranges: Mapping[str, tuple[float, float]], options: QdqOptions
) -> dict[str, TensorData]:
    for name, (lowest, highest) in ranges.items():
        if not (np.isfinite(lowest) and np.isfinite(highest) and lowest <= highest):
            raise ModelError(f"tensor {name!r} has no finite range: lowest {lowest}, highest {highest}")
    result = {name: _tensor_data(*limits) for name, limits in ranges.items()}
    # The quantizer looks up the input of a Relu or Clip before it gives it the range of the output.
    readers = Counter(name for node in graph.node for name in node.input)
    for node in reversed(graph.node):
        if node.op_type not in ("Relu", "Clip") or node.op_type not in options.op_types:
            continue
        if node.name not in options.excluded_nodes and readers[node.input[0]] == 1 and node.output[0] in result:
            result.setdefault(node.input[0], result[node.output[0]])
    return result


def _with_irremovable_excluded(graph: onnx.GraphProto, options: QdqOptions) -> QdqOptions:
    return replace(options, excluded_nodes=options.excluded_nodes.union(irremovable_activations(graph)))


def _overrides(params: WeightParams, quant_type: QuantType) -> list[dict[str, Any]]:
    """The entry of onnxruntime's option TensorQuantOverrides: one dict per scale."""
    rest = {"quant_type": quant_type} | ({} if params.axis is None else {"axis": params.axis})
    return [{"scale": s, "zero_point": z, **rest} for s, z in zip(params.scale, params.zero_point, strict=True)]


def _weights_in_blocks(
    graph: onnx.GraphProto, options: QdqOptions
) -> dict[str, tuple[onnx.TensorProto, int, TensorFormat]]:
    """The weight, the axis of its inputs, and its format, by name."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found = {}
    for name, axis in input_axes(graph).items():
        own = options.formats.get(name, options.weight_format)
        if own.block and name not in options.overrides:
            found[name] = (constants[name], axis, own)
    return found


def _avoid_lowest_integer(graph: onnx.GraphProto, weights: Iterable[str]) -> None:
    """Raise -128 to -127 (or -32768): a scale that clips the weight lets onnxruntime's rounding use the whole type."""
    quantized = {f"{name}_quantized" for name in weights}
    for tensor in graph.initializer:
        if tensor.name in quantized and tensor.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.INT16):
            integers = numpy_helper.to_array(tensor)
            lowest = np.array(-np.iinfo(integers.dtype).max, integers.dtype)
            tensor.CopyFrom(numpy_helper.from_array(np.maximum(integers, lowest), tensor.name))


def _check_scales(graph: onnx.GraphProto) -> None:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale = numpy_helper.to_array(constants[node.input[1]])
            if not (np.isfinite(scale).all() and (scale > 0).all()):
                raise ModelError(
                    f"tensor {node.input[0]!r} cannot be quantized: its scale would be {scale.min()} to {scale.max()}, "
                    "as the values that it comes from are too large or too small. Exclude the node, or give it a range"
                )


def _sort_nodes(graph: onnx.GraphProto) -> None:
    """Move each node that the quantizer appended to just before its first reader."""
    nodes = list(graph.node)
    producer = {name: node for node in nodes for name in node.output}
    order: dict[int, onnx.NodeProto] = {}
    for node in nodes:
        stack = [node]
        while stack:
            makers = (producer[name] for name in reads(stack[-1]) if name in producer)
            pending = [maker for maker in makers if id(maker) not in order]
            if pending:
                stack += pending
            else:
                last = stack.pop()
                order[id(last)] = last
    graph.ClearField("node")
    graph.node.extend(order.values())
