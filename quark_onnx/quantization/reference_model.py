"""ref_model_path: a model that takes the float model's place in finetuning.

It gives the targets of the layers, their float weights and the outputs to compare with; ranges and scales stay those of
the model that is quantized. Its weights are what makes the targets: so AdaRound rounds them down or up, and damping
pulls towards them. The float model as its own reference changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from quark.onnx.errors import ModelError
from quark.onnx.inference.sessions import Batch, Engine
from quark.onnx.model_files.model_file import load_model
from quark.onnx.model_files.quantized_form import is_quantized
from quark.onnx.preparation.prepare import prepared_forms

__all__ = ["ReferenceModel", "reference_forms", "reference_model"]

_ROLE = "reference model (ref_model_path)"


@dataclass(frozen=True, eq=False)
class ReferenceModel:
    """What is at ref_model_path; where: for messages."""

    model: onnx.ModelProto
    where: str


def reference_model(path: str | os.PathLike[str] | None, model: onnx.ModelProto) -> ReferenceModel | None:
    """The model at ref_model_path; None without a path.

    Args:
        model: the float model whose place it takes, as it is.

    Raises:
        OSError: the path cannot be read.
        ModelError: it is not ONNX, is quantized, or has other inputs, or outputs of other shapes, than `model`.
    """
    if path is None:
        return None
    reference, where = load_model(path, role=_ROLE), f"the {_ROLE} {os.fspath(path)!r}"
    if is_quantized(reference):
        raise ModelError(f"{where} is quantized: give a float model")
    if difference := _first_difference(reference.graph, model.graph):
        raise ModelError(f"{where} cannot stand for the float model: {difference}")
    return ReferenceModel(reference, where)


def reference_forms(
    reference: ReferenceModel | None, items: Sequence[Batch], engine: Engine
) -> tuple[tuple[onnx.ModelProto, ...], tuple[str, ...]]:
    """A reference model prepared and as it is, and notes on how; nothing of None.

    Args:
        items: as for `prepared_on`.

    Raises:
        ModelError: it cannot be prepared.
        DataError: it cannot run on the items.
    """
    if reference is None:
        return (), ()
    try:
        forms, notes = prepared_forms(reference.model, items, engine)
    except ModelError as error:
        raise ModelError(f"{reference.where}: {error}") from error
    return forms, tuple(f"{_ROLE}: {note}" for note in notes)


def _first_difference(reference: onnx.GraphProto, model: onnx.GraphProto) -> str:
    given, wanted = _inputs(reference), _inputs(model)
    if given.keys() != wanted.keys():
        return f"its inputs are {sorted(given)}, not {sorted(wanted)}"
    for name, shown in wanted.items():
        if given[name] != shown:
            return f"its input {name!r} is {given[name]}, not {shown}"
    if len(reference.output) != len(model.output):
        return f"it has {len(reference.output)} outputs, not {len(model.output)}"
    for have, want in zip(reference.output, model.output, strict=True):
        if _conflict(have, want):
            return f"its output {have.name!r} is {_shown(have)}, not {_shown(want)}"
    return ""


def _inputs(graph: onnx.GraphProto) -> dict[str, str]:
    constants = {tensor.name for tensor in graph.initializer}
    return {value.name: _shown(value) for value in graph.input if value.name not in constants}


def _shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...] | None:
    """None for a free axis; None as a whole when the rank is not known."""
    tensor = value.type.tensor_type
    return tuple(d.dim_value or None for d in tensor.shape.dim) if tensor.HasField("shape") else None


def _conflict(a: onnx.ValueInfoProto, b: onnx.ValueInfoProto) -> bool:
    """Whether two values never have the same type and shape. What is free is compared when the models run."""
    if a.type.tensor_type.elem_type != b.type.tensor_type.elem_type:
        return True
    x, y = _shape(a), _shape(b)
    if x is None or y is None:
        return False
    return len(x) != len(y) or any(m != n for m, n in zip(x, y, strict=True) if m is not None and n is not None)


def _shown(value: onnx.ValueInfoProto) -> str:
    kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    shape = _shape(value)
    return f"{kind} of any shape" if shape is None else f"{kind} ({', '.join(str(d or '?') for d in shape)})"
