"""`quark-onnx` as a process: piped, in a terminal, interrupted, with wrong input."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import embedding, samples, separable_cnn

from quark.onnx import AdaRoundConfig, Int8Spec, ModelQuantizer, QConfig, QLayerConfig, UInt8Spec
from quark.onnx.cli.main import main
from quark.onnx.model_files.quantized_form import is_quantized

ESCAPE = "\x1b"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a model, and data for it in a file and in a folder."""
    model = separable_cnn()
    onnx.save(model, tmp_path / "m.onnx")
    x = samples(model, 48)["x"]
    np.savez(tmp_path / "data.npz", x=x)
    (tmp_path / "arrays").mkdir()
    for index, sample in enumerate(x):
        np.save(tmp_path / "arrays" / f"{index:02}.npy", sample)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "quark.onnx", *words]


def piped(*words: str, **keywords: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=300, **keywords)


class Called:
    """A call within this process: its exit code, and what it wrote."""

    def __init__(self, words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
        capsys.readouterr()
        self.code = main(words)
        self.out, self.err = capsys.readouterr()


QUANTIZE = ["quantize", "m.onnx", "q.onnx", "--data", "data.npz"]


def in_terminal(words: Sequence[str], *, until: str | None = None, columns: int = 100) -> tuple[int, str]:
    """The exit code, and all that a terminal shows; Ctrl-C is typed as soon as `until` shows."""
    child, terminal = pty.fork()
    if not child:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's job in the background ignores it, and hands that on
        os.environ.update({"COLUMNS": str(columns), "TERM": "xterm-256color"})
        os.execv(sys.executable, command(*words))
    shown = b""
    while True:
        if not select.select([terminal], [], [], 300)[0]:
            os.kill(child, signal.SIGKILL)
            raise AssertionError(f"it hangs: {shown!r}")
        try:
            part = os.read(terminal, 4096)
        except OSError:  # how Linux says that the other side is closed
            part = b""
        if not part:
            break
        shown += part
        if until is not None and until.encode() in shown:
            os.write(terminal, b"\x03")
            until = None
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown.decode()


# ---- every command, piped and in a terminal ------------------------------------------------------


@pytest.mark.usefixtures("folder")
def test_all_commands_piped() -> None:
    ran = piped(*QUANTIZE, "--save-config", "c.yaml", "--report", "run.json")
    assert ran.returncode == 0, ran.stderr
    assert ESCAPE not in ran.stdout + ran.stderr
    assert "\r" not in ran.stdout + ran.stderr
    assert "Finetuning layers: 6 done in" in ran.stderr
    assert "written: q.onnx" in ran.stdout
    assert is_quantized(onnx.load("q.onnx"))
    shown = piped("report", "run.json", "--full")
    assert "pw1" in shown.stdout
    page = piped("report", "run.json", "--html", "run.html")
    assert page.stdout == "written: run.html\n"
    assert "<svg" in Path("run.html").read_text()
    plain = piped(*QUANTIZE[:2], "plain.onnx", "--data", "arrays", "--no-finetuning", "--quiet")
    assert (plain.returncode, plain.stderr) == (0, "")
    tuned = piped("finetune", "m.onnx", "plain.onnx", "tuned.onnx", "--data", "data.npz", "--json")
    assert json.loads(tuned.stdout)["algorithm"] == "adaround"
    compared = piped("compare", "m.onnx", "q.onnx", "--data", "data.npz")
    assert "48 samples, agreement" in compared.stdout
    examined = piped("doctor", "m.onnx", "q.onnx", "--data", "data.npz", "--samples", "8")
    assert "8 samples: the quantized model is at" in examined.stdout
    assert "alone dB" in examined.stdout
    inspected = piped("inspect", "m.onnx")
    assert "to be tuned: 6 layers by adaround" in inspected.stdout
    for ran in (tuned, compared, examined, inspected, shown, page):
        assert ran.returncode == 0, ran.stderr
        assert ESCAPE not in ran.stdout + ran.stderr


@pytest.mark.usefixtures("folder")
def test_all_commands_in_a_terminal() -> None:
    code, shown = in_terminal(QUANTIZE)
    assert code == 0, shown
    assert "Finetuning layers" in shown
    assert ESCAPE in shown  # the bar
    assert "written: q.onnx" in shown
    assert shown.rindex(ESCAPE + "[?25h") > shown.rindex(ESCAPE + "[?25l")  # the cursor is back
    assert in_terminal(["compare", "m.onnx", "q.onnx", "--data", "data.npz"])[0] == 0
    code, shown = in_terminal(["inspect", "m.onnx"], columns=60)
    assert code == 0
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).splitlines()
    assert max(map(len, lines)) <= 60
    code, shown = in_terminal(["quantize", "absent.onnx", "q2.onnx", "--data", "data.npz"])
    assert code == 1
    assert f"{ESCAPE}[31merror:{ESCAPE}[0m there is no float model at 'absent.onnx'" in shown
    assert not Path("q2.onnx").exists()


