"""The gate that every model passes when it is read: what is written in it is checked once, before anything is done.

After it, code may rely on this: names are text; every tensor is made once in its graph, and before it is read; tensors
hold what their dims and types say; attributes are those of ONNX's operators. docs/decisions/0017 says why it is here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx
from onnx import numpy_helper

from quark.onnx.errors import ModelError
from quark.onnx.graph.editor import all_nodes, subgraphs
from quark.onnx.graph.node_order import Cycle, node_order
from quark.onnx.inference.large_models import without_weights
from quark.onnx.inference.sessions import Engine, session
from quark.onnx.model_files.tensor_gate import check_room, check_sparse_tensor, check_tensor, check_type, tensor_bytes

__all__ = ["check_model"]

_ONNX = ("", "ai.onnx")  # the domain of ONNX's own operators
_NO_TENSORS = {
    "sequence_type": "a sequence",
    "map_type": "a map",
    "optional_type": "optional",
    "sparse_tensor_type": "a sparse tensor",
    "opaque_type": "opaque",
}


def check_model(model: onnx.ModelProto) -> None:
    """Check a model, and bring its nodes into an order in which they can run, which ONNX asks for.

    Nodes that make nothing are taken out, and initializers that one of the same name comes behind. One pass; weights
    are not copied.

    Args:
        model: changed in this way only.

    Raises:
        ModelError: names the node or tensor, and says what is wrong with it.
    """
    try:
        _check_imports(model)
        for function in model.functions:
            _check_function(function)
        _check_recursion(model.functions)
        _check_graph(model.graph, None, "")
        _check_calls(model)
        _check_inputs(model.graph)
        _check_properties(model)
    except UnicodeDecodeError as error:
        raise ModelError(f"a name or property of the model is no text: {error.object!r} is not UTF-8") from error
    _check_operators(model)


@dataclass(frozen=True)
class _Scope:
    """The tensors that nodes of a graph, and of bodies in it, may read.

    Attributes:
        outer: of the graph that has this one as a body.
        in_function: attributes may stand for those of the node that calls it.
    """

    names: frozenset[str]
    outer: _Scope | None
    in_function: bool

    def has(self, name: str) -> bool:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.names:
                return True
            scope = scope.outer
        return False


def _check_text(names: Iterable[object], what: str) -> None:
    """protobuf gives bytes, or raises, where a name is not UTF-8."""
    for name in names:
        if not isinstance(name, str):
            raise ModelError(f"{what} holds {name!r}, which is no text: names are UTF-8")


def _check_properties(model: onnx.ModelProto) -> None:
    for entry in model.metadata_props:
        _check_text((entry.key, entry.value), "metadata_props")
    for message in (model, model.graph):
        for field, value in message.ListFields():
            if field.type == field.TYPE_STRING:
                _check_text([value], field.name)


def _check_imports(model: onnx.ModelProto) -> None:
    _check_text((entry.domain for entry in model.opset_import), "opset_import")
    for entry in model.opset_import:
        if not 0 < entry.version < 2**31:
            raise ModelError(f"the opset of the domain {entry.domain!r} is {entry.version}: versions begin with 1")
    if not model.graph.output:
        raise ModelError("the model has no output")
    imported = {entry.domain for entry in model.opset_import}
    if imported.isdisjoint(_ONNX) and any(node.domain in _ONNX for node in all_nodes(model.graph)):
        raise ModelError("the model does not say which opset its operators have: add one to its opset_import")


def _check_function(function: onnx.FunctionProto) -> None:
    where = f" of function {function.name!r}"
    _check_text((function.domain, function.name, function.overload, *function.input, *function.output), where[4:])
    names = _unique(function.input, "input", where) | _made(function.node, frozenset(function.input), where)
    scope = _Scope(frozenset(names), None, in_function=True)
    for item in function.attribute_proto:
        _check_attribute(item, f"function {function.name!r}", scope)
    reads = [_check_node(node, index, scope, where) for index, node in enumerate(function.node)]
    for name in function.output:
        if name not in names:
            raise ModelError(f"the output {name!r}{where} is made by no node")
    _put_in_order(function, reads, where)


def _check_recursion(functions: Sequence[onnx.FunctionProto]) -> None:
    """Functions are put in place of the nodes that call them, which has no end where one calls itself."""
    found = {(f.domain, f.name, f.overload): f for f in functions}
    if len(found) < len(functions):
        raise ModelError("two functions of the model have one name")

    def calls(nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[str, str, str]]:
        for node in nodes:
            if (key := (node.domain, node.op_type, node.overload)) in found:
                yield key
            for body in subgraphs(node):
                yield from calls(body.node)

    # As if a function were a node that makes its name, and reads the names of those that it calls.
    keys = list(found)
    nodes = [onnx.NodeProto(output=[repr(key)]) for key in keys]
    try:
        node_order(nodes, [{repr(name) for name in calls(found[key].node)} for key in keys])
    except Cycle as cycle:
        names = " calls ".join(repr(keys[index][1]) for index in (*cycle.nodes[::-1], cycle.nodes[-1]))
        raise ModelError(f"the functions of the model are recursive: {names}") from None


def _check_calls(model: onnx.ModelProto) -> None:
    """A node gives a function no more than it takes, and wants no more than it makes."""
    found = {(f.domain, f.name, f.overload): f for f in model.functions}
    for graph in (model.graph, *model.functions) if found else ():
        for index, node in enumerate(all_nodes(graph)):
            function = found.get((node.domain, node.op_type, node.overload))
            if function is None:
                continue
            counts = (len(node.input), len(node.output))
            most = (len(function.input), len(function.output))
            if counts[0] > most[0] or counts[1] > most[1]:
                raise ModelError(
                    f"{_shown(node, index, '')} has {counts[0]} inputs and {counts[1]} outputs: the function of this "
                    f"name has {most[0]} and {most[1]}"
                )


def _check_graph(graph: onnx.GraphProto, outer: _Scope | None, where: str, *, in_function: bool = False) -> set[str]:
    """Checks a graph and its bodies.

    Returns:
        What it reads of the graphs around it.
    """
    inputs = _unique((value.name for value in graph.input), "input", where)
    _keep_the_last(graph)
    held = _unique((tensor.name for tensor in graph.initializer), "initializer", where)
    held |= _unique((tensor.values.name for tensor in graph.sparse_initializer), "sparse initializer", where, held)
    for tensor in graph.initializer:
        check_tensor(tensor, f"the initializer {tensor.name!r}{where}")
    for sparse in graph.sparse_initializer:
        check_sparse_tensor(sparse, f"the sparse initializer {sparse.values.name!r}{where}")
    values = (*graph.input, *graph.value_info, *graph.output)
    _check_text((*held, *(value.name for value in values)), f"the graph{where}")
    for value in values:
        _check_value(value, where)
    there = frozenset(inputs | held)
    names = there | _made(graph.node, there, where)
    scope = _Scope(names, outer, in_function)
    for value in graph.output:
        if not scope.has(value.name):
            raise ModelError(f"the output {value.name!r}{where} is made by no node")
    reads = [_check_node(node, index, scope, where) for index, node in enumerate(graph.node)]
    _check_fills(graph, where)
    _put_in_order(graph, reads, where)
    needed = set[str]().union(*reads, (value.name for value in graph.output))
    return needed - names


def _keep_the_last(graph: onnx.GraphProto) -> None:
    """onnxruntime takes the last of several initializers of one name."""
    last = {tensor.name: index for index, tensor in enumerate(graph.initializer)}
    for index in reversed(range(len(graph.initializer))):
        if last[graph.initializer[index].name] != index:
            del graph.initializer[index]


def _unique(names: Iterable[str], kind: str, where: str, others: Iterable[str] = ()) -> set[str]:
    found = set(others)
    for name in names:
        if not name:
            raise ModelError(f"an {kind}{where} has no name")
        if name in found:
            raise ModelError(f"two tensors{where} have the name {name!r}: one is an {kind}")
        found.add(name)
    return found


def _made(nodes: Iterable[onnx.NodeProto], there: frozenset[str], where: str) -> frozenset[str]:
    """The tensors that nodes make."""
    found = set[str]()
    for index, node in enumerate(nodes):
        for name in filter(None, node.output):
            if name in found or name in there:
                other = "another node" if name in found else "an input or initializer"
                raise ModelError(f"{_shown(node, index, where)} makes {name!r}, as {other} does")
            found.add(name)
    return frozenset(found)


def _shown(node: onnx.NodeProto, index: int, where: str) -> str:
    name = node.name or next(filter(None, node.output), f"number {index}")
    return f"node {name!r} ({node.op_type}){where}"


def _check_value(value: onnx.ValueInfoProto, where: str) -> None:
    if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type:
        check_type(value.type.tensor_type.elem_type, f"{value.name!r}{where}")
    _check_text((dim.dim_param for dim in value.type.tensor_type.shape.dim), f"the shape of {value.name!r}{where}")


def _check_inputs(graph: onnx.GraphProto) -> None:
    """Data of the inputs' shapes must be had: the model is run on it."""
    held = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        kind = value.type.tensor_type
        what = f"the input {value.name!r}"
        if value.name in held:
            continue
        other = _NO_TENSORS.get(value.type.WhichOneof("value") or "")
        if other:
            raise ModelError(
                f"{what} is {other}, and data is taken for tensors only: cut the model where tensors begin "
                "(onnx.utils.extract_model), quantize the part behind, and join both (onnx.compose.merge_models)"
            )
        if not kind.elem_type:
            raise ModelError(f"{what} has no element type: data can be given for tensors of a known one only")
        check_room(tensor_bytes([max(dim.dim_value, 1) for dim in kind.shape.dim], kind.elem_type, what), what)


