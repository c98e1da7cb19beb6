"""Where onnx's reference evaluator can be the oracle."""

from __future__ import annotations

import onnx

# Before onnx 1.23 its Conv is wrong or fails for many pads, groups and axes of one. The tests that ask for it compare
# with onnxruntime and with rows cut one at a time as well, and do that with every version.
CONV_IS_RIGHT = tuple(int(part) for part in onnx.__version__.split(".")[:2]) >= (1, 23)
