"""The calibration pass against NumPy on all tensors of one run of onnxruntime."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.conv_rows import conv_of
from reference.inner_tensors import inner_tensors
from reference.random_graphs import SIDE, RandomGraph, random_graphs
from reference.value_range import bin_width, histogram_percentile
from reference.weight_scale import ScaleProblem
from small_models import MODELS, Arrays, build, samples

from quark.onnx import _core
from quark.onnx.calibration import calibrate as calibrate_module
from quark.onnx.calibration import weight_scale_search
from quark.onnx.calibration.activation_range import ActivationRange
from quark.onnx.calibration.calibrate import Calibration, CalibrationSettings, calibrate
from quark.onnx.calibration.channel_blocks import session_in_blocks
from quark.onnx.calibration.weight_grid import WeightGrid
from quark.onnx.calibration.weight_scale_search import WeightScaleSearch
from quark.onnx.config.spec import CalibMethod
from quark.onnx.errors import DataError
from quark.onnx.inference.sessions import Engine, session
from quark.onnx.layers.weight_layers import WeightLayer, weight_layers
from quark.onnx.operators.attributes import ConvAttributes

PLAIN = CalibrationSettings(ActivationRange(), weights=None)
BINS = 4096


def searching(*, per_channel: bool, symmetric: bool = True) -> CalibrationSettings:
    low, high = (-127, 127) if symmetric else (0, 255)
    return CalibrationSettings(ActivationRange(), WeightGrid(low, high, symmetric, per_channel))


def cutting(percentile: float | None) -> ActivationRange:
    """Percentile of |x|, or minimum and maximum."""
    if percentile is None:
        return ActivationRange()
    return ActivationRange(method=CalibMethod.Percentile, percentiles=(percentile,))


def cut(data: Arrays, *ends: int) -> list[Arrays]:
    whole = len(next(iter(data.values())))
    return [{name: x[a:b] for name, x in data.items()} for a, b in pairwise((0, *ends, whole))]


def calibrated(
    model: onnx.ModelProto,
    batches: list[Arrays],
    tensors: list[str],
    settings: CalibrationSettings = PLAIN,
    layers: tuple[WeightLayer, ...] | None = None,
    threads: int = 1,
) -> Calibration:
    wanted = weight_layers(model) if layers is None else layers
    return calibrate(model, iter(batches), lambda *_: True, tensors, wanted, settings, Engine(threads))


@settings(max_examples=25, deadline=None)
@given(random_graphs(), st.integers(1, 4), st.sampled_from([None, 50.0, 99.0]))
def test_ranges_are_those_of_one_run(graph: RandomGraph, end: int, percentile: float | None):
    rng = np.random.default_rng(0)
    data = {n: rng.standard_normal((5, graph.channels[n], SIDE, SIDE), np.float32) for n in graph.inputs}
    tensors = sorted(graph.channels)
    found = calibrated(graph.model, cut(data, end), tensors, CalibrationSettings(cutting(percentile), None))
    expected = {**data, **inner_tensors(graph.model, data)}
    assert found.samples == 5
    assert list(found.ranges) == tensors
    for name, (low, high) in found.ranges.items():
        x = expected[name]
        limit, tolerance = np.inf, 1e-5 * float(np.abs(x).max())  # onnxruntime's optimisation changes last bits
        if percentile is not None and x.any():
            limit = histogram_percentile(x.reshape(-1), percentile, BINS)
            tolerance += bin_width(x, BINS)  # into which another bit may move a value
        assert low == pytest.approx(max(x.min(), -limit), rel=0, abs=tolerance)
        assert high == pytest.approx(min(x.max(), limit), rel=0, abs=tolerance)


def rows_of(layer: WeightLayer, x: np.ndarray) -> np.ndarray:
    """(groups, rows, K)."""
    a = layer.attributes
    if not isinstance(a, ConvAttributes):
        return x.reshape(1, -1, x.shape[-1])
    return conv_of(a).rows(x)


@pytest.mark.parametrize("name", ["conv1d", "mlp", "residual", "autoencoder"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_weight_scales_are_those_of_a_search_on_the_rows(name: str, symmetric: bool, monkeypatch: pytest.MonkeyPatch):
    """All rows count here: samples have no more positions than the pass draws of each."""
    monkeypatch.setattr(weight_scale_search, "_FEWEST_ROWS", 64)
    model = MODELS[name]()
    data = samples(model, 30)
    options = searching(per_channel=True, symmetric=symmetric)
    found = calibrated(model, cut(data, 7, 20), [], options)
    layers = weight_layers(model)
    assert set(found.weights) == {layer.weight for layer in layers}
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for layer in layers:
        (x,) = inner_tensors(model, data, [layer.input]).values()
        params = found.weights[layer.weight]
        if len(rows_of(layer, x)) > 1:  # the groups of a ConvTranspose
            assert (params.axis, params.scale.shape) == (None, (1,))
            continue
        (rows,) = rows_of(layer, x)
        weight = np.moveaxis(weights[layer.weight], layer.channel_axis, 0).reshape(-1, rows.shape[1])
        problem = ScaleProblem(
            weight, rows, qmin=options.weights.qmin, qmax=options.weights.qmax, symmetric=symmetric,
            bias_free=layer.bias is not None,
        )  # fmt: skip
        assert params.axis == layer.channel_axis
        for o, scale in enumerate(params.scale):
            row = slice(o, o + 1)
            best = problem.relative_error(row, problem.best_factor(row))
            widest, _ = problem.affine(row, 1.0)
            # float32 moments may prefer a factor that is as good
            assert problem.relative_error(row, float(scale) / widest) <= best * 1.001 + 1e-12


@pytest.mark.parametrize("block", [4, 5, 100])
def test_scales_of_blocks_are_those_of_a_search_on_each_block(block: int):
    """Each minimises the error that its own inputs make; layers that are not matrices have one scale per channel."""
    model = MODELS["mlp"]()
    data = samples(model, 30)
    grid = WeightGrid(-8, 7, symmetric=True, per_channel=True, block=block)
    found = calibrated(model, cut(data, 7, 20), [], CalibrationSettings(None, grid))
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for layer in weight_layers(model):
        (x,) = inner_tensors(model, data, [layer.input]).values()
        rows = x.reshape(-1, x.shape[-1])
        weight = weights[layer.weight].T if layer.channel_axis else weights[layer.weight]
        params = found.weights[layer.weight]
        assert (params.axis, params.block) == (1 - layer.channel_axis, block)
        scales = params.scale.T if layer.channel_axis else params.scale
        assert scales.shape == params.zero_point.shape[:: -1 if layer.channel_axis else 1]
        assert scales.shape == (len(weight), -(-weight.shape[1] // block))
        for b in range(scales.shape[1]):
            mine = slice(b * block, (b + 1) * block)
            problem = ScaleProblem(
                weight[:, mine], rows[:, mine], qmin=-8, qmax=7, symmetric=True, bias_free=layer.bias is not None
            )
            for o, scale in enumerate(scales[:, b]):
                row = slice(o, o + 1)
                best = problem.relative_error(row, problem.best_factor(row))
                widest, _ = problem.affine(row, 1.0)
                assert problem.relative_error(row, float(scale) / widest) <= best * 1.001 + 1e-12
    conv = MODELS["conv1d"]()
    params = calibrated(conv, cut(samples(conv, 8)), [], CalibrationSettings(None, grid)).weights["strided_w"]
    assert (params.scale.shape, params.axis, params.block) == ((8,), 0, 0)


def test_batches_do_not_matter_where_only_some_samples_count():
    """Images have more rows here than count of each."""
    random = np.random.default_rng(0)
    model = build("(float[N,3,9,9] x) => (float[N,4,7,7] y) { [a] y = Conv(x, w) }", w=random.normal(size=(4, 3, 3, 3)))
    data = samples(model, 70)
    data["x"][35:, 0] *= 20
    scales = [
        calibrated(model, cut(data, *ends), [], searching(per_channel=True), threads=threads)
        .weights["w"]
        .scale.tolist()
        for ends, threads in (((), 1), (range(1, 70), 2), ((5, 17, 40), 3))
    ]
    assert scales[0] == scales[1] == scales[2]
    half = calibrated(model, cut({"x": data["x"][:35]}), [], searching(per_channel=True)).weights["w"].scale.tolist()
    assert half != scales[0]  # the later ones do count


def searched(model: onnx.ModelProto) -> WeightScaleSearch:
    grid = WeightGrid(-127, 127, symmetric=True, per_channel=False)
    return WeightScaleSearch(model, weight_layers(model), lambda _: grid, _core.ThreadPool(1))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=40))
def test_samples_that_count_for_weight_scales(batches: list[int]):
    """All of the first, then ever fewer, over all of the data; however it is cut."""
    search = searched(build("(float[N,2,9,9] x) => (float[N,1,9,9] y) { y = Conv(x, w) }", w=np.ones((1, 2, 1, 1))))
    search.sort({"x": np.ones((batches[0], 2, 9, 9), np.float32)}, batches[0])
    ends = np.cumsum([0, *batches])
    found = [end + i for end, count in zip(ends, batches, strict=False) for i in search.wanted(count)]
    planned, seen = weight_scale_search._PLANNED_SAMPLES, int(ends[-1])
    assert found[:planned] == list(range(min(planned, seen)))
    for n in (2**k * planned for k in range(8)):
        if n <= seen:
            assert sum(i < n for i in found) == pytest.approx(planned * (1 + np.log(n / planned)), abs=1)


@pytest.mark.parametrize(
    ("text", "side", "scarce"),
    [
        ("y = Conv(x, small)", 7, False),
        ("y = Conv(x, large)", 7, True),  # 49 positions of the input, one row
        ("y = Conv<strides=[4,4]>(x, small)", 20, True),  # 25 rows
        ("y = Conv<strides=[4,4]>(x, small)", 24, False),
        ("y = ConvTranspose<strides=[4,4]>(x, small)", 3, False),  # 9 positions of the input, 81 rows
        ("p = GlobalAveragePool(x) y = Conv(p, small)", 9, True),
        ("p = GlobalAveragePool(x) a = Conv(x, small) b = Conv(p, small) y = Add(a, b)", 9, True),  # as one of them is
    ],
)
def test_layers_that_all_samples_are_fed_to(text: str, side: int, scarce: bool):
    weights = {"small": np.ones((2, 2, 1, 1)), "large": np.ones((2, 2, 7, 7))}
    weights = {name: weight for name, weight in weights.items() if name in text}
    model = build(f"(float[N,2,S,S] x) => (float[N,2,T,T] y) {{ {text} }}", **weights)
    search, x = searched(model), np.ones((3, 2, side, side), np.float32)
    assert search.plentiful() == set()
    search.sort({"x": x, "p": x.mean((2, 3), keepdims=True)}, 3)
    assert search.scarce() == (set(search.tensors()) if scarce else set())
    assert search.plentiful() == (set() if scarce else set(search.tensors()))
    assert bool(search.wanted(3)) != scarce
    search.sort({"x": x, "p": x[..., :1, :1]}, 1)  # where an item does not count as its samples
    assert search.plentiful() == set()


def test_batches_do_not_matter_where_inputs_have_different_first_axes():
    random = np.random.default_rng(0)
    model = build(
        """(float[N,64,8] x, float[3,8] c) => (float[N,64,4] y) {
            s = ReduceSum<keepdims=0>(c) z = Add(x, s) y = MatMul(z, w)
        }""",
        w=random.standard_normal((8, 4)),
    )
    x, c = random.standard_normal((60, 64, 8), np.float32), np.ones((3, 8), np.float32)
    x *= random.lognormal(0, 2, (60, 1, 8)).astype(np.float32)  # every sample counts
    grid = WeightGrid(-7, 7, symmetric=True, per_channel=True)

    def scales(size: int) -> list[float]:
        items = [{"x": x[i : i + size], "c": c} for i in range(0, 60, size)]
        layers, options = weight_layers(model), CalibrationSettings(ActivationRange(), grid)
        found = calibrate(model, iter(items), lambda *_: False, [], layers, options, Engine(1))
        return found.weights["w"].scale.tolist()

    assert scales(1) == scales(2) == scales(3) == scales(5)


def test_one_scale_per_tensor_has_no_axis():
    model = MODELS["mlp"]()
    params = calibrated(model, cut(samples(model, 8)), [], searching(per_channel=False)).weights["second_w"]
    assert params.axis is None
    assert params.scale.shape == params.zero_point.shape == (1,)


@pytest.mark.parametrize("method", [method for method in CalibMethod if method is not CalibMethod.MinOutputMSE])
@pytest.mark.parametrize("name", MODELS)
def test_neither_batches_nor_threads_matter(name: str, method: CalibMethod):
    """To the last bit on the model's inputs; behind them onnxruntime's own bits depend on the batch."""
    model = MODELS[name]()
    data = samples(model, 40)  # of which some do not count for weight scales
    tensors = [name for name, x in data.items() if x.dtype == np.float32]
    layers = tuple(layer for layer in weight_layers(model) if layer.input in tensors)
    activations = ActivationRange(method=method, percentiles=(99.0,))
    settings = CalibrationSettings(activations, WeightGrid(-127, 127, symmetric=True, per_channel=True))

    def found(*ends: int, threads: int = 1) -> list[Any]:
        got = calibrated(model, cut(data, *ends), tensors, settings, layers, threads)
        return [got.ranges, got.samples, *(p.scale.tolist() for p in got.weights.values())]

    assert found() == found(1, 2, 5, 21, 22, 34) == found(4, 19, threads=3)


@pytest.mark.parametrize("biases", [0, 1, 2])
def test_a_shared_weight_gets_its_scale_from_the_rows_of_all(biases: int):
    """With a bias that takes up the mean error only where each has one."""
    random = np.random.default_rng(0)
    text = """(float[N,6] x) => (float[N,6] y) {
        [first] a = Gemm(x, w, c) [second] b = MatMul(a, v) [third] y = Gemm(b, w, d)
    }"""
    constants = {"w": random.standard_normal((6, 6)), "v": random.standard_normal((6, 6))}
    for name in ("c", "d")[:biases]:
        constants[name] = np.ones(6)
    for name in ("c", "d")[biases:]:
        text = text.replace(f", {name})", ")")
    model = build(text, **constants)
    data = {"x": (1 + random.standard_normal((30, 6))).astype(np.float32)}
    found = calibrated(model, cut(data, 7), [], searching(per_channel=False)).weights["w"]
    rows = np.concatenate([*inner_tensors(model, data, ["x", "b"]).values()])
    problem = ScaleProblem(
        constants["w"].T.astype(np.float32), rows, qmin=-127, qmax=127, symmetric=True, bias_free=biases == 2
    )
    whole = slice(None)
    widest, _ = problem.affine(whole, 1.0)
    best = problem.relative_error(whole, problem.best_factor(whole))
    assert problem.relative_error(whole, float(found.scale[0]) / widest) <= best * 1.001


def test_a_weight_that_is_read_as_data_is_left_to_minimum_and_maximum():
    nodes = "[first] a = MatMul(x, w) [second] b = MatMul(a, v) g = Gather(w, one) y = Add(b, g)"
    constants = {"w": np.eye(3), "v": np.eye(3), "one": np.array([1])}
    model = build(f"(float[N,3] x) => (float[N,3] y) {{ {nodes} }}", **constants)
    found = calibrated(model, [{"x": np.ones((4, 3), np.float32)}], [], searching(per_channel=False))
    assert set(found.weights) == {"v"}


def test_no_search_without_a_grid():
    model = MODELS["mlp"]()
    assert calibrated(model, cut(samples(model, 4)), ["x"]).weights == {}


def test_an_input_that_makes_no_rows_is_left_out(caplog: pytest.LogCaptureFixture):
    """A vector times a matrix has no samples to tell apart."""
    model = build(
        "(float[N,3] x) => (float[2] y) { s = ReduceSum<keepdims=0>(x, axes) [layer] y = MatMul(s, w) }",
        w=np.ones((3, 2)),
        axes=np.array([0]),
    )
    with caplog.at_level(logging.WARNING):
        found = calibrated(model, [{"x": np.ones((4, 3), np.float32)}], ["s"], searching(per_channel=False))
    assert found.ranges == {"s": (4, 4)}
    assert found.weights == {}
    assert "layer layer: its weight scale is left to minimum and maximum" in caplog.text


@pytest.mark.parametrize("threads", [1, 3])
def test_minimum_and_maximum_are_those_of_the_graph_as_it_is_item_by_item(threads: int):
    """To the last bit, as onnxruntime.quantization has them."""
    model = MODELS["separable"]()
    data, tensors = samples(model, 10), [layer.output for layer in weight_layers(MODELS["separable"]())]
    items = [inner_tensors(model, item) for item in cut(data, *range(1, 10))]
    expected = {name: (min(i[name].min() for i in items), max(i[name].max() for i in items)) for name in tensors}
    assert calibrated(model, cut(data, *range(1, 10)), tensors, PLAIN, (), threads).ranges == expected


@pytest.mark.parametrize("threads", [1, 3])
def test_only_minimum_and_maximum_keep_items_apart(threads: int):
    """A model that computes across its samples tells: where items of one sample are joined, it is not 0."""
    model = build("(float[N,3] x) => (float[N,3] y) { m = ReduceMax<axes=[0]>(x) y = Sub(x, m) }")
    batches = [{"x": np.full((1, 3), value, np.float32)} for value in range(16)]
    assert calibrated(model, batches, ["y"], PLAIN, (), threads).ranges == {"y": (0, 0)}
    joined = calibrated(model, batches, ["y"], CalibrationSettings(cutting(100.0), weights=None), (), threads)
    assert joined.ranges["y"][0] < 0


@pytest.mark.parametrize("per_channel", [False, True])
def test_the_scale_of_a_weight_counts_on_a_bias_only_where_all_its_layers_have_one(per_channel: bool):
    """A bias takes the mean of the error away; the inputs have a large one, so that this decides."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((12, 6)) + 2.0
    data = {name: (rng.standard_normal((60, 12)) + 5).astype(np.float32) for name in ("a", "c")}

    def scale(*biases: str) -> np.ndarray:
        model = build(
            """(float[N,12] a, float[N,12] c) => (float[N,6] y, float[N,6] z) {{
                y = Gemm(a, w{}) z = Gemm(c, w{})
            }}""".format(*biases),
            w=weight, b=np.ones(6),
        )  # fmt: skip
        coarse = WeightGrid(-7, 7, symmetric=True, per_channel=per_channel)
        found = calibrated(model, [data], ["a"], CalibrationSettings(ActivationRange(), coarse))
        return found.weights["w"].scale

    np.testing.assert_array_equal(scale(", b", ""), scale("", ""))
    np.testing.assert_array_equal(scale("", ", b"), scale("", ""))
    assert (scale(", b", ", b") != scale("", "")).any()


