"""Resize and centre crop in front of an ONNX graph: one photograph of any size goes in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finelens.errors import UserError
from finelens.exporting.program import input_names
from finelens.protocol import Preprocess

PHOTOGRAPH = "photograph"
MODES = {"bicubic": "cubic", "bilinear": "linear"}


def check(preprocess: Preprocess) -> None:
    """Refuse a geometry that the nodes do not have.

    Raises:
        UserError: The filter is another, or the crop larger than the resized photograph.
    """
    if preprocess.interpolation not in MODES:
        raise UserError(f"--resize has no filter {preprocess.interpolation}; leave it out, and resize before the graph")
    if preprocess.image_size > preprocess.resize_size:
        raise UserError("--resize does not pad, and the model's crop is larger than its resize; leave it out, and resize before the graph")


def put_in_front(path: Path, preprocesses: Sequence[Preprocess], short_side: int) -> None:
    """Change a file whose input is views into one that takes uint8 (1, 3, H, W): what a run does to a photograph, as nodes.

    The run reduces large originals to a short side first, and so does the graph. Sizes are those of :mod:`finelens.images.resize`, crops round a half
    to even as Python does.

    Args:
        path: The file, written over.
        preprocesses: Geometry of each image tower, in the order of the inputs.
        short_side: That of originals in the run.
    """
    import onnx

    model = onnx.load(path)
    graph = _Graph(onnx)
    size = graph.add("Shape", [PHOTOGRAPH], start=2, end=4)  # (2,): H, W
    flipped = graph.add("Gather", [size, graph.constant([1, 0])])
    shortest = graph.add("ReduceMin", [size])
    kept = graph.scaled(size, flipped, graph.add("Min", [shortest, graph.constant([short_side])]))
    reduced = graph.resized(PHOTOGRAPH, kept, "bicubic")
    for name, preprocess in zip(input_names(len(preprocesses)), preprocesses, strict=True):
        if preprocess.resize_mode == "squash":
            whole = graph.constant([preprocess.resize_size] * 2)
        else:
            whole = graph.scaled(kept, graph.add("Gather", [kept, graph.constant([1, 0])]), graph.constant([preprocess.resize_size]))
        resized = graph.resized(reduced, whole, preprocess.interpolation)
        side = graph.constant([preprocess.image_size] * 2)
        start = graph.half_to_even(graph.add("Sub", [whole, side]))
        cropped = graph.add("Slice", [resized, start, graph.add("Add", [start, side]), graph.constant([2, 3])])
        square = graph.constant([1, 3, preprocess.image_size, preprocess.image_size])
        graph.nodes.append(onnx.helper.make_node("Reshape", [cropped, square], [name]))
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*graph.nodes, *rest])
    model.graph.initializer.extend(graph.constants)
    del model.graph.input[:]
    model.graph.input.append(onnx.helper.make_tensor_value_info(PHOTOGRAPH, onnx.TensorProto.UINT8, [1, 3, "height", "width"]))
    onnx.checker.check_model(model)
    onnx.save(model, path)


class _Graph:
    """Nodes and constants with names of their own."""

    def __init__(self, onnx: Any) -> None:
        self._onnx = onnx
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        name = f"front.{len(self.nodes)}.{kind}"
        self.nodes.append(self._onnx.helper.make_node(kind, inputs, [name], **attributes))
        return name

    def constant(self, values: list[int]) -> str:
        name = f"front.constant.{len(self.constants)}"
        self.constants.append(self._onnx.helper.make_tensor(name, self._onnx.TensorProto.INT64, [len(values)], values))
        return name

    def scaled(self, size: str, flipped: str, short: str) -> str:
        """Height and width of an image with that short side: the long one is rounded down."""
        return self.add("Max", [short, self.add("Div", [self.add("Mul", [short, size]), flipped])])

    def half_to_even(self, difference: str) -> str:
        """``round(d / 2)`` of numbers that are not negative."""
        two = self.constant([2])
        half = self.add("Div", [difference, two])
        odd = self.add("Mod", [difference, two])
        return self.add("Add", [half, self.add("Mul", [odd, self.add("Mod", [half, two])])])

    def resized(self, image: str, size: str, interpolation: str) -> str:
        """The filter that torch and Pillow have: as wide as the reduction, its weights inside the image only, a cubic of -0.5."""
        sizes = self.add("Concat", [self.constant([1, 3]), size], axis=0)
        own = {"antialias": 1, "exclude_outside": 1, "cubic_coeff_a": -0.5, "coordinate_transformation_mode": "half_pixel"}
        return self.add("Resize", [image, "", "", sizes], mode=MODES[interpolation], **own)
