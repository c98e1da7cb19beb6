"""Equalisation stays only where the quantized model is no worse by it, on samples that nothing was fitted to."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import onnx

from quark.onnx.calibration_data.checked_items import Batch
from quark.onnx.errors import DataError, ModelError
from quark.onnx.whole_model.keep_better import is_worse
from quark.onnx.whole_model.set_apart import StoredBatches
from quark.onnx.whole_model.whole_model import WholeModel
from quark.onnx.whole_model.workplace import Workplace

__all__ = ["recorded", "why_equalisation_goes"]

_LOG = logging.getLogger(__name__)


def recorded(items: Iterator[Batch], batches: StoredBatches) -> Iterator[Batch]:
    """Passes items on, and keeps them for a second calibration."""
    for item in items:
        batches.add({name: array.copy() for name, array in item.items()})
        yield item


def why_equalisation_goes(
    model: onnx.ModelProto, quantized: onnx.ModelProto, equalised: onnx.ModelProto, place: Workplace
) -> str:
    """Why the model that is quantized without equalisation is the better one; "" if it is not, or cannot be told.

    Args:
        model: the float model.
        quantized, equalised: made from it, and from what equalisation made of it; nothing is tuned.
        place: has the samples to compare on.
    """
    try:
        whole = WholeModel(model, "float model", place)
        whole.start(quantized)
        if not whole.can_judge:
            return ""
        before, after = whole.errors(None), whole.errors(equalised)
    except (ModelError, DataError) as error:  # it may be meant for another runtime
        _LOG.warning("the equalised model was not compared with the one without: %s", error)
        return ""
    if not is_worse(after, before):
        return ""
    return (
        f"undone: the quantized model is worse with it on the {len(after)} samples compared (error "
        f"{100 * before.mean():.3g} % without, {100 * after.mean():.3g} % with), by more than chance"
    )
