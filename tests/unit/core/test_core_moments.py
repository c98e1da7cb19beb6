"""The moments of a layer's data, against ONNX's own convolution and rows cut one at a time.

A layer's float output is y = W x + b for each of its rows x. With y from an ONNX runtime, the moments must
satisfy E[y x'] = W G + b mu', E[y] = W mu + b and E[y^2] = W G W' + 2 b W mu + b^2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from reference.conv_cases import ConvCase, conv_cases, conv_transpose_cases
from reference.conv_rows import output_rows
from reference.moments import Moments, moments_of
from small_models import build

from quark.onnx import _core

ONE = _core.ThreadPool(1)
EXACT = 1e-12  # the rounding of one division


def moments(layer: _core.Layer, *, held_out: bool = False, pool: _core.ThreadPool = ONE) -> Moments:
    return Moments(*layer.moments(pool, held_out))


def onnx_output(model: onnx.ModelProto, x: np.ndarray, *, has_reference: bool = True) -> np.ndarray:
    """What onnxruntime and onnx's reference evaluator compute, which must agree."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    if has_reference:
        (reference,) = ReferenceEvaluator(model).run(None, {"x": x})
        np.testing.assert_array_equal(reference, y)
    return y


def conv_layer(case: ConvCase, **options: object) -> _core.Layer:
    samples, channels = case.x.shape[:2]
    return _core.Layer(
        channels // case.conv.groups * int(np.prod(case.conv.kernel)),
        len(case.bias) // case.conv.groups,
        samples,
        1 << 20,
        groups=case.conv.groups,
        conv=case.conv.core,
        **options,
    )


def assert_equal(actual: Moments, expected: Moments, rtol: float = EXACT) -> None:
    assert actual.rows == expected.rows
    for name in Moments._fields[1:]:
        want = getattr(expected, name)
        near_zero = rtol * np.abs(want).max(initial=1)  # sums that cancel depend on the order of additions
        np.testing.assert_allclose(getattr(actual, name), want, rtol, near_zero, err_msg=name)


def assert_linear(found: Moments, weight: np.ndarray, bias: np.ndarray) -> None:
    """The moments are those of y = weight x + bias; weight (groups, O, K), bias (groups, O)."""
    product = np.einsum("gok,gk->go", weight, found.mean_x)
    np.testing.assert_allclose(found.cross, weight @ found.gram + bias[:, :, None] * found.mean_x[:, None], EXACT, 1e-9)
    np.testing.assert_allclose(found.mean_y, product + bias, EXACT, 1e-9)
    power = np.einsum("goj,gjk,gok->go", weight, found.gram, weight) + 2 * bias * product + bias**2
    np.testing.assert_allclose(found.power, power, EXACT, 1e-9)


def check_conv(case: ConvCase) -> None:
    y = onnx_output(case.model, case.x, has_reference=case.has_onnx_reference)
    layer = conv_layer(case)
    assert layer.extent(case.x) == (len(case.x), np.prod(y.shape[2:]))
    layer.feed(case.x, y, ONE)
    found = moments(layer)
    groups = case.conv.groups
    assert_linear(
        found,
        case.conv.weight_rows(case.weight).astype(np.float64),
        case.bias.reshape(groups, -1).astype(np.float64),
    )
    assert_equal(found, moments_of(case.conv.rows(case.x), output_rows(y, groups)))


@settings(max_examples=60, deadline=None)
@given(conv_cases())
def test_conv(case: ConvCase):
    check_conv(case)


@settings(max_examples=20, deadline=None)
@given(conv_cases(depthwise=True))
def test_depthwise_conv(case: ConvCase):
    check_conv(case)


@settings(max_examples=100, deadline=None)
@given(conv_transpose_cases())
def test_conv_transpose(case: ConvCase):
    check_conv(case)


@settings(max_examples=30, deadline=None)
@given(conv_transpose_cases(depthwise=True))
def test_depthwise_conv_transpose(case: ConvCase):
    check_conv(case)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from([1.0, 0.5, -2.0]))
def test_gemm(seed: int, transposed: bool, alpha: float):
    rng = np.random.default_rng(seed)
    samples, inputs, outputs = rng.integers(1, 9, 3)
    weight, bias, x = (
        rng.integers(-4, 5, shape).astype(np.float32) for shape in ((outputs, inputs), (outputs,), (samples, inputs))
    )
    model = build(
        f"(float[N,K] x) => (float[N,O] y) {{ y = Gemm<transB={int(transposed)}, alpha={alpha}>(x, w, b) }}",
        w=weight if transposed else weight.T,
        b=bias,
    )
    layer = _core.Layer(int(inputs), int(outputs), int(samples), 1 << 20)
    layer.feed(x, onnx_output(model, x) / np.float32(alpha), ONE)
    assert_linear(moments(layer), weight[None].astype(np.float64), bias[None].astype(np.float64) / alpha)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_matmul_with_leading_dimensions(seed: int, leading: int):
    rng = np.random.default_rng(seed)
    inputs, outputs = map(int, rng.integers(1, 9, 2))
    x = rng.integers(-4, 5, (*rng.integers(1, 5, 1 + leading), inputs)).astype(np.float32)
    weight = rng.integers(-4, 5, (inputs, outputs)).astype(np.float32)
    model = build(f"(float{list(x.shape)} x) => (float{[*x.shape[:-1], outputs]} y) {{ y = MatMul(x, w) }}", w=weight)
    y = onnx_output(model, x)
    layer = _core.Layer(inputs, outputs, len(x), 1 << 20)
    layer.feed(x, y, ONE)
    found = moments(layer)
    assert_linear(found, weight.T[None].astype(np.float64), np.zeros((1, outputs)))
    assert_equal(found, moments_of(x.reshape(1, -1, inputs), y.reshape(1, -1, outputs)))


