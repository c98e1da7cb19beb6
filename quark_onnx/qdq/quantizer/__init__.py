"""onnxruntime's QDQ quantizer, with formats and scales of ours, and in time linear in the nodes."""
