"""Write the cures of single quantizers into a Q/DQ model: other Q/DQ nodes, or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from quark.onnx.config.data_type import DATA_TYPES
from quark.onnx.graph.editor import GraphEditor, reads, rename_tensors
from quark.onnx.graph.opset import opset_of
from quark.onnx.layers.weight_layers import weight_layer
from quark.onnx.preparation.idle_nodes import drop_dead_nodes
from quark.onnx.sensitivity.switched_model import Switch, activation_quantizers
from quark.onnx.sensitivity.weight_switch import WeightSwitch

__all__ = ["CHANNEL", "FLOAT", "WIDE", "ChosenCure", "cured_model"]

FLOAT, WIDE, CHANNEL = "float", "16 bits", "per channel"
_RANGES = {
    getattr(TensorProto, kind.element_type): (kind.qmin, kind.qmax) for kind in DATA_TYPES.values() if kind.element_type
}
_INT32 = 2**31 - 1
_WIDEST = (1 << 16) - 1  # steps
_WIDE_TYPES = (TensorProto.INT16, TensorProto.UINT16)
_IN_RANGE = ("Relu", "Clip")  # what the range of an asymmetric quantizer does
_FIRST_WIDE = 21  # the opset whose own QuantizeLinear has 16 bits


@dataclass(frozen=True)
class ChosenCure:
    """One quantizer, and what becomes of it: `FLOAT`, `WIDE` of an activation, `CHANNEL` of a weight.

    `FLOAT` of a weight is written as 16-bit integers with a scale for each channel: between quantized activations
    onnxruntime (1.32) quantizes float weights to 8 bits by itself.
    """

    switch: Switch | WeightSwitch
    name: str


def cured_model(model: onnx.ModelProto, quantized: onnx.ModelProto, cures: Sequence[ChosenCure]) -> onnx.ModelProto:
    """A copy of a Q/DQ model with these cures.

    Args:
        model: the float model that it was made from.
        quantized: the model that the switches are of; not changed.
        cures: one for each quantizer.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(quantized)
    writer = _Writer(model, copy)
    # The scale of a layer's bias goes by that of its input: so activations come first.
    for cure in sorted(cures, key=lambda cure: isinstance(cure.switch, WeightSwitch)):
        if isinstance(cure.switch, WeightSwitch):
            writer.write_weights(cure.switch, per_channel=cure.name == CHANNEL)
        elif cure.name == FLOAT:
            writer.take_away(cure.switch)
        else:
            writer.widen(cure.switch)
    writer.finish()
    return copy


