"""NoLA: the choice of confident images, the labelling network, the student's labels and the label-free end."""

from __future__ import annotations

import math

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from finelens import api
from finelens.backbones.embedded import EmbeddedBackbone
from finelens.backbones.image_encoders import ImageEncoder
from finelens.backbones.registry import load_encoder
from finelens.core.options import from_mapping, to_plain
from finelens.engine.engine import Engine
from finelens.errors import UserError
from finelens.images.batches import centre_batches
from finelens.images.randomness import generator, permutation, seed_for
from finelens.images.view_config import ViewConfig
from finelens.methods import nola
from finelens.methods.nola.config import NolaConfig
from finelens.methods.nola.labelling import LabellingNetwork, select_confident
from finelens.methods.nola.second_encoder import second_features
from finelens.methods.nola.stopping import AgreementStop
from finelens.methods.nola.task import Nola
from finelens.protocol import Batch, TargetFeatures
from finelens.training.checkpoint import named_trainable
from finelens.training.config import TrainingConfig
from finelens.training.loop import Hooks, Interrupted, Trainer
from finelens.training.schedule import build_optimizer
from tests.methods.tiny import (
    FLOAT32,
    Pictures,
    random_batch,
    random_heads,
    separating_rows,
    step_gradient,
    target_features,
    tiny_engine,
    train_steps,
    trainable_count,
    vit_b32_engine,
    whole_and_resumed,
    without_texts,
)
from tests.toy import QUIET, digest, quick, stop_after

B, C, P = 6, 4, 5
TIMM = "test_vit"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Random weights of a tiny timm model, its classifier included, as a hub would serve them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(TIMM, pretrained=False)
    path = tmp_path_factory.mktemp("timm") / "model.safetensors"
    save_file(model.state_dict(), path)
    return path


def prepared(engine, batch, **options) -> Nola:
    """A task whose unlabelled images are the centre views of ``batch``."""
    task = Nola(engine, separating_rows(engine, batch, C), NolaConfig(**{"prompts": P, **options}))
    tokens = engine.encode_frozen(batch.centre)
    task.prepare(TargetFeatures(tokens.global_, tokens.cls))
    return task


# Step 2: which images teach the labelling network


def plain_selection(p: np.ndarray, keep: int) -> dict[int, list[int]]:
    """The rule, one image at a time."""
    classes, taken, served = p.shape[1], set(), {}
    ranked = [sorted(range(classes), key=lambda c: -row[c]) for row in p]
    for place in range(min(3, classes)):
        for c in range(classes):
            if c in served:
                continue
            candidates = [i for i in range(len(p)) if ranked[i][place] == c and i not in taken]
            candidates.sort(key=lambda i: (-p[i, c], i))
            if candidates:
                served[c] = candidates[:keep]
                taken |= set(candidates[:keep])
    return served


def selection(posteriors: torch.Tensor, keep: int) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for i, c in zip(*(t.tolist() for t in select_confident(posteriors, keep)), strict=True):
        found.setdefault(c, []).append(i)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_selection_is_the_plain_rule(seed):
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(30, 8, generator=g, dtype=torch.float64)
    # Half of the classes are nobody's first choice, and some images are there several times.
    logits[:, 4:] -= 6
    posteriors = logits.softmax(-1)[torch.randint(0, 30, (40,), generator=g)]
    for keep in (1, 3, 40):
        assert selection(posteriors, keep) == plain_selection(posteriors.numpy(), keep)


def test_absent_classes_take_what_the_others_leave_and_may_end_without():
    p = torch.tensor([[0.60, 0.30, 0.07, 0.03], [0.80, 0.15, 0.03, 0.02], [0.70, 0.20, 0.06, 0.04]])
    # Class 0 keeps its best image; class 1 is second of the two left; class 2 gets the third place of what is left then, class 3 nothing.
    assert selection(p, 1) == {0: [1], 1: [0], 2: [2]}
    assert selection(p, 3) == {0: [1, 2, 0]}


def test_copies_of_an_image_are_kept_in_store_order_and_no_image_serves_twice():
    p = torch.tensor([[0.6, 0.3, 0.1]]).expand(5, 3)
    assert selection(p, 2) == {0: [0, 1], 1: [2, 3], 2: [4]}
    index, _ = select_confident(p, 2)
    assert len(index.unique()) == len(index)


def test_one_and_two_classes():
    assert selection(torch.ones(3, 1), 2) == {0: [0, 1]}
    assert selection(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), 1) == {0: [0], 1: [1]}


