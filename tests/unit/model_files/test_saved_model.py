"""A path holds a whole model, old or new, at any moment; no other file is touched, and nothing stays behind."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from quark.onnx.model_files import saved_model
from quark.onnx.model_files.model_file import load_model
from quark.onnx.model_files.saved_model import check_output_path, save_model
from quark.onnx.system.scratch_folder import scratch_folder, try_lock

FORMS = pytest.mark.parametrize("external_data", [False, True], ids=["one file", "external data"])


def model_of(seed: int) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N,64] x) => (float[N,64] y, int8[1025] o, float[999] e)
        { m = MatMul(x, w) y = Add(m, b) o = Identity(odd) e = Identity(behind) }"""
    )
    random = np.random.default_rng(seed)
    for name, shape in (("w", (64, 64)), ("b", (64,))):  # w goes to the data, b is small
        model.graph.initializer.append(numpy_helper.from_array(random.standard_normal(shape, np.float32), name))
    model.graph.initializer.append(numpy_helper.from_array(random.integers(0, 9, 1025, np.int8), "odd"))
    model.graph.initializer.append(numpy_helper.from_array(random.standard_normal(999, np.float32), "behind"))
    return model


OLD, NEW = model_of(0), model_of(1)


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def loaded(path: Path) -> onnx.ModelProto:
    model = load_model(path, role="result")
    for tensor in model.graph.initializer:
        tensor.ClearField("data_location")  # which onnx.load sets to what it is by default
    return model


def result(model: onnx.ModelProto | Path) -> np.ndarray:
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"x": np.eye(64, dtype=np.float32)})
    return np.concatenate([output.astype(np.float32).ravel() for output in outputs])


def assert_only(path: Path, model: onnx.ModelProto) -> None:
    """The folder holds this model, whole, and nothing else."""
    assert loaded(path) == model
    np.testing.assert_array_equal(result(path), result(model))
    others = set(files(path.parent)) - {path.name}
    assert len(others) <= 1
    for name in others:
        assert name.encode() in path.read_bytes(), "it is the model's data"


@FORMS
def test_what_is_saved_is_the_model(tmp_path: Path, external_data: bool):
    before = NEW.SerializeToString()
    save_model(NEW, tmp_path / "m.onnx", external_data=external_data)
    assert_only(tmp_path / "m.onnx", NEW)
    assert len(files(tmp_path)) == 1 + external_data
    assert NEW.SerializeToString() == before


