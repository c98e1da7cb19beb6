"""CalibMethods of activations, from the configuration to the model, beside onnxruntime's quantize_static."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
from onnxruntime.quantization import calibrate as onnxruntimes
from small_models import MODELS, Arrays, Reader, build, initializers, mean_squared_error, run, samples

from quark.onnx import (
    CalibMethod,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    QTensorConfig,
    UInt8Spec,
)
from quark.onnx.preparation.prepare import prepare
from quark.onnx.qdq.qdq_options import DEFAULT_OP_TYPES

pytestmark = pytest.mark.sets_apart

METHODS = [method for method in CalibMethod if method is not CalibMethod.MinOutputMSE]
OF_MINIMUM_AND_MAXIMUM = Int8Spec(calibration_method=CalibMethod.MinMax)


def quantize(
    model: onnx.ModelProto,
    activation: QTensorConfig,
    arrays: Arrays,
    weight: Int8Spec = OF_MINIMUM_AND_MAXIMUM,
    **options: Any,
) -> onnx.ModelProto:
    quantizer = ModelQuantizer(QConfig(QLayerConfig(activation, weight=weight), **options))
    return quantizer.quantize_model(model, None, Reader(arrays))


class OneThread:
    """onnxruntime with sessions of one thread: the bits of large convolutions depend on how many there are."""

    def __getattr__(self, name: str) -> Any:
        return self._options if name == "SessionOptions" else getattr(onnxruntime, name)

    @staticmethod
    def _options() -> onnxruntime.SessionOptions:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        return options


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntimes, "onnxruntime", OneThread())


def theirs(
    model: onnx.ModelProto, method: CalibrationMethod, arrays: Arrays, folder: Path, *, symmetric: bool, **options: Any
) -> onnx.ModelProto:
    """The ranges of quantize_static, from the same prepared model, item by item."""
    activation = QuantType.QInt8 if symmetric else QuantType.QUInt8
    quantize_static(
        prepare(model), folder / "theirs.onnx", Reader(arrays),
        op_types_to_quantize=list(DEFAULT_OP_TYPES), activation_type=activation, weight_type=QuantType.QInt8,
        calibrate_method=method,
        extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": True, **options},
    )  # fmt: skip
    return onnx.load(folder / "theirs.onnx")


def assert_same(ours: onnx.ModelProto, expected: onnx.ModelProto) -> None:
    found, wanted = initializers(ours), initializers(expected)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert {node.name: node for node in ours.graph.node} == {node.name: node for node in expected.graph.node}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_minimum_and_maximum_are_onnxruntimes_to_the_bit(name: str, symmetric: bool, tmp_path: Path) -> None:
    model = MODELS[name]()
    arrays = samples(model, 12)
    kind = Int8Spec if symmetric else UInt8Spec
    expected = theirs(model, CalibrationMethod.MinMax, arrays, tmp_path, symmetric=symmetric)
    for threads in (1, 3):
        ours = quantize(model, kind(calibration_method=CalibMethod.MinMax), arrays, NumThreads=threads)
        assert_same(ours, expected)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", MODELS)
def test_symmetric_minimum_and_maximum_are_onnxruntimes_to_the_bit(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    arrays = samples(model, 12)
    options = {"CalibTensorRangeSymmetric": True, "QDQKeepRemovableActivations": True}
    expected = theirs(model, CalibrationMethod.MinMax, arrays, tmp_path, symmetric=False, **options)
    spec = UInt8Spec(calibration_method=CalibMethod.MinMax)
    assert_same(quantize(model, spec, arrays, CalibTensorRangeSymmetric=True), expected)


def test_distribution_is_onnxruntimes_but_for_the_last_bits(tmp_path: Path) -> None:
    """It widens its histogram by bins of the first item's width; with one item there is one."""
    model = MODELS["separable"]()
    arrays = samples(model, 1)
    options = {"QDQKeepRemovableActivations": True}
    expected = initializers(theirs(model, CalibrationMethod.Distribution, arrays, tmp_path, symmetric=False, **options))
    found = initializers(quantize(model, UInt8Spec(calibration_method=CalibMethod.Distribution), arrays))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        atol = 1 if name.endswith("_zero_point") else 0  # 127.5
        np.testing.assert_allclose(found[name], value.astype(float), rtol=1e-6, atol=atol, err_msg=name)


