"""The C core: calibration statistics, layer moments and solvers (csrc/python).

Threads: each method has its object for itself until it returns. Another thread that calls a method of it meanwhile
gets a RuntimeError; only ThreadPool and Device may be shared. After fork() a child can use all objects but those that
another thread was using, for which the same RuntimeError stays, and Devices; a ThreadPool works there with one thread.

Sizes beyond any memory raise MemoryError, others that make no sense ValueError. Importing the module raises ImportError
when the environment variable QK_MAX_ISA is neither empty nor the name of an instruction set.
"""

from collections.abc import Sequence
from typing import TypedDict, final, type_check_only

import numpy as np
from numpy.typing import NDArray

# It describes what follows a layer in training: activation, a, b, slopes (rows) of PRelu, axis of softmax, folded, grid
# of the output (scale, zero_point, qmin, qmax).
_OutputStage = tuple[str, float, float, NDArray[np.float32] | None, int, bool, tuple[float, int, int, int] | None]

# A Conv has kernel, strides, dilations, pads, auto_pad (0 NOTSET, 1 SAME_UPPER, 2 SAME_LOWER, 3 VALID). A
# ConvTranspose also has output_padding and output_shape, None where it is not given.
_Ints = Sequence[int]
_Conv = tuple[_Ints, _Ints, _Ints, _Ints, int] | tuple[_Ints, _Ints, _Ints, _Ints, int, _Ints, _Ints | None]

def isa() -> str:
    """The kernels in use: 'scalar', 'avx2', 'avx512' or 'avx512vnni'. QK_MAX_ISA caps them."""

def blas_config() -> str:
    """OpenBLAS's description of itself."""

def fake_quant(x: NDArray[np.float32], scale: float, zero_point: int, qmin: int, qmax: int, /) -> NDArray[np.float32]:
    """ONNX QuantizeLinear then DequantizeLinear of a float32 array."""

def affine_from_range(
    rmin: float, rmax: float, qmin: int, qmax: int, symmetric: bool, scale_type: str = "Float32", /
) -> tuple[float, int]:
    """(scale, zero_point) of a value range, as onnxruntime.quantization computes them.
    "PowerOf2" and "Int16": with the next larger scale of that kind."""

