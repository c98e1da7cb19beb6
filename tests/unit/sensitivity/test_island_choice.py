"""Which quantizers become islands, where errors are known and add up."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from quark.onnx.sensitivity.islands import Islands, is_destroyed, islands
from quark.onnx.sensitivity.switched_model import Switch


class KnownDamage:
    """In place of Damage: each quantizer has an error and a number of values, and errors add up."""

    samples = 1

    def __init__(self, quantizers: dict[str, tuple[float, int]]) -> None:
        self.switches = [Switch(name, f"{name}_fine", (name,), *more_fields()) for name in quantizers]
        self._quantizers = quantizers
        self.elements = {name: size for name, (_, size) in quantizers.items()}

    measured = 0

    def error(self, on: Iterable[Switch]) -> float:
        self.measured += 1
        return sum(self._quantizers[switch.name][0] for switch in on)


def more_fields() -> tuple[object, ...]:
    """What a Switch has besides, and islands do not read."""
    return ((),) * (len(Switch.__dataclass_fields__) - 3)


def found(quantizers: dict[str, tuple[float, int]], max_share: float) -> Islands:
    damage = KnownDamage(quantizers)
    alone = {switch.tensors: damage.error([switch]) for switch in damage.switches}
    return islands(damage, alone, max_share)  # type: ignore[arg-type]


def names(result: Islands) -> list[str]:
    return [island.tensors[0] for island in result.kept]


MANY = 10_000_000  # values, of which 16384 are next to nothing


def test_what_destroys_the_model_for_few_values_comes_first() -> None:
    quantizers = {"small": (0.08, MANY // 100), "large": (0.03, MANY // 3), "harmless": (1e-5, MANY // 2)}
    result = found(quantizers, 0.3)
    assert names(result) == ["small"]
    assert result.before == pytest.approx(0.11, rel=1e-3)
    assert result.after == pytest.approx(0.03, rel=1e-3)
    assert [island.tensors for island in result.left_out] == [("large",)]


def test_beyond_the_cheap_part_each_percent_must_bring_a_decibel() -> None:
    """With 30 % allowed 12 % are cheap; the next 15 % take half of the error that is left, or nearly all of it."""
    percent = MANY // 100
    first, second = {"first": (1.0, 10 * percent)}, {"second": (0.02, 15 * percent)}
    little = found({**first, **second, "third": (0.02, 60 * percent), "rest": (1e-5, 15 * percent)}, 0.3)
    much = found({**first, **second, "rest": (1e-5, 75 * percent)}, 0.3)
    assert names(little) == ["first"]
    assert names(much) == ["first", "second"]


def test_next_to_no_error_is_never_an_island() -> None:
    quantizers = {"harm": (0.5, 100), **{f"quiet{i}": (9e-5, 100) for i in range(100)}, "rest": (0.0, MANY)}
    result = found(quantizers, 0.5)
    assert names(result) == ["harm"]
    assert result.share == pytest.approx(1e-5, rel=0.01)


def test_no_island_where_half_of_the_error_would_stay() -> None:
    result = found({"one": (0.01, 1000), "large": (0.5, MANY)}, 0.1)
    assert result.kept == ()
    assert result.after == result.before
    assert {island.tensors for island in result.left_out} == {("one",), ("large",)}


def test_nothing_is_left_out_of_a_model_that_is_good() -> None:
    """Errors cancel each other: alone two quantizers destroy the model, all together they do not."""
    damage = KnownDamage({"one": (0.01, MANY // 2), "large": (0.5, MANY)})
    alone = {switch.tensors: damage.error([switch]) for switch in damage.switches}
    damage.error = lambda _on: 1e-3  # type: ignore[method-assign]
    result = islands(damage, alone, 0.1)  # type: ignore[arg-type]
    assert result.kept == result.left_out == ()


@pytest.mark.parametrize("harmful", [[], [0], [99], [40, 41], range(100)], ids=["none", "first", "last", "two", "all"])
def test_a_model_is_destroyed_as_soon_as_one_quantizer_is_known_to_do_it(harmful: Iterable[int]) -> None:
    damage = KnownDamage({str(i): (0.01 if i in harmful else 1e-4, 1) for i in range(100)})
    assert is_destroyed(damage) == bool(list(harmful))  # type: ignore[arg-type]
    assert damage.measured <= 20  # about two for each halving: not one for each quantizer


def test_many_little_errors_do_not_destroy_a_model() -> None:
    assert not is_destroyed(KnownDamage({str(i): (5e-3, 1) for i in range(64)}))  # type: ignore[arg-type]
    assert not is_destroyed(KnownDamage({str(i): (1e-5, 1) for i in range(64)}))  # type: ignore[arg-type]
