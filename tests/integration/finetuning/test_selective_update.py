"""selective_update: a layer's integers stay only if the whole model gets better, by its outputs or by an evaluator."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from reference.inner_tensors import inner_tensors
from small_models import MODELS, Arrays, Reader, Weights, build, initializers, judged, run, samples, separable_cnn

import quark.onnx
from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    CalibMethod,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    UInt8Spec,
)
from quark.onnx.errors import ConfigError, FinetuneError, ModelError
from quark.onnx.report.report import Report

pytestmark = pytest.mark.sets_apart

LAYER = QLayerConfig(UInt8Spec(), weight=Int8Spec(calibration_method=CalibMethod.MinMax))
COUNT = 24
SOLVERS: dict[str, dict[str, Any]] = {
    "least_squares": {"solver": "least_squares"},
    "gradient": {"solver": "gradient", "num_iterations": 60},
}
Session = onnxruntime.InferenceSession
Evaluator = Callable[[Session], float]


def several_outputs() -> onnx.ModelProto:
    """x (N, 4, 8, 8) to the output of the first layer, which a shortcut reads too; labels; and scores (N, 6)."""
    w = Weights(5)
    a = w.gains(8)
    return build(
        """(float[N,4,8,8] x) => (float[N,8,8,8] early, int64[N] label, float[N,6] scores) {
            [first] t1 = Conv<pads=[1,1,1,1]>(x, first_w, first_b)
            [relu1] early = Relu(t1)
            [second] t2 = Conv<pads=[1,1,1,1]>(early, second_w, second_b)
            [relu2] t3 = Relu(t2)
            [third] t4 = Conv<pads=[1,1,1,1]>(t3, third_w, third_b)
            [add] t5 = Add(t4, early)
            [pool] t6 = GlobalAveragePool(t5)
            [flat] t7 = Flatten(t6)
            [classes] scores = Gemm<transB=1>(t7, classes_w, classes_b)
            [best] label = ArgMax<axis=1, keepdims=0>(scores)
        }""",
        first_w=scaled_rows(w.conv(8, 4, 3, 3), a), first_b=w.bias(8) * a,
        second_w=scaled_rows(w.conv(8, 8, 3, 3, gains=a), a), second_b=w.bias(8) * a,
        third_w=scaled_rows(w.conv(8, 8, 3, 3, gains=a), a), third_b=w.bias(8),
        classes_w=w.conv(6, 8, gains=a) * 3, classes_b=w.bias(6),
    )  # fmt: skip


def scaled_rows(weight: np.ndarray, gains: np.ndarray) -> np.ndarray:
    return weight * gains[:, None, None, None]


ALL_MODELS = {**MODELS, "several outputs": several_outputs}


def quantized(
    model: onnx.ModelProto, algorithm: AdaRoundConfig | None, *, threads: int = 1, count: int = COUNT, batch: int = 1
) -> tuple[onnx.ModelProto, Report]:
    config = QConfig(LAYER, algo_config=[algorithm] if algorithm else [], extra_options={"NumThreads": threads})
    quantizer = ModelQuantizer(config)
    result = quantizer.quantize_model(model, None, Reader(samples(model, count), batch=batch))
    return result, quantizer.report


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    return quantized(model, None)[0]


def mean_l2(want: list[np.ndarray], have: list[np.ndarray], *, only: int | None = None) -> float:
    """Over the samples and all outputs of floats, or only one."""
    norms = [
        np.sqrt(((w.astype(np.float64) - h) ** 2).reshape(len(w), -1).sum(1))
        for i, (w, h) in enumerate(zip(want, have, strict=True))
        if w.dtype == np.float32 and only in (None, i)
    ]
    return float(np.mean(norms))


def closeness(model: onnx.ModelProto, *, only: int | None = None) -> Evaluator:
    """Does what is done without an evaluator, in another way."""
    data = samples(model, COUNT)
    want = run(model, data)
    return lambda session: -mean_l2(want, session.run(None, data), only=only)


# ---- by the outputs ----------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", ALL_MODELS)
def test_the_whole_model_never_gets_worse(name: str, solver: str) -> None:
    model = ALL_MODELS[name]()
    data = samples(model, COUNT)
    want = run(model, data)
    tuned, report = quantized(model, AdaRoundConfig(selective_update=True, **SOLVERS[solver]))
    before, after = (mean_l2(want, run(m, data)) for m in (plain(model), tuned))
    accepted = [layer for layer in report.layers if layer.accepted]
    assert accepted
    assert after < before
    assert all(layer.improved > 0 and not layer.reason for layer in accepted)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", ALL_MODELS)
def test_it_decides_as_an_evaluator_of_the_same_distance(name: str, solver: str) -> None:
    """The evaluator runs the whole model; without it only what is behind the layer is run."""
    model = ALL_MODELS[name]()
    options: dict[str, Any] = {"selective_update": True, **SOLVERS[solver]}
    by_outputs, report = quantized(model, AdaQuantConfig(**options))
    by_evaluator, other = quantized(model, AdaQuantConfig(evaluator=closeness(model), **options))
    assert by_outputs.graph == by_evaluator.graph
    assert [layer.accepted for layer in report.layers] == [layer.accepted for layer in other.layers]


def test_some_layers_are_discarded_and_say_why() -> None:
    """The scores in the reasons are those of the models that were compared."""
    model, scores = separable_cnn(), list[float]()

    def noted(session: Session) -> float:
        scores.append(-closeness(model)(session))
        return -scores[-1]

    quantized(model, AdaRoundConfig(selective_update=True, evaluator=noted))
    tuned, report = quantized(model, AdaRoundConfig(selective_update=True))
    discarded = [layer for layer in report.layers if not layer.accepted]
    assert discarded
    assert len(scores) == 1 + len(report.layers), "all solutions are better on held-out rows"
    for index, layer in enumerate(report.layers):
        if layer.accepted:
            continue
        found = re.fullmatch(r"the whole model did not get better: mean L2 of its outputs (\S+) -> (\S+)", layer.reason)
        assert found
        assert [float(n) for n in found.groups()] == pytest.approx([min(scores[: index + 1]), scores[index + 1]], 1e-4)
        assert layer.after == layer.before
        assert (layer.improved, layer.candidate) == (0, "unchanged")
        assert layer.reason.split(":")[0] in " ".join(report.full(300).split())
    before, after = initializers(plain(model)), initializers(tuned)
    for layer in report.layers:
        same = np.array_equal(before[f"{layer.name}_w_quantized"], after[f"{layer.name}_w_quantized"])
        assert same == (not layer.accepted)


@pytest.mark.parametrize("index", [0, 2])
def test_output_index_chooses_the_output(index: int) -> None:
    model = several_outputs()
    options: dict[str, Any] = {"selective_update": True}
    chosen, report = quantized(model, AdaRoundConfig(output_index=index, **options))
    evaluated, _ = quantized(model, AdaRoundConfig(evaluator=closeness(model, only=index), **options))
    assert chosen.graph == evaluated.graph
    if index == 0:  # what is behind the first layer does not change its output
        assert [layer.accepted for layer in report.layers] == [True, False, False, False]


def test_layers_after_a_discarded_one_see_it_as_it_was() -> None:
    """The error that the report gives for the last layer is that of the final model."""
    model, data = separable_cnn(), samples(separable_cnn(), COUNT)
    calls = itertools.count()
    tuned, report = quantized(
        model, AdaRoundConfig(selective_update=True, evaluator=lambda _: (c := next(calls)) - 2 * (c == 4))
    )
    assert [layer.accepted for layer in report.layers] == [True, True, True, False, True, True]
    last, want = report.layers[-1], run(model, data)[0].astype(np.float64)
    (node,) = [node for node in tuned.graph.node if node.name == last.name]
    (have,) = inner_tensors(tuned, data, node.output).values()
    assert np.average(last.after, weights=last.rows) == pytest.approx(((have - want) ** 2).sum(1).mean(), rel=1e-3)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", ["separable", "residual", "several outputs"])
def test_memory_levels_and_threads_give_the_same_model(name: str, solver: str) -> None:
    model, seen = ALL_MODELS[name](), []
    for level, threads in ((1, 1), (0, 1), (2, 1), (1, 2), (2, 3)):
        config = AdaRoundConfig(selective_update=True, mem_opt_level=level, **SOLVERS[solver])
        tuned, report = quantized(model, config, threads=threads, count=70)
        seen.append((tuned.SerializeToString(deterministic=True), [layer.reason for layer in report.layers]))
    assert all(one == seen[0] for one in seen)


def test_the_readers_batches_do_not_matter() -> None:
    model = several_outputs()
    models = [quantized(model, AdaRoundConfig(selective_update=True), batch=batch)[0] for batch in (1, 5, 24)]
    assert models[0] == models[1] == models[2]


def test_an_output_that_does_not_count_samples() -> None:
    """One output of a model whose batch is fixed is a mean over the samples of a batch."""
    w = Weights(0)
    a = w.gains(8)
    model = build(
        """(float[4,6] x) => (float[4,5] y, float[1,5] mean) {
            [first] t1 = Gemm<transB=1>(x, first_w, first_b)
            [relu] t2 = Relu(t1)
            [second] y = Gemm<transB=1>(t2, second_w)
            [average] mean = ReduceMean<axes=[0]>(y)
        }""",
        first_w=w.conv(8, 6) * a[:, None], first_b=w.bias(8) * a, second_w=w.conv(5, 8, gains=a),
    )  # fmt: skip
    data = samples(model, 40)["x"]
    batches = [{"x": data[i : i + 4]} for i in range(0, 40, 4)]

    def evaluator(session: Session) -> float:
        norms = list[float]()
        for batch in batches:
            (y, mean), (have, have_mean) = run(model, batch), session.run(None, batch)
            norms += [*np.linalg.norm(have - y, axis=1), np.linalg.norm(have_mean - mean)]
        return -float(np.mean(norms))

    tuned, report = quantized(model, AdaRoundConfig(selective_update=True), count=40, batch=4)
    assert any(layer.accepted for layer in report.layers)
    other, _ = quantized(model, AdaRoundConfig(selective_update=True, evaluator=evaluator), count=40, batch=4)
    assert tuned.graph == other.graph


def test_a_foreign_model_whose_outputs_have_other_names() -> None:
    model = separable_cnn()
    foreign = plain(model)
    for node in foreign.graph.node:
        node.output[:] = ["renamed" if name == "y" else name for name in node.output]
    foreign.graph.output[0].name = "renamed"
    config = AdaRoundConfig(selective_update=True)
    tuned, report = quark.onnx.finetune(model, foreign, None, Reader(samples(model, COUNT)), config)
    expected, own_report = quantized(model, config)
    assert initializers(tuned).keys() == initializers(expected).keys()
    for name, array in initializers(expected).items():
        np.testing.assert_array_equal(initializers(tuned)[name], array)
    assert [layer.reason for layer in report.layers] == [layer.reason for layer in own_report.layers]


class Unread(Reader):
    """A reader that must not be asked."""

    def get_next(self) -> Arrays | None:
        pytest.fail("the data was read")


@pytest.mark.parametrize("index", [1, 3])
def test_an_index_without_output_of_floats_names_the_outputs(index: int) -> None:
    model = several_outputs()
    config = AdaRoundConfig(selective_update=True, output_index=index)
    message = (
        rf"AdaRoundConfig.output_index: got {index}, expected the position of an output of floats: "
        r"the model has 0 'early' \(FLOAT\), 1 'label' \(INT64\), 2 'scores' \(FLOAT\)"
    )
    reader = Unread(samples(model, 1))
    with pytest.raises(ConfigError, match=message):
        ModelQuantizer(QConfig(LAYER, algo_config=[config])).quantize_model(model, None, reader)
    foreign = plain(model)
    with pytest.raises(ConfigError, match=message):
        quark.onnx.finetune(model, foreign, None, reader, config)


def test_a_model_without_outputs_of_floats_needs_an_evaluator() -> None:
    model = several_outputs()
    del model.graph.output[2], model.graph.output[0]
    config = AdaQuantConfig(selective_update=True)
    message = r"AdaQuantConfig.selective_update: got True, expected an evaluator too: .* only 0 'label' \(INT64\)"
    with pytest.raises(ConfigError, match=message):
        ModelQuantizer(QConfig(LAYER, algo_config=[config])).quantize_model(model, None, Unread(samples(model, 1)))
    labels, data = run(model, samples(model, COUNT))[0], samples(model, COUNT)

    def agreement(session: Session) -> float:
        return float((session.run(None, data)[0] == labels).mean())

    before = agreement(Session(plain(model).SerializeToString()))
    tuned, _ = quantized(model, AdaQuantConfig(selective_update=True, evaluator=agreement))
    assert agreement(Session(tuned.SerializeToString())) > before


def test_constant_outputs_do_not_count() -> None:
    model = separable_cnn()
    with_constant = separable_cnn()
    with_constant.graph.node.append(onnx.helper.make_node("Neg", ["classes_b"], ["constant"]))
    with_constant.graph.output.append(onnx.helper.make_tensor_value_info("constant", onnx.TensorProto.FLOAT, [10]))
    config = AdaRoundConfig(selective_update=True)
    reports = [quantized(m, config)[1] for m in (model, with_constant)]
    assert [layer.reason for layer in reports[0].layers] == [layer.reason for layer in reports[1].layers]


def test_an_output_that_is_not_finite_cannot_be_compared() -> None:
    w = Weights(0)
    model = build(
        "(float[N,6] x) => (float[N,5] y, float[N,5] root) { [only] y = Gemm<transB=1>(x, w) root = Sqrt(y) }",
        w=w.conv(5, 6),
    )
    with pytest.raises(FinetuneError, match=r"nothing to go by: before the first layer the mean L2 .* is nan"):
        quantized(model, AdaRoundConfig(selective_update=True))
    _, report = quantized(model, AdaRoundConfig(selective_update=True, output_index=0))
    assert report.layers[0].accepted


def test_an_output_whose_shape_differs_between_the_models_cannot_be_compared() -> None:
    """Values near a limit; those of the held-out samples, on which the models are compared first, are far from it."""
    model = build(
        """(float[N,4] x) => (float[N,4] y, float[A,B] picked) {
            [only] y = Gemm<transB=1>(x, w)
            small = Less(y, limit) where = NonZero(small) picked = Cast<to=1>(where)
        }""",
        w=np.eye(4), limit=0.505,
    )  # fmt: skip
    x = np.random.default_rng(0).uniform(0.504, 0.506, (20, 4)).astype(np.float32)
    x[4::5] = 3
    config = QConfig(LAYER, algo_config=[AdaRoundConfig(selective_update=True)])
    with pytest.raises(ModelError, match="selective_update cannot compare the output 'picked': its shape is"):
        ModelQuantizer(config).quantize_model(model, None, Reader({"x": x}))


# ---- by an evaluator ---------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", ALL_MODELS)
def test_an_evaluator_that_is_never_content(name: str, solver: str) -> None:
    model = ALL_MODELS[name]()
    tuned, report = quantized(
        model, AdaRoundConfig(selective_update=True, evaluator=lambda _: 1.0, update_bias=True, **SOLVERS[solver])
    )
    assert tuned.graph == plain(model).graph
    assert not any(layer.accepted for layer in report.layers)
    assert {layer.reason for layer in report.layers} == {"the whole model did not get better: evaluator's score 1 -> 1"}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", ALL_MODELS)
def test_an_evaluator_that_is_always_content(name: str, solver: str) -> None:
    model, calls = ALL_MODELS[name](), itertools.count()
    tuned, report = quantized(
        model, AdaRoundConfig(selective_update=True, evaluator=lambda _: next(calls), **SOLVERS[solver])
    )
    expected, expected_report = quantized(model, AdaRoundConfig(**SOLVERS[solver]))
    assert tuned.graph == expected.graph
    assert list(map(judged, report.layers)) == list(map(judged, expected_report.layers))
    assert next(calls) == 1 + sum(layer.accepted for layer in report.layers)


def test_the_evaluator_gets_the_model_as_it_is_at_that_moment() -> None:
    model, seen = separable_cnn(), list[np.ndarray]()
    data = samples(model, 5)

    def noting(session: Session) -> float:
        assert isinstance(session, Session)
        seen.append(session.run(None, data)[0])
        return len(seen)

    tuned, report = quantized(model, AdaRoundConfig(selective_update=True, evaluator=noting))
    assert len(seen) == 1 + len(report.layers)
    for outputs, expected in ((seen[0], plain(model)), (seen[-1], tuned)):
        np.testing.assert_allclose(outputs, run(expected, data)[0], atol=1e-4)
    assert all(not np.array_equal(a, b) for a, b in itertools.pairwise(seen))


def test_negative_scores_and_numpy_numbers() -> None:
    calls = itertools.count()
    _, report = quantized(
        separable_cnn(), AdaRoundConfig(selective_update=True, evaluator=lambda _: np.float32(next(calls) - 100))
    )
    assert all(layer.accepted for layer in report.layers)


@pytest.mark.parametrize("result", [math.nan, math.inf, None, "0.9", np.float64("nan"), [0.5]])
@pytest.mark.parametrize("when", [0, 2])
def test_a_result_that_is_no_number(result: Any, when: int) -> None:
    calls = itertools.count()

    def evaluator(_: Session) -> Any:
        call = next(calls)
        return result if call == when else call

    with pytest.raises(FinetuneError, match=rf"the evaluator returned {re.escape(repr(result))}: return a finite"):
        quantized(separable_cnn(), AdaRoundConfig(selective_update=True, evaluator=evaluator))


@pytest.mark.parametrize("digits", [400, 10_000])
def test_an_int_beyond_all_floats_is_no_score(digits: int) -> None:
    with pytest.raises(FinetuneError, match="the evaluator returned an int that is no float"):
        quantized(separable_cnn(), AdaRoundConfig(selective_update=True, evaluator=lambda _: 10**digits))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), LookupError("no such label")], ids=["ctrl-c", "error"])
@pytest.mark.parametrize("when", [0, 1, 4])
@pytest.mark.parametrize("level", [1, 2])
def test_what_the_evaluator_raises_ends_the_run(error: BaseException, when: int, level: int, tmp_path: Path) -> None:
    calls = itertools.count()

    def evaluator(_: Session) -> float:
        if (call := next(calls)) == when:
            raise error
        return call

    model, output, cache = separable_cnn(), tmp_path / "q.onnx", tmp_path / "cache"
    config = AdaRoundConfig(selective_update=True, evaluator=evaluator, mem_opt_level=level, cache_dir=cache)
    quantizer = ModelQuantizer(QConfig(LAYER, algo_config=[config]))
    with pytest.raises(type(error)) as caught:
        quantizer.quantize_model(model, output, Reader(samples(model, COUNT)))
    assert caught.value is error
    assert quantizer.report is None
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    foreign = plain(model)
    before = foreign.SerializeToString(deterministic=True)
    calls = itertools.count()
    with pytest.raises(type(error)):
        quark.onnx.finetune(model, foreign, output, Reader(samples(model, COUNT)), config)
    assert foreign.SerializeToString(deterministic=True) == before
    assert not output.exists()
