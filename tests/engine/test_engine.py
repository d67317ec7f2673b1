"""Engine, precision, estimate and stopwatch."""

from __future__ import annotations

import time
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from finelens.backbones.registry import load_backbone
from finelens.core import private_torch
from finelens.engine import engine as engine_module
from finelens.engine.device import Precision, choose_precision
from finelens.engine.engine import Engine
from finelens.engine.stopwatch import Stopwatch, in_words
from finelens.training import estimate as estimate_module
from finelens.training.estimate import estimate
from tests.training.tasks import FLOAT32, LeastSquares, make_engine

CPU = torch.device("cpu")


def images(count: int, side: int = 8) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("patches", [False, True])
def test_chunks_change_nothing_but_memory(tiny_vit, monkeypatch, patches):
    engine = Engine(load_backbone(f"local:{tiny_vit}"), CPU, FLOAT32)
    whole = engine.encode_frozen(images(7, 64), patches=patches)
    monkeypatch.setattr(engine_module, "CPU_CHUNK", 3)
    parts = engine.encode_frozen(images(7, 64), patches=patches)
    for name in ("global_", "cls", "patches"):
        a, b = getattr(whole, name), getattr(parts, name)
        assert (a is None) == (b is None) == (name == "patches" and not patches)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_chunks_bound_what_the_tower_sees():
    engine = make_engine()
    engine.encode(images(50))
    assert engine.backbone.largest_batch == engine_module.CPU_CHUNK


def test_forwards_are_counted_by_kind():
    engine = make_engine()
    engine.encode(images(5))
    engine.encode_frozen(images(3))
    engine.features([images(4), images(2)])
    assert (engine.grad_forwards, engine.no_grad_forwards) == (5, 9)


def test_gradient_flows_only_where_asked():
    engine = make_engine()
    engine.backbone.scale.requires_grad_(True)
    assert engine.encode(images(2)).cls.requires_grad
    assert not engine.encode_frozen(images(2)).cls.requires_grad


def test_features_keep_the_order_and_the_centre_is_fitted_to_them():
    engine = make_engine()
    together, parts = engine.features([images(6)]), engine.features(images(6).split(2))
    assert torch.equal(together.cls, parts.cls)
    centred = engine.centre(together)
    torch.testing.assert_close(engine.backbone.centre, together.cls.mean(0))
    torch.testing.assert_close(centred.global_, F.normalize(together.cls - together.cls.mean(0), dim=-1))
    # What the engine now encodes is centred as well.
    torch.testing.assert_close(engine.encode_frozen(images(6)).global_, centred.global_)


def test_tower_without_a_centre_keeps_its_features(tiny_vit):
    engine = Engine(load_backbone(f"local:{tiny_vit}"), CPU, FLOAT32)
    features = engine.features([images(2, 64)])
    assert engine.centre(features) is features


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_come_back_in_float32(tiny_vit, dtype):
    engine = Engine(load_backbone(f"local:{tiny_vit}"), CPU, Precision(dtype, "test"))
    tokens = engine.encode_frozen(images(2, 64), patches=True)
    assert {tokens.global_.dtype, tokens.cls.dtype, tokens.patches.dtype} == {torch.float32}
    exact = Engine(engine.backbone, CPU, FLOAT32).encode_frozen(images(2, 64))
    error = (tokens.global_ - exact.global_).abs().max()
    assert error < 0.02
    assert (error == 0) == (dtype is torch.float32)


def test_float64_stays_float64(tiny_vit):
    engine = Engine(load_backbone(f"local:{tiny_vit}").double(), CPU, FLOAT32)
    assert engine.encode_frozen(images(2, 64), patches=True).patches.dtype is torch.float64


# Precision.


@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_asked_for_precision_is_given(wanted):
    precision = choose_precision(wanted, CPU)
    assert precision.dtype is getattr(torch, wanted)
    assert precision.reason == f"{wanted} (training.precision)"


@pytest.mark.parametrize(("units", "dtype"), [((), torch.float32), (("_is_amx_tile_supported",), torch.bfloat16)])
def test_automatic_precision_depends_on_the_processor(monkeypatch, units, dtype):
    monkeypatch.setattr(private_torch, "_says_yes", lambda flag: flag in units)
    precision = choose_precision("auto", CPU)
    assert precision.dtype is dtype
    assert "this processor has" in precision.reason
    # Images and texts by one rule.
    assert precision.of_texts is dtype
    assert Engine(make_engine().backbone, CPU, precision).backbone.text_dtype is dtype


def test_texts_are_in_bfloat16_where_images_are_and_the_host_has_units(monkeypatch):
    for units in ((), ("_is_avx512_bf16_supported",)):
        monkeypatch.setattr(private_torch, "_says_yes", lambda flag, units=units: flag in units)
        assert choose_precision("float32", CPU).of_texts is torch.float32
        assert choose_precision("bfloat16", CPU).of_texts is (torch.bfloat16 if units else torch.float32)


# Estimate.


def test_estimate_leaves_no_trace():
    engine = make_engine()
    task = LeastSquares(engine)
    task.idle.requires_grad_(False)
    before = {name: p.clone() for name, p in [*task.named_parameters(), *engine.backbone.named_parameters()]}
    assert estimate(task, engine, images=100, epochs=2).seconds > 0
    assert (engine.no_grad_forwards, engine.grad_forwards) == (0, 0)
    assert not engine.backbone.scale.requires_grad
    assert not task.idle.requires_grad
    assert task.w.requires_grad
    for name, p in [*task.named_parameters(), *engine.backbone.named_parameters()]:
        assert torch.equal(p, before[name])
        assert p.grad is None


def test_estimate_is_rate_times_work(monkeypatch):
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(estimate_module.time, "perf_counter", lambda: float(next(clock)))
    engine = make_engine()
    engine.stopwatch = _Silent()
    # Whatever is timed takes 2 s for the probe: 3 forwards of the method and image, 50 images, 4 epochs.
    seconds = estimate(LeastSquares(engine), engine, images=50, epochs=4).seconds
    assert seconds == pytest.approx(50 * 4 * (2 * 2 + 1 * 2) / estimate_module.PROBE_IMAGES)


class _Silent(Stopwatch):
    def __call__(self, stage):
        return nullcontext()


# Stopwatch.


def test_inner_time_is_taken_out_of_the_outer_stage(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    watch = Stopwatch()
    with watch("outer"):
        now[0] += 1
        with watch("inner"):
            now[0] += 10
        with watch("inner"):
            now[0] += 100
        now[0] += 1000
    with watch("outer"):
        now[0] += 5
    assert watch.seconds == {"outer": 1006, "inner": 110}


def test_where_the_time_went_is_said_in_words():
    assert in_words({"decode": 2.0, "map": 3.0, "write": 0.1}, 6.0) == "6 s, of it 3 s to draw the map, 2 s to read the photographs"
    assert in_words({"update": 70.0, "encode": 61.0}, 131.0) == "2 min 11 s, of it 1 min 10 s to train, 1 min 1 s to look at the photographs"
    assert in_words({"write": 0.1}, 0.1) is None


def test_stage_that_fails_is_counted(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    watch = Stopwatch()

    def fail() -> None:
        with watch("outer"), watch("inner"):
            now[0] += 2
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    with watch("outer"):
        now[0] += 1
    assert watch.seconds == {"outer": 1, "inner": 2}
