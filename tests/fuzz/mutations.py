"""Changes of ONNX models that make most of them invalid: of every field of the format, and of bytes of the file."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["MUTATIONS", "mutate_bytes"]

Mutation = Callable[[onnx.ModelProto, random.Random], None]
MUTATIONS: list[Mutation] = []

SIZES = (-(2**63), -(2**31), -3, -1, 0, 1, 2, 3, 7, 2**16, 2**29, 2**31, 2**32 + 1, 2**62, 2**63 - 1)
NUMBERS = (float("nan"), float("inf"), float("-inf"), 0.0, -1.0, 1e-45, 1e-30, 3.4e38, -3.4e38, 1e18, -1e9)
NAMES = ("", "x", "y", "é", "\0", "a\nb", "../out", "[red]", "%s", "x_scale", "x" * 5000, "_quantized", "\u202e")
OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Relu", "Add", "Mul", "Identity", "Reshape", "Transpose", "Softmax",
       "BatchNormalization", "LayerNormalization", "InstanceNormalization", "Concat", "Split", "Slice", "Pad", "Resize",
       "Loop", "If", "Scan", "Constant", "ConstantOfShape", "RandomNormal", "Dropout", "Clip", "Cast", "Shape",
       "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "Einsum", "LSTM", "NoSuchOp", "",
       "Optional", "SequenceConstruct", "GroupNormalization", "Flatten", "Squeeze", "Unsqueeze", "Gather")  # fmt: skip
ATTRIBUTES = ("axis", "axes", "strides", "pads", "dilations", "group", "kernel_shape", "alpha", "beta", "transA",
              "transB", "auto_pad", "epsilon", "block_size", "to", "value", "perm", "output_shape", "output_padding",
              "mode", "num_groups", "stash_type", "training_mode", "saturate", "no_such_attribute", "")  # fmt: skip


def mutation(function: Mutation) -> Mutation:
    MUTATIONS.append(function)
    return function


def graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    stack = [model.graph]
    while stack:
        graph = stack.pop()
        yield graph
        stack.extend(item.g for node in graph.node for item in node.attribute if item.HasField("g"))


def any_graph(model: onnx.ModelProto, r: random.Random) -> onnx.GraphProto:
    found = list(graphs(model))
    return found[0] if r.random() < 0.7 else r.choice(found)


def a_tensor(model: onnx.ModelProto, r: random.Random) -> onnx.TensorProto:
    tensors = list(any_graph(model, r).initializer) or list(model.graph.initializer)
    tensors += [item.t for node in model.graph.node for item in node.attribute if item.HasField("t")]
    return r.choice(tensors)


def a_node(model: onnx.ModelProto, r: random.Random) -> onnx.NodeProto:
    return r.choice(list(any_graph(model, r).node) or list(model.graph.node))


def a_name(model: onnx.ModelProto, r: random.Random) -> str:
    names = [n for node in model.graph.node for n in (*node.input, *node.output)]
    names += [t.name for t in model.graph.initializer]
    return r.choice(names if r.random() < 0.7 and names else NAMES)


def a_value(model: onnx.ModelProto, r: random.Random) -> onnx.ValueInfoProto:
    graph = any_graph(model, r)
    return r.choice([*graph.input, *graph.output, *graph.value_info] or [*model.graph.output])


@mutation
def dims_change(model: onnx.ModelProto, r: random.Random) -> None:
    dims = a_tensor(model, r).dims
    if dims and r.random() < 0.6:
        dims[r.randrange(len(dims))] = r.choice(SIZES)
    elif dims and r.random() < 0.5:
        del dims[r.randrange(len(dims))]
    else:
        dims.insert(r.randint(0, len(dims)), r.choice(SIZES))


@mutation
def dims_are_shuffled(model: onnx.ModelProto, r: random.Random) -> None:
    dims = a_tensor(model, r).dims
    order = list(dims)
    r.shuffle(order)
    dims[:] = order


@mutation
def a_shape_is_another(model: onnx.ModelProto, r: random.Random) -> None:
    """A well-formed tensor that does not fit its node."""
    tensor = a_tensor(model, r)
    shape = [r.randint(0, 5) for _ in range(r.randint(0, 5))]
    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if kind.kind != "O":
        tensor.CopyFrom(numpy_helper.from_array(np.ones(shape, kind), tensor.name))


@mutation
def data_is_cut_or_longer(model: onnx.ModelProto, r: random.Random) -> None:
    tensor = a_tensor(model, r)
    raw = tensor.raw_data
    tensor.raw_data = raw[: r.randint(0, len(raw))] if r.random() < 0.6 else raw + bytes(r.randint(1, 9))


@mutation
def data_moves_to_another_field(model: onnx.ModelProto, r: random.Random) -> None:
    tensor = a_tensor(model, r)
    if r.random() < 0.7:
        tensor.ClearField("raw_data")
    field = r.choice(["float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data"])
    value: Any = b"s" if field == "string_data" else 1
    count = int(np.prod(tensor.dims)) if r.random() < 0.7 else r.randint(0, 9)
    getattr(tensor, field).extend([value] * min(max(count, 0), 1000))


@mutation
def type_of_a_tensor(model: onnx.ModelProto, r: random.Random) -> None:
    a_tensor(model, r).data_type = r.choice([*range(27), 99, -1])


@mutation
def values_of_a_tensor(model: onnx.ModelProto, r: random.Random) -> None:
    tensor = a_tensor(model, r)
    try:
        values = numpy_helper.to_array(tensor).copy()
    except Exception:  # a mutation before made it unreadable
        return
    if values.dtype.kind == "f" and values.size:
        where = slice(None) if r.random() < 0.3 else r.randrange(values.size)
        values.reshape(-1)[where] = np.float32(r.choice(NUMBERS))
    elif values.dtype.kind in "iu" and values.size:
        info = np.iinfo(values.dtype)
        values.reshape(-1)[r.randrange(values.size)] = r.choice([info.min, info.max, 0, 1])
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


@mutation
def a_scale_or_zero_point(model: onnx.ModelProto, r: random.Random) -> None:
    names = {n for node in model.graph.node if node.op_type.endswith("quantizeLinear") or node.op_type.startswith("Q")
             for n in node.input[1:]}  # fmt: skip
    found = [t for t in model.graph.initializer if t.name in names]
    if not found:
        values_of_a_tensor(model, r)
        return
    tensor = r.choice(found)
    if tensor.data_type == TensorProto.FLOAT and r.random() < 0.6:
        shape = list(tensor.dims) if r.random() < 0.7 else [r.randint(0, 4) for _ in range(r.randint(0, 3))]
        tensor.CopyFrom(numpy_helper.from_array(np.full(shape, r.choice(NUMBERS), np.float32), tensor.name))
    else:
        kind = r.choice([np.int8, np.uint8, np.int32, np.int16, np.float32, np.int64, np.bool_])
        shape = [r.randint(0, 4) for _ in range(r.randint(0, 3))]
        tensor.CopyFrom(numpy_helper.from_array(np.ones(shape, kind), tensor.name))


@mutation
def sparse(model: onnx.ModelProto, r: random.Random) -> None:
    tensor = a_tensor(model, r)
    name, dims = tensor.name, list(tensor.dims)
    count = r.randint(0, 4)
    size = int(np.prod(dims)) if all(0 <= d < 2**20 for d in dims) else 10
    indices = np.array([r.choice([-1, 0, size, r.randint(0, max(size - 1, 0))]) for _ in range(count)], np.int64)
    if r.random() < 0.4:
        indices = np.array([[r.randint(-1, 5) for _ in dims] for _ in range(count)], np.int64).reshape(count, len(dims))
    values = numpy_helper.from_array(np.ones(count + r.choice([0, 0, 1]), np.float32), name)
    if r.random() < 0.3:
        dims = [r.choice(SIZES) for _ in dims]
    model.graph.sparse_initializer.append(
        onnx.SparseTensorProto(dims=dims, values=values, indices=numpy_helper.from_array(indices))
    )
    if tensor in model.graph.initializer and r.random() < 0.8:
        model.graph.initializer.remove(tensor)


@mutation
def external(model: onnx.ModelProto, r: random.Random) -> None:
    tensor = a_tensor(model, r)
    tensor.data_location = TensorProto.EXTERNAL
    for key in r.sample(["location", "offset", "length", "checksum", "odd"], r.randint(0, 4)):
        value = r.choice(["w.bin", "../w.bin", "/etc/hostname", "-1", "0", "12", str(2**63), "x", "", "model.onnx"])
        tensor.external_data.add(key=key, value=value)


@mutation
def attribute_value(model: onnx.ModelProto, r: random.Random) -> None:
    nodes = [node for node in any_graph(model, r).node if node.attribute]
    if not nodes:
        return
    item = r.choice(list(r.choice(nodes).attribute))
    if item.ints and r.random() < 0.7:
        if r.random() < 0.5:
            item.ints[r.randrange(len(item.ints))] = r.choice(SIZES)
        else:
            item.ints.extend([r.choice(SIZES)])
    elif item.type == onnx.AttributeProto.INT:
        item.i = r.choice(SIZES)
    elif item.type == onnx.AttributeProto.FLOAT:
        item.f = r.choice(NUMBERS)
    elif item.type == onnx.AttributeProto.STRING:
        item.s = r.choice([b"", b"SAME_UPPER", b"SAME_LOWER", b"VALID", b"\xff\xfe", b"none"])


@mutation
def attribute_type(model: onnx.ModelProto, r: random.Random) -> None:
    items = [item for node in any_graph(model, r).node for item in node.attribute]
    if items:
        r.choice(items).type = r.randint(0, 14)


@mutation
def attribute_is_another(model: onnx.ModelProto, r: random.Random) -> None:
    node = a_node(model, r)
    name = r.choice([item.name for item in node.attribute] or ATTRIBUTES) if r.random() < 0.6 else r.choice(ATTRIBUTES)
    value: Any = r.choice([1, 0, -1, 2**31, 0.5, "text", b"\xff", [1, 1], [0], [2**40], [0.1], ["a"]])
    if r.random() < 0.7:
        kept = [item for item in node.attribute if item.name != name]
        node.ClearField("attribute")
        node.attribute.extend(kept)
    node.attribute.append(helper.make_attribute(name, value))


@mutation
def attribute_goes(model: onnx.ModelProto, r: random.Random) -> None:
    node = a_node(model, r)
    if node.attribute:
        del node.attribute[r.randrange(len(node.attribute))]


@mutation
def attribute_of_a_caller(model: onnx.ModelProto, r: random.Random) -> None:
    node = a_node(model, r)
    item = r.choice(list(node.attribute)) if node.attribute else node.attribute.add(name="axis", type=2)
    item.ref_attr_name = r.choice(NAMES)


@mutation
def an_input_of_a_node(model: onnx.ModelProto, r: random.Random) -> None:
    node = a_node(model, r)
    if node.input and r.random() < 0.7:
        node.input[r.randrange(len(node.input))] = a_name(model, r)
    elif node.input and r.random() < 0.5:
        del node.input[r.randrange(len(node.input))]
    else:
        node.input.append(a_name(model, r))


@mutation
def an_output_of_a_node(model: onnx.ModelProto, r: random.Random) -> None:
    node = a_node(model, r)
    if node.output and r.random() < 0.6:
        node.output[r.randrange(len(node.output))] = a_name(model, r)
    elif node.output and r.random() < 0.5:
        del node.output[r.randrange(len(node.output))]
    else:
        node.output.append(a_name(model, r))


@mutation
def names(model: onnx.ModelProto, r: random.Random) -> None:
    what = r.choice(["node", "initializer", "input", "output", "graph"])
    if what == "graph":
        model.graph.name = r.choice(NAMES)
        return
    items = list(getattr(model.graph, what))
    if items:
        r.choice(items).name = a_name(model, r)


@mutation
def a_tensor_gets_another_name_everywhere(model: onnx.ModelProto, r: random.Random) -> None:
    old, new = a_name(model, r), r.choice(NAMES)
    for node in model.graph.node:
        for field in (node.input, node.output):
            field[:] = [new if name == old else name for name in field]
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        value.name = new if value.name == old else value.name


@mutation
def operator(model: onnx.ModelProto, r: random.Random) -> None:
    a_node(model, r).op_type = r.choice(OPS)


@mutation
def domain(model: onnx.ModelProto, r: random.Random) -> None:
    a_node(model, r).domain = r.choice(["ai.onnx", "com.microsoft", "mine", "é", "ai.onnx.ml"])


@mutation
def nodes_go_or_come(model: onnx.ModelProto, r: random.Random) -> None:
    graph = any_graph(model, r)
    if not graph.node:
        return
    index = r.randrange(len(graph.node))
    if r.random() < 0.5:
        del graph.node[index]
    else:
        graph.node.insert(r.randint(0, len(graph.node)), graph.node[index])


@mutation
def nodes_in_another_order(model: onnx.ModelProto, r: random.Random) -> None:
    graph = any_graph(model, r)
    nodes = list(graph.node)
    r.shuffle(nodes)
    graph.ClearField("node")
    graph.node.extend(nodes)


@mutation
def type_of_a_value(model: onnx.ModelProto, r: random.Random) -> None:
    value = a_value(model, r)
    if r.random() < 0.7:
        value.type.tensor_type.elem_type = r.choice([*range(24), 99, -5])
    elif r.random() < 0.5:
        value.type.sequence_type.elem_type.tensor_type.elem_type = 1
    else:
        value.ClearField("type")


@mutation
def shape_of_a_value(model: onnx.ModelProto, r: random.Random) -> None:
    shape = a_value(model, r).type.tensor_type.shape
    if shape.dim and r.random() < 0.6:
        shape.dim[r.randrange(len(shape.dim))].dim_value = r.choice(SIZES)
    elif shape.dim and r.random() < 0.4:
        shape.dim[r.randrange(len(shape.dim))].dim_param = r.choice(NAMES)
    elif r.random() < 0.5:
        shape.dim.add().dim_value = r.choice(SIZES)
    elif shape.dim:
        del shape.dim[r.randrange(len(shape.dim))]


@mutation
def values_go_or_come(model: onnx.ModelProto, r: random.Random) -> None:
    graph = any_graph(model, r)
    field = getattr(graph, r.choice(["input", "output", "value_info", "initializer"]))
    if field and r.random() < 0.5:
        del field[r.randrange(len(field))]
    elif field:
        field.append(r.choice(list(field)))


@mutation
def inner_tensors_are_returned(model: onnx.ModelProto, r: random.Random) -> None:
    model.graph.output.append(onnx.ValueInfoProto(name=a_name(model, r)))
    if r.random() < 0.5:
        model.graph.output[-1].type.tensor_type.elem_type = r.choice([1, 1, 1, 3, 7])


@mutation
def opsets(model: onnx.ModelProto, r: random.Random) -> None:
    if model.opset_import and r.random() < 0.7:
        r.choice(list(model.opset_import)).version = r.choice(
            [-1, 0, 1, 6, 7, 9, 11, 12, 13, 15, 18, 21, 23, 26, 999, 2**40]
        )
    elif r.random() < 0.5:
        model.opset_import.append(
            helper.make_opsetid(r.choice(["", "ai.onnx", "mine", "com.microsoft"]), r.randint(0, 25))
        )
    else:
        model.ClearField("opset_import")


@mutation
def versions(model: onnx.ModelProto, r: random.Random) -> None:
    model.ir_version = r.choice([-1, 0, 1, 3, 4, 7, 8, 10, 13, 99, 2**60])


@mutation
def functions(model: onnx.ModelProto, r: random.Random) -> None:
    node = a_node(model, r)
    inner = onnx.NodeProto()
    inner.CopyFrom(node)
    name = r.choice(["F", "F", "Relu", ""])
    made = helper.make_function(
        "mine",
        name,
        list(node.input),
        list(node.output),
        [inner],
        list(model.opset_import) or [helper.make_opsetid("", 17)],
    )
    model.functions.append(made)
    node.op_type, node.domain = name, "mine"
    if r.random() < 0.6:
        node.ClearField("attribute")
    if r.random() < 0.7:
        model.opset_import.append(helper.make_opsetid("mine", 1))
    if r.random() < 0.2:
        model.functions[-1].node[0].op_type, model.functions[-1].node[0].domain = name, "mine"


@mutation
def a_body(model: onnx.ModelProto, r: random.Random) -> None:
    """A node moves into both branches of an If."""
    node = r.choice(list(model.graph.node))
    inner = onnx.NodeProto()
    inner.CopyFrom(node)
    outputs = [onnx.ValueInfoProto(name=f"{name}_in") for name in node.output]
    inner.output[:] = [value.name for value in outputs]
    body = helper.make_graph([inner], "body", [], outputs)
    condition = model.graph.initializer.add()
    condition.CopyFrom(numpy_helper.from_array(np.asarray(r.random() < 0.5), "fuzz_condition"))
    made = helper.make_node(
        "If", ["fuzz_condition"], list(node.output), name="fuzz_if", then_branch=body, else_branch=body
    )
    node.CopyFrom(made)


@mutation
def constants_are_nodes(model: onnx.ModelProto, r: random.Random) -> None:
    if not model.graph.initializer:
        return
    index = r.randrange(len(model.graph.initializer))
    tensor = onnx.TensorProto()
    tensor.CopyFrom(model.graph.initializer[index])
    del model.graph.initializer[index]
    model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))


@mutation
def initializers_are_inputs(model: onnx.ModelProto, r: random.Random) -> None:
    tensor = a_tensor(model, r)
    model.graph.input.append(helper.make_tensor_value_info(tensor.name, max(tensor.data_type, 1), list(tensor.dims)))


@mutation
def other_floats(model: onnx.ModelProto, r: random.Random) -> None:
    kind = r.choice([np.float16, np.float64])
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and (r.random() < 0.8):
            try:
                values = numpy_helper.to_array(tensor)
            except Exception:  # a mutation before made it unreadable
                continue
            with np.errstate(over="ignore"):
                tensor.CopyFrom(numpy_helper.from_array(values.astype(kind), tensor.name))


@mutation
def metadata(model: onnx.ModelProto, r: random.Random) -> None:
    for _ in range(2):
        model.metadata_props.add(key=r.choice(["k", ""]), value=r.choice(NAMES))


def mutate_bytes(content: bytes, r: random.Random) -> bytes:
    """The file with some bytes changed, lost, doubled or moved."""
    data = bytearray(content)
    for _ in range(r.choice([1, 1, 2, 5, 30])):
        at, length = r.randrange(max(len(data), 1)), r.choice([1, 1, 2, 8, 100])
        match r.randrange(7):
            case 0 if data:
                data[at] ^= 1 << r.randrange(8)
            case 1:
                data[at : at + length] = r.randbytes(length)
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length]
            case 4:
                data[at:at] = r.choice([b"\xff" * 5, b"\x80", b"\0" * length])
            case 5 if r.random() < 0.3:
                del data[at:]
            case _:  # most bytes are weights: the ends hold the rest
                end = r.randrange(max(len(data) - 400, 0), max(len(data), 1)) if data else 0
                data[end : end + 1] = r.randbytes(1)
    return bytes(data)