@pytest.mark.parametrize(("images", "classes", "keep"), [(1000, 10, 20), (799, 10, 16), (30, 37, 16), (10**6, 100, 512), (5, 1, 16)])
def test_number_of_kept_images(images, classes, keep):
    assert NolaConfig().keep(images, classes) == keep == min(512, max(16, math.floor(0.2 * images / classes)))


# Step 3: the labelling network


def reference_network(x: np.ndarray, y: np.ndarray, classes: int, epochs: int, seed: int) -> list[np.ndarray]:
    """D2 - 256 - C with ReLU by Adam, batches of 32, written out in float64."""
    rng = torch.Generator().manual_seed(seed_for(seed, "labelling network"))

    def draw(rows, columns, fan_in):
        return ((2 * torch.rand(rows, columns, generator=rng) - 1) / math.sqrt(fan_in)).double().numpy()

    d = x.shape[1]
    theta = [draw(256, d, d), draw(256, d, d)[:, 0], draw(classes, 256, 256), draw(classes, 256, 256)[:, 0]]
    m, v, t = [np.zeros_like(w) for w in theta], [np.zeros_like(w) for w in theta], 0
    for epoch in range(epochs):
        order = permutation(generator(seed, epoch, "", "labelling network"), len(x))
        for start in range(0, len(x), 32):
            rows, t = order[start : start + 32], t + 1
            h = x[rows] @ theta[0].T + theta[1]
            z = np.maximum(h, 0) @ theta[2].T + theta[3]
            p = np.exp(z - z.max(1, keepdims=True))
            dz = (p / p.sum(1, keepdims=True) - np.eye(classes)[y[rows]]) / len(rows)
            dh = dz @ theta[2] * (h > 0)
            for i, g in enumerate((dh.T @ x[rows], dh.sum(0), dz.T @ np.maximum(h, 0), dz.sum(0))):
                m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g**2
                theta[i] = theta[i] - 1e-3 * (m[i] / (1 - 0.9**t)) / (np.sqrt(v[i] / (1 - 0.999**t)) + 1e-8)
    return theta


def test_labelling_network_is_the_plain_reference():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 7, generator=g, dtype=torch.float64), torch.randint(0, 3, (40,), generator=g)
    network = LabellingNetwork(torch.float64)
    network.fit(x, y, 3, epochs=4, seed=3, console=QUIET)
    for name, expected in zip(network.names, reference_network(x.numpy(), y.numpy(), 3, 4, 3), strict=True):
        np.testing.assert_allclose(getattr(network, name).numpy(), expected, rtol=1e-7, atol=1e-10)
    assert not list(network.parameters())


def test_labelling_network_learns_what_it_is_taught():
    g = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = F.one_hot(y, 3).float() @ torch.randn(3, 20, generator=g) + 0.3 * torch.randn(60, 20, generator=g)
    network = LabellingNetwork(torch.float32)
    network.fit(x, y, 3, epochs=50, seed=0, console=QUIET)
    assert (network(x).argmax(1) == y).all()


# Steps 1, 4 and 5: head, labels and student


def test_head_starts_at_the_mean_of_descriptions_and_templates(engine):
    heads = random_heads(C)
    task = nola.build(engine, heads, NolaConfig(), TrainingConfig(), 0)
    expected = torch.stack([F.normalize(own.mean(0), dim=0) for own in heads.texts])
    torch.testing.assert_close(task.head.detach(), expected)


def test_labels_are_the_frozen_networks_and_never_move(engine):
    batch = random_batch(B, 0)
    task = prepared(engine, batch)
    cls = engine.encode_frozen(batch.centre).cls
    labels = task.labeller(cls).argmax(-1)
    assert torch.equal(task.pseudo_labels(batch.index).labels, labels)
    network = {name: t.clone() for name, t in task.labeller.state_dict().items()}
    train_steps(task, batch, 3)
    assert torch.equal(task.pseudo_labels(torch.tensor([4, 1])).labels, labels[[4, 1]])
    assert all(torch.equal(t, network[name]) for name, t in task.labeller.state_dict().items())


def test_labelling_network_is_taught_by_the_images_that_the_text_head_is_sure_of(engine):
    batch = random_batch(B, 0)
    task = prepared(engine, batch, keep_min=1)
    tokens = engine.encode_frozen(batch.centre)
    zero_shot = (engine.backbone.logit_scale * tokens.global_ @ task.head.T).softmax(-1)
    kept, labels = select_confident(zero_shot, 1)
    assert 1 < len(kept) < B
    network = LabellingNetwork(torch.float32)
    network.fit(tokens.cls[kept], labels, C, epochs=50, seed=0, console=QUIET)
    assert torch.equal(task.posteriors, network(tokens.cls).softmax(-1))


