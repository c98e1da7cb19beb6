"""Memory levels and threads: where the data is kept and how many work must not show in the result."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import onnx
import pytest
from small_models import MODELS, Reader, residual_cnn, samples, separable_cnn

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

LAYER = QLayerConfig(UInt8Spec(), weight=Int8Spec())


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
    assert quantize(model, AdaRoundConfig(mem_opt_level=level)) == quantize(model, AdaRoundConfig())


def test_memory_levels_give_the_same_model_for_several_batches() -> None:
    model = residual_cnn()
    models = {quantize(model, AdaQuantConfig(mem_opt_level=level), count=150) for level in (0, 1, 2)}
    assert len(models) == 1


@pytest.mark.parametrize("name", MODELS)
def test_threads_do_not_change_the_model(name: str) -> None:
    model = MODELS[name]()
    alone = quantize(model, AdaRoundConfig(), threads=1)
    assert quantize(model, AdaRoundConfig(), threads=2) == alone
    assert quantize(model, AdaRoundConfig(), threads=5) == alone


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
    """Notes the files below a folder while the data is read."""

    def __init__(self, model: onnx.ModelProto, folder: Path) -> None:
        super().__init__(samples(model, 40), batch=8)
        self._folder, self.seen = folder, set[str]()

    def get_next(self) -> dict[str, object] | None:
        self.seen.update(str(path.relative_to(self._folder)) for path in self._folder.rglob("*"))
        return super().get_next()


@pytest.fixture
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that this process takes as the system's temporary one."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_level_two_keeps_files_in_cache_dir_and_removes_them(tmp_path: Path, temporary_folder: Path) -> None:
    model, cache = separable_cnn(), tmp_path / "new" / "cache"
    reader = Watching(model, tmp_path)
    config = QConfig(LAYER, algo_config=[AdaRoundConfig(mem_opt_level=2, cache_dir=str(cache))])
    ModelQuantizer(config).quantize_model(model, None, reader)
    assert any(name.startswith("new/cache/") for name in reader.seen)
    assert not any(name.startswith("temporary/") for name in reader.seen)
    assert os.listdir(cache) == []
    assert os.listdir(temporary_folder) == []


def test_level_two_uses_the_temporary_folder_without_cache_dir(temporary_folder: Path) -> None:
    model = separable_cnn()
    reader = Watching(model, temporary_folder)
    config = QConfig(LAYER, algo_config=[AdaRoundConfig(mem_opt_level=2)])
    ModelQuantizer(config).quantize_model(model, None, reader)
    assert reader.seen
    assert os.listdir(temporary_folder) == []


@pytest.mark.usefixtures("temporary_folder")
@pytest.mark.parametrize("level", [0, 1])
def test_other_levels_write_no_file(level: int, tmp_path: Path) -> None:
    model = separable_cnn()
    reader = Watching(model, tmp_path)
    config = QConfig(LAYER, algo_config=[AdaRoundConfig(mem_opt_level=level, cache_dir=str(tmp_path / "cache"))])
    ModelQuantizer(config).quantize_model(model, None, reader)
    assert reader.seen == {"temporary"}
    assert os.listdir(tmp_path) == ["temporary"]


def test_nothing_is_written_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    quantize(separable_cnn(), AdaRoundConfig(mem_opt_level=2))
    assert os.listdir(folder) == []
