"""Run the peer's script unchanged, and measure the memory of its quantize_model call.

    PEER_PYTHON peer_memory.py .../peer_quark.py --case mobilenet_v1 ...

Prints a line `MEMORY {json}` (memory.ResidentMemory.figures), then the script's own. The method is wrapped at
run time; neither the script nor amd-quark is changed.
"""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from pathlib import Path
from typing import Any

from memory import resident_memory


def main() -> None:
    script = Path(sys.argv[1]).resolve()
    sys.argv = sys.argv[1:]
    sys.path[0] = str(script.parent)  # as if the script had been started itself
    quantizer: Any = importlib.import_module("quark.onnx").ModelQuantizer
    quantize_model = quantizer.quantize_model

    def measured(self: Any, *args: Any, **kwargs: Any) -> Any:
        with resident_memory() as memory:
            result = quantize_model(self, *args, **kwargs)
        print("MEMORY " + json.dumps(memory.figures()), flush=True)
        return result

    quantizer.quantize_model = measured
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
