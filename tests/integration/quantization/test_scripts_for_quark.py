"""Scripts as AMD Quark's documentation and tutorials have them, written anew: they run, or say what to write."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from small_models import mean_squared_error, samples, separable_cnn

import quark.onnx
from quark.onnx import ConfigError, ConfigTypeError, ModelQuantizer, QConfig, UnsupportedError
from quark.onnx.missing_names import INSTEAD

MODEL = separable_cnn()


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[str, str]]:
    onnx.save(MODEL, tmp_path / "float.onnx")
    return str(tmp_path / "float.onnx"), str(tmp_path / "quantized.onnx")


class ImageReader:
    """As the tutorials write one: no base class, a batch of one, a name from the session."""

    def __init__(self, model_path: str, count: int) -> None:
        session = onnxruntime.InferenceSession(model_path, None, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        images = samples(MODEL, count)[name]
        self.enum_data = iter([{name: image[np.newaxis]} for image in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.enum_data, None)

    def rewind(self) -> None:
        raise AssertionError("nobody calls it")


@pytest.mark.parametrize("name", ["AdaRoundConfig", "AdaQuantConfig"])
def test_the_tutorials(name: str, files: tuple[str, str]) -> None:
    """mobilenetv2_050.lamb_in1k, AdaRound and AdaQuant: asymmetric MinMax activations, MinMax weights, loose options;
    then the model is run in a session with the library of custom operators.
    """
    from quark.onnx import CalibMethod, Int8Spec, QLayerConfig
    from quark.onnx.operators.custom_ops import get_library_path

    float_path, quantized_path = files
    activation, weight = Int8Spec(), Int8Spec()
    activation.set_symmetric(False)
    activation.set_calibration_method(CalibMethod.MinMax)
    weight.set_calibration_method(CalibMethod.MinMax)
    layer = QLayerConfig(input_tensors=activation, weight=weight)
    errors = []
    for algorithms in ([], [getattr(quark.onnx, name)()]):
        config = QConfig(global_config=layer, algo_config=algorithms, AlignSlice=False, FoldRelu=True, AlignConcat=True)
        ModelQuantizer(config).quantize_model(float_path, quantized_path, ImageReader(float_path, 48))
        options = onnxruntime.SessionOptions()
        options.register_custom_ops_library(get_library_path("CPU"))
        session = onnxruntime.InferenceSession(quantized_path, options, providers=["CPUExecutionProvider"])
        assert session.run(None, samples(MODEL, 2))[0].shape == (2, 10)
        errors.append(mean_squared_error(MODEL, onnx.load(quantized_path), samples(MODEL, 16, seed=1)))
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("algorithm", ["AdaRoundConfig", "AdaQuantConfig"])
def test_the_example_of_the_page_on_both(algorithm: str, files: tuple[str, str]) -> None:
    from quark.onnx import Int8Spec, QLayerConfig, UInt8Spec

    config = QConfig(
        global_config=QLayerConfig(input_tensors=UInt8Spec(), weight=Int8Spec()),
        algo_config=[getattr(quark.onnx, algorithm)(batch_size=1, num_iterations=1000, learning_rate=0.1)],
    )
    assert ModelQuantizer(config).quantize_model(*files, ImageReader(files[0], 24)) is None


def test_the_example_of_the_user_guide(files: tuple[str, str]) -> None:
    """Its specs stand without brackets; CLE and AdaRound; layers and types of their own; nodes left out."""
    from quark.onnx import AdaRoundConfig, CLEConfig, Int8Spec, Int16Spec, QLayerConfig

    wide = QLayerConfig(input_tensors=Int16Spec(), weight=Int16Spec(), bias=Int16Spec(), output_tensors=Int16Spec())
    config = QConfig(
        global_config=QLayerConfig(input_tensors=Int8Spec, weight=Int8Spec),
        specific_layer_config={wide: ["pw1"]},
        layer_type_config={None: ["Gemm"]},
        exclude=["dw2", "^pool.*", (["pw2"], ["pw2"])],
        algo_config=[CLEConfig(cle_steps=2), AdaRoundConfig(learning_rate=0.1, num_iterations=1000)],
        use_external_data_format=False,
        extra_options={},
    )
    assert config.global_config == QLayerConfig(input_tensors=Int8Spec(), weight=Int8Spec())
    if not any(node.name.startswith("pool") for node in MODEL.graph.node):
        config = replace(config, exclude=["dw2", "^pw2.*", (["pw2"], ["pw2"])])
    quantizer = ModelQuantizer(config)
    quantizer.quantize_model(*files, ImageReader(files[0], 24))
    assert {layer.name for layer in quantizer.report.layers} == {"stem", "dw1", "pw1"}


@pytest.mark.parametrize("name", ["XINT8_ADAROUND", "A8W8_ADAQUANT", "S8S8_AAWS_ADAROUND"])
def test_a_preset_is_changed_and_used(name: str, files: tuple[str, str]) -> None:
    from quark.onnx import AdaRoundConfig, CLEConfig, Config
    from quark.onnx.quantization.config import get_default_config

    quant_config = get_default_config(name)
    assert not quant_config.include_cle
    assert quant_config.include_fast_ft
    quant_config.include_cle = True
    quant_config.extra_options["FastFinetune"]["NumIterations"] = 20
    quant_config.extra_options["FastFinetune"]["DataSize"] = 12
    quant_config.use_external_data_format = False
    quantizer = ModelQuantizer(Config(global_quant_config=quant_config))
    quant_config.include_cle = False
    quant_config.extra_options["FastFinetune"]["NumIterations"] = 21
    assert quantizer.config.equalisation == CLEConfig(), "what is taken does not change any more"
    assert quantizer.config.fast_finetune.num_iterations == 20
    assert get_default_config(name).fast_finetune.num_iterations == 1000, "a fresh one each time"
    quantizer.quantize_model(*files, ImageReader(files[0], 24))
    assert quantizer.report.pairs
    assert isinstance(quantizer.config.fast_finetune, AdaRoundConfig) == name.endswith("ROUND")


def test_a_ready_constant_is_changed_and_used(files: tuple[str, str]) -> None:
    from quark.onnx import A8W8_ADAROUND_QCONFIG, A8W8_QCONFIG, CLEConfig

    A8W8_QCONFIG.algo_config = [CLEConfig(cle_steps=2)]
    A8W8_QCONFIG.extra_options["CalibDataSize"] = 10
    A8W8_QCONFIG.global_config.input_tensors.set_symmetric(False)
    assert quark.onnx.A8W8_QCONFIG.algo_config == ()
    assert quark.onnx.A8W8_QCONFIG.extra_options == A8W8_ADAROUND_QCONFIG.extra_options
    assert quark.onnx.A8W8_QCONFIG.global_config.input_tensors.symmetric
    quantizer = ModelQuantizer(A8W8_QCONFIG)
    quantizer.quantize_model(*files, ImageReader(files[0], 24))
    assert quantizer.report.samples == 10
    assert quantizer.report.ignored == (), "a preset sets nothing that means nothing"


def test_default_parameters_are_copied_and_changed() -> None:
    from quark.onnx.quantization.config.custom_config import (
        DEFAULT_ADAQUANT_PARAMS,
        DEFAULT_ADAROUND_PARAMS,
        U8S8_AAWS_ADAROUND_CONFIG,
    )

    params = copy.deepcopy(DEFAULT_ADAROUND_PARAMS)
    params["LearningRate"], params["NumIterations"] = 0.05, 77
    DEFAULT_ADAQUANT_PARAMS["LearningRate"] = 1.0
    custom_config = import_module("quark.onnx.quantization.config.custom_config")
    assert custom_config.DEFAULT_ADAQUANT_PARAMS["LearningRate"] == 1e-5
    U8S8_AAWS_ADAROUND_CONFIG.extra_options["FastFinetune"] = params
    taken = ModelQuantizer(U8S8_AAWS_ADAROUND_CONFIG).config.fast_finetune
    assert (taken.learning_rate, taken.num_iterations, taken.batch_size) == (0.05, 77, 2)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))])
def test_a_copy_of_a_preset_is_its_own(copied: object) -> None:
    preset = QConfig.get_default_config("A8W8_ADAROUND")
    preset.extra_options["FastFinetune"]["BatchSize"] = 5
    other = copied(preset)
    assert other == preset
    assert hash(other) == hash(preset)
    other.extra_options["FastFinetune"]["BatchSize"] = 6
    other.include_cle = True
    assert preset.fast_finetune.batch_size == 5
    assert not preset.include_cle
    assert other != preset


def test_the_older_configuration(files: tuple[str, str]) -> None:
    from quark.onnx import (
        CalibMethod,
        Config,
        PowerOfTwoMethod,
        QuantFormat,
        QuantizationConfig,
        QuantType,
        ScaleType,
        VitisQuantFormat,
        VitisQuantType,
    )  # fmt: skip

    config = QuantizationConfig(
        quant_format=VitisQuantFormat.QDQ,
        calibrate_method=PowerOfTwoMethod.MinMSE,
        activation_type=QuantType.QUInt8,
        weight_type=VitisQuantType.QInt8,
        enable_npu_cnn=False,
        include_cle=False,
        include_fast_ft=True,
        nodes_to_exclude=["classes"],
        op_types_to_quantize=["Conv", "Gemm"],
        extra_options={"FastFinetune": {"OptimAlgorithm": "adaquant", "BatchSize": 2}},
    )
    assert config.activation_spec.scale_type is config.weight_spec.scale_type is ScaleType.PowerOf2
    assert config.activation_spec.calibration_method is CalibMethod.MinMSE
    assert repr(config.activation_spec).startswith("UInt8Spec(")
    assert config.fast_finetune == quark.onnx.AdaQuantConfig(batch_size=2)
    quantizer = ModelQuantizer(Config(global_quant_config=config))
    quantizer.quantize_model(*files, ImageReader(files[0], 24))
    nodes = {node.name: node for node in onnx.load(files[1]).graph.node}
    assert nodes["classes"].input[1] == next(n for n in MODEL.graph.node if n.name == "classes").input[1]
    assert quantizer.report.algorithm == "adaquant"
    assert QuantizationConfig(quant_format=QuantFormat.QDQ) == QuantizationConfig()


def test_single_options_of_an_older_configuration_stand_beside_extra_options() -> None:
    config = quark.onnx.QuantizationConfig(
        extra_options={"NumThreads": 2}, extra_op_types_to_quantize=["Elu"], nodes_to_quantize=["stem"]
    )
    assert config.taken().extra_options == {
        "NumThreads": 2,
        "ExtraOpTypesToQuantize": ("Elu",),
        "NodesToQuantize": ("stem",),
    }


def test_what_has_no_effect_of_an_older_configuration_is_reported(files: tuple[str, str]) -> None:
    config = quark.onnx.QuantizationConfig(enable_npu_cnn=True, enable_npu_transformer=False, print_summary=True)
    quantizer = ModelQuantizer(config)
    quantizer.quantize_model(*files, ImageReader(files[0], 4))
    first, second = quantizer.report.ignored
    assert "EnableNPUCnn" in first
    assert "PrintSummary" in second


@pytest.mark.parametrize("method", ["MinMax", "Entropy", "Percentile", "Distribution"])
def test_calibration_methods_of_onnxruntime(method: str) -> None:
    from quark.onnx import CalibMethod, CalibrationMethod, QuantizationConfig

    config = QuantizationConfig(calibrate_method=CalibrationMethod[method], per_channel=True)
    assert config.activation_spec.calibration_method is CalibMethod[method]
    assert config.weight_spec.quant_granularity is quark.onnx.QuantGranularity.Channel


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"quant_format": quark.onnx.QuantFormat.QOperator}, UnsupportedError, "models have Q/DQ"),
        ({"use_dynamic_quant": True}, UnsupportedError, "ranges of activations are constants"),
        ({"include_sq": True}, UnsupportedError, "SmoothQuantConfig"),
        ({"include_auto_mp": True}, UnsupportedError, "specific_layer_config"),
        ({"optimize_model": False}, UnsupportedError, "always prepared"),
        ({"input_nodes": ["conv1"]}, UnsupportedError, "list in exclude what stays in float"),
        ({"extra_option": {}}, ConfigTypeError, "did you mean 'extra_options'"),
        ({"activation_type": "QInt8"}, ConfigError, "activation_type: got 'QInt8', expected a QuantType"),
        ({"include_fast_finetune": True}, ConfigTypeError, "did you mean 'include_fast_ft'"),
        ({"extra_options": {"FastFinetun": {}}}, ConfigError, "did you mean 'FastFinetune'"),
    ],
)
def test_what_an_older_configuration_cannot_have_is_said(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        quark.onnx.QuantizationConfig(**options)


def test_a_wrong_change_is_told_when_it_is_made_or_taken() -> None:
    preset = QConfig.get_default_config("A8W8")
    with pytest.raises(ConfigTypeError, match="QConfig has no field 'include_clee'; did you mean 'include_cle'"):
        preset.include_clee = True
    with pytest.raises(ConfigError, match=r"QConfig.algo_config: got .*, expected a list of algorithm configs"):
        preset.algo_config = "AdaRound"
    preset.extra_options["NumThread"] = 2
    with pytest.raises(ConfigError, match="did you mean 'NumThreads'"):
        ModelQuantizer(preset)


def test_a_configuration_that_was_made_says_how_to_change_it() -> None:
    from quark.onnx import AdaRoundConfig, Int8Spec, QLayerConfig

    config = QConfig(QLayerConfig(Int8Spec(), weight=Int8Spec()))
    for one, name in ((config, "exclude"), (AdaRoundConfig(), "batch_size"), (Int8Spec(), "symmetric")):
        with pytest.raises(FrozenInstanceError, match=rf"dataclasses.replace\(config, {name}="):
            setattr(one, name, 1)
    with pytest.raises(FrozenInstanceError, match="'include_cle'"):
        config.include_cle = True


def test_setters_of_specs_check_and_do_not_reach_a_quantizer() -> None:
    from quark.onnx import CalibMethod, Int4, Int8Spec, QLayerConfig, QTensorConfig, QuantGranularity, ScaleType

    spec = Int8Spec()
    spec.set_scale_type(ScaleType.PowerOf2)
    spec.set_quant_granularity(QuantGranularity.Channel)
    spec.set_calibration_method(CalibMethod.MinMSE)
    assert spec == Int8Spec(
        scale_type=ScaleType.PowerOf2,
        quant_granularity=QuantGranularity.Channel,
        calibration_method=CalibMethod.MinMSE,
    )
    with pytest.raises(ConfigError, match=r"Int8Spec.calibration_method: got 'MinMax'"):
        spec.set_calibration_method("MinMax")
    with pytest.raises(ConfigError, match="has a spec of its own"):
        spec.set_data_type(Int4)
    free = QTensorConfig()
    free.set_data_type(Int4)
    assert free.data_type == Int4
    weight = Int8Spec()
    quantizer = ModelQuantizer(QConfig(QLayerConfig(Int8Spec(), weight=weight)))
    weight.set_symmetric(False)
    assert quantizer.config.weight_spec == Int8Spec()


@pytest.mark.parametrize("device", ["CPU", "cpu", "ROCM", "CUDA"])
def test_the_library_of_custom_operators_adds_nothing(device: str, files: tuple[str, str]) -> None:
    path = quark.onnx.get_library_path(device)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(path)
    options.register_custom_ops_library(path)
    session = onnxruntime.InferenceSession(files[0], options, providers=["CPUExecutionProvider"])
    want = onnxruntime.InferenceSession(files[0], providers=["CPUExecutionProvider"]).run(None, samples(MODEL, 2))
    assert np.array_equal(session.run(None, samples(MODEL, 2))[0], want[0])


@pytest.mark.parametrize("name", INSTEAD)
def test_a_missing_name_says_what_to_use(name: str) -> None:
    with pytest.raises(ImportError, match="Use instead") as told:
        exec(f"from quark.onnx import {name}")
    assert name in str(told.value)


@pytest.mark.parametrize("name", ["run_calibration", "calibrate_model", "fake_calibration"])
def test_a_missing_name_of_calibration_says_what_to_use(name: str) -> None:
    with pytest.raises(ImportError, match="ModelQuantizer calibrates"):
        exec(f"from quark.onnx.calibration import {name}")


def test_the_tools_say_what_to_use() -> None:
    for statement in (
        "import quark.onnx.tools",
        "from quark.onnx.tools import remove_qdq",
        "import quark.onnx.tools.evaluate",
    ):
        with pytest.raises(ImportError, match="quark-onnx inspect"):
            exec(statement)


PUBLIC = (
    "CalibraterBase", "CalibrationDataReader", "CalibrationMethod", "MinMaxCalibrater", "QuantFormat",
    "QuantizationMode", "QuantType", "write_calibration_table", "PathDataReader", "RandomDataReader",
    "CachedDataReader", "PowerOfTwoMethod", "Int16Method", "LayerWiseMethod", "ExtendedCalibrationMethod",
    "create_calibrator_power_of_two", "create_calibrator_float_scale", "ModelQuantizer", "quantize_static",
    "quantize_dynamic", "dump_model", "QConfig", "QLayerConfig", "QTensorConfig", "Config", "QuantizationConfig",
    "CalibMethod", "ScaleType", "QuantGranularity", "ExtendedQuantType", "ExtendedQuantFormat", "VitisQuantType",
    "VitisQuantFormat", "Int8Spec", "UInt8Spec", "XInt8Spec", "Int16Spec", "UInt16Spec", "Int32Spec", "UInt32Spec",
    "Float16Spec", "BFloat16Spec", "BFP16Spec", "MX4Spec", "MX6Spec", "MX9Spec", "MXFP4E2M1Spec", "MXFP6E2M3Spec",
    "MXFP6E3M2Spec", "MXFP8E4M3Spec", "MXFP8E5M2Spec", "MXInt8Spec", "DataType", "Int8", "UInt8", "Int16",
    "UInt16", "Int32", "UInt32", "Float16", "BFloat16", "BFP16", "AlgoConfig", "AdaRoundConfig", "AdaQuantConfig",
    "CLEConfig", "BiasCorrectionConfig", "SmoothQuantConfig", "GPTQConfig", "QuarotConfig",
    "AutoMixprecisionConfig", "XINT8_QCONFIG", "XINT8_ADAROUND_QCONFIG", "XINT8_ADAQUANT_QCONFIG", "VINT8_QCONFIG",
    "A8W8_QCONFIG", "A8W8_ADAROUND_QCONFIG", "A8W8_ADAQUANT_QCONFIG", "A16W8_QCONFIG", "A16W8_ADAROUND_QCONFIG",
    "A16W8_ADAQUANT_QCONFIG", "BF16_QCONFIG", "BFP16_QCONFIG", "AutoSearch", "AutoSearchPro", "SearchSpace",
    "generate_all_configs", "get_auto_search_config", "get_library_path", "_COP_DOMAIN", "_COP_VERSION",
)  # fmt: skip


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_or_says_what_to_use(name: str) -> None:
    if name in INSTEAD:
        with pytest.raises(ImportError, match="Use instead"):
            getattr(quark.onnx, name)
    else:
        assert getattr(quark.onnx, name) is not None
        assert name in quark.onnx.__all__
        assert name in dir(quark.onnx)


def test_no_other_name_is_invented() -> None:
    assert not hasattr(quark.onnx, "AutoSerch")
    with pytest.raises(AttributeError, match="AutoSerch"):
        _ = quark.onnx.AutoSerch
    with pytest.raises(ImportError, match="cannot import name"):
        exec("from quark.onnx import AutoSerch")
