"""The report as a page: complete, of one file, and as a browser shows it: on a phone, in light and in dark."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import Reader, samples, separable_cnn

from quark.onnx import (
    AdaRoundConfig,
    CalibMethod,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    QuantGranularity,
    Report,
    UInt8Spec,
)
from quark.onnx.report.loss_curve import loss_curve

pytestmark = pytest.mark.sets_apart

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE = 390  # CSS pixels
VOID = {"meta", "link", "br", "img", "input", "hr"}

# Runs in the page around the report, which lies in a frame as wide as a phone.
LOOK = """
<script>
function luminance(color) {
  const parts = color.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255);
  const linear = parts.map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
}
function look(frame) {
  const page = frame.contentDocument, all = [...page.body.querySelectorAll('*')], width = frame.clientWidth;
  const beyond = all.filter(e => !e.closest('.wide') && e.getBoundingClientRect().right > width + 0.5);
  const style = frame.contentWindow.getComputedStyle(page.body);
  const drawn = all.filter(e => ['circle', 'path', 'polyline', 'rect'].includes(e.tagName));
  const [ink, paper] = [style.color, style.backgroundColor].map(luminance);
  document.getElementById('seen').textContent = JSON.stringify({
    width: page.documentElement.scrollWidth, text: page.body.innerText, title: page.title, paper: paper,
    beyond: beyond.map(e => e.outerHTML.slice(0, 80)),
    drawn: drawn.length, empty: drawn.filter(e => e.tagName != 'rect' && !e.getBoundingClientRect().width).length,
    contrast: (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05),
    resources: frame.contentWindow.performance.getEntriesByType('resource').map(e => e.name),
  });
}
</script>
<pre id="seen"></pre>
<iframe style="border:0;width:%dpx;height:3000px" onload="look(this)" srcdoc="%s"></iframe>
"""


def report_of(*algorithms: AdaRoundConfig, weight: Int8Spec | None = None, count: int = 64) -> Report:
    model = separable_cnn()
    weight = weight or Int8Spec(calibration_method=CalibMethod.MinMax)
    quantizer = ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=weight), algo_config=list(algorithms)))
    quantizer.quantize_model(model, None, Reader(samples(model, count)))
    return quantizer.report


RUNS = {
    "plain": lambda: report_of(),
    "least squares": lambda: report_of(AdaRoundConfig()),
    "trained": lambda: report_of(AdaRoundConfig(solver="gradient", num_iterations=120)),
    "rejected": lambda: report_of(
        AdaRoundConfig(), weight=Int8Spec(quant_granularity=QuantGranularity.Channel), count=2
    ),
}


@pytest.fixture(scope="module", params=RUNS)
def report(request: pytest.FixtureRequest) -> Report:
    return RUNS[request.param]()


class Balance(HTMLParser):
    """Whether every element is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.problems: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(tag)


def test_the_page_is_one_file(report: Report, tmp_path: Path) -> None:
    page = report.to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page
    parser = Balance()
    parser.feed(page)
    assert (parser.problems, parser.open) == ([], [])
    assert parser.references == ["data:,"], "nothing is loaded"
    assert not re.search(r"url\(|@import|<script|https?:", page)


def test_the_page_of_a_read_report_is_the_same(report: Report) -> None:
    assert Report.from_dict(json.loads(report.to_json())).to_html() == report.to_html()


def test_the_page_tells_what_the_report_tells(report: Report) -> None:
    page = html.unescape(report.to_html())
    for sentence in (report.verdict.headline, *report.verdict.sentences, *report.verdict.advice):
        assert sentence in page
    for text in (*report.warnings, *report.notes, *report.ignored, *report.phases):
        assert text in page
    for layer in report.layers:
        assert layer.name in page
        assert layer.reason in page
    for activation in report.activations:
        assert activation.name in page
    assert ('id="losses"' in page) == any(layer.losses for layer in report.layers)
    assert ('id="rejected"' in page) == any(not layer.accepted for layer in report.layers)
    assert page.count("<polyline") == sum(bool(layer.losses) for layer in report.layers)
    assert '"kind": "QConfig"' in page


def test_names_are_text() -> None:
    report = report_of()
    named = tuple(replace(error, name="<script>alert(1)</script>&amp;") for error in report.layer_errors)
    page = replace(report, layer_errors=named).to_html()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;amp;" in page


def test_a_notebook_shows_reports_quantizers_and_configurations(report: Report) -> None:
    config = QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), algo_config=[AdaRoundConfig(learning_rate=0.2)])
    quantizer = ModelQuantizer(config)
    before = quantizer._repr_html_()
    quantizer.report = report
    for shown in (report._repr_html_(), quantizer._repr_html_(), before, config._repr_html_()):
        parser = Balance()
        parser.feed(shown)
        assert (parser.problems, parser.open, parser.references) == ([], [], [])
    assert before == config._repr_html_()
    assert quantizer._repr_html_() == report._repr_html_()
    assert report.verdict.headline in html.unescape(report._repr_html_())
    for text in ("QConfig", "AdaRoundConfig", "learning_rate", "0.2", "UInt8Spec"):
        assert text in config._repr_html_()
    assert "batch_size" not in config._repr_html_(), "defaults are not repeated"
    assert repr(quantizer).startswith("ModelQuantizer(QConfig(")


def test_a_configuration_with_layers_as_keys_is_shown() -> None:
    layer = QLayerConfig(weight=Int8Spec())
    config = QConfig(
        QLayerConfig(UInt8Spec(), weight=Int8Spec()), specific_layer_config={layer: ["<b>"]}, exclude=["^a.*"]
    )
    assert "&lt;b&gt;" in config._repr_html_()
    assert "^a.*" in config._repr_html_()


