"""Activations whose quantizers alone destroy a model stay in float, within the share allowed."""

from __future__ import annotations

from unittest.mock import Mock

import numpy as np
import onnx
import pytest
from small_models import Arrays, build, residual_cnn, run, samples, separable_cnn, transformer_block

from quark.onnx import AdaRoundConfig, Int8Spec, ModelQuantizer, QConfig, QLayerConfig, UInt8Spec, XInt8Spec
from quark.onnx.calibration.calibrate import Calibration
from quark.onnx.inference.sessions import Engine
from quark.onnx.qdq.insert_qdq import QdqModel, calibration_tensors, qdq_model
from quark.onnx.qdq.qdq_options import QdqOptions
from quark.onnx.sensitivity.damage import Damage
from quark.onnx.sensitivity.kept_in_float import kept_in_float
from quark.onnx.sensitivity.staged_model import StagedModel
from quark.onnx.sensitivity.switched_model import switched_model
from quark.onnx.system.memory_limit import MemoryLimit

pytestmark = pytest.mark.islands


def detector() -> onnx.ModelProto:
    """Boxes of 0 to some hundreds beside scores of 0 to 1 in one output."""
    random = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return random.normal(0, shape[0] ** -0.5, shape).astype(np.float32)

    return build(
        """(float[N,16] x) => (float[N,12] y) {
            [trunk] h = Gemm(x, trunk_w, trunk_b)
            [relu] r = Relu(h)
            [boxes] raw = Gemm(r, boxes_w, boxes_b)
            [pixels] big = Mul(raw, hundreds)
            [scores] logits = Gemm(r, scores_w, scores_b)
            [sigmoid] score = Sigmoid(logits)
            [joint] y = Concat<axis=1>(big, score)
        }""",
        trunk_w=weight(16, 32), trunk_b=weight(32), boxes_w=weight(32, 4), boxes_b=weight(4),
        scores_w=weight(32, 8), scores_b=weight(8), hundreds=np.float32(300),
    )  # fmt: skip


def spectrum() -> onnx.ModelProto:
    """A logarithm of powers that span many decades, and a layer behind it."""
    random = np.random.default_rng(1)
    return build(
        """(float[N,16] x) => (float[N,8] y) {
            [mix] h = MatMul(x, mix_w)
            [power] p = Mul(h, h)
            [floor] q = Add(p, least)
            [log] l = Log(q)
            [head] y = Gemm(l, head_w, head_b)
        }""",
        mix_w=random.normal(0, 0.2, (16, 24)) * 10.0 ** random.uniform(-2.5, 0, 24), least=np.float32(1e-7),
        head_w=random.normal(0, 0.2, (24, 8)), head_b=random.normal(0, 1, 8),
    )  # fmt: skip


def quantized(model: onnx.ModelProto, data: Arrays, **options: object) -> tuple[onnx.ModelProto, ModelQuantizer]:
    config = QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), QuantizeAllOpTypes=True, **options)
    quantizer = ModelQuantizer(config)
    return quantizer.quantize_model(model, None, data), quantizer


def error(model: onnx.ModelProto, other: onnx.ModelProto, data: Arrays, columns: slice = slice(None)) -> float:
    """Noise over variance."""
    want, have = run(model, data)[0][:, columns], run(other, data)[0][:, columns]
    return float(((have - want) ** 2).mean() / want.var())


def test_a_joint_of_boxes_and_scores_stays_in_float() -> None:
    model = detector()
    data, unseen = samples(model, 64), samples(model, 200, seed=9)
    without, _ = quantized(model, data, MaxFloatShare=0.0)
    result, quantizer = quantized(model, data, MaxFloatShare=0.5)
    scores = slice(4, None)
    assert error(model, without, unseen, scores) > 0.5
    assert error(model, result, unseen, scores) < 0.01
    notes = "\n".join(quantizer.report.notes)
    assert "tensor 'y'" in notes
    assert "stay in float, as their quantizers alone destroy the model" in notes
    assert not any("joint" in warning for warning in quantizer.report.warnings)
    assert not any(name.startswith("y_") for node in result.graph.node for name in node.input)


def test_the_argument_of_a_logarithm_stays_in_float() -> None:
    model = spectrum()
    data, unseen = samples(model, 64), samples(model, 200, seed=9)
    without, _ = quantized(model, data, MaxFloatShare=0.0)
    result, _ = quantized(model, data)
    assert error(model, result, unseen) < 0.1 * error(model, without, unseen)
    assert any(node.op_type == "QuantizeLinear" for node in result.graph.node)


def test_islands_are_finetuned_around() -> None:
    model = detector()
    data, unseen = samples(model, 64), samples(model, 200, seed=9)
    plain, _ = quantized(model, data, MaxFloatShare=0.5)
    tuned, quantizer = quantized(model, data, MaxFloatShare=0.5, algo_config=[AdaRoundConfig()])
    assert all(layer.accepted for layer in quantizer.report.layers)
    assert error(model, tuned, unseen, slice(4, None)) < error(model, plain, unseen, slice(4, None))


