"""CLEConfig and BiasCorrectionConfig alone, together, and before AdaRound and AdaQuant."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from reference.inner_tensors import inner_tensors
from small_models import (
    MODELS,
    Reader,
    Weights,
    build,
    embedding,
    fitted,
    mean_squared_error,
    mlp,
    samples,
    separable_cnn,
)

from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    AlgoConfig,
    BiasCorrectionConfig,
    CLEConfig,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    UInt8Spec,
    finetune,
)
from quark.onnx.config.spec import CalibMethod
from quark.onnx.errors import ConfigError, DataError, UnsupportedError
from quark.onnx.layers.equalise import PairReport
from quark.onnx.preparation.prepare import prepare
from quark.onnx.quantization import equalised_model
from quark.onnx.report.report import Report

pytestmark = pytest.mark.sets_apart

LAYER = QLayerConfig(UInt8Spec(), weight=Int8Spec(calibration_method=CalibMethod.MinMax))
SAMPLES, HOLDOUT = 40, 5
CLE = CLEConfig(cle_steps=-1)


def quantize(model: onnx.ModelProto, *algorithms: AlgoConfig, threads: int = 1) -> tuple[onnx.ModelProto, Report]:
    quantizer = ModelQuantizer(QConfig(LAYER, algo_config=algorithms, extra_options={"NumThreads": threads}))
    quantized = quantizer.quantize_model(model, None, Reader(samples(model, SAMPLES)))
    assert quantizer.report is not None
    return quantized, quantizer.report


def bits(model: onnx.ModelProto) -> bytes:
    return model.graph.SerializeToString(deterministic=True)


@pytest.mark.parametrize("finetuning", [None, AdaRoundConfig(), AdaQuantConfig(solver="least_squares")])
@pytest.mark.parametrize("others", [(CLE,), (BiasCorrectionConfig(),), (CLE, BiasCorrectionConfig())])
def test_combinations(others: tuple[AlgoConfig, ...], finetuning: AlgoConfig | None) -> None:
    model = separable_cnn()
    algorithms = (*others, *([finetuning] if finetuning else []))
    quantized, report = quantize(model, *algorithms)
    arrays = samples(model, 100, seed=1)
    plain = mean_squared_error(model, quantize(model)[0], arrays)
    assert mean_squared_error(model, quantized, arrays) < plain / 4
    assert bool(report.pairs) is (CLE in others)
    assert bool(report.corrections) is (BiasCorrectionConfig() in others)
    assert bool(report.layers) is (finetuning is not None)
    assert report.algorithm == (type(finetuning).name if finetuning else None)
    for order in itertools.permutations(algorithms):
        assert bits(quantize(model, *order)[0]) == bits(quantized)


@pytest.mark.parametrize("name", MODELS)
def test_equalised_models_are_no_worse(name: str) -> None:
    """All of them have channels of very different ranges."""
    model = MODELS[name]()
    arrays = samples(model, 100, seed=1)
    plain, equalised = (mean_squared_error(model, quantize(model, *a)[0], arrays) for a in ((), (CLE,)))
    assert equalised < plain


def test_the_report_names_pairs_and_corrections(tmp_path: Path) -> None:
    _, report = quantize(mlp(), CLEConfig(), BiasCorrectionConfig(keep_worse=True))
    first, second = report.pairs
    assert (first.head, first.tail, first.channels, first.reason) == ("first", "second", 24, "")
    assert 0 < first.factors[0] < 1 < first.factors[1]
    assert second.reason.startswith("Unsqueeze 'expand' in between")
    assert [layer.name for layer in report.corrections] == ["first", "second"]
    assert [(layer.node, layer.reason) for layer in report.uncorrected] == [("third", "it has no bias")]
    assert report.end_to_end is not None
    written = json.loads(report.to_json(tmp_path / "report.json"))
    assert written["pairs"][0]["tail"] == "second"
    assert written["corrections"][1]["name"] == "second"
    for text in ("Cross-layer equalisation", "24 of 24 channels", "Unsqueeze", "Bias correction", "it has no bias"):
        assert text in report.full(300)


def test_what_has_no_effect_is_said() -> None:
    text = "(float[N,3] x) => (float[N,2] y) { [only] y = MatMul(x, w) }"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {text}')
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(3, 2, dtype=np.float32), "w"))
    _, report = quantize(model, CLEConfig(), BiasCorrectionConfig())
    assert [line.split(":")[0] for line in report.warnings] == [
        "CLEConfig has no effect", "BiasCorrectionConfig has no effect",
    ]  # fmt: skip
    assert bits(quantize(embedding(), BiasCorrectionConfig())[0]) == bits(quantize(embedding())[0])


def test_an_equalisation_that_moves_the_outputs_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = equalised_model.equalise

    def wrong(*arguments: object) -> object:
        model, pairs = genuine(*arguments)
        tensor = next(t for t in model.graph.initializer if t.name == "pw1_w")
        tensor.CopyFrom(onnx.numpy_helper.from_array(1.01 * onnx.numpy_helper.to_array(tensor), tensor.name))
        return model, pairs

    monkeypatch.setattr(equalised_model, "equalise", wrong)
    quantized, report = quantize(separable_cnn(), CLEConfig())
    assert bits(quantized) == bits(quantize(separable_cnn())[0])
    assert all(pair.reason.startswith("undone") for pair in report.pairs)
    assert any("equalisation was undone" in line for line in report.warnings)


@pytest.fixture
def unequal(monkeypatch: pytest.MonkeyPatch) -> onnx.ModelProto:
    """A model whose ranges an equalisation that is no good sets apart by 1024; what it computes stays."""
    w = Weights(5)
    text = "(float[N,8] x) => (float[N,4] y) { [a] h = Gemm<transB=1>(x, a_w, a_b) r = Relu(h) [b] y = MatMul(r, b_w) }"

    def wrong(model: onnx.ModelProto, *_: object) -> tuple[onnx.ModelProto, tuple[PairReport, ...]]:
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        for tensor in changed.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[0] *= 2.0 ** (-10 if tensor.name == "b_w" else 10)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return changed, (PairReport(head="a", tail="b", channels=16, scaled=1, factors=(2.0**-10, 1.0)),)

    monkeypatch.setattr(equalised_model, "equalise", wrong)
    return build(text, a_w=w.conv(16, 8), a_b=w.bias(16), b_w=w.conv(16, 4))


@pytest.mark.parametrize(
    "others", [(), (BiasCorrectionConfig(),), (AdaRoundConfig(),), (AdaRoundConfig(mem_opt_level=2),)], ids=str
)
def test_an_equalisation_that_makes_the_model_worse_is_undone(
    unequal: onnx.ModelProto, others: tuple[AlgoConfig, ...]
) -> None:
    quantized, report = quantize(unequal, CLEConfig(), *others)
    assert bits(quantized) == bits(quantize(unequal, *others)[0])
    (pair,) = report.pairs
    assert pair.reason.startswith("undone: the quantized model is worse with it on the 5 samples compared")
    (warning,) = (line for line in report.warnings if "equalisation was undone" in line)
    assert "more than chance" in warning
    assert report.samples == SAMPLES


def test_keep_worse_keeps_an_equalisation(unequal: onnx.ModelProto) -> None:
    arrays = samples(unequal, 100, seed=1)
    kept, report = quantize(unequal, CLEConfig(keep_worse=True))
    undone, _ = quantize(unequal, CLEConfig())
    assert not report.pairs[0].reason
    assert mean_squared_error(unequal, kept, arrays) > 10 * mean_squared_error(unequal, undone, arrays)


@pytest.mark.parametrize("finetuning", [(), (AdaRoundConfig(),)], ids=str)
def test_an_equalisation_that_is_good_is_not_touched_by_the_judgement(finetuning: tuple[AlgoConfig, ...]) -> None:
    model = separable_cnn()
    kept, report = quantize(model, CLEConfig(keep_worse=True), *finetuning)
    judged, also = quantize(model, CLEConfig(), *finetuning)
    assert bits(judged) == bits(kept)
    assert (also.pairs, also.end_to_end, also.warnings) == (report.pairs, report.end_to_end, report.warnings)


def test_a_bound_has_the_spec_of_the_clip() -> None:
    other = QLayerConfig(input_tensors=Int8Spec(symmetric=False))
    config = QConfig(LAYER, algo_config=[CLEConfig()], specific_layer_config={other: ["pw1"]})
    model = separable_cnn()
    quantized = ModelQuantizer(config).quantize_model(model, None, Reader(samples(model, 10)))
    types = {t.name: t.data_type for t in quantized.graph.initializer}
    made = {name: node for node in quantized.graph.node for name in node.output}
    first, second = (node for node in quantized.graph.node if node.op_type == "Min")
    readers = {name: node for node in quantized.graph.node for name in node.input}
    for bound, wanted in ((first, onnx.TensorProto.INT8), (second, onnx.TensorProto.UINT8)):
        before, behind = made[bound.input[0]], readers[bound.output[0]]
        assert [node.op_type for node in (before, behind)] == ["DequantizeLinear", "QuantizeLinear"]
        assert [types[node.input[2]] for node in (before, behind)] == [wanted, wanted]


def test_a_failed_run_leaves_nothing(tmp_path: Path) -> None:
    model, path = separable_cnn(), tmp_path / "quantized.onnx"
    before = bits(model)

    class Failing(Reader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            item = super().get_next()
            return item if item is not None else {"x": np.full((1, 3, 8, 8), np.nan, np.float32)}

    quantizer = ModelQuantizer(QConfig(LAYER, algo_config=[CLE, BiasCorrectionConfig()]))
    with pytest.raises(DataError):
        quantizer.quantize_model(model, path, Failing(samples(model, 4)))
    assert (list(tmp_path.iterdir()), quantizer.report, bits(model)) == ([], None, before)


@pytest.mark.parametrize("algorithm", [AdaRoundConfig, AdaQuantConfig])
def test_threads_and_memory_levels_give_the_same_bits(algorithm: type[AdaRoundConfig | AdaQuantConfig]) -> None:
    model = separable_cnn()
    both = (CLE, BiasCorrectionConfig())
    found = {
        bits(quantize(model, *both, algorithm(mem_opt_level=level, solver="least_squares"), threads=threads)[0])
        for level, threads in ((0, 1), (1, 1), (1, 3), (2, 2))
    }
    assert len(found) == 1
    assert len({bits(quantize(model, *both, threads=threads)[0]) for threads in (1, 3)}) == 1


def test_biases_take_up_the_mean_error() -> None:
    """Layer by layer, against NumPy: what the layer gives on the corrected model's inputs, less what it should give."""
    model = separable_cnn()
    float_model, arrays = prepare(model), fitted(samples(model, SAMPLES))
    count = len(arrays["x"])
    plain, (corrected, report) = quantize(model)[0], quantize(model, BiasCorrectionConfig(keep_worse=True))
    names = [node.output[0] for node in float_model.graph.node if node.op_type in ("Conv", "Gemm")]
    want = inner_tensors(float_model, arrays, names)
    values = {name: _biases(quantized) for name, quantized in (("old", plain), ("new", corrected))}
    held_out = np.arange(count) % HOLDOUT == HOLDOUT - 1
    improved = 0
    nodes = {node.name: node for node in corrected.graph.node}
    outputs = {layer: nodes[layer].output[0] for layer in values["old"]}
    have = inner_tensors(corrected, arrays, outputs.values())
    for layer, target in zip(values["old"], names, strict=True):
        (old, scale), (new, _) = values["old"][layer], values["new"][layer]
        y, z = (a.reshape(*a.shape[:2], -1).astype(np.float64) for a in (want[target], have[outputs[layer]]))
        error = y - z + ((new - old) * scale)[:, None]  # before the correction
        best = np.rint(old + error[~held_out].mean(axis=(0, 2)) / scale)
        squares = [((error - ((b - old) * scale)[:, None])[held_out] ** 2).mean(axis=(0, 2)) for b in (old, best)]
        gain = squares[0] - squares[1]
        clear = np.abs(gain) > 1e-6 * squares[0]
        np.testing.assert_array_equal(new[clear], np.where(gain > 0, best, old)[clear])
        improved += int((new != old).sum())
    assert improved == sum(layer.improved for layer in report.corrections) > 0
    ours = {t.name: t for t in corrected.graph.initializer}
    changed = {t.name for t in plain.graph.initializer if t.raw_data != ours[t.name].raw_data}
    assert changed <= {f"{name}_b_quantized" for name in values["old"]}


