"""How long importing takes, in seconds of CPU time: the least of several fresh processes.

    python benchmarks/import_time.py

A name of quark.onnx may take 0.1 s more than onnx and onnxruntime, which it needs. What only a call needs is imported
by the first one, and has a line of its own. Exit status: 0 if all names are there in time, else 1.
"""

from __future__ import annotations

import os
import subprocess
import sys

from machine import describe_machine
from rich import box
from rich.console import Console
from rich.table import Table

_RUNS = 9
_LIMIT = 0.1  # s
_BASE = "import onnx, onnxruntime"
_NAMES = "from quark.onnx import ModelQuantizer, finetune, quantize"
_LINES = {
    _BASE: "",
    "import quark.onnx": _BASE,
    "from quark.onnx import QConfig, QLayerConfig, UInt8Spec, Int8Spec": _BASE,
    _NAMES: _BASE,
    "import quark.onnx.quantization.calls": f"{_BASE}; {_NAMES}",
    "from quark.onnx.cli.main import program; program()": _BASE,
}


def cpu_seconds(code: str, before: str) -> float:
    """CPU time of some code after other code, in a process whose modules are compiled."""
    timed = f"{before}\nimport time\nstart = time.process_time()\n{code}\nprint(time.process_time() - start)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return min(
        float(subprocess.run([sys.executable, "-c", timed], env=environment, check=True, capture_output=True).stdout)
        for _ in range(_RUNS)
    )


def main() -> int:
    table = Table("code", "after", "CPU s", box=box.MARKDOWN)
    found = {code: cpu_seconds(code, before) for code, before in _LINES.items()}
    for code, before in _LINES.items():
        table.add_row(f"`{code}`", before and f"`{before}`", f"{found[code]:.3f}")
    console = Console(width=200)
    console.print(table, describe_machine())
    return int(max(found["import quark.onnx"], found[_NAMES]) > _LIMIT)


if __name__ == "__main__":
    sys.exit(main())