def _check_node(node: onnx.NodeProto, index: int, scope: _Scope, where: str) -> set[str]:
    """Checks a node and its bodies.

    Returns:
        The tensors that it, or a body of it, reads outside of itself.
    """
    shown = _shown(node, index, where)
    attributes = (name for item in node.attribute for name in (item.name, item.ref_attr_name))
    _check_text((node.name, node.op_type, node.domain, *node.input, *node.output, *attributes), shown)
    if not node.op_type:
        raise ModelError(f"{shown} has no op_type")
    read = set(filter(None, node.input))
    for name in node.input:
        if name and not scope.has(name):
            raise ModelError(f"{shown} reads {name!r}, which is no input and no initializer, and which no node makes")
    _unique((item.name for item in node.attribute), "attribute", f" of {shown}")
    for item in node.attribute:
        _check_attribute(item, shown, scope)
        for body in (item.g,) if item.type == onnx.AttributeProto.GRAPH else item.graphs:
            inside = f" in the body {item.name!r} of {shown}"
            read |= _check_graph(body, scope, inside, in_function=scope.in_function)
    return read


def _check_attribute(item: onnx.AttributeProto, shown: str, scope: _Scope) -> None:
    if item.ref_attr_name and not scope.in_function:
        raise ModelError(
            f"{shown}: the attribute {item.name!r} stands for {item.ref_attr_name!r} of a caller: it is in no function"
        )
    if item.type not in onnx.AttributeProto.AttributeType.values():
        raise ModelError(f"{shown}: the attribute {item.name!r} has the type {item.type}, which ONNX does not know")
    for tensor in (*((item.t,) if item.HasField("t") else ()), *item.tensors):
        check_tensor(tensor, f"the attribute {item.name!r} of {shown}")
    for sparse in (*((item.sparse_tensor,) if item.HasField("sparse_tensor") else ()), *item.sparse_tensors):
        check_sparse_tensor(sparse, f"the attribute {item.name!r} of {shown}")


