"""A model without the rarer ways in which ONNX lets it be written."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.inliner
from onnx import numpy_helper

from quark.onnx.errors import ModelError
from quark.onnx.graph.editor import all_nodes
from quark.onnx.graph.opset import opset_of
from quark.onnx.inference.large_models import transformed

__all__ = ["plainly_written"]


def plainly_written(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that computes the same.

    Functions are inlined; ONNX's own operators have the domain "", not "ai.onnx"; other domains that are used are all
    imported, as onnxruntime takes it for granted; sparse initializers are dense.

    Raises:
        ModelError: there are operators of ONNX, and the model does not say of which opset.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    if result.functions:
        result = transformed(result, onnx.inliner.inline_local_functions)
    domains = set[str]()
    for node in all_nodes(result.graph):
        if node.domain == "ai.onnx":
            node.domain = ""
        domains.add(node.domain)
    _import(result, domains)
    _make_dense(result.graph)
    return result


def _import(model: onnx.ModelProto, domains: set[str]) -> None:
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if versions.keys() & {"", "ai.onnx"}:
        versions[""] = opset_of(model)
        versions.pop("ai.onnx", None)
    elif "" in domains:
        raise ModelError("the model does not say which opset its operators have: add one to its opset_import")
    else:
        versions[""] = 13  # it has no operator of ONNX's own, and tools look for an opset all the same
    for domain in sorted(domains - versions.keys()):
        versions[domain] = 1
    model.ClearField("opset_import")
    model.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in versions.items())


def _make_dense(graph: onnx.GraphProto) -> None:
    for sparse in graph.sparse_initializer:
        values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        dense = np.zeros(tuple(sparse.dims), values.dtype)
        if indices.ndim == 1:
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
        graph.initializer.append(numpy_helper.from_array(dense, sparse.values.name))
    graph.ClearField("sparse_initializer")
