"""Build the plan: pair every layer of the quantized graph with the float graph, or say why it is left out."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx.graph.dataflow import Dataflow
from quark.onnx.graph.normalization import NormAttributes
from quark.onnx.graph.weight_layers import ConvAttributes, GemmAttributes, WeightLayer, weight_layer, weight_layers
from quark.onnx.plan.arrangement import Arrangement, TransposedInput
from quark.onnx.plan.normalized_input import NormalizedInput
from quark.onnx.plan.output_stage import output_stage
from quark.onnx.plan.quantizers import INTEGERS, constant_values, dequantize_parameters
from quark.onnx.plan.types import LayerPlan, Plan, QuantizedBias, QuantizedInput, QuantizedWeight, SkippedLayer
from quark.onnx.plan.weight_scales import scales_in_rows
from quark.onnx.quantization.config.data_type import DataType

__all__ = ["build_plan"]

# By width, in steps: half of a layer's integers farther than this from its rounded float weight means another weight.
_FAR = {2: 0, 4: 1, 8: 2, 16: 512}


class _Skip(Exception):
    """Why a layer is left as it is."""


def build_plan(
    float_model: onnx.ModelProto, quantized: onnx.ModelProto, op_types: Collection[str], *, output_qdq: bool = False
) -> Plan:
    """The plan for a quantized Q/DQ model and the float model that it was made from.

    A layer's float counterpart is the one with its node name, else the one with its output's name, else the one whose
    weight has the name of the quantized weight (less the suffix "_quantized"); its weight must be near.

    Args:
        op_types: the op types to be tuned; nodes of other types are not mentioned.
        output_qdq: layers are judged after the quantization of their output.
    """
    graph, float_graph = Dataflow(quantized), Dataflow(float_model)
    constants = _constant_shapes(graph)
    counterparts = _Counterparts(float_model)
    layers, skipped = [], []
    for node in quantized.graph.node:
        if node.op_type not in op_types:
            continue
        try:
            layer = weight_layer(node, constants)
            if layer is None:
                raise _Skip(_not_a_layer(node, graph, constants))
            layers.append(_layer_plan(layer, graph, float_graph, counterparts, output_qdq=output_qdq))
        except _Skip as reason:
            skipped.append(SkippedLayer(node.name or node.output[0], node.op_type, str(reason)))
    return Plan(tuple(layers), tuple(skipped))


def _constant_shapes(graph: Dataflow) -> dict[str, tuple[int, ...]]:
    shapes = {name: tuple(t.dims) for name, t in graph.initializers.items() if t.data_type == onnx.TensorProto.FLOAT}
    for node in graph.model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in graph.initializers:
            shapes[node.output[0]] = tuple(graph.initializers[node.input[0]].dims)
    return shapes


def _not_a_layer(node: onnx.NodeProto, graph: Dataflow, constants: Collection[str]) -> str:
    if len(node.input) < 2 or node.input[1] in constants:
        return "this kind of layer is not tuned yet"
    if graph.is_constant(node.input[1]):
        return "its weight is neither a float32 initializer nor an integer one behind DequantizeLinear"
    return "its weight is computed by the model, not constant"


def _refuse_shared(initializer: str, dequantized: str, graph: Dataflow) -> None:
    """What another node reads too must not change."""
    if len(graph.readers(initializer)) > 1 or len(graph.readers(dequantized)) > 1:
        raise _Skip(f"its initializer {initializer!r} serves several nodes")


class _Counterparts:
    """The float layers by name of node, output and weight."""

    def __init__(self, model: onnx.ModelProto) -> None:
        layers = weight_layers(model)
        self._by_node = {layer.node_name: layer for layer in layers if layer.node_name}
        self._by_output = {layer.output: layer for layer in layers}
        self._by_weight = {layer.weight: layer for layer in layers}

    def find(self, layer: WeightLayer, weight_initializer: str) -> WeightLayer:
        candidates = (
            self._by_node.get(layer.node_name),
            self._by_output.get(layer.output),
            self._by_weight.get(weight_initializer.removesuffix("_quantized")),
        )
        for found in candidates:
            if found and _kind(found) == _kind(layer):
                return found
        raise _Skip("the float model has no such layer: neither its name, its output's nor its weight's is there")


def _kind(layer: WeightLayer) -> tuple[object, ...]:
    """What a float and a quantized layer share. Not beta: onnxruntime moves it into the scale of the bias."""
    attributes = layer.attributes
    if isinstance(attributes, GemmAttributes):
        attributes = replace(attributes, beta=1.0)
    return layer.op_type, layer.weight_shape, attributes


def _layer_plan(
    layer: WeightLayer, graph: Dataflow, float_graph: Dataflow, counterparts: _Counterparts, *, output_qdq: bool
) -> LayerPlan:
    dequantize = graph.producer.get(layer.weight)
    if dequantize is None:
        raise _Skip("its weight is not quantized")
    integers = graph.initializers[dequantize.input[0]]
    _refuse_shared(integers.name, layer.weight, graph)
    if onnx.helper.tensor_dtype_to_np_dtype(integers.data_type).name not in INTEGERS:
        raise _Skip(f"weights of type {onnx.TensorProto.DataType.Name(integers.data_type)} are not tuned yet")
    if len(layer.weight_shape) > 2 and layer.op_type == "MatMul":
        raise _Skip("its weight is a stack of matrices")
    if graph.is_constant(layer.input):
        raise _Skip("its input is constant")
    counterpart = counterparts.find(layer, integers.name)
    if float_graph.is_constant(counterpart.output):
        raise _Skip("its float output is constant")
    conv = _convolution(layer)
    gemm = layer.attributes if isinstance(layer.attributes, GemmAttributes) else GemmAttributes()
    if gemm.alpha == 0:
        raise _Skip("Gemm with alpha 0 has no weight to tune")
    weight = _quantized_weight(layer, graph, dequantize, onnx.numpy_helper.to_array(
        float_graph.initializers[counterpart.weight]))  # fmt: skip
    stage = None
    if gemm.alpha == 1:  # the core sees outputs without alpha
        stage = output_stage(layer, graph, counterpart, float_graph, through_qdq=output_qdq)
    source = _quantized_input(layer, graph)
    return LayerPlan(
        node=layer.node_name or layer.output,
        op_type=layer.op_type,
        groups=conv.group if conv else 1,
        conv=conv,
        factor=gemm.alpha,
        arrangement=_arrangement(layer, source, graph),
        input=source,
        target=counterpart.output,
        float_input=counterpart.input,
        stage=stage,
        weight=weight,
        bias=_quantized_bias(layer, graph, len(weight.rows), gemm.beta),
    )


def _convolution(layer: WeightLayer) -> ConvAttributes | None:
    match layer.attributes:
        case ConvAttributes() as conv:
            return conv
        case NormAttributes():
            elements = math.prod(layer.weight_shape)
            return ConvAttributes(
                kernel_shape=(1,), strides=(1,), dilations=(1,), pads=(0, 0), auto_pad="NOTSET", group=elements
            )
    return None


def _arrangement(layer: WeightLayer, source: QuantizedInput, graph: Dataflow) -> Arrangement:
    match layer.attributes:
        case GemmAttributes(trans_a=True):
            return TransposedInput()
        case NormAttributes() as norm:
            if norm.training:
                raise _Skip("in training mode it normalizes with the mean and variance of the batch")
            if norm.stash_type != onnx.TensorProto.FLOAT:
                kind = onnx.TensorProto.DataType.Name(norm.stash_type)
                raise _Skip(f"its mean and variance are {kind} (stash_type), not FLOAT")
            given = list(graph.producer[layer.output].input)
            if twice := [name for name in (layer.weight, layer.bias) if name and given.count(name) > 1]:
                raise _Skip(f"it reads {twice[0]!r} as two of its inputs")
            statistics = [constant_values(graph, name) for name in norm.statistics]
            known = tuple(values for values in statistics if values is not None)
            if len(known) < len(statistics):
                raise _Skip("its mean or variance is neither a float32 initializer nor an integer one with one scale")
            return NormalizedInput(layer.op_type, norm, layer.weight_shape, source.scale, source.zero_point, known)
    return Arrangement()


def _quantized_input(layer: WeightLayer, graph: Dataflow) -> QuantizedInput:
    node = graph.producer.get(layer.input)
    # Without a zero point the type of the quantized tensor is not known here: then the float tensor will do.
    if node is not None and node.op_type == "DequantizeLinear" and any(node.input[2:]):
        scale, zero_point = dequantize_parameters(node, graph)
        if scale is not None and scale.size == 1 and zero_point.dtype in (np.uint8, np.int8):
            return QuantizedInput(node.input[0], float(scale.reshape(())), int(zero_point.reshape(())))
    return QuantizedInput(layer.input, 1.0, 0)


def _quantized_weight(
    layer: WeightLayer, graph: Dataflow, dequantize: onnx.NodeProto, float_weight: NDArray[np.float32]
) -> QuantizedWeight:
    integers = onnx.numpy_helper.to_array(graph.initializers[dequantize.input[0]])
    scale, zero_point = dequantize_parameters(dequantize, graph)
    found = None if scale is None else scales_in_rows(layer, dequantize, scale, zero_point)
    if found is None:
        raise _Skip("its weight scale is neither one constant per tensor nor one per output channel or block")
    kind, rows_q = INTEGERS[integers.dtype.name], layer.layout.rows(integers).astype(np.int32)
    qmin = kind.qmin
    if not found[1].any():
        qmin = min(kind.symmetric_qmin, int(rows_q.min()))  # what symmetric quantization leaves out stays so if it did
    weight = QuantizedWeight(
        initializer=dequantize.input[0],
        rows=layer.layout.rows(float_weight).astype(np.float32, copy=False),
        rows_q=rows_q,
        scale=found[0],
        zero_point=found[1],
        qmin=qmin,
        qmax=kind.qmax,
        layout=layer.layout,
    )
    if _median_distance(weight, kind) > _FAR[kind.bits]:
        raise _Skip("its weight is not near that of the float model: was another float model quantized?")
    return weight


def _median_distance(weight: QuantizedWeight, kind: DataType) -> float:
    """In steps, of what was not rounded to zero: zeros are near those of every weight."""
    nearest = np.clip(np.rint(weight.steps), kind.qmin, kind.qmax)
    distance = np.abs(nearest - weight.rows_q)[nearest != weight.zero_points]
    return float(np.median(distance)) if distance.size else 0.0


def _quantized_bias(layer: WeightLayer, graph: Dataflow, outputs: int, beta: float) -> QuantizedBias | None:
    """The bias as the output sees it: beta is part of its scale."""
    if layer.has_dynamic_bias:
        raise _Skip("its bias is computed by the model, not constant")
    if layer.bias is None or beta == 0:
        return None
    node = graph.producer.get(layer.bias)
    if node is None:  # a float bias stays: only integers are changed
        real = _bias_values(layer, graph.initializers[layer.bias])
        return _fixed_bias(real, outputs, beta)
    integers = _bias_values(layer, graph.initializers[node.input[0]])
    scale, zero_point = dequantize_parameters(node, graph)
    if scale is None or not _is_per_output(integers, outputs) or scale.size not in (1, outputs):
        raise _Skip("its bias is not one integer per output, quantized with constant scales")
    s = np.ascontiguousarray(np.broadcast_to(beta * scale.reshape(-1), outputs), np.float32)
    real = ((integers.reshape(-1).astype(np.int64) - zero_point.reshape(-1).astype(np.int64)) * s).astype(np.float32)
    if zero_point.any():
        return _fixed_bias(real, outputs, 1.0)
    _refuse_shared(node.input[0], layer.bias, graph)
    if integers.dtype.kind not in "iu":  # 4 and 2 bits
        raise _Skip(f"a bias of type {integers.dtype} is not tuned yet")
    info = np.iinfo(integers.dtype)
    return QuantizedBias(node.input[0], real, s, int(info.min), int(info.max))


def _bias_values(layer: WeightLayer, tensor: onnx.TensorProto) -> NDArray[Any]:
    """As in the model; of a normalization one axis, that of the elements of its scale."""
    values: NDArray[Any] = onnx.numpy_helper.to_array(tensor)
    if not isinstance(layer.attributes, NormAttributes) or values.size == 1:
        return values
    if values.shape != layer.weight_shape:
        raise _Skip(f"its bias has the shape {values.shape}, its scale {layer.weight_shape}")
    return values.reshape(-1)


def _is_per_output(bias: NDArray[np.generic], outputs: int) -> bool:
    return bias.size == outputs and bias.shape[-1:] in ((outputs,), ())


def _fixed_bias(real: NDArray[np.float32], outputs: int, beta: float) -> QuantizedBias:
    if real.size != 1 and not _is_per_output(real, outputs):
        raise _Skip("its bias differs from row to row")
    values = np.ascontiguousarray(np.broadcast_to(beta * real.reshape(-1), outputs), np.float32)
    return QuantizedBias(None, values, np.ones(outputs, np.float32), 0, 0)
