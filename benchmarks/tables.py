"""The tables of the comparison, as Markdown, so that they can be pasted into docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fresh_process import noisy
from layer_errors import share_at_most_peers
from rich import box
from rich.table import Table
from rows import own_memory

Figures = Mapping[str, Any]

_COLUMNS = (
    *("row", "who", "wall s", "x bound", "peak RSS MiB", "without data", "growth"),
    *("agree % (default)", "logit mse (default)", "top-1 % (default)"),
)


def figures_table(rows: Sequence[Figures]) -> Table:
    """Three lines a row: ours, amd-quark, their ratio. In brackets: at onnxruntime's default optimisation."""
    table = markdown_table(*_COLUMNS)
    for row in rows:
        ours, peer, bound = row["ours"], row["peer"], row["bound"]
        table.add_row(row["row"], "ours", *_side(ours, f"{ours['wall_s'] / bound['bound_s']:.1f}"))
        table.add_row("", "amd-quark (earlier run)" if peer["earlier"] else "amd-quark", *_side(peer, ""))
        table.add_row("", "ours / amd-quark", *_ratios(ours, peer))
    return table


def gradient_table(rows: Sequence[Figures]) -> Table:
    """Two lines a row: ours, amd-quark. In brackets: at onnxruntime's default optimisation."""
    table = markdown_table(
        "row", "who", "loop s", "agree % (default)", "logit mse (default)", "layers at most amd-quark's"
    )
    for row in rows:
        ours, peer = row["ours"], row["peer"]
        layers = len(peer["layer_errors"])
        share = share_at_most_peers(ours["layer_errors"], peer["layer_errors"])
        table.add_row(row["row"], "ours", *_loop_side(ours), f"{share * layers:.0f} of {layers}")
        table.add_row("", "amd-quark (earlier run)" if peer["earlier"] else "amd-quark", *_loop_side(peer), "")
    return table


def solvers_table(rows: Sequence[Figures]) -> Table:
    """Two lines a row: our two solvers, started from the same plain model."""
    table = markdown_table(
        "row", "solver", "call s", "loop s", "unseen error", "agree % (default)", "logit mse (default)"
    )
    for row in rows:
        for solver, side, title in (("gradient", "ours", row["row"]), ("least squares", "least_squares", "")):
            figures = row[side]
            loop, *result = _loop_side(figures)
            table.add_row(
                title, solver, f"{_mark(figures)}{figures['wall_s']:.2f}", loop,
                f"{figures['unseen_error']:.4g}", *result,
            )  # fmt: skip
    return table


def floors_table(rows: Sequence[Figures]) -> Table:
    """One line for every floor of every row."""
    table = markdown_table("row", "floor", "measured", "limit", "")
    for row in rows:
        for floor in row["floors"]:
            limit = f"{'>=' if floor['at_least'] else '<='} {floor['limit']:.4g}"
            verdict = ("pass" if floor["holds"] else "FAIL") + (" (noisy)" if floor["noisy"] else "")
            table.add_row(row["row"], floor["what"], f"{floor['value']:.4g}", limit, verdict)
    return table


def lazy_memory_table(result: Figures) -> Table:
    """Peak memory of the call for few and for many samples, and whether the difference is small enough."""
    table = markdown_table("samples", "peak RSS MiB", "growth MiB", "wall s")
    for samples, figures in result["samples"].items():
        table.add_row(str(samples), str(figures["peak_rss_mib"]), str(figures["growth_mib"]), str(figures["wall_s"]))
    verdict = "pass" if result["holds"] else "FAIL"
    table.add_row("more", str(result["more_mib"]), f"<= {result['limit_mib']:.1f}", verdict)
    return table


def markdown_table(*columns: str) -> Table:
    """An empty one, printed as Markdown."""
    table = Table(box=box.MARKDOWN)
    for column in columns:
        table.add_column(column)
    return table


def _side(figures: Figures, multiple: str) -> list[str]:
    return [
        f"{_mark(figures)}{figures['wall_s']:.2f}",
        multiple,
        f"{figures['peak_rss_mib']:.0f}",
        f"{own_memory(figures):.0f}",
        f"{figures['growth_mib']:.0f}",
        *(_pair(figures, key, form) for key, form in (("agree", "{:.1f}"), ("mse", "{:.4g}"), ("top1", "{:.1f}"))),
    ]


def _loop_side(figures: Figures) -> list[str]:
    pairs = (_pair(figures, key, form) for key, form in (("agree", "{:.1f}"), ("mse", "{:.4g}")))
    return [f"{_mark(figures)}{figures['loop_s']:.2f}", *pairs]


def _mark(figures: Figures) -> str:
    return "~" if noisy(figures) else ""


def _pair(figures: Figures, key: str, form: str) -> str:
    plain, default = (figures[level][key] for level in ("plain", "ort_default"))
    return "" if plain is None else f"{form.format(plain)} ({form.format(default)})"


def _ratios(ours: Figures, peer: Figures) -> list[str]:
    def ratio(a: float, b: float) -> str:
        return f"{a / b:.3f}" if b else "-"

    mse, default_mse = (ratio(ours[level]["mse"], peer[level]["mse"]) for level in ("plain", "ort_default"))

    return [
        ratio(ours["wall_s"], peer["wall_s"]),
        "",
        ratio(ours["peak_rss_mib"], peer["peak_rss_mib"]),
        ratio(own_memory(ours), own_memory(peer)),
        ratio(ours["growth_mib"], peer["growth_mib"]),
        "",
        f"{mse} ({default_mse})",
        "",
    ]
