"""What the extra options do, through ModelQuantizer; and that docs/compatibility.md knows every one of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from quantized_tensors import QuantizedModel
from small_models import Reader, build, mean_squared_error, mlp, residual_cnn, samples, separable_cnn

from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    AlgoConfig,
    BiasCorrectionConfig,
    CalibMethod,
    ConfigError,
    ConfigTypeError,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    QuantType,
    Report,
    UInt8Spec,
    UnsupportedError,
)
from quark.onnx.config.extra_options import (
    FIXED_OPTIONS,
    MEANINGLESS_OPTIONS,
    ExtraOptions,
    known_options,
)
from quark.onnx.config.validate import checks

pytestmark = pytest.mark.sets_apart

LAYER = QLayerConfig(UInt8Spec(calibration_method=CalibMethod.MinMax), weight=Int8Spec())
DOCS = Path(__file__).parents[3] / "docs" / "compatibility.md"


def quantize(
    model: onnx.ModelProto, options: dict[str, Any], algorithms: list[AlgoConfig] | None = None, *, count: int = 24
) -> tuple[onnx.ModelProto, Report]:
    quantizer = ModelQuantizer(QConfig(LAYER, algo_config=algorithms, extra_options=options))
    result = quantizer.quantize_model(model, None, Reader(samples(model, count), batch=4))
    onnx.checker.check_model(result, full_check=True)
    assert mean_squared_error(model, result, samples(model, 16, seed=1)) < 0.3
    return result, quantizer.report


def tensors(model: onnx.ModelProto, **options: Any) -> QuantizedModel:
    return QuantizedModel(quantize(model, options)[0])


def test_more_op_types() -> None:
    model = separable_cnn()
    assert tensors(model).output("flat") == tensors(model).input("classes")
    only = tensors(model, OpTypesToQuantize=["Conv"])
    assert only.input("classes", 1) is None
    more = tensors(model, OpTypesToQuantize=["Conv"], ExtraOpTypesToQuantize=["Gemm"])
    assert more.input("classes", 1) is not None
    assert more.output("pool") is None
    every = tensors(model, QuantizeAllOpTypes=True)
    assert every.output("pool") is not None
    assert every.scale("classes") == every.scale("flat")


@pytest.mark.parametrize("option", ["OpTypesToQuantize", "ExtraOpTypesToQuantize"])
def test_an_op_type_that_is_none(option: str) -> None:
    with pytest.raises(ConfigError, match=rf"extra_options\['{option}'\]: got 'Matmul', .* did you mean 'MatMul'"):
        quantize(mlp(), {option: ["Matmul"]})


def test_only_some_nodes() -> None:
    found = tensors(separable_cnn(), NodesToQuantize=["pw1", "pw2"])
    quantized = {node for node in ("stem", "dw1", "pw1", "dw2", "pw2", "classes") if found.input(node, 1) is not None}
    assert quantized == {"pw1", "pw2"}
    with pytest.raises(ConfigError, match=r"\['NodesToQuantize'\]: got 'pw3', expected the name of a node; did you me"):
        quantize(separable_cnn(), {"NodesToQuantize": ["pw1", "pw3"]})


def test_products_of_two_activations_may_stay_in_float() -> None:
    model = build(
        """(float[N,4,6] x) => (float[N,4,4] y) {
            [first] a = MatMul(x, w) [turn] b = Transpose<perm=[0,2,1]>(x) [scores] y = MatMul(a, b)
        }""",
        w=np.random.default_rng(0).standard_normal((6, 6)),
    )
    assert tensors(model).input("scores", 1) is not None
    const = tensors(model, MatMulConstBOnly=True)
    assert const.input("first", 1) is not None
    assert const.output("scores") is None


def test_views_of_what_nobody_quantizes() -> None:
    model = build("(float[N,4,6] x) => (float[N,6,4] y) { [turn] y = Transpose<perm=[0,2,1]>(x) }")
    assert tensors(model).input("turn") is None
    forced = tensors(model, ForceQuantizeNoInputCheck=True)
    assert forced.input("turn").kind == forced.output("turn").kind == "uint8"


@pytest.mark.parametrize("algorithms", [[], [AdaRoundConfig()]])
def test_biases_in_float(algorithms: list[AlgoConfig]) -> None:
    model = residual_cnn()
    result, _ = quantize(model, {"QuantizeBias": False}, algorithms)
    found = QuantizedModel(result)
    assert found.input("stem", 2) is None
    bias, given = found.constants["stem_b"], QuantizedModel(model).constants["stem_b"]
    assert bias.dtype == np.float32
    np.testing.assert_allclose(bias, given, atol=0.02 * np.ptp(given))  # it makes up for the rounding of the weight
    assert found.input("stem", 1) is not None


def test_biases_of_the_type_of_the_weight() -> None:
    found = tensors(residual_cnn(), Int32Bias=False)
    bias = found.input("stem", 2)
    assert (bias.kind, bias.scales, bias.symmetric) == ("int8", 1, True)
    assert found.scale("stem", 2) != found.scale("stem", 0) * found.scale("stem", 1)
    with pytest.raises(ConfigError, match="QuantizeBias is False"):
        quantize(residual_cnn(), {"Int32Bias": False, "QuantizeBias": False})


def test_overrides_of_single_tensors() -> None:
    """As onnxruntime's option of this name; they stand above all specs."""
    model = residual_cnn()
    config = QConfig(
        LAYER,
        {QLayerConfig(weight=UInt8Spec(), input_tensors=Int8Spec()): ["conv2", "conv3"]},
        extra_options={
            "TensorQuantOverrides": {
                "conv2_w": [{"quant_type": QuantType.QInt8, "axis": 0}],
                "r1": [{"quant_type": "QUInt8", "symmetric": False}],
                "r2": [{"scale": np.float32(0.25), "zero_point": 3}],
                "s": [{"rmin": -4.0, "rmax": 4.0}],
                "product_w": [{"scale": 0.125, "zero_point": 7}],
                "r3": [{"quant_type": QuantType.QInt8}],
            }
        },
    )
    assert QConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    found = QuantizedModel(ModelQuantizer(config).quantize_model(model, None, Reader(samples(model, 24))))
    weight = found.input("conv2", 1)
    assert (weight.kind, weight.scales, weight.axis) == ("int8", 8, 0)
    assert (found.input("conv2").kind, found.input("conv2").zero) == ("uint8", (0,))
    assert (found.input("conv3").zero, found.scale("conv3")) == ((3,), np.float32(0.25))
    assert found.scale("product", 1) == np.float32(0.125)
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    expected = np.clip(np.rint(values["product_w"] / 0.125) + 7, -128, 127)
    np.testing.assert_array_equal(found.integers("product"), expected)
    assert found.input("pool").kind == "int8"
    assert found.input("relu3").zero == (128,), "of -4 to 4"
    assert {"relu2", "relu3"} <= found.nodes.keys(), "a quantizer with parameters of its own takes no Relu away"


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        ({"conv9_w": [{"axis": 0}]}, ConfigError, "got 'conv9_w', expected the name of a tensor; did you .*'conv2_w'"),
        ({"r1": [{"quant_type": QuantType.QInt4}]}, UnsupportedError, r"\['r1'\]: got 'QInt4', expected QInt8 or Q"),
        ({"r1": [{"rmi": 1}]}, ConfigError, "the keys quant_type, symmetric, .*; 'rmi' is none, did you mean 'rmin'"),
        ({"r1": [{"scale": 0.0}]}, ConfigError, "expected for 'scale' a number > 0"),
        ({"r1": [{"axis": 0.5}]}, ConfigTypeError, "expected for 'axis' an int"),
        ({"r1": []}, ConfigError, "a dict from tensor to a list of one or more dicts"),
        ({"r1": {"axis": 0}}, ConfigTypeError, "a dict from tensor to a list of one or more dicts"),
        ([("r1", [])], ConfigTypeError, "a dict from tensor to a list"),
    ],
)  # fmt: skip
def test_overrides_that_are_wrong(entry: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        quantize(residual_cnn(), {"TensorQuantOverrides": entry})


@pytest.mark.parametrize("algorithms", [[], [AdaRoundConfig()]])
@pytest.mark.parametrize(("size", "used"), [(5, 8), (8, 8), (1000, 24)])
def test_calibration_with_the_first_samples(algorithms: list[AlgoConfig], size: int, used: int) -> None:
    """Items are not cut: the reader yields four samples each."""
    model = mlp()
    data = {"x": samples(model, 24)["x"]}
    few, report = quantize(model, {"CalibDataSize": size}, algorithms)
    quantizer = ModelQuantizer(QConfig(LAYER))
    expected = quantizer.quantize_model(model, None, Reader({"x": data["x"][:used]}, batch=4))
    assert report.samples == used
    scales, wanted = (QuantizedModel(m).constants for m in (few, expected))
    assert {n: v.tolist() for n, v in scales.items() if n.endswith("_scale") and not n.endswith("quantized_scale")} == {
        n: v.tolist() for n, v in wanted.items() if n.endswith("_scale") and not n.endswith("quantized_scale")
    }
    if algorithms:
        assert {sum(layer.rows) for layer in report.layers} == {24}, "finetuning sees all of them"


class Endless:
    """A reader that counts, and ends only after a long time."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self._arrays, self.read = arrays, 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        self.read += 1
        return self._arrays if self.read < 1000 else None


TWENTY = AdaRoundConfig(data_size=20)


@pytest.mark.parametrize("algorithms", [[], [TWENTY], [BiasCorrectionConfig(), TWENTY]])
def test_no_more_is_read_than_is_needed(algorithms: list[AlgoConfig]) -> None:
    reader = Endless(samples(mlp(), 4))
    ModelQuantizer(QConfig(LAYER, CalibDataSize=8, algo_config=algorithms)).quantize_model(mlp(), None, reader)
    assert reader.read == (5 if algorithms else 2)


def test_fast_finetune_under_amd_quarks_names() -> None:
    options = {"OptimAlgorithm": "adaround", "DataSize": 16, "LRAdjust": [0.5, 0.2], "OutputQDQ": True, "UseGDS": True}
    config = QConfig(LAYER, algo_config=[AdaRoundConfig(batch_size=2, data_size=5)], FastFinetune=options)
    expected = AdaRoundConfig(batch_size=2, data_size=16, lr_adjust=(0.5, 0.2), output_qdq=True, use_gds=True)
    assert config.fast_finetune == expected
    assert QConfig.from_dict(config.to_dict()) == config
    _, report = quantize(mlp(), {"FastFinetune": {"DataSize": 16}}, [AdaRoundConfig()])
    assert {sum(layer.rows) for layer in report.layers} == {16}


@pytest.mark.parametrize(
    ("algorithms", "options", "message"),
    [
        ([], {}, r"extra_options\['FastFinetune'\]: .* expected AdaRoundConfig or AdaQuantConfig in algo_config too"),
        ([AdaRoundConfig()], {"OptimAlgorithm": "adaquant"}, r"Algorithm'\]: got 'adaquant', expected 'adaround'"),
        ([AdaRoundConfig()], {"DataSiz": 1}, "unknown option 'DataSiz'; did you mean 'DataSize'"),
        ([AdaQuantConfig()], {"NumIterations": 0}, "AdaQuantConfig.num_iterations: got 0, expected an int >= 1"),
        ([AdaQuantConfig()], [1], r"extra_options\['FastFinetune'\]: got \[1\], expected a dict"),
    ],
)  # fmt: skip
def test_fast_finetune_options_that_are_wrong(algorithms: list[AlgoConfig], options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QConfig(LAYER, algo_config=algorithms, extra_options={"FastFinetune": options})


# Values that AMD Quark's documentation shows for options that have no effect here, and for some that have one value.
@pytest.mark.parametrize("name", MEANINGLESS_OPTIONS)
def test_options_without_effect_are_accepted_and_reported(name: str) -> None:
    value: Any = {"NumBins": 2048, "CopyBiasInit": ["Conv"]}.get(name, True)
    config = QConfig(LAYER, extra_options={name: value})
    assert {config: 1}[QConfig.from_dict(json.loads(json.dumps(config.to_dict())))] == 1
    quantizer = ModelQuantizer(config)
    result = quantizer.quantize_model(mlp(), None, Reader(samples(mlp(), 8)))
    (line,) = quantizer.report.ignored
    assert line.startswith(f"extra_options[{name!r}]=")
    assert "has no effect: " in line
    without = ModelQuantizer(QConfig(LAYER)).quantize_model(mlp(), None, Reader(samples(mlp(), 8)))
    assert result.graph == without.graph


OTHER: dict[str, Any] = {"EncryptionAlgorithm": "AES-256", "ConvertOpsetVersion": 20, "FixShapes": "x:[1,2]"}


@pytest.mark.parametrize("name", FIXED_OPTIONS)
def test_options_with_one_value(name: str) -> None:
    accepted, why = FIXED_OPTIONS[name]
    for value in accepted:
        written = dict(value) if isinstance(value, dict) else list(value) if isinstance(value, tuple) else value
        ModelQuantizer(QConfig(LAYER, extra_options={name: written}))
    wrong = not accepted[0] if accepted and isinstance(accepted[0], bool) else OTHER.get(name, "something")
    config = QConfig(LAYER, extra_options={name: wrong})
    with pytest.raises(UnsupportedError, match=rf"QConfig.extra_options\['{name}'\]: got .*, expected .*") as caught:
        ModelQuantizer(config)
    assert why in str(caught.value)


def test_each_option_is_of_one_kind() -> None:
    kinds = [set(checks(ExtraOptions)), set(FIXED_OPTIONS), set(MEANINGLESS_OPTIONS)]
    assert sum(map(len, kinds)) == len(set().union(*kinds)) == len(known_options())


def test_the_documentation_lists_every_option_as_what_it_is() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for heading, names in (
        ("Works", checks(ExtraOptions)),
        ("Means nothing here", MEANINGLESS_OPTIONS),
        ("Not supported", FIXED_OPTIONS),
    ):
        section = re.split(r"^#+ ", text.split(f"### {heading}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]
        rows = [line for line in section.splitlines() if line.startswith("| `")]
        listed = [name for row in rows for name in re.findall(r"`(\w+)`", row.split(" | ")[0])]
        assert sorted(listed) == sorted(names), heading
