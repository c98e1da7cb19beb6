"""Bias correction and fast finetune of a quantized model: plan, walk, and the whole model before and after."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx import _core
from quark.onnx.calibration_data.checked_items import Batch
from quark.onnx.calibration_data.joining import BatchJoiner, CanJoin
from quark.onnx.config.algorithm import AdaRoundConfig, BiasCorrectionConfig, FastFinetuneConfig
from quark.onnx.config.supported import ignored_options
from quark.onnx.errors import ModelError
from quark.onnx.fast_finetune.bias_correction import bias_plan, bias_solver
from quark.onnx.fast_finetune.finetune_layers import finetune_layers
from quark.onnx.fast_finetune.kept_samples import KeptSamples
from quark.onnx.fast_finetune.largest_layer import with_largest_layer
from quark.onnx.fast_finetune.layer_batches import TwoGraphs, WalkOptions
from quark.onnx.fast_finetune.nothing_to_tune import nothing_to_tune
from quark.onnx.fast_finetune.selective import EvaluatorJudge, Judge, OutputJudge, judged_outputs
from quark.onnx.graph.no_tensors import not_compared
from quark.onnx.inference.devices import engine_on_device
from quark.onnx.inference.sessions import Engine, batch_is_free
from quark.onnx.model_files.quantized_form import check_is_qdq
from quark.onnx.plan.another_model import doubt_of_the_float_model
from quark.onnx.plan.build import build_plan
from quark.onnx.plan.configured import leave_as_configured
from quark.onnx.plan.excluded import leave_excluded
from quark.onnx.plan.types import Plan
from quark.onnx.report.layer_report import LayerReport
from quark.onnx.report.report import EndToEnd, Report
from quark.onnx.resume.saved_run import NothingSaved
from quark.onnx.solvers.choose_solver import choose_solver, is_trained_in_steps
from quark.onnx.stores.batch_store import BatchStore, FileStore
from quark.onnx.stores.spilling_store import SpillingStore
from quark.onnx.system.progress import PhaseProgress
from quark.onnx.system.resources import PhaseClock, peak_rss_mib
from quark.onnx.whole_model.keep_better import Change, Kept, keep_better, without
from quark.onnx.whole_model.layer_errors import layer_errors_or_note
from quark.onnx.whole_model.set_apart import SetApart
from quark.onnx.whole_model.whole_model import WholeModel
from quark.onnx.whole_model.workplace import Workplace

__all__ = ["FastFinetune", "store_for"]

_LOG = logging.getLogger(__name__)
_BATCH_BYTES = 5 << 18  # of the inputs of a batch of the walk


class FastFinetune:
    """One finetuning, with bias correction before it, or bias correction alone. Use as a context manager: leaving it
    removes what memory level 2 keeps in files, and gives freed memory back.

    Args:
        config: which algorithm, with which options; None: bias correction alone.
        correction: correct biases first.
        excluded: layers are left that make these tensors in the float model.
        engine: what the run has: threads of onnxruntime and of the core, memory.
        clock: gets the phases' times.
        saved: what is kept of the run, to be taken up again.

    Attributes:
        place: its engine runs all models of this finetuning, calibration included; its `apart` is to see the
            calibration items before `keep` does.

    Raises:
        UnsupportedError: the options ask for what this version, or this machine, cannot do.
    """

    def __init__(
        self,
        config: FastFinetuneConfig | None,
        *,
        engine: Engine,
        clock: PhaseClock,
        saved: NothingSaved,
        correction: BiasCorrectionConfig | None = None,
        excluded: Collection[str] = (),
    ) -> None:
        self._excluded, self._doubt = excluded, ""
        self._finetunes, self._correction, self._saved = config is not None, correction, saved
        config = config or AdaRoundConfig()  # whose samples, memory level and device are the defaults
        self._given, self._clock = config, clock
        self._config = replace(config, drop_ratio=1.0) if config.parallel else config
        self._role = "float" if config.ref_model_path is None else "reference"
        engine, self._on_the_cpu = engine_on_device(config, engine)
        store = store_for(config, engine)
        self.place = Workplace(engine, store, SetApart(store))
        self._samples = KeptSamples(store, config.data_size)

    def __enter__(self) -> FastFinetune:
        return self

    def __exit__(self, *error: object) -> None:
        self.place.store.close()
        _core.return_memory()

    @staticmethod
    def check(model: onnx.ModelProto, config: FastFinetuneConfig) -> None:
        """Before any data is read.

        Raises:
            ConfigError: the model does not have the outputs that the whole model is to be judged by.
        """
        if config.selective_update and config.evaluator is None:
            judged_outputs(model, config)

    def keep(self, items: Iterator[Batch], model: onnx.ModelProto, can_join: CanJoin) -> Iterator[Batch]:
        """Passes the calibration items of a model on, and keeps what finetuning needs of them."""
        return self._samples.keep(items, BatchJoiner(can_join, _BATCH_BYTES), divisible=batch_is_free(model))

    def run(
        self,
        float_model: onnx.ModelProto,
        quantized: onnx.ModelProto,
        *,
        samples_seen: int,
        reference: onnx.ModelProto | None = None,
        needs_layers: bool = False,
    ) -> Report:
        """Finetune `quantized` in place; only integer weights and biases change.

        Args:
            float_model: that of ref_model_path, if there is one.
            reference: what the whole model is compared with; None: `float_model`.
            needs_layers: refuse a model of which nothing can be tuned; else a warning says so.

        Raises:
            ModelError: a model cannot run, or nothing can be tuned where that is needed.
        """
        graphs = TwoGraphs(float_model, quantized, self._samples, self.place.engine)
        plan = self._plan(graphs) if self._finetunes else Plan((), ())
        if needs_layers and not (plan.layers or self._correction is not None):
            check_is_qdq(quantized, has_layers=False)
            raise ModelError(
                "; ".join(filter(None, (self._doubt, nothing_to_tune(plan.skipped, self._config.target_op_type))))
            )
        report = Report(
            algorithm=type(self._config).name if self._finetunes else None,
            samples=samples_seen,
            ignored=self._ignored(plan) if self._finetunes else (),
            phases=self._clock.seconds,
            memory=self._clock.memory,
        )
        with self._clock.phase("compare"):
            _core.return_memory()  # that of calibration
            whole = WholeModel(reference or float_model, f"{self._role} model", self.place)
            whole.start(quantized)
        if self._correction is not None:
            report = self._corrected(report, graphs, whole, self._correction)
            plan = self._plan(graphs) if self._finetunes else plan  # which holds the biases
        if plan.layers and self._config.select_max_mem_layer:
            with self._clock.phase("plan"):
                plan = with_largest_layer(graphs, plan)
        report = replace(report, skipped=plan.skipped)
        if self._finetunes:
            report = self._finetuned(report, graphs, plan, whole)
        return self._compared(report, graphs, plan, whole)

    def _plan(self, graphs: TwoGraphs) -> Plan:
        config = self._config
        with self._clock.phase("plan"):
            plan = build_plan(graphs.float_model, graphs.quantized, config.target_op_type, output_qdq=config.output_qdq)
        self._doubt = doubt_of_the_float_model(plan)
        return leave_as_configured(plan, config, self._excluded)

    def _corrected(
        self, report: Report, graphs: TwoGraphs, whole: WholeModel, correction: BiasCorrectionConfig
    ) -> Report:
        """The report, with what is done to the biases, in place."""
        with self._clock.phase("plan"):
            plan = leave_excluded(bias_plan(graphs.float_model, graphs.quantized), self._excluded)
        report = replace(report, uncorrected=plan.skipped)
        if not plan.layers:
            return report
        with self._clock.phase("bias correction"), PhaseProgress("Correcting biases", len(plan.layers)) as progress:
            layers, changes = finetune_layers(
                graphs,
                plan,
                self._saved.solver("bias", bias_solver(self._samples.samples, self._config.fixed_seed)),
                WalkOptions(float_first=self._config.mem_opt_level == 0, keep_samples=self._finetunes),
                on_layer=lambda layer: progress.advance(note=layer.name),
            )
        kept = self._kept(
            graphs.quantized,
            changes,
            whole,
            self._errors(whole),
            keep_worse=correction.keep_worse,
            done="bias correction",
        )
        return replace(report, corrections=without(kept, layers), warnings=kept.warnings)

    def _finetuned(self, report: Report, graphs: TwoGraphs, plan: Plan, whole: WholeModel) -> Report:
        """The report, with what is done to the layers, in place."""
        before = self._errors(whole, graphs.quantized if report.corrections else None)
        with self._clock.phase("finetune"):
            layers, changes = self._tune(graphs, plan)
        keep_worse = self._config.keep_worse
        kept = self._kept(graphs.quantized, changes, whole, before, keep_worse=keep_worse, done="finetuning")
        return replace(report, layers=without(kept, layers), warnings=(*report.warnings, *kept.warnings))

    def _compared(self, report: Report, graphs: TwoGraphs, plan: Plan, whole: WholeModel) -> Report:
        """The report, with the comparison of the whole model and of its layers, and all that it warns of."""
        with self._clock.phase("compare"):
            result = whole.result(graphs.quantized)
        with self._clock.phase("compare layers"):
            errors, unmeasured = layer_errors_or_note(
                graphs.float_model, graphs.quantized, self.place.apart.compared, graphs.engine, plan.layers
            )
        return replace(
            report,
            warnings=(*report.warnings, *self._warnings(report, result.end_to_end), *result.warnings),
            notes=(*not_compared(graphs.quantized), *self._notes(), *result.notes, *unmeasured),
            layer_errors=errors,
            end_to_end=result.end_to_end,
            peak_rss_mib=peak_rss_mib(),
        )

    def _ignored(self, plan: Plan) -> tuple[str, ...]:
        """What was set and has no effect; also a warning each."""
        in_steps = any(is_trained_in_steps(layer, self._config) for layer in plan.layers)
        lines = tuple(
            f"{option.keyword}={option.value!r} has no effect: {option.reason}"
            for option in (*ignored_options(self._given, in_steps=in_steps), *self._on_the_cpu)
        )
        for line in lines:
            _LOG.warning(line)
        return lines

    def _tune(self, graphs: TwoGraphs, plan: Plan) -> tuple[tuple[LayerReport, ...], list[Change]]:
        with PhaseProgress("Finetuning layers", len(plan.layers)) as progress:

            def on_layer(report: LayerReport) -> None:
                if not report.accepted:
                    _LOG.info("layer %s is left as it is: %s", report.name, report.reason)
                progress.advance(note=report.name)

            config = self._config
            options = WalkOptions(
                float_first=config.mem_opt_level == 0 and not config.parallel,
                float_inputs=config.drop_ratio < 1 and config.solver != "least_squares",
                parallel=config.parallel,
            )
            solver = choose_solver(config, self._samples.samples, self.place.store, graphs.engine)
            return finetune_layers(
                graphs,
                plan,
                self._saved.solver("tune", solver),
                options,
                on_layer,
                self._judge(graphs),
            )

    def _judge(self, graphs: TwoGraphs) -> Judge | None:
        config = self._config
        if not config.selective_update:
            return None
        judge: Judge
        if config.evaluator is not None:
            judge = EvaluatorJudge(config.evaluator, graphs.quantized, graphs.engine)
        else:
            judge = OutputJudge(graphs, judged_outputs(graphs.float_model, config))
        judge.remember(self._saved.score)
        return judge

    def _kept(
        self,
        quantized: onnx.ModelProto,
        changes: list[Change],
        whole: WholeModel,
        before: NDArray[np.float64],
        *,
        keep_worse: bool,
        done: str,
    ) -> Kept:
        """What stays of the changes, by the whole model's outputs; all where the caller's evaluator judges."""
        if keep_worse or not changes or self._config.evaluator is not None or not whole.can_judge:
            return Kept()
        with self._clock.phase("compare"):
            return keep_better(quantized, changes, lambda: self._errors(whole, quantized), before, done=done)

    def _errors(self, whole: WholeModel, quantized: onnx.ModelProto | None = None) -> NDArray[np.float64]:
        """By sample; of a quantized model (None: at the start), of all outputs or of the one of output_index."""
        index = self._config.output_index if self._config.selective_update else None
        return whole.errors(quantized, None if index is None else whole.names[index])

    def _notes(self) -> tuple[str, ...]:
        spilled = self.place.store.spilled if isinstance(self.place.store, SpillingStore) else 0
        if not spilled:
            return ()
        return (f"memory was short: {spilled >> 20} MiB of tensors went to files, as at mem_opt_level=2",)

    def _warnings(self, report: Report, result: EndToEnd | None) -> tuple[str, ...]:
        """What is to be said of a report in which only comparisons are missing; logged too."""
        found, done = [self._doubt] * bool(self._doubt), "finetuning" if self._finetunes else "bias correction"
        taken_back = bool(report.warnings)
        if self._finetunes and not report.layers:
            why = nothing_to_tune(report.skipped, self._config.target_op_type)
            found.append(f"{type(self._config).__name__} has no effect: {why}")
        if self._correction is not None and not report.corrections:
            found.append("BiasCorrectionConfig has no effect: no layer has an integer bias of its own")
        if result is not None and (report.layers or report.corrections) and not taken_back and _is_no_better(result):
            found.append(
                f"{done} did not bring the whole model closer to the {result.reference} on the samples compared "
                f"({result.samples}): error "
                f"{100 * result.before.error:.4g} % before, {100 * result.after.error:.4g} % after"
            )
        for line in found:
            _LOG.warning(line)
        return tuple(found)


def store_for(config: FastFinetuneConfig, engine: Engine) -> BatchStore:
    """Where a run keeps its tensors."""
    if config.mem_opt_level == 2:
        return FileStore(config.cache_dir)
    return SpillingStore(engine.memory.free() // 2, config.cache_dir)  # solvers and onnxruntime need the other half


def _is_no_better(result: EndToEnd) -> bool:
    return result.before.error > 0 and not result.after.error < result.before.error
