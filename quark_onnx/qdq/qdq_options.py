"""What is quantized, and to which types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxruntime.quantization import QuantType

from quark.onnx.config.spec import ScaleType
from quark.onnx.operators.table import OPERATORS
from quark.onnx.qdq.quant_overrides import Overrides, TensorFormat

__all__ = ["DEFAULT_OP_TYPES", "QdqOptions"]

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
            parameters (Reshape, MaxPool, ...) stays in float too, and the bias of a layer that they feed. Weights may
            be among them.
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
