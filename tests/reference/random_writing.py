"""A formula written as an ONNX graph, in one of the many ways: orders, signs, quotients and powers are drawn."""

from __future__ import annotations

import ast
import math
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper

Operand = tuple[
    bool, Any
]  # whether it is subtracted or divided by; a part of the formula, a number, or a tensor's name


class RandomWriting:
    """The nodes of a formula in Python's notation (quark_onnx/patterns/pattern_table.py) of the tensor x.

    Attributes:
        nodes: in order.
        initializers: all constants that they read.

    Args:
        values: of the formula's open constants.
        axes_are_inputs: of ReduceMean, as from opset 18 on.
    """

    def __init__(self, data: st.DataObject, values: Mapping[str, Any], *, axes_are_inputs: bool) -> None:
        self._draw, self._values, self._axes_are_inputs = data.draw, values, axes_are_inputs
        self._tensors: dict[str, str] = {"x": "x"}
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, np.ndarray] = {}

    def write(self, formula: str) -> str:
        """The name of the tensor that the formula gives."""
        *named, last = ast.parse(textwrap.dedent(formula)).body
        for line in named:
            self._tensors[line.targets[0].id] = self._tensor(line.value)
        return self._tensor(last.value)

    def _node(self, op: str, *inputs: str, **attributes: Any) -> str:
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def _constant(self, value: Any) -> str:
        array = np.asarray(value)
        name = f"c{len(self.initializers)}"
        self.initializers[name] = array.astype(np.float32) if array.dtype.kind == "f" else array
        return name

    def _number(self, value: float) -> str:
        """Paddle's numbers have an axis, some have all."""
        return self._constant(np.full(self._draw(st.sampled_from([(), (1,), (1, 1, 1)])), value))

    def _tensor(self, part: Any) -> str:
        number = _number_of(part)
        match part:
            case str():
                return part
            case _ if number is not None:
                return self._number(number)
            case ast.Name(id=name):
                return self._tensors[name] if name in self._tensors else self._constant(self._values[name])
            case ast.Call(func=ast.Name(id=op), args=[argument, *others]):
                return self._call(op, self._tensor(argument), [_number_of(other) for other in others])
            case ast.BinOp(op=ast.Add() | ast.Sub()) | ast.UnaryOp():
                return self._joined(_operands(part, ast.Add, ast.Sub), "Add", "Sub")
            case ast.BinOp():
                factors = [apart for factor in _operands(part, ast.Mult, ast.Div) for apart in self._powers(*factor)]
                return self._joined(factors, "Mul", "Div")
        raise ValueError(part)

    def _powers(self, inverse: bool, factor: Any) -> list[Operand]:
        """A power as a node or as a product; a root in the denominator as Sqrt or as a power."""
        match factor:
            case ast.BinOp(left=base, op=ast.Pow(), right=exponent):
                tensor, number = self._tensor(base), _number_of(exponent)
                if self._draw(st.booleans()):
                    return [(inverse, tensor)] * int(number)
                return [(inverse, self._node("Pow", tensor, self._number(number)))]
            case ast.Call(func=ast.Name(id="Sqrt"), args=[argument]) if inverse and self._draw(st.booleans()):
                return [(False, self._node("Pow", self._tensor(argument), self._number(-0.5)))]
        return [(inverse, factor)]

    def _joined(self, operands: list[Operand], join: str, part: str) -> str:
        """Any two of them at a time, until one is left."""
        left = [self._number_turned(*operand, is_sum=join == "Add") for operand in operands]
        while len(left) > 1:
            i, j = self._draw(st.permutations(range(len(left))))[:2]
            (a_inverse, a), (b_inverse, b) = left[i], left[j]
            x, y = self._tensor(a), self._tensor(b)
            if a_inverse == b_inverse:
                found = (a_inverse, self._node(join, x, y))
            else:
                found = (False, self._node(part, *((y, x) if a_inverse else (x, y))))
            left = [*(operand for k, operand in enumerate(left) if k not in (i, j)), found]
        ((inverse, operand),) = left
        tensor = self._tensor(operand)
        if not inverse:
            return tensor
        if join == "Mul":
            return self._node("Reciprocal", tensor)
        return self._node("Neg", tensor) if self._draw(st.booleans()) else self._node("Mul", tensor, self._number(-1.0))

    def _number_turned(self, inverse: bool, operand: Any, *, is_sum: bool) -> Operand:
        """Divided by 6, or multiplied by 1/6."""
        number = _number_of(operand)
        if number is None or self._draw(st.booleans()):
            return inverse, operand
        return not inverse, -number if is_sum else 1 / number

    def _call(self, op: str, tensor: str, numbers: list[float | None]) -> str:
        if op == "HardSigmoid":
            return self._node(op, tensor, alpha=numbers[0], beta=numbers[1])
        if op == "ReduceMean":
            axes = np.array(self._values["axes"])
            return (
                self._node(op, tensor, self._constant(axes))
                if self._axes_are_inputs
                else self._node(op, tensor, axes=axes.tolist())
            )
        if op == "Clip":
            return self._clip(tensor, *numbers)
        return self._node(op, tensor)

    def _clip(self, tensor: str, low: float, high: float) -> str:
        steps = ["Clip", "Max Clip", "Clip Min", "Max Min", "Min Max", *(["Relu Clip", "Relu Min"] if not low else [])]
        for step in self._draw(st.sampled_from(steps)).split():
            match step:
                case "Clip":
                    tensor = self._node(step, tensor, self._constant(np.float32(low)), self._constant(np.float32(high)))
                case "Relu":
                    tensor = self._node(step, tensor)
                case _:
                    limit = self._number(high if step == "Min" else low)
                    tensor = self._node(step, *self._draw(st.permutations([tensor, limit])))
        return tensor


def _number_of(part: Any) -> float | None:
    """Return the value of a part without names; sqrt and pi are numbers."""
    if not isinstance(part, ast.expr):
        return part if isinstance(part, float) else None
    if {inner.id for inner in ast.walk(part) if isinstance(inner, ast.Name)} - {"sqrt", "pi"}:
        return None
    return float(eval(compile(ast.Expression(part), "", "eval"), {"sqrt": math.sqrt, "pi": math.pi}))


def _operands(part: ast.expr, join: type, inverse_join: type) -> list[Operand]:
    """List the operands of a sum or a product, however deep; numbers are one operand."""
    match part:
        case _ if _number_of(part) is not None:
            return [(False, _number_of(part))]
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, (join, inverse_join)):
            turns = isinstance(op, inverse_join)
            right_operands = [(inverse != turns, operand) for inverse, operand in _operands(right, join, inverse_join)]
            return _operands(left, join, inverse_join) + right_operands
        case ast.UnaryOp(operand=operand) if join is ast.Add:
            return [(not inverse, inner) for inverse, inner in _operands(operand, join, inverse_join)]
    return [(False, part)]