def test_a_step_is_the_plain_reference_and_costs_one_forward(engine):
    batch = random_batch(B, 0)
    task = prepared(engine, batch)
    labels = task.pseudo_labels(batch.index).labels
    backbone = engine.backbone
    with torch.no_grad():
        raw = backbone.visual.tokens(backbone.normalise(batch.strong), prompts=task.prompts).cls @ backbone.visual.proj
        z = raw @ task.head.T
    target = F.one_hot(labels, C) * 0.9 + 0.1 / C
    before = engine.no_grad_forwards, engine.grad_forwards
    torch.testing.assert_close(task.step(batch, 0, 0).loss.detach(), -(target * z.log_softmax(-1)).sum(-1).mean())
    assert (engine.no_grad_forwards - before[0], engine.grad_forwards - before[1]) == (0, B)
    assert (task.cost().no_grad_forwards, task.cost().grad_forwards) == (0, 1)


def test_gradient_of_a_step_by_finite_differences(folder):
    engine, batch = tiny_engine(folder, torch.float64), random_batch(B, 0)
    task = prepared(engine, batch, marginal="uniform")
    for name in ("head", "prompts", "visual.ln_post.weight", "visual.transformer.resblocks.0.ln_1.bias"):
        automatic, numeric = step_gradient(task, batch, name, 5)
        assert automatic == pytest.approx(numeric, rel=1e-5, abs=1e-9)
        assert automatic != 0


def test_trainable_count_of_vit_b32():
    task = Nola(vit_b32_engine(), torch.zeros(100, 512, device="meta"), NolaConfig())
    assert trainable_count(task) == 16 * 768 + 39_936 + 512 * 100


def test_estimated_prior_rests_on_the_labelling_network(engine):
    task = prepared(engine, random_batch(B, 0), marginal="prior")
    assert torch.equal(task.class_prior.posteriors, task.posteriors)
    assert (task.class_prior.prior - 1 / C).abs().max() > 0.01


def test_prediction_state_suffices_to_predict_alike(engine):
    batch, options = random_batch(B, 0), NolaConfig(prompts=P)
    task = prepared(engine, batch)
    train_steps(task, batch, 2)
    bare = without_texts(random_heads(C))
    rebuilt = nola.build(engine, bare, from_mapping(NolaConfig, to_plain(options), "method"), TrainingConfig(), 0)
    assert set(task.prediction_state()) == {"head", "prompts", "feature_scale"}
    assert not rebuilt.load_state_dict(task.prediction_state(), strict=False).unexpected_keys
    assert torch.equal(rebuilt.predict_logits(batch.centre)["logits"], task.predict_logits(batch.centre)["logits"])


# The second encoder


def with_views(engine, pictures: Pictures) -> TargetFeatures:
    features = target_features(engine, pictures)
    return TargetFeatures(features.global_, features.cls, views=lambda preprocess: (v for _, v in centre_batches(pictures, preprocess, 4)))


