"""Random models of 3 to 12 operators, drawn from a seed: every operator that is quantized, and others between them.

Shapes are small, attributes and opsets vary, tensors have several readers, weights are shared, names are odd, constants
are initializers, inputs with a default or nodes, and shapes are declared in part or not at all.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from reference.drawn_operators import OTHERS, QUANTIZED
from reference.graph_in_drawing import GraphInDrawing, Shape

__all__ = ["operator_data", "operator_graph"]

_BATCH = 2
_INPUTS: tuple[tuple[int, ...], ...] = ((3, 6, 5), (2, 4, 4), (4, 5), (3, 4), (6,), (4,))


def operator_graph(seed: int) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """A model, the same for a seed each time, and the operators that were drawn."""
    g = GraphInDrawing(seed)
    for i in range(g.count(1, 3)):
        name, shape = g.name(f"x{i}_"), (_BATCH, *g.one_of(_INPUTS))  # type: ignore[misc]
        g.inputs[name] = (TensorProto.FLOAT, shape)
        g.shapes[name] = shape
    if g.chance(0.2):
        g.inputs[g.name("ids")] = (TensorProto.INT64, (_BATCH, g.count(2, 4)))
    wanted = g.count(3, 12)
    while len(g.operators) < wanted:
        table = QUANTIZED if g.chance(0.85) else OTHERS
        op = str(g.one_of(sorted(table)))
        if table[op](g):
            g.operators.append(op)
    return _finished(g), tuple(g.operators)


def operator_data(model: onnx.ModelProto, items: int, *, seed: int) -> list[dict[str, np.ndarray]]:
    """Items for a model's inputs that have no default."""
    random = np.random.default_rng(seed)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]

    def array(value: onnx.ValueInfoProto) -> np.ndarray:
        tensor = value.type.tensor_type
        shape = [dim.dim_value or _BATCH for dim in tensor.shape.dim]
        if tensor.elem_type == TensorProto.FLOAT:
            return random.standard_normal(shape).astype(np.float32)
        return random.integers(0, 6, shape).astype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))

    return [{value.name: array(value) for value in inputs} for _ in range(items)]


def _finished(g: GraphInDrawing) -> onnx.ModelProto:
    read = {name for node in g.nodes for name in node.input}
    made = [name for node in g.nodes for name in node.output]
    ends = [name for name in made if name not in read and (name in g.shapes or name in g.others)]
    ends += [name for name in made if name in read and name in g.shapes and g.chance(0.1)]
    free_batch = g.chance(0.5)
    how = g.one_of(["exact", "exact", "exact", "no shapes", "names", "names"])

    def declared(name: str, kind: int, shape: Shape, *, is_input: bool) -> onnx.ValueInfoProto:
        dims: list[int | str] | None = list(shape)
        if free_batch and shape:
            dims = ["N", *shape[1:]]
        if not is_input and how == "no shapes":
            dims = None
        elif not is_input and how == "names":
            dims = [f"d{i}" for i in range(len(shape))]
        return helper.make_tensor_value_info(name, kind, dims)

    kinds = {**{name: (TensorProto.FLOAT, shape) for name, shape in g.shapes.items()}, **g.others}
    graph = helper.make_graph(
        g.nodes,
        "drawn",
        [declared(name, kind, shape, is_input=True) for name, (kind, shape) in g.inputs.items()],
        [declared(name, *kinds[name], is_input=False) for name in ends],
    )
    _put_constants(g, graph)
    model = helper.make_model(graph, opset_imports=g.opsets(), ir_version=int(g.one_of([8, 8, 9, 10])))  # type: ignore[call-overload]
    if not any(node.domain == "com.microsoft" for node in g.nodes):
        del model.opset_import[1:]
    return model


def _put_constants(g: GraphInDrawing, graph: onnx.GraphProto) -> None:
    as_nodes, as_inputs = g.chance(0.1), g.chance(0.1)
    nodes = []
    for name, value in g.constants.items():
        tensor = numpy_helper.from_array(value, name)
        if as_nodes and g.chance(0.7):
            nodes.append(helper.make_node("Constant", [], [name], value=tensor))
            continue
        graph.initializer.append(tensor)
        if as_inputs and value.dtype == np.float32:  # sizes and axes must be constants
            graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    given = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *given])
