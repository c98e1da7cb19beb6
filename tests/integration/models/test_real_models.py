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
from small_models import Arrays, Reader, run

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

LOADER = Path(__file__).parents[4] / "shared" / "tools" / "datasets.py"
DEFAULT = QLayerConfig(UInt8Spec(), weight=Int8Spec())
MIN_MAX = QLayerConfig(UInt8Spec(), weight=Int8Spec(calibration_method=CalibMethod.MinMax))
SAMPLES = {"kws": 40, "resnet20": 16, "mobilenet_v1": 16, "ocr_angle": 24}


class Items:
    """A reader over these items."""

    def __init__(self, items: list[Arrays]) -> None:
        self._items = iter(items)

    def get_next(self) -> Arrays | None:
        return next(self._items, None)


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


def photos(datasets: ModuleType, side: int) -> np.ndarray:
    """(80, side, side, 3), as MTCNN wants them."""
    from PIL import Image

    files = sorted((datasets.DATA / "imagenet224" / "calib").glob("*.jpg"))[::3][:80]
    images = np.stack([np.asarray(Image.open(file).convert("RGB").resize((side, side))) for file in files])
    return (images.astype(np.float32) - 127.5) / 128


def pages(datasets: ModuleType) -> list[np.ndarray]:
    """12 pages of some lines of text each, (1, 3, H, W) in two sizes that are multiples of 32."""
    lines = datasets.load("ocr_angle").calib[:36]
    tall = [np.concatenate(lines[i : i + 4], axis=1)[None] for i in range(0, 24, 4)]  # 192 x 192
    wide = [np.concatenate(lines[i : i + 2], axis=1)[None] for i in range(24, 36, 2)]  # 96 x 192
    return [page for pair in zip(tall, wide, strict=True) for page in pair]


def random_spectra() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((64, 640)).astype(np.float32)


DATA = {
    "tiny_ad_autoencoder": lambda _: [row[None] for row in random_spectra()],
    "mtcnn_onet": lambda datasets: [image[None] for image in photos(datasets, 48)],
    "mtcnn_pnet": lambda datasets: [image[None] for image in photos(datasets, 64)],
    "ch_PP-OCRv4_det_infer": pages,
}


@pytest.mark.parametrize("name", DATA)
def test_other_graphs(name: str, datasets: ModuleType) -> None:
    """Gemm chains, PRelu, transposed inputs, transposed convolutions, gates, inputs of many shapes; no labels."""
    path = datasets.DATA / "models" / f"{name}.onnx"
    model = onnx.load(path)
    items = [{model.graph.input[0].name: array} for array in DATA[name](datasets)]
    fitted, unseen = items[: 3 * len(items) // 4], items[3 * len(items) // 4 :]

    def quantized(*algorithms: AlgoConfig) -> tuple[onnx.ModelProto, Report]:
        quantizer = ModelQuantizer(QConfig(DEFAULT, algo_config=algorithms))
        return quantizer.quantize_model(path, None, Items(fitted)), quantizer.report

    def error(result: onnx.ModelProto) -> float:
        outputs = (zip(run(model, item), run(result, item), strict=True) for item in unseen)
        return float(np.mean([((want - have) ** 2).sum() for pairs in outputs for want, have in pairs]))

    tuned, report = quantized(AdaRoundConfig())
    assert error(tuned) < error(quantized()[0])
    assert report.end_to_end.after.l2 < report.end_to_end.before.l2
    assert all(layer.accepted or layer.reason for layer in report.layers)
    tunable = {node.op_type for node in model.graph.node} & {"Conv", "Gemm", "MatMul"}
    assert not {layer.op_type for layer in report.skipped} & tunable
    onnx.checker.check_model(tuned)
