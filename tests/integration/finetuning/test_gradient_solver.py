"""solver="gradient": the published loops, from the configuration to the finetuned model."""

from __future__ import annotations

import logging
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small_models import MODELS, Reader, initializers, judged, mean_squared_error, samples, separable_cnn

import quark.onnx
from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    CalibMethod,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    UInt8Spec,
)
from quark.onnx.errors import FinetuneError
from quark.onnx.report.report import Report

LAYER = QLayerConfig(UInt8Spec(), weight=Int8Spec(calibration_method=CalibMethod.MinMax))
CONFIGS = {
    "adaround": AdaRoundConfig(solver="gradient", num_iterations=300),
    "adaquant": AdaQuantConfig(solver="gradient", num_iterations=300, learning_rate=1e-4, batch_size=8),
}


def plain_model(model: onnx.ModelProto, count: int = 40) -> onnx.ModelProto:
    return ModelQuantizer(QConfig(LAYER)).quantize_model(model, None, Reader(samples(model, count)))


def tuned(
    model: onnx.ModelProto, config: AdaRoundConfig | AdaQuantConfig, *, threads: int = 1, count: int = 40
) -> tuple[onnx.ModelProto, Report]:
    quantizer = ModelQuantizer(QConfig(LAYER, algo_config=[config], extra_options={"NumThreads": threads}))
    quantized = quantizer.quantize_model(model, None, Reader(samples(model, count)))
    return quantized, quantizer.report


@pytest.mark.parametrize("name", MODELS)
def test_adaround_brings_models_closer_to_their_float_models(name: str) -> None:
    model = MODELS[name]()
    finetuned, report = tuned(model, CONFIGS["adaround"])
    check_layers(report, "adaround")
    unseen = samples(model, 64, seed=9)
    assert mean_squared_error(model, finetuned, unseen) < mean_squared_error(model, plain_model(model), unseen)


@pytest.mark.parametrize("name", ["separable", "mlp"])
def test_adaquant_brings_layers_closer_to_their_float_outputs(name: str) -> None:
    _, report = tuned(MODELS[name](), CONFIGS["adaquant"])
    check_layers(report, "adaquant")


def check_layers(report: Report, algorithm: str) -> None:
    accepted = [layer for layer in report.layers if layer.accepted]
    assert accepted
    for layer in accepted:
        before, after = judged(layer)
        assert after < before < layer.power[0]
        assert layer.candidate == f"{algorithm}, 300 steps"
        assert 0 < layer.improved <= layer.outputs
    for layer in report.layers:
        assert layer.accepted or "on all rows" in layer.reason


