"""Which nodes of a model are quantized, and which of them a configuration names."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from quark.onnx.config.node_selection import NodeChoice, chosen_nodes
from quark.onnx.config.qconfig import QConfig
from quark.onnx.config.validate import nearest, problem
from quark.onnx.errors import ConfigError
from quark.onnx.graph.node_graph import node_graph
from quark.onnx.qdq.qdq_options import DEFAULT_OP_TYPES

__all__ = ["NodeScope"]


class NodeScope:
    """The nodes of a prepared model that a configuration quantizes.

    Args:
        original: the model as it was before, whose nodes the configuration may name too.

    Attributes:
        op_types: the operators that are quantized.
        excluded: the nodes that stay in float although their operator is one of these.
        quantized: the other nodes with these operators.

    Raises:
        ConfigError: the configuration names a node or an operator that there is not.
    """

    def __init__(self, config: QConfig, model: onnx.ModelProto, original: onnx.ModelProto) -> None:
        self._graph, self._original = node_graph(model), node_graph(original)
        self._types = {node.name: node.op_type for node in model.graph.node}
        self._known = {schema.name for schema in onnx.defs.get_all_schemas()}.union(self._types.values())
        self.op_types = self._op_types(config)
        self.excluded = frozenset(self._excluded(config, model))
        self.quantized = frozenset(
            name for name, op_type in self._types.items() if op_type in self.op_types and name not in self.excluded
        )

    def chosen(self, where: str, choice: NodeChoice) -> list[str]:
        """The quantized nodes that one choice names.

        Raises:
            ConfigError: there are none.
        """
        named = self._named(where, choice)
        found = [name for name in named if name in self.quantized]
        if not found:
            types = ", ".join(sorted({self._types[name] for name in named}))
            expected = (
                f"a node that is quantized; what it names ({types}) is excluded, or not in ExtraOpTypesToQuantize"
            )
            raise ConfigError(problem(where, choice, expected))
        return found

    def of_types(self, where: str, op_types: Iterable[str]) -> list[str]:
        """The quantized nodes with some operators; there may be none.

        Raises:
            ConfigError: an operator is not quantized at all.
        """
        wanted = self._checked(where, op_types)
        for op_type in wanted:
            if op_type not in self.op_types:
                raise ConfigError(problem(where, op_type, "an operator that is quantized: see ExtraOpTypesToQuantize"))
        return [name for name in self._graph.names if name in self.quantized and self._types[name] in wanted]

    def _named(self, where: str, choice: NodeChoice) -> list[str]:
        return chosen_nodes(where, choice, self._graph, original=self._original)

    def _checked(self, where: str, op_types: Iterable[str]) -> tuple[str, ...]:
        checked = tuple(op_types)
        for op_type in checked:
            if op_type not in self._known:
                expected = f"the name of an operator; {nearest(op_type, sorted(self._known))}"
                raise ConfigError(problem(where, op_type, expected))
        return checked

    def _op_types(self, config: QConfig) -> tuple[str, ...]:
        options = config.extra_options
        if options.get("QuantizeAllOpTypes", False):
            return tuple(dict.fromkeys(self._types.values()))
        where = "QConfig.extra_options[{!r}]"
        only = self._checked(where.format("OpTypesToQuantize"), options.get("OpTypesToQuantize", ()))
        more = self._checked(where.format("ExtraOpTypesToQuantize"), options.get("ExtraOpTypesToQuantize", ()))
        return tuple(dict.fromkeys((*(only or DEFAULT_OP_TYPES), *more)))

    def _excluded(self, config: QConfig, model: onnx.ModelProto) -> set[str]:
        excluded = {name for choice in config.exclude for name in self._named("QConfig.exclude", choice)}
        types = set(self._checked("QConfig.layer_type_config", config.layer_type_config.get(None, ())))
        excluded.update(name for name, op_type in self._types.items() if op_type in types)
        options = config.extra_options
        if only := options.get("NodesToQuantize"):
            where = "QConfig.extra_options['NodesToQuantize']"
            excluded.update(set(self._types).difference(*(self._named(where, name) for name in only)))
        if options.get("MatMulConstBOnly", False):
            constants = {tensor.name for tensor in model.graph.initializer}
            products = (node for node in model.graph.node if node.op_type == "MatMul")
            excluded.update(node.name for node in products if constants.isdisjoint(node.input))
        return excluded
