"""Writes docs/architecture.svg from the storeys that tests/repository/test_import_rules.py holds the code to:

python docs/architecture.py
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

PICTURE = Path(__file__).with_suffix(".svg")
RULES = Path(__file__).parents[1] / "tests" / "repository" / "test_import_rules.py"

WIDTH, MARGIN = 1200, 20

Storey = Sequence[tuple[str, str]]  # (name, caption) of each room

STYLE = """
svg { --ground: #ffffff; --ink: #1f2328; --dim: #59636e; --line: #818b98; --accent: #a04a00;
      --room: #eaf2fb; --room-edge: #8fb0d6; --core: #fdf0e0; --core-edge: #d6a261; --data: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  svg { --ground: #0d1117; --ink: #e6edf3; --dim: #9da7b3; --line: #7d8590; --accent: #f0a35e;
        --room: #14243a; --room-edge: #41648f; --core: #2f2212; --core-edge: #8d672f; --data: #1b222b; }
}
text { font: 12px system-ui, "DejaVu Sans", sans-serif; fill: var(--ink); }
.head { font-size: 19px; font-weight: 600; }
.title { font-size: 13px; font-weight: 600; }
.small { font-size: 11px; fill: var(--dim); }
.note { fill: var(--accent); }
.ground { fill: var(--ground); }
.room { fill: var(--room); stroke: var(--room-edge); }
.core { fill: var(--core); stroke: var(--core-edge); }
.data { fill: var(--data); stroke: var(--line); stroke-dasharray: 4 3; }
.work { fill: var(--core); stroke: var(--accent); stroke-width: 2; }
.way { fill: none; stroke: var(--line); stroke-width: 1.5; }
.flow { marker-end: url(#tip); }
.front { stroke: var(--accent); stroke-dasharray: 6 4; stroke-width: 1.5; }
.tip { fill: var(--line); }
"""

# What each room is for, in a few words. The pages say more.
ROOMS = {
    "errors": "what is raised",
    "missing_names": "AMD Quark's other names",
    "operators": "one object each",
    "stores": "tensors that wait",
    "measures": "how far outputs are apart",
    "config": "frozen, validated when made",
    "config.amd_quark": "ready configurations, older names",
    "system": "memory, time, threads, progress",
    "own_errors": "faults of ours, with the place",
    "inference": "sessions of onnxruntime",
    "graph": "nodes and tensors of an ONNX model: to edit, to ask who makes and reads them",
    "model_files": "read through one gate, written whole",
    "patterns": "graphs that stand for one operator",
    "layers": "those with a constant weight, and pairs",
    "preparation": "the model that is quantized",
    "qdq": "Q/DQ by onnxruntime's quantizer",
    "core_view": "what the core is given of a layer",
    "calibration_data": "readers, checks, batches",
    "plan": "which layers are tuned, or why not",
    "calibration": "value ranges and weight scales, in one pass",
    "report": "what was done, and whether it is good",
    "solvers": "from the data of one layer to its integers",
    "whole_model": "both models compared, the better state kept",
    "resume": "going on after an interruption",
    "sensitivity": "islands that stay in float",
    "mixed_precision": "bits where they help",
    "fast_finetune": "the walk; bias correction",
    "quantization": "ModelQuantizer, finetune, quantize: the steps in their order",
    "inspection": "what would be done",
    "comparison": "two models on the same data",
    "diagnosis": "what each quantizer costs",
    "cli": "quark-onnx, the command line",
}
CORE = {
    "device": "OpenCL",
    "base": "threads, BLAS, memory, random numbers",
    "kernels": "loops by instruction set",
    "ops": "rows of a layer (im2col), output stage",
    "moments": "from rows to G = E[xx'], C = E[yx']",
    "solvers": "GPTQ, descent",
    "loss": "on samples",
    "calibration": "ranges, scales",
    "least_squares": "candidates, judged on held-out rows",
    "training": "AdaRound, AdaQuant: Adam, early stop",
    "include": "qk.h, the one public header",
    "python": "quark.onnx._core, which the package calls",
}


class Drawing:
    """Shapes and texts of a picture, from the top."""

    def __init__(self) -> None:
        self.items: list[str] = []

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        self.items.append(f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>')

    def box(self, x: float, y: float, size: tuple[float, float], lines: Sequence[str], kind: str) -> None:
        """A box with a title and lines below it."""
        width, height = size
        for line, per_letter in zip(lines, [7.4, *[5.8] * len(lines)], strict=False):
            if len(line) * per_letter > width - 6:
                raise ValueError(f"{line!r} does not fit into {width} pixels")
        self.items.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" class="{kind}"/>')
        first = y + height / 2 + 4.5 - 7.5 * (len(lines) - 1)
        for at, line in enumerate(lines):
            self.text(x + width / 2, first + 15 * at, line, "small" if at else "title", "middle")

    def arrow(self, *points: tuple[float, float], kind: str = "way flow") -> None:
        path = " ".join(f"{'L' if at else 'M'}{x:g} {y:g}" for at, (x, y) in enumerate(points))
        self.items.append(f'<path d="{path}" class="{kind}"/>')

    def svg(self, height: float, title: str) -> str:
        tip = '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        size = f'viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}"'
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
                f"<title>{escape(title)}</title>",
                f"<style>{STYLE}</style>",
                f'<defs>{tip}<path d="M0 0 L8 4 L0 8 z" class="tip"/></marker></defs>',
                f'<rect width="{WIDTH}" height="{height:g}" class="ground"/>',
                *self.items,
                "</svg>\n",
            ]
        )


def rules() -> dict[str, Any]:
    """The constants of the import rules: the storeys of the package, and what each folder of the core may include."""
    found = {}
    for statement in ast.parse(RULES.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and isinstance(name := statement.targets[0], ast.Name):
            try:
                found[name.id] = ast.literal_eval(statement.value)
            except ValueError:
                continue  # no plain data
    return found


def core_storeys(allowed: Mapping[str, set[str]]) -> list[list[str]]:
    """The folders of the core by what they stand on; the header and the binding are the roof."""

    def height(folder: str) -> int:
        return 1 + max(map(height, allowed[folder]), default=-1)

    storeys: dict[int, list[str]] = {}
    for folder in allowed:
        if folder not in {"include", "python"}:
            storeys.setdefault(height(folder), []).append(folder)
    return [*(storeys[at] for at in sorted(storeys)), ["include"], ["python"]]


def draw_way(to: Drawing, top: float) -> None:
    to.text(MARGIN, top + 18, "The way of the data", "head")
    width, gap, size = 140, 30, (140, 58)
    x = [MARGIN + at * (width + gap) for at in range(7)]
    steps = [
        ("model.onnx", "the float model", "", "data"),
        ("preparation", "constants folded,", "small nodes joined", "room"),
        ("qdq", "Q/DQ, by the ranges", "and scales found", "room"),
        ("plan", "layers in pairs,", "or the reason why not", "room"),
        ("fast_finetune", "the walk: integers", "of each layer", "room"),
        ("whole_model", "compared as a whole,", "the better state kept", "room"),
        ("report", "beside int8.onnx:", "is it good, and why", "room"),
    ]
    bar, upper, lower = top + 34, top + 84, top + 176
    to.box(MARGIN, bar, (WIDTH - 2 * MARGIN, 30), ["config: frozen, validated when made; every step reads it"], "room")
    for at, (title, first, second, kind) in enumerate(steps):
        to.box(x[at], upper, size, [title, first, *([second] if second else [])], kind)
        if at:
            to.arrow((x[at] - gap, upper + 29), (x[at] - 1, upper + 29))
    to.box(x[0], lower, size, ["samples", "a reader, arrays, files"], "data")
    to.box(x[1], lower, size, ["calibration_data", "checked, in batches"], "room")
    to.box(x[2], lower, size, ["calibration", "one pass of the", "float model"], "room")
    for at in (1, 2):
        to.arrow((x[at] - gap, lower + 29), (x[at] - 1, lower + 29))
    to.arrow((x[2] + 70, lower), (x[2] + 70, upper + 59))
    below = lower + 72
    to.arrow((x[1] + 60, lower + 58), (x[1] + 60, below), (x[4] + 70, below), (x[4] + 70, upper + 59))
    to.arrow((x[1] + 40, lower + 58), (x[1] + 40, below + 16), (x[5] + 70, below + 16), (x[5] + 70, upper + 59))
    to.text(x[4] + 62, below - 8, "the same samples", "small", "end")
    to.text(x[5] + 62, below + 8, "samples set apart", "small", "end")


def draw_walk(to: Drawing, top: float) -> None:
    to.text(MARGIN, top + 18, "The walk", "head")
    to.text(MARGIN + 110, top + 17, "fast_finetune/walk.py, finetune_layers.py: at layer 3 of 4", "small")
    size, x = (150, 34), [190, 400, 640, 890]
    rows = {"float graph": top + 60, "quantized graph": top + 150}
    for name, y in rows.items():
        to.text(MARGIN, y + 21, name, "title")
        to.arrow((148, y + 17), (x[0] - 1, y + 17))
        for at, left in enumerate(x):
            done = "tuned" if at < 2 else "to come" if at == 3 else "at work"
            state = f"layer {at + 1}" if name == "float graph" else f"layer {at + 1}: {done}"
            to.box(left, y, size, [state], "work" if at == 2 else "data" if at == 3 else "room")
            after = x[at + 1] - 1 if at < 3 else 1120
            to.arrow((left + 150, y + 17), (after, y + 17))
    to.text(1130, rows["float graph"] + 21, "output", "small")
    to.text(1130, rows["quantized graph"] + 21, "output", "small")
    to.arrow((595, top + 42), (595, top + 200), kind="front")
    to.text(595, top + 36, "frontier: of every batch, the tensors that nodes to come read", "note", "middle")
    core = top + 250
    to.text(MARGIN, core + 33, "the core, in C", "title")
    boxes = [
        (430, "csrc/moments", "rows of all samples: G, C"),
        (650, "csrc/least_squares", "candidates, each output"),
        (870, "held-out rows", "judge: the least error wins"),
    ]
    for left, *lines in boxes:
        to.box(left, core, (190, 52), lines, "core")
    for left in (650, 870):
        to.arrow((left - 30, core + 26), (left - 1, core + 26))
    to.arrow((615, rows["quantized graph"] + 17), (615, core - 24), (500, core - 24), (500, core - 1))
    to.text(492, core - 30, "x: what the quantized model feeds", "small", "end")
    to.arrow((815, rows["float graph"] + 17), (815, core - 24), (560, core - 24), (560, core - 1))
    to.text(823, core - 30, "y: what the float layer gives", "small")
    back = core + 72
    to.arrow((965, core + 52), (965, back), (1080, back), (1080, core - 40), (715, core - 40), (715, top + 185))
    to.text(955, back + 4, "integers and bias, written back (qdq/write_back.py)", "small", "end")
    to.text(
        MARGIN, back + 26, "Then the frontier moves on by one layer; what nobody reads any more is dropped.", "note"
    )


def draw_house(to: Drawing, place: tuple[float, float, float], rooms: Sequence[Storey], kind: str) -> None:
    """Storeys from the ground, which is below.

    Args:
        place: left, top and width.
    """
    left, top, width = place
    for at, storey in enumerate(reversed(rooms)):
        each = (width - 6 * (len(storey) - 1)) / len(storey)
        for beside, room in enumerate(storey):
            to.box(left + beside * (each + 6), top + at * 46, (each, 40), room, kind)


def picture() -> str:
    found = rules()
    package = [[(room, ROOMS[room]) for room in storey if not room.startswith("_")] for storey in found["STOREYS"]]
    core = [[(folder, CORE[folder]) for folder in storey] for storey in core_storeys(found["C_LAYERS"])]
    to = Drawing()
    draw_way(to, 14)
    draw_walk(to, 310)
    top = 700
    to.text(MARGIN, top, "The rooms of quark_onnx", "head")
    to.text(MARGIN + 284, top - 1, "each uses those of lower storeys alone", "small")
    draw_house(to, (MARGIN, top + 16, 800), package, "room")
    beside = 850
    lower = top + 16 + 46 * (len(package) - len(core))
    draw_house(to, (beside, lower, WIDTH - MARGIN - beside), core, "core")
    to.text(beside, lower - 34, "The C core, csrc", "head")
    to.text(beside, lower - 13, "each folder uses those of lower storeys alone", "small")
    return to.svg(top + 30 + 46 * len(package), "The way of the data, the walk, the rooms of the code")


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