def test_the_same_model_gives_the_same_files(tmp_path: Path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save_model(NEW, tmp_path / folder / "m.onnx", external_data=True)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    for name in files(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("old", [False, True], ids=["old: one file", "old: external data"])
@FORMS
def test_the_data_of_a_model_that_is_replaced_goes(tmp_path: Path, old: bool, external_data: bool):
    save_model(OLD, tmp_path / "m.onnx", external_data=old)
    save_model(NEW, tmp_path / "m.onnx", external_data=external_data)
    assert_only(tmp_path / "m.onnx", NEW)
    assert len(files(tmp_path)) == 1 + external_data


def test_what_is_not_ours_or_is_still_read_stays(tmp_path: Path):
    path = tmp_path / "m.onnx"
    save_model(OLD, path, external_data=True)
    shutil.copy(path, tmp_path / "best.onnx")  # which reads the old data
    theirs = ["m.onnx.data", "m.onnx.0123.data", "m.onnx.0123456789abcdeX.data", "weights.bin"]
    for name in theirs:
        (tmp_path / name).write_bytes(b"theirs")
    os.mkfifo(tmp_path / "pipe")
    before = files(tmp_path)
    save_model(NEW, path, external_data=True)
    assert set(before) < set(files(tmp_path))
    assert loaded(tmp_path / "best.onnx") == OLD
    assert loaded(path) == NEW
    (tmp_path / "best.onnx").unlink()
    save_model(NEW, path)
    assert files(tmp_path) == sorted(["m.onnx", "pipe", *theirs])


@FORMS
def test_mode_and_link_stay(tmp_path: Path, external_data: bool):
    path = tmp_path / "m.onnx"
    save_model(OLD, path, external_data=external_data)
    path.chmod(0o640)
    (tmp_path / "link.onnx").symlink_to("m.onnx")
    save_model(NEW, tmp_path / "link.onnx", external_data=external_data)
    (tmp_path / "link.onnx").unlink()
    assert_only(path, NEW)
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o640}


def test_a_new_file_has_the_usual_mode(tmp_path: Path):
    (tmp_path / "usual").write_bytes(b"")
    save_model(NEW, tmp_path / "m.onnx", external_data=True)
    assert {file.stat().st_mode for file in tmp_path.iterdir()} == {(tmp_path / "usual").stat().st_mode}


@pytest.mark.parametrize("name", ["x" * 250 + ".onnx", "é" * 125 + ".onnx", "no_suffix", "a.onnx\udcff"],
                         ids=["longest", "longest in bytes", "no suffix", "not UTF-8"])  # fmt: skip
@FORMS
def test_unusual_names(tmp_path: Path, name: str, external_data: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # where a file of the name that external data has on its way would be in the way
    for model in (OLD, NEW):
        check_output_path(tmp_path / name)
        save_model(model, tmp_path / name, external_data=external_data)
        assert loaded(tmp_path / name) == model
        assert len(files(tmp_path)) == 1 + external_data


def at_every_step(save: Callable[[], None], stop: Callable[[], None]) -> Iterator[int]:
    """Saves in forked children, stopped ahead of the first operation on files, of the second, ...; which one it was."""
    count = 0
    while True:
        count += 1
        child = os.fork()
        if child == 0:
            code = 70
            try:
                left = count

                def hook(event: str, _: object) -> None:
                    nonlocal left
                    if event == "open" or event.startswith(("os.", "shutil.", "tempfile.")):
                        left -= 1
                        if left == 0:
                            stop()

                sys.addaudithook(hook)
                save()
                code = 71 if left > 0 else 72  # it ran to its end; it did without what failed
            except OSError:
                code = 72
            finally:
                os._exit(code)
        status = os.waitpid(child, 0)[1]
        yield count
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) in (71, 72)
            if os.WEXITSTATUS(status) == 71:
                return


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise OSError("the disk is full")


@pytest.mark.parametrize("old", [None, False, True], ids=["nothing there", "old: one file", "old: external data"])
@FORMS
def test_killed_ahead_of_any_operation(tmp_path: Path, old: bool | None, external_data: bool):
    path, steps, seen = tmp_path / "m.onnx", 0, set()
    if old is not None:
        save_model(OLD, path, external_data=old)
    for steps in at_every_step(lambda: save_model(NEW, path, external_data=external_data), kill):
        if path.exists():
            found = loaded(path)
            assert found in (OLD, NEW)
            np.testing.assert_array_equal(result(path), result(found))
            seen.add("new" if found == NEW else "old")
        else:
            assert old is None
            seen.add("none")
        save_model(NEW if steps % 2 else OLD, path)
        assert files(tmp_path) == ["m.onnx"], "the next save cleans up"
        path.unlink()
        if old is not None:
            save_model(OLD, path, external_data=old)
    assert steps > 10
    assert seen == {"new", "none" if old is None else "old"}


@pytest.mark.parametrize("old", [None, False, True], ids=["nothing there", "old: one file", "old: external data"])
@FORMS
def test_failed_at_any_operation(tmp_path: Path, old: bool | None, external_data: bool):
    path, steps = tmp_path / "m.onnx", []
    if old is not None:
        save_model(OLD, path, external_data=old)
    for step in at_every_step(lambda: save_model(NEW, path, external_data=external_data), fail):
        steps.append(step)
        scratch = [name for name in files(tmp_path) if name.startswith(".")]
        assert len(scratch) <= 1  # where removing it is what failed
        if path.exists():
            assert loaded(path) in (OLD, NEW)
        save_model(OLD, path, external_data=bool(old))
        if old is None:
            path.unlink()
    assert len(steps) > 10


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
@FORMS
@pytest.mark.parametrize("old", [None, False, True], ids=["nothing there", "old: one file", "old: external data"])
def test_a_failed_rename_leaves_what_was_there(
    tmp_path: Path, old: bool | None, external_data: bool, error: BaseException, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "m.onnx"
    if old is not None:
        save_model(OLD, path, external_data=old)
    before, real_replace = files(tmp_path), os.replace

    def replace(source: Path, target: Path) -> None:
        if target == path:
            raise error
        real_replace(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(type(error)):
        save_model(NEW, path, external_data=external_data)
    assert files(tmp_path) == before
    assert old is None or loaded(path) == OLD


def test_the_disk_has_it_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """After a loss of power a name may be there whose content is not, unless it was waited for."""
    events = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(handle: int) -> None:
        events.append(("sync", os.fstat(handle).st_ino))
        real_sync(handle)

    def replace(source: Path, target: Path) -> None:
        assert ("sync", Path(source).stat().st_ino) in events
        events.append(("rename", Path(target).name))
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    save_model(NEW, tmp_path / "m.onnx", external_data=True)
    data, model = (i for i, (kind, _) in enumerate(events) if kind == "rename")
    folder = ("sync", tmp_path.stat().st_ino)
    assert folder in events[data:model], "the data's name, before that of the model"
    assert folder in events[model:]


@FORMS
def test_few_open_files(tmp_path: Path, external_data: bool):
    """It is saved, or there is an error, and nothing is left behind."""
    codes = set()
    for more in range(10):
        child = os.fork()
        if child == 0:
            code = 70
            try:
                free = os.open("/", os.O_RDONLY)
                os.close(free)
                resource.setrlimit(resource.RLIMIT_NOFILE, (free + more, free + more))
                save_model(NEW, tmp_path / "m.onnx", external_data=external_data)
                code = 71
            except OSError:
                code = 72
            finally:
                os._exit(code)
        codes.add(os.WEXITSTATUS(os.waitpid(child, 0)[1]))
        if files(tmp_path):
            assert_only(tmp_path / "m.onnx", NEW)
            save_model(OLD, tmp_path / "m.onnx")
            (tmp_path / "m.onnx").unlink()
    assert codes == {71, 72}


def saves(path: Path, seed: int) -> None:
    for _ in range(20):
        save_model(model_of(seed), path, external_data=True)


def test_several_processes_write_one_path(tmp_path: Path):
    path, context = tmp_path / "m.onnx", get_context("fork")
    children = [context.Process(target=saves, args=(path, seed)) for seed in (0, 1, 2)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    assert_only(path, next(m for m in map(model_of, range(3)) if m == loaded(path)))


def test_scratch_of_a_process_at_work_stays(tmp_path: Path):
    with scratch_folder(tmp_path) as held:
        (held / "model").write_bytes(b"half")
        save_model(NEW, tmp_path / "m.onnx")
        assert (held / "model").read_bytes() == b"half"
        left = tmp_path / ".quark_onnx_left"
        left.mkdir()
        (left / "data").write_bytes(b"half")
        save_model(NEW, tmp_path / "m.onnx")
        assert not left.exists()
    assert files(tmp_path) == ["m.onnx"]


def test_a_folder_that_somebody_locks_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(saved_model, "_LONGEST_WAIT", 0.05)
    save_model(OLD, tmp_path / "m.onnx", external_data=True)
    lock = try_lock(tmp_path)
    assert lock is not None
    with lock:
        save_model(NEW, tmp_path / "m.onnx", external_data=True)
        assert len(files(tmp_path)) == 3, "nothing is removed that the other may count on"
    save_model(NEW, tmp_path / "m.onnx", external_data=True)
    assert_only(tmp_path / "m.onnx", NEW)


def test_output_path_that_is_fine(tmp_path: Path):
    save_model(OLD, tmp_path / "in.onnx")
    save_model(OLD, tmp_path / "old.onnx")
    check_output_path(tmp_path / "new.onnx", tmp_path / "in.onnx", OLD)
    check_output_path(tmp_path / "old.onnx", str(tmp_path / "in.onnx"))
    check_output_path(tmp_path / "new.onnx", tmp_path / "absent.onnx")
    (tmp_path / "link.onnx").symlink_to("not_yet.onnx")
    check_output_path(tmp_path / "link.onnx")
    assert files(tmp_path) == ["in.onnx", "link.onnx", "old.onnx"]


def test_output_path_without_a_place(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(IsADirectoryError, match="is a directory"):
        check_output_path(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        check_output_path(tmp_path / "absent" / "q.onnx")
    with pytest.raises(NotADirectoryError, match="not a directory"):
        check_output_path(tmp_path / "file" / "q.onnx")


@pytest.mark.parametrize("write", [check_output_path, lambda path: save_model(NEW, path)], ids=["check", "save"])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, write: Callable[[Path], None]):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "to_null").symlink_to("/dev/null")
    for name in ("pipe", "to_null", "/dev/null"):
        with pytest.raises(FileExistsError, match="device, a FIFO or a socket"):
            write(tmp_path / name)
    with pytest.raises(OSError, match=r"loop.*symbolic links"):
        write(tmp_path / "loop")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert files(tmp_path) == ["loop", "pipe", "to_null"]


def test_a_name_that_is_too_long_is_refused_at_the_start(tmp_path: Path):
    with pytest.raises(OSError, match="cannot be written: File name too long"):
        check_output_path(tmp_path / ("x" * 256))
    assert files(tmp_path) == []


def test_output_directory_not_writable(tmp_path: Path):
    place = Path("/proc") if os.geteuid() == 0 else tmp_path / "locked"  # root may write to any real directory
    if os.geteuid() != 0:
        place.mkdir(mode=0o500)
    with pytest.raises(PermissionError, match=r"q\.onnx.* cannot be written"):
        check_output_path(place / "q.onnx")


def test_output_must_not_be_an_input(tmp_path: Path):
    path = tmp_path / "in.onnx"
    save_model(OLD, path)
    (tmp_path / "link.onnx").symlink_to(path)
    os.link(path, tmp_path / "hard.onnx")
    for output in ("in.onnx", "link.onnx", "hard.onnx", "../" + tmp_path.name + "/in.onnx"):
        with pytest.raises(shutil.SameFileError, match="overwrite the input model"):
            check_output_path(tmp_path / output, OLD, path)


def test_output_must_not_be_the_data_of_an_input(tmp_path: Path):
    save_model(OLD, tmp_path / "in.onnx", external_data=True)
    (data,) = tmp_path.glob("*.data")
    with pytest.raises(shutil.SameFileError, match="overwrite the input model"):
        check_output_path(data, tmp_path / "in.onnx")


def test_the_data_of_a_renamed_input_stays(tmp_path: Path):
    save_model(OLD, tmp_path / "q.onnx", external_data=True)
    (tmp_path / "q.onnx").rename(tmp_path / "in.onnx")
    check_output_path(tmp_path / "q.onnx", tmp_path / "in.onnx")
    save_model(NEW, tmp_path / "q.onnx", external_data=True)
    assert loaded(tmp_path / "in.onnx") == OLD


def test_a_name_that_merely_occurs_in_the_input_is_no_overwriting(tmp_path: Path):
    """The name of a node or tensor, or a part of that of another file, is not the file that is read."""
    source, target = tmp_path / "src.onnx", tmp_path / "net"
    model = model_of(0)
    model.graph.name = "net"
    save_model(model, source, external_data=True)
    target.write_bytes(b"an older result")
    check_output_path(target, source)
    for data in tmp_path.glob("src.onnx.*.data"):
        with pytest.raises(shutil.SameFileError):
            check_output_path(data, source)