@pytest.mark.parametrize(("inputs", "outputs"), [(128, 1), (129, 3), (300, 260)])
def test_wide_layers(inputs: int, outputs: int):
    """Moments are computed in tiles of 128 by 128."""
    rng = np.random.default_rng(0)
    x = rng.integers(-4, 5, (500, inputs)).astype(np.float32)
    y = rng.integers(-4, 5, (500, outputs)).astype(np.float32)
    layer = _core.Layer(inputs, outputs, 500, 1 << 20)
    layer.feed(x, y, _core.ThreadPool(2))
    assert_equal(moments(layer), moments_of(x[None], y[None]))


@settings(max_examples=30, deadline=None)
@given(
    conv_cases() | conv_transpose_cases(),
    st.sampled_from([np.uint8, np.int8]),
    st.floats(2**-20, 2**10),
    st.integers(0, 2**32 - 1),
)
def test_8_bit_input_is_its_dequantized_self(case: ConvCase, dtype: type, scale: float, seed: int):
    rng = np.random.default_rng(seed)
    info = np.iinfo(dtype)
    zero_point = int(rng.integers(info.min, info.max + 1))
    quantized = rng.integers(info.min, info.max + 1, case.x.shape).astype(dtype)
    real = (quantized.astype(np.int32) - zero_point).astype(np.float32) * np.float32(scale)
    y = onnx_output(case.model, case.x, has_reference=case.has_onnx_reference)
    from_integers = conv_layer(case, x_scale=scale, x_zero_point=zero_point)
    from_integers.feed(quantized, y, ONE)
    from_floats = conv_layer(case)
    from_floats.feed(real, y, ONE)
    for integer, real in zip(moments(from_integers), moments(from_floats), strict=True):
        np.testing.assert_allclose(integer, real, rtol=1e-5, atol=1e-5 * np.abs(real).max())


def assert_same_bits(a: Moments, b: Moments) -> None:
    for name, first, second in zip(Moments._fields, a, b, strict=True):
        assert np.array_equal(first, second), name


def fed_in_parts(
    layer: _core.Layer, x: np.ndarray, y: np.ndarray, cuts: Sequence[int], pool: _core.ThreadPool
) -> tuple[Moments, Moments]:
    for a, b in zip([0, *cuts], [*cuts, len(x)], strict=True):
        layer.feed(x[a:b], y[a:b], pool)
    return moments(layer, pool=pool), moments(layer, held_out=True, pool=pool)