def test_timm_features_are_timms_own(engine, checkpoint):
    pictures = Pictures(7)
    config = NolaConfig(second_encoder=f"timm:{TIMM}", second_checkpoint=str(checkpoint))
    assert config.second_spec == f"timm:{TIMM}@{checkpoint}"
    features = with_views(engine, pictures)
    before = engine.no_grad_forwards
    got = second_features(config.second_spec, engine, features)
    model = timm.create_model(TIMM, pretrained=False, checkpoint_path=str(checkpoint)).eval()
    model.reset_classifier(0)
    data = timm.data.resolve_model_data_config(model)
    preprocess = load_encoder(config.second_spec).preprocess
    assert (preprocess.image_size, preprocess.mean) == (data["input_size"][1], tuple(data["mean"]))
    views = torch.cat([v for _, v in centre_batches(pictures, preprocess, 4)])
    mean, std = (torch.tensor(data[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(got, model((views / 255 - mean) / std))
    assert got.shape == (7, model.num_features)
    assert engine.no_grad_forwards == before


def test_every_image_passes_the_second_encoder_once(engine, checkpoint, monkeypatch):
    seen, own = [], ImageEncoder.encode_image
    monkeypatch.setattr(ImageEncoder, "encode_image", lambda self, images, **given: seen.append(len(images)) or own(self, images, **given))
    config = NolaConfig(prompts=P, second_encoder=f"timm:{TIMM}", second_checkpoint=str(checkpoint))
    task = Nola(engine, separating_rows(engine, random_batch(B, 0), C), config)
    task.prepare(with_views(engine, Pictures(7)))
    assert sum(seen) == 7
    assert task.posteriors.shape == (7, C)
    assert task.labeller.hidden_weight.shape == (256, 64)


def test_a_folder_of_open_clips_serves_as_second_encoder(engine, tiny_resnet):
    pictures = Pictures(5)
    features = second_features(f"local:{tiny_resnet}", engine, with_views(engine, pictures))
    assert features.shape == (5, 256)
    assert features.isfinite().all()


def test_the_embedded_tower_serves_as_second_encoder_of_another(engine):
    pictures = Pictures(3)
    got = second_features("embedded", engine, with_views(engine, pictures))
    own = EmbeddedBackbone()
    views = torch.cat([v for _, v in centre_batches(pictures, own.preprocess, 4)])
    torch.testing.assert_close(got, Engine(own, engine.device, engine.precision).encode_frozen(views).cls)


def test_the_embedded_tower_beside_itself_is_itself():
    engine = Engine(EmbeddedBackbone(text=False), torch.device("cpu"), FLOAT32)
    features = TargetFeatures(torch.zeros(2, 4), torch.ones(2, 4))
    assert second_features("embedded", engine, features) is features.cls
    assert engine.no_grad_forwards == 0


def test_self_is_the_unadapted_towers_pooled_token(engine):
    features = target_features(engine, Pictures(3))
    assert second_features("self", engine, features) is features.cls


def test_a_run_with_a_second_encoder_resumes_and_needs_it_no_more_to_predict(tiny_vit, checkpoint, photos, classes, tmp_path):
    own = tmp_path / "second.safetensors"
    own.write_bytes(checkpoint.read_bytes())
    method = {"second_encoder": f"timm:{TIMM}", "second_checkpoint": str(own), "stop": "agreement", "patience": 1}
    given = {"backbone": f"local:{tiny_vit}", "method": "nola", "options": {**quick(epochs=3), "method": method}, "console": QUIET}
    api.adapt(photos, classes, tmp_path / "whole", **given)

    with pytest.raises(Interrupted):
        api.adapt(photos, classes, tmp_path / "broken", **given, should_stop=stop_after(2))
    api.resume(tmp_path / "broken", console=QUIET)
    for file in ("model/model.safetensors", "predictions.csv"):
        assert digest(tmp_path / "whole" / file) == digest(tmp_path / "broken" / file), file
    own.unlink()
    assert api.load_run(tmp_path / "whole").predict_proba(photos).shape == (24, 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"second_encoder": "timm:test_vitt", "second_checkpoint": "x"}, "nearest: test_vit"),
        ({"second_encoder": f"timm:{TIMM}", "second_checkpoint": "missing.safetensors"}, "no weights; expected .*missing.safetensors"),
        ({"second_encoder": "local:missing"}, "no such folder"),
    ],
)
def test_a_second_encoder_that_is_not_there_is_refused_before_the_work(engine, options, words):
    with pytest.raises(UserError, match=words):
        nola.build(engine, random_heads(C), NolaConfig(**options), TrainingConfig(), 0)
    # A saved model asks for none.
    nola.build(engine, without_texts(random_heads(C)), NolaConfig(**options), TrainingConfig(), 0)


def test_weights_of_another_model_are_refused(engine, checkpoint):
    with pytest.raises(UserError, match=r"does not fit the model: Missing key"):
        second_features(f"timm:test_resnet@{checkpoint}", engine, with_views(engine, Pictures(3)))


def test_paths_are_made_absolute_and_read_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = NolaConfig(second_encoder="timm:test_vit", second_checkpoint="a.safetensors")
    assert config.second_checkpoint == str(tmp_path / "a.safetensors")
    assert NolaConfig(second_encoder="timm:test_vit@a.safetensors").second_spec == config.second_spec
    assert NolaConfig(second_encoder="local:d").second_encoder == f"local:{tmp_path / 'd'}"
    monkeypatch.chdir("/")
    assert from_mapping(NolaConfig, to_plain(config), "method") == config


# The end


def play(agreements: list[float], patience: int) -> int:
    """Epochs until the rule ends a training with these agreements."""
    stop = AgreementStop(patience)
    for epoch, agreement in enumerate(agreements, start=1):
        right = torch.arange(100) < round(100 * agreement)
        stop.see(right.long(), torch.ones(100, dtype=torch.int64))
        assert stop.end_epoch()["held_out_agreement"] == pytest.approx(agreement)
        if stop.finished():
            return epoch
    return 0


def test_training_ends_after_patience_epochs_without_a_new_best():
    rising = [0.1, 0.2, 0.3, 0.4]
    assert play(rising, 1) == 0
    assert play([0.5, 0.5], 1) == 2
    assert play([0.5, 0.4, 0.6, 0.6, 0.6], 2) == 5
    assert play([0.5, 0.4, 0.3, 0.2], 2) == 3


