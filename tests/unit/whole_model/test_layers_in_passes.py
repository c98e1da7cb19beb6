"""Where tensors or weights of all layers are too large to be in memory together, some layers are compared at a time."""

from __future__ import annotations

import pytest
from small_models import Reader, samples, separable_cnn

from quark.onnx import Int8Spec, ModelQuantizer, QConfig, QLayerConfig, UInt8Spec
from quark.onnx.graph.dataflow import Dataflow
from quark.onnx.measures.layer_error import LayerError
from quark.onnx.whole_model import layer_errors

LARGEST = 4 * 16 * 8 * 8  # bytes of a tensor of a sample


def errors() -> tuple[LayerError, ...]:
    model = separable_cnn()
    quantizer = ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec())))
    quantizer.quantize_model(model, None, Reader(samples(model, 12)))
    assert quantizer.report is not None
    return quantizer.report.layer_errors


@pytest.mark.parametrize(("most_bytes", "weight_bytes"), [(1, 1 << 30), (2 * LARGEST, 1 << 30), (1 << 30, 2000)])
def test_several_passes_measure_what_one_does(
    monkeypatch: pytest.MonkeyPatch, most_bytes: int, weight_bytes: int
) -> None:
    wanted, groups = errors(), list[int]()
    together = layer_errors._together

    def watched(pairs: object, floats: Dataflow, most_bytes: float) -> object:
        groups.clear()
        for group in together(pairs, floats, most_bytes):
            groups.append(len(group))
            yield group

    monkeypatch.setattr(layer_errors, "_MOST_BYTES", most_bytes)
    monkeypatch.setattr(layer_errors, "_WEIGHT_BYTES", weight_bytes)
    monkeypatch.setattr(layer_errors, "_together", watched)
    monkeypatch.setattr(layer_errors, "_LARGE_SAMPLES", 8)
    found = errors()
    assert len(groups) > 1
    assert sum(groups) == len(wanted) == len(found)
    for one, other in zip(found, wanted, strict=True):
        assert (one.name, one.samples) == (other.name, other.samples)
        for measure in ("inherited", "total", "own", "weights"):
            assert getattr(one, measure) == pytest.approx(getattr(other, measure), rel=1e-4)
