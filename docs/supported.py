"""Writes docs/supported.md from the tables of the code: python docs/supported.py"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from quark.onnx.config import supported
from quark.onnx.config.data_type import DataType
from quark.onnx.core_view.output_stage import output_stage
from quark.onnx.graph.dataflow import Dataflow
from quark.onnx.layers.weight_layers import OTHER_OPERATORS, weight_layers
from quark.onnx.operators.table import LINEAR, OPERATORS
from quark.onnx.patterns.matcher import Matcher
from quark.onnx.patterns.pattern_table import PATTERNS
from quark.onnx.plan.reasons import Reason
from quark.onnx.preparation.float32 import NARROW
from quark.onnx.preparation.fuse import FIRST_OPSET
from quark.onnx.preparation.prepare import MIN_OPSET
from quark.onnx.qdq.qdq_options import DEFAULT_OP_TYPES

PAGE = Path(__file__).with_name("supported.md")
OLDEST = 7  # opset

# By operator behind a layer: where the loss does not look through it.
LIMITS = {
    "Clip": "bounds are attributes, or inputs that are constant numbers; Relu6 is one",
    "Gelu": "",
    "HardSigmoid": "",
    "HardSwish": "",
    "LeakyRelu": "",
    "PRelu": "one slope, or one for each output of the layer",
    "Relu": "",
    "Sigmoid": "",
    "Softmax": "from opset 13 on, along any axis but the first; not behind normalizations or a weight that comes first",
    "Swish": "alpha 1",
    "Tanh": "",
}

TEXT = """\
# What is supported

This page answers: which operators, attributes and formats are supported, and why does a layer stay as it is?

Made by `python docs/supported.py` from the tables of the code; a test compares. Change the script, not this page.

## Layers

Each of them is tuned by both solvers, least squares and the gradient loops, with scales per tensor, channel or block.
Attributes mean what ONNX says, from opset {oldest} to {newest}, the newest that was looked at; below opset {min_opset}
models are converted first. A node with an attribute that is not listed stays as it is; so does one of another domain.

{layers}

Quantized by default: by `ModelQuantizer`, if `OpTypesToQuantize` and `ExtraOpTypesToQuantize` say nothing. A layer can
be tuned where its weight is quantized. Before, BatchNormalization and constants per channel behind Conv, ConvTranspose,
Gemm or MatMul go into the layer, and so do single numbers in front of it (x / 255, say).

A bias is tuned where it is integers of its own, one per output; one in float, or that others read, stays. MatMul and
Add of two axes become one Gemm with a bias; with more axes the Add is a node of its own.

A weight that several layers share is tuned by least squares, for all of them together.

Other weights stay: of {others}
(in float; the report names these nodes), and the table of a Gather, an embedding (quantized, not tuned).

## Attributes

| operator | versions | attributes, with the opset that brought them if it was a later one |
|---|---|---|
{attributes}

## Behind a layer

The gradient loops take the loss behind an operator that alone reads the layer's output, in float in both graphs;
`solver="auto"` then asks both solvers. With `output_qdq` also behind the quantization of the output.

{activations}

## Patterns

Graphs that exporters write for one operator: [patterns.md](patterns.md) has their formulas, and says what is done with
them.

{patterns}

## What is quantized

{default}.

{formats}

`finetune()` takes any Q/DQ model with weights of these types, whatever the operators between the layers.

## Models

| | |
|---|---|
| given as | a path, or an `onnx.ModelProto`; of a path also with weights in files beside it |
| size | above 2 GB too, in and out |
| opset | {oldest} to {newest}; raised below {min_opset}, lowered above the newest Q/DQ that onnxruntime runs |
| floats | {floats} become float32, doubles where they are weights of {weighted}; inputs and outputs keep their types |
| weights | initializers, sparse ones too, that may be inputs as well; Constant nodes |
| functions | inlined |
| If, Loop, Scan | they run; layers in their bodies stay |
| operators of other domains | those that onnxruntime has |
| inputs and outputs | any number, of any type; axes are free or fixed, the batch too; an input may be an output |
| names | any, or none |

## Layers that stay as they are

The report names each, with one of these reasons; what stands in braces is filled in.

{reasons}

A layer that was solved may keep its values, too. Then its line in the report says why:

{results}