# Gemm-like: several panels of 4096 rows. Conv: several tiles of 128 inputs and outputs, a panel of 3.
@pytest.mark.parametrize(
    ("x_shape", "y_shape", "geometry"),
    [
        ((5000, 7), (5000, 5), {}),
        ((24, 16, 12, 11), (24, 130, 12, 11), {"conv": ((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 0)}),
        ((24, 6, 40), (24, 6, 20), {"groups": 6, "conv": ((5,), (2,), (1,), (2, 2), 0)}),
        ((24, 6, 40), (24, 12, 20), {"groups": 3, "conv": ((5,), (2,), (1,), (2, 2), 0)}),
        ((24, 4, 5, 6, 7), (24, 5, 5, 6, 7), {"conv": ((3,) * 3, (1,) * 3, (1,) * 3, (1,) * 6, 0)}),
        ((24, 8, 9), (24, 12, 18), {"groups": 2, "conv": ((4,), (2,), (1,), (1, 1), 0, (0,), None)}),
    ],
    ids=["gemm", "conv", "depthwise", "grouped", "conv 3-D", "transposed"],
)
@pytest.mark.parametrize("max_rows", [1 << 20, 1000], ids=["all rows", "some rows"])
def test_bits_depend_on_neither_threads_nor_batches(
    x_shape: tuple[int, ...], y_shape: tuple[int, ...], geometry: dict[str, object], max_rows: int
):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(x_shape, np.float32)
    y = rng.standard_normal(y_shape, np.float32)
    groups = geometry.get("groups", 1)
    taps = int(np.prod(geometry["conv"][0])) if geometry else 1
    size = (x_shape[1] // groups * taps, y_shape[1] // groups)

    def layer() -> _core.Layer:
        return _core.Layer(*size, len(x), max_rows, holdout=5, seed=3, **geometry)

    once = fed_in_parts(layer(), x, y, [], ONE)
    for threads, cuts in ((1, [1, 2, 7]), (2, []), (3, [11, 23])):
        again = fed_in_parts(layer(), x, y, cuts, _core.ThreadPool(threads))
        for a, b in zip(once, again, strict=True):
            assert_same_bits(a, b)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.integers(1, 70), st.integers(1, 3000), st.integers(2, 6), st.integers(0, 2**64 - 1))
def test_rows_are_chosen_once_each_and_samples_held_out_whole(
    samples: int, positions: int, max_rows: int, holdout: int, seed: int
):
    """Row p of sample i says so itself: its input is the unit vector e_(i * positions + p)."""
    size = samples * positions
    inputs = positions + samples
    x = np.zeros((samples, positions, inputs), np.float32)
    for i in range(samples):
        x[i, np.arange(positions), np.arange(positions)] = 1
        x[i, :, positions + i] = 1
    layer = _core.Layer(inputs, 1, samples, max_rows, holdout=holdout, seed=seed)
    layer.feed(x, np.ones((samples, positions, 1), np.float32), ONE)
    used = []
    for held_out in (False, True):
        try:
            found = moments(layer, held_out=held_out)
        except ValueError:  # no row
            used.append(np.zeros((samples, positions)))
            continue
        counts = np.rint(found.gram[0] * found.rows)
        used.append(counts[positions:, :positions])
        assert used[-1].sum() == found.rows
    fitted, held = used
    assert set(np.unique(fitted + held)) <= {0, 1}
    drawn = (fitted + held).sum(axis=1)
    assert (drawn > 0).all()
    assert drawn.sum() == size or drawn.sum() <= max_rows + samples * 16
    if max_rows >= size:
        assert drawn.sum() == size
    if samples >= 2 * holdout:
        of_held_out_samples = np.arange(samples) % holdout == holdout - 1
        assert not fitted[of_held_out_samples].any()
        assert not held[~of_held_out_samples].any()


def test_the_seed_chooses_the_rows():
    x = np.zeros((2, 400, 400), np.float32)
    x[:, np.arange(400), np.arange(400)] = 1

    def rows(seed: int) -> tuple[int, ...]:
        layer = _core.Layer(400, 1, 2, 100, seed=seed, target=False)
        layer.feed(x, None, ONE)
        return tuple(np.flatnonzero(moments(layer).mean_x[0]))

    assert rows(1) == rows(1)
    assert rows(1) != rows(2)


def test_without_target_there_is_no_y():
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    layer = _core.Layer(3, 2, 4, 100, target=False)
    layer.feed(x, None, ONE)
    found = moments(layer)
    np.testing.assert_allclose(found.gram[0], x.T.astype(np.float64) @ x / 4, EXACT)
    assert not found.cross.any()
    assert not found.power.any()


def test_moments_may_be_asked_for_between_batches():
    rng = np.random.default_rng(1)
    x = rng.integers(-4, 5, (10, 3)).astype(np.float32)
    y = rng.integers(-4, 5, (10, 2)).astype(np.float32)
    layer = _core.Layer(3, 2, 10, 100)
    layer.feed(x[:4], y[:4], ONE)
    assert_equal(moments(layer), moments_of(x[None, :4], y[None, :4]))
    layer.feed(x[4:], y[4:], ONE)
    assert_equal(moments(layer), moments_of(x[None], y[None]))


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="too little data"):
        _core.Layer(3, 2, 10, 100).moments(ONE, False)


def test_joined_layers_have_the_rows_of_both():
    """Two layers may have one weight, on inputs of other shapes."""
    random = np.random.default_rng(0)
    data = [(random.integers(-4, 5, (n, 4)), random.integers(-4, 5, (n, 3))) for n in (10, 20)]  # exact in float32
    layers = [_core.Layer(4, 3, 10, 1000, holdout=5) for _ in data]
    for layer, (x, y) in zip(layers, data, strict=True):
        layer.feed(x.reshape(10, -1, 4).astype(np.float32), y.reshape(10, -1, 3).astype(np.float32), ONE)
    layers[0].join(layers[1], ONE)
    for held_out in (False, True):
        chosen = [(np.arange(len(x)) // (len(x) // 10) % 5 == 4) == held_out for x, _ in data]
        x, y = (np.concatenate([pair[i][rows] for pair, rows in zip(data, chosen, strict=True)]) for i in (0, 1))
        assert_equal(moments(layers[0], held_out=held_out), moments_of(x[None], y[None]))


@pytest.mark.parametrize("other", [(4, 2, {}), (3, 3, {}), (4, 3, {"holdout": 0}), (4, 3, {"target": False})], ids=str)
def test_layers_that_are_not_alike_do_not_join(other: tuple[int, int, dict[str, int]]):
    inputs, outputs, options = other
    layer = _core.Layer(4, 3, 10, 1000, holdout=5)
    with pytest.raises(ValueError, match="not alike"):
        layer.join(_core.Layer(inputs, outputs, 10, 1000, **{"holdout": 5, **options}), ONE)
    with pytest.raises(ValueError, match="not alike"):
        layer.join(layer, ONE)
    with pytest.raises(TypeError):
        layer.join(None, ONE)
