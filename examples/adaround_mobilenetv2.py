"""AMD Quark's AdaRound tutorial: python examples/adaround_mobilenetv2.py MODEL CALIBRATION VALIDATION (see --help)."""

from mobilenetv2_tutorial import tutorial

from quark.onnx import AdaRoundConfig

if __name__ == "__main__":
    tutorial(AdaRoundConfig())
