"""amd-quark's results: what its log tells, and when an earlier result does instead of a run."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"

# Lines of amd-quark 0.13, colours and progress bar included: kws, 16 samples, 20 iterations, two of ten layers.
LOG = (
    "\x1b[32m\n[QUARK-INFO]: Start applying FastFinetune algorithm on the quant model...\x1b[0m\n"
    "\r  0%|          | 0/10 [00:00<?, ?it/s]\x1b[32m\n"
    "[QUARK-INFO]: Quark_latency_profiler: finetuning layer 0, onnx inference (quantized model + float model) time"
    " consumed 0.017534s\x1b[0m\n\x1b[32m\n"
    "[QUARK-INFO]: Module (input)->(/f/f.3/Relu_output_0) will be optimized by adaround on cpu\x1b[0m\n\x1b[32m\n"
    "[QUARK-INFO]: adaround iterations=19, lr=0.100000, loss=10.622728 (Recons loss=0.023539,"
    " Rounding loss=10.599189)\x1b[0m\n\x1b[32m\n"
    "[QUARK-INFO]: Module (input)->(/f/f.3/Relu_output_0) recons metrics was optimized from 0.000726 to 0.000721"
    " (diff=-0.000005)\x1b[0m\n\x1b[32m\n"
    "[QUARK-INFO]: Quark_latency_profiler: finetuning layer 0, torch training time consumed 0.813925s\x1b[0m\n"
    "\r 10%|█         | 1/10 [00:00<00:07,  1.20it/s]\x1b[32m\n"
    "[QUARK-INFO]: Quark_latency_profiler: finetuning layer 9, onnx inference (quantized model + float model) time"
    " consumed 0.012562s\x1b[0m\n\x1b[32m\n"
    "[QUARK-INFO]: Module (/Flatten_output_0)->(logits_QuantizeLinear_Input) will be optimized by adaround on cpu"
    "\x1b[0m\n\x1b[32m\n"
    "[QUARK-INFO]: Module (/Flatten_output_0)->(logits_QuantizeLinear_Input) recons metrics was optimized from"
    " 0.029761 to 0.025699 (diff=-0.004062)\x1b[0m\n\x1b[32m\n"
    "[QUARK-INFO]: Quark_latency_profiler: finetuning layer 9, torch training time consumed 0.018846s\x1b[0m\n"
    "\r100%|██████████| 10/10 [00:01<00:00, 12.39it/s]\x1b[32m\n"
    "[QUARK-INFO]: ONNX inference costs 0.1s and Torch training costs 0.8s\x1b[0m\n"
)
ERRORS = {"/f/f.3/Relu_output_0": [0.000726, 0.000721], "logits_QuantizeLinear_Input": [0.029761, 0.025699]}


@pytest.fixture
def peer_log(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("peers.amd_quark_log")


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("peers.results")


def test_seconds_and_errors_are_read_from_the_log(peer_log: Any) -> None:
    assert peer_log.loop_figures(LOG) == {"loop_s": 0.833, "layer_errors": ERRORS}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("layer 9, torch training time", "layer 9,", "starts 2 layers, times 1"),
        ("(/Flatten_output_0)->(logits_QuantizeLinear_Input) recons metrics", "failed", "errors of 1"),
        ("will be optimized", "was skipped", "starts 0 layers"),
        ("training costs 0.8s", "training costs 1.8s", r"for 0.83 s, but the totals in its log are \[1.8\]"),
        ("Torch training costs 0.8s", "", r"totals in its log are \[\]"),
    ],
)
def test_a_log_that_misses_something_is_not_used(peer_log: Any, old: str, new: str, message: str) -> None:
    assert old in LOG
    with pytest.raises(peer_log.CheckError, match=message):
        peer_log.loop_figures(LOG.replace(old, new))


def earlier_results(folder: Path, *results: dict[str, Any]) -> Path:
    every = {"algorithm": "adaround", "batch_size": 1, "iterations": 1000, "learning_rate": None, "output": "gone.onnx"}
    path = folder / "earlier.json"
    path.write_text(json.dumps({"peers": [every | result for result in results]}))
    return path


def amd_quark(folder: Path) -> Path:
    """Stands for its interpreter: prints the log to standard error and as a result the options it was given."""
    (folder / "log").write_text(LOG)
    program = folder / "python"
    program.write_text(f'#!/bin/sh\ncat "{folder}/log" >&2\necho "PEER {{\\"options\\": \\"$*\\"}}"\n')
    program.chmod(0o755)
    return program


def test_only_the_same_job_does_instead_of_a_run(peers: Any, tmp_path: Path) -> None:
    same = {"case": "kws", "samples": 256}
    earlier = earlier_results(tmp_path, same | {"batch_size": 32}, same | {"learning_rate": 1e-3}, same | {"wall_s": 7})
    peer = peers.Peer("amd_quark", python=None, data=tmp_path, models=tmp_path, earlier=earlier)
    assert peer.result(peers.PeerJob(**same))["wall_s"] == 7
    for other in ({"samples": 100}, {"iterations": 20}, {"algorithm": "adaquant"}):
        with pytest.raises(RuntimeError, match="no earlier result"):
            peer.result(peers.PeerJob(**same | other))


def test_a_result_without_its_model_or_loop_is_made_again(peers: Any, tmp_path: Path) -> None:
    job = peers.PeerJob(case="kws", samples=256)
    earlier = earlier_results(tmp_path, {"case": "kws", "samples": 256})
    peer = peers.Peer("amd_quark", python=None, data=tmp_path, models=tmp_path, earlier=earlier)
    assert peer.result(job)["earlier"]
    for need in ({"with_model": True}, {"with_loop": True}):
        with pytest.raises(RuntimeError, match="no earlier result"):
            peer.result(job, **need)


def test_a_run_keeps_the_log_and_what_it_tells(peers: Any, tmp_path: Path) -> None:
    peer = peers.Peer("amd_quark", python=amd_quark(tmp_path), data=tmp_path, models=tmp_path, earlier=None)
    job = peers.PeerJob(case="kws", samples=16, algorithm="adaquant", batch_size=4, iterations=20, learning_rate=1e-3)
    result = peer.result(job, with_loop=True)
    assert (result["loop_s"], result["layer_errors"], result["earlier"]) == (0.833, ERRORS, False)
    for option in (
        "--samples 16",
        "--algorithm adaquant",
        "--batch-size 4",
        "--iterations 20",
        "--learning-rate 0.001",
    ):
        assert option in result["options"]
    (log,) = tmp_path.glob("amd_quark_*.log")
    assert "recons metrics was optimized" in log.read_text()


def test_a_plain_model_has_no_loop(peers: Any, tmp_path: Path) -> None:
    peer = peers.Peer("amd_quark", python=amd_quark(tmp_path), data=tmp_path, models=tmp_path, earlier=None)
    assert "loop_s" not in peer.result(peers.PeerJob(case="kws", samples=16, algorithm="none"))
