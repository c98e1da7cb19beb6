"""AMD Quark's AdaQuant tutorial: python examples/adaquant_mobilenetv2.py MODEL CALIBRATION VALIDATION (see --help)."""

from mobilenetv2_tutorial import tutorial

from quark.onnx import AdaQuantConfig

if __name__ == "__main__":
    tutorial(AdaQuantConfig())