def _biases(model: onnx.ModelProto) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Integers and scales of each layer's bias."""
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            integers, scale = made[node.input[2]].input[:2]
            found[node.name] = constants[integers].astype(np.float64), constants[scale].astype(np.float64)
    return found


def test_the_gradient_loop_keeps_the_corrected_biases() -> None:
    model, loop = separable_cnn(), AdaRoundConfig(solver="gradient", num_iterations=20)
    corrected, tuned = quantize(model, BiasCorrectionConfig())[0], quantize(model, BiasCorrectionConfig(), loop)[0]
    first = "stem"  # the layers behind are fed by tuned ones, yet their biases stay too
    np.testing.assert_array_equal(_biases(tuned)[first][0], _biases(corrected)[first][0])
    for name, (integers, _) in _biases(corrected).items():
        np.testing.assert_array_equal(_biases(tuned)[name][0], integers)


def test_finetune_corrects_biases_and_does_not_equalise() -> None:
    model = separable_cnn()
    plain, reader = quantize(model)[0], Reader(samples(model, SAMPLES))
    tuned, report = finetune(
        model, plain, None, reader, QConfig(LAYER, algo_config=[BiasCorrectionConfig(), AdaRoundConfig()])
    )
    assert report.corrections
    assert bits(tuned) == bits(quantize(model, BiasCorrectionConfig(), AdaRoundConfig())[0])
    config = QConfig(LAYER, algo_config=[CLEConfig(), AdaRoundConfig()])
    with pytest.raises(UnsupportedError, match=r"leave it out of finetune\(\)"):
        finetune(model, plain, None, Reader(samples(model, SAMPLES)), config)


def test_configurations_that_make_no_sense() -> None:
    with pytest.raises(UnsupportedError, match=r"ref_model_path.*None with CLEConfig"):
        ModelQuantizer(QConfig(LAYER, algo_config=[CLEConfig(), AdaRoundConfig(ref_model_path="other.onnx")]))
    with pytest.raises(ConfigError, match="CLEConfig once"):
        QConfig(LAYER, algo_config=[CLEConfig(), CLEConfig(cle_steps=2)])
    for wrong in ({"cle_balance_method": "min"}, {"cle_steps": 0}, {"cle_weight_threshold": -1.0}):
        with pytest.raises(ConfigError, match=f"CLEConfig.{next(iter(wrong))}"):
            CLEConfig(**wrong)