def test_ctrl_c_leaves_nothing(folder: Path) -> None:
    before = sorted(folder.iterdir())
    slow = ["--solver", "gradient", "--num-iterations", "100000"]
    code, shown = in_terminal([*QUANTIZE, *slow], until="Finetuning")
    assert code == 130
    assert "interrupted: nothing was written" in shown
    assert "Traceback" not in shown
    assert shown.rindex(ESCAPE + "[?25h") > shown.rindex(ESCAPE + "[?25l")
    assert sorted(folder.iterdir()) == before


def test_a_terminated_run_leaves_nothing(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    temporary = tmp_path_factory.mktemp("temporary")
    before = sorted(folder.iterdir())
    slow = ["--solver", "gradient", "--num-iterations", "100000", "--mem-opt-level", "2", "--log-period", "1", "-v"]
    environment = os.environ | {"TMPDIR": str(temporary), "ORT_DISABLE_TELEMETRY": "1"}
    running = subprocess.Popen(command(*QUANTIZE, *slow), stderr=subprocess.PIPE, text=True, env=environment)
    assert running.stderr is not None
    for line in running.stderr:
        if "stem" in line:  # the first layer is being trained
            break
    time.sleep(0.2)
    running.terminate()
    running.stderr.read()
    assert running.wait(60) == 128 + signal.SIGTERM
    assert sorted(folder.iterdir()) == before
    assert list(temporary.iterdir()) == []


@pytest.mark.usefixtures("folder")
def test_a_reader_of_the_output_that_goes_away() -> None:
    shell = f"{sys.executable} -m quark.onnx inspect m.onnx --full | true"
    ran = subprocess.run(["bash", "-c", f"set -o pipefail; {shell}"], capture_output=True, text=True)
    assert "Traceback" not in ran.stderr
    assert "Exception ignored" not in ran.stderr


# ---- what comes out ------------------------------------------------------------------------------


@pytest.mark.usefixtures("folder")
def test_it_is_what_python_makes(capsys: pytest.CaptureFixture[str]) -> None:
    assert Called(QUANTIZE, capsys).code == 0
    config = QConfig(QLayerConfig(activation=UInt8Spec(), weight=Int8Spec()), algo_config=[AdaRoundConfig()])
    ModelQuantizer(config).quantize_model("m.onnx", "by_python.onnx", np.load("data.npz")["x"])
    assert Path("q.onnx").read_bytes() == Path("by_python.onnx").read_bytes()


@pytest.mark.usefixtures("folder")
def test_json_alone_is_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    ran = Called([*QUANTIZE, "--json"], capsys)
    report = json.loads(ran.out)
    assert report["samples"] == 48
    assert [layer["name"] for layer in report["layers"]] == ["stem", "dw1", "pw1", "dw2", "pw2", "classes"]
    found = json.loads(Called(["inspect", "m.onnx", "--json"], capsys).out)
    assert [layer["tuned"] for layer in found["layers"]] == [True] * 6
    compared = json.loads(Called(["compare", "m.onnx", "q.onnx", "--data", "data.npz", "--json"], capsys).out)
    assert compared["samples"] == 48
    assert compared["outputs"][0]["cosine"] > 0.9
    same = json.loads(Called(["compare", "m.onnx", "m.onnx", "--data", "data.npz", "--json"], capsys).out)
    assert same["agreement"] == 1
    assert same["outputs"][0]["sqnr_db"] is None  # infinite


def test_a_dry_run_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.iterdir())
    words = [*QUANTIZE, "--dry-run", "--save-config", "c.yaml", "--report", "r.json", "--save-dir", "saved"]
    ran = Called(words, capsys)
    assert ran.code == 0
    assert "to be quantized: 6 of 6 layers" in ran.out
    assert "expected for 48 samples: about" in ran.out
    assert sorted(folder.iterdir()) == before


