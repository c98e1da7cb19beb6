"""The networks of the large benchmark are valid models that run, whatever the batch; their data is what it says."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
NAMES = (
    *("resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0", "convnext_tiny", "yolov8n", "deit_tiny", "vit_base"),
    *("bert_base", "unet", "edsr", "speech_gru", "vgg16", "small_layers_501", "segmentation_1080p"),
)


@pytest.fixture
def catalogue(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("networks.catalogue")
    for name in [name for name in sys.modules if name.split(".")[0] == "networks"]:
        monkeypatch.delitem(sys.modules, name)


def test_all_networks_are_named_here(catalogue: Any) -> None:
    assert sorted(catalogue.NETWORKS) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_valid_and_runs_on_any_batch(catalogue: Any, name: str) -> None:
    network = catalogue.NETWORKS[name]
    model = network.small_model()
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    samples = network.samples(3, network.small_shape, seed=2)
    together = session.run(None, {"input": samples})
    for index in range(3):
        alone = session.run(None, {"input": samples[index : index + 1]})
        for a, b in zip(alone, together, strict=True):
            assert np.isfinite(a).all()
            assert a.std() > 0
            np.testing.assert_allclose(a[0], b[index], rtol=1e-3, atol=1e-4 * float(np.abs(b).max()))


def test_normalizations_have_the_statistics_of_their_input(catalogue: Any) -> None:
    """A channel behind a BatchNormalization has the mean and deviation that its shift and scale say."""
    network = catalogue.NETWORKS["resnet18"]
    model = network.small_model()
    node = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    model.graph.output.append(onnx.ValueInfoProto(name=node.output[0]))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = session.run(node.output[:1], {"input": network.samples(2, network.small_shape, seed=1)})[0]
    np.testing.assert_allclose(values.mean((0, 2, 3)), constants[node.input[2]], atol=1e-3)
    np.testing.assert_allclose(values.std((0, 2, 3)), constants[node.input[1]], rtol=1e-2)


def test_images_are_smooth_and_ids_are_words(catalogue: Any) -> None:
    images = catalogue.NETWORKS["resnet18"].samples(2, (3, 64, 64), seed=0)
    assert np.abs(np.diff(images, axis=-1)).mean() < 0.3 * images.std()
    assert not np.array_equal(images[0], images[1])
    ids = catalogue.NETWORKS["bert_base"].samples(50, (128,), seed=0)
    assert ids.dtype == np.int64
    assert 0 <= ids.min() < 3
    assert ids.max() < 30522
