"""The report of one quantization: what was done, how well, in what time and memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quark.onnx.layers.equalise import PairReport
from quark.onnx.measures.deviation import Deviation
from quark.onnx.measures.layer_error import LayerError
from quark.onnx.plan.types import SkippedLayer
from quark.onnx.report.activation_report import ActivationReport
from quark.onnx.report.advice import Interface
from quark.onnx.report.layer_report import LayerReport
from quark.onnx.report.model_sizes import ModelSizes
from quark.onnx.report.plain_data import to_plain
from quark.onnx.report.saved_report import read_json, restored
from quark.onnx.report.target_report import TargetReport
from quark.onnx.report.verdict import Verdict, verdict_of
from quark.onnx.report.views.full_text import full_text
from quark.onnx.report.views.html_page import html_fragment, html_page
from quark.onnx.report.views.plot import figure
from quark.onnx.report.views.short_text import short_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["EndToEnd", "Report"]


@dataclass(frozen=True)
class EndToEnd:
    """The whole model against the float model, with onnxruntime's graph optimisation off and at its default.

    Attributes:
        reference: "float model"; "reference model" where that of ref_model_path took its place.
        samples: how many calibration samples were compared.
        held_out: whether they took no part in ranges, scales, candidates and integers. Otherwise, with fewer than 40
            samples, the figures are optimistic.
        before, after: of bias correction and finetuning, optimisation off: the model's own definition. The same where
            nothing was done after quantization.
        before_default, after_default: with onnxruntime's default optimisation, which users run; None where onnxruntime
            cannot load the optimised model, as with 2-bit weights.
    """

    reference: str
    samples: int
    held_out: bool
    before: Deviation
    after: Deviation
    before_default: Deviation | None
    after_default: Deviation | None

    @property
    def is_worse(self) -> bool:
        """Whether the model lost SQNR by what was done to it after quantization. It lost no more than chance has it, or
        keep_worse=True kept it.
        """
        return self.after.sqnr_db < self.before.sqnr_db


@dataclass(frozen=True, repr=False)
class Report:
    """What `ModelQuantizer.quantize_model` and `finetune` did. `print(report)` tells the most important of it, `full()`
    all; `to_json` keeps it, `load` reads that.

    Attributes:
        algorithm: "adaround", "adaquant" or None.
        samples: calibration samples seen, those set apart to compare whole models included.
        layers: one entry per layer that was considered.
        skipped: layers that were left out from the start, with the reason.
        pairs: of layers that CLEConfig found, with what was done to them.
        corrections: what BiasCorrectionConfig did to each layer's bias.
        uncorrected: layers whose bias it left from the start, with the reason.
        ignored: options that were set and mean nothing here, with the reason.
        warnings: what the user should look at; each was logged as well.
        notes: what was done in another way than usual and needs no action, one line each.
        end_to_end: None where the quantized model cannot be compared, as a warning says.
        layer_errors: what each quantized layer inherits and adds, measured on a few samples; none where the models
            could not be compared layer by layer.
        activations: the values of each quantized activation and the range that was chosen; of calibration only.
        sizes: of the two models; None in reports of earlier versions.
        target: what came of quantizing to a target; None without one.
        configuration: as `to_dict` of the configuration writes it; a callable in it is its repr.
        phases: seconds per phase.
        memory: the most memory of the process, as `peak_rss_mib`, at the end of each phase.
        peak_rss_mib: the most memory the process has had since it began, whatever used it: libraries, this package, and
            what the reader and the rest of the program hold; None where the system does not tell.
        interface: "python" or "command line", where the run was started: advice is spelled for it.
    """

    algorithm: str | None
    samples: int
    layers: tuple[LayerReport, ...] = ()
    skipped: tuple[SkippedLayer, ...] = ()
    pairs: tuple[PairReport, ...] = ()
    corrections: tuple[LayerReport, ...] = ()
    uncorrected: tuple[SkippedLayer, ...] = ()
    ignored: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    end_to_end: EndToEnd | None = None
    layer_errors: tuple[LayerError, ...] = ()
    activations: tuple[ActivationReport, ...] = ()
    sizes: ModelSizes | None = None
    target: TargetReport | None = None
    configuration: Mapping[str, Any] = field(default_factory=dict)
    phases: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, float] = field(default_factory=dict)
    peak_rss_mib: float | None = None
    interface: Interface = "python"

    @property
    def verdict(self) -> Verdict:
        """What was gained, whether it is good, which layers cost most, what to do next."""
        return verdict_of(self)

    def full(self, width: int | None = None) -> str:
        """Every table and every line, for printing.

        Args:
            width: in columns; None: as the terminal has, 100 where there is none.
        """
        return full_text(self, width)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what is not a finite number is None."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    def to_json(self, path: str | Path | None = None) -> str:
        """The report as JSON; written to `path` too, if given."""
        text = json.dumps(self.to_dict(), indent=1)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    def to_html(self, path: str | Path | None = None) -> str:
        """The report as one page that needs no network, light or dark, fit for a phone; written to `path` too, if
        given.

        Raises:
            OSError: it cannot be written.
        """
        page = html_page(self)
        if path is not None:
            Path(path).write_text(page, encoding="utf-8")
        return page

    def plot(self) -> Figure:
        """A figure of matplotlib (the extra `plot`): SQNR of every layer before and after, losses of training. Save it
        with `figure.savefig("report.png")`; a notebook shows it after `%matplotlib inline`.

        Raises:
            ImportError: matplotlib is not installed.
        """
        return figure(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Report:
        """The report that `to_dict` wrote.

        Raises:
            DataError: it is none.
        """
        return restored(cls, plain, "Report.from_dict()")

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """The report that `to_json` wrote to a file.

        Raises:
            OSError: it cannot be read.
            DataError: it is none.
        """
        return restored(cls, read_json(Path(path)), str(path))

    def __str__(self) -> str:
        return short_text(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return html_fragment(self)

    def __repr__(self) -> str:
        """Short, as the tables of a large model would fill screens."""
        layers = f"{len(self.layers)} layers, " if self.layers else ""
        return f"Report({self.algorithm or 'plain'}, {layers}{self.verdict.headline})"
