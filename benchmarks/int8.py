"""What whole numbers of 8 bits cost and save in frozen towers: the same images in float32 and in int8, one JSON line per set and tower.

    OMP_NUM_THREADS=1 python benchmarks/int8.py DATA --sets pets37 --towers vit embedded --out benchmarks/results/int8.jsonl

* ``vit``: ViT-B/32 with random weights, against the class means of its own float32 features (as ``bf16.py`` does). Linear maps have weights in int8
  by output channel and activations in int8 by batch, as torch's dynamic quantisation does, in the kernels of ``torch.ops.quantized``.
* ``embedded``: the convolutions through onnxruntime (extra ``onnx``), weights by channel and activations by tensor, their ranges from 32 images
  of the train part; zero-shot by the templates, without a fitted centre.

Time is that of 16 images, sides in turn, best of the repeats.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measuring import in_turn, ratios, vit_b_32, write
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from finelens.backbones.embedded import EmbeddedBackbone
from finelens.classes.class_set import build_class_set
from finelens.classes.heads import build_heads
from finelens.classes.names import read_class_file
from finelens.images.batches import centre_batches
from finelens.images.discover import discover
from finelens.images.store import load_images
from finelens.protocol import Backbone

BATCH = 16


class Int8Linear(TorchFunctionMode):
    """Inside of it linear maps by frozen weights are products of int8."""

    def __init__(self) -> None:
        super().__init__()
        self._packed: dict[tuple[int, torch.Size], Any] = {}

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if function is F.linear:
            return self._linear(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        key = (weight.data_ptr(), weight.shape)
        if key not in self._packed:
            scales = weight.abs().amax(1).clamp_min(1e-8) / 127
            codes = torch.quantize_per_channel(weight.contiguous(), scales.double(), torch.zeros(len(weight), dtype=torch.long), 0, torch.qint8)
            self._packed[key] = torch.ops.quantized.linear_prepack(codes, bias)
        # The smaller range of weights' partners, without which sums of two products overflow where there is no VNNI.
        found: Tensor = torch.ops.quantized.linear_dynamic(x, self._packed[key], True)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", required=True)
    parser.add_argument("--towers", nargs="+", choices=("vit", "embedded"), default=["vit", "embedded"])
    parser.add_argument("--images", type=int, default=10**9, help="at most so many of a set, evenly spread")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    for tower in given.towers:
        for name in given.sets:
            with torch.no_grad():
                row = (vit if tower == "vit" else embedded)(given.data / name, given.images, given.repeats)
            write(given.out, {"set": name, "tower": tower, "capability": torch.backends.cpu.get_cpu_capability(), **row})


def views(folder: Path, backbone: Backbone, most: int) -> tuple[Tensor, list[str]]:
    """Normalised centre views (N, 3, S, S), and the folder of each."""
    files = discover(folder)
    loaded = load_images(files[:: max(1, -(-len(files) // most))])
    names = {record.index: record.name.split("/")[0] for record in loaded.records if record.index is not None}
    pixels = torch.cat([batch for _, batch in centre_batches(loaded.store, backbone.preprocess, 64)])
    return backbone.normalise(pixels), [names[i] for i in range(len(pixels))]


def compared(exact: Tensor, rounded: Tensor, prototypes: Tensor) -> dict[str, float]:
    """Error of features as a share of their norm, and the share of images with the same answer."""
    error = ((rounded - exact).norm(dim=1) / exact.norm(dim=1)).mean()
    same = (exact @ prototypes.T).argmax(1) == (rounded @ prototypes.T).argmax(1)
    return {"images": len(exact), "error": round(float(error), 4), "same": round(float(same.float().mean()), 4)}


def vit(folder: Path, most: int, repeats: int) -> dict[str, Any]:
    backbone = vit_b_32()
    x, names = views(folder / "test", backbone, most)

    def encode(images: Tensor) -> Tensor:
        return torch.cat([F.normalize(backbone.encode_image(part).global_, dim=1) for part in images.split(BATCH)])

    mode = Int8Linear()

    def encode_int8(images: Tensor) -> Tensor:
        with mode:
            return encode(images)

    exact, rounded = encode(x), encode_int8(x)
    centred = exact - exact.mean(0)
    means = torch.stack([centred[[i for i, own in enumerate(names) if own == name]].mean(0) for name in sorted(set(names))])
    times = in_turn({"float32": lambda: encode(x[:BATCH]), "int8": lambda: encode_int8(x[:BATCH])}, repeats)
    return {**compared(exact, rounded, F.normalize(means, dim=1)), "ratio": ratios(times["float32"], times["int8"])}


class Pooled(nn.Module):
    """The plain modules of the embedded image tower, which an exporter knows, and the mean over their last map."""

    def __init__(self, backbone: EmbeddedBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1280) of (B, 3, S, S)."""
        return self.backbone.encode_image(images).cls


def embedded(folder: Path, most: int, repeats: int) -> dict[str, Any]:
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    backbone = EmbeddedBackbone()
    x, _ = views(folder / "test", backbone, most)
    ranges, _ = views(folder / "train", backbone, 32)
    heads = build_heads(backbone, build_class_set(read_class_file(folder / "classes.txt"))[0])
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()

    class Ranges(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([{"images": part.numpy()} for part in ranges.split(BATCH)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    with tempfile.TemporaryDirectory() as place:
        plain, ready, small = (Path(place) / f"{name}.onnx" for name in ("plain", "ready", "int8"))
        shape = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(Pooled(backbone), (torch.zeros(2, 3, 224, 224),), plain, input_names=["images"], dynamo=True, dynamic_shapes=shape)
        quant_pre_process(plain, ready)
        kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True, "reduce_range": True}
        quantize_static(ready, small, Ranges(), quant_format=QuantFormat.QDQ, **kinds)
        sessions = [onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"]) for path in (ready, small)]

    def encode(which: int, images: Tensor) -> Tensor:
        return torch.cat([torch.from_numpy(sessions[which].run(None, {"images": part.numpy()})[0]) for part in images.split(BATCH)])

    def ours(images: Tensor) -> Tensor:
        return torch.cat([backbone.encode_image(part).cls for part in images.split(BATCH)])

    cls, rounded = ours(x), encode(1, x)
    exact_features, rounded_features = (F.normalize(backbone.project(own), dim=1) for own in (cls, rounded))
    found = compared(exact_features, rounded_features, heads.templates)
    found["error of cls"] = compared(cls, rounded, cls)["error"]
    first = x[:BATCH]
    times = in_turn({"ours": lambda: ours(first), "onnxruntime": lambda: encode(0, first), "int8": lambda: encode(1, first)}, repeats)
    return {**found, "ratio": ratios(times["ours"], times["int8"]), "ratio of onnxruntime's float32": ratios(times["ours"], times["onnxruntime"])}


if __name__ == "__main__":
    main()
