"""In which form a model is quantized already, if it is, and what its user is to do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

import onnx

from quark.onnx.errors import ModelError
from quark.onnx.graph.editor import all_nodes

__all__ = ["check_is_float", "check_is_qdq", "is_quantized", "quantized_form"]

_QDQ = ("QuantizeLinear", "DequantizeLinear")
_OF_QDQ = ("", "ai.onnx", "com.microsoft")  # domains
_USE_QUANTIZER = "Quantize the float model that it was made from, with ModelQuantizer"


class _Form(Enum):
    """Forms that tell most come first: a dynamically quantized model may hold a DequantizeLinear for an embedding."""

    DYNAMIC = (r"^Dynamic|Integer", "is quantized dynamically", "its activations have no scales that stay")
    QOPERATOR = (r"^Q[A-Z]", "is quantized in the QOperator form", "that form is not read")
    WEIGHT_ONLY = (
        r"NBits$|Bnb4$|FpQ4$|^GatherBlockQuantized$",
        "has quantized weights alone",
        "its operators hold them packed",
    )
    OTHER = (r"[Qq]uantize|FixNeuron", "is quantized in a form of another tool", "that form is not read")
    QDQ = (r"$^", "is quantized already", "")

    def __init__(self, op_types: str, is_what: str, why_not: str) -> None:
        self.op_types, self.is_what, self.why_not = re.compile(op_types), is_what, why_not


@dataclass(frozen=True)
class QuantizedForm:
    """A form, and the first node that shows it."""

    form: _Form
    node: onnx.NodeProto

    @property
    def text(self) -> str:
        """A predicate."""
        return f"{self.form.is_what} ({self.node.op_type} {self.node.name or self.node.output[0]!r})"


def quantized_form(model: onnx.ModelProto) -> QuantizedForm | None:
    """How a model is quantized: any node, of bodies and functions too, computes on quantized tensors or makes them."""
    found: dict[_Form, onnx.NodeProto] = {}
    for node in (*all_nodes(model.graph), *(node for function in model.functions for node in function.node)):
        if (form := _form(node)) is not None:
            found.setdefault(form, node)
    return next((QuantizedForm(form, found[form]) for form in _Form if form in found), None)


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether it is, in any form."""
    return quantized_form(model) is not None


def check_is_float(model: onnx.ModelProto) -> None:
    """Refuse a model that is quantized already.

    Raises:
        ModelError: it is quantized.
    """
    found = quantized_form(model)
    if found is None:
        return
    todo = "give the float model that it was made from"
    if found.form is _Form.QDQ:
        todo = "to finetune it, call quark.onnx.finetune()"
    raise ModelError(f"the model {found.text}: {todo}")


def check_is_qdq(model: onnx.ModelProto, *, has_layers: bool) -> None:
    """Refuse a model that finetuning can do nothing with.

    Args:
        has_layers: False: it was looked through, and holds no layer that can be.

    Raises:
        ModelError: it has no Q/DQ; or, without layers, it is quantized in another form too.
    """
    found = quantized_form(model)
    if found is None:
        raise ModelError("the quantized model has no Q/DQ: quantize it first, with ModelQuantizer or another tool")
    if found.form is _Form.QDQ or (has_layers and any(_form(node) is _Form.QDQ for node in all_nodes(model.graph))):
        return
    todo = _USE_QUANTIZER
    if found.form is _Form.QOPERATOR:
        todo = "Have it written with Q/DQ (in onnxruntime quant_format=QuantFormat.QDQ), or quantize the float model"
    raise ModelError(f"the quantized model {found.text}: {found.form.why_not}. {todo}")


def _form(node: onnx.NodeProto) -> _Form | None:
    if node.op_type in _QDQ and node.domain in _OF_QDQ:
        return _Form.QDQ
    return next((form for form in _Form if form.op_types.search(node.op_type)), None)
