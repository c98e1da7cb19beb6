"""Image files as input: named preprocessing, or spelled out."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import build, embedding, mlp

from quark.onnx import ConfigError, DataError, ImagePreprocessing
from quark.onnx.calibration_data.images import PREPROCESSINGS, image_preprocessing

PIL = pytest.importorskip("PIL.Image")

NCHW = build("(float[N,3,8,6] x) => (float[N,3,8,6] y) { y = Relu(x) }")
NHWC = build("(float[N,8,6,3] x) => (float[N,8,6,3] y) { y = Relu(x) }")
GREY = build("(float[N,1,8,6] x) => (float[N,1,8,6] y) { y = Relu(x) }")
OPEN = build("(float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu(x) }")
BYTES = build("(uint8[N,3,8,6] x) => (uint8[N,3,8,6] y) { y = Identity(x) }")


def image(folder: Path, height: int = 8, width: int = 6) -> tuple[Path, np.ndarray]:
    pixels = np.random.RandomState(0).randint(0, 256, (height, width, 3), np.uint8)
    PIL.fromarray(pixels).save(folder / "i.png")
    return folder / "i.png", pixels


def test_pixels_as_they_are(tmp_path: Path) -> None:
    path, pixels = image(tmp_path)
    none = PREPROCESSINGS["none"]
    got = none.for_model(NCHW)(path)
    assert got.dtype == np.float32
    assert np.array_equal(got, pixels.transpose(2, 0, 1))
    assert np.array_equal(none.for_model(NHWC)(path), pixels)
    got = none.for_model(BYTES)(path)
    assert got.dtype == np.uint8
    assert np.array_equal(got, pixels.transpose(2, 0, 1))


def test_scale_mean_std_and_the_order_of_channels(tmp_path: Path) -> None:
    path, pixels = image(tmp_path)
    how = ImagePreprocessing(scale=1 / 255, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0), channel_order="BGR")
    want = (pixels[:, :, ::-1] / 255 - [0.1, 0.2, 0.3]) / [1, 2, 4]
    assert np.allclose(how.for_model(NHWC)(path), want, atol=1e-6)


def test_imagenet_is_torchvisions(tmp_path: Path) -> None:
    """Resize(256), CenterCrop(224), ToTensor, Normalize: of an image that needs no resizing they are a crop."""
    path, pixels = image(tmp_path, 256, 300)
    want = (pixels[16:240, 38:262] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    got = image_preprocessing("imagenet").for_model(OPEN)(path)
    assert got.shape == (3, 224, 224)
    assert np.allclose(got, want.transpose(2, 0, 1), atol=1e-5)


def test_caffe_is_bgr_minus_mean(tmp_path: Path) -> None:
    path, pixels = image(tmp_path, 256, 256)
    want = pixels[16:240, 16:240, ::-1] - np.array([103.939, 116.779, 123.68])
    assert np.allclose(image_preprocessing("caffe").for_model(OPEN)(path), want.transpose(2, 0, 1), atol=1e-4)


def test_yolo_is_a_letterbox(tmp_path: Path) -> None:
    path, pixels = image(tmp_path, 4, 6)
    got = image_preprocessing("yolo").for_model(NCHW)(path) * 255
    assert np.allclose(got[:, 2:6], pixels.transpose(2, 0, 1), atol=1e-3)
    assert np.allclose(got[:, :2], 114)
    assert np.allclose(got[:, 6:], 114)


@pytest.mark.parametrize("fit", ["crop", "letterbox", "stretch"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (200, 3), (8, 6), (37, 41)])
def test_every_image_gets_the_size(fit: str, shape: tuple[int, int], tmp_path: Path) -> None:
    path, _ = image(tmp_path, *shape)
    for crop in (1.0, 0.875, 0.3):
        loader = ImagePreprocessing(fit=fit, crop=crop, size=(5, 7)).for_model(OPEN)
        assert loader(path).shape == (3, 5, 7)


def test_grey_images_and_colour_images(tmp_path: Path) -> None:
    PIL.fromarray(np.full((8, 6), 7, np.uint8)).save(tmp_path / "grey.png")
    assert np.array_equal(PREPROCESSINGS["none"].for_model(NCHW)(tmp_path / "grey.png"), np.full((3, 8, 6), 7))
    path, _ = image(tmp_path)
    assert PREPROCESSINGS["none"].for_model(GREY)(path).shape == (1, 8, 6)


@pytest.mark.parametrize(
    ("model", "keywords", "message"),
    [
        (mlp(), {}, r"of shape \(\?, 12\) takes no images"),
        (embedding(), {}, r"for a model of one input, and the inputs are \['tokens', 'importance'\]"),
        (build("(float[N,A,B,C] x) => (float[N,A,B,C] y) { y = Relu(x) }"), {}, "does not tell where its channels are"),
        (
            build("(float[N,4,B,C] x) => (float[N,4,B,C] y) { y = Relu(x) }"),
            {"layout": "NCHW"},
            "has 4 channels as NCHW",
        ),
        (GREY, {"mean": (1.0, 2.0, 3.0)}, r"mean=\(1.0, 2.0, 3.0\) has 3 values, and the model's images 1 channels"),
    ],
)
def test_models_that_it_does_not_fit(model: Any, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ImagePreprocessing(**keywords).for_model(model)


@pytest.mark.parametrize(
    "wrong", [{"size": 0}, {"crop": 0}, {"std": 0}, {"fit": "zoom"}, {"mean": ()}, {"layout": "CHW"}]
)
def test_wrong_values(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ImagePreprocessing(**wrong)


def test_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "PIL":
            raise ImportError(name)
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"pip install 'quark-onnx\[images\]'"):
        PREPROCESSINGS["imagenet"].for_model(NCHW)


def test_an_unknown_name() -> None:
    with pytest.raises(DataError, match="no preprocessing 'imagnet'; did you mean 'imagenet'"):
        image_preprocessing("imagnet")
