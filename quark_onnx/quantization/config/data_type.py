"""`quark.onnx.config.data_type` at the path that scripts for AMD Quark import it from."""

from quark.onnx.config.data_type import *  # noqa: F403
from quark.onnx.config.data_type import __all__ as __all__
