"""A model says how it was made."""

from __future__ import annotations

import json
from importlib.metadata import version

import onnx
from small_models import Reader, mlp, samples

from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    QuantGranularity,
    UInt8Spec,
    finetune,
)

LAYER = QLayerConfig(UInt8Spec(), weight=Int8Spec(quant_granularity=QuantGranularity.Channel))


def quantized(config: QConfig, model: onnx.ModelProto | None = None) -> onnx.ModelProto:
    model = model or mlp()
    return ModelQuantizer(config).quantize_model(model, None, Reader(samples(model, 16)))


def props(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def test_a_quantized_model_holds_version_and_configuration() -> None:
    model = mlp()
    onnx.helper.set_model_props(model, {"author": "somebody"})
    model.producer_name = "an exporter"
    config = QConfig(LAYER, exclude=[model.graph.node[0].name], algo_config=[AdaRoundConfig(batch_size=2)])
    result = quantized(config, model)
    assert (result.producer_name, result.producer_version) == ("quark-onnx", version("quark-onnx"))
    found = props(result)
    assert found["author"] == "somebody"
    assert found["quark_onnx.version"] == version("quark-onnx")
    written = json.loads(found["quark_onnx.quantized_with"])
    assert written["exclude"] == [model.graph.node[0].name]
    assert written["algo_config"] == [{"kind": "AdaRoundConfig", "batch_size": 2}]
    assert written["global_config"]["weight"]["quant_granularity"] == "QuantGranularity.Channel"
    assert model.producer_name == "an exporter"
    assert len(model.metadata_props) == 1


def test_how_the_work_is_done_changes_no_byte(tmp_path) -> None:
    few = QConfig(LAYER, algo_config=[AdaRoundConfig()], NumThreads=1)
    disk = AdaRoundConfig(mem_opt_level=2, cache_dir=tmp_path, log_period=7)
    assert quantized(few).SerializeToString() == quantized(QConfig(LAYER, algo_config=[disk])).SerializeToString()


def test_a_finetuned_model_keeps_its_producer() -> None:
    model = mlp()
    foreign = quantized(QConfig(LAYER))
    foreign.producer_name, foreign.producer_version = "another tool", "7"
    data = samples(model, 16)
    result, _ = finetune(model, foreign, None, data, AdaQuantConfig(num_iterations=50))
    assert (result.producer_name, result.producer_version) == ("another tool", "7")
    found = props(result)
    assert json.loads(found["quark_onnx.finetuned_with"]) == {"kind": "AdaQuantConfig", "num_iterations": 50}
    assert found["quark_onnx.quantized_with"] == props(foreign)["quark_onnx.quantized_with"]
    again, _ = finetune(model, result, None, data, AdaRoundConfig())
    assert json.loads(props(again)["quark_onnx.finetuned_with"]) == {"kind": "AdaRoundConfig"}
