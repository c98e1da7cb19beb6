"""Which elements of an output come from which tensor, where several are joined in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx.graph.joined_outputs import JoinedOutput, joined_outputs
from quark.onnx.inference.exposed_tensors import ExposedTensors
from quark.onnx.inference.sessions import Batch, Engine, session
from quark.onnx.measures.deviation import Parts

__all__ = ["PartMasks", "masks_of_items"]


def masks_of_items(model: onnx.ModelProto, items: Sequence[Batch], engine: Engine) -> list[dict[int, Parts]]:
    """Which elements of the outputs that join several tensors come from which, by item.

    Args:
        model: the float model.
        items: the data.
        engine: runs the model.
    """
    joined = joined_outputs(model)
    sources = sorted({name for one in joined.values() for name in one.sources})
    if not sources:
        return [{} for _ in items]
    exposed, masks = ExposedTensors(model, sources, engine), PartMasks(joined, engine)
    known = (exposed(item) for item in items)
    return [masks.of({name: values[name].shape for name in sources}) for values in known]


class PartMasks:
    """The parts of joined outputs, for tensors of given shapes."""

    def __init__(self, joined: dict[int, JoinedOutput], engine: Engine) -> None:
        self._joined = joined
        self._sessions = {index: session(one.moves, engine) for index, one in joined.items()}
        self._known: dict[tuple[tuple[str, tuple[int, ...]], ...], dict[int, Parts]] = {}

    def of(self, shapes: dict[str, tuple[int, ...]]) -> dict[int, Parts]:
        """The parts, by position of the output."""
        key = tuple(sorted(shapes.items()))
        if key not in self._known:
            self._known[key] = {
                index: one.parts(self._moved(index, one.marks(shapes))) for index, one in self._joined.items()
            }
        return self._known[key]

    def _moved(self, index: int, marks: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        moved: NDArray[np.float32] = self._sessions[index].run(None, marks)[0]
        return moved
