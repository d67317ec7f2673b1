"""Speed of the rewritten EfficientNet-Lite0 against timm's own forward: ``python benchmarks/lite0.py [--threads N] [--repeats N]``.

Prints images per second (best of all repeats, the two in turn) and their ratio, forward and training of the BatchNorm pairs, and the bytes of the
tensors that a training step keeps. Random weights; speed does not depend on them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

from finelens.backbones import lite0
from finelens.engine.engine import CPU_CHUNK

Forward = Callable[[Tensor], Tensor]


def norm_parameters(modules: nn.Module) -> list[nn.Parameter]:
    return [p for m in modules.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]


def work(forward: Forward, images: Tensor, dtype: torch.dtype, train: bool) -> None:
    with torch.set_grad_enabled(train), torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        features = forward(images)
    if train:
        features.float().mean((2, 3)).square().sum().backward()


def best_seconds(forwards: list[Forward], repeats: int, images: Tensor, dtype: torch.dtype, train: bool) -> list[float]:
    best = [float("inf")] * len(forwards)
    for _ in range(repeats + 1):
        for k, forward in enumerate(forwards):
            start = time.perf_counter()
            work(forward, images, dtype, train)
            best[k] = min(best[k], time.perf_counter() - start)
    return best


def kept_bytes(forward: Forward, images: Tensor, dtype: torch.dtype) -> int:
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        work(forward, images, dtype, True)
    return sum(storages.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tower = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval().requires_grad_(False)
    tower = tower.to(memory_format=torch.channels_last)
    images = torch.randn(CPU_CHUNK, 3, 224, 224)
    forwards: list[Forward] = [tower.forward_features, lambda x: lite0.forward_features(tower, x)]
    scopes = {
        "forward": [],
        "train last stage": norm_parameters(tower.blocks[6]) + norm_parameters(tower.bn2),
        "train all norms": norm_parameters(tower),
    }
    for dtype in (torch.float32, torch.bfloat16):
        for scope, parameters in scopes.items():
            tower.requires_grad_(False)
            for p in parameters:
                p.requires_grad_()
            plain, fast = best_seconds(forwards, options.repeats, images, dtype, bool(parameters))
            line = f"{str(dtype)[6:]:9} {scope:17} timm {CPU_CHUNK / plain:6.1f} images/s, finelens {CPU_CHUNK / fast:6.1f}, ratio {plain / fast:.2f}"
            if parameters:
                kept = [kept_bytes(f, images, dtype) / CPU_CHUNK / 2**20 for f in forwards]
                line += f", kept {kept[0]:.1f} and {kept[1]:.1f} MiB an image"
            print(line)


if __name__ == "__main__":
    main()
