"""From image files to arrays, by preprocessing that has a name or is spelled out. Pillow reads the files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from quark.onnx.calibration_data.checked_items import ModelInput
from quark.onnx.calibration_data.ready_readers import inputs_of
from quark.onnx.config.frozen import FrozenConfig, strict_keywords
from quark.onnx.config.validate import Check, integer, nearest, optional, real, string
from quark.onnx.errors import DataError
from quark.onnx.model_files.model_file import ModelLike

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["PREPROCESSINGS", "ImagePreprocessing", "image_preprocessing"]

_NO_PILLOW = "images are read by Pillow, which is not installed: pip install 'quark-onnx[images]' or pip install pillow"
_USUAL_SIZE = 224
_GREY = 114  # what letterboxes are filled with, by YOLO's convention
_FITS = ("crop", "letterbox", "stretch")
_LAYOUTS = ("NCHW", "NHWC")
_ORDERS = ("RGB", "BGR")


def _size(value: object) -> tuple[int, int]:
    side = integer("", lambda n: n >= 1).convert
    if not isinstance(value, (list, tuple)):
        return side(value), side(value)
    if len(value) != 2:
        raise ValueError
    height, width = map(side, value)
    return height, width


def _per_channel(accepts: Any) -> Any:
    number = real("", accepts).convert

    def convert(value: object) -> tuple[float, ...]:
        items = value if isinstance(value, (list, tuple)) else (value,)
        if not items:
            raise ValueError
        return tuple(number(item) for item in items)

    return convert


def _choice(choices: tuple[str, ...]) -> Check:
    return string(f"one of {', '.join(choices)}", lambda word: word in choices)


Size = Annotated[tuple[int, int] | int | None, optional(Check("an int >= 1, or two: height and width", _size))]
Share = Annotated[float, real("a number above 0, at most 1", lambda x: 0 < x <= 1)]
Scale = Annotated[float, real("a number > 0", lambda x: x > 0)]
Mean = Annotated[tuple[float, ...] | float, Check("a number, or one per channel", _per_channel(lambda _: True))]
Std = Annotated[tuple[float, ...] | float, Check("a number > 0, or one per channel", _per_channel(lambda x: x > 0))]
Fit = Annotated[Literal["crop", "letterbox", "stretch"], _choice(_FITS)]
Layout = Annotated[Literal["NCHW", "NHWC"] | None, optional(_choice(_LAYOUTS))]
Order = Annotated[Literal["RGB", "BGR"], _choice(_ORDERS)]


@strict_keywords
@dataclass(frozen=True, kw_only=True, repr=False)
class ImagePreprocessing(FrozenConfig):
    """What becomes of an image file: (pixel * scale - mean) / std, of a part of a size, with channels in an order.

    Args:
        size: height and width of the array, or one number for both; None: those of the model, 224 where it leaves them
            open.
        fit: how an image of another shape gets that size: "crop" resizes it so that its middle, of the share `crop`
            of the shorter side, fills the size; "letterbox" shows all of it, with grey (114) beside it; "stretch" shows
            all of it, out of proportion.
        crop: the share of the shorter side that fit="crop" keeps.
        scale: what pixels, which go from 0 to 255, are multiplied by.
        mean: subtracted after that, in the order of `channel_order`; one number for all channels, or one each.
        std: divided by after that.
        channel_order: "RGB" or "BGR". Images for a model of one channel are grey.
        layout: "NCHW" or "NHWC"; None: the model's, which its input's shape tells.

    Raises:
        ConfigError: a wrong value.
        ConfigTypeError: a wrong type, or an unknown keyword.
    """

    size: Size = None
    fit: Fit = "crop"
    crop: Share = 1.0
    scale: Scale = 1.0
    mean: Mean = (0.0,)
    std: Std = (1.0,)
    channel_order: Order = "RGB"
    layout: Layout = None

    @property
    def keeps_pixels(self) -> bool:
        """Whether pixels stay whole numbers from 0 to 255."""
        return self.scale == 1 and not any(np.atleast_1d(self.mean)) and all(np.atleast_1d(self.std) == 1)

    def for_model(self, model: ModelLike) -> ImageLoader:
        """The function from an image file to an array for the model's input of images.

        Raises:
            DataError: the model has several inputs, or none of images; Pillow is missing.
        """
        return ImageLoader(self, inputs_of(model, None))


PREPROCESSINGS: Mapping[str, ImagePreprocessing] = MappingProxyType(
    {
        "imagenet": ImagePreprocessing(
            crop=0.875, scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
        ),
        "yolo": ImagePreprocessing(fit="letterbox", scale=1 / 255),
        "caffe": ImagePreprocessing(crop=0.875, mean=(103.939, 116.779, 123.68), channel_order="BGR"),
        "none": ImagePreprocessing(fit="stretch"),
    }
)


def image_preprocessing(name: str) -> ImagePreprocessing:
    """The preprocessing of this name.

    "imagenet" is that of torchvision's and timm's classifiers: the middle 87.5 %, as 0 to 1, minus the mean, divided by
    the standard deviation of ImageNet. "yolo" shows all of the image within grey, as 0 to 1. "caffe" takes the middle
    87.5 % in BGR, 0 to 255 minus the mean. "none" stretches the image and leaves pixels from 0 to 255.

    Raises:
        DataError: there is none.
    """
    if name not in PREPROCESSINGS:
        raise DataError(f"there is no preprocessing {name!r}; {nearest(name, PREPROCESSINGS)}")
    return PREPROCESSINGS[name]


class ImageLoader:
    """Makes an array of an image file: without an axis of samples, in the model's layout.

    Args:
        how: what becomes of it.
        inputs: of the model.

    Raises:
        DataError: as `ImagePreprocessing.for_model` does.
    """

    def __init__(self, how: ImagePreprocessing, inputs: tuple[ModelInput, ...]) -> None:
        if len(inputs) != 1:
            names = [spec.name for spec in inputs]
            raise DataError(f"a folder of images is for a model of one input, and the inputs are {names}: give arrays")
        _pillow()
        layout, channels, sides = _image_shape(inputs[0], how.layout)
        self._how = replace(how, layout=layout, size=how.size or sides)
        self._channels, self._dtype = channels, inputs[0].dtype
        for name in ("mean", "std"):
            given = getattr(how, name)
            if len(given) not in (1, channels):
                raise DataError(f"{name}={given} has {len(given)} values, and the model's images {channels} channels")

    def __call__(self, path: Path) -> NDArray[np.generic]:
        """(channels, height, width), or (height, width, channels); a .npy file is loaded as it is.

        Raises:
            DataError, OSError: it cannot be read.
        """
        if path.suffix.lower() == ".npy":
            loaded: NDArray[np.generic] = np.load(path, allow_pickle=False)
            return loaded
        with _pillow().open(path) as opened:
            fitted = _fitted(opened.convert("L" if self._channels == 1 else "RGB"), self._how)
        pixels = np.asarray(fitted)
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        if self._how.channel_order == "BGR":
            pixels = pixels[:, :, ::-1]
        values = pixels
        if not (self._dtype == np.uint8 and self._how.keeps_pixels):
            mean, std = (np.asarray(given, np.float32) for given in (self._how.mean, self._how.std))
            values = (pixels.astype(np.float32) * np.float32(self._how.scale) - mean) / std
        return np.ascontiguousarray(values.transpose(2, 0, 1) if self._how.layout == "NCHW" else values)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(_NO_PILLOW) from error
    return Image


def _image_shape(
    spec: ModelInput, layout: Literal["NCHW", "NHWC"] | None
) -> tuple[Literal["NCHW", "NHWC"], int, tuple[int, int]]:
    """Layout, channels, and height and width of the model's images."""
    if spec.shape is None or len(spec.shape) != 4:
        raise DataError(f"the input {spec.name!r} of shape {_shown(spec)} takes no images: four axes are needed")
    channels: dict[Literal["NCHW", "NHWC"], int | None] = {"NCHW": spec.shape[1], "NHWC": spec.shape[3]}
    if layout is None:
        possible = [name for name, count in channels.items() if count in (1, 3)]
        if len(possible) != 1:
            raise DataError(
                f"the shape {_shown(spec)} of the input {spec.name!r} does not tell where its channels are: "
                'give layout="NCHW" or "NHWC"'
            )
        layout = possible[0]
    if channels[layout] not in (None, 1, 3):
        raise DataError(f"the input {spec.name!r} of shape {_shown(spec)} has {channels[layout]} channels as {layout}")
    height, width = spec.shape[2:] if layout == "NCHW" else spec.shape[1:3]
    return layout, channels[layout] or 3, (height or _USUAL_SIZE, width or _USUAL_SIZE)


def _shown(spec: ModelInput) -> str:
    return "unknown" if spec.shape is None else f"({', '.join('?' if d is None else str(d) for d in spec.shape)})"


def _fitted(image: Image, how: ImagePreprocessing) -> Image:
    """The image, resized bilinearly."""
    from PIL import Image as pillow  # noqa: N813 (a module)

    assert isinstance(how.size, tuple)
    height, width = how.size
    bilinear = pillow.Resampling.BILINEAR
    if how.fit == "stretch":
        return image.resize((width, height), bilinear)
    if how.fit == "letterbox":
        factor = min(width / image.width, height / image.height)
        shown = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        grey = pillow.new(image.mode, (width, height), _GREY if image.mode == "L" else (_GREY,) * 3)
        grey.paste(image.resize(shown, bilinear), ((width - shown[0]) // 2, (height - shown[1]) // 2))
        return grey
    factor = max(width / image.width, height / image.height) / how.crop
    resized = image.resize(
        (max(width, round(image.width * factor)), max(height, round(image.height * factor))), bilinear
    )
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    return resized.crop((left, top, left + width, top + height))
