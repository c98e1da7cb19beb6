"""Every reason to leave a layer as it is: a model of which it is true, and no reason beside those of the table."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import ml_dtypes
import numpy as np
import onnx
import pytest
from foreign import statically_quantized
from reference.norm_models import NormModels, norm_models
from reference.plan_models import FLOAT, QUANTIZED, B, W, models_of, plan_of
from reference.reason_cases import CASES, Reasons, occurs, reasons_of
from small_models import Reader, build, samples, separable_cnn

import quark.onnx
from quark.onnx import AdaRoundConfig, _core, finetune
from quark.onnx.fast_finetune.bias_correction import bias_plan
from quark.onnx.operators.table import NORMALIZATIONS
from quark.onnx.plan.build import build_plan
from quark.onnx.plan.excluded import leave_excluded
from quark.onnx.plan.reasons import Reason
from quark.onnx.plan.shared_weights import leave_shared
from quark.onnx.plan.types import Plan
from quark.onnx.solvers.least_squares import LeastSquaresLayer
from quark.onnx.system.memory_limit import MemoryLimit
from quark.onnx.whole_model.keep_better import Change, keep_better


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.name)
def test_it_occurs(reason: Reason) -> None:
    for case, expected in CASES[reason]:
        found = [f"{name}: {text}" for name, text in reasons_of(case()).items()]
        assert any(re.fullmatch(expected, line, re.DOTALL) for line in found), f"{case.__name__}: {found}"


def test_no_other_reason_is_given() -> None:
    """mypy lets a plan leave a layer out only with a `Why`; and these are made in one place."""
    package = Path(quark.onnx.__file__).parent
    makers = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Why":
                makers.add(path.name)
            assert not (isinstance(node, ast.Call) and ast.unparse(node).startswith("cast(Why"))
    assert makers == {"reasons.py"}


def test_a_text_without_what_it_is_about_is_an_error() -> None:
    with pytest.raises(KeyError, match="type"):
        Reason.WEIGHT_TYPE.why()


# ---- the node -------------------------------------------------------------------------------------


@occurs(Reason.IN_BODY, layer="inner", op_type="If", name="if")
def in_a_body() -> Plan:
    text = "(float[N,3] h) => (float[N,4] o) {{ [{}] o = Gemm(h, w, b) }}"
    bodies = [onnx.parser.parse_graph("g " + text.format(name)) for name in ("inner", "other")]
    for body in bodies:
        body.ClearField("input")
    model = build("(float[N,3] h, bool c) => (float[N,A] y) { y = Identity(h) }", w=W, b=B)
    branch = onnx.helper.make_node("If", ["c"], ["y"], "if", then_branch=bodies[0], else_branch=bodies[1])
    model.graph.node[0].CopyFrom(branch)
    return build_plan(model, model, ("Gemm",))


@occurs(Reason.UNKNOWN_KIND)
def four_spatial_axes_transposed() -> Plan:
    return kind("(float[N,2,3,3,3,3] x) => (float[N,4,3,3,3,3] y) { [layer] y = ConvTranspose(x, v) }", (2, 4))


@occurs(Reason.UNKNOWN_KIND)
def four_spatial_axes() -> Plan:
    return kind("(float[N,2,3,3,3,3] x) => (float[N,4,3,3,3,3] y) { [layer] y = Conv(x, v) }", (4, 2))


@occurs(Reason.UNKNOWN_KIND)
def a_vector() -> Plan:
    text = "(float[N,3] x) => (float[N] y) { [layer] y = MatMul(x, v) }"
    return plan_of(text, text, float_constants={"v": np.ones(3)}, v=np.ones(3))


@occurs(Reason.UNKNOWN_KIND)
def an_attribute_of_another_time() -> Plan:
    model = build("(float[N,3] x) => (float[N,4] y) { [layer] y = Gemm(x, w, b) }", w=W, b=B)
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("transC", 1))
    return build_plan(model, model, ("Gemm",))


@occurs(Reason.UNKNOWN_KIND)
def another_domain() -> Plan:
    model = build("(float[N,3] x) => (float[N,4] y) { [layer] y = Gemm(x, w, b) }", w=W, b=B)
    model.graph.node[0].domain = "elsewhere"
    return build_plan(model, model, ("Gemm",))


def kind(text: str, sizes: tuple[int, int]) -> Plan:
    weight = np.ones((*sizes, 1, 1, 1, 1))
    return plan_of(text, text, float_constants={"v": weight}, v=weight)


@occurs(Reason.OTHER_OPERATOR)
def einsum() -> Plan:
    text = '(float[N,3] x) => (float[N,4] y) { [layer] y = Einsum<equation="ij,jk->ik">(x, w) }'
    model = build(text, w=W)
    return build_plan(model, model, ("Gemm",))


@occurs(Reason.OTHER_OPERATOR)
def lstm() -> Plan:
    model = build(
        "(float[5,N,3] x) => (float[5,1,N,4] y) { [layer] y = LSTM<hidden_size=4>(x, w, r) }",
        w=np.ones((1, 16, 3)), r=np.ones((1, 16, 4)),
    )  # fmt: skip
    return build_plan(model, model, ("Gemm",))


@occurs(Reason.WEIGHT_FIRST_IN_GEMM)
def weight_first_in_gemm() -> Plan:
    text = "(float[4,5] x) => (float[3,5] y) { [layer] y = Gemm(w, x) }"
    return plan_of(text, text, w=W)


@occurs(Reason.STACK_OF_MATRICES)
def stack_of_matrices() -> Plan:
    text = "(float[2,N,3] x) => (float[2,N,4] y) { [layer] y = MatMul(x, w) }"
    quantized = "(float[2,N,3] x) => (float[2,N,4] y) { r = DequantizeLinear(v, s) [layer] y = MatMul(x, r) }"
    stack = np.stack([W, W])
    return plan_of(quantized, text, float_constants={"w": stack}, v=stack.astype(np.int8), s=1.0)


@occurs(Reason.ALPHA_0)
def alpha_0() -> Plan:
    gemm = "Gemm<alpha=0.0>"
    return plan_of(QUANTIZED.replace("Gemm", gemm), FLOAT.replace("Gemm", gemm))


@occurs(Reason.CONSTANT_INPUT)
def constant_input() -> Plan:
    quantized = QUANTIZED.replace("Gemm(x_real", "Gemm(given").replace("b_real =", "u = Relu(x_real) b_real =")
    return plan_of(quantized, given=np.ones((2, 3)))


@occurs(Reason.CONSTANT_TARGET)
def constant_target() -> Plan:
    float_text = FLOAT.replace("Gemm(x,", "Gemm(given,").replace("{", "{ z = Relu(x) ")
    return plan_of(float_text=float_text, float_constants={"given": np.ones((2, 3))})


# ---- the weight -----------------------------------------------------------------------------------


@occurs(Reason.WEIGHT_COMPUTED)
def computed_weight() -> Plan:
    return plan_of("(float[N,3] x, float[3,4] w_real) => (float[N,4] y) { [layer] y = Gemm(x, w_real) }")


@occurs(Reason.WEIGHT_IN_ANOTHER_FORM)
def weight_behind_another_node() -> Plan:
    return plan_of(QUANTIZED.replace("w_real = Deq", "w_t = Deq").replace("b_real =", "w_real = Neg(w_t) b_real ="))


@occurs(Reason.WEIGHT_NOT_QUANTIZED)
def float_weight() -> Plan:
    return plan_of(QUANTIZED.replace("w_real = DequantizeLinear(w_quantized, w_scale)", ""), w_real=W)


@occurs(Reason.WEIGHT_NOT_QUANTIZED)
def float_scales_of_normalizations() -> Reasons:
    found = set()
    for op_type in NORMALIZATIONS:
        models = norm_models(op_type)
        quantized = models.quantized
        quantized.graph.node.remove(next(node for node in quantized.graph.node if "scale" in node.output))
        quantized.graph.initializer.append(onnx.numpy_helper.from_array(models.scale, "scale"))
        found.update(reasons_of(plan_of_norm(models, quantized)).items())
    assert len(found) == 1, "it is the same for all of them"
    return dict(found)


@occurs(Reason.WEIGHT_TYPE, type="INT32")
def weight_of_32_bits() -> Plan:
    return plan_of(w_quantized=W.astype(np.int32))


@occurs(Reason.WEIGHT_SCALE)
def scales_of_other_blocks() -> Plan:
    text = QUANTIZED.replace("(w_quantized, w_scale)", "<axis=0, block_size=2>(w_quantized, w_scale)")
    return plan_of(text, opset=21, w_scale=np.ones((3, 4)))


@occurs(Reason.WEIGHT_SCALE)
def scales_along_the_inputs() -> Plan:
    """A square weight, so that only the axis tells them from scales along the outputs."""
    square = np.arange(16.0).reshape(4, 4)
    text = QUANTIZED.replace("(w_quantized, w_scale)", "<axis=0>(w_quantized, w_scale)").replace("N,3", "N,4")
    return plan_of(
        text, FLOAT.replace("N,3", "N,4"), float_constants={"w": square},
        w_quantized=square.astype(np.int8), w_scale=np.ones(4),
    )  # fmt: skip


@occurs(Reason.WEIGHT_SCALE)
def computed_scale() -> Plan:
    text = QUANTIZED.replace("w_real =", "one = ReduceMax<keepdims=0>(x) w_real =").replace("w_scale)", "one)")
    return plan_of(text)


@occurs(Reason.ANOTHER_WEIGHT)
def another_weight() -> Plan:
    return plan_of(w_quantized=np.random.default_rng(0).permuted(W.astype(np.int8)))


@occurs(Reason.NOT_IN_FLOAT_MODEL)
def no_such_layer() -> Plan:
    text = "(float[N,3] x) => (float[N,4] z) { [else] z = Gemm(x, v, b) }"
    return plan_of(float_text=text, float_constants={"v": -W})


def with_another_reader(text: str) -> Plan:
    return plan_of(text.format(QUANTIZED[QUANTIZED.index("{") + 1 : -1]))


@occurs(Reason.WEIGHT_IS_OUTPUT, weight="w_quantized")
def weight_is_output() -> Plan:
    return with_another_reader(
        "(float[N,3] x) => (float[N,4] y, float[3,4] z) {{ {} z = DequantizeLinear(w_quantized, w_scale) }}"
    )


@occurs(Reason.WEIGHT_READ_ELSEWHERE, weight="w_quantized", op_type="Neg", name="other")
def weight_read_as_floats() -> Plan:
    return with_another_reader("(float[N,3] x) => (float[N,4] y, float[3,4] z) {{ {} [other] z = Neg(w_real) }}")


@occurs(Reason.WEIGHT_READ_ELSEWHERE, weight="w_quantized", op_type="Cast", name="z")
def weight_read_as_integers() -> Plan:
    return with_another_reader("(float[N,3] x) => (float[N,4] y, int32[3,4] z) {{ {} z = Cast<to=6>(w_quantized) }}")


@occurs(Reason.WEIGHT_READ_ELSEWHERE, weight="w_quantized", op_type="Gemm", name="other")
def weight_read_by_a_layer_that_is_left() -> Plan:
    return with_another_reader(
        "(float[N,3] x) => (float[N,4] y, float[N,4] z) {{ {} [other] z = Gemm<alpha=0.0>(x_real, w_real) }}"
    )


def two_layers(first: str, last: str, float_first: str, float_last: str) -> Plan:
    text, square = "(float[N,4] x) => (float[N,4] y) {{ {} [first] s = {} [last] y = {} }}", np.arange(16.0)
    weight = "w_real = DequantizeLinear(w_quantized, w_scale)"
    return plan_of(
        text.format(weight, first, last), text.format("", float_first, float_last),
        float_constants={"w": square.reshape(4, 4)}, w_quantized=square.reshape(4, 4).astype(np.int8),
    )  # fmt: skip


@occurs(Reason.WEIGHT_ARRANGED_OTHERWISE, layer="first", first="first", other="last")
@occurs(Reason.WEIGHT_ARRANGED_OTHERWISE, layer="last", first="first", other="last")
def arranged_in_two_ways() -> Plan:
    return two_layers("MatMul(x, w_real)", "Gemm<transB=1>(s, w_real)", "MatMul(x, w)", "Gemm<transB=1>(s, w)")


@occurs(Reason.SHARED_WEIGHT, layer="first", others="'last'", but="so it is")
def shared() -> Plan:
    return leave_shared(two_layers("MatMul(x, w_real)", "Gemm(s, w_real)", "MatMul(x, w)", "Gemm(s, w)"), "so it is")


@occurs(Reason.EXCLUDED, layer="last")
def excluded() -> Plan:
    plan = two_layers("MatMul(x, w_real)", "Gemm(s, w_real)", "MatMul(x, w)", "Gemm(s, w)")
    return leave_excluded(plan, {layer.target for layer in plan.layers if layer.node == "last"})


# ---- the bias -------------------------------------------------------------------------------------


@occurs(Reason.BIAS_COMPUTED)
def computed_bias() -> Plan:
    return plan_of(
        QUANTIZED.replace("b_real = DequantizeLinear(b_quantized, b_scale)", "b_real = ReduceMean<keepdims=0>(x)")
    )


@occurs(Reason.BIAS_COMPUTED)
def computed_bias_of_normalizations() -> Reasons:
    found = set()
    for op_type in NORMALIZATIONS:
        models = norm_models(op_type)
        quantized = models.quantized
        layer_of(quantized).input[2] = "computed"
        quantized.graph.node.insert(2, onnx.helper.make_node("Neg", ["given"], ["computed"]))
        found.update(reasons_of(plan_of_norm(models, quantized)).items())
    assert len(found) == 1, "it is the same for all of them"
    return dict(found)


@occurs(Reason.BIAS_IN_ANOTHER_FORM)
def bias_behind_another_node() -> Plan:
    text = QUANTIZED.replace("b_real = Deq", "b_negative = Deq").replace("[layer]", "b_real = Neg(b_negative) [layer]")
    return plan_of(text)


@pytest.mark.parametrize("shape", [(4, 1), (1,), (4, 4)])
def test_the_quantized_bias_is_not_one_per_output(shape: tuple[int, ...]) -> None:
    plan = plan_of(QUANTIZED.replace("[N,", "[4,"), b_quantized=np.ones(shape, np.int32))
    assert reasons_of(plan) == {"layer": Reason.BIAS_SCALE.why()}


@pytest.mark.parametrize("shape", [(4, 1), (4, 4)])
def test_the_float_bias_differs_from_row_to_row(shape: tuple[int, ...]) -> None:
    text = QUANTIZED.replace("b_real = DequantizeLinear(b_quantized, b_scale)", "").replace("[N,", "[4,")
    assert reasons_of(plan_of(text, b_real=np.ones(shape))) == {"layer": Reason.BIAS_PER_ROW.why()}


@occurs(Reason.BIAS_TYPE, type="int4")
def bias_of_4_bits() -> Plan:
    return plan_of(opset=21, b_quantized=B.astype(ml_dtypes.int4))


@occurs(Reason.BIAS_SCALE)
def bias_of_one_number() -> Plan:
    return plan_of(QUANTIZED, b_quantized=np.ones(1, np.int32))


@occurs(Reason.BIAS_PER_ROW)
def bias_per_row() -> Plan:
    text = QUANTIZED.replace("b_real = DequantizeLinear(b_quantized, b_scale)", "").replace("[N,", "[4,")
    return plan_of(text, b_real=np.ones((4, 1)))


# ---- bias correction ------------------------------------------------------------------------------


@occurs(Reason.NO_BIAS)
def corrected_without_a_bias() -> Plan:
    quantized = QUANTIZED.replace("b_real = DequantizeLinear(b_quantized, b_scale)", "").replace(", b_real)", ")")
    return bias_plan(*models_of(quantized, FLOAT.replace(", b)", ")")))


@occurs(Reason.BIAS_NOT_OWN)
def corrected_with_a_bias_in_float() -> Plan:
    quantized = QUANTIZED.replace("b_real = DequantizeLinear(b_quantized, b_scale)", "")
    return bias_plan(*models_of(quantized, b_real=B))


# ---- normalizations -------------------------------------------------------------------------------


def plan_of_norm(models: NormModels, quantized: onnx.ModelProto | None = None) -> Plan:
    return build_plan(models.float_model, quantized or models.quantized, NORMALIZATIONS)


def layer_of(model: onnx.ModelProto) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == "layer")


@occurs(Reason.BIAS_SHAPE, bias=(3,), scale=(2, 3))
def bias_of_another_shape() -> Plan:
    models = NormModels(
        op="LayerNormalization<axis = 1>", shape=(1, 2, 3),
        scale_q=np.arange(1, 7, dtype=np.int8).reshape(2, 3), bias_q=np.arange(3, dtype=np.int32),
    )  # fmt: skip
    return plan_of_norm(models)


@occurs(Reason.TRAINING_MODE)
def training_mode() -> Plan:
    return plan_of_norm(norm_models("BatchNormalization", op="BatchNormalization<training_mode = 1>"))


@occurs(Reason.TRAINING_MODE)
def training_mode_before_opset_14() -> Plan:
    models = norm_models("BatchNormalization", opset=13)
    both = models.float_model, models.quantized
    for model in both:
        layer_of(model).output.extend(["mean", "variance", "saved_mean", "saved_variance"])
    return build_plan(*both, NORMALIZATIONS)


@occurs(Reason.STASH_TYPE, type="FLOAT16")
def layer_normalization_in_16_bits() -> Plan:
    return plan_of_norm(norm_models("LayerNormalization", op="LayerNormalization<stash_type = 10>"))


@occurs(Reason.STASH_TYPE, type="BFLOAT16")
def group_normalization_in_16_bits() -> Plan:
    return plan_of_norm(norm_models("GroupNormalization", op="GroupNormalization<num_groups=3, stash_type=16>"))


@occurs(Reason.STATISTICS)
def computed_mean() -> Plan:
    models = norm_models("BatchNormalization")
    quantized = models.quantized
    quantized.graph.node.insert(0, onnx.helper.make_node("Neg", ["more0"], ["computed"]))
    layer_of(quantized).input[3] = "computed"
    return plan_of_norm(models, quantized)


def norm_with(op_type: str, tensor: str, at: int) -> Plan:
    models = norm_models(op_type)
    quantized = models.quantized
    layer_of(quantized).input[at] = tensor
    return plan_of_norm(models, quantized)


@occurs(Reason.READ_TWICE, tensor="scale")
def the_scale_is_the_variance() -> Plan:
    return norm_with("BatchNormalization", "scale", 4)


@occurs(Reason.READ_TWICE, tensor="scale")
def the_scale_is_the_bias() -> Plan:
    return norm_with("LayerNormalization", "scale", 2)


@occurs(Reason.READ_TWICE, tensor="bias")
def the_bias_is_the_mean() -> Plan:
    return norm_with("BatchNormalization", "bias", 3)


# ---- the options, and what a run finds out ----------------------------------------------------------
def finetuned(model: onnx.ModelProto, *, evaluator: Callable[..., float] | None = None, **options: object) -> Reasons:
    data = samples(model, 20)
    config = AdaRoundConfig(**options, evaluator=evaluator)
    _, report = finetune(model, statically_quantized(model, data), None, Reader(data), config)
    return {layer.node: layer.reason for layer in report.skipped} | {
        layer.name: layer.reason for layer in report.layers if layer.reason
    }


@occurs(Reason.NOT_THE_LARGEST, layer=".*")
def not_the_largest() -> Reasons:
    return finetuned(separable_cnn(), select_max_mem_layer=True)


@occurs(Reason.MODEL_NOT_BETTER, layer=".*")
def model_not_better() -> Reasons:
    return finetuned(separable_cnn(), selective_update=True, evaluator=lambda _: 0.0)


@occurs(Reason.NOTHING_BETTER)
def nothing_better() -> Reasons:
    weight = np.diag([127.0, 64, -127, 1])  # 8 bits hold it exactly
    return finetuned(build("(float[N,4] x) => (float[N,4] y) { [layer] y = MatMul(x, w) }", w=weight))


@occurs(Reason.DATA_DOES_NOT_FIT)
def input_without_samples() -> Reasons:
    model = build("(float[N,3] x) => (float[A] y) { v = ReduceSum<keepdims=0>(x, axes) [layer] y = MatMul(v, w) }",
                  w=W, axes=np.array([0]))  # fmt: skip
    return finetuned(model)


def patched(owner: object, name: str, other: Callable[..., object]) -> Reasons:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, other)
        model = build("(float[N,3] x) => (float[N,4] y) { [layer] y = MatMul(x, w) }", w=W)
        return finetuned(model, solver="least_squares")


@occurs(Reason.TOO_LARGE)
def too_large() -> Reasons:
    return patched(MemoryLimit, "free", lambda _: 0)


@occurs(Reason.OUT_OF_MEMORY)
def out_of_memory() -> Reasons:
    return patched(LeastSquaresLayer, "solve", Mock(side_effect=MemoryError))


@occurs(Reason.DEVICE)
def device_lost() -> Reasons:
    lost = Mock(feed=Mock(side_effect=_core.DeviceError("it is gone")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUARK_ONNX_DEVICE_FALLBACK", "1")
        return patched(_core, "Layer", Mock(return_value=lost))


@occurs(Reason.TAKEN_BACK)
def taken_back() -> Reasons:
    return {"layer": keep_better(onnx.ModelProto(), [Change(("a",), {})], np.ones(8).copy, np.zeros(8), done="").why}
