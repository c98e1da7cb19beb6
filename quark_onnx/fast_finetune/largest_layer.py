"""The one layer whose data needs the most memory: `select_max_mem_layer`."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from quark.onnx.fast_finetune.layer_batches import TwoGraphs
from quark.onnx.fast_finetune.walk import Walk
from quark.onnx.plan.reasons import Reason
from quark.onnx.plan.types import LayerPlan, Plan, SkippedLayer

__all__ = ["with_largest_layer"]

_MIB = 1 << 20


def with_largest_layer(graphs: TwoGraphs, plan: Plan) -> Plan:
    """The plan with only the layer whose input and float output need the most memory, over all samples; the first of
    several; and those with the same weight. The others are skipped, which says why.

    Raises:
        FinetuneError: onnxruntime cannot run a graph.
    """
    sizes = _bytes_of_layers(graphs, plan.layers)
    largest = max(range(len(sizes)), key=sizes.__getitem__)
    chosen = plan.layers[largest]
    skipped = tuple(
        SkippedLayer(
            layer.node,
            layer.op_type,
            Reason.NOT_THE_LARGEST.why(size=size / _MIB, largest=chosen.node, most=sizes[largest] / _MIB),
        )
        for layer, size in zip(plan.layers, sizes, strict=True)
        if layer.weight.initializer != chosen.weight.initializer
    )
    layers = tuple(layer for layer in plan.layers if layer.weight.initializer == chosen.weight.initializer)
    return replace(plan, layers=layers, skipped=(*plan.skipped, *skipped))


def _bytes_of_layers(graphs: TwoGraphs, layers: tuple[LayerPlan, ...]) -> list[int]:
    """Measured on one batch of each shape, which stands for all batches of that shape."""
    samples, engine = graphs.samples, graphs.engine
    shapes = [tuple((name, array.shape) for name, array in samples.load(b).items()) for b in range(samples.batches)]
    measured = {shapes.index(shape): count for shape, count in Counter(shapes).items()}
    inputs = Walk(
        "sizes quantized", graphs.quantized, [[layer.input.tensor for layer in layers]], samples.store, engine
    )
    targets = Walk("sizes float", graphs.float_model, [[layer.target for layer in layers]], samples.store, engine)
    for batch in measured:
        arrays = samples.load(batch)
        for walk in (inputs, targets):
            walk.put_inputs(batch, {name: arrays[name] for name in walk.dataflow.inputs})
    run_inputs, run_targets = inputs.advance().run, targets.advance().run
    sizes = [0] * len(layers)
    for batch, count in measured.items():
        x, y = run_inputs(batch), run_targets(batch)
        for index, layer in enumerate(layers):
            sizes[index] += count * (x[layer.input.tensor].nbytes + 4 * y[layer.target].size)
    return sizes
