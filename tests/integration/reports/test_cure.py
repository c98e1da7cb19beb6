"""`cure` and `quark-onnx doctor --cure`: what the doctor recommends is in the file, and computes what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import Arrays, Reader, build, initializers, run, samples, separable_cnn

from quark.onnx import (
    CuredModel,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    QTensorConfig,
    UInt8Spec,
    cure,
)
from quark.onnx.cli.main import main
from quark.onnx.config.algorithm import TUNABLE_OP_TYPES
from quark.onnx.diagnosis.cured_model import CHANNEL, FLOAT, WIDE, ChosenCure, cured_model
from quark.onnx.inference.sessions import Engine
from quark.onnx.plan.build import build_plan
from quark.onnx.sensitivity.switched_model import switched_model
from quark.onnx.sensitivity.weight_switch import weight_switches


def quantized(model: onnx.ModelProto, data: Arrays, activation: QTensorConfig | None = None) -> onnx.ModelProto:
    layer = QLayerConfig(activation or UInt8Spec(), weight=Int8Spec())
    config = QConfig(layer, QuantizeAllOpTypes=True, MaxFloatShare=0.0)
    return ModelQuantizer(config).quantize_model(model, None, Reader(data))


def error(want: np.ndarray, have: np.ndarray) -> float:
    return float(((have - want).astype(np.float64) ** 2).mean() / want.astype(np.float64).var())


def two_scales(opset: int = 17) -> onnx.ModelProto:
    """Values of some hundreds beside values below 1 in one output."""
    random = np.random.default_rng(0)
    return build(
        """(float[N,8] x) => (float[N,8] y) {
            [large] a = Gemm(x, a_w, a_b) [small] b = Gemm(x, b_w, b_b) [joint] y = Concat<axis=1>(a, b)
        }""",
        opset=opset,
        a_w=300 * random.normal(size=(8, 4)), a_b=random.normal(size=4),
        b_w=0.1 * random.normal(size=(8, 4)), b_b=0.1 * random.normal(size=4),
    )  # fmt: skip


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("activation", [UInt8Spec(), Int8Spec(), Int8Spec(symmetric=False)], ids=repr)
def test_16_bits_take_the_harm_away(opset: int, activation: QTensorConfig, tmp_path: Path) -> None:
    model = two_scales(opset)
    data = samples(model, 64)
    q = quantized(model, data, activation)
    path = tmp_path / "cured.onnx"
    found = cure(model, q, path, data)
    assert isinstance(found, CuredModel)
    assert not found.refused
    assert found.held_out
    assert found.wide_share > 0
    few = {name: array[16:32] for name, array in data.items()}
    (want,), (before,), (after,) = run(model, few), run(q, few), run(onnx.load(path), few)
    small = slice(4, 8)
    assert error(want[:, small], after[:, small]) < 0.02 * error(want[:, small], before[:, small])


def test_floats_and_channels_are_what_the_switched_model_computes() -> None:
    """Every quantizer in turn, against the float model with all others on."""
    model = separable_cnn()
    data = samples(model, 12)
    q = quantized(model, data)
    engine = Engine(1)
    weights = weight_switches(model, q, build_plan(model, q, TUNABLE_OP_TYPES).layers, data, engine)
    activations = switched_model(model, q).switches
    for switch in activations:
        for name in (FLOAT, WIDE):
            have = cured_model(model, q, [ChosenCure(switch, name)])
            onnx.checker.check_model(have)
            kinds = [node.op_type for node in have.graph.node].count("QuantizeLinear")
            before = [node.op_type for node in q.graph.node].count("QuantizeLinear")
            assert kinds == before - (len(switch.tensors) if name == FLOAT else 0)
    for switch in weights:
        wide = cured_model(model, q, [ChosenCure(switch, FLOAT)])
        onnx.checker.check_model(wide)
        node = next(node for node in wide.graph.node if node.name == switch.name)
        np.testing.assert_allclose(exposed(wide, node.input[switch.inputs[0]], data), switch.real[0], rtol=0, atol=1e-3)
        finer = cured_model(model, q, [ChosenCure(switch, CHANNEL)])
        onnx.checker.check_model(finer)
        node = next(node for node in finer.graph.node if node.name == switch.name)
        scale = next(n for n in finer.graph.node if n.output[0] == node.input[switch.inputs[0]]).input[1]
        step = initializers(finer)[scale]
        assert step.shape == (switch.real[0].shape[0],)
        values = exposed(finer, node.input[switch.inputs[0]], data)
        assert (np.abs(values - switch.real[0]) <= 0.501 * step.reshape(-1, *[1] * (values.ndim - 1))).all()


def exposed(model: onnx.ModelProto, tensor: str, data: Arrays) -> np.ndarray:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.add(name=tensor)
    return run(copy, data)[0]


def test_all_cures_at_once_are_the_float_model() -> None:
    model = separable_cnn()
    data = samples(model, 4)
    q = quantized(model, data)
    weights = weight_switches(model, q, build_plan(model, q, TUNABLE_OP_TYPES).layers, data, Engine(1))
    everything = [*switched_model(model, q).switches, *weights]
    have = cured_model(model, q, [ChosenCure(switch, FLOAT) for switch in everything])
    assert "QuantizeLinear" not in {node.op_type for node in have.graph.node}
    np.testing.assert_allclose(run(have, data)[0], run(model, data)[0], atol=1e-3)


def exact_model() -> tuple[onnx.ModelProto, Arrays]:
    """Quantization changes nothing: there is no error to take away."""
    model = build("(float[N,4] x) => (float[N,4] y) { [layer] y = MatMul(x, w) }", w=np.eye(4))
    data = {"x": np.random.default_rng(0).integers(0, 256, (40, 4)).astype(np.float32)}
    data["x"][:, 0] = [0, 255] * 20
    return model, data


def test_a_model_that_nothing_helps_is_not_written(tmp_path: Path) -> None:
    model, data = exact_model()
    q = quantized(model, data)
    path = tmp_path / "cured.onnx"
    found = cure(model, q, path, data)
    assert isinstance(found, CuredModel)
    assert found.refused
    assert not path.exists()
    same, found = cure(model, q, None, data)
    assert same.graph == q.graph
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = two_scales()
    data = samples(model, 64)
    for name, one in (("float", model), ("int8", quantized(model, data))):
        onnx.save(one, tmp_path / f"{name}.onnx")
    np.savez(tmp_path / "data.npz", **data)
    models = [str(tmp_path / f"{name}.onnx") for name in ("float", "int8")]
    arguments = ["doctor", *models, "--data", str(tmp_path / "data.npz"), "--cure", str(tmp_path / "out.onnx")]
    assert main(arguments) == 0
    assert "The cured model is written" in capsys.readouterr().out
    assert (tmp_path / "out.onnx").exists()


def test_the_command_ends_with_1_where_nothing_helps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = exact_model()
    for name, one in (("float", model), ("int8", quantized(model, data))):
        onnx.save(one, tmp_path / f"{name}.onnx")
    np.savez(tmp_path / "data.npz", **data)
    models = [str(tmp_path / f"{name}.onnx") for name in ("float", "int8")]
    assert main(["doctor", *models, "--data", str(tmp_path / "data.npz"), "--cure", str(tmp_path / "out.onnx")]) == 1
    assert "nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "out.onnx").exists()
