"""What the gradient loops refuse, and how Ctrl-C ends them."""

from __future__ import annotations

import gc
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from reference.output_stage import Stage
from reference.training import Options
from reference.training_cases import CASES, ONE, matrix_case, start_of, train

from quark.onnx import _core

OPTIONS = Options(batch_size=4, iterations=20, learning_rate=0.01)
CONV = ((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 0)
GEMM = CASES["gemm"]
METHODS = pytest.mark.parametrize("adaround", [True, False], ids=["adaround", "adaquant"])


def ones(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.ones(shape, dtype)


def empty() -> _core.TrainingData:
    return _core.TrainingData(3, 2)


def some() -> _core.TrainingData:
    data = empty()
    data.add(ones(4, 5, 3), ones(4, 5, 2))
    return data


def images() -> _core.TrainingData:
    return _core.TrainingData(9, 2, conv=CONV)


# ---- sizes -------------------------------------------------------------------------------------

BAD_SIZES: dict[str, Callable[[], object]] = {
    "everything held out": lambda: _core.TrainingData(3, 2, holdout=1),
    "negative holdout": lambda: _core.TrainingData(3, 2, holdout=-1),
    "four axes": lambda: _core.TrainingData(9, 2, conv=((1,) * 4, (1,) * 4, (1,) * 4, (0,) * 8, 0)),
    "unknown auto_pad": lambda: _core.TrainingData(9, 2, conv=(*CONV[:4], 4)),
    "too few pads": lambda: _core.TrainingData(9, 2, conv=((3, 3), (1, 1), (1, 1), (1, 1), 0)),
    "no inputs": lambda: _core.TrainingData(0, 2),
    "no outputs": lambda: _core.TrainingData(3, 0),
    "no groups": lambda: _core.TrainingData(9, 2, groups=0, conv=CONV),
    "groups of a matrix product": lambda: _core.TrainingData(3, 2, groups=2),
    "stride 0": lambda: _core.TrainingData(9, 2, conv=((3, 3), (0, 1), (1, 1), (1,) * 4, 0)),
    "dilation 0": lambda: _core.TrainingData(9, 2, conv=((3, 3), (1, 1), (0, 1), (1,) * 4, 0)),
    "negative pad": lambda: _core.TrainingData(9, 2, conv=((3, 3), (1, 1), (1, 1), (0, 0, 0, -1), 0)),
    "kernel 0": lambda: _core.TrainingData(9, 2, conv=((0, 3), (1, 1), (1, 1), (1,) * 4, 0)),
}


@pytest.mark.parametrize("what", BAD_SIZES)
def test_sizes_that_make_no_sense(what: str):
    with pytest.raises(ValueError, match=r"argument|needed"):
        BAD_SIZES[what]()


@pytest.mark.parametrize("conv", [3, list(CONV), (1, 2), (("a",), (1,), (1,), (0, 0), 0)])
def test_geometry_of_a_wrong_type(conv: object):
    with pytest.raises(TypeError):
        _core.TrainingData(9, 2, conv=conv)


# ---- the stage ---------------------------------------------------------------------------------

RELU: tuple[Any, ...] = ("clip", 0.0, 6.0, None, 0, False, (0.1, 0, -128, 127))
BAD_STAGES: dict[str, tuple[object, type[Exception], str]] = {
    "a name": ("relu", TypeError, "stage: a tuple is needed, not str"),
    "a list": (list(RELU), TypeError, "stage: a tuple is needed, not list"),
    "too short": (RELU[:6], TypeError, r"stage: \(activation, a, b, slopes, axis, folded, grid\) is needed"),
    "too long": ((*RELU, 1), TypeError, r"stage: \(activation, a, b, slopes, axis, folded, grid\) is needed"),
    "no name": ((None, *RELU[1:]), TypeError, r"stage: \(activation, .* is needed"),
    "an unknown name": (("selu", *RELU[1:]), ValueError, "stage: no activation is called selu"),
    "a bound that is no number": (("clip", "0", *RELU[2:]), TypeError, "real number"),
    "slopes as a list": ((*RELU[:3], [1.0, 2.0], *RELU[4:]), TypeError, "slopes: a NumPy array is needed, not list"),
    "slopes of float64": ((*RELU[:3], np.ones(2), *RELU[4:]), TypeError, "slopes: dtype float32 is needed"),
    "too many slopes": ((*RELU[:3], ones(3), *RELU[4:]), ValueError, "slopes: 2 elements are needed, not 3"),
    "strided slopes": ((*RELU[:3], ones(4)[::2], *RELU[4:]), ValueError, "slopes: a C-contiguous"),
    "an axis by name": ((*RELU[:4], "c", *RELU[5:]), TypeError, "int"),
    "a list as grid": ((*RELU[:6], [0.1, 0, -128, 127]), TypeError, "stage: a grid .* is needed, not list"),
    "a short grid": ((*RELU[:6], (0.1, 0)), TypeError, r"stage: a grid \(scale, zero_point, qmin, qmax\) is needed"),
    "scale 0": ((*RELU[:6], (0.0, 0, -128, 127)), ValueError, "TrainingData: an argument is out of range"),
    "a scale of nan": ((*RELU[:6], (np.nan, 0, -128, 127)), ValueError, "TrainingData: an argument is out of range"),
    "an empty grid": ((*RELU[:6], (0.1, 0, 5, 5)), ValueError, "TrainingData: an argument is out of range"),
    "folded softmax": (("softmax", 0.0, 0.0, None, 1, True, RELU[6]), ValueError, "an argument is out of range"),
}


@pytest.mark.parametrize("name", BAD_STAGES)
def test_stages_that_make_no_sense(name: str):
    stage, kind, message = BAD_STAGES[name]
    with pytest.raises(kind, match=message):
        _core.TrainingData(3, 2, stage=stage)


@pytest.mark.parametrize("axis", [-4, -3, 0, 3])
def test_softmax_along_an_axis_that_is_not_there(axis: int):
    """Axis 0 are the samples; a negative one counts from the end."""
    data = _core.TrainingData(3, 2, stage=("softmax", 0.0, 0.0, None, axis, False, None))
    with pytest.raises(ValueError, match="add: the shape of the data does not fit"):
        data.add(ones(4, 5, 3), ones(4, 5, 2))


def test_the_slopes_are_kept_as_long_as_the_data():
    stage = Stage(activation="leaky_relu", slopes=np.linspace(-1, 1, 5, dtype=np.float32))
    case = replace(GEMM, stage=stage)
    data, expected = case.core(), train(case.core(), GEMM.layer, OPTIONS, adaround=True)
    del stage, case
    gc.collect()
    for i in range(100):  # fill what would have been freed
        np.full(5, i, np.float32)
    np.testing.assert_array_equal(train(data, GEMM.layer, OPTIONS, adaround=True)["losses"], expected["losses"])


# ---- samples -----------------------------------------------------------------------------------

BAD_SAMPLES: dict[str, tuple[Callable[[], _core.TrainingData], object, object, type[Exception], str]] = {
    "a list": (empty, [[1.0, 2, 3]], ones(1, 2), TypeError, "x: a NumPy array is needed, not list"),
    "no target": (empty, ones(1, 3), None, TypeError, "y: a NumPy array is needed, not NoneType"),
    "float64": (empty, ones(1, 3, dtype=float), ones(1, 2), TypeError, "x: float32, uint8 or int8 is needed"),
    "int32": (empty, ones(1, 3, dtype=np.int32), ones(1, 2), TypeError, "not int32"),
    "float64 target": (empty, ones(1, 3), ones(1, 2, dtype=float), TypeError, "y: float32"),
    "uint8 target": (empty, ones(1, 3), ones(1, 2, dtype=np.uint8), ValueError, "add: .*shape"),
    "strided": (empty, ones(4, 6)[:, ::2], ones(4, 2), ValueError, "x: a C-contiguous array"),
    "strided target": (empty, ones(4, 3), ones(4, 4)[:, ::2], ValueError, "y: a C-contiguous array"),
    "no axis": (empty, np.array(1, np.float32), ones(1, 2), ValueError, "1 to 8 dimensions"),
    "one axis": (empty, ones(3), ones(2), ValueError, "add: the shape of the data does not fit the layer"),
    "other inputs": (empty, ones(1, 4), ones(1, 2), ValueError, "add: the shape"),
    "other outputs": (empty, ones(1, 3), ones(1, 3), ValueError, "add: the shape"),
    "fewer targets": (empty, ones(2, 3), ones(1, 2), ValueError, "add: the shape"),
    "no positions": (empty, ones(2, 0, 3), ones(2, 0, 2), ValueError, "add: the shape"),
    "samples of another shape": (some, ones(2, 4, 3), ones(2, 4, 2), ValueError, "add: the shape"),
    "samples of another type": (some, ones(2, 5, 3, dtype=np.uint8), ones(2, 5, 2), ValueError, "add: the shape"),
    "more axes": (some, ones(2, 5, 1, 3), ones(2, 5, 1, 2), ValueError, "add: the shape"),
    "other channels": (images, ones(1, 2, 5, 5), ones(1, 2, 5, 5), ValueError, "add: the shape"),
    "too few axes": (images, ones(1, 1, 5), ones(1, 2, 5), ValueError, "add: the shape"),
    "other output size": (images, ones(1, 1, 5, 5), ones(1, 2, 5, 4), ValueError, "add: the shape"),
}


@pytest.mark.parametrize("name", BAD_SAMPLES)
def test_samples_that_cannot_be_added(name: str):
    make, x, y, kind, message = BAD_SAMPLES[name]
    with pytest.raises(kind, match=message):
        make().add(x, y)


def test_samples_with_fewer_axes_cannot_be_added():
    """Their sizes are the first ones of those before: training would read beyond their end."""
    data = empty()
    data.add(ones(4, 3, 3), ones(4, 3, 2))
    with pytest.raises(ValueError, match="shape"):
        data.add(ones(4, 3), ones(4, 2))


def mixed() -> _core.TrainingData:
    data = empty()
    data.add(ones(4, 5, 3), ones(4, 5, 2), ones(4, 5, 3))
    return data


BAD_FLOATS: dict[str, tuple[Callable[[], _core.TrainingData], object, type[Exception], str]] = {
    "a list": (empty, [1.0], TypeError, "x_float: a NumPy array is needed, not list"),
    "float64": (empty, np.ones((4, 5, 3)), TypeError, "x_float: float32"),
    "uint8": (empty, ones(4, 5, 3, dtype=np.uint8), ValueError, "add: the shape"),
    "fewer samples": (empty, ones(3, 5, 3), ValueError, "add: the shape"),
    "other inputs": (empty, ones(4, 5, 4), ValueError, "add: the shape"),
    "fewer axes": (empty, ones(4, 15), ValueError, "add: the shape"),
    "not for the first ones": (some, ones(4, 5, 3), ValueError, "add: the shape"),
    "only for the first ones": (mixed, None, ValueError, "add: the shape"),
}


@pytest.mark.parametrize("name", BAD_FLOATS)
def test_float_inputs_that_cannot_be_added(name: str):
    make, x_float, kind, message = BAD_FLOATS[name]
    with pytest.raises(kind, match=message):
        make().add(ones(4, 5, 3), ones(4, 5, 2), x_float)


@METHODS
def test_refused_samples_leave_no_trace(adaround: bool):
    expected = train(GEMM.core(), GEMM.layer, OPTIONS, adaround=adaround)
    data = GEMM.core()
    with pytest.raises(ValueError, match="shape"):
        data.add(ones(3, 12), ones(2, 5))
    found = train(data, GEMM.layer, OPTIONS, adaround=adaround)
    np.testing.assert_array_equal(found["losses"], expected["losses"])
    assert found["samples"] == expected["samples"]


# ---- train -------------------------------------------------------------------------------------

BAD_TRAINS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "weight of float64": ({"weight": np.ones((5, 12))}, TypeError, "weight: dtype float32 is needed, not float64"),
    "weight as a list": ({"weight": [[1.0]]}, TypeError, "weight: a NumPy array is needed, not list"),
    "weight of another size": ({"weight": ones(5, 11)}, ValueError, "weight_q: 55 elements are needed, not 60"),
    "weight without rows": ({"weight": ones(60)}, ValueError, r"weight: an array \(rows, inputs\) is needed"),
    "no inputs": ({"weight": ones(5, 0)}, ValueError, r"weight: an array \(rows, inputs\) is needed"),
    "a layer of another shape": (
        {"weight": ones(5, 11), "weight_q": ones(5, 11, dtype=np.int32)},
        ValueError,
        r"start: a weight \(5, 12\) is needed, not \(5, 11\)",
    ),
    "strided weight": ({"weight": ones(5, 24)[:, ::2]}, ValueError, "weight: a C-contiguous"),
    "integers of int8": ({"weight_q": ones(5, 12, dtype=np.int8)}, TypeError, "weight_q: dtype int32"),
    "one scale": ({"weight_scale": ones(1)}, ValueError, "weight_scale: 5 elements are needed, not 1"),
    "zero points of int8": ({"weight_zero_point": ones(5, dtype=np.int8)}, TypeError, "weight_zero_point: dtype int32"),
    "bias of float64": ({"bias": np.ones(5)}, TypeError, "bias: dtype float32"),
    "bias of another size": ({"bias": ones(4)}, ValueError, "bias: 5 elements are needed, not 4"),
    "bias scale of another size": ({"bias_scale": ones(6)}, ValueError, "bias_scale: 5 elements are needed, not 6"),
    "no pool": ({"pool": None}, TypeError, "ThreadPool"),
    "no iterations": ({"iterations": 0}, ValueError, "iterations: at least 1 is needed"),
    "negative iterations": ({"iterations": -1}, ValueError, "iterations: at least 1 is needed"),
    "empty batches": ({"batch_size": 0}, ValueError, "train: an argument is out of range"),
    "negative batches": ({"batch_size": -1}, ValueError, "train: an argument is out of range"),
    "more than there are": ({"batch_size": 33}, ValueError, "train: an argument is out of range"),
    "fewer positions than none": ({"step_positions": -1}, ValueError, "train: an argument is out of range"),
    "a fraction of a step": ({"iterations": 1.5}, TypeError, "integer"),
    "a word for a number": ({"learning_rate": "1"}, TypeError, "must be real number"),
    "a negative seed": ({"seed": -1}, OverflowError, "negative"),
    "another method": ({"method": "brecq"}, ValueError, r"method: 'brecq' is none of \['adaround', 'adaquant'\]"),
    "a number for the method": ({"method": 0}, TypeError, "method: a str is needed, not int"),
    "another option": ({"momentum": 0.9}, TypeError, "GradientOptions: 'momentum' is no option"),
    "offered integers alone": ({"offered": ones(5, 12, dtype=np.int32)}, TypeError, "offered: .* not numpy.ndarray"),
    "one offered array": ({"offered": (ones(5, 12, dtype=np.int32),)}, TypeError, "offered: .weight, bias. is needed"),
    "offered floats": ({"offered": (ones(5, 12), None)}, TypeError, "offered weight: dtype int32"),
    "mixing without float inputs": ({"drop_ratio": 0.5}, ValueError, "train: an argument is out of range"),
    "a negative share": ({"drop_ratio": -0.1}, ValueError, "train: an argument is out of range"),
    "more than all": ({"drop_ratio": 1.1}, ValueError, "train: an argument is out of range"),
    "no share": ({"drop_ratio": np.nan}, ValueError, "train: an argument is out of range"),
}


@METHODS
@pytest.mark.parametrize("name", BAD_TRAINS)
def test_arguments_that_train_nothing(name: str, adaround: bool):
    changed, kind, message = BAD_TRAINS[name]
    data = GEMM.core()
    with pytest.raises(kind, match=message):
        train(data, GEMM.layer, OPTIONS, adaround=adaround, **changed)
    train(data, GEMM.layer, OPTIONS, adaround=adaround)  # nothing is left behind


def test_every_option_is_needed():
    named = {"method": "adaround", **vars(OPTIONS), "step_positions": 0, "beta_start": 20.0, "beta_end": 2.0}
    del named["beta_range"]
    for name in named:
        with pytest.raises(TypeError, match=f"GradientOptions: {name} is missing"):
            _core.GradientOptions(**{n: value for n, value in named.items() if n != name})
    with pytest.raises(TypeError, match="every option is needed, by its name"):
        _core.GradientOptions(1)
    with pytest.raises(TypeError, match="every option is needed, by its name"):
        _core.GradientOptions()


def test_start_and_options_have_types():
    data = GEMM.core()
    with pytest.raises(TypeError, match="start: a QuantizedLayer is needed, not NoneType"):
        data.train(None, None, ONE)
    with pytest.raises(TypeError, match="options: GradientOptions are needed, not dict"):
        data.train(start_of(GEMM.layer), {}, ONE)
    with pytest.raises(TypeError, match="start: a QuantizedLayer is needed, not NoneType"):
        data.start_loss(None, ONE)


@METHODS
def test_the_largest_batch_is_all_fitted_samples(adaround: bool):
    found = train(GEMM.core(), GEMM.layer, replace(OPTIONS, batch_size=32), adaround=adaround)
    assert found["samples"] == (32, 8)


@METHODS
def test_without_data_nothing_is_trained(adaround: bool):
    data = _core.TrainingData(12, 5)
    with pytest.raises(ValueError, match="train: too little data"):
        train(data, GEMM.layer, OPTIONS, adaround=adaround)
    with pytest.raises(ValueError, match="add: the shape of the data does not fit"):
        data.add(ones(0, 12), ones(0, 5))


@METHODS
@pytest.mark.parametrize("where", ["x", "y"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("sample", [0, 4], ids=["fitted", "held-out"])
def test_data_that_is_not_finite_is_refused(where: str, bad: float, sample: int, adaround: bool):
    case = replace(GEMM, x=GEMM.x.copy(), y=GEMM.y.copy())
    getattr(case, where)[sample, 0] = bad
    with pytest.raises(ValueError, match="train: the data contains NaN or Inf"):
        train(case.core(), case.layer, OPTIONS, adaround=adaround)


@METHODS
@pytest.mark.parametrize("where", ["x", "y", "x_float"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("activation", ["clip", "tanh"])
def test_an_activation_does_not_hide_data_that_is_not_finite(where: str, bad: float, activation: str, adaround: bool):
    case = replace(GEMM, x=GEMM.x.copy(), y=GEMM.y.copy(), x_float=GEMM.x.copy())
    getattr(case, where)[7, 0] = bad
    case = replace(case, stage=Stage(activation=activation, a=-1.0, b=1.0))
    with pytest.raises(ValueError, match="train: the data contains NaN or Inf"):
        train(case.core(), case.layer, replace(OPTIONS, drop_ratio=0.5), adaround=adaround)


# ---- life and threads --------------------------------------------------------------------------


@pytest.mark.skipif(sys.gettrace() is not None, reason="a tracer, of coverage say, refers to what functions hold")
def test_the_samples_are_kept_as_long_as_the_data():
    """add does not copy: what the caller lets go of must stay."""
    expected = train(GEMM.core(), GEMM.layer, OPTIONS, adaround=True)
    data = _core.TrainingData(12, 5, holdout=GEMM.holdout)
    for i in range(len(GEMM.x)):
        data.add(GEMM.x[i : i + 1].copy(), GEMM.y[i : i + 1].copy())
    gc.collect()
    for i in range(100):  # fill what would have been freed
        np.full((1, 12), i, np.float32)
    np.testing.assert_array_equal(train(data, GEMM.layer, OPTIONS, adaround=True)["losses"], expected["losses"])
    x, y = ones(10, 3), ones(10, 2)
    data = empty()
    data.add(x, y)
    del data
    gc.collect()
    x.resize((11, 3))  # refused by NumPy while anybody refers to it
    y.resize((11, 2))


@METHODS
def test_layers_train_in_several_threads(adaround: bool):
    pool = _core.ThreadPool(2)

    def work(seed: int) -> np.ndarray:
        case = matrix_case(seed, samples=50)
        return train(case.core(), case.layer, OPTIONS, adaround=adaround, pool=pool)["losses"]

    alone = [work(seed) for seed in range(12)]
    with ThreadPoolExecutor(6) as executor:
        together = list(executor.map(work, range(12)))
    np.testing.assert_array_equal(together, alone)


# ---- Ctrl-C ------------------------------------------------------------------------------------


@pytest.fixture
def ctrl_c_after() -> Iterator[Callable[[float], None]]:
    """Sends this process a real signal, whose handler does what Python's does for Ctrl-C."""
    old = signal.signal(signal.SIGALRM, signal.default_int_handler)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, old)


@METHODS
@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_ends_a_long_training(adaround: bool, threads: int, ctrl_c_after: Callable[[float], None]):
    case = matrix_case(30, samples=200, inputs=256, outputs=128)
    data, pool = case.core(), _core.ThreadPool(threads)
    long = replace(OPTIONS, iterations=1_000_000)  # many minutes
    started = time.monotonic()
    ctrl_c_after(0.05)
    with pytest.raises(KeyboardInterrupt):
        train(data, case.layer, long, adaround=adaround, pool=pool)
    assert time.monotonic() - started < 10
    found, fresh = (train(d, case.layer, OPTIONS, adaround=adaround, pool=pool) for d in (data, case.core()))
    np.testing.assert_array_equal(found["losses"], fresh["losses"], err_msg="the data can be used again")


def test_data_in_use_is_refused_to_other_threads(ctrl_c_after: Callable[[float], None]):
    case = matrix_case(31, samples=200, inputs=256, outputs=128)
    data = case.core()
    long = replace(OPTIONS, iterations=1_000_000)
    with ThreadPoolExecutor(1) as executor:

        def meddle() -> None:
            time.sleep(0.2)
            with pytest.raises(RuntimeError, match="in use by another thread"):
                data.add(case.x, case.y)

        meddling = executor.submit(meddle)
        ctrl_c_after(0.5)
        with pytest.raises(KeyboardInterrupt):
            train(data, case.layer, long, adaround=True)
        meddling.result()
