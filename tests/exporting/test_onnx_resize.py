"""The nodes in front of an ONNX graph give the view that a run makes of a photograph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from finelens.errors import UserError
from finelens.exporting import onnx_resize
from finelens.images.decode import reduce_to_short_side
from finelens.images.views import centre_view
from finelens.protocol import Interpolation, Preprocess, ResizeMode
from tests.toy import picture

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def geometry(size: int, resize: int, filter_: Interpolation = "bicubic", mode: ResizeMode = "shortest") -> Preprocess:
    return Preprocess(size, resize, (0.5,) * 3, (0.5,) * 3, filter_, mode)


def identity(path: Path, size: int) -> Path:
    """A graph that gives its views back."""
    views = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["batch", 3, size, size])
    out = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.UINT8, ["batch", 3, size, size])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["images"], ["logits"])], "views", [views], [out])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.mark.parametrize(
    "preprocess",
    [geometry(48, 48), geometry(45, 58), geometry(48, 55, "bilinear"), geometry(48, 48, "bicubic", "squash"), geometry(41, 48, "bilinear", "squash")],
    ids=str,
)
def test_the_view_is_the_runs(preprocess, tmp_path):
    """Wide, high, square, enlarged, and so large that the run reduces it first. Both count in fixed point, and round some pixels otherwise."""
    path = identity(tmp_path / "views.onnx", preprocess.image_size)
    onnx_resize.put_in_front(path, [preprocess], 64)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for height, width in ((70, 90), (101, 57), (60, 60), (20, 31), (300, 207), (64, 131)):
        pixels = torch.from_numpy(picture(1, 0, height, width)).permute(2, 0, 1)
        wanted = centre_view(reduce_to_short_side(pixels, 64), preprocess).numpy().astype(int)
        (found,) = session.run(["logits"], {"photograph": pixels[None].contiguous().numpy()})
        assert found.shape == (1, *wanted.shape)
        difference = np.abs(found[0].astype(int) - wanted)
        assert difference.max() <= 2, (height, width)
        assert (difference > 0).mean() < 0.1, (height, width)


def test_geometries_that_it_does_not_have_are_refused():
    with pytest.raises(UserError, match="--resize has no filter nearest"):
        onnx_resize.check(geometry(48, 48, "nearest"))
    with pytest.raises(UserError, match="--resize does not pad"):
        onnx_resize.check(geometry(64, 48))
    onnx_resize.check(geometry(48, 48))
