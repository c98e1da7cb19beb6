"""The quantized model: a float model with Q/DQ nodes, made by onnxruntime's quantizer."""
