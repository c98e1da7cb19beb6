"""Prepare: from the user's model to the float model that is quantized, which computes the same."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection

import onnx
import onnxruntime
import onnxslim

from quark.onnx.errors import ModelError
from quark.onnx.graph.editor import GraphEditor, constants_to_initializers, rename_tensors
from quark.onnx.graph.float32 import in_float32
from quark.onnx.graph.fuse import fuse_patterns
from quark.onnx.graph.gemm import fold_batch_normalization, fold_gemm_factors, write_matmul_as_gemm
from quark.onnx.graph.known_shapes import shapes_are_known, with_inferred_shapes, with_shapes
from quark.onnx.graph.normalization import NORMALIZATIONS
from quark.onnx.graph.opset import opset_of, raised, raised_if_possible
from quark.onnx.graph.plain import plainly_written
from quark.onnx.large_models import serialized_for, transformed

__all__ = ["MIN_OPSET", "prepare", "unprepared"]

_LOG = logging.getLogger(__name__)
MIN_OPSET = 13  # the first in which DequantizeLinear has an axis, which per-channel weights need

_OPS_WITH_BIAS = frozenset({"Conv", "ConvTranspose", "Gemm", *NORMALIZATIONS})

# What onnxruntime.quantization appends to a tensor's name for the parameters of its quantization. It takes an
# initializer that already has such a name for its own, without a word.
_QDQ_SUFFIX = re.compile(
    r"_(scale|zero_point|quantized|quantized_(scale|zero_point)|(Deq|Q)uantizeLinear_(In|Out)put)$"
)


def prepare(model: onnx.ModelProto, *, opset: int = MIN_OPSET, unfused: Collection[str] = ()) -> onnx.ModelProto:
    """Simplify a float model and give it the form that quantization needs.

    Opset at least 13; constants folded and held in initializers that are no inputs; operators in place of the
    graphs that exporters write for them (`fuse_patterns`, which may raise the opset further); BatchNormalization
    folded into the Conv, ConvTranspose, Gemm or MatMul before it; MatMul + Add of two dimensions written as
    Gemm, and every Gemm with alpha = beta = 1; no bias shared; nodes with unique names, their own where they
    had one; shapes inferred. Inputs, outputs and metadata stay as they are.

    Args:
        model: a float model, written in any way (`plainly_written`); not changed. What it computes in 16-bit floats
            becomes float32 (`in_float32`).
        opset: the one wanted; where the model cannot be raised to it, it stays as it is.
        unfused: operators whose graphs stay.

    Raises:
        ModelError: the model cannot be raised to opset 13, or onnxruntime cannot run it.
    """
    result = plainly_written(model)
    constants_to_initializers(result.graph)  # onnxslim takes value_floats for float64
    result = in_float32(result)
    opset = max(opset, MIN_OPSET)
    result = transformed(result, lambda given: with_shapes(_simplified(_at_opset(given, opset))))
    result = transformed(result, lambda given: fuse_patterns(given, but=unfused))
    _part_inputs_from_outputs(result.graph)
    editor = GraphEditor(result.graph)
    write_matmul_as_gemm(editor, _ranks(result.graph))
    fold_gemm_factors(editor)
    fold_batch_normalization(editor)
    _unshare_biases(editor)
    editor.remove_unused_initializers()
    _rename_clashes(editor)
    _name_nodes(result.graph)
    result = transformed(result, with_shapes)
    _check_runs(result)
    return result


def unprepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float model as it is, but plainly written (`plainly_written`), in float32, and with unique names of nodes."""
    result = in_float32(plainly_written(model))
    _name_nodes(result.graph)
    return result


def _at_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """At the least opset that Q/DQ need, and at the one wanted if that can be had."""
    if opset_of(model, opset) < MIN_OPSET:
        try:
            model = raised(model, MIN_OPSET)
        except Exception as error:
            raise ModelError(f"the model cannot be raised to opset {MIN_OPSET}, which Q/DQ need: {error}") from error
    return raised_if_possible(model, opset) if opset > MIN_OPSET else model


