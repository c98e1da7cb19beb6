"""Insert Q/DQ: from a float model and the parameters of its quantization to the quantized model.

onnxruntime.quantization's QDQ quantizer places the nodes, in the form that onnxruntime's kernels fuse; the
ranges of the activations and, where given, the scales of the weights are ours.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorData
from onnxruntime.quantization.quant_utils import add_infer_metadata
from onnxruntime.quantization.registry import CreateQDQQuantizer

from quark.onnx.config.spec import ScaleType
from quark.onnx.errors import ModelError
from quark.onnx.graph.editor import GraphEditor, reads
from quark.onnx.operators.table import OPERATORS
from quark.onnx.qdq.blockwise import input_axes, write_blocks
from quark.onnx.qdq.fused_activations import drop_qdq_before_activations
from quark.onnx.qdq.per_tensor_weights import one_scale_weights
from quark.onnx.qdq.propagated_views import quantize_propagated_views
from quark.onnx.qdq.quant_overrides import Overrides, TensorFormat, format_overrides
from quark.onnx.qdq.quantizer.scaled_quantizer import ScaledQuantizer
from quark.onnx.qdq.quantizer.stand_ins import put_back_operators, put_in_stand_ins
from quark.onnx.qdq.weight_params import WIDEST, WeightParams

__all__ = ["DEFAULT_OP_TYPES", "QdqModel", "QdqOptions", "calibration_tensors", "insert_qdq", "qdq_model"]

_LOG = logging.getLogger(__name__)

# What Quark quantizes by default to 8 bits. onnxruntime's quantizer has rules of its own for some of these
# operators; the others get its general rule, Q/DQ on every float input and output.
_NO_LAYERS = (
    "Add", "ArgMax", "AveragePool", "Clip", "Concat", "EmbedLayerNormalization", "Gather", "Gelu", "GlobalAveragePool",
    "LeakyRelu", "MaxPool", "Mul", "Pad", "Relu", "Reshape", "Resize", "Sigmoid", "Softmax", "Split", "Squeeze", "Tanh",
    "Transpose", "Unsqueeze", "Where",
)  # fmt: skip
DEFAULT_OP_TYPES = tuple(
    sorted((*_NO_LAYERS, *(name for name, operator in OPERATORS.items() if operator.quantized_by_default)))
)


@dataclass(frozen=True, kw_only=True)
class QdqOptions:
    """What is quantized, and to which types.

    Attributes:
        activation_type: QUInt8, QInt8, QUInt16 or QInt16.
        weight_type: those, QInt4 or QUInt4.
        activation_symmetric: zero point in the middle of the type. Relu and Clip then stay in the graph;
            otherwise the range of the Q/DQ behind them does their work and they go.
        weight_symmetric: the same of weights; of QInt8 and QInt16 the least integer is not used.
        activation_scales, weight_scales: which values scales have.
        activations_reach_beyond: `TensorFormat.reaches_beyond` of activations.
        per_channel: one scale per output channel of a weight that `insert_qdq` gets no parameters for.
        block: with per_channel: in MatMul and Gemm one for each block of so many inputs too; 0: not. Needs opset 21.
        op_types: the operators to quantize.
        excluded_nodes: names of nodes that stay in float.
        formats: of the tensors, by name, whose integers are others: activations, weights, and biases, which are then
            quantized as weights are.
        overrides: what of single tensors stands above all this.
        quantize_biases: False leaves those in float that have no format of their own.
        quantize_views: quantize what a view (Transpose, Reshape, MaxPool, ...) reads even if nobody else does.
        without_range: tensors that stay in float, on both sides, as no range is known for them. What shares their
            parameters (Reshape, MaxPool, ...) stays in float too, and the bias of a layer that they feed.
        fused: by op type of an activation: whether there is no Q/DQ between it and the layer before it. Of the op types
            that are not here: where the quantizer behind it is symmetric and its scale a power of two.
    """

    activation_type: QuantType = QuantType.QUInt8
    weight_type: QuantType = QuantType.QInt8
    activation_symmetric: bool = False
    weight_symmetric: bool = True
    activation_scales: ScaleType = ScaleType.Float32
    weight_scales: ScaleType = ScaleType.Float32
    activations_reach_beyond: bool = False
    per_channel: bool = False
    block: int = 0
    op_types: tuple[str, ...] = DEFAULT_OP_TYPES
    excluded_nodes: frozenset[str] = frozenset()
    formats: Mapping[str, TensorFormat] = field(default_factory=dict)
    overrides: Overrides = field(default_factory=dict)
    quantize_biases: bool = True
    quantize_views: bool = False
    without_range: frozenset[str] = frozenset()
    fused: Mapping[str, bool] = field(default_factory=dict)

    @property
    def activation_format(self) -> TensorFormat:
        """Activations without a format of their own have this one."""
        return TensorFormat(
            self.activation_type,
            self.activation_symmetric,
            scales=self.activation_scales,
            reaches_beyond=self.activations_reach_beyond,
        )

    @property
    def weight_format(self) -> TensorFormat:
        """Weights without a format of their own have this one."""
        return TensorFormat(
            self.weight_type, self.weight_symmetric, self.per_channel, block=self.block, scales=self.weight_scales
        )

    def is_fused(self, output: str, activation: str) -> bool:
        """Whether an activation of that op type, with that output, reads the layer before it in float."""
        own = self.formats.get(output, self.activation_format)
        return self.fused.get(activation, own.symmetric and own.scales is ScaleType.PowerOf2)


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
    with _onnxruntime_log():
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

    Scales and zero points are those of onnxruntime's quantize_static for the same ranges, or the next larger scales
    of the kind that the options name. The scale of a weight is enlarged where a bias would leave no room in 32 bits for
    the layer's products (`bias_limit`); where that would cost much of the weight, the bias stays in float. Before opset
    21, Q and DQ of 4 and 16 bits are onnxruntime's, of the domain com.microsoft.

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
        with _onnxruntime_log() as records:
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
    return _Quantizer(
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


class _Quantizer(ScaledQuantizer):
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
        output of a Transpose or MaxPool does. Where nothing else reads it, `_tensor_ranges` gives it parameters; where
        several nodes do, it cannot be replaced, and needs none.
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

    def quantize_bias_tensor(
        self, node_name: str, bias_name: str, input_name: str, weight_name: str, beta: float = 1.0
    ) -> None:
        """Mark a bias, whose scale needs one of the input."""
        if self.is_tensor_quantized(input_name) or not self._options.without_range:
            super().quantize_bias_tensor(node_name, bias_name, input_name, weight_name, beta)

    def _is_always_zero(self, tensor: str) -> bool:
        """Then its scale is 1, and its quantizer's range more than 0."""
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
    return replace(options, excluded_nodes=options.excluded_nodes.union(_irremovable_activations(graph)))


