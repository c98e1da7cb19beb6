"""A report as one HTML page that needs nothing else, and as a fragment for notebooks."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import TYPE_CHECKING

from quark.onnx.report.views.page_data import page_data
from quark.onnx.report.views.short_text import decibel_text

if TYPE_CHECKING:
    import jinja2

    from quark.onnx.report.report import Report

__all__ = ["html_fragment", "html_page"]


def html_page(report: Report) -> str:
    """The whole report: light or dark as the reader's system is, readable from the width of a phone on."""
    return _rendered("page.html.j2", report)


def html_fragment(report: Report) -> str:
    """The verdict and every layer, to be shown among other things."""
    return _rendered("fragment.html.j2", report)


def _rendered(template: str, report: Report) -> str:
    page = _environment().get_template(template)
    return page.render(report=report, verdict=report.verdict, data=page_data(report), version=_version())


@cache
def _environment() -> jinja2.Environment:
    import jinja2  # only here: importing it takes time, and few runs make a page

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["db"] = decibel_text
    return environment


def _template(name: str) -> str:
    return files("quark.onnx.report.views").joinpath("templates", name).read_text(encoding="utf-8")


def _version() -> str:
    try:
        return version("quark-onnx")
    except PackageNotFoundError:
        return ""
