"""The job of AMD Quark's two tutorials on mobilenetv2_050.lamb_in1k, for any classifier of images.

Activations are Int8 and asymmetric, weights Int8, both by minimum and maximum and per tensor; then comes AdaRound or
AdaQuant with its defaults. adaround_mobilenetv2.py and adaquant_mobilenetv2.py run it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnxruntime

from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    CalibMethod,
    ImagePreprocessing,
    Int8Spec,
    QConfig,
    QLayerConfig,
    quantize,
)

EXPORT = """\
The tutorials' model is made by timm, in an environment of its own (pip install timm torch onnx):
  import timm, torch
  model = timm.create_model("mobilenetv2_050.lamb_in1k", pretrained=True).eval()
  torch.onnx.export(model, torch.zeros(1, 3, 224, 224), "mobilenetv2_050.onnx", input_names=["input"],
                    output_names=["output"], dynamic_axes={"input": {0: "N"}, "output": {0: "N"}}, dynamo=False)"""
IMAGENET = ImagePreprocessing(crop=0.875, scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
HALF = ImagePreprocessing(scale=1 / 255, mean=0.5, std=0.5)  # as TensorFlow's MobileNets see images
# Top-1 and top-5 in percent on the 50000 validation images of ImageNet, as AMD Quark's documentation has them.
PUBLISHED = {
    "float": (65.424, 85.788),
    "plain": (1.708, 5.690),
    "adaround": (39.790, 63.004),
    "adaquant": (56.936, 79.284),
}


def labelled(folder: Path) -> list[tuple[Path, int]]:
    """Images with their classes: a folder for each class, in the order of their names, or files CLASS_name.jpg."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    if classes:
        return [(image, label) for label, inside in enumerate(classes) for image in sorted(inside.iterdir())]
    return [(image, int(image.name.partition("_")[0])) for image in sorted(folder.glob("*.jp*g"))]


def precision(model: Path, images: list[tuple[Path, int]], preprocessing: ImagePreprocessing) -> tuple[float, float]:
    """Top-1 and top-5 precision, in percent."""
    load, session = preprocessing.for_model(str(model)), onnxruntime.InferenceSession(str(model))
    name, right = session.get_inputs()[0].name, np.zeros(5)
    for path, label in images:
        (scores,) = session.run(None, {name: load(path)[None]})
        right += np.argsort(-scores[0])[:5] == label
    return 100 * right[0] / len(images), 100 * right.sum() / len(images)


def tutorial(algorithm: AdaRoundConfig | AdaQuantConfig) -> None:
    """Quantize without and with the algorithm, and print both beside what AMD Quark's documentation has."""
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EXPORT)
    parser.add_argument("model", type=Path, help="a classifier of images, as mobilenetv2_050.onnx (below)")
    parser.add_argument("calibration", type=Path, help="folder of images; the tutorials take one of each class")
    parser.add_argument("validation", type=Path, help="folder of a folder for each class, or of files CLASS_name.jpg")
    parser.add_argument("--half", action="store_true", help="pixels from -1 to 1, not as ImageNet's usual mean and std")
    parser.add_argument("--images", type=int, default=1000, help="calibrate with so many images")
    a = parser.parse_args()
    preprocessing, images = HALF if a.half else IMAGENET, labelled(a.validation)
    activation, weight = (Int8Spec(symmetric=s, calibration_method=CalibMethod.MinMax) for s in (False, True))
    found, seconds = {"float": precision(a.model, images, preprocessing)}, {"float": 0.0}
    for name, algorithms in (("plain", []), (algorithm.name, [algorithm])):
        output, start = a.model.with_name(f"{a.model.stem}_{name}.onnx"), time.perf_counter()
        layer = QLayerConfig(input_tensors=activation, weight=weight)
        config = QConfig(layer, algo_config=algorithms, CalibDataSize=a.images)
        report = quantize(a.model, output, a.calibration, config, preprocess=preprocessing)
        found[name], seconds[name] = precision(output, images, preprocessing), time.perf_counter() - start
    print(report)
    print(f"{'':10s} {f'{a.model.stem}, {len(images)} images':42s} mobilenetv2_050.lamb_in1k, documented")
    for name, (first, fifth) in found.items():
        ours = f"top-1 {first:.1f} %, top-5 {fifth:.1f} %, {seconds[name]:.1f} s"
        print(f"{name:10s} {ours:42s} top-1 {PUBLISHED[name][0]:.1f} %, top-5 {PUBLISHED[name][1]:.1f} %")
