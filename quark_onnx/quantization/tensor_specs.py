"""From a configuration and a model to the spec of each tensor, and what of it quantizer and calibration need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx

from quark.onnx.calibration.activation_range import ActivationRange
from quark.onnx.calibration.calibrate import CalibrationSettings
from quark.onnx.calibration.weight_grid import WeightGrid
from quark.onnx.calibration.weight_range import WeightRange
from quark.onnx.config.data_type import DATA_TYPES, Int32, types_for
from quark.onnx.config.qconfig import QConfig
from quark.onnx.config.spec import (
    CalibMethod,
    Int8Spec,
    QLayerConfig,
    QTensorConfig,
    QuantGranularity,
    ScaleType,
    UInt8Spec,
)
from quark.onnx.config.validate import nearest, problem
from quark.onnx.errors import ConfigError, ModelError, UnsupportedError
from quark.onnx.graph.opset import opset_of
from quark.onnx.layers.weight_layers import WeightLayer
from quark.onnx.mixed_precision.formats import Formats
from quark.onnx.operators.table import NORMALIZATIONS
from quark.onnx.qdq.blockwise import BLOCKWISE_OPSET
from quark.onnx.qdq.number_formats import QUANT_TYPES, qdq_opset
from quark.onnx.qdq.qdq_options import QdqOptions
from quark.onnx.qdq.quant_overrides import TensorFormat, given_overrides
from quark.onnx.qdq.tensor_roles import TensorRoles, tensor_roles
from quark.onnx.quantization.node_scope import NodeScope

__all__ = ["TensorSpecs", "needed_opset", "tensor_specs"]

_PERCENTILE = 99.999
FLOAT_SHARE = 0.35  # MaxFloatShare
_CANDIDATES = (99.99, 99.999, 99.99999)  # of LayerwisePercentile
_LEVELS = 128  # of Entropy
_FUSED = ("Relu", "LeakyRelu", "PRelu", "Clip")
_BLOCK_SIZE = 32
_ACTIVATION_TYPES, _WEIGHT_TYPES = (
    tuple(dict.fromkeys(kind.quantizer for kind in types_for(role))) for role in ("activation", "weight")
)
_OVERRIDES = "QConfig.extra_options['TensorQuantOverrides']"


@dataclass(frozen=True)
class TensorSpecs:
    """The specs of a model's tensors.

    Attributes:
        scope: the nodes that are quantized.
        activation: of the activations that are not in `activations`.
        weight: of the weights that are not in `weights`.
        activations, weights, biases: of the tensors, by name, with a spec of their own.
        options: the extra options.
        in_float: activations that stay in float.
    """

    scope: NodeScope
    activation: QTensorConfig
    weight: QTensorConfig
    activations: Mapping[str, QTensorConfig]
    weights: Mapping[str, QTensorConfig]
    biases: Mapping[str, QTensorConfig]
    options: Mapping[str, Any]
    in_float: frozenset[str] = frozenset()

    def with_formats(self, formats: Formats) -> TensorSpecs:
        """Return the specs with others of single tensors."""
        given = {name: spec for name, spec in formats.activations.items() if spec is not None}
        return replace(
            self,
            activations={**self.activations, **given},
            weights={**self.weights, **formats.weights},
            in_float=self.in_float.union(formats.activations.keys() - given.keys()),
        )

    def with_twins(self, twins: Mapping[str, str]) -> TensorSpecs:
        """Return the specs for a model with more activations, each of which takes the spec of another."""
        given = {new: self.activations[tensor] for new, tensor in twins.items() if tensor in self.activations}
        return replace(self, activations={**self.activations, **given})

    def qdq_options(self) -> QdqOptions:
        """What is quantized, and to which types."""
        overrides = given_overrides(self.options.get("TensorQuantOverrides", {}))
        specs = {**self.weights, **self.biases}
        formats = {name: self._format(spec) for name, spec in specs.items()}
        formats = {name: self._activation_format(spec) for name, spec in self.activations.items()} | formats
        activation, weight = self._activation_format(self.activation), self._format(self.weight)
        return QdqOptions(
            activation_type=activation.quant_type,
            weight_type=weight.quant_type,
            activation_symmetric=activation.symmetric,
            weight_symmetric=weight.symmetric,
            activation_scales=activation.scales,
            weight_scales=weight.scales,
            activations_reach_beyond=activation.reaches_beyond,
            per_channel=weight.per_channel,
            block=weight.block,
            op_types=self.scope.op_types,
            excluded_nodes=self.scope.excluded,
            formats=formats,
            overrides=overrides,
            quantize_biases=self.options.get("QuantizeBias", True),
            quantize_views=self.options.get("ForceQuantizeNoInputCheck", False),
            fused={kind: self.options[name] for kind in _FUSED if (name := f"RemoveQDQConv{kind}") in self.options},
        )

    @property
    def max_float_share(self) -> float:
        """How much of the activations may stay in float to save the model, 0 to 1."""
        default = 0.0 if self.activation.scale_type is ScaleType.PowerOf2 else FLOAT_SHARE
        return float(self.options.get("MaxFloatShare", default))

    def calibration_settings(self) -> CalibrationSettings:
        """How ranges and scales are chosen."""
        given = dict.fromkeys(self.options.get("TensorQuantOverrides", ()))
        return CalibrationSettings(
            self._range(self.activation),
            self._searched(self.weight),
            {name: self._range(spec) for name, spec in self.activations.items()},
            {name: self._searched(spec) for name, spec in self.weights.items()} | given,
        )

    def weight_ranges(self, layers: Iterable[WeightLayer]) -> dict[str, WeightRange]:
        """Return the ranges of weights and biases that follow from themselves, unless they are minimum and maximum."""
        specs = {layer.weight: self.weights.get(layer.weight, self.weight) for layer in layers}
        found = {name: self._weight_range(spec) for name, spec in specs.items() if self._searched(spec) is None}
        found |= {name: self._weight_range(spec) for name, spec in self.biases.items()}
        given = self.options.get("TensorQuantOverrides", ())
        return {name: chosen for name, chosen in found.items() if chosen is not None and name not in given}

    def _weight_range(self, spec: QTensorConfig) -> WeightRange | None:
        match spec.weight_calibration:
            case CalibMethod.MinMax:
                return None
            case CalibMethod.Percentile:
                return WeightRange(self._grid(spec), self.options.get("Percentile", _PERCENTILE))
        return WeightRange(self._grid(spec))  # the error of a bias is the output's

    def _range(self, spec: QTensorConfig) -> ActivationRange:
        options, method = self.options, spec.activation_calibration
        one = (options.get("Percentile", _PERCENTILE),)
        several = options.get("PercentileCandidates", _CANDIDATES)
        return ActivationRange(
            method=method,
            qmin=_lowest(spec),
            qmax=spec.data_type.qmax,
            symmetric=spec.symmetric,
            scales=spec.scale_type,
            percentiles=several if method is CalibMethod.LayerwisePercentile else one,
            symmetric_cut=options.get("CalibTensorRangeSymmetric"),
            squared=options.get("LWPMetric") == "mse",
            levels=options.get("NumQuantizedBins", _LEVELS),
        )

    def _activation_format(self, spec: QTensorConfig) -> TensorFormat:
        return replace(self._format(spec), per_channel=False, reaches_beyond=self._range(spec).is_symmetric)

    def _format(self, spec: QTensorConfig) -> TensorFormat:
        kind = QUANT_TYPES[spec.data_type.name]
        return TensorFormat(kind, spec.symmetric, _per_channel(spec), block=self._block(spec), scales=spec.scale_type)

    def _searched(self, spec: QTensorConfig) -> WeightGrid | None:
        """The grid of a weight whose scale is chosen by output error."""
        return self._grid(spec) if spec.weight_calibration is CalibMethod.MinOutputMSE else None

    def _grid(self, spec: QTensorConfig) -> WeightGrid:
        return WeightGrid(
            _lowest(spec),
            spec.data_type.qmax,
            spec.symmetric,
            _per_channel(spec),
            block=self._block(spec),
            scales=spec.scale_type,
        )

    def _block(self, spec: QTensorConfig) -> int:
        size: int = self.options.get("BlockSize", _BLOCK_SIZE)
        return size if spec.quant_granularity is QuantGranularity.Group else 0


def needed_opset(config: QConfig) -> int:
    """The first opset whose Q/DQ have all formats that a configuration names."""
    layers = (config.global_config, *config.specific_layer_config, *config.layer_type_config)
    specs = [spec for layer in layers if layer is not None for spec in layer.specs]
    overrides = config.extra_options.get("TensorQuantOverrides", {}).values()
    given = [entry["quant_type"] for entries in overrides for entry in entries if "quant_type" in entry]
    by_name = {kind.name: name for name, kind in QUANT_TYPES.items()}
    in_blocks = any(spec.quant_granularity is QuantGranularity.Group for spec in specs)
    kinds = [*(spec.data_type for spec in specs), *(DATA_TYPES[by_name[kind]] for kind in given if kind in by_name)]
    return max(qdq_opset(kinds), BLOCKWISE_OPSET if in_blocks else 0)


def tensor_specs(config: QConfig, model: onnx.ModelProto, original: onnx.ModelProto) -> TensorSpecs:
    """The specs of the tensors of a prepared model.

    Args:
        original: the model as it was before, whose nodes the configuration may name too.

    Raises:
        ConfigError: the configuration names what is not there or is not quantized, or gives a tensor two specs that
            exclude each other.
        ModelError: there are scales of blocks, and the model's opset does not have them.
    """
    scope = NodeScope(config, model, original)
    specs = _Specs(config, model, scope)
    for entry, node in _entries(config, scope):
        specs.write(entry, node)
    _check_overrides(config.extra_options.get("TensorQuantOverrides", {}), model)
    found = TensorSpecs(
        scope=scope,
        activation=config.activation_spec,
        weight=config.weight_spec,
        activations=specs.activations,
        weights=specs.of_weights(),
        biases=specs.of_biases(),
        options=config.extra_options,
    )
    weights = (config.weight_spec, *found.weights.values())
    if opset_of(model) < BLOCKWISE_OPSET and any(s.quant_granularity is QuantGranularity.Group for s in weights):
        raise ModelError(
            f"QuantGranularity.Group needs opset {BLOCKWISE_OPSET}, to which this model cannot be raised: take Channel"
        )
    return found


def _entries(config: QConfig, scope: NodeScope) -> Iterator[tuple[QLayerConfig, str]]:
    """Each node with a configuration of its own, in the order in which they write their specs."""
    for layer, op_types in config.layer_type_config.items():
        if layer is not None:
            yield from ((layer, node) for node in scope.of_types("QConfig.layer_type_config", op_types))
    for layer, choices in config.specific_layer_config.items():
        for choice in choices:
            yield from ((layer, node) for node in scope.chosen("QConfig.specific_layer_config", choice))


class _Specs:
    """What the entries of a configuration write, one after the other."""

    def __init__(self, config: QConfig, model: onnx.ModelProto, scope: NodeScope) -> None:
        self._config = config
        constants = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
        self._roles: dict[str, TensorRoles] = {
            node.name: tensor_roles(node, constants) for node in model.graph.node if node.name in scope.quantized
        }
        self.activations: dict[str, QTensorConfig] = {}
        self._normalizations = {node.name for node in model.graph.node if node.op_type in NORMALIZATIONS}
        self._weights: dict[str, QTensorConfig] = {}  # by node, as are biases
        self._biases: dict[str, QTensorConfig] = {}

    def write(self, entry: QLayerConfig, node: str) -> None:
        roles = self._roles[node]
        if entry.inputs is not None:
            self.activations.update(dict.fromkeys(roles.inputs, entry.inputs))
        if entry.output_tensors is not None:
            self.activations.update(dict.fromkeys(roles.outputs, entry.output_tensors))
        if entry.weight is not None:
            self._weights[node] = entry.weight
        if entry.bias is not None:
            self._biases[node] = entry.bias

    def of_weights(self) -> dict[str, QTensorConfig]:
        """The spec of each tensor. One that several nodes use has one spec."""
        found: dict[str, tuple[str, QTensorConfig]] = {}
        for node, roles in self._roles.items():
            own = self._weights.get(node, self._usual_weight(node))
            for weight in roles.weights:
                other, theirs = found.setdefault(weight, (node, own))
                if theirs != own:
                    raise ConfigError(
                        f"the nodes {other!r} and {node!r} share the weight {weight!r}, for which the configuration "
                        f"has two specs, {theirs} and {own}: give both nodes the same"
                    )
        return {weight: spec for weight, (_, spec) in found.items() if spec != self._config.weight_spec}

    def _usual_weight(self, node: str) -> QTensorConfig:
        """The scale of a normalization has few elements, each of which counts for a whole channel."""
        spec = self._config.weight_spec
        return _with_8_bits(spec) if node in self._normalizations else spec

    def of_biases(self) -> dict[str, QTensorConfig]:
        """The specs of biases that are not int32 with the scale input_scale * weight_scale."""
        options, found = self._config.extra_options, {}
        for node, roles in self._roles.items():
            usual, weight = self._config.global_config.bias, self._weights.get(node, self._config.weight_spec)
            if usual is None and not options.get("Int32Bias", not self._is_xint8(roles, weight)):
                usual = _with_8_bits(weight)
            spec = self._biases.get(node, usual)
            if roles.bias is not None and spec is not None and spec.data_type is not Int32:
                found[roles.bias] = spec
        if found and not options.get("QuantizeBias", True):
            raise ConfigError("QConfig: biases have specs, or Int32Bias is False, and QuantizeBias is False: drop one")
        return found

    def _is_xint8(self, roles: TensorRoles, weight: QTensorConfig) -> bool:
        """Whether the scales of a layer's input and weight are powers of two."""
        inputs = [self.activations.get(name, self._config.activation_spec) for name in roles.inputs[:1]]
        return all(spec.scale_type is ScaleType.PowerOf2 for spec in (*inputs, weight))


