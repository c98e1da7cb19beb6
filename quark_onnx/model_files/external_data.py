"""Tensors that a model keeps in files beside it: read from regular files in its own folder, and from nowhere else."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import onnx
from onnx.external_data_helper import load_external_data_for_tensor

from quark.onnx.errors import ModelError
from quark.onnx.model_files.tensor_gate import check_room, tensor_bytes

__all__ = ["load_external_data"]


def load_external_data(model: onnx.ModelProto, folder: Path) -> None:
    """Read all tensors of a model that lie in other files.

    Args:
        model: gets them.
        folder: where the model lies.

    Raises:
        OSError: a file cannot be read.
        ModelError: a file is named that lies elsewhere, is none, or is too short; or memory does not hold them.
    """
    outside = [t for t in _tensors(model) if t.data_location == onnx.TensorProto.EXTERNAL]
    check_room(sum(_checked_size(tensor, folder) for tensor in outside), "its external data")
    for tensor in outside:
        load_external_data_for_tensor(tensor, os.fspath(folder))
        tensor.data_location = onnx.TensorProto.DEFAULT
        tensor.ClearField("external_data")


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for item in node.attribute:
            yield from item.tensors
            if item.HasField("t"):
                yield item.t
            if item.HasField("g"):
                yield from _of_graph(item.g)
            for body in item.graphs:
                yield from _of_graph(body)


def _checked_size(tensor: onnx.TensorProto, folder: Path) -> int:
    """The bytes to be read for a tensor."""
    what = f"the tensor {tensor.name!r}"
    given = {entry.key: entry.value for entry in tensor.external_data}
    file = _checked_place(given.get("location", ""), folder, what)
    size = tensor_bytes(tensor.dims, tensor.data_type, what)
    if tensor.data_type == onnx.TensorProto.STRING:
        raise ModelError(f"{what} holds strings, which cannot lie in another file")
    start, length = _number(given, "offset", 0, what), _number(given, "length", size, what)
    end = file.stat().st_size
    if start < 0 or length != size or start + length > end:
        raise ModelError(
            f"{what} of dims {list(tensor.dims)} takes {size} bytes: {length} are to be read from {start} on, "
            f"and {given['location']!r} has {end}"
        )
    tensor.external_data.append(onnx.StringStringEntryProto(key="length", value=str(size)))
    return size


def _number(given: Mapping[str, str], key: str, default: int, what: str) -> int:
    try:
        return int(given.get(key, default))
    except ValueError:
        raise ModelError(f"{what} has the {key} {given[key]!r}, which is no number") from None


def _checked_place(location: str, folder: Path, what: str) -> Path:
    shown = f"{what} keeps its data in {location!r}"
    if not location or "\0" in location:
        raise ModelError(f"{shown}, which is no name of a file")
    path = Path(location)
    if path.is_absolute() or ".." in path.parts:
        raise ModelError(f"{shown}: only files in the model's own folder are read")
    real, home = Path(os.path.realpath(folder / path)), Path(os.path.realpath(folder))
    if not real.is_relative_to(home):
        raise ModelError(f"{shown}, a link that leaves the model's folder: put the file itself there")
    if not real.exists():
        raise ModelError(f"{shown}, and there is no such file")
    if not real.is_file():
        raise ModelError(f"{shown}, which is no regular file")
    return real