def _irremovable_activations(graph: onnx.GraphProto) -> Iterator[str]:
    """Relu and Clip nodes whose work the range of a Q/DQ cannot do, although onnxruntime's quantizer lets it.

    The interval of a Clip may not hold 0, as every quantizer's must, or may not be constant. The tensor
    before the activation, which would be clipped too, may be an output of the model or be read in a subgraph. The
    tensor behind it may be read in a subgraph, past the Q/DQ. The output of a Softmax gets the range 0 to 1, whatever
    the one of the Clip behind it.
    """
    editor = GraphEditor(graph)
    softmax = {node.output[0] for node in graph.node if node.op_type == "Softmax"}
    for node in graph.node:
        if node.op_type in ("Relu", "Clip"):
            before, behind = node.input[0], node.output[0]
            read_elsewhere = any(reader is None or before not in reader.input for reader in editor.readers(before))
            read_in_body = any(reader and behind not in reader.input for reader in editor.readers(behind))
            of_softmax = node.op_type == "Clip" and before in softmax
            if read_elsewhere or read_in_body or of_softmax or not _clips_around_zero(editor, node):
                yield node.name


def _clips_around_zero(editor: GraphEditor, node: onnx.NodeProto) -> bool:
    for index, sign in ((1, -1.0), (2, 1.0)):
        if index < len(node.input) and node.input[index]:
            bound = editor.constant(node, index)
            if bound is None or sign * bound.item() < 0.0:
                return False
    return True


def _overrides(params: WeightParams, quant_type: QuantType) -> list[dict[str, Any]]:
    """The entry of onnxruntime's option TensorQuantOverrides: one dict per scale."""
    rest = {"quant_type": quant_type} | ({} if params.axis is None else {"axis": params.axis})
    return [{"scale": s, "zero_point": z, **rest} for s, z in zip(params.scale, params.zero_point, strict=True)]


def _weights_in_blocks(
    graph: onnx.GraphProto, options: QdqOptions
) -> dict[str, tuple[onnx.TensorProto, int, TensorFormat]]:
    """By name: the weight, the axis of its inputs, and its format."""
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


@contextlib.contextmanager
def _onnxruntime_log() -> Iterator[list[logging.LogRecord]]:
    """Collect what onnxruntime.quantization logs on the root logger.

    It calls logging.warning() and logging.info(), which give a root logger without handlers one of theirs.
    """
    records: list[logging.LogRecord] = []

    def divert(record: logging.LogRecord) -> bool:
        if "onnxruntime" not in record.pathname:
            return True
        record.name = _LOG.name
        records.append(record)
        return False

    root, handler = logging.getLogger(), logging.NullHandler()
    root.addFilter(divert)
    root.addHandler(handler)
    try:
        yield records
    finally:
        root.removeHandler(handler)
        root.removeFilter(divert)
