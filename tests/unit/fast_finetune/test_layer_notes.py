"""The report says of each layer what was done in another way than usual."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import Reader, Weights, build

from quark.onnx import AdaRoundConfig, Int8Spec, ModelQuantizer, QConfig, QLayerConfig, Report, UInt8Spec
from quark.onnx.solvers import choose_solver


def finetuned(inputs: int, samples: int) -> Report:
    model = build(f"(float[N,{inputs}] x) => (float[N,8] y) {{ y = MatMul(x, w) }}", w=Weights(0).conv(inputs, 8))
    data = {"x": np.random.default_rng(0).standard_normal((samples, inputs), np.float32)}
    quantizer = ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), algo_config=[AdaRoundConfig()]))
    quantizer.quantize_model(model, None, Reader(data))
    assert quantizer.report is not None
    return quantizer.report


def test_few_rows_are_solved_as_they_are() -> None:
    (layer,) = finetuned(inputs=300, samples=40).layers
    assert layer.notes == ("solved on its rows",)


def test_many_rows_need_no_note() -> None:
    (layer,) = finetuned(inputs=20, samples=60).layers
    assert layer.notes == ()


def test_thinned_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where moments do not fit into memory."""
    monkeypatch.setattr(choose_solver, "least_squares_bytes", lambda *_: 1 << 60)
    monkeypatch.setattr(choose_solver, "rows_that_fit", lambda *_: 16)
    report = finetuned(inputs=20, samples=60)
    (layer,) = report.layers
    assert layer.notes == ("solved on one row in 4",)
    assert "solved on one row in 4" in report.full(width=300)
    assert Report.from_dict(report.to_dict()).layers[0].notes == layer.notes
