"""What a quantized model suffers from, and what would help: every quantizer by itself, at the model's outputs."""

from quark.onnx.diagnosis.analysis import analyse
from quark.onnx.diagnosis.diagnosis import Cure, Diagnosis, Finding
from quark.onnx.diagnosis.write_cures import CuredModel, cure

__all__ = ["Cure", "CuredModel", "Diagnosis", "Finding", "analyse", "cure"]
