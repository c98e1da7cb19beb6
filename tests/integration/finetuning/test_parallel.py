"""parallel=True: every layer is solved on the model as it is before finetuning, all at the same time."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from reference.inner_tensors import inner_tensors
from small_models import (
    MODELS,
    Reader,
    Weights,
    build,
    initializers,
    judged,
    mean_squared_error,
    run,
    samples,
    scaled,
    separable_cnn,
)

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
from quark.onnx.report.report import Report
from quark.onnx.system import progress

LAYER = QLayerConfig(UInt8Spec(), weight=Int8Spec(calibration_method=CalibMethod.MinMax))
COUNT = 40
SOLVERS: dict[str, dict[str, Any]] = {
    "least_squares": {"solver": "least_squares"},
    "gradient": {"solver": "gradient", "num_iterations": 60},
}
ENDLESS: dict[str, Any] = {"solver": "gradient", "num_iterations": 5_000_000}  # minutes, per layer


def quantized(
    model: onnx.ModelProto, algorithm: AdaRoundConfig | None, *, threads: int = 2, count: int = COUNT
) -> tuple[onnx.ModelProto, Report]:
    config = QConfig(LAYER, algo_config=[algorithm] if algorithm else [], extra_options={"NumThreads": threads})
    quantizer = ModelQuantizer(config)
    result = quantizer.quantize_model(model, None, Reader(samples(model, count)))
    return result, quantizer.report


def three_kinds() -> onnx.ModelProto:
    """A Conv, a MatMul and a Gemm: `target_op_type` chooses each of them alone. x (N, 4, 8, 8) to y (N, 6)."""
    w = Weights(6)
    a, b = w.gains(8), w.gains(12)
    return build(
        """(float[N,4,8,8] x) => (float[N,6] y) {
            [conv] t1 = Conv<pads=[1,1,1,1]>(x, conv_w, conv_b)
            [relu] t2 = Relu(t1)
            [pool] t3 = GlobalAveragePool(t2)
            [flat] t4 = Flatten(t3)
            [product] t5 = MatMul(t4, product_w)
            [relu2] t6 = Relu(t5)
            [classes] y = Gemm<transB=1>(t6, classes_w, classes_b)
        }""",
        conv_w=scaled(w.conv(8, 4, 3, 3), a), conv_b=w.bias(8) * a,
        product_w=scaled(w.conv(12, 8, gains=a), b).T,
        classes_w=w.conv(6, 12, gains=b), classes_b=w.bias(6),
    )  # fmt: skip


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", [AdaRoundConfig, AdaQuantConfig])
def test_each_layer_is_as_if_it_were_the_only_one(kind: type[AdaRoundConfig], solver: str) -> None:
    model = three_kinds()
    options = {**SOLVERS[solver], "learning_rate": 3e-3 if kind is AdaQuantConfig else 0.1, "keep_worse": True}
    plain = initializers(quantized(model, None)[0])
    together = initializers(quantized(model, kind(parallel=True, **options))[0])
    in_turn = initializers(quantized(model, kind(**options))[0])
    for op_type, name in (("Conv", "conv"), ("MatMul", "product"), ("Gemm", "classes")):
        by_itself, report = quantized(model, kind(target_op_type=[op_type], parallel=True, **options))
        assert [layer.name for layer in report.layers] == [name]
        for initializer, array in initializers(by_itself).items():
            if initializer.startswith(f"{name}_"):
                np.testing.assert_array_equal(together[initializer], array)
    for other in (plain, in_turn):
        assert any(not np.array_equal(together[name], other[name]) for name in together)


def alone(model: onnx.ModelProto, name: str, x: np.ndarray) -> np.ndarray:
    """What a node of the float model makes of an input of its own."""
    graph = onnx.GraphProto(name="alone")
    graph.node.extend(node for node in model.graph.node if node.name == name)
    (node,) = graph.node
    graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in node.input)
    graph.input.append(onnx.helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, None))
    graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None))
    whole = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, graph=graph)
    return run(whole, {node.input[0]: x})[0].astype(np.float64)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", MODELS)
def test_it_is_better_than_rounding_on_unseen_data(name: str, solver: str) -> None:
    """Towards the float graph's outputs each layer would make up for the errors that others make up for too."""
    model, unseen = MODELS[name](), samples(MODELS[name](), 64, seed=1)
    plain, tuned = (
        quantized(model, algorithm, count=100)[0]
        for algorithm in (None, AdaRoundConfig(parallel=True, **SOLVERS[solver]))
    )
    assert mean_squared_error(model, tuned, unseen) < 0.95 * mean_squared_error(model, plain, unseen)


def test_drop_ratio_has_no_effect() -> None:
    options: dict[str, Any] = {"parallel": True, **SOLVERS["gradient"]}
    mixed, report = quantized(three_kinds(), AdaRoundConfig(drop_ratio=0.5, **options))
    (line,) = (line for line in report.ignored if line.startswith("drop_ratio=0.5 has no effect"))
    assert "parallel=True" in line
    assert mixed.graph == quantized(three_kinds(), AdaRoundConfig(**options))[0].graph


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", ["separable", "conv1d"])
def test_the_errors_before_are_those_of_the_plain_model(name: str, solver: str) -> None:
    model = MODELS[name]()
    data = samples(model, COUNT)
    plain, _ = quantized(model, None)
    _, report = quantized(model, AdaRoundConfig(parallel=True, **SOLVERS[solver]))
    for layer in report.layers:
        (node,) = (node for node in plain.graph.node if node.name == layer.name)
        x, have = inner_tensors(plain, data, [node.input[0], node.output[0]]).values()
        want = alone(model, layer.name, x)
        error = np.moveaxis((have.astype(np.float64) - want) ** 2, 1, -1).sum(-1).mean()
        # 50 dB below the output, whose power is summed in float32
        assert np.average(np.nan_to_num(layer.before), weights=layer.rows) == pytest.approx(error, rel=1e-2)
        if layer.accepted:
            assert judged(layer)[1] < judged(layer)[0]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", MODELS)
