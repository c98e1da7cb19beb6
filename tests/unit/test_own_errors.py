"""What leaves an entry point: our errors, the system's and the caller's."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest

from quark.onnx.errors import DataError, ModelError, OutOfMemoryError
from quark.onnx.own_errors import of_the_caller, only_own_errors


def raises(error: BaseException) -> Callable[[], None]:
    def run() -> None:
        raise error

    return run


@pytest.mark.parametrize(
    "error", [DataError("d"), FileNotFoundError("f"), KeyboardInterrupt(), DeprecationWarning("w")]
)
def test_these_come_through(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        only_own_errors(raises(error))()
    assert caught.value is error


@pytest.mark.parametrize("error", [KeyError("k"), ValueError("v"), StopIteration(), RuntimeError("r")])
def test_the_callers_come_through(error: Exception) -> None:
    def run() -> None:
        of_the_caller(raises(error))()

    with pytest.raises(type(error)) as caught:
        only_own_errors(run)()
    assert caught.value is error


@pytest.mark.parametrize("error", [KeyError("k"), IndexError("i"), UnicodeDecodeError("utf-8", b"", 0, 1, "x")])
def test_others_become_a_model_error_that_names_them(error: Exception) -> None:
    with pytest.raises(ModelError, match=f"^{type(error).__name__}: .*please report it") as caught:
        only_own_errors(raises(error))()
    assert caught.value.__cause__ is error


def test_the_innermost_node_or_tensor_is_named() -> None:
    def inner(node: onnx.NodeProto) -> None:
        raise KeyError(node.op_type)

    def outer(tensor: onnx.TensorProto) -> None:
        inner(onnx.helper.make_node("Conv", [tensor.name], ["y"], name="stem"))

    with pytest.raises(ModelError, match=r"^at node 'stem' \(Conv\): KeyError: 'Conv'"):
        only_own_errors(outer)(onnx.TensorProto(name="w"))


def test_arguments_that_do_not_fit_are_a_type_error() -> None:
    def entry(model: object, *, output: object = None) -> object:
        return model, output

    guarded = only_own_errors(entry)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'model'"):
        guarded()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'outputs'"):
        guarded(1, outputs=2)  # type: ignore[call-arg]


def test_arguments_and_results_pass() -> None:
    assert only_own_errors(divmod)(7, 2) == (3, 1)


def test_memory_that_is_short_is_told_as_that() -> None:
    @only_own_errors
    def entry() -> None:
        raise MemoryError

    with pytest.raises(OutOfMemoryError, match="not enough memory"):
        entry()
