"""ref_model_path: layers are tuned towards another model than the one that was quantized."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_models import MODELS, Reader, initializers, mean_squared_error, residual_cnn, samples, separable_cnn

from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    Int8Spec,
    ModelError,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    Report,
    UInt8Spec,
    finetune,
)

pytestmark = pytest.mark.sets_apart

LAYER = QLayerConfig(UInt8Spec(), weight=Int8Spec())
CONFIGS = {
    "adaround": AdaRoundConfig(),
    "adaquant": AdaQuantConfig(),
    "gradient": AdaRoundConfig(solver="gradient", num_iterations=30),
}
Run = Callable[[onnx.ModelProto, AdaRoundConfig | AdaQuantConfig], tuple[onnx.ModelProto, Report]]


def reader(model: onnx.ModelProto) -> Reader:
    return Reader(samples(model, 60))


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    return ModelQuantizer(QConfig(LAYER)).quantize_model(model, None, reader(model))


def quantize(
    model: onnx.ModelProto, config: AdaRoundConfig | AdaQuantConfig, output: Path | None = None
) -> tuple[onnx.ModelProto | None, Report]:
    quantizer = ModelQuantizer(QConfig(LAYER, algo_config=[config]))
    return quantizer.quantize_model(model, output, reader(model)), quantizer.report


def tune(
    model: onnx.ModelProto, config: AdaRoundConfig | AdaQuantConfig, output: Path | None = None
) -> tuple[onnx.ModelProto, Report]:
    return finetune(model, plain(model), output, reader(model), config)


RUNS = pytest.mark.parametrize("run", [quantize, tune])


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "reference.onnx")
    return folder / "reference.onnx"


def changed(model: onnx.ModelProto, change: Callable[[str, np.ndarray], np.ndarray]) -> onnx.ModelProto:
    """The model with other float weights and biases."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    for tensor in other.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.float32 and value.ndim:
            tensor.CopyFrom(numpy_helper.from_array(change(tensor.name, value).astype(np.float32), tensor.name))
    return other


def trained_longer(model: onnx.ModelProto) -> onnx.ModelProto:
    random = np.random.default_rng(0)
    return changed(model, lambda _, x: x + 0.03 * x.std() * random.standard_normal(x.shape))


@RUNS
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("folded", [True, False], ids=["folded", "with BatchNormalization"])
def test_the_float_model_as_its_own_reference_changes_nothing(
    folded: bool, config: AdaRoundConfig | AdaQuantConfig, run: Run, tmp_path: Path
) -> None:
    model = residual_cnn(folded=folded)
    expected, without = run(model, config)
    tuned, report = run(model, replace(config, ref_model_path=saved(model, tmp_path)))
    assert tuned.graph == expected.graph
    assert [repr(replace(layer, seconds=0, solve_seconds=0)) for layer in report.layers] == [
        repr(replace(layer, seconds=0, solve_seconds=0)) for layer in without.layers
    ]
    assert report.end_to_end == replace(without.end_to_end, reference="reference model")
    assert "Whole model against the reference model" in report.full(300)
    assert "Whole model against the float model" in without.full(300)


@RUNS
@pytest.mark.parametrize("config", [CONFIGS["adaround"], CONFIGS["adaquant"]], ids=["adaround", "adaquant"])
@pytest.mark.parametrize("name", MODELS)
def test_a_reference_with_other_weights_comes_nearer(
    name: str, config: AdaRoundConfig | AdaQuantConfig, run: Run, tmp_path: Path
) -> None:
    model = MODELS[name]()
    reference = trained_longer(model)
    unseen = samples(model, 64, seed=9)
    without, _ = run(model, config)
    tuned, report = run(model, replace(config, ref_model_path=saved(reference, tmp_path)))
    assert not report.skipped
    assert mean_squared_error(reference, tuned, unseen) < 0.7 * mean_squared_error(reference, without, unseen)
    assert report.end_to_end.after.l2 < report.end_to_end.before.l2


def test_adaround_rounds_the_weights_of_the_reference(tmp_path: Path) -> None:
    model = separable_cnn()
    reference = trained_longer(model)
    config = AdaRoundConfig(ref_model_path=saved(reference, tmp_path))
    weights, before, after = map(initializers, (reference, plain(model), tune(model, config)[0]))
    names = [name for name in weights if name.endswith("_w")]
    assert len(names) == 6
    for name in names:
        integers, steps = after[f"{name}_quantized"], weights[name] / before[f"{name}_scale"]
        moved = (integers != before[f"{name}_quantized"]) & (np.abs(steps) < 126)
        assert moved.any()
        assert (np.abs(integers - steps)[moved] < 1.001).all()


