"""Quantizing in a second thread, in a forked child, from an evaluator, and when the interpreter ends."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnx
import onnxruntime
import pytest
from small_models import Reader, mlp, samples, separable_cnn

from quark.onnx import AdaRoundConfig, Int8Spec, ModelQuantizer, QConfig, QLayerConfig, UInt8Spec

TESTS = Path(__file__).parents[2]
PRELUDE = """
    import atexit, hashlib, logging, os, sys, threading
    sys.path.insert(0, sys.argv[1])
    from small_models import Reader, samples, separable_cnn
    from quark.onnx import *
    from quark.onnx import QConfig, QLayerConfig

    logging.getLogger("quark").setLevel(logging.ERROR)  # nothing is said of how well the model did

    def quantize(**keywords):
        model = separable_cnn()
        layer = QLayerConfig(UInt8Spec(), weight=Int8Spec())
        config = QConfig(layer, algo_config=[AdaRoundConfig(**keywords)], NumThreads=2)
        result = ModelQuantizer(config).quantize_model(model, None, Reader(samples(model, 40)))
        return hashlib.sha256(result.SerializeToString()).hexdigest()
"""


def quantize(model: onnx.ModelProto, **keywords: object) -> onnx.ModelProto:
    config = QConfig(
        QLayerConfig(UInt8Spec(), weight=Int8Spec()), algo_config=[AdaRoundConfig(**keywords)], NumThreads=2
    )
    return ModelQuantizer(config).quantize_model(model, None, Reader(samples(model, 40)))


def program(text: str) -> subprocess.CompletedProcess[str]:
    source = textwrap.dedent(PRELUDE) + textwrap.dedent(text)
    command = [sys.executable, "-c", source, str(TESTS)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_in_several_threads_at_the_same_time() -> None:
    models = [separable_cnn(), mlp(), separable_cnn(seed=3)]
    expected = [quantize(model) for model in models]
    with ThreadPoolExecutor(3) as executor:
        assert list(executor.map(quantize, models)) == expected


def test_from_an_evaluator() -> None:
    inner, outer, found = mlp(), separable_cnn(), []

    def score(session: onnxruntime.InferenceSession) -> float:
        found.append(quantize(inner))
        return float(len(session.get_outputs()) + len(found))

    def score_alone(session: onnxruntime.InferenceSession) -> float:
        alone.append(0)
        return float(len(session.get_outputs()) + len(alone))

    alone: list[int] = []
    result = quantize(outer, selective_update=True, evaluator=score)
    assert result.graph == quantize(outer, selective_update=True, evaluator=score_alone).graph
    assert all(model == found[0] for model in found)
    assert found[0] == quantize(inner)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_in_a_forked_child_after_a_run_in_the_parent() -> None:
    done = program(
        """
        mine = quantize()
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write, quantize().encode())
            os._exit(0)
        os.close(write)
        print(os.waitpid(child, 0)[1], os.read(read, 100).decode() == mine, quantize() == mine)
        """
    )
    assert done.stdout.split() == ["0", "True", "True"], done.stderr


@pytest.mark.parametrize("keywords", ["", "parallel=True", "solver='gradient', num_iterations=10**9"])
def test_a_daemon_thread_at_work_does_not_keep_the_interpreter(keywords: str) -> None:
    done = program(
        f"""
        begun = threading.Event()

        class SlowReader(Reader):
            def get_next(self):
                begun.set()
                return super().get_next()

        def work():
            while True:
                model = separable_cnn()
                config = QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), algo_config=[AdaRoundConfig({keywords})])
                ModelQuantizer(config).quantize_model(model, None, SlowReader(samples(model, 40)))

        threading.Thread(target=work, daemon=True).start()
        begun.wait()
        quantize()
        print("end", flush=True)
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_a_daemon_thread_leaves_a_model_that_runs_for_ever() -> None:
    done = program(
        """
        import numpy, onnx.parser, time

        model = onnx.parser.parse_model(
            '''<ir_version: 10, opset_import: ["" : 21]>
            looped (float[1, 4] x, int64 times) => (float[1, 2] y) <float[4, 2] w = {1,0,0,1, 1,1,0,0}> {
                h = MatMul(x, w)
                go = Constant<value = bool {1}>()
                y = Loop(times, go, h) <body = turn (int64 i, bool on, float[1, 2] a) => (bool still, float[1, 2] b) {
                    still = Identity(on)
                    b = Relu(a)
                }>
            }'''
        )
        given = threading.Event()

        class Data:
            def get_next(self):
                given.set()
                return {"x": numpy.ones((1, 4), numpy.float32), "times": numpy.array(1 << 60)}

        def work():
            ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()))).quantize_model(model, None, Data())

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        given.wait()
        time.sleep(1)
        print(thread.is_alive(), flush=True)
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_in_an_exit_handler() -> None:
    """Python starts no threads of a pool any more then."""
    done = program(
        """
        mine = quantize()
        parallel = quantize(parallel=True)

        def at_the_end():
            print(quantize() == mine, quantize(parallel=True) == parallel)

        atexit.register(at_the_end)
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True True\n", "")


def test_a_thread_that_outlives_the_main_one() -> None:
    done = program(
        """
        mine = quantize()

        def work():
            threading.main_thread().join()
            print(quantize() == mine)

        threading.Thread(target=work).start()
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
