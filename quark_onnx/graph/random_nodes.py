"""Nodes that draw random numbers: each draw is one of its own, so nobody folds, merges or drops and repeats them."""

from __future__ import annotations

import zlib

import onnx

from quark.onnx.graph.editor import all_nodes, subgraphs

__all__ = ["is_random", "name_random_nodes", "with_seeds"]

_SEEDS = 1 << 20  # float32, the type of most seeds, holds all integers below 2^24


def is_random(node: onnx.NodeProto) -> bool:
    """Whether a node gives something else each time, or one in its bodies does. A `seed` makes no difference: it is
    one draw for all runs of a session, and another one in the next.
    """
    return _draws(node) or any(is_random(inner) for body in subgraphs(node) for inner in body.node)


def _draws(node: onnx.NodeProto) -> bool:
    if node.op_type == "Dropout":  # the third input says whether it is in training mode
        return len(node.input) > 2 and bool(node.input[2])
    return (
        node.op_type.startswith("Random")
        or node.op_type.endswith("Dropout")  # onnxruntime's: BiasDropout, ...
        or node.op_type in ("Bernoulli", "Multinomial", "Sampling")
    )


def name_random_nodes(graph: onnx.GraphProto) -> None:
    """Give the nodes that draw names that no other node has, so that `with_seeds` knows them again."""
    taken = {node.name for node in all_nodes(graph)}
    named = set[str]()
    for node in filter(_draws, all_nodes(graph)):
        stem, count = node.name or node.op_type, 0
        while not node.name or node.name in named or (count and node.name in taken):
            node.name, count = f"{stem}_{count}", count + 1
        named.add(node.name)


def with_seeds(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that draws the same numbers in every session of onnxruntime: a node without a seed gets one, by its name.

    The model itself if it draws none.
    """
    if not any(map(_draws, all_nodes(model.graph))):
        return model
    seeded = onnx.ModelProto()
    seeded.CopyFrom(model)
    for node in filter(_draws, all_nodes(seeded.graph)):
        if not any(item.name == "seed" for item in node.attribute):
            seed = zlib.crc32(node.name.encode()) % _SEEDS
            value = seed if node.op_type.endswith("Dropout") else float(seed)
            node.attribute.append(onnx.helper.make_attribute("seed", value))
    return seeded
