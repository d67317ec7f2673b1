"""A compiled tower: the same numbers up to rounding, the same names, and a way on where nothing can be compiled."""

from __future__ import annotations

import shutil
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from finelens.engine.compiled import WORTH_COMPILING, CompiledTower, worth_compiling
from finelens.errors import UserError
from finelens.runs.config import parse_assignments
from tests.methods.tiny import tiny_engine
from tests.toy import CLASSES, fit_toy, pictures, quick

IMAGES = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny") / "vit"


@pytest.fixture
def traced(monkeypatch):
    """Without the step that needs a C++ compiler: the tower is traced and differentiated as a graph, and that graph runs."""
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


@pytest.mark.parametrize(
    ("wanted", "device", "flops", "expected"),
    [
        ("on", "cpu", 0.0, True),
        ("off", "cuda", 1e20, False),
        ("auto", "cpu", 1e20, False),
        ("auto", "cuda", WORTH_COMPILING, True),
        ("auto", "cuda", WORTH_COMPILING / 2, False),
    ],
)
def test_when(wanted, device, flops, expected):
    assert worth_compiling(wanted, torch.device(device), flops) is expected


def test_the_same_tokens_and_gradients(folder, traced):
    plain, compiled = tiny_engine(folder), tiny_engine(folder)
    names = set(compiled.backbone.state_dict())
    compiled.compile()
    assert set(compiled.backbone.state_dict()) == names
    for patches, count in ((True, 5), (False, 3)):
        ours, theirs = (engine.encode_frozen(IMAGES[:count], patches=patches) for engine in (compiled, plain))
        torch.testing.assert_close(ours.global_, theirs.global_, atol=1e-5, rtol=0)
        assert (ours.patches is None) == (not patches)
        if patches:
            torch.testing.assert_close(ours.patches, theirs.patches, atol=1e-4, rtol=1e-4)
    gradients = []
    for engine in (compiled, plain):
        tuned = engine.backbone.tunable("norm")
        for parameter in tuned.values():
            parameter.requires_grad_(True)
        engine.encode(IMAGES, patches=True).global_[:, 0].sum().backward()
        gradients.append([parameter.grad for parameter in tuned.values() if parameter.grad is not None])
    assert gradients[0]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


def test_a_run(tiny_vit, traced):
    images = pictures(2)
    losses, models = [], []
    for compile_ in ("off", "on"):
        options = {**quick(epochs=1, compile=compile_), "method": {"crops": 2}}
        prepared, fitted, log = fit_toy(tiny_vit, "microclip", images, CLASSES, options)
        losses.append(log.losses)
        models.append(fitted.model)
        assert (prepared.engine._compiled is not None) == (compile_ == "on")
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    plain, compiled = models
    assert set(plain.task.state_dict()) == set(compiled.task.state_dict())
    assert plain.engine.backbone.image_state().keys() == compiled.engine.backbone.image_state().keys()
    assert plain.engine.grad_forwards == compiled.engine.grad_forwards


def test_what_cannot_be_compiled_runs_as_it_is(folder, monkeypatch):
    def no_compiler(function):
        def fails(*given):
            raise RuntimeError("no C++ compiler\nwas found")

        return fails

    monkeypatch.setattr(torch, "compile", no_compiler)
    engine, said = tiny_engine(folder), []
    engine.micro.say = said.append
    engine.compile()
    for _ in range(2):
        assert torch.equal(engine.encode_frozen(IMAGES).global_, tiny_engine(folder).encode_frozen(IMAGES).global_)
    assert said == ["the image tower could not be compiled and runs as it is (no C++ compiler was found); training.compile=off does not try"]


def test_memory_that_runs_out_is_not_a_matter_of_compiling(monkeypatch):
    def too_large(function):
        def fails(*given):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

        return fails

    monkeypatch.setattr(torch, "compile", too_large)
    tower = CompiledTower(SimpleNamespace(), lambda line: pytest.fail(line))
    with pytest.raises(RuntimeError, match="allocate"):
        tower(IMAGES)


def test_the_option():
    assert parse_assignments(["training.compile=on"])["training"]["compile"] == "on"
    with pytest.raises(UserError, match=r"training\.compile"):
        fit_toy(None, "microclip", [], CLASSES, {"training": {"compile": "yes"}})


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
def test_with_a_real_compiler(folder):
    torch.compiler.reset()
    engine, said = tiny_engine(folder), []
    engine.micro.say = said.append
    engine.compile()
    torch.testing.assert_close(engine.encode_frozen(IMAGES).global_, tiny_engine(folder).encode_frozen(IMAGES).global_, atol=1e-5, rtol=0)
    assert said == []
