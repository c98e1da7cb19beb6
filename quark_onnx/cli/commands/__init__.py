"""One file for each command of `quark-onnx`."""
