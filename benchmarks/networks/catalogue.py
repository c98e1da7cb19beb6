"""The networks of the benchmark, each at its size and at one for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from networks.convnext import convnext
from networks.data import smooth_noise, token_ids
from networks.dense_images import edsr, segmentation, unet
from networks.graph import Graph
from networks.mobile import EFFICIENTNET_B0, MOBILENET_V2, efficientnet, mobilenet
from networks.plain_chains import small_layers, speech, vgg
from networks.residual import resnet
from networks.transformer import bert, vision_transformer
from networks.yolo import yolo

__all__ = ["NETWORKS", "Network"]

_DRAWN_ON = 2  # samples that statistics of BatchNormalization are taken from


@dataclass(frozen=True, kw_only=True)
class Network:
    """One network.

    Attributes:
        build: makes it, by the options of `full` or `small`.
        shape: of a sample; `small_shape` in tests.
        drawn_shape: of the samples that it is built on, if not that.
        vocabulary: of token ids; 0: the samples are images.
    """

    build: Callable[..., onnx.ModelProto]
    shape: tuple[int, ...]
    small_shape: tuple[int, ...]
    full: Mapping[str, Any] = field(default_factory=dict)
    small: Mapping[str, Any] = field(default_factory=dict)
    drawn_shape: tuple[int, ...] | None = None
    vocabulary: int = 0

    def samples(self, count: int, shape: tuple[int, ...], seed: int) -> NDArray[Any]:
        """(count, *shape)."""
        rng = np.random.default_rng(seed)
        if self.vocabulary:
            return token_ids((count, *shape), self.vocabulary, rng)
        return smooth_noise((count, *shape), rng)

    def model(self) -> onnx.ModelProto:
        """Build it at its size."""
        samples = self.samples(_DRAWN_ON, self.drawn_shape or self.shape, seed=1)
        made = self.build(Graph(samples), **self.full)
        if self.drawn_shape is not None:
            _free_image_size(made, self.shape)
        return made

    def small_model(self) -> onnx.ModelProto:
        """Build it from the same operators at a size that takes a second."""
        return self.build(Graph(self.samples(_DRAWN_ON, self.small_shape, seed=1)), **self.small)


def _free_image_size(model: onnx.ModelProto, shape: tuple[int, ...]) -> None:
    """Let the input have that shape, and outputs any size."""
    for dim, length in zip(model.graph.input[0].type.tensor_type.shape.dim[1:], shape, strict=True):
        dim.dim_value = length
    for output in model.graph.output:
        for dim in output.type.tensor_type.shape.dim[2:]:
            dim.Clear()


_PHOTO, _SMALL_PHOTO = (3, 224, 224), (3, 32, 32)
_FEW_STAGES = ((1, 8, 1, 1, 3), (6, 12, 2, 2, 5))

NETWORKS = {
    "resnet18": Network(
        build=resnet, shape=_PHOTO, small_shape=_SMALL_PHOTO,
        full={"blocks": (2, 2, 2, 2), "bottleneck": False},
        small={"blocks": (1, 1), "bottleneck": False, "width": 8, "classes": 10},
    ),
    "resnet50": Network(
        build=resnet, shape=_PHOTO, small_shape=_SMALL_PHOTO,
        full={"blocks": (3, 4, 6, 3), "bottleneck": True},
        small={"blocks": (1, 1), "bottleneck": True, "width": 8, "classes": 10},
    ),
    "mobilenet_v2": Network(
        build=mobilenet, shape=_PHOTO, small_shape=_SMALL_PHOTO,
        full={"stages": MOBILENET_V2}, small={"stages": _FEW_STAGES, "head": 24, "classes": 10},
    ),
    "efficientnet_b0": Network(
        build=efficientnet, shape=_PHOTO, small_shape=_SMALL_PHOTO,
        full={"stages": EFFICIENTNET_B0}, small={"stages": _FEW_STAGES, "head": 24, "classes": 10},
    ),
    "convnext_tiny": Network(
        build=convnext, shape=_PHOTO, small_shape=_SMALL_PHOTO,
        full={"blocks": (3, 3, 9, 3), "width": 96}, small={"blocks": (1, 1), "width": 8, "classes": 10},
    ),
    "yolov8n": Network(
        build=yolo, shape=(3, 640, 640), small_shape=(3, 64, 64), small={"width": 4, "classes": 5},
    ),
    "deit_tiny": Network(
        build=vision_transformer, shape=_PHOTO, small_shape=_SMALL_PHOTO,
        full={"width": 192, "heads": 3}, small={"width": 24, "heads": 3, "layers": 1, "patch": 8, "classes": 10},
    ),
    "vit_base": Network(
        build=vision_transformer, shape=_PHOTO, small_shape=_SMALL_PHOTO,
        full={"width": 768, "heads": 12}, small={"width": 24, "heads": 2, "layers": 2, "patch": 16, "classes": 10},
    ),
    "bert_base": Network(
        build=bert, shape=(128,), small_shape=(8,), vocabulary=30522,
        full={"width": 768, "heads": 12}, small={"width": 24, "heads": 2, "layers": 1},
    ),
    "unet": Network(
        build=unet, shape=(3, 512, 512), small_shape=_SMALL_PHOTO, small={"width": 4, "levels": 2},
    ),
    "edsr": Network(build=edsr, shape=(3, 128, 128), small_shape=(3, 16, 16), small={"width": 8, "blocks": 2}),
    "speech_gru": Network(
        build=speech, shape=(1, 200, 80), small_shape=(1, 24, 16), small={"width": 4, "hidden": 8, "classes": 6},
    ),
    "vgg16": Network(
        build=vgg, shape=_PHOTO, small_shape=_SMALL_PHOTO,
        full={"stages": ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)},
        small={"stages": ((4, 4), (8,)), "hidden": 16, "classes": 10},
    ),
    "small_layers_501": Network(
        build=small_layers, shape=(3, 16, 16), small_shape=(3, 8, 8), full={"pairs": 250}, small={"pairs": 5},
    ),
    "segmentation_1080p": Network(
        build=segmentation, shape=(3, 1088, 1920), small_shape=(3, 32, 48), drawn_shape=(3, 256, 448),
        small={"width": 4, "classes": 5},
    ),
}  # fmt: skip
