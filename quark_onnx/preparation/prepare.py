"""Prepare: from the user's model to the float model that is quantized, which computes the same.

The steps, and that each does no harm, are the business of `preparation/steps.py`: here is what they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import onnx

from quark.onnx.errors import ModelError
from quark.onnx.graph.editor import GraphEditor, constants_to_initializers
from quark.onnx.graph.known_shapes import known_lengths, with_inferred_shapes
from quark.onnx.graph.no_tensors import is_tensor
from quark.onnx.graph.opset import called_opset, opset_of, raised
from quark.onnx.graph.random_nodes import is_random, name_random_nodes
from quark.onnx.inference.large_models import transformed
from quark.onnx.inference.qdq_kernels import newest_qdq_opset
from quark.onnx.inference.sessions import Batch, Engine, session
from quark.onnx.preparation.clashing_names import part_clashing_names
from quark.onnx.preparation.float32 import in_float32
from quark.onnx.preparation.fold_constants import fold_constants
from quark.onnx.preparation.fold_into_layers import fold_into_layers, fold_numbers_in_front, fold_padding
from quark.onnx.preparation.fuse import FIRST_OPSET, fuse_patterns, has_pattern_of
from quark.onnx.preparation.gemm import fold_gemm_factors, write_matmul_as_gemm
from quark.onnx.preparation.idle_nodes import drop_dead_nodes, drop_idle_nodes
from quark.onnx.preparation.own_copies import part_arrangements, part_biases, part_parameters
from quark.onnx.preparation.pads import write_pads_of_all_axes
from quark.onnx.preparation.plain_writing import plainly_written
from quark.onnx.preparation.same_outputs import Reference
from quark.onnx.preparation.steps import Step, after_steps

__all__ = ["MIN_OPSET", "Prepared", "prepare", "prepared_forms", "prepared_on"]

MIN_OPSET = 13  # the first in which DequantizeLinear has an axis, which per-channel weights need
_NAMED = 5  # inputs in a note
_FREE_INITIALIZERS = 4  # the first IR version in which an initializer need not be an input as well
_ROUNDS = 3


@dataclass(frozen=True, eq=False)
class Prepared:
    """A float model, ready for quantization.

    Attributes:
        model: computes what the given one does.
        notes: a line on inputs that are none any more, and one for each step that was left out, and why.
    """

    model: onnx.ModelProto
    notes: tuple[str, ...]


def prepared_on(
    model: onnx.ModelProto,
    items: Sequence[Batch],
    engine: Engine,
    *,
    opset: int = MIN_OPSET,
    unfused: Collection[str] = (),
) -> Prepared:
    """Give a float model the form that quantization needs.

    Opset at least 13, and none whose Q/DQ onnxruntime has no kernels of; constants folded and held in initializers
    that are no inputs; no nodes without effect; operators
    in place of the graphs that exporters write for them (`fuse_patterns`), for which the opset may be raised further;
    BatchNormalization, and constants per channel, folded into the Conv, ConvTranspose, Gemm or MatMul before them, Pad
    into the Conv behind; MatMul + Add written as Gemm, and every Gemm with alpha = beta = 1; no bias shared, and no
    weight that layers arrange in different ways; nodes with unique names, their own where they had one; shapes
    inferred. Inputs, outputs and metadata stay as they are, but for shapes of outputs that are not what the model
    makes. Nodes that draw random numbers stay.

    Args:
        model: a float model, written in any way (`plainly_written`); not changed. What it computes in 16-bit floats
            becomes float32 (`in_float32`).
        items: some inputs. On them every form of the model must give the outputs that the model gives.
        engine: runs them.
        opset: the one wanted; where the model cannot be raised to it, it stays as it is.
        unfused: operators whose graphs stay.

    Raises:
        ModelError: onnxruntime cannot load the model, or a step that is needed, such as to opset 13, fails or changes
            what it computes.
        DataError: it cannot run on an item.
    """
    plain = _plain(model)
    wide = in_float32(plain)
    reference = _reference(model, plain, wide, items, engine)
    opset = max(opset, MIN_OPSET)
    steps = [
        Step(f"opset {MIN_OPSET}, which Q/DQ need,", partial(_at_opset, opset=MIN_OPSET), needed=True),
        Step("an opset whose Q/DQ onnxruntime runs,", _with_qdq_kernels, needed=True),
        Step("the inference of shapes", with_inferred_shapes),
        Step("one way to write Pad", _with_plain_pads),
        Step("the folding of constants", partial(transformed, transform=_with_folded_constants)),
        Step("the removal of nodes without effect", _without_idle_nodes),
        *(_raise_for(name, unfused) for name in sorted(FIRST_OPSET, key=lambda name: -FIRST_OPSET[name])),
        Step("operators in place of graphs", partial(transformed, transform=partial(fuse_patterns, but=unfused))),
        Step("Gemm in place of MatMul and Add", _with_gemm),
        Step("the folding of constants into layers", _with_folded_layers),
        Step("the folding of numbers into the layers behind", _with_folded_numbers),
        Step("the folding of Pad into Conv", _with_folded_pads),
        Step("what onnxruntime's quantizer needs of names and biases", _for_the_quantizer, needed=True),
        Step("the shapes of all tensors", partial(_with_all_shapes, given=wide, reference=reference), needed=True),
    ]
    if opset > MIN_OPSET:
        steps.insert(1, Step(f"opset {opset}", partial(_at_opset, opset=opset)))
    prepared, notes = after_steps(wide, steps, reference)
    return Prepared(prepared, (*_fixed_inputs(model), *notes))


def _fixed_inputs(model: onnx.ModelProto) -> Iterator[str]:
    """A note on inputs with values of their own; up to IR version 3 all initializers are inputs, which says nothing."""
    valued = sorted({value.name for value in model.graph.input} & {tensor.name for tensor in model.graph.initializer})
    if valued and model.ir_version >= _FREE_INITIALIZERS:
        names = ", ".join(map(repr, valued[:_NAMED])) + (", ..." if len(valued) > _NAMED else "")
        yield f"inputs with values of their own keep these and are no inputs any more: {names}"


def prepare(model: onnx.ModelProto, *, opset: int = MIN_OPSET, unfused: Collection[str] = ()) -> onnx.ModelProto:
    """`prepared_on` without data: the result is known to run, not to compute the same."""
    return prepared_on(model, (), Engine(1), opset=opset, unfused=unfused).model


def prepared_forms(
    model: onnx.ModelProto, items: Sequence[Batch], engine: Engine
) -> tuple[tuple[onnx.ModelProto, onnx.ModelProto], tuple[str, ...]]:
    """A float model as `prepared_on` makes it, and plainly written in float32 only, with unique names of nodes; and the
    notes. Raises as `prepared_on` does.
    """
    prepared = prepared_on(model, items, engine)
    unprepared = in_float32(plainly_written(model))
    _name_nodes(unprepared.graph)
    return (prepared.model, unprepared), prepared.notes


def _plain(model: onnx.ModelProto) -> onnx.ModelProto:
    result = plainly_written(model)
    graph = result.graph
    constants_to_initializers(graph)
    name_random_nodes(graph)
    _part_names(graph)
    initializers = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in initializers]
    graph.ClearField("input")
    graph.input.extend(inputs)
    GraphEditor(graph).remove_unused_initializers()
    needed = onnx.helper.find_min_ir_version_for(result.opset_import, ignore_unknown=True)
    result.ir_version = max(result.ir_version, needed, _FREE_INITIALIZERS)
    return result


def _reference(
    given: onnx.ModelProto, plain: onnx.ModelProto, wide: onnx.ModelProto, items: Sequence[Batch], engine: Engine
) -> Reference:
    """What the model computes; in float32, where that is another form."""
    draws = any(map(is_random, plain.graph.node))  # the nodes of `given` need not have names
    problem: ModelError | None = None
    for form in (plain, wide) if draws else (given, plain, wide):
        try:
            reference = Reference(form, items, engine)
            break
        except ModelError as error:  # nodes of the same name; operators that onnxruntime has not for 16-bit floats
            problem = error
    else:
        raise ModelError(f"onnxruntime cannot run the model: {problem}") from problem
    if wide is plain or form is wide:
        return reference
    difference = "" if draws else reference.difference_of_casts(wide)  # the numbers that are drawn depend on the type
    if difference:
        raise ModelError(f"the model computes something else in float32, which quantization needs: {difference}")
    return Reference(wide, items, engine)


def _at_opset(model: onnx.ModelProto, *, opset: int) -> onnx.ModelProto:
    if opset_of(model, opset) >= opset:
        return model
    try:
        return transformed(model, partial(raised, opset=opset))
    except Exception as error:  # the converter's exceptions have no base of their own
        raise ModelError(f"the model cannot be raised to opset {opset}: {error}") from error


def _with_qdq_kernels(model: onnx.ModelProto) -> onnx.ModelProto:
    """Operators stay as they are: where the older opset has others, the checker or a value tells."""
    opset = newest_qdq_opset(opset_of(model))
    return model if opset >= opset_of(model) else called_opset(model, opset)


def _raise_for(operator: str, unfused: Collection[str]) -> Step:
    opset = FIRST_OPSET[operator]

    def apply(model: onnx.ModelProto) -> onnx.ModelProto:
        if operator in unfused or opset_of(model) >= opset or not has_pattern_of(model, operator):
            return model
        model = _at_opset(model, opset=opset)
        constants_to_initializers(model.graph)  # the axes of ReduceMean, ...
        return with_inferred_shapes(model)

    return Step(f"opset {opset}, for {operator},", apply)


def _with_plain_pads(model: onnx.ModelProto) -> onnx.ModelProto:
    write_pads_of_all_axes(model.graph)
    return model


def _with_folded_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    for _ in range(_ROUNDS):  # constants may make more shapes known, and these more constants
        before = len(model.graph.node)
        model = with_inferred_shapes(fold_constants(model))
        if len(model.graph.node) == before:
            break
    return model


def _without_idle_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    model = drop_idle_nodes(model)
    drop_dead_nodes(model.graph)
    GraphEditor(model.graph).remove_unused_initializers()
    return model


def _with_gemm(model: onnx.ModelProto) -> onnx.ModelProto:
    editor, before = GraphEditor(model.graph), len(model.graph.node)
    write_matmul_as_gemm(editor, known_lengths(model.graph))
    fold_gemm_factors(editor)
    nodes = len(model.graph.node)
    return model if nodes <= before else drop_idle_nodes(with_inferred_shapes(model))  # two Reshapes meet


def _with_folded_layers(model: onnx.ModelProto) -> onnx.ModelProto:
    fold_into_layers(GraphEditor(model.graph))
    return model


def _with_folded_numbers(model: onnx.ModelProto) -> onnx.ModelProto:
    fold_numbers_in_front(GraphEditor(model.graph))
    return model


def _with_folded_pads(model: onnx.ModelProto) -> onnx.ModelProto:
    fold_padding(GraphEditor(model.graph))
    drop_dead_nodes(model.graph)
    return model


def _for_the_quantizer(model: onnx.ModelProto) -> onnx.ModelProto:
    editor = GraphEditor(model.graph)
    part_parameters(editor)
    part_biases(editor)
    part_arrangements(editor)
    editor.remove_unused_initializers()
    part_clashing_names(model.graph)
    _name_nodes(model.graph)
    return model


def _with_all_shapes(model: onnx.ModelProto, *, given: onnx.ModelProto, reference: Reference) -> onnx.ModelProto:
    """The model with the shapes of inner tensors, and those of outputs that `given` states, where they are right."""
    model = with_inferred_shapes(model)
    for index, (output, stated) in enumerate(zip(model.graph.output, given.graph.output, strict=True)):
        if _is_right(stated, output, reference.shapes(index)):
            output.CopyFrom(stated)
    _add_types(model)
    return model


def _is_right(stated: onnx.ValueInfoProto, inferred: onnx.ValueInfoProto, seen: Collection[tuple[int, ...]]) -> bool:
    """Whether what a model states of an output can be: it agrees with what was inferred, and with what was seen."""
    if not stated.type.tensor_type.HasField("shape"):
        return True
    lengths = _lengths(stated)
    others = [list[int | None](shape) for shape in seen]
    if inferred.type.tensor_type.HasField("shape"):
        others.append(_lengths(inferred))
    return all(
        len(lengths) == len(other)
        and all(a == b or a is None or b is None for a, b in zip(lengths, other, strict=True))
        for other in others
    )


def _lengths(value: onnx.ValueInfoProto) -> list[int | None]:
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]


def _part_names(graph: onnx.GraphProto) -> None:
    """Give nodes names of their own; the first of several with one name keeps it."""
    _name(graph, [node for node in graph.node if node.name])


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Unnamed nodes become <op_type>_<i>; of several nodes with one name, the first keeps it."""
    _name(graph, graph.node)


