"""All tests can `import small_models`, and see all samples fitted to unless they are marked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from quark.onnx.quantization import tensor_specs
from quark.onnx.whole_model import set_apart

# No test depends on timing: a busy machine draws examples slowly.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

sys.path.insert(0, str(Path(__file__).parent))  # pytest's import mode "importlib" adds no folder of its own

_FEWEST, _FLOAT_SHARE = set_apart.FEWEST, tensor_specs.FLOAT_SHARE


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that recompute what comes of the data take all of it, and all activations are quantized; those marked
    `sets_apart`, `islands` run as users do.
    """
    set_apart.FEWEST = _FEWEST if item.get_closest_marker("sets_apart") else 1 << 60
    tensor_specs.FLOAT_SHARE = _FLOAT_SHARE if item.get_closest_marker("islands") else 0.0
