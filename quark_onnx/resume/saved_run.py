"""save_dir: what a run has done so far is kept, and the same call goes on from there, to the same bits.

The walk runs its segments as in a run that was not interrupted, so that onnxruntime gives the same floats. The records
give the statistics of calibration, the solutions of layers, and the scores of `selective_update`.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from quark.onnx import _core
from quark.onnx.calibration.calibrate import Calibration
from quark.onnx.calibration.value_histogram import ValueHistogram
from quark.onnx.calibration_data.checked_items import Batch
from quark.onnx.config.described import described
from quark.onnx.errors import ConfigError, DataError
from quark.onnx.inference.large_models import digest_of
from quark.onnx.qdq.weight_params import WeightParams
from quark.onnx.resume.records import Record, Records
from quark.onnx.resume.saved_layers import SavedLayers
from quark.onnx.solvers.solver import OpenSolver

__all__ = ["NothingSaved", "SavedRun", "saved_run"]

_PACKAGES = ("quark-onnx", "onnx", "onnxruntime", "numpy")
_REMEDY = "Give another save_dir, or remove the records in this one"


class NothingSaved:
    """A run without save_dir. Use as a context manager."""

    def __enter__(self) -> NothingSaved:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to do."""

    def watched(self, items: Iterator[Batch]) -> Iterator[Batch]:
        """The calibration items, in passing."""
        return items

    def calibration(self, items: Iterator[Batch], compute: Callable[[Iterator[Batch]], Calibration]) -> Calibration:
        """What `compute` makes of the items, which are watched."""
        return compute(items)

    def data_was_read(self) -> None:
        """Call it behind the last of the items, where there is no calibration."""

    def solver(self, stage: str, opener: OpenSolver) -> OpenSolver:  # noqa: ARG002
        """What opens the solvers of a stage's layers."""
        return opener

    def score(self, compute: Callable[[], float]) -> float:
        """The next of the whole model's scores."""
        return compute()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the report says of it."""
        return ()

    def finish(self) -> None:
        """The result is where it belongs."""


class SavedRun(NothingSaved):
    """A run that is kept in a folder. Use as a context manager; by another process at the same time it is refused.

    Args:
        save_dir: made if it is not there; other files in it are left alone.
        about: tells this run from others: digests and versions by what they are of.

    Raises:
        OSError: the folder cannot be made or read.
        ConfigError: another process uses it, or it holds a run of something else.
    """

    def __init__(self, save_dir: str | os.PathLike[str], about: Mapping[str, str]) -> None:
        self._shown = f"save_dir {os.fspath(save_dir)!r}"
        self._records = Records(Path(save_dir))
        try:
            self._check(about)
        except BaseException:
            self._records.close()
            raise
        self._about = json.dumps(dict(about), sort_keys=True)
        self._data = hashlib.sha256()
        self._layers: SavedLayers | None = None
        self._asked = self._calibrated = False
        self._scores = 0

    def __enter__(self) -> SavedRun:
        return self

    def __exit__(self, *error: object) -> None:
        self._records.close()

    def _check(self, about: Mapping[str, str]) -> None:
        kept = self._records.get("run")
        if kept is None and self._records.names():
            raise ConfigError(f"{self._shown} holds records of a run that it does not tell. {_REMEDY}")
        if kept is None:
            self._records.put("run", Record(dict(about)))
            return
        other = [name for name in {**kept.fields, **about} if kept.fields.get(name) != about.get(name)]
        if other:
            differ = "differs" if len(other) == 1 else "differ"
            raise ConfigError(f"{self._shown} holds another run: {' and '.join(other)} {differ}. {_REMEDY}")

    def watched(self, items: Iterator[Batch]) -> Iterator[Batch]:
        for item in items:
            self._add(item)
            yield item

    def _add(self, item: Batch) -> None:
        for name, array in item.items():
            self._data.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
            if array.dtype.kind == "O":
                self._data.update(json.dumps(list(map(str, array.flat))).encode())
            else:
                self._data.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def calibration(self, items: Iterator[Batch], compute: Callable[[Iterator[Batch]], Calibration]) -> Calibration:
        """What `compute` makes of the items; if the records have that, the items are read, and compared.

        Raises:
            DataError: they are other ones.
        """
        if self._asked:  # a second calibration of a run is not kept
            return compute(items)
        self._asked, kept = True, self._records.get("data")
        if kept is None:
            found = compute(items)
            self._keep_data(_written(found))
            return found
        for _ in items:
            pass
        self.data_was_read()
        self._calibrated = True
        return _read(kept)

    def data_was_read(self) -> None:
        """Call it behind the last of the items, where there is no calibration.

        Raises:
            DataError: they are other ones than those of the run that is kept.
        """
        kept = self._records.get("data")
        if kept is None:
            self._keep_data(Record({}))
        elif kept.fields["digest"] != self._data.hexdigest():
            raise DataError(
                f"{self._shown} holds a run on other calibration data: the reader must give the same items in the same "
                f"order. {_REMEDY}"
            )

    def _keep_data(self, record: Record) -> None:
        self._records.put("data", Record({**record.fields, "digest": self._data.hexdigest()}, record.arrays))

    @property
    def _run(self) -> str:
        """The digest of all that the run depends on."""
        return hashlib.sha256((self._about + self._data.hexdigest()).encode()).hexdigest()

    def solver(self, stage: str, opener: OpenSolver) -> OpenSolver:
        """Solutions that are there are taken, others kept. The data was read."""
        self._layers = self._layers or SavedLayers(self._records, self._run)
        return self._layers.solver(stage, opener)

    def score(self, compute: Callable[[], float]) -> float:
        """The next of the whole model's scores: the kept one, or that which is computed, and kept.

        An evaluator may be slow, and not give the same twice.
        """
        name = f"score-{self._scores}"
        self._scores += 1
        kept = self._records.get(name)
        if kept is not None and kept.fields["run"] == self._run:
            return float(kept.fields["score"])
        score = compute()
        self._records.put(name, Record({"run": self._run, "score": score}))
        return score

    @property
    def notes(self) -> tuple[str, ...]:
        taken = self._layers.taken if self._layers is not None else 0
        if not taken and not self._calibrated:
            return ()
        statistics = " and the statistics of calibration" if self._calibrated else ""
        return (f"resumed: {taken} layers{statistics} taken from {self._shown}",)

    def finish(self) -> None:
        """The result is where it belongs: the records go."""
        self._records.clear(last="run")


def saved_run(
    save_dir: str | os.PathLike[str] | None,
    models: Mapping[str, onnx.ModelProto | None],
    config: object,
    output: str | os.PathLike[str] | None,
) -> NothingSaved:
    """What is kept of a run in `save_dir`, or nothing where that is None.

    Args:
        models: that it starts from, by what messages call them.
        config: of the run.
        output: where its result goes, if it is a file.

    Raises:
        OSError: as by `SavedRun`.
        ConfigError: as by `SavedRun`; or it is the folder of the output, which a save has to itself for a moment.
    """
    if save_dir is None:
        return NothingSaved()
    if output is not None and Path(save_dir).resolve() == Path(output).resolve().parent:
        raise ConfigError(f"save_dir {os.fspath(save_dir)!r} is the folder of the output: give it a folder of its own")
    about = {f"the {name}": digest_of(model) for name, model in models.items() if model is not None}
    about["the configuration"] = hashlib.sha256(described(config).encode()).hexdigest()
    about |= {f"the version of {package}": version(package) for package in _PACKAGES}
    about["the processor"] = f"{platform.machine()} {_core.isa()} {_core.blas_config()}"
    return SavedRun(save_dir, about)


def _written(found: Calibration) -> Record:
    fields = {name: value for name, value in vars(found).items() if name != "weights"}
    weights, arrays = {}, {}
    for i, (name, params) in enumerate(found.weights.items()):
        arrays[f"scale{i}"] = params.scale
        arrays[f"zero_point{i}"] = params.zero_point.astype(np.int64)
        weights[name] = {"dtype": params.zero_point.dtype.name, "axis": params.axis, "block": params.block}
    fields["histograms"] = {name: asdict(histogram) for name, histogram in found.histograms.items()}
    return Record({**fields, "weights": weights}, arrays)


def _read(record: Record) -> Calibration:
    fields: dict[str, Any] = {name: value for name, value in record.fields.items() if name not in ("digest", "weights")}
    fields["ranges"] = {name: (low, high) for name, (low, high) in fields["ranges"].items()}
    fields["histograms"] = {
        name: ValueHistogram(**{**about, "counts": tuple(about["counts"])})
        for name, about in fields["histograms"].items()
    }
    weights = {}
    for i, (name, about) in enumerate(record.fields["weights"].items()):
        zero_point = record.arrays[f"zero_point{i}"].astype(np.dtype(about["dtype"]))
        weights[name] = WeightParams(record.arrays[f"scale{i}"], zero_point, about["axis"], about["block"])
    return Calibration(weights=weights, **fields)
