"""How near a quantized model comes to a target, as onnxruntime runs it by default."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort

from quark.onnx.calibration_data.checked_items import Batch, sample_count
from quark.onnx.errors import ConfigError, DataError, ModelError
from quark.onnx.inference.sessions import Engine, session
from quark.onnx.measures.deviation import Comparison
from quark.onnx.mixed_precision.target import Target
from quark.onnx.whole_model.part_masks import masks_of_items

__all__ = ["Judge", "Judged"]

_LOWER = ("mse", "max_distance", "max_bytes")  # goals of which less is better


@dataclass(frozen=True)
class Judged:
    """One model.

    Attributes:
        measured: what the target is about.
        short: by how much it falls short of the target; 0 and below: it is reached.
        error: mean squared error over variance, the mean of all outputs.
    """

    measured: float
    short: float
    error: float

    @property
    def reached(self) -> bool:
        """Whether it is enough."""
        return self.short <= 0


class Judge:
    """Measures models on samples.

    Args:
        target: what is wanted.
        model: the float model.
        items: the samples.
        engine: runs the models.

    Attributes:
        wanted: the value of the target; with max_drop the lowest score or agreement that this leaves.
        samples: of all items.

    Raises:
        ConfigError: the target does not fit the model's outputs, or the evaluator gives no number.
    """

    def __init__(self, target: Target, model: onnx.ModelProto, items: Sequence[Batch], engine: Engine) -> None:
        self._target, self._items, self._engine = target, items, engine
        self._names = [output.name for output in model.graph.output]
        run = session(model, engine)
        self._float = [run.run(self._names, item) for item in items]
        self._parts = masks_of_items(model, items, engine)
        self.samples = sum(map(sample_count, items))
        self.wanted = target.wanted
        if target.goal == "max_drop":
            self.wanted = (self._score(run) if target.evaluator is not None else 1.0) - target.wanted
        if target.output_index >= len(self._names):
            raise ConfigError(
                f"Target.output_index: got {target.output_index}, the model has {len(self._names)} outputs"
            )
        first = self._float[0][0]
        is_classes = isinstance(first, np.ndarray) and first.ndim == 2 and first.shape[1] > 1
        if target.goal == "max_drop" and target.evaluator is None and not is_classes:
            raise ConfigError(
                "Target.max_drop: the first output is not (samples, classes), so that there is no largest entry to "
                "compare: give an evaluator, or sqnr_db"
            )

    def judged(self, model: onnx.ModelProto, size: int) -> Judged:
        """One model.

        Args:
            size: bytes of its constants.

        Raises:
            ModelError: onnxruntime cannot run it.
        """
        run = session(model, self._engine, fuse_qdq=True)
        comparison, squares, count, distances = Comparison(self._names), 0.0, 0, list[float]()
        for want, item, parts in zip(self._float, self._items, self._parts, strict=True):
            try:
                have = run.run(self._names, item)
            except Exception as error:  # onnxruntime's exceptions have no base of their own
                raise ModelError(f"onnxruntime cannot run the quantized model: {error}") from error
            comparison.add(want, have, parts)
            for a, b in zip(want, have, strict=True):
                if isinstance(a, np.ndarray) and a.dtype.kind == "f" and a.shape == b.shape:
                    squares += float(np.square(b.astype(np.float64) - a).sum())
                    count += a.size
            if self._target.distance is not None:
                at = self._target.output_index
                distances.append(float(self._target.distance(want[at], have[at])))
        deviation = comparison.deviation()
        match self._target.goal:
            case "sqnr_db":
                measured = deviation.sqnr_db
            case "mse":
                measured = squares / max(count, 1)
            case "max_distance":
                measured = float(np.mean(distances))
            case "max_bytes":
                measured = float(size)
            case _ if self._target.evaluator is not None:
                measured = self._score(run)
            case _:
                measured = deviation.agreement if deviation.agreement is not None else 0.0
        if math.isnan(measured):
            raise DataError(f"the target {self._target.goal} cannot be measured: it is NaN")
        short = measured - self.wanted if self._target.goal in _LOWER else self.wanted - measured
        if self._target.goal == "max_drop" and self._target.evaluator is None:
            short += math.sqrt(measured * (1 - measured) / self.samples)  # a share of few samples is chance
        return Judged(measured, short, deviation.error)

    def _score(self, run: ort.InferenceSession) -> float:
        assert self._target.evaluator is not None
        score = float(self._target.evaluator(run))
        if not math.isfinite(score):
            raise ConfigError(f"Target.evaluator: it gave {score}, expected a finite number")
        return score
