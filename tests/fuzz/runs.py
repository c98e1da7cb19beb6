"""One fuzzed run, all of it drawn from its seed: a model, mutations of it, an entry point, a configuration."""

from __future__ import annotations

import functools
import random
import tempfile
import traceback
from pathlib import Path
from typing import Any

import onnx
from small_models import Reader, autoencoder, conv1d, mlp, residual_cnn, samples, separable_cnn

from fuzz.mutations import MUTATIONS, mutate_bytes
from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    BiasCorrectionConfig,
    CalibMethod,
    CLEConfig,
    Int4Spec,
    Int8Spec,
    Int16Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    QuantGranularity,
    QuarkError,
    UInt8Spec,
    finetune,
)

__all__ = ["run"]

SHARED = Path(__file__).parents[3] / "shared" / "data" / "models"
REAL = ("tiny_kws_dscnn", "mtcnn_pnet", "cifar10_resnet20")
SMALL = {"separable": separable_cnn, "residual": residual_cnn, "mlp": mlp, "conv1d": conv1d, "autoencoder": autoencoder,
         "unfolded": functools.partial(residual_cnn, folded=False)}  # fmt: skip


def run(seed: int, *, real: bool) -> str:
    """What came of it: "delivered", "own: TYPE", "net: TYPE at PLACE" (a foreign one that the net caught), "system:
    TYPE", "memory", or "foreign: TYPE at PLACE".

    Args:
        real: real models too, where there are any.
    """
    r = random.Random(seed)
    bases = [*SMALL, *(name for name in REAL if real and (SHARED / f"{name}.onnx").exists())]
    base = r.choice(bases)
    mutate = r.choice(["quantize", "quantize", "finetune float", "finetune quantized", "finetune quantized", "both"])
    with tempfile.TemporaryDirectory() as folder:
        try:
            _run(base, mutate, r, Path(folder))
        except QuarkError as error:
            if "please report it" in str(error) and error.__cause__ is not None:
                return f"net: {_described(error.__cause__)}"
            return f"own: {type(error).__name__}"
        except MemoryError:
            return "memory"
        except OSError as error:
            return f"system: {type(error).__name__}"
        except Exception as error:
            return f"foreign: {_described(error)}"
    return "delivered"


def _described(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "quark_onnx" in frame.filename]
    frame = (ours or frames)[-1]
    return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno} {str(error)[:80]!r}"


def _run(base: str, mutate: str, r: random.Random, folder: Path) -> None:
    float_model, quantized = _models(base)
    arrays = samples(_free(float_model), r.choice([2, 5, 12]), seed=r.randrange(9))
    data = Reader(arrays, batch=r.choice([1, 1, 2, 5]) if base in SMALL else 1)
    config = _config(r, folder)
    if mutate == "quantize":
        output = folder / "out.onnx" if r.random() < 0.3 else None
        ModelQuantizer(config).quantize_model(_mutated(float_model, r, folder, "float"), output, data)
        return
    float_given = float_model if mutate == "finetune quantized" else _mutated(float_model, r, folder, "float")
    quantized_given = quantized if mutate == "finetune float" else _mutated(quantized, r, folder, "quantized")
    algorithm: Any = config if config.fast_finetune is not None and config.equalisation is None else AdaRoundConfig()
    finetune(float_given, quantized_given, None, data, algorithm)


@functools.cache
def _models(base: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    model = SMALL[base]() if base in SMALL else onnx.load(SHARED / f"{base}.onnx")
    config = QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), NumThreads=1)
    quantized = ModelQuantizer(config).quantize_model(model, None, Reader(samples(_free(model), 4)))
    assert quantized is not None
    return model, quantized


def _free(model: onnx.ModelProto) -> onnx.ModelProto:
    """The shape with lengths for the axes that the model leaves open."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for value in result.graph.input:
        for dim in value.type.tensor_type.shape.dim[1:]:
            dim.dim_value = dim.dim_value or 24
    return result


def _mutated(model: onnx.ModelProto, r: random.Random, folder: Path, name: str) -> onnx.ModelProto | Path:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for _ in range(r.choice([1, 1, 1, 2, 3])):
        chosen = r.choice(MUTATIONS)
        try:
            chosen(result, r)
        except (ValueError, TypeError, UnicodeError, IndexError):  # the format cannot hold it, or there is nothing left
            continue
    if r.random() < 0.7:
        return result
    path = folder / f"{name}.onnx"
    content = result.SerializeToString()
    path.write_bytes(mutate_bytes(content, r) if r.random() < 0.7 else content)
    (folder / "w.bin").write_bytes(bytes(4096))
    return path


def _config(r: random.Random, folder: Path) -> QConfig:
    weight = r.choice([Int8Spec, Int8Spec, Int4Spec, Int16Spec, UInt8Spec])(
        quant_granularity=r.choice([QuantGranularity.Tensor, QuantGranularity.Channel]),
        **({"calibration_method": CalibMethod.MinMax} if r.random() < 0.5 else {}),
    )
    algorithms: list[Any] = []
    if r.random() < 0.2:
        algorithms.append(CLEConfig())
    if r.random() < 0.2:
        algorithms.append(BiasCorrectionConfig())
    if r.random() < 0.8:
        selective = r.random() < 0.15
        algorithms.append(
            r.choice([AdaRoundConfig, AdaQuantConfig])(
                solver=r.choice(["auto", "auto", "least_squares", "gradient"]), num_iterations=5,
                mem_opt_level=r.choice([0, 1, 1, 2]), cache_dir=str(folder), selective_update=selective,
                parallel=not selective and r.random() < 0.2, drop_ratio=r.choice([1.0, 1.0, 0.5]),
                data_size=r.choice([3, 1000]),
            )
        )  # fmt: skip
    options: dict[str, Any] = {"NumThreads": 1}
    if r.random() < 0.1:
        options["CalibDataSize"] = 2
    return QConfig(QLayerConfig(UInt8Spec(), weight=weight), algo_config=algorithms, **options)
