"""``training.cached_prefix``: what the frozen blocks give is kept, and nothing else changes."""

from __future__ import annotations

import errno
import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from finelens import api
from finelens.backbones.embedded import EmbeddedBackbone
from finelens.backbones.open_clip_loader import OpenClipBackbone
from finelens.engine.engine import CPU_CHUNK
from finelens.errors import UserError
from finelens.images import batches
from finelens.protocol import Batch, PrefixRows, ViewPlan
from finelens.runs.model import load_model, save_model
from finelens.runs.resolve import make_config
from finelens.storage.tensors import load_metadata
from finelens.training import prefix_cache
from finelens.training.checkpoint import CHECKPOINT_FILE, META_KEY
from finelens.training.config import TrainingConfig
from finelens.training.estimate import estimate
from finelens.training.failure import STATE_FILE, save_failure
from finelens.training.loop import Interrupted
from finelens.training.prefix_cache import PrefixCache, check_cached_prefix
from tests.backbones.checkpoints import write_tiny_timm
from tests.methods.tiny import tiny_engine
from tests.toy import QUIET, TUNING, digest, fit_toy, pictures, prepare_toy, quick, stop_after

PROMPTED = ("lafter", "nola", "mars")
SCOPE = "last-1-norm"
VIEWS = {"microclip": 2 + 8, "fair": 2 + 16, "consensus-tuned": 1, "dpa": 2, "lafter": 2, "nola": 1, "mars": 2, "clip-svd": 1}


def options(method: str, draws: int, **training):
    given = {"method": {"prompts": 0}} if method in PROMPTED else {}
    return {**quick(scope=SCOPE, cached_prefix=draws, **training), **given}


def split(backbone, last: int, images: torch.Tensor, patches: bool = True):
    return backbone.encode_suffix(backbone.encode_prefix(images, last), last, patches=patches)


@torch.no_grad()
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("last", [1, 2])
@pytest.mark.parametrize("kind", ["tiny_vit", "tiny_resnet"])
def test_a_tower_entered_in_the_middle_gives_the_same_bits(kind, last, rounded, request):
    backbone = OpenClipBackbone.from_folder(request.getfixturevalue(kind))
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
        whole, joined = backbone.encode_image(images, patches=True), split(backbone, last, images)
        assert backbone.encode_prefix(images, last).dtype is (torch.bfloat16 if rounded else torch.float32)
    assert torch.equal(joined.global_, whole.global_)
    assert torch.equal(joined.cls, whole.cls)
    assert torch.equal(joined.patches, whole.patches)
    assert split(backbone, last, images, patches=False).patches is None


