"""Memory levels and threads: where the data is kept and how many work must not show in the result."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import MODELS, Reader, Weights, build, residual_cnn, samples, separable_cnn

import quark.onnx
from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    UInt8Spec,
)

pytestmark = pytest.mark.sets_apart

LAYER = QLayerConfig(UInt8Spec(), weight=Int8Spec())
KEEPING = AdaRoundConfig(keep_worse=True)  # five samples judge the whole model: too few to be sure


def quantize(model: onnx.ModelProto, algorithm: AdaRoundConfig, *, threads: int = 1, count: int = 40) -> bytes:
    config = QConfig(LAYER, algo_config=[algorithm], extra_options={"NumThreads": threads})
    quantizer = ModelQuantizer(config)
    quantized = quantizer.quantize_model(model, None, Reader(samples(model, count)))
    assert any(layer.accepted for layer in quantizer.report.layers)
    return quantized.SerializeToString(deterministic=True)


@pytest.mark.parametrize("level", [0, 2])
@pytest.mark.parametrize("name", MODELS)
def test_memory_levels_give_the_same_model(name: str, level: int) -> None:
    model = MODELS[name]()
    assert quantize(model, AdaRoundConfig(mem_opt_level=level, keep_worse=True)) == quantize(model, KEEPING)


def test_memory_levels_give_the_same_model_of_strings() -> None:
    """A tensor of strings that is kept from layer to layer."""
    w = Weights(0)
    model = build(
        """(float[N,8] x, string[N,1] s) => (float[N,4] y, string[N,1] t) {
            a = Gemm<transB=1>(x, w1, b1) r = Relu(a) b = Gemm<transB=1>(r, w2, b2)
            e = Equal(s, yes) f = Cast<to=1>(e) m = Mul(b, f) y = Gemm<transB=1>(m, w3, b3) t = Identity(s)
        }""",
        opset=19,
        w1=w.conv(8, 8), b1=w.bias(8), w2=w.conv(6, 8), b2=w.bias(6), w3=w.conv(4, 6), b3=w.bias(4),
        yes=np.array(["yes"], object),
    )  # fmt: skip
    random = np.random.default_rng(0)
    data = {
        "x": random.standard_normal((40, 8), np.float32),
        "s": random.choice(np.array(["yes", "no", ""], object), (40, 1)),
    }
    results = []
    for level in (0, 1, 2):
        config = QConfig(LAYER, algo_config=[AdaRoundConfig(mem_opt_level=level)])
        results.append(ModelQuantizer(config).quantize_model(model, None, Reader(data)))
    assert results[0] == results[1] == results[2]


def test_memory_levels_give_the_same_model_for_several_batches() -> None:
    model = residual_cnn()
    models = {quantize(model, AdaQuantConfig(mem_opt_level=level), count=150) for level in (0, 1, 2)}
    assert len(models) == 1


@pytest.mark.parametrize("name", MODELS)
def test_threads_do_not_change_the_model(name: str) -> None:
    model = MODELS[name]()
    alone = quantize(model, KEEPING, threads=1)
    assert quantize(model, KEEPING, threads=2) == alone
    assert quantize(model, KEEPING, threads=5) == alone


def test_all_ways_give_the_same_report() -> None:
    model = separable_cnn()
    reports = []
    for level, threads in ((0, 1), (1, 2), (2, 1)):
        config = QConfig(
            LAYER, algo_config=[AdaRoundConfig(mem_opt_level=level)], extra_options={"NumThreads": threads}
        )
        quantizer = ModelQuantizer(config)
        quantizer.quantize_model(model, None, Reader(samples(model, 40)))
        reports.append(quantizer.report)
    assert len({tuple((e.name, e.after, e.before, e.candidate) for e in r.layers) for r in reports}) == 1


def test_the_finetune_function_has_the_same_levels() -> None:
    model = separable_cnn()
    plain = ModelQuantizer(QConfig(LAYER)).quantize_model(model, None, Reader(samples(model, 40)))
    results = [
        quark.onnx.finetune(model, plain, None, Reader(samples(model, 40)), AdaRoundConfig(mem_opt_level=level))[0]
        for level in (0, 1, 2)
    ]
    assert results[0] == results[1] == results[2] != plain


class Watching(Reader):
    """Notes the files below a folder while the data is read: those with names, and those of this process without."""

    def __init__(self, model: onnx.ModelProto, folder: Path) -> None:
        super().__init__(samples(model, 40), batch=8)
        self._folder, self.named, self.nameless = folder, set[str](), set[str]()

    def get_next(self) -> dict[str, object] | None:
        self.named.update(str(path.relative_to(self._folder)) for path in self._folder.rglob("*"))
        for handle in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # that of this list
                place = handle.readlink()
                if place.is_relative_to(self._folder):
                    self.nameless.add(str(place.parent.relative_to(self._folder)))
        return super().get_next()


@pytest.fixture
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that this process takes as the system's temporary one."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_level_two_keeps_files_without_names_in_cache_dir(tmp_path: Path, temporary_folder: Path) -> None:
    model, cache = separable_cnn(), tmp_path / "new" / "cache"
    reader = Watching(model, tmp_path)
    config = QConfig(LAYER, algo_config=[AdaRoundConfig(mem_opt_level=2, cache_dir=str(cache))])
    ModelQuantizer(config).quantize_model(model, None, reader)
    assert reader.named == {"temporary", "new", "new/cache"}
    assert reader.nameless == {"new/cache"}
    assert os.listdir(cache) == []
    assert os.listdir(temporary_folder) == []


def test_level_two_uses_the_temporary_folder_without_cache_dir(temporary_folder: Path) -> None:
    model = separable_cnn()
    reader = Watching(model, temporary_folder)
    config = QConfig(LAYER, algo_config=[AdaRoundConfig(mem_opt_level=2)])
    ModelQuantizer(config).quantize_model(model, None, reader)
    assert reader.nameless == {"."}
    assert not reader.named


@pytest.mark.usefixtures("temporary_folder")
@pytest.mark.parametrize("level", [0, 1])
def test_other_levels_write_no_file(level: int, tmp_path: Path) -> None:
    model = separable_cnn()
    reader = Watching(model, tmp_path)
    config = QConfig(LAYER, algo_config=[AdaRoundConfig(mem_opt_level=level, cache_dir=str(tmp_path / "cache"))])
    ModelQuantizer(config).quantize_model(model, None, reader)
    assert reader.named == {"temporary"}
    assert not reader.nameless
    assert os.listdir(tmp_path) == ["temporary"]


def test_nothing_is_written_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    quantize(separable_cnn(), AdaRoundConfig(mem_opt_level=2))
    assert os.listdir(folder) == []
