"""SIGKILL, or another signal, at any moment: the output is old or new, the same call goes on to the same bits, and
nothing is left behind.

QK_KILLS=1000 kills that often.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

KILLS = int(os.environ.get("QK_KILLS", "12"))

# Imports once and forks for every run, which is started and ended as a process of its own.
SERVER = """
import json, os, sys, traceback
sys.path.insert(0, sys.argv[1])
from small_models import Reader, samples, separable_cnn
from quark.onnx import AdaQuantConfig, AdaRoundConfig, BiasCorrectionConfig, Int8Spec
from quark.onnx import ModelQuantizer, QConfig, QLayerConfig, UInt8Spec

model = separable_cnn()
data = samples(model, 40)
kinds = (AdaRoundConfig, AdaQuantConfig)  # of which each gives another model

def run(output, save_dir, cache_dir, kind, selective):
    tuned = kinds[kind](mem_opt_level=2, cache_dir=cache_dir, selective_update=selective)
    config = QConfig(
        QLayerConfig(UInt8Spec(), weight=Int8Spec()),
        algo_config=[BiasCorrectionConfig(), tuned],
        use_external_data_format=True,
        extra_options={"NumThreads": 2},
    )
    ModelQuantizer(config).quantize_model(model, output, Reader(data, batch=8), save_dir=save_dir)

while line := sys.stdin.readline():
    child = os.fork()
    if not child:
        code = 1
        try:
            run(*json.loads(line))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    print(child, flush=True)
    sys.stdin.readline()  # its number stays its own until then, whatever becomes of it
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Place:
    """Folders of a run, and the server that starts runs in them."""

    def __init__(self, root: Path) -> None:
        self.output, self.saved, self.cache, self.temporary = (
            root / name for name in ("output", "saved", "cache", "temporary")
        )
        for folder in (self.output, self.saved, self.cache, self.temporary):
            folder.mkdir()
        self.path = self.output / "q.onnx"
        environment = os.environ | {"TMPDIR": str(self.temporary), "ORT_DISABLE_TELEMETRY": "1"}
        command = [sys.executable, "-c", SERVER, str(Path(__file__).parents[2])]
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, kind: int, *, selective: bool = False) -> int:
        """Begin a run; its process."""
        self._say(json.dumps([*map(str, (self.path, self.saved, self.cache)), kind, selective]))
        return self._line()

    def end(self) -> int:
        """Wait until it has ended: 0, or the signal's number."""
        self._say("end")
        return self._line()

    def _say(self, line: str) -> None:
        assert self._server.stdin is not None
        print(line, file=self._server.stdin, flush=True)

    def _line(self) -> int:
        assert self._server.stdout is not None
        return int(self._server.stdout.readline())

    def model(self) -> dict[str, bytes]:
        """The files of the model at the output path."""
        model = self.path.read_bytes()
        data = {file.name: file.read_bytes() for file in self.output.glob("q.onnx.*.data")}
        return {"q.onnx": model} | {name: content for name, content in data.items() if name.encode() in model}

    def close(self) -> None:
        self._server.kill()
        self._server.communicate()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.close()


def finished(place: Place, kind: int, *, selective: bool) -> dict[str, bytes]:
    """What a run gives that comes to its end, with nothing left behind."""
    place.start(kind, selective=selective)
    assert place.end() == 0
    assert_nothing_left(place)
    return place.model()


def assert_nothing_left(place: Place) -> None:
    assert sorted(os.listdir(place.output)) == sorted(place.model())
    for folder in (place.saved, place.cache, place.temporary):
        assert os.listdir(folder) == [], folder


def test_killed_at_random_moments(place: Place) -> None:
    moments, kills, ended, states = random.Random(KILLS), 0, 0, list[str]()
    results = {}
    for kind in (0, 1):
        started = time.monotonic()
        results[kind] = finished(place, kind, selective=False)
        duration = time.monotonic() - started
    assert results[0] != results[1]
    old, new = 1, 0
    while kills < KILLS:
        process = place.start(new)
        if moments.random() < 0.8:
            time.sleep(moments.uniform(0, duration))
            os.kill(process, signal.SIGKILL)
        status = place.end()
        kills += status == signal.SIGKILL
        assert status in (0, signal.SIGKILL)
        found = place.model()
        assert found in (results[old], results[new]), "whole, old or new"
        states.append("new" if found == results[new] else "old")
        assert os.listdir(place.cache) == os.listdir(place.temporary) == []
        if status == 0:
            ended += 1
            assert found == results[new], "the bits of a run that was not interrupted"
            assert_nothing_left(place)
            old, new = new, old
    finished(place, new, selective=False)
    print(f"{kills} kills, {ended} runs that ended, output old {states.count('old')}, new {states.count('new')}")  # noqa: T201


def test_killed_with_a_judge(place: Place) -> None:
    """Whose scores are kept too."""
    expected, started = finished(place, 0, selective=True), time.monotonic()
    finished(place, 0, selective=True)
    duration = time.monotonic() - started
    for share in (0.5, 0.7, 0.9):
        process = place.start(0, selective=True)
        time.sleep(share * duration)
        os.kill(process, signal.SIGKILL)
        place.end()
    assert finished(place, 0, selective=True) == expected


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "SIGTERM"])
def test_signals_leave_nothing_in_the_temporary_folder(place: Place, sent: signal.Signals) -> None:
    """And no handler of ours is needed: SIGTERM ends a Python program at once."""
    results, started = [finished(place, 0, selective=False)], time.monotonic()
    results.append(finished(place, 1, selective=False))
    duration = time.monotonic() - started
    for share in (0.1, 0.3, 0.5, 0.7):
        process = place.start(0)
        time.sleep(share * duration)
        os.kill(process, sent)
        assert place.end() in (0, sent, 256), "256: a KeyboardInterrupt"
        assert place.model() in results
        assert os.listdir(place.cache) == os.listdir(place.temporary) == []
        if sent == signal.SIGINT:
            assert sorted(os.listdir(place.output)) == sorted(place.model())
    assert finished(place, 0, selective=False) == results[0]