def weight_scale(
    weight: NDArray[np.float32],
    *,
    qmin: int,
    qmax: int,
    symmetric: bool,
    per_channel: bool,
    scale_type: str,
    pool: ThreadPool,
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """(scale, zero_point) of the weight (rows, inputs) with the least squared error, one each or one a row."""

def add_distances(total: float, have: NDArray[np.float32], want: NDArray[np.float32], samples: int, /) -> float:
    """`total` plus the L2 norm of have - want of each of so many samples: what selective update compares.
    The arrays hold the samples one after the other. ValueError unless both have as many values, a multiple of
    samples."""

def is_better(score: float, kept: float, /) -> bool:
    """Selective update's rule: whether a score, of which lower ones are better, is strictly below the one kept last.
    NaN never is."""

def unused_memory() -> int:
    """Bytes that the process has beside what it allocated: code, and what the C library keeps of freed memory."""

def resident_memory() -> tuple[int, int]:
    """(now, peak): bytes that the process has, and the most it has had; 0 where the system does not tell."""

def return_memory() -> None:
    """Give back to the system what the C library keeps of freed memory."""

@final
class ThreadPool:
    """Threads of the core. Results do not depend on how many there are."""

    def __new__(cls, threads: int) -> ThreadPool:
        """ValueError unless threads is 1 to 1024."""

    @property
    def threads(self) -> int:
        """Number of threads, the caller's included."""

    def cancel(self) -> None:
        """End the solvers that work with this pool, in any thread, now and later: they raise KeyboardInterrupt."""

class DeviceError(RuntimeError):
    """A device cannot be used, or failed; it says why, with its compiler's log if that refused the kernels."""

@final
class Device:
    """A device that computes beside the processor, by OpenCL. Threads may share it.

    One works on it at a time; a child of fork() cannot use it."""

    def __new__(cls, index: int, *, platform: int | None = None, most_bytes: int = 0) -> Device:
        """index: among all GPUs; with `platform` among all its devices. most_bytes: of its memory, 0: no limit.
        DeviceError where it cannot be used."""

    @property
    def name(self) -> str:
        """What its driver calls it."""

    @property
    def is_lost(self) -> bool:
        """Whether it failed, for good."""

@final
class ValueRanges:
    """Minimum, maximum and a histogram for each of many tensors, streaming."""

    def __new__(cls, tensors: int, bins: int = 2048) -> ValueRanges:
        """ValueError unless bins is even, 2 to 2**24."""

    def update(self, arrays: Sequence[NDArray[np.float32]], /) -> None:
        """Adds one float32 array per tensor. ValueError on NaN or Inf."""

    def add(self, other: ValueRanges, /) -> None:
        """Adds all that others of the same tensors have seen."""

    def min_max(self, tensor: int, /) -> tuple[float, float]:
        """The smallest and the largest value."""

    def percentile(self, tensor: int, percentile: float, /) -> float:
        """The smallest bin edge t with at least that percentage of |x| <= t."""

    def histogram(self, tensor: int, /) -> tuple[float, NDArray[np.uint64]]:
        """(width, counts): counts (2 bins) of the values between (i - bins) and (i - bins + 1) widths."""

    def choose(
        self,
        tensor: int,
        method: str,
        *,
        qmin: int,
        qmax: int,
        symmetric: bool,
        scale_type: str,
        two_sided: bool,
        percentiles: Sequence[float],
        squared: bool,
        levels: int,
    ) -> tuple[float, float]:
        """The range (lowest, highest) that a CalibMethod gives the tensor (csrc/include/qk.h)."""

@final
class QuantizedLayer:
    """A layer as it was quantized, from which the solvers start. The arrays are not copied."""

    def __new__(
        cls,
        weight: NDArray[np.float32],
        weight_q: NDArray[np.int32],
        weight_scale: NDArray[np.float32],
        weight_zero_point: NDArray[np.int32],
        *,
        qmin: int,
        qmax: int,
        bias: NDArray[np.float32] | None,
        bias_scale: NDArray[np.float32] | None,
        bias_qmin: int,
        bias_qmax: int,
    ) -> QuantizedLayer:
        """weight, weight_q: (rows, K), the rows of all groups. weight_scale, weight_zero_point: (rows), or (rows,
        blocks) for blocks of K / blocks neighbouring inputs. bias: (rows), as real numbers. bias_scale: (rows), None
        where the bias must stay. ValueError when shapes do not fit."""

@final
class GradientOptions:
    """How the gradient loops work."""

    def __new__(
        cls,
        *,
        method: str,
        update_bias: bool,
        batch_size: int,
        step_positions: int,
        iterations: int,
        learning_rate: float,
        reg_param: float,
        warm_start: float,
        beta_start: float,
        beta_end: float,
        drop_ratio: float,
        window: int,
        patience: int,
        seed: int,
    ) -> GradientOptions:
        """method: "adaround" or "adaquant". window, patience: of early stop, in steps and in windows; window 0: none.
        step_positions: of the samples of a step, at least that many where there are more; 0: all.
        drop_ratio: of QDrop, the probability of the quantized graph's input; 1: always that. ValueError for another
        method or no iterations; other values are checked by `TrainingData.train`."""

@final
class Layer:
    """Moments of one layer's data: feed batches, then ask for a weight scale or for finetuned integers."""

    def __new__(
        cls,
        inputs: int,
        outputs: int,
        samples: int,
        max_rows: int,
        *,
        groups: int = 1,
        conv: _Conv | None = None,
        holdout: int = 0,
        seed: int = 0,
        target: bool = True,
        x_scale: float = 1.0,
        x_zero_point: int = 0,
        kept: int = 0,
        thinned: bool = False,
        device: Device | None = None,
    ) -> Layer:
        """inputs (K) and outputs (O) are per group. conv: None for a matrix product. kept: so many rows of a set are
        kept as they are, without moments of size K x K; 0: none. Where there are more, moments take their place; with
        `thinned` every other row is dropped instead, again and again. device: makes the moments; what it raises is a
        DeviceError. ValueError when the sizes make no layer."""

    def feed(
        self,
        x: NDArray[np.float32] | NDArray[np.uint8] | NDArray[np.int8],
        y: NDArray[np.float32] | None,
        pool: ThreadPool,
        /,
    ) -> None:
        """The next samples. x: float32, or the 8-bit tensor before its DequantizeLinear. y: float32, None
        without target. ValueError when a shape does not fit."""

    @property
    def moments_by(self) -> str:
        """What makes the moments: 'device', or why it is not the device: 'cpu' (there is none), 'few rows', 'phases' (a
        strided ConvTranspose) or 'memory'."""

    def extent(self, x: NDArray[np.float32] | NDArray[np.uint8] | NDArray[np.int8], /) -> tuple[int, int]:
        """(samples, positions of each) of a tensor as `feed` takes it: the rows that it can give. ValueError when its
        shape does not fit."""

    def join(self, other: Layer, pool: ThreadPool, /) -> None:
        """Add the rows of another layer with the same weight to this one's. ValueError when they are not alike in
        groups, inputs, outputs, target and holdout."""

    def moments(
        self, pool: ThreadPool, held_out: bool, /
    ) -> tuple[
        int,
        NDArray[np.float64],
        NDArray[np.float64],
        NDArray[np.float64],
        NDArray[np.float64],
        NDArray[np.float64],
    ]:
        """(rows, gram, cross, mean_x, mean_y, power) per row and group: (groups, K, K), (groups, O, K),
        (groups, K), (groups, O), (groups, O)."""

    def mean_input(self, pool: ThreadPool, /) -> NDArray[np.float64]:
        """(groups, K): of the fitted rows. ValueError when there are none."""

    def weight_scale(
        self,
        weight: NDArray[np.float32],
        *,
        qmin: int,
        qmax: int,
        symmetric: bool,
        per_channel: bool,
        bias_free: bool,
        scale_type: str,
        pool: ThreadPool,
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """(scale, zero_point) of the weight (rows, K) with the least output error, one each or one a row."""

    def least_squares(
        self,
        start: QuantizedLayer,
        pool: ThreadPool,
        *,
        update_bias: bool,
        free: bool,
        damping: NDArray[np.float64],
        max_sweeps: int,
    ) -> LeastSquaresResult:
        """Integer weight and bias with the least output error, chosen on held-out rows. free: any integer of the grid,
        else the two around the float weight. damping: candidates, relative to the mean diagonal of the Gram matrix.
        ValueError when the start's weight has not the layer's shape."""

@type_check_only
class LeastSquaresResult(TypedDict):
    """Pairs are (fitted, held out). one_row_in: solved on rows, of which every so manieth was kept; 0: on moments of
    all. float64_factor: float32 was not enough for a factor. pilot_alone: other integers gained next to nothing on a
    part of the outputs, so that the others got their best bias alone.
    """

    accepted: bool
    improved: int
    weight: NDArray[np.int32]
    bias: NDArray[np.int32] | None
    candidate: str
    one_row_in: int
    float64_factor: bool
    pilot_alone: bool
    before: tuple[float, float]
    after: tuple[float, float]
    power: tuple[float, float]
    rows: tuple[int, int]

@final
class TrainingData:
    """The samples of one layer, for the gradient loops."""

    def __new__(
        cls,
        inputs: int,
        outputs: int,
        *,
        groups: int = 1,
        conv: _Conv | None = None,
        holdout: int = 0,
        x_scale: float = 1.0,
        x_zero_point: int = 0,
        stage: _OutputStage | None = None,
    ) -> TrainingData: ...
    def add(
        self,
        x: NDArray[np.float32] | NDArray[np.uint8] | NDArray[np.int8],
        y: NDArray[np.float32],
        x_float: NDArray[np.float32] | None = None,
        /,
    ) -> None:
        """The next samples. x: float32, or the 8-bit tensor before its DequantizeLinear. y: float32. x_float: what the
        float graph feeds the layer, float32; for drop_ratio below 1. None of them is copied, and
        NumPy refuses to resize them as long as the samples are here."""

    def start_loss(self, start: QuantizedLayer, pool: ThreadPool, /) -> float:
        """The reconstruction loss of the start, over all samples: summed over outputs, mean over output positions."""

    def train(
        self,
        start: QuantizedLayer,
        options: GradientOptions,
        pool: ThreadPool,
        *,
        offered: tuple[NDArray[np.int32], NDArray[np.int32] | None] | None = None,
        device: Device | None = None,
    ) -> TrainedLayer:
        """AdaRound or AdaQuant by gradient, from the float weight. offered: weight (rows, K) and bias (rows) of another
        solution, kept for each output for which it is the better one. device: takes the steps and judges, unless
        `on_device` says that it could not. ValueError when the start's weight has not the layer's shape, DeviceError
        when the device fails, MemoryError when it has too little memory."""

@type_check_only
class TrainedLayer(TypedDict):
    """Pairs are (fitted, held out); without held-out samples the second is NaN."""

    weight: NDArray[np.int32]
    bias: NDArray[np.int32] | None
    losses: NDArray[np.float64]
    before: tuple[float, float]
    after: tuple[float, float]
    power: tuple[float, float]
    samples: tuple[int, int]
    improved: int
    trained: int
    iterations: int
    stopped_early: bool
    on_device: bool
