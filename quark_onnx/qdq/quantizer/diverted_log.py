"""What onnxruntime.quantization logs on the root logger, taken from there."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

__all__ = ["diverted_log"]


@contextlib.contextmanager
def diverted_log(name: str) -> Iterator[list[logging.LogRecord]]:
    """Collect what onnxruntime.quantization logs on the root logger, as records of the logger of this name.

    It calls logging.warning() and logging.info(), which give a root logger without handlers one of theirs.
    """
    records: list[logging.LogRecord] = []

    def divert(record: logging.LogRecord) -> bool:
        if "onnxruntime" not in record.pathname:
            return True
        record.name = name
        records.append(record)
        return False

    root, handler = logging.getLogger(), logging.NullHandler()
    root.addFilter(divert)
    root.addHandler(handler)
    try:
        yield records
    finally:
        root.removeHandler(handler)
        root.removeFilter(divert)
