"""What is shown while it runs: a bar in a terminal, log lines elsewhere, nothing on standard output."""

from __future__ import annotations

import atexit
import inspect
import io
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import rich.live
import rich.progress
from rich.console import Console
from small_models import Arrays, Reader, samples, separable_cnn

from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    AlgoConfig,
    BiasCorrectionConfig,
    CLEConfig,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    UInt8Spec,
)
from quark.onnx.system import progress
from quark.onnx.system.progress import PhaseProgress

TraceFunction = Callable[[FrameType, str, Any], Any]

LAYERS = ("stem", "dw1", "pw1", "dw2", "pw2", "classes")


def quantize(reader: object | None = None) -> None:
    model = separable_cnn()
    config = QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), algo_config=[AdaRoundConfig()])
    ModelQuantizer(config).quantize_model(model, None, reader or Reader(samples(model, 24)))


class Terminal(io.StringIO):
    """Keeps what is drawn on it."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Standard error is a terminal; what is drawn on it."""
    drawn = Terminal()

    def console(*, stderr: bool) -> Console:
        assert stderr
        return Console(file=drawn, force_terminal=True, force_jupyter=False, width=100, _environ={})

    monkeypatch.setattr(progress, "Console", console)
    return drawn


@pytest.fixture
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=io.StringIO(), force_terminal=False))


@pytest.mark.usefixtures("no_terminal")
def test_each_phase_logs_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "quark.onnx")
    quantize()
    lines = [line for line in caplog.messages if " done in " in line]
    assert [line.split(" done")[0] for line in lines] == ["Calibrating samples: 24", "Finetuning layers: 6"]


