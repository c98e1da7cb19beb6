"""A cubic Resize gives values beyond its input's range: its output has a scale of its own."""

from __future__ import annotations

import numpy as np
from small_models import build, run

from quark.onnx.qdq.insert_qdq import calibration_tensors, insert_qdq
from quark.onnx.qdq.qdq_options import QdqOptions


def test_a_cubic_resize_keeps_what_lies_beyond_its_input() -> None:
    """Between equal neighbours of a peak the curve is above them: onnxruntime's own rule would cut it off."""
    model = build(
        """(float[N,1,4,4] x) => (float[N,1,8,8] y) {
            [filter] t = Conv<kernel_shape=[1,1]>(x, w) [grow] y = Resize<mode="cubic">(t, "", scales)
        }""",
        w=np.ones((1, 1, 1, 1)), scales=np.float32([1, 1, 2, 2]),
    )  # fmt: skip
    x = np.zeros((1, 1, 4, 4), np.float32)
    x[:, :, 1:3, 1:3] = 1
    feeds = {"x": x}
    (want,) = run(model, feeds)
    assert want.max() > 1.1
    ranges = dict.fromkeys(calibration_tensors(model, QdqOptions()), (0.0, 1.0)) | {"y": (want.min(), want.max())}
    (have,) = run(insert_qdq(model, ranges, {}, QdqOptions()), feeds)
    np.testing.assert_allclose(have, want, atol=0.02)
