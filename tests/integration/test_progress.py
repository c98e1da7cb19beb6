"""What is shown while it runs: a bar in a terminal, log lines elsewhere, nothing on standard output."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console
from small_models import Arrays, Reader, samples, separable_cnn

from quark.onnx import AdaRoundConfig, Int8Spec, ModelQuantizer, QConfig, QLayerConfig, UInt8Spec
from quark.onnx.report import progress

LAYERS = ("stem", "dw1", "pw1", "dw2", "pw2", "classes")


def quantize(reader: object | None = None) -> None:
    model = separable_cnn()
    config = QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), algo_config=[AdaRoundConfig()])
    ModelQuantizer(config).quantize_model(model, None, reader or Reader(samples(model, 24)))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Standard error is a terminal; what is drawn on it."""
    drawn = io.StringIO()

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


def test_a_bar_ends_with_an_error(terminal: io.StringIO) -> None:
    class Failing(Reader):
        def get_next(self) -> Arrays | None:
            item = super().get_next()
            if item is None:
                raise KeyboardInterrupt
            return item

    threads = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        quantize(Failing(samples(separable_cnn(), 4)))
    assert "\x1b[?25l" in terminal.getvalue()
    assert "\x1b[?25h" in terminal.getvalue().rpartition("\x1b[?25l")[2], "the cursor is back"
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


def test_a_run_whose_output_goes_to_files() -> None:
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parents[1])]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == ""
    assert "INFO Calibrating samples: 24 done in" in result.stderr
    assert "INFO Finetuning layers: 6 done in" in result.stderr
    assert "\x1b" not in result.stderr
    assert "━" not in result.stderr


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
def test_a_run_in_a_terminal() -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parents[1])]
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