@pytest.mark.usefixtures("no_terminal")
def test_long_phases_log_lines_on_the_way(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    caplog.set_level(logging.INFO, "quark.onnx")
    quantize()
    for index, name in enumerate(LAYERS, start=1):
        (line,) = [line for line in caplog.messages if line.startswith(f"Finetuning layers: {index} of 6, ")]
        assert " s left" in line
        assert line.endswith(name)
    assert any(line.startswith("Calibrating samples: 24") for line in caplog.messages)


@pytest.mark.usefixtures("no_terminal")
def test_all_loggers_are_below_the_packages(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    quantize()
    assert {record.name.split(".")[:2] == ["quark", "onnx"] for record in caplog.records} == {True}


def test_a_terminal_shows_a_bar(terminal: io.StringIO) -> None:
    quantize()
    drawn = terminal.getvalue()
    for text in ("Calibrating samples", "24/", "Finetuning layers", "6/6", "classes", "━", "0:0"):
        assert text in drawn, text
    assert drawn.rstrip().endswith(("\x1b[?25h", "\x1b[2K")), "the cursor is back, the bar is gone"


@pytest.mark.sets_apart
def test_a_bar_ends_with_an_error(terminal: io.StringIO) -> None:
    class Failing(Reader):
        def get_next(self) -> Arrays | None:
            item = super().get_next()
            if item is None:
                raise KeyboardInterrupt
            return item

    threads = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        quantize(Failing(samples(separable_cnn(), 100)))  # more than are read before the bar is there
    assert "\x1b[?25l" in terminal.getvalue()
    assert "\x1b[?25h" in terminal.getvalue().rpartition("\x1b[?25l")[2], "the cursor is back"
    for thread in set(threading.enumerate()) - threads:
        thread.join(timeout=10)
        assert not thread.is_alive(), thread


def test_a_bar_ends_wherever_it_is_interrupted(terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ahead of any line that starts or stops it. Ahead of the first one of __exit__ it ends with the process."""
    at_exit = list[Callable[[], None]]()
    monkeypatch.setattr(atexit, "register", at_exit.append)
    monkeypatch.setattr(atexit, "unregister", lambda function: function in at_exit and at_exit.remove(function))
    sources = {str(inspect.getsourcefile(module)) for module in (progress, rich.live, rich.progress)}
    streams, threads, step, left, late = (sys.stdout, sys.stderr), set(threading.enumerate()), 0, -1, 0

    def trace(frame: FrameType, event: str, _: object) -> TraceFunction | None:
        nonlocal left
        if frame.f_code.co_filename not in sources:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    while left <= 0:  # the last one came to its end
        step, left = step + 1, step + 1
        bar = PhaseProgress("Phase", 3)
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            with bar:
                pass
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        late += bool(at_exit)
        while at_exit:
            at_exit[-1]()
        assert (sys.stdout, sys.stderr) == streams, step
        _, hidden, after = terminal.getvalue().rpartition("\x1b[?25l")
        assert not hidden or "\x1b[?25h" in after, step
    assert step > 50
    assert late <= 3
    for thread in set(threading.enumerate()) - threads:
        thread.join(timeout=10)
        assert not thread.is_alive(), thread


@pytest.mark.parametrize("kind", ["terminal", "no_terminal"])
def test_nothing_goes_to_standard_output(
    kind: str, request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    request.getfixturevalue(kind)
    quantize()
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


@pytest.mark.parametrize("kind", ["terminal", "no_terminal"])
def test_what_a_reader_prints_stays_on_standard_output(
    kind: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    request.getfixturevalue(kind)

    class Printing(Reader):
        def get_next(self) -> Arrays | None:
            print("next image, please")  # noqa: T201
            return super().get_next()

    quantize(Printing(samples(separable_cnn(), 4)))
    assert capsys.readouterr().out == 5 * "next image, please\n"


SCRIPT = """
import logging, sys
sys.path.insert(0, sys.argv[1])
from small_models import Reader, samples, separable_cnn
from quark.onnx import AdaRoundConfig, Int8Spec, ModelQuantizer, QConfig, QLayerConfig, UInt8Spec
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
model = separable_cnn()
config = QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), algo_config=[AdaRoundConfig()])
ModelQuantizer(config).quantize_model(model, None, Reader(samples(model, 24)))
"""


@pytest.mark.parametrize("variables", [{}, {"FORCE_COLOR": "1", "CI": "true"}, {"TTY_COMPATIBLE": "1"}], ids=str)
def test_a_run_whose_output_goes_to_files(variables: dict[str, str]) -> None:
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parents[2])]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **variables})
    assert result.stdout == ""
    assert all(character.isprintable() or character == "\n" for character in result.stderr)
    assert "INFO Calibrating samples: 24 done in" in result.stderr
    assert "INFO Finetuning layers: 6 done in" in result.stderr


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
def test_a_run_in_a_terminal() -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parents[2])]
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "CI")} | {"TERM": "xterm"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment)
    os.close(theirs)
    drawn = b""
    try:
        while chunk := os.read(ours, 65536):
            drawn += chunk
    except OSError:  # Linux says so when the other side is closed
        pass
    finally:
        os.close(ours)
    assert process.stdout is not None
    assert process.stdout.read() == b""
    assert process.wait() == 0
    assert "Finetuning layers" in drawn.decode()
    assert b"6/6" in drawn


def test_a_notebook_that_cannot_draw_gets_lines(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """rich draws in notebooks with ipywidgets, and warns at every refresh without."""
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=io.StringIO(), force_jupyter=True))
    monkeypatch.setattr(progress, "find_spec", lambda _: None)
    caplog.set_level(logging.INFO, "quark.onnx")
    quantize()
    assert any("Finetuning layers: 6 done" in line for line in caplog.messages)
    assert not [warning for warning in recwarn if "ipywidgets" in str(warning.message)]


@pytest.mark.parametrize(
    "algorithms",
    [
        [],
        [BiasCorrectionConfig(), AdaRoundConfig(parallel=True, drop_ratio=0.5)],
        [CLEConfig(), AdaQuantConfig(solver="gradient", num_iterations=20)],
        [AdaRoundConfig(selective_update=True, log_period=7)],
    ],
    ids=["plain", "parallel", "steps", "selective"],
)
def test_a_warning_is_said_once_a_run(algorithms: list[AlgoConfig], caplog: pytest.LogCaptureFixture) -> None:
    """Few samples, all equal and out of range, and an option without effect: there is much to warn of."""
    model = separable_cnn()
    sample = 200 * samples(model, 1)["x"]
    config = QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), algo_config=algorithms, AlignConcat=True)
    ModelQuantizer(config).quantize_model(model, None, Reader({"x": sample.repeat(8, axis=0)}))
    warned = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warned) >= 2
    assert len(warned) == len(set(warned))
