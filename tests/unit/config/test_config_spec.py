"""Tensor specs, their enums and data types, and QLayerConfig."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from typing import Any

import ml_dtypes
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quark.onnx.config import spec
from quark.onnx.config.data_type import DATA_TYPES, DataType, Int8, UInt8
from quark.onnx.config.spec import (
    CalibMethod,
    Int2Spec,
    Int8Spec,
    Int16Spec,
    MX9Spec,
    QLayerConfig,
    QTensorConfig,
    QuantGranularity,
    ScaleType,
    UInt4Spec,
    UInt8Spec,
    XInt8Spec,
)
from quark.onnx.errors import ConfigError, ConfigTypeError

SPECS = [Int8Spec, UInt8Spec, XInt8Spec, UInt4Spec, Int16Spec, Int2Spec, MX9Spec]
ARGUMENTS = {
    "symmetric": st.booleans(),
    "scale_type": st.sampled_from(ScaleType),
    "calibration_method": st.none() | st.sampled_from(CalibMethod),
    "quant_granularity": st.sampled_from(QuantGranularity),
}
specs = st.builds(
    lambda kind, arguments: kind(**arguments),
    st.sampled_from(SPECS),
    st.fixed_dictionaries({}, optional=ARGUMENTS),
) | st.builds(QTensorConfig, **ARGUMENTS, data_type=st.sampled_from([Int8, UInt8]))
activations = specs.filter(lambda spec: spec.calibration_method is not CalibMethod.MinOutputMSE)
layers = st.fixed_dictionaries(
    {},
    optional={
        "weight": specs,
        "bias": activations,
        "output_tensors": activations,
        "input_tensors": activations,
    },
).map(lambda arguments: QLayerConfig(**arguments))


@pytest.mark.parametrize("kind", [kind for kind in DATA_TYPES.values() if kind.bits], ids=repr)
def test_data_type_is_the_integer_format_of_its_name(kind: DataType) -> None:
    limits = ml_dtypes.iinfo(kind.name.lower())
    assert (kind.bits, kind.signed, kind.qmin, kind.qmax) == (limits.bits, limits.min < 0, limits.min, limits.max)
    assert repr(kind) == kind.name


def test_symmetric_weights_leave_the_least_integer_out_where_there_are_many() -> None:
    found = {name: DATA_TYPES[name].symmetric_qmin for name in ("Int4", "UInt4", "Int8", "UInt8", "Int16", "UInt16")}
    assert found == {"Int4": -8, "UInt4": 0, "Int8": -127, "UInt8": 0, "Int16": -32767, "UInt16": 0}


def test_enums_have_the_documented_members() -> None:
    quark = ["MinMax", "MinMSE", "Percentile", "Entropy", "LayerwisePercentile", "Distribution"]
    assert list(CalibMethod.__members__) == [*quark, "MinOutputMSE"]
    assert list(ScaleType.__members__) == ["Float32", "PowerOf2", "Int16"]
    assert list(QuantGranularity.__members__) == ["Tensor", "Channel", "Group"]


@pytest.mark.parametrize("data_type", DATA_TYPES.values())
def test_spec_defaults_and_order(data_type: DataType) -> None:
    kind: type[QTensorConfig] = getattr(spec, f"{data_type}Spec")
    symmetric = not repr(data_type).startswith("UInt")
    values = (symmetric, ScaleType.Float32, None, QuantGranularity.Tensor, data_type)
    parameters = inspect.signature(kind).parameters
    assert list(parameters) == [*ARGUMENTS, "data_type"]
    assert tuple(parameter.default for parameter in parameters.values()) == values
    assert kind(*values) == kind()


def test_power_of_two_spec() -> None:
    assert isinstance(XInt8Spec(), Int8Spec)
    assert XInt8Spec() == XInt8Spec(True, ScaleType.PowerOf2, None, QuantGranularity.Tensor, Int8)
    assert XInt8Spec() != Int8Spec(scale_type=ScaleType.PowerOf2)


def test_positional_and_keyword_arguments_are_the_same() -> None:
    positional = Int8Spec(False, ScaleType.Float32, CalibMethod.MinMax, QuantGranularity.Channel, Int8)
    assert positional == Int8Spec(
        symmetric=False, calibration_method=CalibMethod.MinMax, quant_granularity=QuantGranularity.Channel
    )
    assert repr(positional) == (
        "Int8Spec(symmetric=False, calibration_method=CalibMethod.MinMax, quant_granularity=QuantGranularity.Channel)"
    )


def test_the_default_method_depends_on_the_role_and_a_named_one_does_not_look_like_it() -> None:
    assert UInt8Spec().activation_calibration is CalibMethod.Percentile
    assert UInt8Spec(scale_type=ScaleType.PowerOf2).activation_calibration is CalibMethod.MinMSE
    assert XInt8Spec().activation_calibration is CalibMethod.MinMSE
    assert XInt8Spec().weight_calibration is CalibMethod.MinOutputMSE
    assert Int8Spec().weight_calibration is CalibMethod.MinOutputMSE
    assert Int8Spec(calibration_method=CalibMethod.Percentile) != Int8Spec()


@pytest.mark.parametrize("method", CalibMethod)
def test_a_weight_takes_methods_that_are_for_activations_only_as_minmax(method: CalibMethod) -> None:
    kept = method in (CalibMethod.MinMSE, CalibMethod.MinOutputMSE, CalibMethod.Percentile)
    spec = Int8Spec(calibration_method=method)
    assert spec.weight_calibration is (method if kept else CalibMethod.MinMax)
    assert spec.activation_calibration is method


@given(specs)
def test_spec_written_and_read_back_is_equal(spec: QTensorConfig) -> None:
    written = json.loads(json.dumps(spec.to_dict()))
    assert QTensorConfig.from_dict(written) == spec
    assert type(spec).from_dict(written) == spec
    assert eval(repr(spec)) == spec
    assert pickle.loads(pickle.dumps(spec)) == copy.deepcopy(spec) == spec


@given(specs, specs)
def test_specs_are_equal_when_kind_and_arguments_are(a: QTensorConfig, b: QTensorConfig) -> None:
    same = type(a) is type(b) and all(getattr(a, name) == getattr(b, name) for name in (*ARGUMENTS, "data_type"))
    assert (a == b) == same
    assert not same or hash(a) == hash(b)


def test_dict_without_a_name_is_told_by_its_data_type() -> None:
    written = {
        "symmetric": True,
        "scale_type": "ScaleType.PowerOf2",
        "calibration_method": "CalibMethod.MinMSE",
        "quant_granularity": "QuantGranularity.Tensor",
        "data_type": "UInt8",
    }
    assert QTensorConfig.from_dict(written) == UInt8Spec(True, ScaleType.PowerOf2, CalibMethod.MinMSE)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"symmetric": 1}, TypeError, "UInt8Spec.symmetric: got 1, expected True or False (int given)"),
        (
            {"scale_type": "Float32"},
            TypeError,
            (
                "UInt8Spec.scale_type: got 'Float32', expected a member of ScaleType"
                " (Float32, PowerOf2, Int16) (str given)"
            ),
        ),
        (
            {"quant_granularity": ScaleType.Int16},
            TypeError,
            (
                "UInt8Spec.quant_granularity: got ScaleType.Int16, expected a member of QuantGranularity"
                " (Tensor, Channel, Group) (ScaleType given)"
            ),
        ),
        (
            {"data_type": "UInt8"},
            TypeError,
            f"UInt8Spec.data_type: got 'UInt8', expected a data type ({', '.join(DATA_TYPES)}) (str given)",
        ),
        (
            {"data_type": Int8},
            ValueError,
            "UInt8Spec.data_type: got Int8, expected UInt8; Int8 has a spec of its own",
        ),
        (
            {"symetric": True},
            TypeError,
            "UInt8Spec() got an unexpected keyword 'symetric'; did you mean 'symmetric'?",
        ),
    ],
)
def test_spec_rejects(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        UInt8Spec(**arguments)
    assert str(caught.value) == message
    assert isinstance(caught.value, ConfigError)
    assert isinstance(caught.value, ConfigTypeError) == (error is TypeError)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"name": "Int9Spec"}, "expected the key 'name' with one of the kinds; did you mean .*'Int8Spec'"),
        ({"data_type": "Int9"}, "expected the key 'name' with"),
        (
            {"name": "Int8Spec", "scale_type": "ScaleType.Float16"},
            "Int8Spec.scale_type: got 'ScaleType.Float16'",
        ),
        (
            {"name": "Int8Spec", "granularity": 1},
            "unknown key 'granularity'; did you mean 'quant_granularity'",
        ),
    ],
)
def test_spec_from_dict_rejects(written: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QTensorConfig.from_dict(written)


def test_spec_cannot_be_changed() -> None:
    with pytest.raises(AttributeError, match="symmetric"):
        Int8Spec().symmetric = False  # type: ignore[misc]


@given(layers)
def test_layer_written_and_read_back_is_equal(layer: QLayerConfig) -> None:
    assert QLayerConfig.from_dict(json.loads(json.dumps(layer.to_dict()))) == layer
    assert eval(repr(layer)) == layer
    assert {layer: "found"}[copy.deepcopy(layer)] == "found"


def test_layer_takes_its_input_under_either_name() -> None:
    older = QLayerConfig(activation=UInt8Spec(), weight=Int8Spec())
    newer = QLayerConfig(input_tensors=UInt8Spec(), weight=Int8Spec())
    assert older.inputs == newer.inputs == UInt8Spec()
    assert QLayerConfig(UInt8Spec(), None, Int8Spec()) == newer
    assert QLayerConfig().inputs is None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"activation": UInt8Spec(), "input_tensors": UInt8Spec()},
            ValueError,
            r"QLayerConfig: got .*, expected input_tensors or activation, not both",
        ),
        ({"weight": CalibMethod}, TypeError, r"QLayerConfig.weight: got .*, expected a QTensorConfig, or None"),
        (
            {"activations": UInt8Spec()},
            TypeError,
            r"QLayerConfig\(\) got an unexpected keyword 'activations'; did you mean 'activation'",
        ),
        *(
            (
                {role: Int8Spec(calibration_method=CalibMethod.MinOutputMSE)},
                ValueError,
                rf"QLayerConfig.{role}.calibration_method: got CalibMethod.MinOutputMSE, .* weights only",
            )
            for role in ("input_tensors", "activation", "bias", "output_tensors")
        ),
    ],
)
def test_layer_rejects(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        QLayerConfig(**arguments)
    assert isinstance(caught.value, ConfigError)


def test_layer_accepts_min_output_mse_for_the_weight() -> None:
    weight = Int8Spec(calibration_method=CalibMethod.MinOutputMSE)
    assert QLayerConfig(weight=weight).weight == weight
