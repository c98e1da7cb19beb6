"""From a configuration and a model to the spec of each tensor, and what of it quantizer and calibration need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx
from onnxruntime.quantization import QuantType

from quark.onnx.calibration.activation_range import ActivationRange
from quark.onnx.calibration.calibrate import CalibrationSettings, WeightGrid
from quark.onnx.calibration.weight_range import WeightRange
from quark.onnx.errors import ConfigError, UnsupportedError
from quark.onnx.graph.insert_qdq import QdqOptions
from quark.onnx.graph.quant_overrides import TensorFormat, given_overrides
from quark.onnx.graph.tensor_roles import TensorRoles, tensor_roles
from quark.onnx.graph.weight_layers import WeightLayer
from quark.onnx.quantization.config.config import QConfig
from quark.onnx.quantization.config.data_type import Int32
from quark.onnx.quantization.config.spec import CalibMethod, QLayerConfig, QTensorConfig, QuantGranularity, ScaleType
from quark.onnx.quantization.config.validate import nearest, problem
from quark.onnx.quantization.node_scope import NodeScope

__all__ = ["TensorSpecs", "tensor_specs"]

_PERCENTILE = 99.999
_CANDIDATES = (99.99, 99.999, 99.99999)  # of LayerwisePercentile
_LEVELS = 128  # of Entropy
_FUSED = ("Relu", "LeakyRelu", "PRelu", "Clip")
_QUANT_TYPES = {"Int8": QuantType.QInt8, "UInt8": QuantType.QUInt8}
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
    """

    scope: NodeScope
    activation: QTensorConfig
    weight: QTensorConfig
    activations: Mapping[str, QTensorConfig]
    weights: Mapping[str, QTensorConfig]
    biases: Mapping[str, QTensorConfig]
    options: Mapping[str, Any]

    def with_twins(self, twins: Mapping[str, str]) -> TensorSpecs:
        """The same for a model with more activations, each with the spec of another."""
        given = {new: self.activations[tensor] for new, tensor in twins.items() if tensor in self.activations}
        return replace(self, activations={**self.activations, **given})

    def qdq_options(self) -> QdqOptions:
        """What is quantized, and to which types."""
        overrides = given_overrides(self.options.get("TensorQuantOverrides", {}))
        formats = {name: _format(spec) for name, spec in {**self.weights, **self.biases}.items()}
        formats = {name: self._activation_format(spec) for name, spec in self.activations.items()} | formats
        activation, weight = self._activation_format(self.activation), _format(self.weight)
        return QdqOptions(
            activation_type=activation.quant_type,
            weight_type=weight.quant_type,
            activation_symmetric=activation.symmetric,
            weight_symmetric=weight.symmetric,
            activation_scales=activation.scales,
            weight_scales=weight.scales,
            activations_reach_beyond=activation.reaches_beyond,
            per_channel=weight.per_channel,
            op_types=self.scope.op_types,
            excluded_nodes=self.scope.excluded,
            formats=formats,
            overrides=overrides,
            quantize_biases=self.options.get("QuantizeBias", True),
            quantize_views=self.options.get("ForceQuantizeNoInputCheck", False),
            fused={kind: self.options[name] for kind in _FUSED if (name := f"RemoveQDQConv{kind}") in self.options},
        )

    def calibration_settings(self) -> CalibrationSettings:
        """How ranges and scales are chosen."""
        given = dict.fromkeys(self.options.get("TensorQuantOverrides", ()))
        return CalibrationSettings(
            self._range(self.activation),
            _searched(self.weight),
            {name: self._range(spec) for name, spec in self.activations.items()},
            {name: _searched(spec) for name, spec in self.weights.items()} | given,
        )

    def weight_ranges(self, layers: Iterable[WeightLayer]) -> dict[str, WeightRange]:
        """Of the weights and biases whose range follows from themselves, unless it is minimum and maximum."""
        specs = {layer.weight: self.weights.get(layer.weight, self.weight) for layer in layers}
        found = {name: self._weight_range(spec) for name, spec in specs.items() if _searched(spec) is None}
        found |= {name: self._weight_range(spec) for name, spec in self.biases.items()}
        given = self.options.get("TensorQuantOverrides", ())
        return {name: chosen for name, chosen in found.items() if chosen is not None and name not in given}

    def _weight_range(self, spec: QTensorConfig) -> WeightRange | None:
        match spec.weight_calibration:
            case CalibMethod.MinMax:
                return None
            case CalibMethod.Percentile:
                return WeightRange(_grid(spec), self.options.get("Percentile", _PERCENTILE))
        return WeightRange(_grid(spec))  # the error of a bias is the output's

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
        return replace(_format(spec), per_channel=False, reaches_beyond=self._range(spec).is_symmetric)