def test_what_is_more_than_the_share_allowed_is_quantized_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quark.onnx.sensitivity.islands._FREE", 0)
    model = detector()
    data = samples(model, 64)
    without, _ = quantized(model, data, MaxFloatShare=0.0)
    result, quantizer = quantized(model, data, MaxFloatShare=0.01)
    assert result.graph == without.graph
    assert any("8 bits destroy the model" in warning for warning in quantizer.report.warnings)


def test_a_healthy_model_has_none() -> None:
    model = separable_cnn()
    data = samples(model, 40)
    without, _ = quantized(model, data, MaxFloatShare=0.0)
    result, quantizer = quantized(model, data)
    assert result.graph == without.graph
    assert not any("float" in note for note in quantizer.report.notes)


def test_formats_for_devices_without_floats_have_none() -> None:
    model = detector()
    data = samples(model, 64)
    config = QConfig(QLayerConfig(XInt8Spec(), weight=XInt8Spec()))
    default = ModelQuantizer(config).quantize_model(model, None, data)
    without = ModelQuantizer(QConfig(QLayerConfig(XInt8Spec(), weight=XInt8Spec()), MaxFloatShare=0.0))
    assert default.graph == without.quantize_model(model, None, data).graph


@pytest.mark.parametrize("make", [detector, spectrum, separable_cnn])
def test_a_switched_model_computes_the_float_model_when_all_is_off(make) -> None:
    model = make()
    data = samples(model, 8)
    result, _ = quantized(model, data, MaxFloatShare=0.0)
    switched = switched_model(model, result)
    onnx.checker.check_model(switched.model, full_check=True)
    outputs = run(switched.model, {**data, **switched.off})
    np.testing.assert_allclose(outputs[0], run(model, data)[0], rtol=1e-6)
    assert switched.switches