def test_memory_levels_and_threads_give_the_same_model(name: str, solver: str) -> None:
    model, seen = MODELS[name](), []
    for level, threads in ((1, 1), (0, 1), (2, 1), (1, 2), (2, 5)):
        config = AdaRoundConfig(parallel=True, mem_opt_level=level, **SOLVERS[solver])
        tuned, report = quantized(model, config, threads=threads, count=70)
        layers = [(layer.name, layer.after[0], layer.candidate) for layer in report.layers]
        seen.append((tuned.SerializeToString(deterministic=True), layers))
    assert all(one == seen[0] for one in seen)


def test_reports_and_progress_come_in_the_order_of_the_graph(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    caplog.set_level(logging.INFO, "quark.onnx")
    _, report = quantized(separable_cnn(), AdaRoundConfig(parallel=True), threads=3)
    names = ["stem", "dw1", "pw1", "dw2", "pw2", "classes"]
    assert [layer.name for layer in report.layers] == names
    for index, name in enumerate(names, start=1):
        (line,) = [line for line in caplog.messages if line.startswith(f"Finetuning layers: {index} of 6, ")]
        assert line.endswith(name)


@pytest.mark.parametrize("parallel", [True, False])
def test_messages_come_from_the_callers_thread_in_the_order_of_the_graph(
    caplog: pytest.LogCaptureFixture, parallel: bool
) -> None:
    """A thread that logs waits for locks that an interrupted main thread may hold for ever."""
    caplog.set_level(logging.INFO, "quark.onnx")
    _, report = quantized(separable_cnn(), AdaRoundConfig(parallel=parallel, **SOLVERS["gradient"]), threads=3)
    assert {record.thread for record in caplog.records} == {threading.get_ident()}
    losses = [message.split(":")[0] for message in caplog.messages if ", loss " in message]
    assert losses == [f"layer {layer.name}" for layer in report.layers]


def test_a_foreign_model() -> None:
    model = separable_cnn()
    plain, _ = quantized(model, None)
    config = AdaRoundConfig(parallel=True)
    tuned, _ = quark.onnx.finetune(model, plain, None, Reader(samples(model, COUNT)), config)
    assert tuned.graph == quantized(model, config)[0].graph


def test_too_little_data_is_a_reason() -> None:
    _, report = quantized(separable_cnn(), AdaRoundConfig(parallel=True), count=2)
    assert len(report.layers) == 6
    assert all(layer.accepted or "too little data" in layer.reason for layer in report.layers)
    assert any(layer.reason for layer in report.layers)


# ---- an error, or Ctrl-C -----------------------------------------------------------------------


class Place:
    """Where files could be left."""

    def __init__(self, folder: Path) -> None:
        self.output, self.cache = folder / "q.onnx", folder / "cache"
        self.options: dict[str, Any] = {"parallel": True, "mem_opt_level": 2, "cache_dir": self.cache}

    def quantize(self, config: AdaRoundConfig, *, threads: int = 2) -> None:
        quantizer = ModelQuantizer(QConfig(LAYER, algo_config=[config], extra_options={"NumThreads": threads}))
        model = separable_cnn()
        quantizer.quantize_model(model, self.output, Reader(samples(model, COUNT)))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Checks that nothing is left behind: no file, no thread."""
    threads, place = threading.active_count(), Place(tmp_path)
    yield place
    assert [path for path in tmp_path.rglob("*") if path != place.cache] == []
    assert threading.active_count() == threads


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_ends_the_layers_that_are_still_being_solved(place: Place, threads: int) -> None:
    """One of several endless layers fails."""
    calls = list[float]()

    def rate(error: float) -> float:
        calls.append(error)
        if len(calls) == threads:
            raise LookupError("no such rate")
        return 0.1

    with pytest.raises(LookupError, match="no such rate"):
        place.quantize(AdaRoundConfig(lr_adjust=rate, **place.options, **ENDLESS), threads=threads)


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """Sends this process a real signal soon, whose handler does what Python's does for Ctrl-C."""
    old = signal.signal(signal.SIGALRM, signal.default_int_handler)
    yield lambda: signal.setitimer(signal.ITIMER_REAL, 0.1)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, old)


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_while_layers_are_solved(place: Place, ctrl_c: Callable[[], None], threads: int) -> None:
    started = threading.Event()

    def rate(_: float) -> float:
        started.set()
        return 0.1

    def soon() -> None:
        started.wait()
        ctrl_c()

    waiting = threading.Thread(target=soon)
    waiting.start()
    with pytest.raises(KeyboardInterrupt):
        place.quantize(AdaRoundConfig(lr_adjust=rate, **place.options, **ENDLESS), threads=threads)
    waiting.join()


@pytest.mark.parametrize("layer", [1, 3, 6])
def test_an_error_at_any_layer(place: Place, layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    advance, shown = progress.PhaseProgress.advance, list[str]()

    def interrupted(self: progress.PhaseProgress, done: int = 1, note: str = "") -> None:
        advance(self, done, note)
        if self._title == "Finetuning layers":
            shown.append(note)
            if len(shown) == layer:
                raise KeyboardInterrupt

    monkeypatch.setattr(progress.PhaseProgress, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        place.quantize(AdaRoundConfig(**place.options))
    assert len(shown) == layer
