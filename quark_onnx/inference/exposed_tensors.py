"""Inner tensors of a model, for one batch after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx.inference.sessions import Batch, Engine, session

__all__ = ["ExposedTensors"]


class ExposedTensors:
    """A model that gives inner tensors in place of its outputs.

    Args:
        model: not changed.
        names: of tensors; inputs may be among them.
        engine: runs it, unless all of them are inputs.
    """

    def __init__(self, model: onnx.ModelProto, names: Sequence[str], engine: Engine) -> None:
        inputs = {value.name for value in model.graph.input}
        self._asked = [name for name in names if name not in inputs]
        exposed = onnx.ModelProto()
        exposed.CopyFrom(model)
        del exposed.graph.output[:]
        exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._asked)
        self._session = session(exposed, engine) if self._asked else None

    def __call__(self, batch: Batch) -> Mapping[str, NDArray[np.generic]]:
        """The inputs and the tensors, by name."""
        values = self._session.run(self._asked, batch) if self._session is not None else []
        return {**batch, **dict(zip(self._asked, values, strict=True))}