@pytest.mark.parametrize("make", [detector, separable_cnn, residual_cnn, transformer_block])
def test_stages_compute_what_the_switched_model_does_as_a_whole(make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quark.onnx.sensitivity.staged_model._FEWEST_SWITCHES", 1)
    model = make()
    items = [samples(model, 4, seed=seed) for seed in range(2)]
    result, _ = quantized(model, items[0], MaxFloatShare=0.0)
    switched = switched_model(model, result)
    names = [switch.name for switch in switched.switches]
    for kept in (1 << 20, 2000, 0):  # bytes: values between stages are kept, some of them, none
        monkeypatch.setattr("quark.onnx.sensitivity.staged_model._KEPT_BYTES", kept)
        staged = StagedModel(switched, switched.off, items, Engine(1), threads=2, together=1 + (kept == 0))
        for on in (names, names[:1], names[-1:], names[len(names) // 2 :], names[::3], []):
            for fine in ([], on[:2]):
                feeds = switched.feeds(frozenset(on), frozenset(fine))
                for item, outputs in zip(items, staged.run(feeds), strict=True):
                    whole = run(switched.model, {**item, **switched.off, **feeds})
                    for have, want in zip(outputs, whole, strict=True):
                        # Last bits differ, and with them a code here and there.
                        assert np.square(have - want).mean() <= 1e-4 * want.var()
                        assert np.median(np.abs(have - want)) <= 1e-5 * want.std()


def test_stages_hand_on_no_sequences_and_know_constant_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quark.onnx.sensitivity.staged_model._FEWEST_SWITCHES", 1)
    model = build(
        """(float[N,16] x) => (float[N,16] y, float[M] constant, float[N,16] z) {
            h = Gemm(x, w)
            parts = SplitToSequence<axis=1, keepdims=1>(h, eight)
            r = Relu(h)
            g = Gemm(r, w)
            joined = ConcatFromSequence<axis=1>(parts)
            y = Add(g, joined)
            constant = Identity(held)
            z = Gemm(y, w)
        }""",
        w=np.random.default_rng(0).normal(0, 0.3, (16, 16)), held=np.ones(3, np.float32), eight=np.int64(8),
    )  # fmt: skip
    data = samples(model, 8)
    result, _ = quantized(model, data, MaxFloatShare=0.0)
    switched = switched_model(model, result)
    staged = StagedModel(switched, switched.off, [data], Engine(1), threads=1, together=1)
    for switch in switched.switches:
        feeds = switched.feeds(frozenset({switch.name}))
        for have, want in zip(*staged.run(feeds), run(switched.model, {**data, **switched.off, **feeds}), strict=True):
            np.testing.assert_allclose(have, want, atol=1e-5)
    assert len(switched.switches) > 3


def test_the_damage_of_a_quantizer_is_what_fake_quant_of_its_tensor_does() -> None:
    """The oracle is NumPy: only the scores' joint is quantized."""
    model = detector()
    data = samples(model, 32)
    result, _ = quantized(model, data, MaxFloatShare=0.0)
    damage = Damage(model, result, [data], Engine(1))
    (joint,) = [switch for switch in damage.switches if "y" in switch.tensors]
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
    node = next(node for node in result.graph.node if node.op_type == "DequantizeLinear" and node.output[0] == "y")
    scale, zero_point = values[node.input[1]], values[node.input[2]]
    y = run(model, data)[0]
    fake = (np.clip(np.round(y / scale) + zero_point, 0, 255) - zero_point) * scale
    by_part = [((fake - y)[:, part] ** 2).mean() / y[:, part].var() for part in (slice(0, 4), slice(4, None))]
    assert damage.error([joint]) == pytest.approx(max(by_part), rel=1e-4)
    assert damage.elements[joint.name] == y.size * len(joint.tensors)


@pytest.mark.parametrize("together", [1 << 30, 1])
def test_the_damage_on_the_first_items_is_that_of_a_measure_with_these_alone(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quark.onnx.sensitivity.damage._TOGETHER_BYTES", together)  # all items, or one after the other
    model = detector()
    items = [samples(model, 4, seed=seed) for seed in range(3)]
    result, _ = quantized(model, items[0], MaxFloatShare=0.0)
    damage = Damage(model, result, items, Engine(1))
    for count in (1, 2, 3, 9):
        few = Damage(model, result, items[:count], Engine(1))
        for switch in damage.switches:
            assert damage.error([switch], count) == pytest.approx(few.error([switch]), rel=1e-4, abs=1e-12)
    assert damage.error(damage.switches) == damage.error(damage.switches, len(items))


def test_a_relu_whose_output_stays_in_float_is_not_left_to_a_quantizer() -> None:
    model = detector()
    ranges = {name: (-4.0, 4.0) for name in calibration_tensors(model, QdqOptions()) if name != "r"}
    result = qdq_model(model, ranges, {}, QdqOptions(without_range=frozenset({"r"}))).model
    assert "Relu" in {node.op_type for node in result.graph.node}


def test_where_memory_is_scarce_nothing_is_measured_with_a_warning() -> None:
    model = detector()
    data = samples(model, 32)
    result, _ = quantized(model, data, MaxFloatShare=0.0)
    inserted, calibration = QdqModel(result, ()), Calibration({}, {}, 32)
    engine = Engine(1, memory=MemoryLimit(1))
    kept = kept_in_float(model, calibration, lambda _: inserted, [data], engine, 0.5)
    assert kept.inserted is inserted
    assert "not measured" in kept.warnings[0]


def test_whatever_goes_wrong_in_measuring_loses_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Damage, "error", Mock(side_effect=ValueError("shapes differ")))
    model = detector()
    data = samples(model, 32)
    without, _ = quantized(model, data, MaxFloatShare=0.0)
    result, quantizer = quantized(model, data, MaxFloatShare=0.5)
    assert result.graph == without.graph
    assert any("not measured" in warning and "shapes differ" in warning for warning in quantizer.report.warnings)


def test_a_range_that_cuts_off_what_counts_holds_all_values() -> None:
    """One score in a thousand is far above the others: a percentile of the values says that it does not matter."""
    model = detector()
    data = samples(model, 1000)
    data["x"][::100] *= 30
    few = [{"x": data["x"][i : i + 1]} for i in (0, 100, 200)]
    rest = [{"x": data["x"][i : i + 1]} for i in range(1, 1000) if i % 100]
    config = QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), MaxFloatShare=0.5, Percentile=99.0)
    quantizer = ModelQuantizer(config)
    result = quantizer.quantize_model(model, None, few + rest)
    assert any("hold all values" in note for note in quantizer.report.notes)
    exact = ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), MaxFloatShare=0.0, Percentile=99.0))
    clipped = exact.quantize_model(model, None, few + rest)
    boxes, outliers = slice(0, 4), {"x": data["x"][::100]}
    assert error(model, result, outliers, boxes) < 0.3 * error(model, clipped, outliers, boxes)


def test_wider_ranges_are_taken_where_nothing_may_stay_in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quark.onnx.sensitivity.islands._FREE", 0)
    random = np.random.default_rng(2)
    model = build(
        """(float[N,16] x) => (float[N,8] y) {
            [trunk] h = MatMul(x, trunk_w)
            [relu] r = Relu(h)
            [head] y = MatMul(r, head_w)
        }""",
        trunk_w=random.normal(0, 0.25, (16, 32)), head_w=random.normal(0, 0.2, (32, 8)),
    )  # fmt: skip
    data = samples(model, 500)
    data["x"][::50] *= 10
    items = [{"x": data["x"][i : i + 1]} for i in (0, 50, 100, *range(1, 500))]
    specs = QLayerConfig(UInt8Spec(), weight=Int8Spec())
    quantizer = ModelQuantizer(QConfig(specs, MaxFloatShare=1e-6, Percentile=99.0))
    result = quantizer.quantize_model(model, None, items)
    assert any("hold all values" in note for note in quantizer.report.notes)
    assert not any("stay in float" in note for note in quantizer.report.notes)
    clipped = ModelQuantizer(QConfig(specs, MaxFloatShare=0.0, Percentile=99.0)).quantize_model(model, None, items)
    outliers = {"x": data["x"][::50]}
    assert error(model, result, outliers) < 0.1 * error(model, clipped, outliers)
