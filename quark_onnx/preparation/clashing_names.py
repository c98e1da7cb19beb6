"""Names of tensors that onnxruntime's quantizer would give to others: it takes what has such a name for its own."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx

from quark.onnx.graph.editor import GraphEditor, rename_tensors

__all__ = ["part_clashing_names"]

# What it appends to a tensor's name for the parameters of its quantization and for its other forms; "_convert" comes
# with the entry "convert" of TensorQuantOverrides.
_SUFFIXES = (
    *("_scale", "_zero_point", "_quantized", "_quantized_scale", "_quantized_zero_point"),
    *("_scale_convert", "_zero_point_convert"),
    *(
        f"{of}_{kind}Linear_{end}"
        for of in ("", "_convert", "_convert_clone")
        for kind in ("Quantize", "Dequantize")
        for end in ("Input", "Output")
    ),
)


def part_clashing_names(graph: onnx.GraphProto) -> None:
    """See to it that the names which the quantizer makes of those of float tensors are free.

    Inner tensors get other names. Where both tensors are inputs or outputs of the model, nodes read or make a copy of
    the one whose parameters would get the other's name, as of an input that the model returns. Names of inputs and
    outputs stay.
    """
    interface = [*graph.input, *graph.output]
    outputs = {value.name for value in graph.output}
    _copy(graph, {value.name for value in graph.input} & outputs)
    copied = set[str]()
    while True:  # a new name can clash as well
        editor = GraphEditor(graph)
        clashes = [(tensor, name) for tensor, name in _clashes(editor.names) if tensor not in copied]
        if not clashes:
            return
        of_model = {value.name for value in interface}
        both = {tensor for tensor, name in clashes if tensor in of_model and name in of_model}
        inner = {tensor if name in of_model else name for tensor, name in clashes if tensor not in both}
        rename_tensors(graph, {name: editor.fresh_name(name + "_") for name in sorted(inner)})
        _copy(graph, both)
        copied |= both


def _clashes(names: Collection[str]) -> Iterator[tuple[str, str]]:
    """Pairs of a tensor and the one that has the name of its parameters."""
    for name in names:
        for suffix in _SUFFIXES:
            if name.endswith(suffix) and name.removesuffix(suffix) in names:
                yield name.removesuffix(suffix), name


def _copy(graph: onnx.GraphProto, tensors: Collection[str]) -> None:
    """Put copies in place of inputs and outputs of a model, for its nodes to read and make."""
    if not tensors:
        return
    editor = GraphEditor(graph)
    interface = [*graph.input, *graph.output]
    names, inputs = [value.name for value in interface], {value.name for value in graph.input}
    inner = {name: editor.fresh_name(name + "_copy") for name in sorted(tensors)}
    rename_tensors(graph, inner)
    for value, name in zip(interface, names, strict=True):
        value.name = name
    for name, copy in inner.items():
        if name in inputs:
            graph.node.insert(0, onnx.helper.make_node("Identity", [name], [copy]))
        else:
            graph.node.append(onnx.helper.make_node("Identity", [copy], [name]))
