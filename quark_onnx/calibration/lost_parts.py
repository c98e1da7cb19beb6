"""Parts of a Concat or Add that one step of the result's scale swallows: scores up to 1 beside boxes up to 640."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

import onnx

from quark.onnx.calibration.activation_range import ActivationRange

__all__ = ["lost_parts"]


def lost_parts(
    model: onnx.ModelProto,
    nodes: Collection[str],
    ranges: Mapping[str, tuple[float, float]],
    range_of: Callable[[str], ActivationRange],
) -> Iterator[str]:
    """A line for each of them.

    Args:
        model: the float model.
        nodes: the names of the quantized ones.
        ranges: of the tensors with a scale of their own.
        range_of: says which quantizer a tensor has.
    """
    for node in model.graph.node:
        result = node.output[0] if node.output else ""
        if node.op_type not in ("Add", "Concat") or node.name not in nodes or result not in ranges:
            continue
        chosen, (low, high) = range_of(result), ranges[result]
        width = 2 * max(-low, high) if chosen.symmetric else max(high, 0.0) - min(low, 0.0)
        step = width / (chosen.qmax - chosen.qmin)
        for part in dict.fromkeys(node.input):
            least, most = ranges.get(part, (0.0, 0.0))
            if 0 < most - least < step:
                yield (
                    f"{node.op_type} {node.name!r}: its part {part!r} has values from {least:.3g} to {most:.3g}, which "
                    f"is less than one step, {step:.3g}, of the result's scale (for {low:.3g} to {high:.3g}): they "
                    f"become one value or two. Leave the node in float with exclude=[{node.name!r}], or give "
                    f"{result!r} 16 bits"
                )
