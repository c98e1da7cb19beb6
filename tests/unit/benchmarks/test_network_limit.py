"""The limit of a network, against numbers worked out by hand."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("network_limit")


def test_the_limit_is_that_of_layers_and_passes(limit: Any) -> None:
    rates = limit.Rates(product=1e9, factor=1e9, bytes=1e9)
    layer = limit.LayerSize(inputs=300, outputs=20, groups=1, rows=125, fitted=100)
    moments = 125 * (300**2 / 2 + 2 * 20 * 300)
    solving = 300 * 100**2 / 3 + 7 * 20 * 300 * 100  # fewer fitted rows than inputs
    scale = 10 * 2 * 20 * 300 * 125
    wanted = (moments + solving + scale) / 1e9 + 3.6 * 8 * 0.25 + 0.5
    assert limit.limit_seconds([layer], 8, 0.25, rates) == pytest.approx(wanted)


def test_groups_have_a_matrix_each(limit: Any) -> None:
    rates = limit.Rates(product=1e9, factor=1e9, bytes=1e9)
    layer = limit.LayerSize(inputs=9, outputs=32, groups=32, rows=1000, fitted=800)
    moments = 1000 * (32 * 9**2 / 2 + 2 * 32 * 9)
    solving = 32 * 9 * 9**2 / 3 + 7 * 32 * 9 * 9
    wanted = (moments + solving + 10 * 2 * 32 * 9 * 9) / 1e9
    assert limit.limit_seconds([layer], 0, 0.0, rates) - 0.5 == pytest.approx(wanted)
