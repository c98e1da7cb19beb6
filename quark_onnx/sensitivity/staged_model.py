"""A switched model in stages, so that a set of quantizers costs what lies behind the first of them.

The float values between two stages are kept, as far as they are small. A stage whose switches are all off runs without
them, as onnxruntime fuses no operators across an If.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from quark.onnx.graph.dataflow import Dataflow, Segment
from quark.onnx.graph.editor import reads
from quark.onnx.graph.no_tensors import no_tensors
from quark.onnx.inference.exposed_tensors import ExposedTensors
from quark.onnx.inference.sessions import Batch, Engine, in_order, session
from quark.onnx.sensitivity.switched_model import SwitchedModel

__all__ = ["StagedModel"]

_MOST_STAGES = 16
_FEWEST_SWITCHES = 4  # of a stage: each costs two sessions
_KEPT_BYTES = 64 << 20  # of float values between stages, of all items
_WEIGHT_BYTES = 32 << 20  # of a model's initializers, up to which sessions stay open: they take several times as much


class StagedModel:
    """Runs a switched model on some items as often as asked.

    Args:
        switched: the model.
        off: its inputs beside those of the float model, with the values for which it computes what that does.
        items: inputs of the float model.
        engine: of each run.
        threads: so many runs at the same time.
        together: so many items pass a stage before the next stage has its turn.

    Attributes:
        real: the outputs of the float model, by item.

    Raises:
        ModelError: onnxruntime cannot load a stage.
    """

    def __init__(
        self,
        switched: SwitchedModel,
        off: Batch,
        items: Sequence[Batch],
        engine: Engine,
        *,
        threads: int,
        together: int,
    ) -> None:
        self._off, self._outputs, self._threads = off, switched.outputs, threads
        flow = Dataflow(switched.model)
        nodes = flow.ancestors(self._outputs, flow.inputs)
        cuts = list(_cuts(nodes, flow, set(off), no_tensors(switched.model)))
        parts = zip([0, *cuts], [*cuts, len(nodes)], strict=True)
        self._stages = [_Stage(nodes[start:end], flow, switched, engine) for start, end in parts]
        later = set(self._outputs)
        for stage in reversed(self._stages):
            stage.needed_later = frozenset(later)
            later |= stage.reads
        constant = [name for name in self._outputs if flow.is_constant(name)]
        known = ExposedTensors(switched.model, constant, engine)({**items[0], **off}) if constant else {}
        inputs = [{**item, **{name: known[name] for name in constant}} for item in items]
        # By group of items: by the stage that starts from them, values of each item.
        self._kept = [{0: inputs[start : start + together]} for start in range(0, len(items), together)]
        self.real, room = list[list[Any]](), _KEPT_BYTES
        for kept in self._kept:
            values = kept[0]
            for index, stage in enumerate(self._stages):
                values = stage.run(values, off, touched=False, threads=threads)
                size = sum(
                    array.nbytes for of_item in values for array in of_item.values() if isinstance(array, np.ndarray)
                )
                if index + 1 < len(self._stages) and size <= room:
                    kept[index + 1] = values
                    room -= size
            self.real += self._outputs_of(values)

    def run(self, feeds: Batch, items: int | None = None) -> Iterator[list[Any]]:
        """The outputs, item by item.

        Args:
            feeds: those of the inputs beside the float model's that are not `off`.
            items: so many of them, the first ones; None: all.
        """
        touched = [not stage.reads.isdisjoint(feeds) for stage in self._stages]
        if not any(touched):
            yield from self.real[:items]
            return
        left = len(self.real) if items is None else items
        for kept in self._kept:
            start = max(stage for stage in kept if stage <= touched.index(True))
            values = kept[start][:left]
            left -= len(values)
            if not values:
                return
            for index in range(start, len(self._stages)):
                given = {**self._off, **feeds}
                values = self._stages[index].run(values, given, touched=touched[index], threads=self._threads)
            yield from self._outputs_of(values)

    def _outputs_of(self, values: Sequence[Batch]) -> list[list[Any]]:
        return [[of_item[name] for name in self._outputs] for of_item in values]


class _Stage:
    """Some nodes of the switched model.

    Attributes:
        reads: dynamic tensors, switches among them, that the nodes read and do not make.
        needed_later: what later stages read, and the model's outputs.
    """

    needed_later: frozenset[str]

    def __init__(
        self, nodes: Sequence[onnx.NodeProto], flow: Dataflow, switched: SwitchedModel, engine: Engine
    ) -> None:
        self._nodes, self._flow, self._engine = nodes, flow, engine
        self._on = {switch.name for switch in switched.switches}
        self._fine = {switch.fine for switch in switched.switches}
        self._made = {name for node in nodes for name in node.output if name}
        self.reads = self._read_by(nodes)
        self._sessions: dict[str, tuple[ort.InferenceSession, list[str], list[str]]] = {}
        self._keeps_sessions = sum(tensor.ByteSize() for tensor in flow.initializers.values()) <= _WEIGHT_BYTES

    def run(self, values: Sequence[Batch], feeds: Batch, *, touched: bool, threads: int) -> list[Batch]:
        """What is needed later of the values there are, and of those made of them, for each item."""
        form = "float"
        if touched:
            form = "fine" if any(feeds[name] for name in self._fine & self.reads) else "switched"
        opened, inputs, outputs = self._sessions.get(form) or self._opened(form, {**values[0], **feeds})
        if self._keeps_sessions:
            self._sessions[form] = opened, inputs, outputs

        def made(of_item: Batch) -> Batch:
            given = {**of_item, **feeds}
            new = opened.run(outputs, {name: given[name] for name in inputs}) if outputs else []
            kept = {name: value for name, value in of_item.items() if name in self.needed_later}
            return kept | dict(zip(outputs, new, strict=True))

        return list(in_order(made, values, threads=threads))

    def _opened(self, form: str, given: Batch) -> tuple[ort.InferenceSession, list[str], list[str]]:
        nodes = [self._simplified(node, form) for node in self._nodes]
        inputs, outputs = sorted(self._read_by(nodes)), sorted(self._made & self.needed_later)
        segment = Segment(tuple(nodes), tuple(inputs), tuple(outputs))
        types = {name: helper.np_dtype_to_tensor_dtype(given[name].dtype) for name in inputs}
        return session(self._flow.segment_model(segment, types), self._engine), inputs, outputs

    def _read_by(self, nodes: Iterable[onnx.NodeProto]) -> frozenset[str]:
        read = {name for node in nodes for name in reads(node)}
        return frozenset(name for name in read - self._made if not self._flow.is_constant(name))

    def _simplified(self, node: onnx.NodeProto, form: str) -> onnx.NodeProto:
        """A switch without what is off in all of the stage."""
        if node.op_type != "If" or node.input[0] not in self._on or form == "fine":
            return node
        branches = {attribute.name: attribute.g for attribute in node.attribute}
        if form == "float":
            return helper.make_node("Identity", branches["else_branch"].node[0].input, node.output)
        (either,) = branches["then_branch"].node
        (pair,) = (attribute.g for attribute in either.attribute if attribute.name == "else_branch")
        simple = helper.make_node("If", node.input, node.output)
        simple.attribute.extend(
            [helper.make_attribute("then_branch", pair), helper.make_attribute("else_branch", branches["else_branch"])]
        )
        return simple


def _cuts(
    nodes: Sequence[onnx.NodeProto], flow: Dataflow, controls: set[str], no_tensors: frozenset[str]
) -> Iterator[int]:
    """The positions of nodes at which stages begin, but for the first, each with about as many that read controls;
    what is no tensor is not handed on.
    """
    controlled = [not controls.isdisjoint(flow.reads(node)) for node in nodes]
    stages = max(1, min(_MOST_STAGES, sum(controlled) // _FEWEST_SWITCHES))
    last = {name: index for index, node in enumerate(nodes) for name in flow.reads(node) if name in no_tensors}
    share, seen, begun, blocked = sum(controlled) / stages, 0, 1, -1
    for index, node in enumerate(nodes):
        if index > blocked and begun < stages and seen >= begun * share:
            yield index
            begun = int(seen / share) + 1
        seen += controlled[index]
        blocked = max([blocked, *(last.get(name, -1) for name in node.output)])
