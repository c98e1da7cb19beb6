"""ONNX models: load and save, prepare for quantization, find weight layers, insert Q/DQ."""
