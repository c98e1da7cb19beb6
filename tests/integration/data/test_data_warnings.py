"""What the report says of odd calibration data, and of what a shared scale loses."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_models import Arrays, Reader, Weights, build, run, samples, separable_cnn

from quark.onnx import AdaRoundConfig, ModelQuantizer, finetune
from quark.onnx.config import QConfig
from quark.onnx.config.spec import Int8Spec, Int16Spec, QLayerConfig, UInt8Spec

LAYER = QLayerConfig(activation=UInt8Spec(), weight=Int8Spec())


def warnings_of(model: onnx.ModelProto, arrays: Arrays, *, batch: int = 1, layer: QLayerConfig = LAYER) -> list[str]:
    quantizer = ModelQuantizer(QConfig(global_config=layer))
    quantizer.quantize_model(model, None, Reader(arrays, batch=batch))
    return list(quantizer.report.warnings)


@pytest.mark.parametrize("batch", [1, 5, 40])
@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, "there is one calibration sample"), (31, "there are 31 calibration samples"), (32, None), (40, None)],
)
def test_few_samples(count: int, batch: int, expected: str | None) -> None:
    model = separable_cnn()
    found = warnings_of(model, samples(model, count), batch=batch)
    assert [line.startswith(expected or "-") for line in found] == ([True] if expected else [])


@pytest.mark.parametrize("value", ["zeros", "one sample"])
@pytest.mark.parametrize("batch", [1, 16])
def test_equal_samples(value: str, batch: int) -> None:
    model = separable_cnn()
    arrays = {name: np.repeat(array, 40, axis=0) for name, array in samples(model, 1).items()}
    arrays = {name: array * (value != "zeros") for name, array in arrays.items()}
    assert [line[:9] for line in warnings_of(model, arrays, batch=batch) if "samples" in line] == ["all 40 ca"]
    arrays["x"][-1] += 1
    assert not any("samples" in line for line in warnings_of(model, arrays, batch=batch))


def test_finetune_says_it_too() -> None:
    model = separable_cnn()
    quantized = ModelQuantizer(QConfig(global_config=LAYER)).quantize_model(model, None, Reader(samples(model, 40)))
    _, report = finetune(model, quantized, None, Reader(samples(model, 12)), AdaRoundConfig())
    assert any(line.startswith("there are 12 calibration samples") for line in report.warnings)


def first_layer(*, scale: float = 1.0, divided: bool = False) -> onnx.ModelProto:
    weights = Weights(0)
    text = "(float[N,3,8,8] x) => (float[N,8,6,6] y) { s = Conv(z, w) y = Relu(s) }"
    text = text.replace("{", "{ z = Div(x, c)" if divided else "{ z = Transpose<perm=[0,1,3,2]>(x)")
    constants = {"c": np.float32([255.0])} if divided else {}
    return build(text, w=weights.conv(8, 3, 3, 3) * scale, **constants)


@pytest.mark.parametrize(
    ("model", "data", "expected"),
    [
        (first_layer(), lambda rng, shape: rng.integers(0, 256, shape), True),
        (first_layer(), lambda rng, shape: rng.integers(0, 256, shape) / 255, False),
        (first_layer(), lambda rng, shape: rng.standard_normal(shape) * 100, False),
        (first_layer(), lambda rng, shape: rng.integers(0, 10, shape), False),
        (first_layer(scale=1 / 255), lambda rng, shape: rng.integers(0, 256, shape), False),  # was trained on them
        (first_layer(divided=True), lambda rng, shape: rng.integers(0, 256, shape), False),
    ],
    ids=["pixels", "normalised", "others", "counts", "meant", "divided"],
)
def test_pixels_that_are_not_normalised(model: onnx.ModelProto, data: object, expected: bool) -> None:
    x = data(np.random.default_rng(0), (40, 3, 8, 8)).astype(np.float32)
    found = warnings_of(model, {"x": x})
    assert len(found) == expected
    if expected:
        assert found[0].startswith("input 'x' has whole numbers from 0 to 255, mean 127")


def head(join: str) -> onnx.ModelProto:
    weights = Weights(0)
    text = f"""(float[N,4,6,6] x) => (float y) {{ b = Conv(x, w) box = Mul(b, stride) c = Conv(x, v) score = Sigmoid(c)
        [join] y = {join} }}"""
    shape = "float[N,6,6,6] y" if "Concat" in join else "float[N,3,6,6] y"
    return build(
        text.replace("float y", shape),
        w=weights.conv(3, 4, 1, 1),
        v=weights.conv(3, 4, 1, 1),
        stride=np.float32([640.0]),
    )


@pytest.mark.parametrize("join", ["Concat<axis=1>(box, score)", "Add(box, score)"])
def test_a_part_that_a_shared_scale_swallows_is_named(join: str) -> None:
    model = head(join)
    arrays = samples(model, 40)
    (line,) = [line for line in warnings_of(model, arrays) if "has lost its meaning" not in line]
    assert line.startswith(
        f"{join[: join.index('<') if '<' in join else 3]} 'join': its part 'score' has values from 0"
    )
    assert "exclude=['join']" in line
    assert warnings_of(model, arrays, layer=QLayerConfig(activation=Int16Spec(), weight=Int8Spec())) == []
    if "Concat" in join:  # it is true
        config = QConfig(global_config=LAYER)
        quantized = ModelQuantizer(config).quantize_model(model, None, Reader(arrays))
        assert len(np.unique(run(quantized, arrays)[0][:, 3:])) <= 2
        kept = ModelQuantizer(QConfig(global_config=LAYER, exclude=["join"])).quantize_model(
            model, None, Reader(arrays)
        )
        assert len(np.unique(run(kept, arrays)[0][:, 3:])) > 50