def tensor_specs(config: QConfig, model: onnx.ModelProto, original: onnx.ModelProto) -> TensorSpecs:
    """The specs of the tensors of a prepared model.

    Args:
        original: the model as it was before, whose nodes the configuration may name too.

    Raises:
        ConfigError: the configuration names what is not there or is not quantized, or gives a tensor two specs that
            exclude each other.
    """
    scope = NodeScope(config, model, original)
    specs = _Specs(config, model, scope)
    for entry, node in _entries(config, scope):
        specs.write(entry, node)
    _check_overrides(config.extra_options.get("TensorQuantOverrides", {}), model)
    return TensorSpecs(
        scope=scope,
        activation=config.activation_spec,
        weight=config.weight_spec,
        activations=specs.activations,
        weights=specs.of_weights(),
        biases=specs.of_biases(),
        options=config.extra_options,
    )


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
        """By tensor. One that several nodes use has one spec."""
        found: dict[str, tuple[str, QTensorConfig]] = {}
        for node, roles in self._roles.items():
            own = self._weights.get(node, self._config.weight_spec)
            for weight in roles.weights:
                other, theirs = found.setdefault(weight, (node, own))
                if theirs != own:
                    raise ConfigError(
                        f"the nodes {other!r} and {node!r} share the weight {weight!r}, for which the configuration "
                        f"has two specs, {theirs} and {own}: give both nodes the same"
                    )
        return {weight: spec for weight, (_, spec) in found.items() if spec != self._config.weight_spec}

    def of_biases(self) -> dict[str, QTensorConfig]:
        """Those that are not int32 with the scale input_scale * weight_scale."""
        options, found = self._config.extra_options, {}
        for node, roles in self._roles.items():
            usual, weight = self._config.global_config.bias, self._weights.get(node, self._config.weight_spec)
            if usual is None and not options.get("Int32Bias", not self._is_xint8(roles, weight)):
                usual = weight
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


def _format(spec: QTensorConfig) -> TensorFormat:
    per_channel = spec.quant_granularity is QuantGranularity.Channel
    return TensorFormat(_QUANT_TYPES[spec.data_type.name], spec.symmetric, per_channel, spec.scale_type)


def _lowest(spec: QTensorConfig) -> int:
    """The least integer that a range is mapped to."""
    return spec.data_type.qmin + (1 if spec.symmetric and spec.data_type.signed else 0)


def _grid(spec: QTensorConfig) -> WeightGrid:
    per_channel = spec.quant_granularity is QuantGranularity.Channel
    return WeightGrid(_lowest(spec), spec.data_type.qmax, spec.symmetric, per_channel, spec.scale_type)


def _searched(spec: QTensorConfig) -> WeightGrid | None:
    """The grid of a weight whose scale is chosen by output error."""
    return _grid(spec) if spec.weight_calibration is CalibMethod.MinOutputMSE else None


def _check_overrides(given: Mapping[str, Any], model: onnx.ModelProto) -> None:
    graph = model.graph
    tensors = {t.name for t in (*graph.input, *graph.initializer)}.union(*(node.output for node in graph.node))
    for name, entries in given.items():
        if name not in tensors:
            raise ConfigError(problem(_OVERRIDES, name, f"the name of a tensor; {nearest(name, sorted(tensors))}"))
        for entry in entries:
            kind = entry.get("quant_type", "QInt8")
            if kind not in ("QInt8", "QUInt8"):
                expected = "QInt8 or QUInt8: nothing else is supported yet"
                raise UnsupportedError(problem(f"{_OVERRIDES}[{name!r}]", kind, expected))