def _lowest(spec: QTensorConfig) -> int:
    """The least integer that a range is mapped to."""
    return spec.data_type.symmetric_qmin if spec.symmetric else spec.data_type.qmin


def _per_channel(spec: QTensorConfig) -> bool:
    return spec.quant_granularity is not QuantGranularity.Tensor


def _with_8_bits(spec: QTensorConfig) -> QTensorConfig:
    """The spec with 8 bits in place of fewer."""
    if spec.data_type.bits >= 8:
        return spec
    kind = Int8Spec if spec.data_type.signed else UInt8Spec
    return kind(spec.symmetric, spec.scale_type, spec.calibration_method, spec.quant_granularity)


def _check_overrides(given: Mapping[str, Any], model: onnx.ModelProto) -> None:
    graph = model.graph
    constants = {t.name for t in graph.initializer}
    tensors = {t.name for t in (*graph.input, *graph.initializer)}.union(*(node.output for node in graph.node))
    for name, entries in given.items():
        if name not in tensors:
            raise ConfigError(problem(_OVERRIDES, name, f"the name of a tensor; {nearest(name, sorted(tensors))}"))
        for entry in entries:
            kind = entry.get("quant_type", "QInt8")
            supported = _WEIGHT_TYPES if name in constants else _ACTIVATION_TYPES
            if kind not in supported:
                expected = f"{' or '.join(supported)}: nothing else is supported here"
                raise UnsupportedError(problem(f"{_OVERRIDES}[{name!r}]", kind, expected))
