"""What leaves the entry points: errors of this package, of the operating system, and of the caller's own code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from types import FrameType
from typing import ParamSpec, TypeVar

import onnx

from quark.onnx.errors import FinetuneError, ModelError, OutOfMemoryError, QuarkError
from quark.onnx.system.native_calls import leave_if_python_ends

__all__ = ["is_of_the_caller", "of_the_caller", "only_own_errors"]

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")

_MARK = "_raised_by_the_caller_of_quark_onnx"
_TUNING = "quark.onnx.fast_finetune.finetune_layers"  # a model that comes so far was understood
# What is wrong is not the model: the machine, the caller's own code, and warnings that the caller has made errors.
_PASS = (QuarkError, OSError, Warning)


def of_the_caller(call: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """A function of the caller's, a reader or an evaluator, whose exceptions come through as they are."""

    @wraps(call, assigned=(), updated=())
    def marked(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            setattr(error, _MARK, True)
            raise

    return marked


def is_of_the_caller(error: BaseException) -> bool:
    """Whether an exception was raised by a function `of_the_caller`."""
    return hasattr(error, _MARK)


def only_own_errors(entry: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """An entry point whose exceptions are a `QuarkError`, an OSError, or the caller's.

    Anything else, a KeyError of ours or a DecodeError of protobuf's, becomes a ModelError, or a FinetuneError where the
    model was understood and layers were being solved. The message names the node or tensor that was at work, and the
    error, which stays its cause.
    """

    @wraps(entry)
    def guarded(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        try:
            return entry(*args, **kwargs)
        except Exception as error:
            if is_of_the_caller(error):
                raise
            leave_if_python_ends()  # parts of Python are not there any more
            frames = list(_frames(error))
            if isinstance(error, _PASS) or _does_not_bind(error, frames):
                raise
            if isinstance(error, MemoryError):
                said = f": {error}" if str(error) else ""
                raise OutOfMemoryError(
                    f"{_about(frames)}there is not enough memory{said}. Give more, or less to do at a time: smaller "
                    "items, mem_opt_level=2, NumThreads=1"
                ) from error
            kind = FinetuneError if any(f.f_globals.get("__name__") == _TUNING for f in frames) else ModelError
            raise kind(
                f"{_about(frames)}{type(error).__name__}: {error}. This model is written in a way that was not "
                "foreseen: please report it"
            ) from error

    return guarded


def _frames(error: BaseException) -> Iterator[FrameType]:
    """The frames that an exception went through, the innermost one first."""
    found = []
    traceback = error.__traceback__
    while traceback is not None:
        found.append(traceback.tb_frame)
        traceback = traceback.tb_next
    yield from reversed(found)


def _does_not_bind(error: Exception, frames: list[FrameType]) -> bool:
    """Whether the caller gave an argument too many or too few, so that the entry point was not even begun."""
    return isinstance(error, TypeError) and len(frames) == 1


def _about(frames: list[FrameType]) -> str:
    """The node or tensor that some function was at work on, the innermost one."""
    for frame in frames:
        for value in frame.f_locals.values():
            if isinstance(value, onnx.NodeProto):
                name = value.name or next(iter(value.output), "")
                return f"at node {name!r} ({value.op_type}): "
            if isinstance(value, onnx.TensorProto):
                return f"at tensor {value.name!r}: "
    return ""
