"""onnxruntime's quantizer with indexes: the same result, in a time linear in the nodes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from small_models import MODELS

from quark.onnx.preparation.prepare import prepare
from quark.onnx.qdq.insert_qdq import calibration_tensors, insert_qdq
from quark.onnx.qdq.qdq_options import QdqOptions
from quark.onnx.qdq.quantizer import scaled_quantizer
from quark.onnx.qdq.quantizer.indexed_model import IndexedModel, IndexedQuantizer


def chain(layers: int) -> onnx.ModelProto:
    """Conv, Relu, Conv, Relu, ..."""
    rng, nodes, constants = np.random.default_rng(0), [], []
    for i in range(layers):
        nodes.append(helper.make_node("Conv", [f"t{i}", f"w{i}", f"b{i}"], [f"s{i}"], f"conv{i}"))
        nodes.append(helper.make_node("Relu", [f"s{i}"], [f"t{i + 1}"], f"relu{i}"))
        for name, shape in ((f"w{i}", (2, 2, 1, 1)), (f"b{i}", (2,))):
            constants.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    names = [f"{kind}{i}" for i in range(layers) for kind in "st"][1:]
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 2, 2]) for name in (*names, "t0")}
    last = helper.make_tensor_value_info(f"t{layers}", TensorProto.FLOAT, [1, 2, 2, 2])
    graph = helper.make_graph(
        nodes, "g", [values.pop("t0")], [last], constants, value_info=[v for n, v in values.items() if n != last.name]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def inserted(model: onnx.ModelProto, options: QdqOptions) -> bytes:
    ranges = {name: (-1.0, 1.0 + i / 8) for i, name in enumerate(calibration_tensors(model, options))}
    return insert_qdq(model, ranges, {}, options).SerializeToString(deterministic=True)


@pytest.mark.parametrize("options", [QdqOptions(), QdqOptions(per_channel=True), QdqOptions(quantize_biases=False)])
@pytest.mark.parametrize("name", [*MODELS, "chain"])
def test_the_result_is_that_of_onnxruntime_s_own_lookups(
    name: str, options: QdqOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = chain(5) if name == "chain" else prepare(MODELS[name]())
    found = inserted(model, options)
    for method in [name for name in vars(IndexedQuantizer) if name not in ("__module__", "__doc__")]:
        monkeypatch.delattr(IndexedQuantizer, method)
    assert IndexedQuantizer.quantize_model is QDQQuantizer.quantize_model
    assert issubclass(scaled_quantizer.ScaledQuantizer, IndexedQuantizer)
    assert inserted(model, options) == found


def test_the_work_grows_with_the_nodes_not_with_their_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted are the initializers and nodes that all lookups go through."""
    counts = Counter[str]()
    listed, replaced = IndexedModel.initializer, IndexedModel._replace_input

    def initializer(self: IndexedModel) -> object:
        found = listed(self)
        counts["initializers"] += len(found)
        return found

    def replace_input(self: IndexedModel, old: str, new: str, names: set[str] | None) -> None:
        counts["nodes"] += len(self._readers.get(old, []))
        replaced(self, old, new, names)

    monkeypatch.setattr(IndexedModel, "initializer", initializer)
    monkeypatch.setattr(IndexedModel, "_replace_input", replace_input)
    work = []
    for layers in (100, 200, 400):
        counts.clear()
        inserted(chain(layers), QdqOptions())
        work.append(dict(counts))
    for kind in ("initializers", "nodes"):
        first, second, third = (found[kind] for found in work)
        assert second < 2.2 * first, work
        assert third < 2.2 * second, work
        assert 0 < third < 100 * 400
