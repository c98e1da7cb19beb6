"""What is said of quantizers that do much harm and stay, where errors are known and add up."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from quark.onnx.measures.deviation import Deviation
from quark.onnx.sensitivity.islands import Island, Islands, islands
from quark.onnx.sensitivity.left_out import left_out_warning
from quark.onnx.sensitivity.switched_model import Switch

MANY = 10_000_000  # values, of which 16384 are next to nothing


class KnownDamage:
    """In place of Damage: each quantizer has an error and a number of values, and errors add up."""

    samples = 1

    def __init__(self, quantizers: dict[str, tuple[float, int]]) -> None:
        self.switches = [Switch(name, f"{name}_fine", (name,)) for name in quantizers]
        self._errors = {name: error for name, (error, _) in quantizers.items()}
        self.elements = {name: size for name, (_, size) in quantizers.items()}

    def error(self, on: Iterable[Switch]) -> float:
        return sum(self._errors[switch.name] for switch in on)

    def deviation(self, on: Iterable[Switch]) -> Deviation:
        return Deviation(l2=0.0, sqnr_db=0.0, agreement=None, error=self.error(on))


def warning(quantizers: dict[str, tuple[float, int]], max_share: float) -> str:
    damage = KnownDamage(quantizers)
    alone = {switch.tensors: damage.error([switch]) for switch in damage.switches}
    found = islands(damage, alone, max_share)  # type: ignore[arg-type]
    return left_out_warning(damage, found, max_share)  # type: ignore[arg-type]


def test_without_room_the_room_and_what_more_would_bring_are_named() -> None:
    text = warning({"wide": (0.5, MANY // 2), "rest": (1e-3, MANY // 2)}, 0.1)
    assert text.startswith("8 bits destroy the model: the quantizers of 'wide' (3.0 dB) alone")
    assert "another 50 % of the activations" in text
    assert "at 30.0 dB in place of 3.0 dB" in text
    assert text.endswith("MaxFloatShare=0.1 leaves room for 10 %; raise it, or give those tensors 16 bits")


def test_a_model_that_is_fair_is_not_destroyed() -> None:
    text = warning({"wide": (0.02, MANY // 2), "rest": (1e-3, MANY // 2)}, 0.1)
    assert text.startswith("8 bits take an output to 16.8 dB: the quantizers of 'wide' (17.0 dB) alone")
    assert text.endswith("raise it, or give those tensors 16 bits")


@pytest.mark.parametrize("room", [0.3, 0.0], ids=["room", "no room"])
def test_floats_that_bring_next_to_nothing_are_not_advised(room: float) -> None:
    damage = KnownDamage({"small": (0.05, MANY // 100), "rest": (0.9, MANY)})
    found = Islands((), 0.95, 0.95, (Island(("small",), 0.05, 0.01),), room * MANY, MANY)
    text = left_out_warning(damage, found, 0.3)  # type: ignore[arg-type]
    assert "at 0.5 dB in place of 0.2 dB" in text
    assert text.endswith("floats are little help")


def test_where_there_is_room_more_of_it_is_not_advised() -> None:
    damage = KnownDamage({"large": (0.05, MANY // 4), "rest": (0.05, MANY)})
    found = Islands((), 0.1, 0.1, (Island(("large",), 0.05, 0.2),), 0.3 * MANY, MANY)
    text = left_out_warning(damage, found, 0.3)  # type: ignore[arg-type]
    assert "at 13.0 dB in place of 10.0 dB" in text
    assert text.endswith("though MaxFloatShare=0.3 leaves room for them")
