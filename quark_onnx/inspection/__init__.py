"""What would be done to a model, before any of it is done."""

from quark.onnx.inspection.inspected_model import InspectedLayer, InspectedModel, inspect_model

__all__ = ["InspectedLayer", "InspectedModel", "inspect_model"]
