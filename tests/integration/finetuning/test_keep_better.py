"""A worse model is not delivered unless it is asked for: the last better state is, and the report says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from small_models import Reader, Weights, apart, build, initializers, run, samples

import quark.onnx
from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    AlgoConfig,
    BiasCorrectionConfig,
    CalibMethod,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    Report,
    UInt8Spec,
)
from quark.onnx.solvers import least_squares
from quark.onnx.solvers.solver import Solution
from quark.onnx.whole_model.keep_better import Change, keep_better

pytestmark = pytest.mark.sets_apart

LAYER = QLayerConfig(UInt8Spec(), weight=Int8Spec(calibration_method=CalibMethod.MinMax))
NAMES = ("a", "b", "c", "d", "e", "f")
Spoil = Callable[[str], None]


def chain() -> onnx.ModelProto:
    """Six layers, whose output differs from sample to sample: x (N, 8) to y (N, 6)."""
    w = Weights(3)
    constants = {"a_w": 1.4 * w.conv(16, 8), "f_w": w.conv(6, 16)}
    constants |= {f"{name}_w": 1.4 * w.conv(16, 16) for name in NAMES[1:5]}
    constants |= {f"{name}_b": 0.1 * w.bias(6 if name == "f" else 16) for name in NAMES}
    nodes = "".join(
        f"[{name}] {name}_y = Gemm<transB=1>({x}, {name}_w, {name}_b) [{name}_relu] {name}_r = Relu({name}_y) "
        for x, name in zip(("x", "a_r", "b_r", "c_r", "d_r"), NAMES, strict=False)
    )
    text = f"(float[N,8] x) => (float[N,6] y) {{ {nodes} [f] y = Gemm<transB=1>(e_r, f_w, f_b) }}"
    return build(text, **constants)


def quantized(model: onnx.ModelProto, *algorithms: AlgoConfig, count: int = 64) -> tuple[onnx.ModelProto, Report]:
    quantizer = ModelQuantizer(QConfig(LAYER, algo_config=list(algorithms)))
    result = quantizer.quantize_model(model, None, Reader(samples(model, count)))
    return result, quantizer.report


def error(model: onnx.ModelProto, other: onnx.ModelProto, count: int = 64) -> float:
    """The error on the samples set apart, over the variance."""
    data = apart(samples(model, count)) if count >= 40 else samples(model, count)
    want, have = (run(m, data)[0].astype(np.float64) for m in (model, other))
    return float(((have - want) ** 2).sum() / (want.size * want.var()))


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Spoil:
    """Rigs the solver: some layers get a solution that is said to be good, and is not."""
    solve, spoilt = least_squares.LeastSquaresLayer.solve, set[str]()

    def rigged(self: least_squares.LeastSquaresLayer) -> Solution:
        found = solve(self)
        if self._plan.node in spoilt:  # nothing of the input is left, which no later layer can make up for
            return replace(found, weight=np.zeros_like(found.weight), improved=len(found.weight))
        return found

    monkeypatch.setattr(least_squares.LeastSquaresLayer, "solve", rigged)
    return spoilt.add


def changed_layers(model: onnx.ModelProto, other: onnx.ModelProto) -> set[str]:
    a, b = initializers(model), initializers(other)
    return {
        name.removesuffix("_w_quantized") for name in a if name.endswith("_w_quantized") and (a[name] != b[name]).any()
    }


def with_first_layers(plain: onnx.ModelProto, tuned: onnx.ModelProto, count: int) -> onnx.ModelProto:
    """The first layers' integers of one model, the others' of another."""
    mixed, new = onnx.ModelProto(), {tensor.name: tensor for tensor in tuned.graph.initializer}
    mixed.CopyFrom(plain)
    for tensor in mixed.graph.initializer:
        if tensor.name.split("_")[0] in NAMES[:count]:
            tensor.CopyFrom(new[tensor.name])
    return mixed


@pytest.mark.parametrize("options", [{}, {"parallel": True}, {"mem_opt_level": 2}], ids=str)
@pytest.mark.parametrize("bad", ["a", "e", "f"])
def test_layers_from_the_bad_one_on_are_taken_back(bad: str, options: dict[str, Any], spoil: Spoil) -> None:
    """What is delivered is the best of the states before the bad layer."""
    model = chain()
    plain, _ = quantized(model)
    good, _ = quantized(model, AdaRoundConfig(**options))
    spoil(bad)
    tuned, report = quantized(model, AdaRoundConfig(**options))
    states = [with_first_layers(plain, good, count) for count in range(NAMES.index(bad) + 1)]
    errors = [error(model, state) for state in states]
    best = int(np.argmin(errors))
    assert tuned.graph == states[best].graph
    assert [layer.accepted for layer in report.layers] == [i < best for i in range(6)]
    for layer in report.layers[best:]:
        assert "the whole model is worse" in layer.reason
        assert (layer.candidate, layer.improved, layer.after) == ("unchanged", 0, layer.before)
    (warning,) = (line for line in report.warnings if "made the whole model worse" in line)
    assert f"{6 - best} layers have their old integers again" in warning
    assert report.end_to_end.after.error == pytest.approx(errors[best], rel=1e-3)


@pytest.mark.parametrize("kind", [AdaRoundConfig, AdaQuantConfig])
def test_keep_worse_keeps_it(kind: type[AdaRoundConfig], spoil: Spoil) -> None:
    model = chain()
    spoil("e")
    tuned, report = quantized(model, kind(keep_worse=True))
    assert all(layer.accepted for layer in report.layers)
    assert report.end_to_end.after.error > report.end_to_end.before.error
    assert error(model, tuned) > error(model, quantized(model)[0])
    assert any("did not bring the whole model closer" in line for line in report.warnings)
    assert any("lost its meaning" in line for line in report.warnings)


def test_few_samples_judge_too(spoil: Spoil) -> None:
    model = chain()
    spoil("a")
    tuned, report = quantized(model, AdaRoundConfig(), count=12)
    assert tuned.graph == quantized(model, count=12)[0].graph
    assert report.end_to_end.after == report.end_to_end.before


def test_finetune_takes_back(spoil: Spoil) -> None:
    model = chain()
    plain, _ = quantized(model)
    spoil("a")
    tuned, report = quark.onnx.finetune(model, plain, None, Reader(samples(model, 64)), AdaRoundConfig())
    assert tuned.graph == plain.graph
    assert not any(layer.accepted for layer in report.layers)
    kept, _ = quark.onnx.finetune(model, plain, None, Reader(samples(model, 64)), AdaRoundConfig(keep_worse=True))
    assert "a" in changed_layers(plain, kept)


def test_bad_bias_corrections_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    solve = least_squares.LeastSquaresLayer.solve

    def rigged(self: least_squares.LeastSquaresLayer) -> Solution:
        found = solve(self)
        bias = None if found.bias is None else found.bias + 10**6
        return replace(found, bias=bias, improved=len(found.weight))

    monkeypatch.setattr(least_squares.LeastSquaresLayer, "solve", rigged)
    model = chain()
    plain, _ = quantized(model)
    corrected, report = quantized(model, BiasCorrectionConfig())
    assert corrected.graph == plain.graph
    assert not any(layer.accepted for layer in report.corrections)
    assert any("bias correction made the whole model worse" in line for line in report.warnings)
    kept, report = quantized(model, BiasCorrectionConfig(keep_worse=True))
    assert kept != plain
    assert all(layer.accepted for layer in report.corrections)


def test_the_callers_evaluator_has_the_last_word(spoil: Spoil) -> None:
    spoil("e")
    scores = iter(range(100))
    config = AdaRoundConfig(selective_update=True, evaluator=lambda _: next(scores))
    _, report = quantized(chain(), config)
    assert all(layer.accepted for layer in report.layers)


def test_layers_that_share_a_weight_are_taken_back_together(spoil: Spoil) -> None:
    w = Weights(1)
    model = build(
        """(float[N,8] x) => (float[N,8] y) {
            [first] t1 = Gemm<transB=1>(x, w) [relu] t2 = Relu(t1) [second] y = Gemm<transB=1>(t2, w)
        }""",
        w=w.conv(8, 8),
    )  # fmt: skip
    spoil("first")
    tuned, report = quantized(model, AdaRoundConfig())
    assert tuned.graph == quantized(model)[0].graph
    assert [layer.accepted for layer in report.layers] == [False, False]
    spoilt, _ = quantized(model, AdaRoundConfig(keep_worse=True))
    assert spoilt != tuned


def test_a_better_model_is_as_without_the_rule() -> None:
    model = chain()
    kept, _ = quantized(model, AdaRoundConfig(keep_worse=True))
    assert quantized(model, AdaRoundConfig())[0].graph == kept.graph


# ---- outputs that are joined ---------------------------------------------------------------------


def detector() -> onnx.ModelProto:
    """Boxes from 0 to 640 and scores from 0 to 1, level by level, joined and turned, as detectors give them."""
    w = Weights(0)
    return build(
        """(float[N,4,8,8] x) => (float[N,80,6] y) {
            [stem] h = Conv<pads=[1,1,1,1]>(x, stem_w, stem_b) [relu] r = Relu(h)
            [down] p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
            [box1] b1 = Conv(r, box_w, box_b) [stride1] s1 = Mul(b1, eight)
            [cls1] c1 = Conv(r, cls_w, cls_b) [sig1] g1 = Sigmoid(c1)
            [join1] j1 = Concat<axis=1>(s1, g1) [flat1] f1 = Reshape(j1, shape)
            [box2] b2 = Conv(p, box2_w, box_b) [stride2] s2 = Mul(b2, eight)
            [cls2] c2 = Conv(p, cls2_w, cls_b) [sig2] g2 = Sigmoid(c2)
            [join2] j2 = Concat<axis=1>(s2, g2) [flat2] f2 = Reshape(j2, shape)
            [levels] l = Concat<axis=2>(f1, f2) [turn] y = Transpose<perm=[0,2,1]>(l)
        }""",
        stem_w=w.conv(8, 4, 3, 3), stem_b=w.bias(8), box_w=w.conv(4, 8, 1, 1), box_b=np.full(4, 5.0),
        cls_w=w.conv(2, 8, 1, 1), cls_b=w.bias(2), box2_w=w.conv(4, 8, 1, 1), cls2_w=w.conv(2, 8, 1, 1),
        eight=np.float32(64), shape=np.array([0, 6, -1]),
    )  # fmt: skip


def test_a_part_that_lost_its_meaning_is_named() -> None:
    model = detector()
    _, report = quantized(model)
    (output,) = report.end_to_end.after.outputs
    assert [part.name for part in output.parts] == ["s1", "g1", "s2", "g2"]
    boxes, scores = output.parts[::2], output.parts[1::2]
    assert all(part.error < 0.1 for part in boxes)
    assert all(part.error > 0.5 for part in scores)
    for part in scores:
        (warning,) = (line for line in report.warnings if f"the part from {part.name!r} has lost its meaning" in line)
        assert "'levels' joins it with others" in warning
    assert report.end_to_end.after.sqnr_db < 6
    assert "y: g1" in report.full(300)
    quantizer = ModelQuantizer(QConfig(LAYER, exclude=["join1", "join2", "levels"]))
    quantizer.quantize_model(model, None, Reader(samples(model, 64)))
    assert not any("lost its meaning" in line for line in quantizer.report.warnings)


def test_what_one_sample_does_is_chance() -> None:
    """One bad sample of six does not outweigh five that got better; six that got a little worse do."""
    model, before = quantized(chain())[0], np.linspace(1, 2, 6)
    states = [(np.where(np.arange(6) == 3, 1e3, 0.9 * before), 0), (1.01 * before, 1)]
    for after, taken_back in states:
        kept = keep_better(model, [Change(("a",), {})], lambda after=after: after, before, done="finetuning")
        assert len(kept.taken_back) == taken_back
        assert all("worse on the 6 samples" in warning for warning in kept.warnings)


def test_the_parts_are_those_elements() -> None:
    """Against their definition: of each level's columns, four are boxes and two are scores."""
    model = detector()
    plain, report = quantized(model)
    data = apart(samples(model, 64))
    want, have = (run(m, data)[0].astype(np.float64) for m in (model, plain))
    (output,) = report.end_to_end.after.outputs
    for part, chosen in zip(
        output.parts, [np.s_[:, :64, :4], np.s_[:, :64, 4:], np.s_[:, 64:, :4], np.s_[:, 64:, 4:]], strict=True
    ):
        expected = ((have[chosen] - want[chosen]) ** 2).mean() / want[chosen].var()
        assert part.error == pytest.approx(expected, rel=1e-3)
    assert output.error == pytest.approx(np.mean([part.error for part in output.parts]))