class _Writer:
    """Changes a Q/DQ model.

    Args:
        real: the float model.
        model: changed by every method.
    """

    def __init__(self, real: onnx.ModelProto, model: onnx.ModelProto) -> None:
        self._model, self._graph = model, model.graph
        self._real_makers = {name: node for node in real.graph.node for name in node.output}
        self._real_constants = {tensor.name: tensor for tensor in real.graph.initializer}
        self._makers = {name: node for node in model.graph.node for name in node.output}
        self._behind: dict[str, onnx.NodeProto] = {}
        self._names = GraphEditor(model.graph)
        self._renamed: dict[str, str] = {}
        self._new = list[onnx.NodeProto]()
        self._quantizers = activation_quantizers(model)
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}

    def take_away(self, switch: Switch) -> None:
        """Readers of the dequantized tensors read what was quantized."""
        for tensor in switch.tensors:
            quantize, _ = self._quantizers[tensor]
            source = self._with_activation(tensor, quantize.input[0])
            for node in self._graph.node:
                if node.op_type == "DequantizeLinear" and node.input[0] == quantize.output[0]:
                    self._renamed[node.output[0]] = source

    def _with_activation(self, tensor: str, source: str) -> str:
        """What the quantizer gets; behind the activation of the float model where the range did the work of that."""
        real, maker = self._real_makers.get(tensor), self._makers.get(source)
        if real is None or maker is None or real.op_type not in _IN_RANGE or real.op_type == maker.op_type:
            return source
        if not self._real_constants.keys() >= set(filter(None, real.input[1:])):
            return source
        node = onnx.NodeProto()
        node.CopyFrom(real)
        bounds = [numpy_helper.to_array(self._real_constants[name]) if name else None for name in real.input[1:]]
        node.input[:] = [source, *("" if b is None else self._constant(tensor, b) for b in bounds)]
        node.output[:] = [self._names.fresh_name(tensor)]
        self._behind[source] = node
        return str(node.output[0])

    def widen(self, switch: Switch) -> None:
        """16 bits over the same range; where it starts and ends at multiples of the wider steps, 0 stays 0."""
        for tensor in switch.tensors:
            quantize, dequantize = self._quantizers[tensor]
            scale = numpy_helper.to_array(self._constants[dequantize.input[1]])
            given = self._constants.get(dequantize.input[2]) if len(dequantize.input) > 2 else None
            kind = given.data_type if given is not None else TensorProto.UINT8
            qmin, qmax = _RANGES.get(kind, (0, _WIDEST))
            if scale.ndim or qmax - qmin >= _WIDEST:
                return  # nothing to be won
            zero = int(numpy_helper.to_array(given)) if given is not None else 0
            finer = _WIDEST // (qmax - qmin)
            step, at = scale / finer, (zero - qmin) * finer
            wide = TensorProto.UINT16
            if qmin < 0:
                wide, at = TensorProto.INT16, at - (1 << 15)
                if zero == 0:  # a symmetric one stays so, over a range that holds the old one
                    step, at = scale / (finer - 1), 0
            parameters = [
                self._constant(tensor, np.asarray(step, np.float32)),
                self._constant(tensor, np.asarray(at, helper.tensor_dtype_to_np_dtype(wide))),
            ]
            same = [n for n in self._graph.node if n.op_type == "DequantizeLinear" and n.input[0] == quantize.output[0]]
            for node in (quantize, *same):
                node.input[1:] = parameters
                node.ClearField("attribute")
                if opset_of(self._model) < _FIRST_WIDE:
                    node.domain = "com.microsoft"

    def write_weights(self, switch: WeightSwitch, *, per_channel: bool) -> None:
        """The float weight and bias, or the weight with a scale for each output channel and a bias that fits it."""
        node = next(node for node in self._graph.node if node.name == switch.name)
        weight = weight_layer(node, {node.input[at]: a.shape for at, a in zip(switch.inputs, switch.real, strict=True)})
        scale = None
        for at, values in zip(switch.inputs, switch.real, strict=True):
            if weight is not None and node.input[at] == weight.weight:
                scale = self._write_weight(node, at, values, weight.channel_axis, per_channel=per_channel)
        for at, values in zip(switch.inputs, switch.real, strict=True):
            if weight is not None and node.input[at] == weight.weight and scale is not None:
                continue
            if scale is not None and self._write_bias(node, at, values, scale, wide=not per_channel):
                continue
            self._renamed[node.input[at]] = self._constant(node.input[at], values)

    def _write_weight(
        self, node: onnx.NodeProto, at: int, values: NDArray[np.float32], axis: int, *, per_channel: bool
    ) -> NDArray[np.float32] | None:
        """The scales, (channels,), of integers as the weight has them, or of 16 bits; None where there are none."""
        dequantize = self._makers.get(node.input[at])
        integers = self._constants.get(dequantize.input[0]) if dequantize is not None else None
        if integers is None or integers.data_type not in _RANGES:
            return None
        kind = integers.data_type if per_channel else TensorProto.INT16
        qmin, qmax = _RANGES[kind]
        levels, zero = (qmax - qmin) // 2, (qmin + qmax + 1) // 2
        others = tuple(i for i in range(values.ndim) if i != axis)
        largest = np.abs(values).max(axis=others)
        scale: NDArray[np.float32] = (np.maximum(largest, np.finfo(np.float32).tiny) / levels).astype(np.float32)
        shape = [-1 if i == axis else 1 for i in range(values.ndim)]
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        codes = (np.rint(values / scale.reshape(shape)) + zero).astype(dtype)
        inputs = [codes, scale, np.full(scale.shape, zero, dtype)]
        self._dequantized(node.input[at], inputs, axis)
        return scale

    def _write_bias(
        self,
        node: onnx.NodeProto,
        at: int,
        values: NDArray[np.float32],
        weight_scale: NDArray[np.float32],
        *,
        wide: bool,
    ) -> bool:
        """Integers of the scale input_scale * weight_scale, as integer kernels want them, if there is one.

        Args:
            wide: the weight has 16 bits.
        """
        maker = self._makers.get(node.input[0])
        if maker is None or maker.op_type != "DequantizeLinear" or values.shape != weight_scale.shape:
            return False
        tensor = self._constants.get(maker.input[1])
        if tensor is None or tensor.dims or node.input[0] in self._renamed:
            return False
        scale = numpy_helper.to_array(tensor).astype(np.float64) * weight_scale
        codes = np.rint(values / scale)
        if np.abs(codes).max(initial=0) > _INT32:
            if not (wide or (maker.input[2:] and self._constants[maker.input[2]].data_type in _WIDE_TYPES)):
                return False
            # No integer kernel computes such a layer, so that any scale will do; of a float onnxruntime (1.32) would
            # make int32 of the scale above, which overflows.
            scale = np.maximum(scale, np.abs(values) / (_INT32 // 2))
            codes = np.rint(values / scale)
        inputs = [codes.astype(np.int32), scale.astype(np.float32), np.zeros(scale.shape, np.int32)]
        self._dequantized(node.input[at], inputs, 0)
        return True

    def _dequantized(self, like: str, inputs: Sequence[NDArray[np.generic]], axis: int) -> None:
        """A DequantizeLinear whose output all readers of `like` read."""
        names = [self._constant(like, array) for array in inputs]
        output = self._names.fresh_name(like)
        wide = inputs[0].dtype == np.int16 and opset_of(self._model) < _FIRST_WIDE
        domain = "com.microsoft" if wide else ""
        self._new.append(helper.make_node("DequantizeLinear", names, [output], axis=axis, domain=domain))
        self._renamed[like] = output

    def _constant(self, like: str, values: NDArray[np.generic]) -> str:
        tensor = numpy_helper.from_array(values, self._names.fresh_name(like))
        self._graph.initializer.append(tensor)
        self._constants[tensor.name] = tensor
        return tensor.name

    def finish(self) -> None:
        """Rename what is read, and drop what nothing reads any more."""
        graph = self._graph
        renamed = {name: self._source(name) for name in self._renamed}
        for node in graph.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
            for name in set(reads(node)) & renamed.keys():  # in the bodies of If, Loop and Scan
                for attribute in node.attribute:
                    rename_tensors(attribute.g, {name: renamed[name]})
        nodes = list(self._new)
        for node in graph.node:
            nodes.append(node)
            nodes.extend(self._behind[name] for name in node.output if name in self._behind)
        del graph.node[:]
        graph.node.extend(nodes)
        delivered = dict[str, str]()
        for output in graph.output:
            if output.name in renamed:
                source = renamed[output.name]
                delivered[source] = self._deliver(delivered.get(source, source), output.name)
        drop_dead_nodes(graph)
        GraphEditor(graph).remove_unused_initializers()
        del graph.value_info[:]
        known = {entry.domain for entry in self._model.opset_import}
        self._model.opset_import.extend(
            helper.make_opsetid(domain, 1) for domain in sorted({n.domain for n in graph.node} - known - {"ai.onnx"})
        )

    def _source(self, name: str) -> str:
        while name in self._renamed:
            name = self._renamed[name]
        return name

    def _deliver(self, source: str, output: str) -> str:
        """A graph output keeps its name: what makes `source` makes it, or a copy where that is an input or output.

        Returns:
            The name that the tensor has then.
        """
        graph = self._graph
        maker = next(node for node in graph.node if output in node.output)
        maker.output[list(maker.output).index(output)] = self._names.fresh_name(output)
        if source in self._names.interface:
            graph.node.append(helper.make_node("Identity", [source], [output]))
            return source
        rename_tensors(graph, {source: output})
        return output