def _simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """Take over the nodes and constants that onnxslim makes, not its inputs, outputs, names and metadata."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    names = {node.name for node in model.graph.node}
    name_of_producer = {output: node.name for node in model.graph.node for output in node.output}
    try:
        slim = with_inferred_shapes(model)
        known = shapes_are_known(slim)
        slim = _slim(slim, infer=not known)
        if known and not shapes_are_known(slim):  # onnxslim made tensors, and may do more when it knows theirs
            slim = _slim(slim, infer=True)
        if not _is_whole(slim.graph):  # onnxslim can lose a tensor that a Reshape or Transpose without effect makes
            _LOG.warning("onnxslim would lose tensors of the model, which is not simplified")
            slim = with_inferred_shapes(model)
    except Exception as error:
        raise ModelError(f"onnxslim cannot simplify the model: {type(error).__name__}: {error}") from error
    for node in slim.graph.node:
        if node.name not in names:  # onnxslim names a fused node after the output of its first part
            node.name = name_of_producer.get(node.name, "")
    values = {value.name: value for value in slim.graph.value_info}  # some come twice
    for field, kept in (("input", inputs), ("output", model.graph.output), ("value_info", values.values())):
        slim.graph.ClearField(field)
        getattr(slim.graph, field).extend(kept)
    model.graph.CopyFrom(slim.graph)
    # Old versions want every initializer to be an input as well.
    needed = onnx.helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    model.ir_version = max(model.ir_version, needed)
    return model


def _slim(model: onnx.ModelProto, *, infer: bool) -> onnx.ModelProto:
    # Weight tying would make layers share a weight or bias that each of them should tune on its own.
    slim: onnx.ModelProto = onnxslim.slim(model, skip_optimizations=["weight_tying"], no_shape_infer=not infer)
    return slim


def _is_whole(graph: onnx.GraphProto) -> bool:
    """Whether all that nodes read, and all outputs, are there."""
    there = {"", *(value.name for value in (*graph.input, *graph.initializer))}
    there |= {tensor.values.name for tensor in graph.sparse_initializer}
    for node in graph.node:
        if not there.issuperset(node.input):
            return False
        there.update(node.output)
    return there.issuperset(output.name for output in graph.output)


def _part_inputs_from_outputs(graph: onnx.GraphProto) -> None:
    """Nodes read a copy of an input that the model returns: onnxruntime's quantizer would give its name to another."""
    interface = (*graph.input, *graph.output)
    names, returned = [value.name for value in interface], {value.name for value in graph.output}
    editor = GraphEditor(graph)
    inner = {value.name: editor.fresh_name(value.name + "_copy") for value in graph.input if value.name in returned}
    rename_tensors(graph, inner)
    for value, name in zip(interface, names, strict=True):
        value.name = name
    for name, copy in inner.items():
        graph.node.insert(0, onnx.helper.make_node("Identity", [name], [copy]))


def _ranks(graph: onnx.GraphProto) -> dict[str, int]:
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }


def _unshare_biases(editor: GraphEditor) -> None:
    """Give each layer its own bias: its int32 scale differs, and so does what finetune makes of it."""
    for node in editor.graph.node:
        bias = editor.constant(node, 2) if node.op_type in _OPS_WITH_BIAS else None
        if bias is not None and len(editor.readers(node.input[2])) > 1:
            editor.set_constant(node, 2, bias, like=node.input[2])


def _rename_clashes(editor: GraphEditor) -> None:
    """Rename tensors whose name onnxruntime would give to a scale, zero point, ... of another tensor."""
    mapping = {}
    for name in sorted(editor.names):
        tensor = _QDQ_SUFFIX.sub("", name)
        if tensor == name or tensor not in editor.names:
            continue
        if name in editor.interface:
            raise ModelError(
                f"the model has an input or output {name!r} and a tensor {tensor!r}, whose quantization "
                f"parameters get that name: rename {name!r}"
            )
        mapping[name] = editor.fresh_name(name + "_")
    if mapping:
        rename_tensors(editor.graph, mapping)


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Unnamed nodes become <op_type>_<i>; of several nodes with one name, the first keeps it."""
    taken = {node.name for node in graph.node} | {""}
    named: set[str] = set()
    counts: Counter[str] = Counter()
    for node in graph.node:
        if node.name and node.name not in named:
            named.add(node.name)
            continue
        stem, name = node.name or node.op_type, ""
        while name in taken:
            name = f"{stem}_{counts[stem]}"
            counts[stem] += 1
        taken.add(name)
        node.name = name


def _is_tensor(value: onnx.ValueInfoProto) -> bool:
    return value.type.WhichOneof("value") in (None, "tensor_type")


def _check_runs(model: onnx.ModelProto) -> None:
    """Have onnxruntime accept the model, and add the types of tensors that only its own operators make."""
    graph = model.graph
    known = [value for value in graph.value_info if value.type.tensor_type.elem_type or not _is_tensor(value)]
    graph.ClearField("value_info")
    graph.value_info.extend(known)
    typed = {value.name for value in (*graph.input, *graph.value_info, *graph.output)}
    untyped = [name for node in graph.node for name in node.output if name and name not in typed]
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in untyped)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # the exception says it all
    try:
        content, _tensors_in_use = serialized_for(options, probe)
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        raise ModelError(f"onnxruntime cannot run the model: {error}") from error
    for value in session.get_outputs()[len(graph.output) :]:
        if value.type.startswith("tensor("):
            element = onnx.TensorProto.DataType.Value(value.type[len("tensor(") : -1].upper())
            graph.value_info.append(onnx.helper.make_tensor_value_info(value.name, element, None))
