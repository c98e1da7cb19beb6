"""`quark.onnx.config.spec` at the path that scripts for AMD Quark import it from."""

from quark.onnx.config.spec import *  # noqa: F403
from quark.onnx.config.spec import __all__ as __all__