def test_activations_are_what_calibration_saw() -> None:
    report, data = report_of(), samples(separable_cnn(), 64)["x"]
    activation = next(one for one in report.activations if one.name == "x")
    seen = np.delete(data, np.s_[7::8], axis=0)  # those set apart have no part in ranges
    assert (activation.low, activation.high) == (seen.min(), seen.max())
    assert sum(activation.counts) == seen.size
    counts, _ = np.histogram(seen, bins=len(activation.counts), range=(activation.low, activation.high))
    fine = (seen.max() - seen.min()) / 2000  # a bin of calibration is no wider
    assert np.abs(np.cumsum(counts) - np.cumsum(activation.counts)).max() <= (np.histogram(
        seen, bins=int((activation.high - activation.low) / fine))[0].max())  # fmt: skip
    inside = (seen >= activation.range_low) & (seen <= activation.range_high)
    assert activation.clipped == pytest.approx(1 - inside.mean(), abs=2e-4)
    nearly_all = np.quantile(np.abs(seen), 0.999)
    assert nearly_all <= activation.usual <= nearly_all + 2 * activation.bin_width


def test_every_quantized_activation_is_there() -> None:
    model = separable_cnn()
    quantizer = ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec())))
    quantized = quantizer.quantize_model(model, None, Reader(samples(model, 64)))
    quantizers = [node for node in quantized.graph.node if node.op_type == "QuantizeLinear"]
    names = [activation.name for activation in quantizer.report.activations]
    assert len(set(names)) == len(names) == len(quantizers)
    assert {"x", "y"} <= set(names)


def test_a_relu6_cuts_nothing_off() -> None:
    """A value at the end of the range is inside."""
    assert all(one.clipped < 1e-3 for one in report_of().activations)


@pytest.mark.parametrize("steps", [0, 1, 7, 100, 101, 3000])
def test_loss_curves_are_means(steps: int) -> None:
    losses = np.random.default_rng(steps).random(steps)
    curve = loss_curve(losses)
    assert len(curve) == min(steps, 100)
    start, total = 0, 0.0
    for end, mean in curve:
        assert mean == pytest.approx(losses[start:end].mean())
        total += mean * (end - start)
        start = end
    assert start == steps
    assert total == pytest.approx(losses.sum())


def test_losses_are_those_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", "quark.onnx"):
        report = report_of(AdaRoundConfig(solver="gradient", num_iterations=100, log_period=1))
    logged = {}
    for layer, step, loss in re.findall(r"layer (\w+): step (\d+), loss (\S+)", caplog.text):
        logged[layer, int(step)] = float(loss)
    assert len(logged) == 600
    for layer in report.layers:
        assert [step for step, _ in layer.losses] == list(range(1, 101))
        assert [loss for _, loss in layer.losses] == pytest.approx(
            [logged[layer.name, s] for s in range(1, 101)], rel=1e-5
        )


def test_memory_never_falls_from_phase_to_phase() -> None:
    report = report_of()
    memory = [report.memory[phase] for phase in report.phases if phase not in ("prepare", "calibrate", "compare")]
    assert memory == sorted(memory)
    assert memory[-1] <= report.peak_rss_mib


def seen_by_a_browser(page: str, folder: Path, *options: str) -> dict[str, Any]:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"there is no browser: none of {', '.join(BROWSERS)} is in PATH (apt install chromium)")
    around = folder / "around.html"
    around.write_text(LOOK % (PHONE, html.escape(page)), encoding="utf-8")
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=10000", *options, "--dump-dom", around.as_uri()]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=180)
    assert ":CONSOLE" not in result.stderr, "errors and warnings of the page"
    (seen,) = re.findall(r'<pre id="seen">(.*?)</pre>', result.stdout, re.DOTALL)
    found: dict[str, Any] = json.loads(html.unescape(seen))
    return found


@pytest.mark.parametrize("options", [(), ("--force-dark-mode",)], ids=["light", "dark"])
@pytest.mark.parametrize("run", ["rejected", "trained"])
def test_a_browser_shows_all_of_it_on_a_phone(run: str, options: tuple[str, ...], tmp_path: Path) -> None:
    report = RUNS[run]()
    long = tuple(replace(error, name=f"/backbone/{'stage/' * 20}{error.name}") for error in report.layer_errors)
    report = replace(report, layer_errors=long)
    seen = seen_by_a_browser(report.to_html(), tmp_path, *options)
    assert seen["width"] <= PHONE
    assert seen["beyond"] == []
    assert seen["resources"] == []
    assert report.verdict.headline in seen["title"]
    text = " ".join(seen["text"].split())
    expected = [
        report.verdict.headline,
        *report.verdict.advice,
        "Time and memory",
        "Configuration",
        "SQNR of every layer",
    ]
    expected += [layer.name for layer in report.layers] + [layer.reason for layer in report.layers]
    for words in expected:
        assert " ".join(words.split()) in text
    assert seen["drawn"] > 3 * len(report.layers) * (run == "trained")
    assert seen["empty"] == 0
    assert seen["contrast"] > 7
    assert (seen["paper"] < 0.1) == bool(options)


def test_a_figure_shows_every_layer(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = report.plot()
    figure.savefig(tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 5000
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        one.name for one in report.layers or report.layer_errors
    ]
    first, second = (points.get_offsets()[:, 0] for points in axes.collections)
    if not report.layers:
        assert np.allclose(first, [error.own_db for error in report.layer_errors])
        assert np.allclose(second, [error.output_db for error in report.layer_errors])
    lines = figure.axes[1].lines if len(figure.axes) > 1 else []
    assert len(lines) == sum(bool(layer.losses) for layer in report.layers)


def test_without_matplotlib_the_figure_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'quark-onnx\[plot\]'"):
        report_of().plot()
