"""AMD Quark's tools are not here: importing them says what is.

Raises:
    ImportError: always.
"""

raise ImportError(
    "quark.onnx.tools is AMD Quark's and not here. Use instead: `quark-onnx inspect` and `quark-onnx compare`; "
    "onnx.version_converter and onnxruntime.tools for opsets, shapes and float types; onnx.printer for text",
    name=__name__,
)