@pytest.mark.parametrize("last", [1, 3, 16])
def test_the_embedded_tower_too_with_the_same_gradients(last):
    backbone = EmbeddedBackbone(text=False)
    trained = backbone.tunable(f"last-{last}-norm")
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = []
    for encode in (lambda: backbone.encode_image(images), lambda: split(backbone, last, images)):
        for parameter in trained.values():
            parameter.requires_grad_(True).grad = None
        tokens = encode()
        tokens.cls.square().sum().backward()
        found.append((tokens.cls.detach(), [parameter.grad.clone() for parameter in trained.values()]))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
    # Where the rewriting does not apply, the plain modules are split at the same place.
    odd = torch.randn(1, 3, 65, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(split(backbone, last, odd).cls, backbone.encode_image(odd).cls)


@pytest.mark.parametrize("method", TUNING)
def test_as_many_draws_as_epochs_are_the_published_views(tiny_vit, method):
    plain = fit_toy(tiny_vit, method, pictures(4), options=options(method, 0))[1]
    cached = fit_toy(tiny_vit, method, pictures(4), options=options(method, 2))[1]
    pixels = torch.randint(0, 256, (3, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for branch, logits in plain.model.logits(pixels).items():
        torch.testing.assert_close(cached.model.logits(pixels)[branch], logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", TUNING)
def test_epochs_after_the_first_round_run_no_first_block_and_build_no_view(tiny_vit, method, monkeypatch):
    seen = Counter()
    weak, strong, crops = batches.weak_view, batches.strong_view, batches.crop_views

    def count(name, build):
        return lambda image, preprocess, seed, epoch, *rest: seen.update([(name, epoch)]) or build(image, preprocess, seed, epoch, *rest)

    for name, build in (("weak_view", weak), ("strong_view", strong), ("crop_views", crops)):
        monkeypatch.setattr(batches, name, count(name, build))
    images = pictures(4)
    _, fitted, log = fit_toy(tiny_vit, method, images, options=options(method, 2, epochs=5))
    engine = fitted.model.engine
    subset, views = fitted.model.task.subset(), fitted.model.task.views
    visited = len(images) if subset is None else len(subset)
    if not (views.weak or views.strong or views.crops):
        assert not seen
    else:
        assert {epoch for _, epoch in seen} == {0, 1}
        # A few-shot method visits the labelled images only, in their weak view.
        view = "strong_view" if views.strong else "weak_view"
        assert seen[view, 0] == seen[view, 1] == visited
    assert len(log.losses) == 5
    # Two rounds are computed, and what is encoded later starts behind the first blocks, but for the look at the tuned tower.
    encoded = engine.no_grad_forwards + engine.grad_forwards - len(images) - visited * fitted.model.task.cost().after
    assert engine.spared_prefixes == encoded - 2 * visited * VIEWS[method]


def test_an_interrupted_run_ends_in_the_same_bits_with_the_same_counts(backbone, photos, classes, tmp_path):
    given = {"backbone": f"local:{backbone}", "method": "fair", "options": options("fair", 2, epochs=5), "console": QUIET}
    api.adapt(photos, classes, tmp_path / "whole", **given)
    # Three steps an epoch: once in the first round, once in the second.
    for steps in (4, 8):
        broken = tmp_path / f"broken-{steps}"
        with pytest.raises(Interrupted):
            api.adapt(photos, classes, broken, **given, should_stop=stop_after(steps))
        api.resume(broken, console=QUIET)
        for file in ("model/model.safetensors", "predictions.csv"):
            assert digest(tmp_path / "whole" / file) == digest(broken / file), file
        assert counts(broken) == counts(tmp_path / "whole")


def counts(run):
    """What does not depend on whether the centre views were encoded by an earlier run."""
    position = json.loads(load_metadata(run / "checkpoint" / CHECKPOINT_FILE)[META_KEY])
    return position["grad_forwards"], position["spared_prefixes"]


def test_a_model_trained_so_is_saved_and_loaded_as_any_other(tiny_vit, tmp_path):
    _, fitted, _ = fit_toy(tiny_vit, "dpa", pictures(2), options=options("dpa", 1))
    save_model(tmp_path, fitted.model)
    pixels = torch.randint(0, 256, (3, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(load_model(tmp_path).logits(pixels)["logits"], fitted.model.logits(pixels)["logits"])


def test_the_estimate_says_what_later_epochs_cost(tiny_vit):
    config, prepared = prepare_toy(tiny_vit, "microclip", options=options("microclip", 2))
    engine = prepared.engine
    PrefixCache(engine, 4, prepared.task.views, config.training)
    found = estimate(prepared.task, engine, images=4, epochs=3, prepared=True, draws=2)
    tower = found.tower
    assert 0 < tower.prefix < tower.forward
    assert found.flops == 9 * tower.forward + tower.with_gradient
    assert found.flops_kept == found.flops - 10 * tower.prefix
    engine.tower_flops, engine.counts = tower, (90, 10, 50)
    assert engine.flops == 90 * tower.forward + 10 * tower.with_gradient - 50 * tower.prefix


def test_rows_depend_on_their_view_alone(tmp_path):
    engine = tiny_engine(tmp_path / "vit")
    PrefixCache(engine, 40, ViewPlan(), TrainingConfig(scope=SCOPE, cached_prefix=1))
    views = torch.randint(0, 256, (21, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    whole = engine.encode_prefix(views)
    assert torch.equal(engine.encode_prefix(views[3:8]), whole[3:8])
    assert torch.equal(engine.encode_prefix(views[20:]), whole[20:])


def test_what_is_read_is_what_was_kept(tmp_path):
    engine = tiny_engine(tmp_path / "vit")
    cache = PrefixCache(engine, 6, ViewPlan(crops=3), TrainingConfig(scope=SCOPE, cached_prefix=2))
    pixels = torch.randint(0, 256, (4, 5, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    index = torch.tensor([5, 0, 3, 1])
    assert cache.missing(0, index.numpy()) == cache.plan
    kept = cache.rows(Batch(index, pixels[:, 0], pixels[:, 1], pixels[:, 2:]), epoch=0)
    assert (cache.missing(2, index.numpy()), cache.missing(1, index.numpy())) == (prefix_cache.NO_VIEWS, cache.plan)
    assert cache.missing(2, np.arange(6)) == cache.plan
    back = torch.tensor([3, 5])
    read = cache.rows(Batch(back), epoch=2)
    for kind in ("weak", "strong", "crops"):
        assert isinstance(getattr(read, kind), PrefixRows)
        assert torch.equal(getattr(read, kind), getattr(kept, kind)[[2, 0]])
    assert read.crops.shape[:2] == (2, 3)
    assert read.centre is None
    torch.testing.assert_close(engine.encode_frozen(kept.strong).global_, engine.encode_frozen(pixels[:, 1]).global_)


def test_a_batch_of_rows_can_be_saved_to_look_into(tmp_path):
    engine = tiny_engine(tmp_path / "vit")
    task = SimpleNamespace(state_dict=dict, parameter_groups=list)
    rows = torch.ones(2, 5, 3).as_subclass(PrefixRows)
    said = save_failure(tmp_path / "failure", task, engine.backbone, Batch(torch.tensor([1, 0]), strong=rows), ["a", "b"], {})
    assert said.startswith("The batch and the state before it are in")
    assert torch.equal(load_file(tmp_path / "failure" / STATE_FILE)["batch.strong"], torch.ones(2, 5, 3))


# What cannot be


def test_scopes_that_freeze_no_first_block_are_refused():
    with pytest.raises(UserError, match=r"training\.scope must be last-k-norm .* for example last-3-norm"):
        TrainingConfig(cached_prefix=2)
    with pytest.raises(UserError, match=r"training\.cached_prefix"):
        TrainingConfig(scope=SCOPE, cached_prefix=-1)
    with pytest.raises(UserError, match=r"training\.compile must be auto or off beside training\.cached_prefix"):
        TrainingConfig(scope=SCOPE, cached_prefix=2, compile="on")
    with pytest.raises(UserError, match=r"training\.cached_prefix has no effect: method coop leaves the image tower as it is"):
        make_config("adapt", "photos", "coop", {"training": {"cached_prefix": 2}})


def test_prompts_are_refused_with_the_remedy(tiny_vit):
    with pytest.raises(UserError, match=r"no visual prompts.*--set method\.prompts=0"):
        fit_toy(tiny_vit, "lafter", pictures(1), options=quick(scope=SCOPE, cached_prefix=1))


def test_towers_that_cannot_be_entered_in_the_middle_are_refused(tmp_path):
    write_tiny_timm(tmp_path / "timm", "test_vit3", image_size=160, timm_pool="map", timm_proj="linear")
    with pytest.raises(UserError, match=r"kind 'timm' cannot be entered in the middle; leave training\.cached_prefix at 0"):
        fit_toy(tmp_path / "timm", "dpa", pictures(1), options=options("dpa", 1))


def test_several_processes_are_refused(tmp_path):
    engine = tiny_engine(tmp_path / "vit")
    engine.processes = SimpleNamespace(count=2)
    with pytest.raises(UserError, match=r"for one process"):
        check_cached_prefix(engine, SimpleNamespace(), SCOPE)


def test_memory_that_runs_out_counts_no_prefix_twice(tmp_path, monkeypatch):
    engine = tiny_engine(tmp_path / "vit")
    PrefixCache(engine, 48, ViewPlan(), TrainingConfig(scope=SCOPE, cached_prefix=1))
    rows = engine.encode_prefix(torch.zeros(48, 3, 64, 64, dtype=torch.uint8)).as_subclass(PrefixRows)
    suffix, calls = engine.backbone.encode_suffix, iter(range(100))

    def failing(*given, **options):
        if next(calls) == 2:
            raise MemoryError("not enough memory")
        return suffix(*given, **options)

    monkeypatch.setattr(engine.backbone, "encode_suffix", failing)
    engine.encode_frozen(rows)
    assert engine.counts == (48, 0, 48)
    assert engine.micro.size == CPU_CHUNK // 2


def test_draws_that_no_epoch_sees_again_are_not_kept(tmp_path):
    engine = tiny_engine(tmp_path / "vit")
    said = []
    engine.console = SimpleNamespace(say=said.append, detail=said.append, warn=said.append)
    cache = PrefixCache(engine, 3, ViewPlan(weak=False), TrainingConfig(scope=SCOPE, cached_prefix=1000, epochs=2))
    assert cache.draws == 2
    assert said[0] == "training.cached_prefix=1000 saves nothing: in 2 epochs no draw of views occurs twice"
    batch = Batch(torch.tensor([0, 1, 2]), strong=torch.zeros(3, 3, 64, 64, dtype=torch.uint8))
    cache.rows(batch, epoch=0)
    assert cache.missing(0, np.arange(3)) == cache.plan
    three = PrefixCache(engine, 3, ViewPlan(weak=False), TrainingConfig(scope=SCOPE, cached_prefix=2, epochs=3))
    for epoch in (0, 1):
        three.rows(batch, epoch)
    # The second draw belongs to the second epoch alone.
    assert [three.missing(epoch, np.arange(3)) == three.plan for epoch in (0, 1)] == [False, True]


def test_a_disk_that_is_too_small_is_seen_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(prefix_cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"training\.cached_prefix=3 needs .* GB in .* take fewer draws, fewer crops, or set FINELENS_CACHE"):
        PrefixCache(tiny_engine(tmp_path / "vit"), 4, ViewPlan(), TrainingConfig(scope=SCOPE, cached_prefix=3))


def test_a_disk_that_fills_up_is_a_clear_error(tmp_path):
    class Full:
        def seek(self, place):
            pass

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    cache = PrefixCache(tiny_engine(tmp_path / "vit"), 4, ViewPlan(weak=False), TrainingConfig(scope=SCOPE, cached_prefix=1))
    cache._file = Full()
    with pytest.raises(UserError, match=r"cannot write .*finelens-prefix: No space left on device; free some space"):
        cache.rows(Batch(torch.tensor([0]), strong=torch.zeros(1, 3, 64, 64, dtype=torch.uint8)), epoch=0)