def test_an_epoch_that_saw_no_held_out_image_says_nothing():
    stop = AgreementStop(1)
    assert stop.end_epoch() == {}
    assert not stop.finished()


@pytest.mark.parametrize(("images", "count"), [(1, 0), (2, 1), (5, 1), (100, 10)])
def test_held_out_images_are_a_function_of_the_seed(images, count):
    first, again, other = AgreementStop(1), AgreementStop(1), AgreementStop(1)
    for stop, seed in ((first, 0), (again, 0), (other, 1)):
        stop.hold_out(images, 0.1, seed)
    assert first.held_out.sum() == count
    assert torch.equal(first.held_out, again.held_out)
    if images == 100:
        assert not torch.equal(first.held_out, other.held_out)


def test_held_out_images_teach_nothing_and_are_compared_without_gradient(engine):
    batch = random_batch(B, 0)
    task = prepared(engine, batch, stop="agreement", held_out=0.34)
    held = task.stopping.held_out.clone()
    assert held.sum() == 2
    before = engine.no_grad_forwards, engine.grad_forwards
    loss = task.step(batch, 0, 0).loss.detach()
    assert (engine.no_grad_forwards - before[0], engine.grad_forwards - before[1]) == (2, 4)
    assert (B * task.cost().no_grad_forwards, B * task.cost().grad_forwards) == (pytest.approx(2), pytest.approx(4))
    noise = torch.where(held[:, None, None, None], 255 - batch.strong, batch.strong)
    task.stopping.counts.zero_()
    torch.testing.assert_close(task.step(Batch(batch.index, strong=noise, centre=batch.centre), 0, 0).loss.detach(), loss, rtol=0, atol=0)
    student = task.predict_logits(batch.centre)["logits"].argmax(-1)
    agreed = (student == task.pseudo_labels(batch.index).labels)[held].sum().item()
    assert task.end_epoch(0)["held_out_agreement"] == agreed / 2


def test_a_batch_that_is_held_out_as_a_whole_changes_nothing_but_the_count(engine):
    batch = random_batch(B, 0)
    task = prepared(engine, batch, stop="agreement")
    task.stopping.held_out.fill_(True)
    output = task.step(batch, 0, 0)
    before = {name: parameter.detach().clone() for name, parameter in named_trainable(task).items()}
    optimizer = build_optimizer(task, 1e-2)
    output.loss.backward()
    optimizer.step()
    assert output.loss == 0
    for name, parameter in named_trainable(task).items():
        assert torch.equal(parameter, before[name]), name
    assert task.stopping.counts[1] == B


def test_a_run_that_ends_early_is_resumed_to_the_same_end(folder, tmp_path):
    pictures, config = Pictures(12), TrainingConfig(epochs=30, batch_size=5, lr=1e-4)
    start = separating_rows(tiny_engine(folder), random_batch(4, 0), C)

    def build() -> Nola:
        return Nola(tiny_engine(folder), start, NolaConfig(prompts=P, stop="agreement", held_out=0.4, patience=2, marginal="prior"))

    task, second = whole_and_resumed(build, pictures, config, tmp_path)
    for name, tensor in {**task.state_dict(), **task.tuned}.items():
        assert torch.equal({**second.state_dict(), **second.tuned}[name], tensor), name
    assert task.finished()
    # Resumed once more, it is at its end and stays there.
    third = build()
    rest = Trainer(third, third.engine, pictures, config, ViewConfig(), seed=0, hooks=Hooks(checkpoints=tmp_path))
    rest.resume()
    assert rest.position.epoch < 30
    assert rest.run() == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep_share": 1.5}, "method.keep_share"),
        ({"keep_min": 0}, "method.keep_min"),
        ({"keep_max": 8}, "method.keep_max"),
        ({"labelling_epochs": 0}, "method.labelling_epochs"),
        ({"held_out": 1.0}, "method.held_out"),
        ({"patience": 0}, "method.patience"),
        ({"prompts": -1}, "method.prompts"),
        ({"second_encoder": "dino"}, "self, timm:NAME"),
        ({"second_encoder": "timm:"}, "self, timm:NAME"),
        ({"second_encoder": "timm:test_vit@b.safetensors", "second_checkpoint": "a.safetensors"}, "method.second_checkpoint"),
        ({"second_checkpoint": "a.safetensors"}, "method.second_checkpoint"),
    ],
)
def test_impossible_options_are_refused_by_name(options, words):
    with pytest.raises(UserError, match=words):
        NolaConfig(**options)
