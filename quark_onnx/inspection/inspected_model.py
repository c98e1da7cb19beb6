"""From a float model and a configuration to what quantization and finetuning would do to it.

The way is that of the run itself: the model is prepared, Q/DQ are inserted, layers are paired. Only the ranges of the
activations, which need the data, are made up, and no layer is solved.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx.calibration_data.any_data import Data, data_reader
from quark.onnx.calibration_data.checked_items import Batch, DataReader, sample_count
from quark.onnx.calibration_data.first_items import first_items
from quark.onnx.calibration_data.joining import input_bytes
from quark.onnx.calibration_data.ready_readers import RandomDataReader
from quark.onnx.config.algorithm import AdaRoundConfig, FastFinetuneConfig
from quark.onnx.config.qconfig import QConfig
from quark.onnx.config.supported import check_supported, ignored_extra_options, ignored_options
from quark.onnx.inference.sessions import Engine, session
from quark.onnx.inspection.estimate import DataWork, Estimate, LayerWork, estimate
from quark.onnx.model_files.model_file import ModelLike, load_model
from quark.onnx.model_files.quantized_form import check_is_float
from quark.onnx.own_errors import only_own_errors
from quark.onnx.plan.build import build_plan
from quark.onnx.plan.configured import leave_as_configured
from quark.onnx.plan.types import LayerPlan, Plan
from quark.onnx.preparation.finite_constants import check_weights, with_finite_biases
from quark.onnx.preparation.prepare import prepared_on
from quark.onnx.qdq.insert_qdq import calibration_tensors, qdq_model
from quark.onnx.quantization.quantize import USUAL_CONFIG
from quark.onnx.quantization.run_options import engine_for, unfused
from quark.onnx.quantization.tensor_specs import TensorSpecs, needed_opset, tensor_specs

__all__ = ["InspectedLayer", "InspectedModel", "inspect_model"]

_REACH = 1e3  # of the ranges that are made up: no bias is beyond them
_USUAL_SAMPLES = 100


@dataclass(frozen=True)
class InspectedLayer:
    """A layer with a constant weight.

    Attributes:
        name, op_type: of the node.
        weights: how many.
        inputs, outputs: K inputs for each of the outputs of all groups.
        positions: at which a sample of the data has outputs.
        format: of the weight's integers, "int8" say; "" where it stays in float.
        scales: how many scales the weight has.
        tuned: whether AdaRound or AdaQuant would tune it.
        reason: why not.
    """

    name: str
    op_type: str
    weights: int = 0
    inputs: int = 0
    outputs: int = 0
    positions: int = 0
    format: str = ""
    scales: int = 0
    tuned: bool = False
    reason: str = ""


@dataclass(frozen=True)
class InspectedModel:
    """What would be done to a model.

    Attributes:
        opset: of the default domain.
        inputs, outputs: name -> type and shape, as the model states them.
        operators: op type -> how many, in the model as it is given.
        weights: elements of all float constants, after preparation.
        layers: with constant weights, after preparation.
        activations: how many tensors would get Q/DQ with a scale of their own.
        in_float: op type -> how many nodes of the prepared model stay in float, as their operator is not quantized, or
            they are excluded.
        algorithm: what would tune the layers; None: nothing.
        estimate: time and memory.
        samples: that the estimate is for.
        measured_on: "data", or "random data" where there is none.
        ignored: options that would have no effect, with the reason.
        notes: of the preparation.
    """

    opset: int
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    operators: Mapping[str, int]
    weights: int
    layers: tuple[InspectedLayer, ...]
    activations: int
    in_float: Mapping[str, int]
    algorithm: str | None
    estimate: Estimate
    samples: int
    measured_on: str
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@only_own_errors
def inspect_model(model: ModelLike, config: QConfig = USUAL_CONFIG, data: Data | None = None) -> InspectedModel:
    """What `ModelQuantizer(config).quantize_model(model, ...)` would do.

    Args:
        model: a float model, as a path or ModelProto; not changed.
        config: what would be done; by default UInt8 activations, Int8 weights and AdaRound.
        data: whose first samples the time is measured on; without it, random data of the model's shapes, which the
            extra option RandomDataReaderInputShape completes. Readers are read a few items far.

    Raises:
        OSError, ModelError, DataError, ConfigError, UnsupportedError: as `ModelQuantizer.quantize_model` does.
    """
    check_supported(config)
    engine = engine_for(config)
    original = load_model(model, role="float model")
    check_is_float(original)
    check_weights(original)
    reader = _reader(original, config, data)
    few, _ = first_items(original, reader)
    ready = prepared_on(original, few, engine, opset=needed_opset(config), unfused=unfused(config))
    prepared, notes = with_finite_biases(ready.model)
    specs = tensor_specs(config, prepared, original)
    tensors = calibration_tensors(prepared, specs.qdq_options())
    ranges = dict.fromkeys(tensors, (-_REACH, _REACH))
    quantized = qdq_model(prepared, ranges, {}, specs.qdq_options()).model
    algorithm = config.fast_finetune
    plan = _plan(prepared, quantized, algorithm, specs)
    item = few[0]
    shapes, seconds = _measured(prepared, [layer.target for layer in plan.layers], item, engine)
    samples = _samples(reader, item) if data is not None else _USUAL_SAMPLES
    work = [_work(layer, shapes[layer.target], sample_count(item)) for layer in plan.layers]
    data_work = DataWork(samples, input_bytes(item) / sample_count(item), seconds / sample_count(item))
    return InspectedModel(
        opset=next((opset.version for opset in original.opset_import if opset.domain in ("", "ai.onnx")), 0),
        inputs={value.name: _shown(value) for value in original.graph.input},
        outputs={value.name: _shown(value) for value in original.graph.output},
        operators=dict(Counter(node.op_type for node in original.graph.node).most_common()),
        weights=sum(math.prod(t.dims) for t in prepared.graph.initializer if t.data_type == onnx.TensorProto.FLOAT),
        layers=tuple(_layers(prepared, quantized, plan, work, algorithm)),
        activations=len(tensors),
        in_float=_in_float(prepared, specs),
        algorithm=None if algorithm is None else type(algorithm).name,
        estimate=estimate(
            original, work if algorithm is not None else (), data_work, algorithm, threads=engine.threads
        ),
        samples=samples,
        measured_on="random data" if data is None else "data",
        ignored=tuple(_ignored(config)),
        notes=(*ready.notes, *notes),
    )


def _reader(model: onnx.ModelProto, config: QConfig, data: Data | None) -> DataReader:
    if data is not None:
        return data_reader(data, model)
    options = config.extra_options
    return RandomDataReader(
        model, options.get("RandomDataReaderInputShape"), options.get("RandomDataReaderInputDataRange")
    )


def _samples(reader: DataReader, item: Batch) -> int:
    """How many samples the data has, where the reader tells its length; the usual number where it does not."""
    length = len(reader) if isinstance(reader, Sized) else 0
    return length * sample_count(item) if length else _USUAL_SAMPLES


def _plan(
    model: onnx.ModelProto, quantized: onnx.ModelProto, algorithm: FastFinetuneConfig | None, specs: TensorSpecs
) -> Plan:
    """The plan of the finetuning."""
    settings = algorithm or AdaRoundConfig()
    plan = build_plan(model, quantized, settings.target_op_type, output_qdq=settings.output_qdq)
    excluded = [name for node in model.graph.node if node.name in specs.scope.excluded for name in node.output]
    return leave_as_configured(plan, settings, frozenset(excluded))


def _measured(
    model: onnx.ModelProto, targets: Sequence[str], item: Batch, engine: Engine
) -> tuple[dict[str, tuple[int, ...]], float]:
    """The shapes of tensors on an item, and the seconds of a run of the model."""
    known = {output.name for output in model.graph.output}
    with_targets = onnx.ModelProto()
    with_targets.CopyFrom(model)
    further = [name for name in dict.fromkeys(targets) if name not in known]
    with_targets.graph.output.extend(onnx.ValueInfoProto(name=name) for name in further)
    opened = session(with_targets, engine)
    names = [output.name for output in opened.get_outputs()]
    shapes = {name: np.shape(value) for name, value in zip(names, opened.run(None, item), strict=True)}
    plain = session(model, engine)
    plain.run(None, item)
    started = time.perf_counter()
    plain.run(None, item)
    return shapes, time.perf_counter() - started


def _work(layer: LayerPlan, shape: tuple[int, ...], samples: int) -> LayerWork:
    outputs, inputs = layer.weight.rows.shape
    return LayerWork(layer, max(1, math.prod(shape) // (outputs * samples)), inputs, outputs)


def _layers(
    model: onnx.ModelProto,
    quantized: onnx.ModelProto,
    plan: Plan,
    work: Sequence[LayerWork],
    algorithm: FastFinetuneConfig | None,
) -> list[InspectedLayer]:
    """The layers in the order of the model."""
    integers = {t.name: t for t in quantized.graph.initializer}
    found: dict[str, InspectedLayer] = {}
    for layer, its_work in zip(plan.layers, work, strict=True):
        tensor, rows = integers[layer.weight.initializer], layer.weight
        found[layer.node] = InspectedLayer(
            layer.node,
            layer.op_type,
            weights=int(rows.rows.size),
            inputs=its_work.inputs,
            outputs=its_work.outputs,
            positions=its_work.positions,
            format=onnx.TensorProto.DataType.Name(tensor.data_type).lower(),
            scales=_distinct(rows.scale),
            tuned=algorithm is not None,
            reason="" if algorithm is not None else "neither AdaRound nor AdaQuant is asked for",
        )
    for skipped in plan.skipped:
        found[skipped.node] = InspectedLayer(skipped.node, skipped.op_type, reason=skipped.reason)
    order = {node.name or node.output[0]: index for index, node in enumerate(model.graph.node)}
    return sorted(found.values(), key=lambda layer: order.get(layer.name, len(order)))


def _distinct(scale: NDArray[np.float32]) -> int:
    """Scales of a weight: a per-tensor scale is repeated in the plan."""
    return 1 if scale.size and bool((scale == scale.flat[0]).all()) else int(scale.size)


def _in_float(model: onnx.ModelProto, specs: TensorSpecs) -> dict[str, int]:
    return dict(Counter(n.op_type for n in model.graph.node if n.name not in specs.scope.quantized).most_common())


def _ignored(config: QConfig) -> list[str]:
    lines = [
        f"extra_options[{option.keyword!r}]={option.value!r} has no effect: {option.reason}"
        for option in ignored_extra_options(config)
    ]
    if config.fast_finetune is not None:
        options = ignored_options(config.fast_finetune, in_steps=config.fast_finetune.solver != "least_squares")
        lines += [f"{option.keyword}={option.value!r} has no effect: {option.reason}" for option in options]
    return lines


def _shown(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type
    name = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
    if not kind.HasField("shape"):
        return f"{name}, of unknown shape"
    return f"{name}[{', '.join(str(d.dim_value) if d.dim_value > 0 else d.dim_param or '?' for d in kind.shape.dim)}]"
