"""Q/DQ behind views of dequantized tensors, where onnxruntime's optimiser would put a pair of its own and fail.

Its QDQPropagation moves DequantizeLinear past an operator that only hands values on. From opset 21 on what it writes
for int8 is invalid ("output_dtype INT8 does not match y_zero_point type UINT8"), and the model does not load; where the
body of an If or Loop reads the result, the process ends. With a pair of the same parameters already there it has
nothing to do, and nothing is computed otherwise: these operators give values that are on the quantizer's grid.
"""

from __future__ import annotations

import onnx

from quark.onnx.graph.editor import GraphEditor, reads
from quark.onnx.graph.opset import opset_of

__all__ = ["quantize_propagated_views"]

_VIEWS = frozenset({"MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
_FIRST_BAD_OPSET = 21


def quantize_propagated_views(model: onnx.ModelProto) -> None:
    """Quantizes them in place. The nodes are in topological order, before and after."""
    graph, is_bad = model.graph, opset_of(model) >= _FIRST_BAD_OPSET
    editor = GraphEditor(graph)
    outputs = {value.name for value in graph.output}
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    sources = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in set(reads(node)):
            readers.setdefault(name, []).append(node)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        source = sources.get(node.input[0]) if node.op_type in _VIEWS and node.input else None
        if source is None or len(source.input) < 3 or source.input[2] not in kinds:
            continue
        behind = readers.get(node.output[0], [])
        in_body = any(node.output[0] not in reader.input for reader in behind)
        is_int8 = kinds[source.input[2]] == onnx.TensorProto.INT8
        left_float = node.output[0] in outputs or any(reader.op_type != "QuantizeLinear" for reader in behind)
        if left_float and (in_body or (is_bad and is_int8)):
            pair = _pair(node, source, editor)
            sources[pair[1].output[0]] = pair[1]
            nodes += pair
        else:
            sources[node.output[0]] = source  # it is moved past the next view as well
    graph.ClearField("node")
    graph.node.extend(nodes)


def _pair(view: onnx.NodeProto, source: onnx.NodeProto, editor: GraphEditor) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """Q and DQ with the parameters of `source`; what reads the view reads them from then on."""
    name = view.output[0]
    view.output[0], integers = (editor.fresh_name(name + suffix) for suffix in ("_view", "_view_quantized"))
    domain = source.domain
    quantize = onnx.helper.make_node(
        "QuantizeLinear",
        [view.output[0], *source.input[1:]],
        [integers],
        f"{view.output[0]}_QuantizeLinear",
        domain=domain,
    )
    back = onnx.helper.make_node(
        "DequantizeLinear", [integers, *source.input[1:]], [name], f"{view.output[0]}_DequantizeLinear", domain=domain
    )
    return quantize, back
