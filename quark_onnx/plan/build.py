"""Build the plan: pair every layer of the quantized graph with the float graph, or say why it is left out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx.config.data_type import DataType
from quark.onnx.core_view.arrangement import Arrangement, Transposed, TransposedInput
from quark.onnx.core_view.normalized_input import NormalizedInput
from quark.onnx.core_view.output_stage import output_stage
from quark.onnx.core_view.quantizers import INTEGERS, constant_values, dequantize_parameters
from quark.onnx.core_view.weight_scales import scales_in_rows
from quark.onnx.graph.dataflow import Dataflow
from quark.onnx.layers.weight_layers import OTHER_OPERATORS, WeightLayer, weight_layer, weight_layers
from quark.onnx.operators.normalization_attributes import NormAttributes
from quark.onnx.operators.table import OPERATORS
from quark.onnx.patterns.matcher import Matcher
from quark.onnx.plan.bodies import layers_in_bodies
from quark.onnx.plan.reasons import Reason
from quark.onnx.plan.shared_weights import share_weights
from quark.onnx.plan.types import LayerPlan, Plan, QuantizedBias, QuantizedInput, QuantizedWeight, SkippedLayer
from quark.onnx.qdq.int32_bias import bias_limit

__all__ = ["build_plan"]


class _Skip(Exception):
    """Why a layer is left as it is."""

    def __init__(self, reason: Reason, **about: object) -> None:
        super().__init__()
        self.why = reason.why(**about)


def build_plan(
    float_model: onnx.ModelProto, quantized: onnx.ModelProto, op_types: Collection[str], *, output_qdq: bool = False
) -> Plan:
    """The plan for a quantized Q/DQ model and the float model that it was made from.

    A layer's float counterpart is the one with its node name, else the one with its output's name, else the one whose
    weight has the name of the quantized weight (less the suffix "_quantized"), else the only one; its weight must be
    near.

    Args:
        op_types: the op types to be tuned; of nodes of other types, those with weights that cannot be are named.
        output_qdq: layers are judged after the quantization of their output.
    """
    graph, float_graph = Dataflow(quantized), Dataflow(float_model)
    constants = _constant_shapes(graph)
    matcher, counterparts = Matcher(graph), _Counterparts(float_model, float_graph)
    entries: list[tuple[onnx.NodeProto, LayerPlan | SkippedLayer]] = []
    for node in quantized.graph.node:
        entries.extend((node, layer) for layer in layers_in_bodies(node, graph, {*op_types, *OTHER_OPERATORS}))
        if node.op_type in OTHER_OPERATORS and any(map(graph.is_constant, filter(None, node.input[:3]))):
            entries.append((node, SkippedLayer(_name(node), node.op_type, Reason.OTHER_OPERATOR.why())))
        if node.op_type not in op_types:
            continue
        try:
            layer = weight_layer(node, constants)
            if layer is None:
                raise _Skip(_not_a_layer(node, graph, constants))
            entries.append((node, _layer_plan(layer, matcher, counterparts, output_qdq=output_qdq)))
        except _Skip as skip:
            entries.append((node, SkippedLayer(_name(node), node.op_type, skip.why)))
    found = share_weights(entries, graph)
    return Plan(
        tuple(entry for entry in found if isinstance(entry, LayerPlan)),
        tuple(entry for entry in found if isinstance(entry, SkippedLayer)),
    )


def _name(node: onnx.NodeProto) -> str:
    return node.name or node.output[0]


def _constant_shapes(graph: Dataflow) -> dict[str, tuple[int, ...]]:
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    shapes = {name: tuple(t.dims) for name, t in graph.initializers.items() if t.data_type in floats}
    for node in graph.model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in graph.initializers:
            shapes[node.output[0]] = tuple(graph.initializers[node.input[0]].dims)
    return shapes


def _not_a_layer(node: onnx.NodeProto, graph: Dataflow, constants: Collection[str]) -> Reason:
    operator = OPERATORS[node.op_type]
    weight_may_be = [name for index, name in enumerate(node.input) if index in operator.weight_inputs]
    if len(node.input) < 2 or any(name in constants for name in weight_may_be):
        return Reason.UNKNOWN_KIND
    if any(map(graph.is_constant, weight_may_be)):
        return Reason.WEIGHT_IN_ANOTHER_FORM
    if operator.family.channels_last and graph.is_constant(node.input[0]):
        return Reason.WEIGHT_FIRST_IN_GEMM
    return Reason.WEIGHT_COMPUTED


class _Counterparts:
    """The float layers by name of node, output and weight.

    Attributes:
        graph: the float graph.
        matcher: of it.
    """

    def __init__(self, model: onnx.ModelProto, graph: Dataflow) -> None:
        self.graph, self.matcher = graph, Matcher(graph)
        self._layers = weight_layers(model)
        self._by_node = {layer.node_name: layer for layer in self._layers if layer.node_name}
        self._by_output = {layer.output: layer for layer in self._layers}
        self._by_weight = {layer.weight: layer for layer in self._layers}

    def find(self, layer: WeightLayer, weight_initializer: str) -> tuple[list[WeightLayer], Iterator[WeightLayer]]:
        """Layers of the kind that share a name with this one, the best of the three names first; and the others."""
        by_name = (
            self._by_node.get(layer.node_name),
            self._by_output.get(layer.output),
            self._by_weight.get(weight_initializer.removesuffix("_quantized")),
        )
        named = [found for found in by_name if found and _kind(found) == _kind(layer)]
        others = (found for found in self._layers if found not in named and _kind(found) == _kind(layer))
        return named, others


def _kind(layer: WeightLayer) -> tuple[object, ...]:
    """What a float and a quantized layer share."""
    return layer.op_type, layer.weight_shape, layer.attributes.without_bias_factor()


def _layer_plan(layer: WeightLayer, matcher: Matcher, counterparts: _Counterparts, *, output_qdq: bool) -> LayerPlan:
    graph = matcher.graph
    if layer.weight in graph.initializers:
        raise _Skip(Reason.WEIGHT_NOT_QUANTIZED)
    dequantize = graph.producer[layer.weight]
    integers = graph.initializers[dequantize.input[0]]
    if onnx.helper.tensor_dtype_to_np_dtype(integers.data_type).name not in INTEGERS:
        raise _Skip(Reason.WEIGHT_TYPE, type=onnx.TensorProto.DataType.Name(integers.data_type))
    if layer.attributes.is_stack(layer.weight_shape):
        raise _Skip(Reason.STACK_OF_MATRICES)
    if graph.is_constant(layer.input):
        raise _Skip(Reason.CONSTANT_INPUT)
    counterpart, weight = _pair(layer, graph, dequantize, counterparts)
    if counterparts.graph.is_constant(counterpart.output):
        raise _Skip(Reason.CONSTANT_TARGET)
    conv, factor = layer.attributes.convolution(layer.weight_shape), layer.attributes.factor
    if factor == 0:
        raise _Skip(Reason.ALPHA_0)
    stage = None
    if factor == 1:  # the core sees outputs without alpha
        stage = output_stage(layer, matcher, counterpart, counterparts.matcher, through_qdq=output_qdq)
    source = _quantized_input(layer, graph)
    return LayerPlan(
        node=layer.node_name or layer.output,
        op_type=layer.op_type,
        groups=conv.group if conv else 1,
        conv=conv,
        factor=factor,
        arrangement=_arrangement(layer, source, graph),
        input=source,
        target=counterpart.output,
        float_input=counterpart.input,
        stage=stage,
        weight=weight,
        bias=_quantized_bias(layer, graph, weight),
    )


def _pair(
    layer: WeightLayer,
    graph: Dataflow,
    dequantize: onnx.NodeProto,
    counterparts: _Counterparts,
) -> tuple[WeightLayer, QuantizedWeight]:
    """The float counterpart, and the weight."""
    tensor = graph.initializers[dequantize.input[0]]
    kind = INTEGERS[onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).name]

    def near(candidates: Iterable[WeightLayer]) -> Iterator[tuple[WeightLayer, QuantizedWeight]]:
        for found in candidates:
            float_weight = onnx.numpy_helper.to_array(counterparts.graph.initializers[found.weight])
            weight = _quantized_weight(layer, graph, dequantize, float_weight)
            if _is_near(weight, kind):
                yield found, weight

    named, others = counterparts.find(layer, dequantize.input[0])
    for pair in near(named):  # not all are: tools number nodes and tensors in their own ways
        return pair
    pairs = list(islice(near(others), 2))
    if len(pairs) == 1:
        return pairs[0]
    if named:
        raise _Skip(Reason.ANOTHER_WEIGHT)
    raise _Skip(Reason.NOT_IN_FLOAT_MODEL)


def _arrangement(layer: WeightLayer, source: QuantizedInput, graph: Dataflow) -> Arrangement:
    if isinstance(layer.attributes, NormAttributes):
        return _normalized_input(layer, layer.attributes, source, graph)
    if layer.attributes.transposes_input:
        return TransposedInput()
    return Transposed() if layer.attributes.comes_first else Arrangement()


def _normalized_input(
    layer: WeightLayer, norm: NormAttributes, source: QuantizedInput, graph: Dataflow
) -> NormalizedInput:
    if norm.training:
        raise _Skip(Reason.TRAINING_MODE)
    if norm.stash_type != onnx.TensorProto.FLOAT:
        raise _Skip(Reason.STASH_TYPE, type=onnx.TensorProto.DataType.Name(norm.stash_type))
    given = list(graph.producer[layer.output].input)
    if twice := [name for name in (layer.weight, layer.bias) if name and given.count(name) > 1]:
        raise _Skip(Reason.READ_TWICE, tensor=twice[0])
    statistics = [constant_values(graph, name) for name in norm.statistics]
    known = tuple(values for values in statistics if values is not None)
    if len(known) < len(statistics):
        raise _Skip(Reason.STATISTICS)
    return NormalizedInput(norm, layer.weight_shape, source.scale, source.zero_point, known)


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
        raise _Skip(Reason.WEIGHT_SCALE)
    kind, rows_q = INTEGERS[integers.dtype.name], layer.layout.rows(integers).astype(np.int32)
    qmin = kind.qmin
    if not found[1].any():
        qmin = min(kind.symmetric_qmin, int(rows_q.min()))  # what symmetric quantization leaves out stays so if it did
    return QuantizedWeight(
        initializer=dequantize.input[0],
        rows=layer.layout.rows(float_weight).astype(np.float32, copy=False),
        rows_q=rows_q,
        scale=found[0],
        zero_point=found[1],
        qmin=qmin,
        qmax=kind.qmax,
        layout=layer.layout,
    )


def _is_near(weight: QuantizedWeight, kind: DataType) -> bool:
    """Whether the integers may come from the float weight. Only what is not rounded to zero tells: zeros are near
    those of every weight."""
    nearest = np.clip(np.rint(weight.steps), kind.qmin, kind.qmax)
    distance = np.abs(nearest - weight.rows_q)[nearest != weight.zero_points]
    far = int(np.count_nonzero(distance > (kind.near or 0)))
    return 2 * far <= int(distance.size)


def _quantized_bias(layer: WeightLayer, graph: Dataflow, weight: QuantizedWeight) -> QuantizedBias | None:
    """The bias as the output sees it: its factor is part of its scale."""
    outputs, beta = len(weight.rows), layer.attributes.bias_factor
    if beta == 0:
        return None
    if layer.has_dynamic_bias:
        index = OPERATORS[layer.op_type].bias_input
        if index is not None and graph.is_constant(graph.producer[layer.output].input[index]):
            raise _Skip(Reason.BIAS_IN_ANOTHER_FORM)
        raise _Skip(Reason.BIAS_COMPUTED)
    if layer.bias is None:
        return None
    if layer.bias in graph.initializers:  # a float bias stays: only integers are changed
        real = _bias_values(layer, graph.initializers[layer.bias]).astype(np.float32)
        return _fixed_bias(real, outputs, beta)
    node = graph.producer[layer.bias]
    integers = _bias_values(layer, graph.initializers[node.input[0]])
    scale, zero_point = dequantize_parameters(node, graph)
    if scale is None or not _is_per_output(integers, outputs) or scale.size not in (1, outputs):
        raise _Skip(Reason.BIAS_SCALE)
    s = np.ascontiguousarray(np.broadcast_to(beta * scale.reshape(-1), outputs), np.float32)
    real = ((integers.reshape(-1).astype(np.int64) - zero_point.reshape(-1).astype(np.int64)) * s).astype(np.float32)
    if zero_point.any() or len(graph.readers(node.input[0])) > 1 or len(graph.readers(layer.bias)) > 1:
        return _fixed_bias(real, outputs, 1.0)  # what another node reads too must not change
    if integers.dtype.kind not in "iu":  # 4 and 2 bits
        raise _Skip(Reason.BIAS_TYPE, type=integers.dtype)
    info = np.iinfo(integers.dtype)
    if info.bits < 32:
        return QuantizedBias(node.input[0], real, s, int(info.min), int(info.max))
    # Tuning leaves room for the products, as far as there was any.
    limit = bias_limit(weight.rows.shape[1], _input_reach(layer, graph), weight.reach)
    return QuantizedBias(node.input[0], real, s, min(-limit, int(integers.min())), max(limit, int(integers.max())))


def _input_reach(layer: WeightLayer, graph: Dataflow) -> int:
    """The largest distance of a layer's integer input from its zero point; 0 where it is not of 8 bits."""
    node = graph.producer.get(layer.input)
    if node is None or node.op_type != "DequantizeLinear":
        return 0
    _, zero_point = dequantize_parameters(node, graph)
    if zero_point.dtype not in (np.uint8, np.int8):
        return 0
    info, zeros = np.iinfo(zero_point.dtype.name), zero_point.astype(int)
    return int(max((info.max - zeros).max(initial=0), (zeros - info.min).max(initial=0)))


def _bias_values(layer: WeightLayer, tensor: onnx.TensorProto) -> NDArray[Any]:
    """The values as in the model; of a normalization one axis, that of the elements of its scale."""
    values: NDArray[Any] = onnx.numpy_helper.to_array(tensor)
    if not layer.attributes.normalizes or values.size == 1:
        return values
    if values.shape != layer.weight_shape:
        raise _Skip(Reason.BIAS_SHAPE, bias=values.shape, scale=layer.weight_shape)
    return values.reshape(-1)


def _is_per_output(bias: NDArray[np.generic], outputs: int) -> bool:
    return bias.size == outputs and bias.shape[-1:] in ((outputs,), ())


def _fixed_bias(real: NDArray[np.float32], outputs: int, beta: float) -> QuantizedBias:
    if real.size != 1 and not _is_per_output(real, outputs):
        raise _Skip(Reason.BIAS_PER_ROW)
    values = np.ascontiguousarray(np.broadcast_to(beta * real.reshape(-1), outputs), np.float32)
    return QuantizedBias(None, values, np.ones(outputs, np.float32), 0, 0)
