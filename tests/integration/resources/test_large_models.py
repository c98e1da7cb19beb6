"""Models beyond protobuf's limit, here some hundred bytes: never serialized whole, and quantized to the same bits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from foreign import in_floats, statically_quantized, with_constant_nodes
from onnx import numpy_helper
from small_models import (
    MODELS,
    Arrays,
    Reader,
    Weights,
    build,
    initializers,
    mean_squared_error,
    run,
    samples,
    separable_cnn,
)

from quark.onnx import AdaRoundConfig, Int4Spec, Int8Spec, ModelQuantizer, QConfig, QLayerConfig, UInt8Spec, finetune
from quark.onnx.inference import large_models
from quark.onnx.model_files.model_file import load_model
from quark.onnx.model_files.saved_model import save_model
from quark.onnx.preparation.prepare import prepare

LIMIT, LARGE = 700, 40
TOOLS = ((onnx.shape_inference, "infer_shapes"), (onnx.version_converter, "convert_version"),
         (onnx.inliner, "inline_local_functions"), (onnxruntime, "InferenceSession"))  # fmt: skip


def bytes_inside(model: onnx.ModelProto | bytes | str) -> int:
    if isinstance(model, bytes):
        model = onnx.load_from_string(model)
    elif isinstance(model, str):
        model = onnx.load(model, load_external_data=False)
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


@contextmanager
def small_limit() -> Iterator[None]:
    """Nothing serialized in here may hold as many bytes of tensors."""
    seen: list[int] = []

    def watched(tool: Callable[..., object]) -> Callable[..., object]:
        def call(model: onnx.ModelProto | bytes, *arguments: object, **options: object) -> object:
            seen.append(bytes_inside(model))
            return tool(model, *arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_models, "_LIMIT", LIMIT)
        patch.setattr(large_models, "_LARGE", LARGE)
        for module, name in TOOLS:
            patch.setattr(module, name, watched(getattr(module, name)))
        yield
    assert len(seen) > 2
    assert max(seen) < LIMIT


def quantize(model: onnx.ModelProto | Path, data: Arrays, output: Path | None = None, **options: object) -> object:
    config = QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), algo_config=[AdaRoundConfig()], **options)
    return ModelQuantizer(config).quantize_model(model, output, Reader(data))


def same(a: onnx.ModelProto, b: onnx.ModelProto) -> None:
    """Node by node; the order of initializers does not matter."""
    assert list(a.graph.node) == list(b.graph.node)
    one, other = initializers(a), initializers(b)
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


@pytest.fixture(scope="module", params=sorted(MODELS))
def case(request: pytest.FixtureRequest) -> tuple[onnx.ModelProto, Arrays, onnx.ModelProto]:
    """A model, its data, and what becomes of it without such a limit."""
    model = MODELS[request.param]()
    data = samples(model, 24)
    return model, data, quantize(model, data)


def test_the_same_comes_out(case: tuple[onnx.ModelProto, Arrays, onnx.ModelProto], tmp_path: Path) -> None:
    model, data, expected = case
    save_model(model, tmp_path / "float.onnx", external_data=True)
    with small_limit():
        from_memory = quantize(model, data)
    with small_limit():
        quantize(tmp_path / "float.onnx", data, tmp_path / "q.onnx", use_external_data_format=True)
    same(from_memory, expected)
    same(load_model(tmp_path / "q.onnx", role="result"), expected)
    np.testing.assert_array_equal(
        run(str(tmp_path / "q.onnx"), data, optimise=True)[0], run(expected, data, optimise=True)[0]
    )


def test_tensors_of_four_bits() -> None:
    model = build("(float[N,63] x) => (float[N,65] y) { y = MatMul(x, w) }", w=Weights(0).conv(63, 65))
    data = samples(model, 24)
    config = QConfig(QLayerConfig(UInt8Spec(), weight=Int4Spec()), algo_config=[AdaRoundConfig(selective_update=True)])
    expected = ModelQuantizer(config).quantize_model(model, None, Reader(data))
    with small_limit():
        result = ModelQuantizer(config).quantize_model(model, None, Reader(data))
    same(result, expected)


def test_a_result_beyond_the_limit_is_saved_beside(tmp_path: Path) -> None:
    """Nobody asked for external data, but nothing else can hold the result."""
    model = build("(float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }", w=Weights(0).conv(64, 64))
    data = samples(model, 24)
    with small_limit():
        quantize(model, data, tmp_path / "q.onnx")
    model_file, data_file = sorted(p.name for p in tmp_path.iterdir())
    assert model_file == "q.onnx"
    assert re.fullmatch(r"q\.onnx\.[0-9a-f]{16}\.data", data_file)
    assert bytes_inside(str(tmp_path / "q.onnx")) < 100
    assert mean_squared_error(model, load_model(tmp_path / "q.onnx", role="result"), data) < 0.1


def test_a_model_that_another_tool_quantized(tmp_path: Path) -> None:
    model = separable_cnn()
    data = samples(model, 24)
    static = statically_quantized(model, data)
    expected, _ = finetune(model, static, None, Reader(data), AdaRoundConfig())
    for name, proto in (("float", model), ("static", static)):
        save_model(proto, tmp_path / f"{name}.onnx", external_data=True)
    paths = tmp_path / "float.onnx", tmp_path / "static.onnx"
    with small_limit():
        result, report = finetune(*paths, None, Reader(data), AdaRoundConfig())
    same(result, expected)
    assert not report.skipped


@pytest.mark.parametrize("options", [{"parallel": True}, {"mem_opt_level": 2}, {"selective_update": True}], ids=str)
def test_every_session_of_a_finetuning(options: dict[str, object]) -> None:
    model = separable_cnn()
    data = samples(model, 24)
    config = QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), algo_config=[AdaRoundConfig(**options)])
    expected = ModelQuantizer(config).quantize_model(model, None, Reader(data))
    with small_limit():
        result = ModelQuantizer(config).quantize_model(model, None, Reader(data))
    same(result, expected)


def test_old_float16_models_of_functions_and_constant_nodes() -> None:
    """All that prepare() does to a model, before its tensors are initializers of float32."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 11, "mine": 1]>
        g (float16[N,16] x) => (float16[N,8] y) { h = mine.linear(x, w) y = Relu(h) }
        <opset_import: ["": 11], domain: "mine">
        linear (a, b) => (c) { c = MatMul(a, b) }"""
    )
    weight = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float16)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((32, 16)), "unused"))
    assert bytes_inside(model) > LIMIT
    with small_limit():
        result = prepare(with_constant_nodes(model))
    assert [node.op_type for node in result.graph.node] == ["Cast", "MatMul", "Relu", "Cast"]
    np.testing.assert_array_equal(initializers(result)["w"], weight.astype(np.float32))
    assert set(initializers(result)) == {"w"}
    x = np.random.default_rng(1).standard_normal((3, 16)).astype(np.float16)
    expected = np.maximum(x.astype(np.float32) @ weight.astype(np.float32), 0)
    np.testing.assert_allclose(run(result, {"x": x})[0], expected, rtol=1e-2, atol=1e-2)


def test_doubles() -> None:
    model = separable_cnn()
    data = {name: array.astype(np.float64) for name, array in samples(model, 24).items()}
    with small_limit():
        quantized = quantize(in_floats(model, onnx.TensorProto.DOUBLE), data)
    assert run(quantized, data)[0].dtype == np.float64