@pytest.mark.usefixtures("folder")
def test_the_configuration_is_saved_and_used_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert Called([*QUANTIZE, "--weight-symmetric", "--num-threads", "2", "--save-config", "c.yaml"], capsys).code == 0
    again = Called(["quantize", "m.onnx", "q2.onnx", "--data", "data.npz", "--config", "c.yaml"], capsys)
    assert again.code == 0
    assert Path("q.onnx").read_bytes() == Path("q2.onnx").read_bytes()


def test_every_place_where_data_may_be(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mine.py").write_text(
        textwrap.dedent("""
        import numpy as np

        ARRAY = np.load("data.npz")["x"]

        class Reader:
            def __init__(self):
                self.items = iter(ARRAY)

            def get_next(self):
                item = next(self.items, None)
                return None if item is None else {"x": item[None]}

        def batches():
            yield from ARRAY

        def made(path):
            return np.load(path)
        """)
    )
    np.save("data.npy", np.load("data.npz")["x"])
    made = set()
    data = ["data.npz", "data.npy", "arrays", "mine:Reader", "mine:batches", "mine:ARRAY"]
    for words in (*([one] for one in data), ["arrays", "--preprocess", "mine:made"]):
        ran = Called(["quantize", "m.onnx", "q.onnx", "--data", *words], capsys)
        assert ran.code == 0, ran.err
        made.add(Path("q.onnx").read_bytes())
    assert len(made) == 1
    assert Called(["quantize", "m.onnx", "q.onnx", "--use-random-data"], capsys).code == 0