LOGARITHM = "(float[N,3] x) => (float[N,2] y) { s = Log(x) [layer] y = MatMul(s, w) }"


@pytest.mark.parametrize(("x", "what"), [(0.0, "Inf"), (-1.0, "NaN")])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_tensor_that_is_not_finite_has_no_range_and_the_others_have_theirs(
    x: float, what: str, threads: int, caplog: pytest.LogCaptureFixture
):
    model = build(LOGARITHM, w=np.ones((3, 2)))
    batches = [{"x": np.full((2, 3), value, np.float32)} for value in (1.0, x, 5.0, 3.0)]
    found = calibrated(model, batches, ["x", "s"], threads=threads)
    assert found.ranges == {"x": (x, 5)}
    assert found.without_range == {"s": f"it becomes {what} on calibration data"}
    searched = calibrated(model, batches, ["x"], searching(per_channel=True))
    assert searched.weights == {}
    assert "layer layer: its weight scale is left to minimum and maximum" in caplog.text


def test_an_output_of_the_model_that_is_not_finite_is_refused():
    model = build(LOGARITHM, w=np.ones((3, 2)))
    with pytest.raises(DataError, match=r"output 'y' becomes Inf on calibration data.*exclude the node 'layer'"):
        calibrated(model, [{"x": np.zeros((2, 3), np.float32)}], ["x", "s", "y"])


