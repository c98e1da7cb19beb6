"""Selective update: a layer's new integers stay only if the whole model gets better."""

from __future__ import annotations

import logging
import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx import _core
from quark.onnx.calibration_data.checked_items import sample_count
from quark.onnx.config.algorithm import FastFinetuneConfig
from quark.onnx.config.validate import problem
from quark.onnx.errors import ConfigError, FinetuneError, ModelError
from quark.onnx.fast_finetune.layer_batches import TwoGraphs
from quark.onnx.fast_finetune.walk import Arrays, Walk
from quark.onnx.graph.dataflow import Dataflow
from quark.onnx.inference.sessions import Engine, in_order, session
from quark.onnx.own_errors import of_the_caller
from quark.onnx.plan.reasons import Reason

__all__ = ["EvaluatorJudge", "Judge", "OutputJudge", "judged_outputs"]

_LOG = logging.getLogger(__name__)
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


class Judge(ABC):
    """Compares the score of the quantized model with that of the model as it was kept last.

    Attributes:
        outputs: tensors of the quantized graph that the score is made of.
    """

    outputs: tuple[str, ...] = ()
    _name: str  # of the score
    _sign = 1  # -1: a higher score is better

    def __init__(self) -> None:
        self._kept = math.nan
        self._outputs_now: Callable[[], Iterator[Arrays]] = lambda: iter(())
        self._remembered: Callable[[Callable[[], float]], float] = lambda score: score()

    def remember(self, by: Callable[[Callable[[], float]], float]) -> None:
        """Each score is what this makes of the function that computes it: from now on."""
        self._remembered = by

    def start(self, outputs_now: Callable[[], Iterator[Arrays]]) -> None:
        """Takes the score of the model before its first layer is changed.

        Args:
            outputs_now: computes `outputs` with the integers of that moment, batch by batch.

        Raises:
            FinetuneError: the score is not a finite number.
        """
        self._outputs_now = outputs_now
        self._kept = self._remembered(self._score)
        if not _core.is_better(self._sign * self._kept, math.inf):
            raise FinetuneError(
                f"selective_update has nothing to go by: before the first layer the {self._name} is {self._kept}, as "
                "outputs contain NaN or Inf. Choose another output with output_index, or give an evaluator"
            )

    def objection(self) -> str:
        """Why what was changed since the last time must be taken back; "" if it may stay.

        Raises:
            FinetuneError: the evaluator's result is not a finite number.
        """
        before, score = self._kept, self._remembered(self._score)
        change = f"{self._name} {before:.6g} -> {score:.6g}"
        if not _core.is_better(self._sign * score, self._sign * before):
            return Reason.MODEL_NOT_BETTER.why(change=change)
        self._kept = score
        _LOG.info("the whole model got better: %s", change)
        return ""

    @abstractmethod
    def _score(self) -> float:
        """The score of the quantized model as it is now."""


class OutputJudge(Judge):
    """Score: the L2 norm of quantized minus float output, mean over all calibration samples and judged outputs.

    Args:
        graphs: the float model's outputs go to the store of its samples.
        judged: positions of the outputs. One whose first axis does not count samples is one sample per batch.

    Raises:
        FinetuneError: onnxruntime cannot run the float model.
    """

    _name = "mean L2 of its outputs"

    def __init__(self, graphs: TwoGraphs, judged: tuple[int, ...]) -> None:
        super().__init__()
        samples = graphs.samples
        self.outputs = tuple(graphs.quantized.graph.output[i].name for i in judged)
        self._targets = tuple(graphs.float_model.graph.output[i].name for i in judged)
        at_once, each = graphs.engine.shared_out(samples.batches)
        # The second stop keeps what the first computes.
        walk = Walk("whole float", graphs.float_model, 2 * [self._targets], samples.store, each)
        self._counts = []
        for batch in range(samples.batches):
            arrays = samples.load(batch)
            self._counts.append(sample_count(arrays))
            walk.put_inputs(batch, {name: arrays[name] for name in walk.dataflow.inputs})
        for _ in in_order(walk.advance().run, range(samples.batches), threads=at_once):
            pass
        self._reference = walk.ahead(self._targets)

    def _score(self) -> float:
        total, norms = 0.0, 0
        for batch, arrays in enumerate(self._outputs_now()):
            wanted, count = self._reference.run(batch), self._counts[batch]
            for name, target in zip(self.outputs, self._targets, strict=True):
                have, want = arrays[name], wanted[target]
                if have.shape != want.shape:
                    raise ModelError(
                        f"selective_update cannot compare the output {name!r}: its shape is {have.shape}, in the float "
                        f"model {want.shape}. Choose another with output_index, or give an evaluator"
                    )
                samples = len(want) if want.shape[:1] == (count,) else 1
                total = _core.add_distances(total, _float32(have), _float32(want), samples)
                norms += samples
        return total / norms if norms else math.nan


class EvaluatorJudge(Judge):
    """Score: what the user's evaluator returns for a session of the quantized model; higher is better."""

    _name, _sign = "evaluator's score", -1

    def __init__(self, evaluator: Callable[..., float], quantized: onnx.ModelProto, engine: Engine) -> None:
        super().__init__()
        self._evaluator, self._quantized, self._engine = of_the_caller(evaluator), quantized, engine

    def _score(self) -> float:
        score = self._evaluator(session(self._quantized, self._engine))
        try:
            number = float(score) if isinstance(score, numbers.Real) else math.nan
        except OverflowError:  # an int beyond all floats, whose digits may be more than str() gives
            raise FinetuneError("the evaluator returned an int that is no float: return a finite number") from None
        if not math.isfinite(number):
            raise FinetuneError(f"the evaluator returned {score!r}: return a finite number, the higher the better")
        return number


def judged_outputs(model: onnx.ModelProto, config: FastFinetuneConfig) -> tuple[int, ...]:
    """Positions of the outputs that `selective_update` compares: all that are floats and depend on the inputs, or the
    one that `output_index` names.

    Raises:
        ConfigError: there is no such output.
    """
    graph, kind = Dataflow(model), type(config).__name__
    usable = tuple(
        index
        for index, output in enumerate(model.graph.output)
        if output.type.tensor_type.elem_type in _FLOATS and not graph.is_constant(output.name)
    )
    outputs = ", ".join(
        f"{index} {output.name!r} ({onnx.TensorProto.DataType.Name(output.type.tensor_type.elem_type)})"
        for index, output in enumerate(model.graph.output)
    )
    if config.output_index is None:
        if not usable:
            expected = f"an evaluator too: the model has no output of floats to compare, only {outputs}"
            raise ConfigError(problem(f"{kind}.selective_update", True, expected))
        return usable
    if config.output_index not in usable:
        expected = f"the position of an output of floats: the model has {outputs}"
        raise ConfigError(problem(f"{kind}.output_index", config.output_index, expected))
    return (config.output_index,)


def _float32(array: NDArray[np.generic]) -> NDArray[np.float32]:
    return np.ascontiguousarray(array, np.float32)
