"""The rewritten EfficientNet-Lite0 against timm's own forward, on random statistics and scales of every size."""

from __future__ import annotations

import copy
import threading

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrize

from finelens.backbones import lite0
from finelens.core.threads import threads_of_its_own


@pytest.fixture(scope="module")
def pristine() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tower = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()
        for norm in (m for m in tower.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
            nn.init.normal_(norm.weight, 1.0, 0.2)
            nn.init.normal_(norm.bias, 0.2, 0.3)
    return tower.requires_grad_(False).to(memory_format=torch.channels_last)


@pytest.fixture
def tower(pristine) -> nn.Module:
    return copy.deepcopy(pristine)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def norms(tower: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in tower.modules() if isinstance(m, nn.BatchNorm2d)]


def gradients(tower: nn.Module, forward, images: torch.Tensor) -> dict[str, torch.Tensor]:
    tower.zero_grad(set_to_none=True)
    target = torch.linspace(-1, 1, 1280, dtype=torch.float64)
    (forward(images).mean((2, 3)).double() @ target).square().sum().backward()
    return {name: p.grad.clone() for name, p in tower.named_parameters() if p.grad is not None}


def fast(tower: nn.Module):
    return lambda x: lite0.forward_features(tower, x)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (96, 32), (65, 64), (224, 224)])
def test_features_equal_timm(tower, size):
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(2))
    assert relative(lite0.forward_features(tower, x), tower.forward_features(x)) < 1e-4
    assert relative(lite0.forward_features(tower.double(), x.double()), tower.forward_features(x.double())) < 1e-12


@torch.no_grad()
def test_plain_and_fused_kernels_agree(tower, images, monkeypatch):
    fused = lite0.forward_features(tower, images)
    monkeypatch.setattr(lite0, "FUSED_TYPES", set())
    assert relative(lite0.forward_features(tower, images), fused) < 1e-5


@torch.no_grad()
def test_bfloat16_is_as_close_to_float32_as_timm(tower, images):
    exact = tower.forward_features(images)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = lite0.forward_features(tower, images), tower.forward_features(images)
    assert ours.dtype is torch.bfloat16
    assert relative(ours, exact) < 1.5 * relative(theirs, exact)


@torch.no_grad()
def test_without_fused_kernels_cores_do_not_matter(tower, images, monkeypatch):
    monkeypatch.setattr(lite0, "FUSED_TYPES", set())
    with torch.autocast("cpu", torch.bfloat16):
        found = []
        for count in (1, 2):
            with threads_of_its_own(count, torch.get_num_threads()):
                found.append(lite0.forward_features(tower, images))
    assert relative(found[1], found[0]) < 0.02


@torch.no_grad()
def test_a_float64_tower_runs_under_autocast(tower, images):
    with torch.autocast("cpu", torch.bfloat16):
        expected = lite0.forward_features(tower, images)
        double = lite0.forward_features(copy.deepcopy(tower).double(), images.double())
    assert relative(double, expected) < 0.05


@torch.no_grad()
def test_layers_are_folded_once_for_the_chunks_of_a_batch(tower, images, monkeypatch):
    calls = []
    fold = lite0.fold
    monkeypatch.setattr(lite0, "fold", lambda *arguments: calls.append(1) or fold(*arguments))
    with parametrize.cached():
        first, second = lite0.forward_features(tower, images), lite0.forward_features(tower, images)
    assert torch.equal(first, second)
    assert len(calls) == 49
    tower.bn1.weight.mul_(1.1)
    with parametrize.cached():
        assert relative(lite0.forward_features(tower, images), first) > 1e-3
    assert len(calls) == 98


