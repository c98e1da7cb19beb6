"""All tests can `import small_models`, and see all samples fitted to unless they are marked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from quark.onnx.whole_model import set_apart

sys.path.insert(0, str(Path(__file__).parent))  # pytest's import mode "importlib" adds no folder of its own

_FEWEST = set_apart.FEWEST


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that recompute what comes of the data take all of it; those marked `sets_apart` run as users do."""
    set_apart.FEWEST = _FEWEST if item.get_closest_marker("sets_apart") else 1 << 60