@RUNS
def test_a_layer_that_the_reference_has_not_is_left_as_it_is(run: Run, tmp_path: Path) -> None:
    model = separable_cnn()
    other = changed(model, lambda name, x: -x if name in ("pw1_w", "dw2_w") else x)
    for node in other.graph.node:
        if node.name == "dw2":
            node.name, node.input[1], node.output[0] = "other", "other_w", "other_y"
        node.input[:] = ["other_y" if name == "t7" else name for name in node.input]
    next(tensor for tensor in other.graph.initializer if tensor.name == "dw2_w").name = "other_w"
    tuned, report = run(model, AdaRoundConfig(ref_model_path=saved(other, tmp_path)))
    assert {layer.node: layer.reason for layer in report.skipped} == {
        "pw1": "its weight is not near that of the float model: was another float model quantized?",
        "dw2": "the float model has no such layer: neither its name, its output's nor its weight's is there",
    }
    assert [layer.name for layer in report.layers] == ["stem", "dw1", "pw2", "classes"]
    before, after = initializers(plain(model)), initializers(tuned)
    for name in before:
        if name.startswith(("pw1_w", "dw2_w")):
            np.testing.assert_array_equal(after[name], before[name])


UNLIKE = {
    "(float[N,3,8,8] image) => (float[N,192] y) { y = Flatten(image) }": r"its inputs are \['image'\], not \['x'\]",
    "(float[N,4,8,8] x) => (float[N,256] y) { y = Flatten(x) }":
        r"its input 'x' is float \(\?, 4, 8, 8\), not float \(\?, 3, 8, 8\)",
    "(int32[N,3,8,8] x) => (float[N,3,8,8] y) { y = Cast<to=1>(x) }":
        r"its input 'x' is int32 \(\?, 3, 8, 8\), not float \(\?, 3, 8, 8\)",
    "(float[N,3,8,8] x) => (float[N,192] y, float[N,3,8,8] z) { y = Flatten(x) z = Abs(x) }":
        "it has 2 outputs, not 1",
    "(float[N,3,8,8] x) => (float[N,192] z) { z = Flatten(x) }":
        r"its output 'z' is float \(\?, 192\), not float \(\?, 10\)",
    "(float[N,3,8,8] x) => (float[N,3,8,8] z) { z = Relu(x) }":
        r"its output 'z' is float \(\?, 3, 8, 8\), not float \(\?, 10\)",
    "(float[N,3,8,8] x) => (int32[N,10] z) { t = Flatten(x) z = Cast<to=6>(t) }":
        r"its output 'z' is int32 \(\?, 10\), not float \(\?, 10\)",
}  # fmt: skip


class UnreadReader:
    def get_next(self) -> Any:
        raise AssertionError("the reader is asked before the reference")


def start_quantize(config: AdaRoundConfig) -> Any:
    return ModelQuantizer(QConfig(LAYER, algo_config=[config])).quantize_model(separable_cnn(), None, UnreadReader())


def start_finetune(config: AdaRoundConfig) -> Any:
    return finetune(separable_cnn(), plain(separable_cnn()), None, UnreadReader(), config)


STARTS = pytest.mark.parametrize("start", [start_quantize, start_finetune])


@STARTS
@pytest.mark.parametrize(("text", "difference"), UNLIKE.items())
def test_a_reference_unlike_the_model(
    text: str, difference: str, start: Callable[[AdaRoundConfig], Any], tmp_path: Path
) -> None:
    path = saved(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {text}'), tmp_path)
    expected = rf"the reference model \(ref_model_path\) '{path}' cannot stand for the float model: {difference}"
    with pytest.raises(ModelError, match=expected):
        start(AdaRoundConfig(ref_model_path=path))


@STARTS
def test_a_quantized_reference(start: Callable[[AdaRoundConfig], Any], tmp_path: Path) -> None:
    path = saved(plain(separable_cnn()), tmp_path)
    with pytest.raises(ModelError, match=rf"'{path}' is quantized: give a float model"):
        start(AdaRoundConfig(ref_model_path=path))


@STARTS
def test_no_reference_there(start: Callable[[AdaRoundConfig], Any], tmp_path: Path) -> None:
    path = tmp_path / "reference.onnx"
    with pytest.raises(FileNotFoundError, match=rf"there is no reference model \(ref_model_path\) at '{path}'"):
        start(AdaRoundConfig(ref_model_path=path))
    path.write_bytes(b"no model")
    with pytest.raises(ModelError, match=rf"the reference model \(ref_model_path\) '{path}' cannot be read as ONNX"):
        start(AdaRoundConfig(ref_model_path=path))


@RUNS
def test_the_reference_is_not_overwritten(run: Callable[..., Any], tmp_path: Path) -> None:
    path = saved(separable_cnn(), tmp_path)
    with pytest.raises(shutil.SameFileError, match="would overwrite the input model"):
        run(separable_cnn(), AdaRoundConfig(ref_model_path=path), path)
