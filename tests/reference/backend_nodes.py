"""ONNX's own tests of its operators, which the onnx package ships: a model and inputs for each."""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np
import onnx
from onnx.backend.test.loader import load_model_tests

__all__ = ["backend_tests"]


@cache
def backend_tests() -> dict[str, tuple[onnx.ModelProto, dict[str, np.ndarray] | None]]:
    """The tests by name; None in place of inputs where one is no tensor. Empty where onnx ships them in another way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of them divide by 0
        cases = [case for case in load_model_tests(kind="node") if case.model is not None and case.data_sets]
    found = {}
    for case in sorted(cases, key=lambda case: case.name):
        arrays = case.data_sets[0][0]
        named = dict(zip((value.name for value in case.model.graph.input), arrays, strict=False))
        are_tensors = all(isinstance(array, (np.ndarray, np.generic)) for array in arrays)
        found[case.name] = (case.model, {k: np.asarray(v) for k, v in named.items()} if are_tensors else None)
    return found
