"""drop_ratio: the share of a step's inputs that comes from the quantized model; the rest is the float model's."""

from __future__ import annotations

import logging
import re

import numpy as np
import onnx
import pytest
from small_models import Reader, build

from quark.onnx import AdaQuantConfig, AdaRoundConfig, finetune

SAMPLES, INPUTS, OUTPUTS, STEP = 600, 32, 4, 0.5


def data_and_weight() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x (samples, inputs), the integer weight and the float one, both (inputs, outputs)."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((SAMPLES, INPUTS)) + 0.3).astype(np.float32)
    weight_q = rng.integers(-7, 8, (INPUTS, OUTPUTS)).astype(np.int8)
    return x, weight_q, (0.1 * (weight_q + rng.uniform(-0.45, 0.45, weight_q.shape))).astype(np.float32)


X, WEIGHT_Q, WEIGHT = data_and_weight()

FLOAT = build(f"(float[N,{INPUTS}] x) => (float[N,{OUTPUTS}] y) {{ [layer] y = MatMul(x, w) }}", w=WEIGHT)
QUANTIZED = build(
    f"""(float[N,{INPUTS}] x) => (float[N,{OUTPUTS}] y) {{
        x_q = QuantizeLinear(x, x_scale, x_zero)
        x_real = DequantizeLinear(x_q, x_scale, x_zero)
        w_real = DequantizeLinear(w_q, w_scale)
        [layer] y = MatMul(x_real, w_real)
    }}""",
    x_scale=STEP, x_zero=np.uint8(128), w_q=WEIGHT_Q, w_scale=0.1,
)  # fmt: skip


def tuned(config: AdaRoundConfig | AdaQuantConfig) -> onnx.ModelProto:
    return finetune(FLOAT, QUANTIZED, None, Reader({"x": X}), config)[0]


def first_loss(ratio: float, caplog: pytest.LogCaptureFixture) -> float:
    """Return the loss of the first step, on all samples, with the weights rounded to nearest."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "quark.onnx"):
        tuned(AdaQuantConfig(
            solver="gradient", num_iterations=1, dynamic_batch=True, log_period=1, drop_ratio=ratio
        ))  # fmt: skip
    return float(re.search(r"step 1, loss (\S+)", caplog.text).group(1))


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_the_loss_of_a_step_is_that_of_mixed_inputs(ratio: float, caplog: pytest.LogCaptureFixture) -> None:
    x, weight = X.astype(np.float64), 0.1 * WEIGHT_Q
    moved = STEP * np.rint(x / STEP) - x
    mean = (((x + ratio * moved) @ weight - x @ WEIGHT) ** 2).sum(axis=1).mean()
    spread = ratio * (1 - ratio) * ((moved**2) @ (weight**2)).sum(axis=1).mean()
    exact = ratio in (0, 1)
    assert first_loss(ratio, caplog) == pytest.approx(mean + spread, rel=1e-4 if exact else 0.1)


def test_the_draw_follows_the_seed_and_not_threads_or_levels() -> None:
    def model(**options: int) -> onnx.ModelProto:
        return tuned(AdaRoundConfig(solver="gradient", num_iterations=100, drop_ratio=0.5, **options))

    first = model(fixed_seed=3)
    assert first == model(fixed_seed=3)
    assert first == model(fixed_seed=3, mem_opt_level=2)
    assert first == model(fixed_seed=3, mem_opt_level=0)
    assert any(first != model(fixed_seed=seed) for seed in (4, 5))


def test_auto_mixes_inputs_too() -> None:
    with_mixing = tuned(AdaRoundConfig(num_iterations=200, drop_ratio=0.5))
    assert with_mixing != QUANTIZED


def test_least_squares_alone_says_that_it_does_not_mix() -> None:
    _, report = finetune(
        FLOAT, QUANTIZED, None, Reader({"x": X}), AdaRoundConfig(solver="least_squares", drop_ratio=0.5)
    )
    (line,) = report.ignored
    assert line.startswith("drop_ratio=0.5 has no effect")