def test_tensors_that_are_never_filled_or_too_wide_have_no_range():
    model = build(
        "(float[N,3] x) => (float[N,3] y, float[0,3] z) { z = Slice(x, a, a, a) y = Mul(x, w) }",
        a=np.array([0]), w=np.float32([3e38, -3e38, 1]),
    )  # fmt: skip
    found = calibrated(model, [{"x": np.ones((2, 3), np.float32)}], ["x", "y", "z"])
    assert found.ranges == {"x": (1, 1)}
    assert found.without_range["z"].startswith("it is empty on all calibration data")
    assert found.without_range["y"].startswith("its values lie from -3e+38 to 3e+38")


def test_data_that_the_model_cannot_run_on_is_said_with_its_shape():
    model = build("(float[N,M] x) => (float[N,2] y) { y = MatMul(x, w) }", w=np.ones((3, 2)))
    with pytest.raises(DataError, match=r"cannot run on calibration data of shape \{'x': \(2, 5\)\}"):
        calibrated(model, [{"x": np.ones((2, 5), np.float32)}], ["y"])


@pytest.mark.parametrize("weights", [False, True])
def test_tensors_in_blocks_of_channels_have_the_same_ranges(weights: bool, monkeypatch: pytest.MonkeyPatch):
    """To the last bit: histograms do not see the order."""
    shapes = {"wa": (16, 3, 3, 3), "wb": (16, 1, 3, 3), "wc": (32, 16, 1, 1)}
    random = np.random.default_rng(0)
    model = build(
        """(float[N,3,12,12] x) => (float[N,32,8,8] y) {
            [a] u = Conv(x, wa) a = Relu(u) [b] v = Conv<group=16>(a, wb) b = Relu(v) [c] y = Conv(b, wc)
        }""",
        **{name: random.standard_normal(shape) for name, shape in shapes.items()},
    )
    data = samples(model, 50)
    grid = WeightGrid(-127, 127, symmetric=True, per_channel=True) if weights else None
    options, runs = CalibrationSettings(cutting(99.0), grid), []

    def found(blocks: Callable[..., Any]) -> Calibration:
        def watched(*args: Any) -> Any:
            opened = blocks(*args)
            if opened is None:
                return None
            run, asked = opened
            return SimpleNamespace(run=lambda *feed: runs.append(asked) or run.run(*feed)), asked

        monkeypatch.setattr(calibrate_module, "session_in_blocks", watched)
        layers, items = weight_layers(model), iter(cut(data, *range(1, 50)))
        return calibrate(model, items, lambda *_: False, ["x", "a", "b", "y"], layers, options, Engine(2))

    blocks = found(session_in_blocks)
    if not runs and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("this onnxruntime holds no tensors in blocks")
    assert len(runs) > (10 if weights else 50)
    ordered = found(lambda *_: None)
    assert blocks.ranges == ordered.ranges
    assert {n: p.scale.tolist() for n, p in blocks.weights.items()} == {
        n: p.scale.tolist() for n, p in ordered.weights.items()
    }


@pytest.mark.parametrize("weights", [False, True])
def test_a_model_without_blocks_is_opened_once(weights: bool, monkeypatch: pytest.MonkeyPatch):
    """Sessions hold the model's weights."""
    opened = []
    monkeypatch.setattr(calibrate_module, "session", lambda *a, **k: opened.append(1) or session(*a, **k))
    model = MODELS["mlp"]()
    grid = WeightGrid(-127, 127, symmetric=True, per_channel=True) if weights else None
    options = CalibrationSettings(cutting(99.0), grid)
    layers, items = weight_layers(model), cut(samples(model, 60), *range(1, 60))
    calibrate(model, iter(items), lambda *_: False, [layer.input for layer in layers], layers, options, Engine(1))
    assert len(opened) == 1


def test_the_model_stays():
    model = MODELS["residual"]()
    before = model.SerializeToString()
    calibrated(model, cut(samples(model, 4)), ["r1"], searching(per_channel=True))
    assert model.SerializeToString() == before
