"""Changes of a float model, one after the other, each kept only if the model still computes what it did."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx

from quark.onnx.errors import ModelError
from quark.onnx.inference.large_models import without_weights
from quark.onnx.preparation.same_outputs import Reference

__all__ = ["Step", "after_steps"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """One change.

    Attributes:
        name: for messages, as "constant folding".
        apply: returns the changed model; may change and return the one that it gets.
        needed: quantization cannot do without it.
    """

    name: str
    apply: Callable[[onnx.ModelProto], onnx.ModelProto]
    needed: bool = False


def after_steps(
    model: onnx.ModelProto, steps: Sequence[Step], reference: Reference
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """A model after all steps that do it no harm, and a line for each that was left out.

    The result of all steps together is looked at first: only where something is wrong with it each step is.

    Args:
        model: not changed.
        reference: what it computes.

    Raises:
        ModelError: a step that is needed fails, or what it makes of the model cannot run or computes something else.
        OutOfMemoryError: there is too little memory.
    """
    try:
        result = _copied(model)
        for step in steps:
            result = step.apply(result)
        result = _copied(result)  # a message keeps the memory of what was replaced in it
        problem = _problem(result, model, reference)
    except MemoryError:
        raise
    except Exception as error:  # a step may raise anything: then it is looked for below
        problem = str(error)
    if not problem:
        return result, ()
    result, notes = model, list[str]()
    for step in steps:
        candidate, why = _after(step, result, model, reference)
        if candidate is not None:
            result = candidate
        else:
            notes.append(f"preparation: {step.name} was left out: {why}")
            _LOG.info(notes[-1])
    return result, tuple(notes)


def _after(
    step: Step, model: onnx.ModelProto, given: onnx.ModelProto, reference: Reference
) -> tuple[onnx.ModelProto | None, str]:
    """The model after a step, or None and why not."""
    try:
        candidate = step.apply(_copied(model))
        problem = _problem(candidate, given, reference)
    except MemoryError:
        raise
    except Exception as error:  # onnx's and onnxruntime's have no base of their own
        if step.needed:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"{step.name} is not possible: {type(error).__name__}: {error}") from error
        return None, " ".join(f"{type(error).__name__}: {error}".split())
    if problem and step.needed:
        raise ModelError(f"{step.name} changes what the model computes: {problem}")
    return (None, problem) if problem else (candidate, "")


def _problem(candidate: onnx.ModelProto, given: onnx.ModelProto, reference: Reference) -> str:
    """What is wrong with a changed model; "" if nothing."""
    rejected = _rejected(candidate)
    if rejected and not _rejected(given):
        return f"the checker would reject the model: {rejected}"
    return reference.difference(candidate)


def _rejected(model: onnx.ModelProto) -> str:
    """What the checker has against a model, but for its weights, which are as they were or NumPy's; "" if nothing."""
    try:
        onnx.checker.check_model(without_weights(model), full_check=True)
    except Exception as error:  # of the checker or of shape inference
        return " ".join(str(error).split())
    return ""


def _copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
