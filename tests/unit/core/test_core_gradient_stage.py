"""AdaRound and AdaQuant with an activation and a grid between the layer and the loss, and with mixed inputs."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from reference import adaquant, adaround
from reference.descent import finished
from reference.least_squares import start
from reference.output_stage import Stage
from reference.stage_cases import ALPHA, ELEMENTWISE, LAYERS, SLOPE, quantized, softmax_case, with_slopes
from reference.training import Options, Trained, real_bias
from reference.training_cases import CASES, ONE, TrainingCase, in_8_bits, matrix_case, start_of, train

from quark.onnx import _core

ADAROUND = Options(batch_size=4, iterations=40, learning_rate=0.08, update_bias=True)
ADAQUANT = Options(batch_size=4, iterations=25, learning_rate=0.004, update_bias=True)
METHODS = pytest.mark.parametrize(
    ("method", "options"), [(adaround, ADAROUND), (adaquant, ADAQUANT)], ids=["adaround", "adaquant"]
)
MODES = ("plain", "quantized", "folded")
SOFTMAX = [("conv", 1), ("conv", 2), ("conv", 3), ("depthwise", 1), ("gemm", 1), ("matmul", 1), ("matmul", 2)]
EVERY_SOFTMAX = pytest.mark.parametrize(("name", "axis"), SOFTMAX)
SURE = 1e-6  # of a margin: nothing that is rounded or compared in float32 falls to the other side


def stage_case(layer: str, activation: str, mode: str = "plain") -> TrainingCase:
    case = LAYERS[layer]
    case = with_slopes(case) if activation == "prelu" else replace(case, stage=ELEMENTWISE[activation])
    return case if mode == "plain" else quantized(case, folded=mode == "folded")


def run(case: TrainingCase, options: Options, method: ModuleType, **changed: Any) -> dict[str, Any]:
    return train(case.core(), case.layer, options, adaround=method is adaround, **changed)


def assert_same_bits(a: dict[str, Any], b: dict[str, Any]) -> None:
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def is_blind_to_bias(case: TrainingCase) -> bool:
    """Softmax over positions: a bias adds the same to all, and moves by rounding errors only."""
    outputs = 1 if case.conv is not None else case.y.ndim - 1
    return case.stage is not None and case.stage.couples_outputs and case.stage.axis != outputs


def check_every_step(case: TrainingCase, options: Options, method: ModuleType) -> Trained:
    """As long as float32 and float64 are surely on the same side of everything; to the end if they always are."""
    found = run(case, options, method)
    batches = None if options.drop_ratio == 1 else case.batches(options)
    trained = method.train(case.layer, case.rows, case.sets[0], options, batches=batches)
    sure = int(np.argmin([*(trained.margins > SURE), False]))  # the first step that is not
    assert sure >= 5
    np.testing.assert_allclose(found["losses"][:sure], trained.losses[:sure], rtol=1e-5)
    expected = finished(case, trained, free=method is adaquant, update_bias=options.update_bias)
    if sure == options.iterations:
        np.testing.assert_array_equal(found["weight"], expected.weight_q)
        if not is_blind_to_bias(case):
            np.testing.assert_allclose(found["bias"], expected.bias_q, atol=1)
    return trained


# ---- the reference -----------------------------------------------------------------------------

OPERATORS: dict[str, tuple[Stage, str, dict[str, Any]]] = {
    "Relu": (ELEMENTWISE["relu"], "Relu", {}),
    "Clip": (ELEMENTWISE["clip"], "Clip", {}),
    "LeakyRelu": (ELEMENTWISE["leaky_relu"], "LeakyRelu", {"alpha": SLOPE}),
    "PRelu": (Stage(activation="leaky_relu", slopes=np.array([[-0.5], [0], [0.3]], np.float32)), "PRelu", {}),
    "Sigmoid": (ELEMENTWISE["sigmoid"], "Sigmoid", {}),
    "Tanh": (ELEMENTWISE["tanh"], "Tanh", {}),
    "Gelu": (ELEMENTWISE["gelu"], "Gelu", {}),
    "Gelu tanh": (ELEMENTWISE["gelu_tanh"], "Gelu", {"approximate": "tanh"}),
    "HardSigmoid": (ELEMENTWISE["hard_sigmoid"], "HardSigmoid", {"alpha": ALPHA, "beta": 0.5}),
    "HardSwish": (ELEMENTWISE["hard_swish"], "HardSwish", {}),
    "Swish": (ELEMENTWISE["silu"], "Swish", {}),
    "Softmax 1": (Stage(activation="softmax", axis=1), "Softmax", {"axis": 1}),
    "Softmax 2": (Stage(activation="softmax", axis=2), "Softmax", {"axis": 2}),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_the_reference_activation_is_the_operator_of_onnx(name: str):
    stage, operator, attributes = OPERATORS[name]
    z = np.linspace(-9, 9, 4 * 3 * 25).reshape(4, 3, 25)
    extra = {"PRelu": [stage.slopes], "Clip": [np.float64(stage.a), np.float64(stage.b)]}.get(operator, [])
    inputs = {"z": z} | {f"p{i}": np.asarray(value, np.float64) for i, value in enumerate(extra)}
    node = helper.make_node(operator, list(inputs), ["f"], **attributes)
    infos = [helper.make_tensor_value_info(key, TensorProto.DOUBLE, v.shape) for key, v in inputs.items()]
    graph = helper.make_graph([node], "f", infos, [helper.make_tensor_value_info("f", TensorProto.DOUBLE, z.shape)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)])
    (expected,) = ReferenceEvaluator(model).run(None, inputs)
    np.testing.assert_allclose(stage.target(z), expected, rtol=1e-6, atol=2e-7)  # its constants are float32


@pytest.mark.parametrize("name", OPERATORS)
def test_the_reference_slopes_are_differences(name: str):
    stage, step = OPERATORS[name][0], 1e-6
    z = np.random.default_rng(1).normal(0, 2, (2, 3, 4))
    jacobian = np.empty((z.size, z.size))
    for i in range(z.size):
        ends = []
        for sign in (1, -1):
            moved = z.copy()
            moved.flat[i] += sign * step
            ends.append(stage.value(moved).ravel())
        jacobian[:, i] = (ends[0] - ends[1]) / (2 * step)
    errors = np.random.default_rng(2).standard_normal(z.shape)
    np.testing.assert_allclose(stage.pull_back(z, errors).ravel(), errors.ravel() @ jacobian, atol=1e-6)
    np.testing.assert_allclose(stage.slope_power(z).ravel(), (jacobian**2).sum(axis=0), atol=1e-6)


@pytest.mark.parametrize("name", ["conv", "depthwise", "matmul"])
@pytest.mark.parametrize("activation", ["prelu", "sigmoid", "softmax 1", "softmax 2"])
def test_the_reference_gradient_is_the_derivative_of_the_loss(name: str, activation: str):
    softmax, _, axis = activation.partition(" ")
    case = softmax_case(name, int(axis)) if softmax == "softmax" else stage_case(name, activation)
    rows, layer, step = case.rows, case.layer, 1e-6
    weight, bias = layer.real(layer.weight_q), start(layer).bias
    for of, found in enumerate(rows.gradients(weight, bias)):
        for at in np.ndindex(found.shape):
            ends = []
            for sign in (1, -1):
                moved = [weight.copy(), bias.copy()]
                moved[of][at] += sign * step
                ends.append(rows.loss(*moved))
            assert found[at] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-7)


# ---- every step --------------------------------------------------------------------------------


@METHODS
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("activation", [*ELEMENTWISE, "prelu"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_step_behind_an_activation(
    name: str, activation: str, mode: str, method: ModuleType, options: Options
) -> None:
    case = stage_case(name, activation, mode)
    trained = check_every_step(case, options, method)
    assert (trained.weight_q != case.layer.weight_q).any(), "the steps do something"


@METHODS
@pytest.mark.parametrize("mode", MODES[:2])
@EVERY_SOFTMAX
def test_every_step_behind_softmax(name: str, axis: int, mode: str, method: ModuleType, options: Options):
    case = softmax_case(name, axis)
    check_every_step(quantized(case) if mode == "quantized" else case, options, method)


@METHODS
@pytest.mark.parametrize("stage", ["sigmoid", "softmax"])
@pytest.mark.parametrize("name", ["more positions than a unit", "grouped", "uint8 conv"])
def test_every_step_of_other_layers(name: str, stage: str, method: ModuleType, options: Options):
    stages = {**ELEMENTWISE, "softmax": Stage(activation="softmax", axis=2)}
    case = replace(CASES[name], stage=stages[stage])
    check_every_step(case, replace(options, iterations=10), method)


@pytest.mark.parametrize("name", ["conv", "matmul"])
def test_without_stage_and_with_an_empty_one(name: str):
    case = LAYERS[name]
    assert_same_bits(run(case, ADAROUND, adaround), run(replace(case, stage=Stage()), ADAROUND, adaround))


# ---- mixed inputs ------------------------------------------------------------------------------


def with_float_inputs(case: TrainingCase) -> TrainingCase:
    noise = np.random.default_rng(3).normal(0, 0.3 * case.real_x.std(), case.x.shape)
    return replace(case, x_float=(case.real_x + noise).astype(np.float32))


MIXED = {
    "conv": LAYERS["conv"],
    "depthwise": LAYERS["depthwise"],
    "gemm": LAYERS["gemm"],
    "matmul": LAYERS["matmul"],
    "uint8 conv": in_8_bits(LAYERS["conv"], np.uint8),
    "int8 matmul": in_8_bits(LAYERS["matmul"], np.int8),
    "behind a quantized tanh": stage_case("conv", "tanh", "quantized"),
    "behind softmax": softmax_case("matmul", 2),
}


@METHODS
@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("name", MIXED)
def test_every_step_with_mixed_inputs(name: str, ratio: float, method: ModuleType, options: Options):
    case = with_float_inputs(MIXED[name])
    check_every_step(case, replace(options, drop_ratio=ratio, seed=5, iterations=15), method)


@METHODS
def test_float_inputs_that_are_not_mixed_do_not_matter(method: ModuleType, options: Options):
    case = LAYERS["conv"]
    assert_same_bits(run(case, options, method), run(with_float_inputs(case), options, method))


@METHODS
@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_what_is_judged_are_the_inputs_as_they_are_fed(ratio: float, method: ModuleType, options: Options):
    case = with_float_inputs(LAYERS["conv"])
    found = run(case, replace(options, drop_ratio=ratio), method)
    check_report(case, found)
    assert found["before"] == run(case, options, method)["before"]


# ---- the report --------------------------------------------------------------------------------


def check_report(case: TrainingCase, found: dict[str, Any]) -> None:
    layer = case.layer
    before = (layer.real(layer.weight_q), start(layer).bias)
    after = (layer.real(found["weight"]), real_bias(layer, found["bias"]))
    for index, chosen in enumerate(case.sets):
        if not chosen:
            assert np.isnan([found["before"][index], found["after"][index]]).all()
            continue
        rows = case.rows[chosen]
        assert found["before"][index] == pytest.approx(rows.loss(*before), rel=1e-5)
        assert found["after"][index] == pytest.approx(rows.loss(*after), rel=1e-5)
        assert found["power"][index] == pytest.approx(rows.power(), rel=1e-5)
    judge = case.rows[case.judging]
    better = judge.are_better(judge.row_losses(*after), judge.row_losses(*before))
    changed = (found["weight"] != layer.weight_q).any(axis=1)
    changed |= found["bias"] != np.rint(layer.bias / layer.bias_scale)
    assert better[changed].all()
    assert changed.sum() <= found["improved"] <= len(changed)
    if judge.stage.couples_outputs:
        assert found["improved"] in (0, len(changed))


@METHODS
@pytest.mark.parametrize("holdout", [0, 5])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("activation", ["relu", "prelu", "hard_swish", "tanh"])
def test_the_report_is_the_loss_by_its_definition(
    activation: str, mode: str, holdout: int, method: ModuleType, options: Options
) -> None:
    for name in ("conv", "matmul"):
        case = replace(stage_case(name, activation, mode), holdout=holdout)
        found = run(case, options, method)
        check_report(case, found)


@METHODS
def test_behind_softmax_all_outputs_change_or_none(method: ModuleType, options: Options):
    kept, kept_though_one_is_worse = set(), False
    for name, axis in SOFTMAX:
        for holdout in (0, 5):
            case = replace(softmax_case(name, axis), holdout=holdout)
            found = run(case, options, method)
            judge, layer = case.rows[case.judging], case.layer
            before = judge.row_losses(layer.real(layer.weight_q), start(layer).bias)
            after = judge.row_losses(layer.real(found["weight"]), real_bias(layer, found["bias"]))
            check_report(case, found)
            kept.add(found["improved"])
            kept_though_one_is_worse |= bool((after > before).any())
    assert 0 in kept
    assert kept_though_one_is_worse


def test_the_loss_of_the_start_is_seen_through_the_stage():
    for case in (stage_case("conv", "prelu", "quantized"), softmax_case("matmul", 1)):
        layer = case.layer
        found = case.core().start_loss(start_of(layer), ONE)
        assert found == pytest.approx(case.rows.loss(layer.real(layer.weight_q), start(layer).bias), rel=1e-5)


# ---- the bias ----------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "clip", "softmax"])
@pytest.mark.parametrize("factor", [0.25, 1.0, 8.0])
@pytest.mark.parametrize("outputs", [2, 20])
def test_the_bias_of_adaround_lowers_the_loss_that_it_is_fitted_to(activation: str, factor: float, outputs: int):
    """Also where most outputs are saturated, and where the steps of all outputs together would be far too long."""
    stage = {**ELEMENTWISE, "softmax": Stage(activation="softmax", axis=1)}[activation]
    case = matrix_case(5, samples=60, inputs=40, outputs=outputs).scaled(factor)
    case = replace(case, stage=stage, holdout=0)
    layer = replace(case.layer, bias_scale=case.layer.bias_scale / 2**12)
    case, options = replace(case, layer=layer), replace(ADAROUND, iterations=200, batch_size=8)
    without, found = (run(case, replace(options, update_bias=update), adaround) for update in (False, True))
    assert found["after"][0] <= without["after"][0] * (1 + 1e-5)
    assert without["after"][0] < without["before"][0]


# ---- what must not matter ----------------------------------------------------------------------

SEVERAL = {
    "quantized hard_swish": stage_case("conv", "hard_swish", "quantized"),
    "folded relu": stage_case("depthwise", "relu", "folded"),
    "prelu": stage_case("matmul", "prelu"),
    "softmax over outputs": softmax_case("conv", 1),
    "softmax over positions": softmax_case("matmul", 1),
    "softmax in pieces": replace(CASES["more positions than a unit"], stage=Stage(activation="softmax", axis=3)),
}


@METHODS
@pytest.mark.parametrize("ratio", [0.5, 1.0])
@pytest.mark.parametrize("name", SEVERAL)
def test_threads_do_not_matter(name: str, ratio: float, method: ModuleType, options: Options):
    case = with_float_inputs(SEVERAL[name])
    options = replace(options, drop_ratio=ratio, batch_size=8)
    first, *others = (run(case, options, method, pool=_core.ThreadPool(n)) for n in (1, 2, 3))
    for other in others:
        assert_same_bits(first, other)


@METHODS
@pytest.mark.parametrize("name", SEVERAL)
def test_how_the_samples_arrive_does_not_matter(name: str, method: ModuleType, options: Options):
    case, n = with_float_inputs(SEVERAL[name]), len(SEVERAL[name].x)
    options = replace(options, drop_ratio=0.5)
    first = run(case, options, method)
    for batches in ([1] * n, [3, n - 5, 2]):
        found = train(case.core(batches), case.layer, options, adaround=method is adaround)
        assert_same_bits(first, found)


@pytest.mark.parametrize("activation", ["relu", "prelu"])
@pytest.mark.parametrize("factor", [2.0**-10, 2.0**10])
def test_the_scale_of_activations_does_not_matter(activation: str, factor: float):
    """The activations that commute with it."""
    as_is = run(stage_case("matmul", activation), ADAROUND, adaround)
    scaled = run(stage_case("matmul", activation).scaled(factor), ADAROUND, adaround)
    np.testing.assert_array_equal(scaled["weight"], as_is["weight"])
    np.testing.assert_array_equal(scaled["bias"], as_is["bias"])
    np.testing.assert_array_equal(scaled["losses"], as_is["losses"] * factor**2)


@METHODS
def test_an_output_that_never_comes_through_stays(method: ModuleType, options: Options):
    """Below 0 behind Relu nothing can be learnt; its neighbours are trained as if it were not there."""
    case = stage_case("gemm", "relu")
    off = np.array([-1000, 0, 0, 0, 0], np.float32)
    layer = replace(case.layer, bias=case.layer.bias_scale * np.rint((case.layer.bias + off) / case.layer.bias_scale))
    found = run(replace(case, layer=layer, y=case.y + off), options, method)
    np.testing.assert_array_equal(found["weight"][0], layer.weight_q[0])
    assert found["bias"][0] == np.rint(layer.bias[0] / layer.bias_scale[0])
    alone = run(case, options, method)
    np.testing.assert_array_equal(found["weight"][1:], alone["weight"][1:])
    np.testing.assert_array_equal(found["bias"][1:], alone["bias"][1:])