def test_a_frozen_tower_is_folded_once_until_something_is_written(tower, images, monkeypatch):
    folded, fold_all = [], lite0._fold_all
    monkeypatch.setattr(lite0, "_fold_all", lambda tower, dtype: folded.append(dtype) or fold_all(tower, dtype))
    first = fast(tower)(images)
    # Batches of more sizes than kernels are kept for.
    for count in (1, 2, 3, 1, 2):
        fast(tower)(images[:count].repeat(2, 1, 1, 1))
    assert torch.equal(fast(tower)(images), first)
    assert folded == [torch.float32]
    with torch.autocast("cpu", torch.bfloat16):
        fast(tower)(images)
    assert folded == [torch.float32, torch.bfloat16]
    with torch.no_grad():
        norms(tower)[5].running_mean += 0.5
    assert not torch.equal(fast(tower)(images), first)
    with torch.no_grad():
        norms(tower)[5].running_mean -= 0.5
    norms(tower)[3].weight = nn.Parameter(norms(tower)[3].weight + 0.5, requires_grad=False)
    assert not torch.equal(fast(tower)(images), first)
    # What is trained is folded for every call, and nothing of it stays.
    norms(tower)[0].weight.requires_grad_(True)
    before = len(folded)
    fast(tower)(images), fast(tower)(images)
    assert len(folded) == before + 2
    assert tower not in lite0._FROZEN


def test_kernels_are_kept_for_a_few_shapes(tower, images):
    for count in range(1, 2 * lite0.MOST_SHAPES):
        fast(tower)(images[:1].expand(count, -1, -1, -1))
    layers = [layer for block, _ in lite0._FROZEN[tower].blocks for layer in block]
    assert all(len(layer.packed) <= lite0.MOST_SHAPES for layer in layers)


@torch.no_grad()
def test_shifts_take_back_what_rounding_moves_on_average():
    """A layer whose input has the mean that its BatchNorm promises: the mean of the rounded output is that of the exact one."""
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(64, 8, 1, bias=False), nn.BatchNorm2d(8).eval()
    x = torch.full((1, 64, 1, 1), 3.0).to(memory_format=torch.channels_last)
    exact = lite0.fold(conv, norm, False, torch.float32).run(x)
    mean = torch.full((64,), 3.0)
    plain, corrected = (lite0.fold(conv, norm, False, torch.bfloat16, m) for m in (None, mean))
    outputs = [(layer.weight.float().sum((1, 2, 3)) * 3.0 + layer.bias).view_as(exact) for layer in (plain, corrected)]
    assert relative(outputs[1], exact) < 1e-5 < 1e-4 < relative(outputs[0], exact)


@torch.no_grad()
def test_chunks_do_not_change_the_result(tower, monkeypatch):
    x = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    chunked = lite0.forward_features(tower, x)
    monkeypatch.setattr(lite0, "CHUNK_BYTES", 10**6)
    assert relative(chunked, lite0.forward_features(tower, x)) < 1e-6


def test_gradients_of_all_norms_equal_timm_in_float64(tower, images):
    for norm in norms(tower):
        norm.requires_grad_()
    tower, images = tower.double(), images.double()
    ours, theirs = gradients(tower, fast(tower), images), gradients(tower, tower.forward_features, images)
    assert len(ours) == 98
    assert ours.keys() == theirs.keys()
    assert max(relative(ours[name], theirs[name]) for name in theirs) < 1e-9


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gradients_are_as_close_to_float64_as_timm(tower, images, precision):
    """Rounding moves a few activations over the kinks of ReLU6, in either order of operations, so the error itself is compared."""
    for norm in norms(tower):
        norm.requires_grad_()

    def flat(module, forward, x):
        return torch.cat([g.flatten() for g in gradients(module, forward, x).values()])

    exact_tower = copy.deepcopy(tower).double()
    exact = flat(exact_tower, exact_tower.forward_features, images.double())

    def cast(forward):
        def run(x):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                return forward(x)

        return run

    ours, theirs = (relative(flat(tower, cast(f), images), exact) for f in (fast(tower), tower.forward_features))
    assert ours < 1.5 * theirs + (1e-4 if precision == "float32" else 0)


@pytest.mark.parametrize("scale", [0.0, 1e-12, -0.3])
def test_scales_that_cannot_be_divided_by_get_exact_gradients(tower, images, scale):
    tower, images = tower.double(), images.double()
    with torch.no_grad():
        for norm in norms(tower)[::5]:
            norm.weight[:3] = scale
    for norm in norms(tower):
        norm.requires_grad_()
    ours, theirs = gradients(tower, fast(tower), images), gradients(tower, tower.forward_features, images)
    assert max(relative(ours[name], theirs[name]) for name in theirs) < 1e-9
    assert any(g.abs().max() > 0 for g in ours.values())


