"""The graph of an ONNX model: to edit it, and to ask who makes and reads its tensors."""
