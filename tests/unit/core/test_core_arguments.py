"""What the core's Python types refuse, and that they may be used from several threads."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from quark.onnx import _core

POOL = _core.ThreadPool(2)
CONV = ((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 0)


def ones(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.ones(shape, dtype)


def test_the_extent_of_what_does_not_fit():
    assert gemm_layer().extent(ones(5, 7, 3)) == (5, 7)
    with pytest.raises(ValueError, match="extent"):
        gemm_layer().extent(ones(5, 4))


def gemm_layer(**options: Any) -> _core.Layer:
    return _core.Layer(3, 2, 10, 100, **options)


def fed_layer() -> _core.Layer:
    layer = gemm_layer(holdout=5)
    layer.feed(np.arange(30, dtype=np.float32).reshape(10, 3), ones(10, 2), POOL)
    return layer


BAD_LAYERS: dict[str, Callable[[], object]] = {
    "no inputs": lambda: _core.Layer(0, 2, 10, 100),
    "no outputs": lambda: _core.Layer(3, 0, 10, 100),
    "no samples": lambda: _core.Layer(3, 2, 0, 100),
    "no rows": lambda: _core.Layer(3, 2, 10, 0),
    "no groups": lambda: _core.Layer(9, 2, 10, 100, groups=0, conv=CONV),
    "groups of a matrix product": lambda: _core.Layer(3, 2, 10, 100, groups=2),
    "everything held out": lambda: gemm_layer(holdout=1),
    "negative holdout": lambda: gemm_layer(holdout=-1),
    "four axes": lambda: _core.Layer(9, 2, 10, 100, conv=((1,) * 4, (1,) * 4, (1,) * 4, (0,) * 8, 0)),
    "no axis": lambda: _core.Layer(9, 2, 10, 100, conv=((), (), (), (), 0)),
    "unknown auto_pad": lambda: _core.Layer(9, 2, 10, 100, conv=(*CONV[:4], 4)),
    "too few pads": lambda: _core.Layer(9, 2, 10, 100, conv=((3, 3), (1, 1), (1, 1), (1, 1), 0)),
    "too many strides": lambda: _core.Layer(9, 2, 10, 100, conv=((3, 3), (1, 1, 1), (1, 1), (1,) * 4, 0)),
    "stride 0": lambda: _core.Layer(9, 2, 10, 100, conv=((3, 3), (0, 1), (1, 1), (1,) * 4, 0)),
    "dilation 0": lambda: _core.Layer(9, 2, 10, 100, conv=((3, 3), (1, 1), (0, 1), (1,) * 4, 0)),
    "negative pad": lambda: _core.Layer(9, 2, 10, 100, conv=((3, 3), (1, 1), (1, 1), (0, 0, 0, -1), 0)),
    "too few output_padding": lambda: _core.Layer(9, 2, 10, 100, conv=(*CONV, (1,), None)),
    "negative output_padding": lambda: _core.Layer(9, 2, 10, 100, conv=(*CONV, (0, -1), None)),
    "too many of output_shape": lambda: _core.Layer(9, 2, 10, 100, conv=(*CONV, (0, 0), (1, 2, 3))),
    "negative output_shape": lambda: _core.Layer(9, 2, 10, 100, conv=(*CONV, (0, 0), (1, -1))),
    "kernel 0": lambda: _core.Layer(9, 2, 10, 100, conv=((0, 3), (1, 1), (1, 1), (1,) * 4, 0)),
    "odd bins": lambda: _core.ValueRanges(1, 5),
    "negative count": lambda: _core.ValueRanges(-1),
    "no threads": lambda: _core.ThreadPool(0),
}


@pytest.mark.parametrize("name", BAD_LAYERS)
def test_sizes_that_make_no_sense(name: str):
    with pytest.raises(ValueError, match=r"argument|needed"):
        BAD_LAYERS[name]()


@pytest.mark.parametrize(
    "conv",
    [
        3,
        list(CONV),
        (1, 2),
        ((3,), (1,), (1,), "ab", 0),
        (("a",), (1,), (1,), (0, 0), 0),
        (*CONV, None, None),
        (*CONV, (0, 0), 7),
        (*CONV, (0, 0), None, None),
    ],
)
def test_geometry_of_a_wrong_type(conv: object):
    with pytest.raises(TypeError):
        _core.Layer(9, 2, 10, 100, conv=conv)


BAD_FEEDS: dict[str, tuple[Callable[[], _core.Layer], object, object, type[Exception], str]] = {
    "a list": (gemm_layer, [[1.0, 2, 3]], ones(1, 2), TypeError, "x: a NumPy array is needed, not list"),
    "float64": (gemm_layer, ones(1, 3, dtype=float), ones(1, 2), TypeError, "x: float32, uint8 or int8"),
    "int32": (gemm_layer, ones(1, 3, dtype=np.int32), ones(1, 2), TypeError, "not int32"),
    "float64 target": (gemm_layer, ones(1, 3), ones(1, 2, dtype=float), TypeError, "y: float32"),
    "strided": (gemm_layer, ones(4, 6)[:, ::2], ones(4, 2), ValueError, "x: a C-contiguous array"),
    "transposed": (gemm_layer, ones(3, 4).T, ones(4, 2), ValueError, "x: a C-contiguous array"),
    "no axis": (gemm_layer, np.array(1, np.float32), ones(1, 2), ValueError, "1 to 8 dimensions"),
    "nine axes": (gemm_layer, ones(*(1,) * 8, 3), ones(1, 2), ValueError, "1 to 8 dimensions"),
    "one axis": (gemm_layer, ones(3), ones(2), ValueError, "shape"),
    "other inputs": (gemm_layer, ones(1, 4), ones(1, 2), ValueError, "shape"),
    "other outputs": (gemm_layer, ones(1, 3), ones(1, 3), ValueError, "shape"),
    "other samples": (gemm_layer, ones(2, 3), ones(1, 2), ValueError, "shape"),
    "other rows": (gemm_layer, ones(2, 5, 3), ones(2, 4, 2), ValueError, "shape"),
    "no target": (gemm_layer, ones(1, 3), None, ValueError, "argument"),
    "a target": (lambda: gemm_layer(target=False), ones(1, 3), ones(1, 2), ValueError, "argument"),
    "other channels": (
        lambda: _core.Layer(9, 2, 10, 100, conv=CONV), ones(1, 2, 5, 5), ones(1, 2, 5, 5), ValueError, "shape"
    ),
    "too few axes": (
        lambda: _core.Layer(9, 2, 10, 100, conv=CONV), ones(1, 1, 5), ones(1, 2, 5), ValueError, "shape"
    ),
    "other output size": (
        lambda: _core.Layer(9, 2, 10, 100, conv=CONV), ones(1, 1, 5, 5), ones(1, 2, 5, 4), ValueError, "shape"
    ),
    "smaller than the kernel": (
        lambda: _core.Layer(9, 2, 10, 100, conv=(*CONV[:3], (0,) * 4, 0)),
        ones(1, 1, 2, 5), ones(1, 2, 0, 3), ValueError, "shape",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FEEDS)
def test_arrays_that_cannot_be_fed(name: str):
    make, x, y, kind, message = BAD_FEEDS[name]
    with pytest.raises(kind, match=message):
        make().feed(x, y, POOL)


def test_foreign_byte_order_is_refused():
    with pytest.raises((TypeError, ValueError)):
        _core.fake_quant(ones(3).astype(np.dtype(np.float32).newbyteorder()), 1.0, 0, 0, 255)


def test_a_refused_batch_leaves_no_trace():
    layer = gemm_layer()
    layer.feed(ones(4, 3), ones(4, 2), POOL)
    before = layer.moments(POOL, False)
    with pytest.raises(ValueError, match="shape"):
        layer.feed(7 * ones(4, 3), ones(3, 2), POOL)
    for a, b in zip(before, layer.moments(POOL, False), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("pool", [None, 2, object()])
def test_what_is_no_pool(pool: object):
    for call in (
        lambda: gemm_layer().feed(ones(1, 3), ones(1, 2), pool),
        lambda: fed_layer().moments(pool, False),
    ):
        with pytest.raises(TypeError, match="pool: a ThreadPool is needed"):
            call()


def solve(**changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "weight": ones(2, 3),
        "weight_q": ones(2, 3, dtype=np.int32),
        "weight_scale": ones(2),
        "weight_zero_point": np.zeros(2, np.int32),
        "qmin": -128,
        "qmax": 127,
        "bias": ones(2),
        "bias_scale": ones(2),
        "bias_qmin": -128,
        "bias_qmax": 127,
    }
    options: dict[str, Any] = {
        "update_bias": True,
        "free": False,
        "damping": np.array([0.1]),
        "max_sweeps": 3,
        "pool": POOL,
    }
    start = _core.QuantizedLayer(**arguments | {name: changes.pop(name) for name in arguments if name in changes})
    return fed_layer().least_squares(start, **options | changes)


def choose(**changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "weight": ones(2, 3),
        "qmin": -127,
        "qmax": 127,
        "symmetric": True,
        "per_channel": True,
        "bias_free": True,
        "scale_type": "PowerOf2",
        "pool": POOL,
    }
    return fed_layer().weight_scale(**{**arguments, **changes})


def test_the_arguments_above_are_right_but_for_the_changes():
    assert solve()["weight"].shape == (2, 3)
    assert choose()[0].shape == (2,)


@pytest.mark.parametrize(
    "name", ["weight", "weight_q", "weight_scale", "weight_zero_point", "bias", "bias_scale", "damping"]
)
def test_arrays_that_least_squares_refuses(name: str):
    right = np.array([0.1]) if name == "damping" else ones(2, 3) if name.startswith("weight") else ones(2)
    with pytest.raises(TypeError, match=f"{name}: dtype .* is needed, not int16"):
        solve(**{name: right.astype(np.int16)})
    with pytest.raises(TypeError, match=f"{name}: a NumPy array is needed, not list"):
        solve(**{name: [1.0]})
    if name != "damping":
        dtype = np.int32 if name in ("weight_q", "weight_zero_point") else np.float32
        wrong_size = r"an array \(rows, inputs\) is needed" if name == "weight" else "[62] elements are needed, not 5"
        with pytest.raises(ValueError, match=f"{name}: {wrong_size}"):
            solve(**{name: ones(5, dtype=dtype)})
        with pytest.raises(ValueError, match=f"{name}: a C-contiguous, aligned array in native"):
            solve(**{name: ones(12, dtype=dtype)[::2]})


def test_arrays_that_weight_scale_refuses():
    with pytest.raises(TypeError, match="weight: dtype float32 is needed, not float64"):
        choose(weight=ones(2, 3, dtype=float))
    with pytest.raises(ValueError, match="weight: 6 elements are needed, not 8"):
        choose(weight=ones(2, 4))
    with pytest.raises(ValueError, match="C-contiguous"):
        choose(weight=ones(3, 2).T)


def choose_alone(weight: Any, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "qmin": -127,
        "qmax": 127,
        "symmetric": True,
        "per_channel": True,
        "scale_type": "Float32",
        "pool": POOL,
    }
    return _core.weight_scale(weight, **{**arguments, **changes})


def test_what_weight_scale_without_a_layer_refuses():
    assert choose_alone(ones(2, 3))[0].shape == (2,)
    assert choose_alone(ones(2, 3), per_channel=False)[0].shape == (1,)
    for weight in (ones(6), ones(1, 2, 3), [1.0]):
        with pytest.raises(ValueError, match=r"weight: an array \(rows, inputs\) is needed"):
            choose_alone(weight)
    with pytest.raises(TypeError, match="weight: dtype float32 is needed, not float64"):
        choose_alone(ones(2, 3, dtype=float))
    for shape in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match="weight_scale"):
            choose_alone(ones(*shape))
    with pytest.raises(TypeError, match="ThreadPool"):
        choose_alone(ones(2, 3), pool=None)


def test_scale_types_have_names():
    expected = r"scale_type: 'Float16' is none of \['Float32', 'PowerOf2', 'Int16'\]"
    with pytest.raises(ValueError, match=expected):
        choose(scale_type="Float16")
    with pytest.raises(ValueError, match=expected):
        choose_alone(ones(2, 3), scale_type="Float16")
    with pytest.raises(ValueError, match=expected):
        _core.affine_from_range(-1, 1, 0, 255, False, "Float16")
    with pytest.raises(ValueError, match=expected):
        choose_range(scale_type="Float16")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weight_scale_refuses_data_that_is_not_finite(bad: float):
    layer = gemm_layer(target=False)
    x = ones(10, 3)
    x[7, 1] = bad
    layer.feed(x, None, POOL)
    with pytest.raises(ValueError, match="NaN or Inf"):
        layer.weight_scale(
            ones(2, 3), qmin=-127, qmax=127, symmetric=True, per_channel=True, bias_free=True, scale_type="Int16",
            pool=POOL,
        )  # fmt: skip


def test_value_ranges_refuse():
    ranges = _core.ValueRanges(2)
    with pytest.raises(ValueError, match="2 arrays are needed"):
        ranges.update([ones(3)])
    with pytest.raises(TypeError, match="dtype float32 is needed, not float64"):
        ranges.update([ones(3), ones(3, dtype=float)])
    with pytest.raises(ValueError, match="C-contiguous"):
        ranges.update([ones(3), ones(6)[::2]])
    with pytest.raises(TypeError, match="update: a sequence is needed, not int"):
        ranges.update(3)
    for tensor in (-1, 2):
        with pytest.raises(IndexError, match=f"tensor {tensor} of 2"):
            ranges.min_max(tensor)
        with pytest.raises(IndexError, match=f"tensor {tensor} of 2"):
            ranges.percentile(tensor, 50)
    for percentile in (0.0, -1.0, 100.1, float("nan")):
        with pytest.raises(ValueError, match=r"a number in \(0, 100\]"):
            ranges.percentile(0, percentile)


def choose_range(tensor: int = 0, method: str = "Percentile", **changes: Any) -> Any:
    ranges = _core.ValueRanges(2, 8)
    ranges.update([ones(3), ones(2)])
    arguments: dict[str, Any] = {
        "qmin": 0,
        "qmax": 255,
        "symmetric": False,
        "scale_type": "Float32",
        "two_sided": False,
        "percentiles": (99.0,),
        "squared": False,
        "levels": 8,
    }
    return ranges.choose(tensor, method, **{**arguments, **changes})


def test_the_choice_of_a_range_refuses():
    assert choose_range() == (1, 1)
    with pytest.raises(IndexError, match="tensor 2 of 2"):
        choose_range(2)
    with pytest.raises(ValueError, match=r"method: 'MinOutputMSE' is none of .*'LayerwisePercentile'"):
        choose_range(method="MinOutputMSE")
    for percentile in (0, -1, 100.1, float("nan")):
        with pytest.raises(ValueError, match=r"numbers in \(0, 100\]"):
            choose_range(percentiles=(99, percentile))
    with pytest.raises(TypeError, match="percentiles: a sequence is needed, not float"):
        choose_range(percentiles=99.0)
    with pytest.raises(TypeError, match="must be real number, not str"):
        choose_range(percentiles=("99",))
    for method in ("Percentile", "LayerwisePercentile"):
        with pytest.raises(ValueError, match="percentiles: at least one"):
            choose_range(method=method, percentiles=())
    assert choose_range(method="MinMax", percentiles=()) == (1, 1)
    for levels in (0, 3, 18):
        with pytest.raises(ValueError, match="levels: an even number from 2 to 16"):
            choose_range(method="Entropy", levels=levels)
    with pytest.raises(IndexError, match="tensor 2 of 2"):
        _core.ValueRanges(2).histogram(2)


def test_fake_quant_refuses():
    with pytest.raises(TypeError, match="x: dtype float32 is needed"):
        _core.fake_quant(ones(3, dtype=float), 1.0, 0, 0, 255)
    with pytest.raises(ValueError, match="C-contiguous"):
        _core.fake_quant(ones(6)[::2], 1.0, 0, 0, 255)
    with pytest.raises(TypeError, match="a NumPy array is needed"):
        _core.fake_quant([1.0], 1.0, 0, 0, 255)


def test_python_threads_may_share_a_pool():
    """Each has a layer of its own; results are those of one after the other."""

    def work(seed: int) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        layer = _core.Layer(40, 20, 300, 1000, holdout=5)
        ranges = _core.ValueRanges(1)
        for _ in range(3):
            x, y = rng.standard_normal((100, 40), np.float32), rng.standard_normal((100, 20), np.float32)
            layer.feed(x, y, POOL)
            ranges.update([x])
        weight = rng.standard_normal((20, 40), np.float32)
        scale, zero_point = layer.weight_scale(
            weight, qmin=-7, qmax=7, symmetric=True, per_channel=True, bias_free=True, scale_type="Float32", pool=POOL
        )
        start = _core.QuantizedLayer(
            weight, np.clip(np.rint(weight / scale[:, None]), -7, 7).astype(np.int32), scale, zero_point,
            qmin=-7, qmax=7, bias=None, bias_scale=None, bias_qmin=0, bias_qmax=0,
        )  # fmt: skip
        solved = layer.least_squares(start, POOL, update_bias=False, free=True, damping=np.array([0.1]), max_sweeps=5)
        return [scale, solved["weight"], np.array(solved["after"]), np.array(ranges.min_max(0))]

    alone = [work(seed) for seed in range(12)]
    with ThreadPoolExecutor(6) as executor:
        together = list(executor.map(work, range(12)))
    for a, b in zip(alone, together, strict=True):
        for first, second in zip(a, b, strict=True):
            np.testing.assert_array_equal(first, second)


@pytest.mark.skipif(sys.gettrace() is not None, reason="a tracer, of coverage say, refers to what functions hold")
def test_nothing_is_kept_alive():
    """Arrays that were fed belong to the caller alone again."""
    x, y = ones(10, 3), ones(10, 2)
    layer = gemm_layer()
    layer.feed(x, y, POOL)
    gc.collect()
    x.resize((11, 3))  # refused by NumPy while anybody refers to it
    y.resize((11, 2))
