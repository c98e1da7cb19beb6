"""`quark.onnx.config` at the path that scripts for AMD Quark import it from."""

from quark.onnx.config import *  # noqa: F403
from quark.onnx.config import __all__ as __all__