@pytest.mark.parametrize("name", MODELS)
def test_percentile_is_no_worse_than_onnxruntimes(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    arrays, unseen = samples(model, 40), samples(model, 64, seed=9)
    expected = theirs(
        model, CalibrationMethod.Percentile, arrays, tmp_path, symmetric=False, CalibTensorRangeSymmetric=True
    )
    error = partial(mean_squared_error, model, arrays=unseen)
    # With the same weights the two differ by the width of a bin; with weight scales of our own we are ahead.
    assert error(quantize(model, UInt8Spec(), arrays)) < 1.1 * error(expected)
    assert error(quantize(model, UInt8Spec(), arrays, Int8Spec())) < 1.02 * error(expected)


@pytest.mark.parametrize("spec", [UInt8Spec, Int8Spec])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_every_method_makes_a_model_that_is_near_the_float_one(
    name: str, method: CalibMethod, spec: type[QTensorConfig]
) -> None:
    model = MODELS[name]()
    result = quantize(model, spec(calibration_method=method), samples(model, 40), Int8Spec())
    onnx.checker.check_model(result, full_check=True)
    unseen = samples(model, 64, seed=9)
    assert mean_squared_error(model, result, unseen) < 0.4
    plain, optimised = run(result, unseen), run(result, unseen, optimise=True)
    for a, b in zip(plain, optimised, strict=True):
        assert np.mean((a - b) ** 2) < 0.01 * np.var(a)


@pytest.mark.parametrize("method", METHODS)
def test_threads_and_items_do_not_matter(method: CalibMethod) -> None:
    model = MODELS["residual"]()
    arrays = samples(model, 9)
    found = {
        quantize(model, UInt8Spec(calibration_method=method), arrays, NumThreads=threads).SerializeToString(
            deterministic=True
        )
        for threads in (1, 2, 4)
    }
    assert len(found) == 1


IDENTITY = "(float[N,2000] x) => (float[N,2000] y) { y = Mul(x, one) }"


def range_of_input(x: np.ndarray, activation: QTensorConfig, **options: Any) -> tuple[float, float]:
    """Return the range of a model's only input, from the scale and zero point of its Q/DQ."""
    model = build(IDENTITY, one=np.float32([1.0]))
    constants = initializers(quantize(model, activation, {"x": x.reshape(-1, 2000).astype(np.float32)}, **options))
    scale, zero_point = float(constants["x_scale"]), int(constants["x_zero_point"])
    return -scale * zero_point, scale * (255 - zero_point)


SKEWED = np.exp(np.random.default_rng(0).standard_normal(100_000)) - 1.0


@pytest.mark.parametrize("x", [SKEWED, -SKEWED], ids=["right", "left"])
def test_options_of_percentiles(x: np.ndarray) -> None:
    percentile, layerwise = (
        UInt8Spec(calibration_method=m) for m in (CalibMethod.Percentile, CalibMethod.LayerwisePercentile)
    )
    step = np.abs(x).max() / 255
    both, each = np.percentile(np.abs(x), 99), np.percentile(x, [0.5, 99.5])
    found = range_of_input(x, percentile, Percentile=99)
    assert found == pytest.approx((max(x.min(), -both), min(x.max(), both)), abs=2 * step)
    found = range_of_input(x, percentile, Percentile=99, CalibTensorRangeSymmetric=False)
    assert found == pytest.approx(tuple(each), abs=2 * step)
    assert range_of_input(x, layerwise, PercentileCandidates=[99], CalibTensorRangeSymmetric=False) == found
    # The squared error minds what is clipped more than the absolute one.
    candidates = {"PercentileCandidates": [90, 99.99]}
    narrow, wide = (range_of_input(x, layerwise, LWPMetric=metric, **candidates) for metric in ("mae", "mse"))
    assert wide[1] - wide[0] >= narrow[1] - narrow[0]
    assert range_of_input(x, layerwise, **candidates) == narrow
    assert wide == range_of_input(x, percentile, Percentile=99.99)


def test_options_of_minimum_and_maximum_and_entropy() -> None:
    x = np.append(np.random.default_rng(0).standard_normal(3999), 40.0)
    step = 80 / 255
    low, high = range_of_input(x, UInt8Spec(calibration_method=CalibMethod.MinMax))
    assert (low, high) == pytest.approx((x.min(), 40), abs=step)
    symmetric = range_of_input(x, UInt8Spec(calibration_method=CalibMethod.MinMax), CalibTensorRangeSymmetric=True)
    assert symmetric == pytest.approx((-40, 40), abs=step)
    few, many = (
        range_of_input(x, UInt8Spec(calibration_method=CalibMethod.Entropy), NumQuantizedBins=bins)
        for bins in (64, 1024)
    )
    assert 2 < few[1] < many[1] < 40
