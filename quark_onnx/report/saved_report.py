"""A report that was written as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from quark.onnx.errors import DataError
from quark.onnx.measures.deviation import Deviation, OutputDeviation
from quark.onnx.report.plain_data import from_plain

if TYPE_CHECKING:
    from quark.onnx.report.report import Report

__all__ = ["read_json", "restored"]

_Deviation = TypeVar("_Deviation", Deviation, OutputDeviation)


def read_json(path: Path) -> Any:
    """The content of a file.

    Raises:
        OSError: it cannot be read.
        DataError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON or of UTF-8
        raise DataError(f"{path}: not a report, which Report.to_json() writes: {error}") from error


def restored(cls: type[Report], plain: Mapping[str, Any], where: str) -> Report:
    """The report that was written.

    Args:
        where: it was read, for errors.

    Raises:
        DataError: it is none.
    """
    report = from_plain(cls, plain, where)
    if report.end_to_end is None:
        return report
    result = report.end_to_end
    return replace(
        report,
        end_to_end=replace(
            result,
            before=_deviation(result.before),
            after=_deviation(result.after),
            before_default=_deviation(result.before_default) if result.before_default else None,
            after_default=_deviation(result.after_default) if result.after_default else None,
        ),
    )


def _deviation(written: Deviation) -> Deviation:
    outputs = tuple(_output(one) for one in written.outputs)
    error = math.inf if math.isnan(written.error) else written.error
    return replace(_finite(written), error=error, outputs=outputs)


def _output(written: OutputDeviation) -> OutputDeviation:
    return replace(_finite(written), parts=tuple(_output(one) for one in written.parts))


def _finite(written: _Deviation) -> _Deviation:
    """JSON has no infinite numbers: the norm tells which one it was."""
    l2 = math.inf if math.isnan(written.l2) else written.l2
    if not math.isnan(written.sqnr_db):
        return replace(written, l2=l2)
    return replace(written, l2=l2, sqnr_db=math.inf if l2 == 0 else -math.inf)
