"""Real networks on real data, where the optional folder ../shared is present beside the project."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from small_models import Reader, run

from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    AlgoConfig,
    CalibMethod,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    Report,
    UInt8Spec,
    finetune,
)

LOADER = Path(__file__).parents[3] / "shared" / "tools" / "datasets.py"
DEFAULT = QLayerConfig(UInt8Spec(), weight=Int8Spec())
MIN_MAX = QLayerConfig(UInt8Spec(), weight=Int8Spec(calibration_method=CalibMethod.MinMax))
SAMPLES = {"kws": 40, "resnet20": 16, "mobilenet_v1": 16, "ocr_angle": 24}


@pytest.fixture(scope="module")
def datasets() -> ModuleType:
    if not LOADER.exists():
        pytest.skip("../shared/tools/datasets.py is not here")
    pytest.importorskip("PIL")
    spec = importlib.util.spec_from_file_location("shared_datasets", LOADER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@functools.cache
class Case:
    """A model, so many calibration samples, and 60 others to judge it by."""

    def __init__(self, datasets: ModuleType, name: str) -> None:
        case = datasets.load(name)
        self.path = case.model
        self.model = onnx.load(case.model)
        self._input = self.model.graph.input[0].name
        self._calibration = case.calib[: SAMPLES[name]].copy()  # not a view, which would keep all of it
        self._unseen = {self._input: case.eval_x[:60].copy()}
        self._wanted = run(self.model, self._unseen)[0]

    def reader(self) -> Reader:
        return Reader({self._input: self._calibration})

    def error(self, model: onnx.ModelProto) -> float:
        """Mean squared error of the first output."""
        return float(np.mean((run(model, self._unseen)[0] - self._wanted) ** 2))

    def quantize(self, layer: QLayerConfig, *algorithms: AlgoConfig) -> tuple[onnx.ModelProto, Report]:
        quantizer = ModelQuantizer(QConfig(layer, algo_config=algorithms))
        return quantizer.quantize_model(self.path, None, self.reader()), quantizer.report


@pytest.mark.parametrize("layer", [DEFAULT, MIN_MAX], ids=["default", "weights by minimum and maximum"])
@pytest.mark.parametrize("name", SAMPLES)
def test_finetune_brings_the_outputs_closer(name: str, layer: QLayerConfig, datasets: ModuleType) -> None:
    case = Case(datasets, name)
    plain, _ = case.quantize(layer)
    tuned, report = case.quantize(layer, AdaRoundConfig())
    assert case.error(tuned) < case.error(plain)
    assert not report.skipped


def test_adaquant_on_a_real_network(datasets: ModuleType) -> None:
    case = Case(datasets, "kws")
    plain, _ = case.quantize(DEFAULT)
    tuned, _ = case.quantize(DEFAULT, AdaQuantConfig())
    assert case.error(tuned) < case.error(plain)


def test_finetune_of_a_model_that_was_quantized_before(datasets: ModuleType) -> None:
    case = Case(datasets, "kws")
    plain, _ = case.quantize(MIN_MAX)
    tuned, report = finetune(case.path, plain, None, case.reader(), AdaRoundConfig())
    assert case.error(tuned) < case.error(plain)
    assert not report.skipped


def test_levels_and_threads_do_not_change_a_real_network(datasets: ModuleType) -> None:
    case = Case(datasets, "resnet20")
    models = set()
    for level, threads in ((0, 1), (1, 2), (2, 1)):
        config = QConfig(
            DEFAULT, algo_config=[AdaRoundConfig(mem_opt_level=level)], extra_options={"NumThreads": threads}
        )
        model = ModelQuantizer(config).quantize_model(case.path, None, case.reader())
        models.add(model.SerializeToString(deterministic=True))
    assert len(models) == 1


@pytest.mark.parametrize("name", ["tiny_ad_autoencoder", "mtcnn_onet", "mtcnn_pnet", "ch_PP-OCRv4_det_infer"])
def test_other_graphs_run(name: str, datasets: ModuleType) -> None:
    """On random data: Gemm chains, PRelu, transposed inputs, transposed convolutions, gates."""
    path = datasets.DATA / "models" / f"{name}.onnx"
    model = onnx.load(path)
    (value,) = model.graph.input
    free = {1: 16, 2: 64, 3: 64} if "det" in name else {1: 48, 2: 48, 3: 48}
    shape = [16 if i == 0 else d.dim_value or free[i] for i, d in enumerate(value.type.tensor_type.shape.dim)]
    data = {value.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    quantizer = ModelQuantizer(QConfig(DEFAULT, algo_config=[AdaRoundConfig()]))
    tuned = quantizer.quantize_model(path, None, Reader(data))
    report = quantizer.report
    assert any(layer.accepted for layer in report.layers)
    assert all(layer.accepted or layer.reason for layer in report.layers)
    assert report.end_to_end.after.l2 < report.end_to_end.before.l2
    onnx.checker.check_model(tuned)
