"""SVG pictures for the pages: light and dark with the reader's settings, and wide enough for a phone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

WIDTH = 420  # of every picture, in its own units; text has 13, so that a phone shows it at about 11 pixels
_STYLE = """
    .page { fill: #fff } .box { fill: #f6f8fa; stroke: #8c959f } .rule { stroke: #d0d7de } .axis { stroke: #8c959f }
    .faint { stroke: #8c959f; fill: none; stroke-width: 1.2 }
    .dots { stroke-dasharray: 2 3 } .see-through { fill-opacity: .3 }
    .one, .two { stroke: #9a4a00; fill: none; stroke-width: 1.8 } .one-filled { fill: #c2630a }
    .two { stroke: #0757b8 } .two-filled { fill: #0969da }
    text { font: 13px system-ui, sans-serif; fill: #24292f; paint-order: stroke }
    .small { font-size: 11px } .bold { font-weight: 600 } text.one { fill: #9a4a00 } text.two { fill: #0757b8 }
    text, text.one, text.two { stroke: #fff; stroke-width: 3px }
    @media (prefers-color-scheme: dark) {
      .page { fill: #161b22 } .box { fill: #21262d; stroke: #8b949e } .rule { stroke: #30363d }
      .axis, .faint { stroke: #8b949e }
      .one { stroke: #f0a35e } .one-filled { fill: #e38b3d } .two { stroke: #79b8ff } .two-filled { fill: #58a6ff }
      text { fill: #e6edf3 } text.one { fill: #f0a35e } text.two { fill: #79b8ff }
      text, text.one, text.two { stroke: #161b22 }
    }
"""


@dataclass(frozen=True)
class Scale:
    """The scale from values of the data to coordinates of the picture, along one axis."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


class Drawing:
    """One picture. The kinds are classes of the style above; "one" and "two" are the two things that are compared."""

    def __init__(self, title: str, height: int) -> None:
        self._parts: list[str] = []
        self._head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{round(1.4 * WIDTH)}" '
            f'height="{round(1.4 * height)}" role="img">\n<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n'
            f'<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>\n'
        )

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        """Words, with their baseline at y; x is their start, middle or end."""
        self._add("text", {"x": x, "y": y, "class": kind, "text-anchor": anchor}, escape(text))

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """A straight line."""
        self._add("line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "class": kind})

    def path(self, points: Iterable[tuple[float, float]], kind: str, *, closed: bool = False) -> None:
        """A line through points."""
        joined = " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self._add("path", {"d": f"M{joined}{' Z' if closed else ''}", "class": kind})

    def dot(self, x: float, y: float, kind: str, radius: float = 3.5) -> None:
        """A circle."""
        self._add("circle", {"cx": x, "cy": y, "r": radius, "class": kind})

    def box(self, x: float, y: float, width: float, height: float, kind: str = "box") -> None:
        """A rectangle from its upper left corner."""
        self._add("rect", {"x": x, "y": y, "width": width, "height": height, "class": kind})

    def arrow(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """A line with a head at its second end; it is level or upright."""
        self.line(x1, y1, x2, y2, kind)
        if y1 == y2:
            back = 5 if x2 > x1 else -5
            self.path([(x2 - back, y2 - 4), (x2, y2), (x2 - back, y2 + 4)], kind)
        else:
            back = 5 if y2 > y1 else -5
            self.path([(x2 - 4, y2 - back), (x2, y2), (x2 + 4, y2 - back)], kind)

    def histogram(self, counts: Sequence[float], x: Scale, y: Scale, kind: str) -> None:
        """Bars of equal width from x.low to x.high, as one outline."""
        width = (x.high - x.low) / len(counts)
        points = [(x(x.low), y(y.low))]
        for index, count in enumerate(counts):
            left = x.low + index * width
            points += [(x(left), y(count)), (x(left + width), y(count))]
        self.path([*points, (x(x.high), y(y.low))], kind, closed=True)

    def svg(self) -> str:
        """The picture as a file's text."""
        return self._head + "\n".join(self._parts) + "\n</svg>\n"

    def _add(self, tag: str, attributes: dict[str, float | str], text: str = "") -> None:
        written = " ".join(
            f"{name}={quoteattr(value if isinstance(value, str) else f'{value:.1f}')}"
            for name, value in attributes.items()
            if value not in ("", "start")
        )
        self._parts.append(f"<{tag} {written}>{text}</{tag}>" if text else f"<{tag} {written}/>")