def _name(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    taken = {node.name for node in graph.node} | {""}
    named: set[str] = set()
    counts: Counter[str] = Counter()
    for node in nodes:
        if node.name and node.name not in named:
            named.add(node.name)
            continue
        stem, name = node.name or node.op_type, ""
        while name in taken:
            name = f"{stem}_{counts[stem]}"
            counts[stem] += 1
        taken.add(name)
        node.name = name


def _add_types(model: onnx.ModelProto) -> None:
    """The types of tensors that only onnxruntime's own operators make, as onnxruntime infers them."""
    graph = model.graph
    known = [value for value in graph.value_info if value.type.tensor_type.elem_type or not is_tensor(value)]
    graph.ClearField("value_info")
    graph.value_info.extend(known)
    typed = {value.name for value in (*graph.input, *graph.value_info, *graph.output)}
    untyped = [name for node in graph.node for name in node.output if name and name not in typed]
    if not untyped:
        return
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in untyped)
    for value in session(probe, Engine(1), optimise=False).get_outputs()[len(graph.output) :]:
        if value.type.startswith("tensor("):
            element = onnx.TensorProto.DataType.Value(value.type[len("tensor(") : -1].upper())
            graph.value_info.append(onnx.helper.make_tensor_value_info(value.name, element, None))
