"""The command line, `quark-onnx`."""
