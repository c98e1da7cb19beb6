"""The error that each tensor makes at the outputs in each format that it may have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx

from quark.onnx.calibration_data.checked_items import Batch
from quark.onnx.config.algorithm import TUNABLE_OP_TYPES
from quark.onnx.config.spec import QTensorConfig, QuantGranularity
from quark.onnx.inference.sessions import Engine
from quark.onnx.mixed_precision.allocation import Choice, Option
from quark.onnx.mixed_precision.target import bits_of
from quark.onnx.plan.build import build_plan
from quark.onnx.sensitivity.damage import Damage
from quark.onnx.sensitivity.switched_model import Switch
from quark.onnx.sensitivity.weight_switch import WeightSwitch, weight_switches

__all__ = ["PlainModel", "sensitivities", "with_finetuned_weights"]

_FOLDED = ("Relu", "Clip")
_SCALE_BITS = 32
_LEAST_LEFT = 0.02  # of the weights' errors after finetuning, whatever else the model's error hides


@dataclass(frozen=True, eq=False)
class PlainModel:
    """A Q/DQ model with all weights in one format and nothing tuned.

    Attributes:
        weight: the format.
        model: the float model.
        quantized: the Q/DQ model.
        fixed: the tensors whose format the configuration names.
        nodes: of the layers and operators whose tensors may have another format; None: all.
    """

    weight: QTensorConfig
    model: onnx.ModelProto
    quantized: onnx.ModelProto
    fixed: frozenset[str]
    nodes: frozenset[str] | None = None


def sensitivities(
    plain: Sequence[PlainModel],
    weights: Sequence[QTensorConfig],
    activations: Sequence[QTensorConfig | None],
    items: Sequence[Batch],
    engine: Engine,
) -> list[Choice]:
    """The choices of a model, with the error of each option alone, everything else in float.

    Args:
        plain: a model for each weight format of 8 bits and less, or else for the one with the fewest; activations have
            the first of their formats.
        weights, activations: the formats, those with the fewest bits first.
        items: a few samples.
        engine: runs the models.
    """
    found: dict[tuple[str, ...], dict[QTensorConfig, float]] = {}
    sizes: dict[tuple[str, ...], tuple[int, int]] = {}  # elements, output channels
    choices = list[Choice]()
    for at, one in enumerate(plain):
        layers = build_plan(one.model, one.quantized, TUNABLE_OP_TYPES).layers
        switches = [s for s in weight_switches(one.model, one.quantized, layers, items[0], engine) if _may(one, s)]
        damage = Damage(one.model, one.quantized, items, engine, switches)
        channels = {layer.node: len(layer.weight.rows) for layer in layers}
        for switch in switches:
            sizes[switch.tensors] = switch.elements, channels[switch.name]
            found.setdefault(switch.tensors, {})[one.weight] = damage.deviation([switch]).error
        if at == 0:
            choices += _of_activations(one, damage, activations)
    for tensors, errors in found.items():
        elements, rows = sizes[tensors]
        options = (Option(spec, _bits(spec, elements, rows), _error(spec, errors)) for spec in weights)
        choices.append(Choice(tensors[:1], True, elements, tuple(sorted(options, key=lambda option: option.bits))))
    return choices


def with_finetuned_weights(choices: Sequence[Choice], error: float) -> list[Choice]:
    """The choices, with the errors of weights made smaller by what finetuning leaves of them, all by the same factor.

    Args:
        choices: with the errors before finetuning.
        error: of the finetuned model in which each has its first format.
    """
    of_weights, of_activations = (
        sum(choice.options[0].error for choice in choices if choice.is_weight == is_weight)
        for is_weight in (True, False)
    )
    left = (error - of_activations) / of_weights if of_weights > 0 else 1.0
    factor = min(1.0, max(_LEAST_LEFT, left))
    return [
        replace(choice, options=tuple(replace(one, error=factor * one.error) for one in choice.options))
        if choice.is_weight
        else choice
        for choice in choices
    ]


def _of_activations(plain: PlainModel, damage: Damage, formats: Sequence[QTensorConfig | None]) -> list[Choice]:
    choices = list[Choice]()
    makers = {name: node for node in plain.model.graph.node for name in node.output}
    readers: dict[str, set[str]] = {}
    for node in plain.model.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.name)
    for switch in damage.switches:
        near = {name for tensor in switch.tensors for name in readers.get(tensor, ())}
        if not plain.fixed.isdisjoint(switch.tensors):
            continue
        if plain.nodes is not None and near.isdisjoint(plain.nodes):
            continue
        elements = damage.elements[switch.name] / damage.samples
        options = tuple(
            Option(spec, bits_of(spec) * elements, _of_format(damage, switch, spec, formats)) for spec in formats
        )
        # A range that does the work of a Relu is that of its input too.
        folded = [makers[t].input[0] for t in switch.tensors if t in makers and makers[t].op_type in _FOLDED]
        choices.append(Choice((*switch.tensors, *folded), False, elements, options))
    return choices


def _of_format(
    damage: Damage, switch: Switch, spec: QTensorConfig | None, formats: Sequence[QTensorConfig | None]
) -> float:
    if spec is None:
        return 0.0
    if spec == formats[0]:
        return damage.deviation([switch]).error
    if spec.data_type.bits == 16:
        return damage.deviation([switch], [switch]).error
    return damage.deviation([switch]).error * 4.0 ** (bits_of(formats[0]) - spec.data_type.bits)


def _bits(spec: QTensorConfig, elements: int, channels: int) -> float:
    """The bits of a weight, with those of the scales of its channels."""
    return spec.data_type.bits * elements + (_SCALE_BITS * channels if not _is_per_tensor(spec) else 0)


def _is_per_tensor(spec: QTensorConfig) -> bool:
    return spec.quant_granularity is QuantGranularity.Tensor


def _error(spec: QTensorConfig, errors: dict[QTensorConfig, float]) -> float:
    """What was measured; of more bits a quarter for each more than the nearest that was."""
    if spec in errors:
        return errors[spec]
    nearest = max(errors, key=lambda other: (_is_per_tensor(other) == _is_per_tensor(spec), other.data_type.bits))
    return errors[nearest] * 4.0 ** (nearest.data_type.bits - spec.data_type.bits)


def _may(plain: PlainModel, switch: WeightSwitch) -> bool:
    return switch.tensors[0] not in plain.fixed and (plain.nodes is None or switch.name in plain.nodes)
