"""What amd-quark's log tells of its training loops: their seconds, and every layer's error before and after."""

from __future__ import annotations

import re
from typing import Any

from model_checks import CheckError

_STARTED = re.compile(r"Module \(.*\) will be optimized by")
_SECONDS = re.compile(r"finetuning layer \d+, torch training time consumed (\S+)s")
_ERRORS = re.compile(r"Module \(.*?\)->\((.*?)\) recons metrics was optimized from (\S+) to (\S+) \(diff=")
_TOTAL = re.compile(r"Torch training costs (\S+)s")
_TOTAL_STEP = 0.1  # the total is printed with one decimal

ERROR_STEP = 1e-6  # errors are printed with six


def loop_figures(log: str) -> dict[str, Any]:
    """The figures of one finetuning from all that the process printed.

    Returns:
        loop_s: seconds of all layers' training, without inference of their data.
        layer_errors: by the name of the tensor that a layer computes: [before, after], mean squares, in graph order.

    Raises:
        CheckError: a layer has no such figures, as it failed; or the log is not what it was when this was written.
    """
    started, seconds, errors = len(_STARTED.findall(log)), _SECONDS.findall(log), _ERRORS.findall(log)
    layers = {tensor: [float(before), float(after)] for tensor, before, after in errors}
    if not 0 < started == len(seconds) == len(layers):
        raise CheckError(
            f"amd-quark's log starts {started} layers, times {len(seconds)} and has errors of {len(layers)}"
        )
    loop, totals = sum(map(float, seconds)), [float(total) for total in _TOTAL.findall(log)]
    if len(totals) != 1 or abs(totals[0] - loop) > _TOTAL_STEP:
        raise CheckError(f"amd-quark's layers train for {loop:.2f} s, but the totals in its log are {totals}")
    return {"loop_s": round(loop, 3), "layer_errors": layers}