or what the core says of its data, as "too little data: no row to fit on or none to hold out".
"""

RESULTS = (Reason.NOTHING_BETTER, Reason.DATA_DOES_NOT_FIT, Reason.MODEL_NOT_BETTER)


def page() -> str:
    """The text of docs/supported.md.

    Raises:
        ValueError: a table of the code does not list the same operators as one above, or not the attributes of onnx.
    """
    for op_type, operator in OPERATORS.items():
        new = (schema.attributes for version, schema in versions(op_type).items() if version >= MIN_OPSET)
        _same(f"OPERATORS[{op_type!r}]", operator.attributes, set().union(*new) or operator.attributes)
    activations = looked_through()
    _same("LIMITS", LIMITS, activations)
    reasons = [reason for reason in Reason if reason not in RESULTS]
    return TEXT.format(
        oldest=OLDEST,
        newest=onnx.defs.onnx_opset_version(),
        min_opset=MIN_OPSET,
        layers=_table(
            ("operator", "its weight", "quantized by default"),
            ((name, op.weight, _yes(op.quantized_by_default)) for name, op in OPERATORS.items()),
        ),
        others=_listed(sorted(OTHER_OPERATORS)),
        attributes="\n".join(map(_attributes, OPERATORS)),
        activations=_table(("operator", "limits"), ((op, LIMITS[op]) for op in activations)),
        patterns=_patterns(activations),
        default=textwrap.fill(", ".join(DEFAULT_OP_TYPES), 118),
        formats=_formats(),
        floats=_listed(onnx.TensorProto.DataType.Name(kind).lower() for kind in sorted(NARROW)),
        weighted=_listed(LINEAR),
        reasons=_table(("reason", ""), ((reason.text, reason.advice) for reason in reasons)),
        results=_table(("reason", ""), ((reason.text, reason.advice) for reason in RESULTS)),
    )


def versions(op_type: str) -> dict[int, onnx.defs.OpSchema]:
    """The schemas of an operator that are in force in opset `OLDEST` or a newer one, by the first opset of each."""
    history = onnx.defs.get_all_schemas_with_history()
    found = {schema.since_version: schema for schema in history if schema.name == op_type and schema.domain == ""}
    first = max((version for version in found if version <= OLDEST), default=0)
    return {version: found[version] for version in sorted(found) if version >= first}


def looked_through() -> list[str]:
    """The operators that the loss looks through: each one that there is was put behind a MatMul."""
    found = set()
    for schema in onnx.defs.get_all_schemas():
        for inputs in (("z",), ("z", "c"), ("z", "c", "c")):
            if schema.domain == "" and schema.min_input <= len(inputs) <= schema.max_input:
                model = _layer_before(helper.make_node(schema.name, inputs, ["y"]))
                layer, matcher = weight_layers(model)[0], Matcher(Dataflow(model))
                if output_stage(layer, matcher, layer, matcher, through_qdq=False) is not None:
                    found.add(schema.name)
    return sorted(found)


def _layer_before(node: onnx.NodeProto) -> onnx.ModelProto:
    constants = {"w": np.ones((3, 4), np.float32), "c": np.float32(0.5)}
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"]), node],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph)


def _attributes(op_type: str) -> str:
    schemas, known = versions(op_type), OPERATORS[op_type].attributes
    since = {name: min(v for v, schema in schemas.items() if name in schema.attributes) for name in known}
    first = min(schemas)
    names = (name if since[name] == first else f"{name} ({since[name]})" for name in known)
    return f"| {op_type} | {', '.join(map(str, schemas))} | {', '.join(names) or 'none'} |"


def _patterns(activations: Iterable[str]) -> str:
    rows = []
    for operator in dict.fromkeys(pattern.stands_for for pattern in PATTERNS):
        count = sum(pattern.stands_for == operator for pattern in PATTERNS)
        node = "Swish" if operator == "SiLU" else operator
        stays = "stays: Sigmoid and Mul"
        becomes = f"{operator}, from opset {FIRST_OPSET[operator]} on" if operator in FIRST_OPSET else stays
        in_float = operator in FIRST_OPSET and operator not in DEFAULT_OP_TYPES
        becomes += ", in float between quantized tensors" if in_float else ""
        through = "no, it is a layer" if node in OPERATORS else _yes(node in activations)
        rows.append((operator, str(count), becomes, through))
    return _table(("pattern", "formulas", "becomes, when quantized", "the loss looks through it"), rows)


def _formats() -> str:
    tensors = {"activations": "activation", "weights": "weight", "biases": "bias"}
    rows = []
    for name, role in tensors.items():
        table = supported._TABLES[role]
        types, scales, granularity = (table[key] for key in ("data_type", "scale_type", "quant_granularity"))
        rows.append((name, *(", ".join(map(_value, values)) for values in (types, scales, granularity))))
    return _table(("", "types", "scales", "one per"), rows)


def _value(value: object) -> str:
    return value.name if isinstance(value, DataType) else str(value).rsplit(".", maxsplit=1)[-1]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (f"| {' | '.join(line)} |" for line in rows)
    return "\n".join((f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines))


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}"


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def _same(name: str, table: Iterable[str], operators: Iterable[str]) -> None:
    if unlike := set(table) ^ set(operators):
        raise ValueError(f"docs/supported.py: {name} and the code, or onnx, differ in {', '.join(sorted(unlike))}")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