@pytest.mark.parametrize("algorithm", CONFIGS)
def test_only_integer_weights_change(algorithm: str) -> None:
    model = separable_cnn()
    before, after = initializers(plain_model(model)), initializers(tuned(model, CONFIGS[algorithm])[0])
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed
    assert all(before[name].dtype == np.int8 and name.endswith("_quantized") for name in changed)
    with_bias = {"solver": "gradient", "num_iterations": 50, "update_bias": True}
    after = initializers(tuned(model, type(CONFIGS[algorithm])(**with_bias))[0])
    assert any(before[name].dtype == np.int32 and not np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("algorithm", CONFIGS)
def test_memory_levels_and_threads_give_the_same_model(algorithm: str) -> None:
    model = MODELS["residual"]()
    kind, models = type(CONFIGS[algorithm]), set()
    for level, threads in ((0, 1), (1, 1), (2, 1), (1, 2), (2, 3)):
        config = kind(solver="gradient", num_iterations=40, batch_size=3, learning_rate=0.01, mem_opt_level=level)
        models.add(tuned(model, config, threads=threads)[0].SerializeToString(deterministic=True))
    assert len(models) == 1


def test_level_2_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cache = tmp_path / "cache"
    config = AdaRoundConfig(solver="gradient", num_iterations=5, mem_opt_level=2, cache_dir=cache)
    tuned(separable_cnn(), config)
    assert list(tmp_path.iterdir()) == [cache]
    assert list(cache.iterdir()) == []


def test_early_stop_is_reported_and_patience_delays_it() -> None:
    most, window = 400, 5

    def steps(**options: Any) -> list[int]:
        """Return the number of steps of each layer."""
        config = AdaQuantConfig(
            solver="gradient", num_iterations=most, learning_rate=0.3, num_batches=window, **options
        )
        _, report = tuned(separable_cnn(), config)
        shown = [re.fullmatch(r"adaquant, (\d+) steps(, stopped early)?", layer.candidate) for layer in report.layers]
        assert all((match[2] is None) == (int(match[1]) == most) for match in shown)
        return [int(match[1]) for match in shown]

    at_once, later, never = steps(early_stop=True), steps(early_stop=True, patience=1), steps(patience=1)
    assert at_once[0] + window <= later[0] < most  # the layers after it may see other data
    assert sum(at_once) < sum(later)
    assert set(never) == {most}


def test_the_loss_is_logged_every_log_period(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="quark.onnx"):
        _, report = tuned(separable_cnn(), AdaRoundConfig(solver="gradient", num_iterations=25, log_period=10))
    records = [r for r in caplog.records if ", loss " in r.getMessage()]
    lines = [r.getMessage() for r in records]
    assert [line.split(" step ")[1].split(",")[0] for line in lines] == ["10", "20", "25"] * len(report.layers)
    assert [r.levelname for r in records] == ["DEBUG", "DEBUG", "INFO"] * len(report.layers)
    assert lines[0].startswith(f"layer {report.layers[0].name}: step 10, loss ")


def test_lr_adjust(caplog: pytest.LogCaptureFixture) -> None:
    """A pair or a callable of the layer's mean squared error before training."""
    model, options = separable_cnn(), {"solver": "gradient", "num_iterations": 30}
    seen: list[float] = []

    def rate(error: float) -> float:
        seen.append(error)
        return 0.05 if error > threshold else 0.01

    threshold = 0.0
    _, report = tuned(model, AdaRoundConfig(learning_rate=0.01, lr_adjust=rate, **options))
    assert len(seen) == len(report.layers)
    first = report.layers[0]
    assert seen[0] == pytest.approx(first.before[0] / first.outputs, rel=1e-3)
    threshold = sorted(seen)[len(seen) // 2]
    with caplog.at_level(logging.INFO, logger="quark.onnx"):
        by_callable, _ = tuned(model, AdaRoundConfig(learning_rate=0.01, lr_adjust=rate, **options))
    assert 0 < caplog.text.count("learning rate 0.05") < len(report.layers)
    by_pair, _ = tuned(model, AdaRoundConfig(learning_rate=0.01, lr_adjust=(threshold, 0.05), **options))
    assert by_pair.graph == by_callable.graph
    assert by_pair != tuned(model, AdaRoundConfig(learning_rate=0.01, **options))[0]
    with pytest.raises(FinetuneError, match="lr_adjust gave the rate -1"):
        tuned(model, AdaRoundConfig(lr_adjust=lambda _: -1, **options))


@pytest.mark.parametrize("parallel", [False, True])
def test_what_lr_adjust_raises_ends_the_run(parallel: bool) -> None:
    """A ValueError too, by which the core says that data does not fit."""
    mine = ValueError("no such rate")

    def rate(_: float) -> float:
        raise mine

    with pytest.raises(ValueError, match="no such rate") as caught:
        tuned(separable_cnn(), AdaRoundConfig(lr_adjust=rate, solver="gradient", parallel=parallel))
    assert caught.value is mine


@pytest.mark.parametrize("given", ["fast", None, 10**400])
def test_lr_adjust_that_gives_no_number(given: Any) -> None:
    with pytest.raises(FinetuneError, match="lr_adjust gave no number for the error "):
        tuned(separable_cnn(), AdaRoundConfig(lr_adjust=lambda _: given, solver="gradient"))


def test_a_batch_larger_than_the_data(caplog: pytest.LogCaptureFixture) -> None:
    model = separable_cnn()
    options: dict[str, Any] = {"solver": "gradient", "num_iterations": 20}
    whole, _ = tuned(model, AdaRoundConfig(batch_size=40, **options))
    assert "batch_size" not in caplog.text
    larger, _ = tuned(model, AdaRoundConfig(batch_size=1000, **options))
    assert "batch_size 1000 is 40, all there are" in caplog.text
    dynamic, _ = tuned(model, AdaRoundConfig(dynamic_batch=True, **options))
    assert whole.graph == larger.graph == dynamic.graph


def test_few_samples_judge_themselves() -> None:
    _, report = tuned(separable_cnn(), AdaRoundConfig(solver="gradient", num_iterations=50), count=4)
    assert any(layer.accepted for layer in report.layers)
    assert all(layer.rows[1] == 0 for layer in report.layers)


def test_a_foreign_model() -> None:
    model = separable_cnn()
    plain = plain_model(model)
    finetuned, report = quark.onnx.finetune(model, plain, None, Reader(samples(model, 40)), CONFIGS["adaround"])
    assert report.algorithm == "adaround"
    assert finetuned.graph == tuned(model, CONFIGS["adaround"])[0].graph
    assert finetuned != plain


def test_samples_of_different_shape_are_a_reason() -> None:
    model = separable_cnn()
    del model.graph.input[0].type.tensor_type.shape.dim[2:]
    for size in ("H", "W"):
        model.graph.input[0].type.tensor_type.shape.dim.add(dim_param=size)
    data = samples(separable_cnn(), 12)
    items = [{name: x[i : i + 1, :, : x.shape[2] - 2 * (i % 2)] for name, x in data.items()} for i in range(12)]

    class Items:
        def __init__(self) -> None:
            self._items = iter(items)

        def get_next(self) -> Any:
            return next(self._items, None)

    quantizer = ModelQuantizer(QConfig(LAYER, algo_config=[CONFIGS["adaround"]]))
    quantizer.quantize_model(model, None, Items())
    assert any("its data does not fit" in layer.reason for layer in quantizer.report.layers)
