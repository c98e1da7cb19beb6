"""`quark.onnx.config.algorithm` at the path that scripts for AMD Quark import it from."""

from quark.onnx.config.algorithm import *  # noqa: F403
from quark.onnx.config.algorithm import __all__ as __all__
