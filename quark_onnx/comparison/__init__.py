"""Two models on the same data: how far the outputs of the one are from the other's."""

from quark.onnx.comparison.compare_models import ComparedModels, ComparedOutput, compare_models

__all__ = ["ComparedModels", "ComparedOutput", "compare_models"]