def test_a_folder_of_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pillow = pytest.importorskip("PIL.Image")
    (folder / "photos").mkdir()
    for index in range(40):
        pixels = np.random.RandomState(index).randint(0, 256, (9, 12, 3), np.uint8)
        pillow.fromarray(pixels).save(folder / "photos" / f"{index}.png")
    words = ["quantize", "m.onnx", "q.onnx", "--data", "photos"]
    ran = Called([*words, "--preprocess", "imagenet"], capsys)
    assert ran.code == 0, ran.err
    spelled_out = ["--crop", "0.875", "--scale", "1/255", "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
    first = Path("q.onnx").read_bytes()
    assert Called([*words, *spelled_out], capsys).code == 0
    assert Path("q.onnx").read_bytes() == first
    ran = Called(words, capsys)
    assert ran.code == 1
    assert "--preprocess imagenet" in ran.err


@pytest.mark.usefixtures("folder")
def test_a_warning_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("few.npz", x=samples(separable_cnn(), 5)["x"])
    ran = Called(["quantize", "m.onnx", "q.onnx", "--data", "few.npz"], capsys)
    warnings = [line for line in ran.err.splitlines() if line.startswith("warning: there are 5 calibration samples")]
    assert len(warnings) == 1


# ---- errors --------------------------------------------------------------------------------------

ERRORS = {
    "no model": (["quantize", "absent.onnx", "q.onnx", "--data", "data.npz"], 1, "no float model at 'absent.onnx'"),
    "no data": (["quantize", "m.onnx", "q.onnx", "--data", "absent"], 1, "no folder of calibration data at 'absent'"),
    "no reader": (["quantize", "m.onnx", "q.onnx", "--data", "absent:Reader"], 1, "there is no module 'absent'"),
    "no option for data": (["quantize", "m.onnx", "q.onnx"], 2, "--data is needed"),
    "no argument": (["quantize", "m.onnx"], 2, "Missing argument 'OUT'"),
    "no command": (["quantise"], 2, "No such command 'quantise'"),
    "unknown option": ([*QUANTIZE, "--num-iteration", "4"], 2, "--num-iterations"),
    "wrong value": ([*QUANTIZE, "--num-iterations", "0"], 2, "got '0', expected an int >= 1"),
    "not supported": ([*QUANTIZE, "--weight", "MX4"], 1, "needs AMD Quark's custom operators"),
    "nothing to exclude": ([*QUANTIZE, "--exclude", "stm"], 1, "did you mean 'stem'"),
    "quantized already": (["quantize", "q.onnx", "q2.onnx", "--data", "data.npz"], 1, "quantized already"),
    "same file": (["quantize", "m.onnx", "m.onnx", "--data", "data.npz"], 1, "m.onnx"),
    "images of a file": ([*QUANTIZE, "--preprocess", "imagenet"], 1, "'data.npz' is a file"),
    "images of nothing": (["inspect", "m.onnx", "--size", "8"], 2, "options for images need --data FOLDER"),
    "unknown preprocessing": ([*QUANTIZE, "--preprocess", "imagnet"], 2, "expected imagenet, yolo, caffe, none"),
    "another model": (["compare", "m.onnx", "other.onnx", "--data", "data.npz"], 1, "have not the same inputs"),
    "a report's name": ([*QUANTIZE, "--report", "r.txt"], 2, "ends in .html or .json"),
    "no configuration": ([*QUANTIZE, "--config", "absent.yaml"], 1, "absent.yaml"),
}  # fmt: skip


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("words", "code", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_are_one_line(words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "--preprocess" in words and code == 1:
        pytest.importorskip("PIL")
    if "q.onnx" in words[1:2]:
        assert Called(QUANTIZE, capsys).code == 0
    onnx.save(embedding(), "other.onnx")
    ran = Called(words, capsys)
    assert ran.code == code
    assert message in ran.err
    assert ran.out == ""
    assert "Traceback" not in ran.err
    if code == 1:
        assert [line for line in ran.err.splitlines() if line.startswith("error: ")] == ran.err.splitlines()


@pytest.mark.usefixtures("folder")
def test_debug_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    ran = Called(["quantize", "absent.onnx", "q.onnx", "--data", "data.npz", "--debug"], capsys)
    assert ran.code == 1
    assert "Traceback" in ran.err


def test_an_error_of_the_users_reader(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "failing.py").write_text("def items():\n    raise KeyError('mine')\n    yield\n")
    ran = Called(["quantize", "m.onnx", "q.onnx", "--data", "failing:items"], capsys)
    assert ran.code == 1
    assert ran.err == "error: KeyError: 'mine' (--debug shows where)\n"


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert "quantize" in Called(["--help"], capsys).out
    for name in ("quantize", "finetune", "inspect", "compare", "completion"):
        ran = Called([name, "-h"], capsys)
        assert ran.code == 0
        assert f"Usage: quark-onnx {name}" in ran.out
    assert re.fullmatch(r"quark-onnx, version [0-9.]+\S*\n", Called(["--version"], capsys).out)


def completions(line: str) -> list[str]:
    environment = {"_QUARK_ONNX_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    program = "import sys; from quark.onnx.cli.main import main; sys.exit(main())"
    ran = subprocess.run([sys.executable, "-c", program], env=os.environ | environment, capture_output=True, text=True)
    return [line.partition(",")[2] for line in ran.stdout.splitlines()]


def test_completion(capsys: pytest.CaptureFixture[str]) -> None:
    assert completions("quark-onnx qua") == ["quantize"]
    assert completions("quark-onnx quantize --num-it") == ["--num-iterations"]
    assert completions("quark-onnx quantize --solver g") == ["gradient"]
    assert completions("quark-onnx quantize --preset XINT8_ADAR") == ["XINT8_ADAROUND"]
    assert completions("quark-onnx quantize --preprocess y") == ["yolo"]
    for shell in ("bash", "zsh", "fish"):
        assert "_QUARK_ONNX_COMPLETE" in Called(["completion", shell], capsys).out
    script = Called(["completion", "bash"], capsys).out
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


@pytest.mark.usefixtures("folder")
def test_a_model_of_several_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(embedding(), "e.onnx")
    np.savez("tokens.npz", **samples(embedding(), 40))
    assert Called(["quantize", "e.onnx", "q.onnx", "--data", "tokens.npz"], capsys).code == 0
    assert Called(["inspect", "e.onnx", "--data", "tokens.npz"], capsys).code == 0
    ran = Called(["quantize", "e.onnx", "q.onnx", "--data", "data.npz"], capsys)
    assert "has the names ['x']: the inputs are ['tokens', 'importance']" in ran.err