def test_last_blocks_only_and_one_parameter_of_a_pair(tower, images):
    tower, images = tower.double(), images.double()
    tower.blocks[5][1].bn1.weight.requires_grad_()
    tower.blocks[6][0].bn2.bias.requires_grad_()
    ours, theirs = gradients(tower, fast(tower), images), gradients(tower, tower.forward_features, images)
    assert ours.keys() == theirs.keys() == {"blocks.5.1.bn1.weight", "blocks.6.0.bn2.bias"}
    assert max(relative(ours[name], theirs[name]) for name in theirs) < 1e-9


def test_frozen_layers_before_the_first_trained_one_keep_nothing(tower, images):
    tower.bn2.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        lite0.forward_features(tower, images)
    assert [t.shape for t in kept if t.ndim == 4] == [(3, 1280, 2, 2)]


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_cores_take_different_images_and_the_result_is_that_of_one(tower, images, threads, precision, monkeypatch):
    for norm in norms(tower):
        norm.requires_grad_()
    used = set()
    run = lite0.Layer.run
    monkeypatch.setattr(lite0.Layer, "run", lambda *a: used.add(threading.get_ident()) or run(*a))

    def results(count: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        used.clear()
        with threads_of_its_own(count, before), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            with torch.no_grad():
                features = lite0.forward_features(tower, images)
            x = images.clone().requires_grad_()
            found = gradients(tower, fast(tower), x)
        assert (used == {threading.get_ident()}) is (count == 1)
        return features, x.grad, found

    before = torch.get_num_threads()
    one, many = results(1), results(threads)
    close = 1e-5 if precision == "float32" else 0.02
    assert relative(many[0], one[0]) < close
    assert relative(many[1], one[1]) < 3 * close
    assert max(relative(many[2][name], one[2][name]) for name in one[2]) < 10 * close
    assert torch.get_num_threads() == before


def test_trainable_convolutions_get_gradients(tower, images):
    tower = tower.double().requires_grad_()
    ours, theirs = gradients(tower, fast(tower), images.double()), gradients(tower, tower.forward_features, images.double())
    assert ours.keys() == theirs.keys() == dict(tower.named_parameters()).keys()
    assert max(relative(ours[name], theirs[name]) for name in theirs) < 1e-12


def test_gradient_of_the_images(tower, images):
    results = []
    tower.double()
    for forward in (fast(tower), tower.forward_features):
        x = images.double().requires_grad_()
        forward(x).square().sum().backward()
        results.append(x.grad)
        images = images.detach()
    assert relative(*results) < 1e-9


def test_an_updated_parameter_is_seen(tower, images):
    with torch.no_grad():
        before = lite0.forward_features(tower, images)
        tower.blocks[0][0].bn1.weight.data.mul_(1.5)
        after = lite0.forward_features(tower, images)
        assert relative(after, before) > 1e-3
        assert relative(after, tower.forward_features(images)) < 1e-5


def test_a_step_between_forward_and_backward_is_refused(tower, images):
    tower.bn2.requires_grad_()
    loss = lite0.forward_features(tower, images).sum()
    with torch.no_grad():
        tower.bn2.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_training_step_keeps_less_than_half_of_what_timm_keeps(tower, images):
    """Bytes of distinct saved tensors, not peak memory, which depends on the allocator."""
    for norm in norms(tower):
        norm.requires_grad_()

    def saved(forward) -> int:
        storages = {}

        def pack(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = forward(images)
        out.sum().backward()
        return sum(s.nbytes() for s in storages.values())

    parameters = sum(p.numel() * 4 for p in tower.parameters())
    assert saved(fast(tower)) < 0.5 * (saved(tower.forward_features) - parameters)


@torch.no_grad()
def test_the_compiler_leaves_the_layers_alone(tower, images, monkeypatch):
    """Traced layer by layer, with the threads around them, compiling took minutes."""
    traced = []
    run = lite0.Layer.run
    monkeypatch.setattr(lite0.Layer, "run", lambda *a: traced.append(torch.compiler.is_compiling()) or run(*a))
    compiled = torch.compile(lambda x: lite0.forward_features(tower, x) + 1, backend="eager")
    assert relative(compiled(images), lite0.forward_features(tower, images) + 1) < 1e-6
    assert traced
    assert not any(traced)
