"""The site's signatures: annotations as the source has them, with links to those that have an entry.

Evaluated, an alias such as `Data` would be the union that it stands for, and a field its check.
"""

from __future__ import annotations

import enum
import inspect
from dataclasses import MISSING, fields, is_dataclass

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from quark.onnx.calibration_data.checked_items import DataReader
from quark.onnx.config.frozen import FrozenConfig
from quark.onnx.config.qconfig import QConfig

_SHOWN = 8  # fields of a constructor; where a class has more of its own, the list of them says enough


class _AsWritten:
    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def signature(
    app: Sphinx, what: str, name: str, obj: object, options: object, given: str, returned: str
) -> tuple[str, str | None] | None:
    """Arguments and result of a function or constructor."""
    if isinstance(obj, type) and (issubclass(obj, enum.Enum) or obj is DataReader):
        return "", None
    if isinstance(obj, type) and is_dataclass(obj) and obj is not QConfig:
        return (_fields(obj) if issubclass(obj, FrozenConfig) else ""), None  # nobody else makes records of results
    if given is None or not callable(obj) or (isinstance(obj, type) and obj.__init__ is object.__init__):
        return None
    found = inspect.signature(obj)
    parameters = [
        one.replace(annotation=_AsWritten(one.annotation)) if isinstance(one.annotation, str) else one
        for one in found.parameters.values()
        if one.name not in ("self", "cls")
    ]
    result = found.return_annotation
    written = found.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
    return str(written), result if isinstance(result, str) and result != "None" else None


def _fields(cls: type) -> str:
    known = fields(cls)
    if len(known) > _SHOWN:
        own = [field for field in known if field.name in vars(cls)["__annotations__"]]
        known = tuple(own) if len(own) <= _SHOWN else ()
    shown = [field.name if field.default is MISSING else f"{field.name}={field.default!r}" for field in known]
    return f"({', '.join([*shown, *(['**options'] if len(known) < len(fields(cls)) else [])])})"


def named_alone(app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.Node) -> nodes.Node | None:
    """The entry of a name without its module, if there is one."""
    if node.get("refdomain") != "py":
        return None
    domain, name = env.domains.python_domain, node["reftarget"].rpartition(".")[2]
    found = {one.node_id: one for full, one in domain.objects.items() if full.rpartition(".")[2] == name}
    if len(found) != 1:
        return None
    entry = next(iter(found.values()))
    link = app.builder.get_relative_uri(node["refdoc"], entry.docname) + "#" + entry.node_id
    return nodes.reference("", "", text, internal=True, refuri=link)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-signature", signature)
    app.connect("missing-reference", named_alone)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