def _check_fills(graph: onnx.GraphProto, where: str) -> None:
    """A few bytes ask for any amount of memory here, which tools take to fold the node."""
    shapes = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT64}
    for index, node in enumerate(graph.node):
        if node.op_type == "ConstantOfShape" and node.input and node.input[0] in shapes:
            dims = [max(size, 0) for size in numpy_helper.to_array(shapes[node.input[0]]).reshape(-1).tolist()]
            what = f"what {_shown(node, index, where)} makes"
            check_room(tensor_bytes(dims, onnx.TensorProto.FLOAT, what), what)


def _put_in_order(graph: onnx.GraphProto | onnx.FunctionProto, reads: list[set[str]], where: str) -> None:
    try:
        order = node_order(graph.node, reads)
    except Cycle as cycle:
        names = " -> ".join(_shown(graph.node[index], index, "") for index in (*cycle.nodes, cycle.nodes[0]))
        raise ModelError(f"the nodes{where} go round in a circle: {names}") from None
    useful = [index for index in order if any(graph.node[index].output)]
    if useful != list(range(len(graph.node))):
        nodes = list(graph.node)
        graph.ClearField("node")
        graph.node.extend(nodes[index] for index in useful)


def _check_operators(model: onnx.ModelProto) -> None:
    """ONNX's own checker knows the inputs and attributes of its operators. onnxruntime has the last word, as it runs
    models that ONNX does not define: operators and versions of its own, initializers that are no inputs in old models.
    """
    shell = without_weights(model)
    try:
        onnx.checker.check_model(shell)
    except Exception as error:  # ValidationError, protobuf's errors, RuntimeError
        if not _loads(model):
            raise ModelError(f"it is not valid ONNX: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines) or type(error).__name__


def _loads(model: onnx.ModelProto) -> bool:
    try:
        session(model, Engine(threads=1), optimise=False)
    except ModelError:
        return False
    return True
