"""CoOp and UPL: where the context stands, what its gradient is, which images are learned from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer

from finelens.backbones.open_clip_loader import OpenClipBackbone
from finelens.backbones.registry import load_backbone
from finelens.classes.heads import build_heads
from finelens.errors import UserError
from finelens.methods.coop import TRAINING
from finelens.methods.coop.config import CoopConfig
from finelens.methods.coop.context import encode_prompts, initial_context, place_context
from finelens.methods.coop.task import Coop
from finelens.methods.registry import find_method
from finelens.methods.upl import Upl, UplConfig, select_confident
from finelens.protocol import Batch, ClassSet, Hints, TargetFeatures
from finelens.training.config import TrainingConfig
from finelens.training.schedule import WARMUP_LR, build_optimizer, cosine_lr, learning_rate
from tests.backbones.checkpoints import open_clip_model, write_tiny_vit
from tests.methods.tiny import step_gradient, tiny_engine, trainable_count, unit_rows

NAMES = ("cat", "a very long-haired dog", "red_panda")
CLASSES = ClassSet(NAMES, ("a photo of a {}.",), ((),) * 3)


@pytest.fixture(scope="module")
def backbone(tiny_vit) -> OpenClipBackbone:
    return load_backbone(f"local:{tiny_vit}")


def random_context(sets: int, per_class: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(sets, per_class, tokens, 32, generator=torch.Generator().manual_seed(seed))


def features_of(count: int = 6, hints: Hints | None = None) -> TargetFeatures:
    return TargetFeatures(unit_rows(count, 48, seed=7), torch.zeros(count, 64), hints)


def make(cls: type[Coop], folder, options: CoopConfig, dtype: torch.dtype = torch.float32) -> Coop:
    engine = tiny_engine(folder, dtype)
    heads = build_heads(engine.backbone, CLASSES)
    heads = replace(heads, templates=heads.templates.to(dtype), descriptions=heads.descriptions.to(dtype))
    return cls(engine, heads, options, weight_decay=0.0, seed=0)


def hints(*labels: int) -> Hints:
    return Hints(torch.arange(len(labels)), torch.tensor(labels))


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("per_class", [1, 3])
def test_context_stands_where_a_plain_reference_puts_it(tiny_vit, backbone, position, per_class):
    """Against open_clip's own text tower at full length, class by class, with the sequence put together by hand."""
    config, context = CoopConfig(position=position), random_context(2, per_class, 5)
    prompts = place_context(backbone, NAMES, config, 5)
    with torch.no_grad():
        found = encode_prompts(backbone, prompts, context, 64)
        reference, tokenizer = open_clip_model(tiny_vit), SimpleTokenizer()
        for s in range(2):
            for c, name in enumerate(NAMES):
                words = tokenizer.encode(name.replace("_", " "))
                vectors = context[s, c if per_class > 1 else 0]
                halves = {"end": (5, 0), "middle": (2, 3), "front": (0, 5)}[position]
                table = reference.token_embedding.weight
                ids = [tokenizer.sot_token_id, *[-1] * halves[0], *words, *[-1] * halves[1], *tokenizer.encode("."), tokenizer.eot_token_id]
                rest = iter(vectors)
                x = torch.stack([next(rest) if i < 0 else table[i] for i in ids])
                x = torch.cat([x, table[:1].expand(77 - len(ids), -1)]) + reference.positional_embedding
                x = reference.ln_final(reference.transformer(x[None], attn_mask=reference.attn_mask))
                expected = F.normalize(x[0, len(ids) - 1] @ reference.text_projection, dim=-1)
                torch.testing.assert_close(found[s, c], expected, atol=2e-6, rtol=0)


def test_words_as_context_are_the_prompt_with_these_words(backbone):
    config = CoopConfig(init="a photo of a")
    context = initial_context(backbone, config, 3, 0, 0)
    assert context.shape == (1, 4, 32)
    found = encode_prompts(backbone, place_context(backbone, NAMES, config, 4), context[None], 64)[0]
    expected = backbone.encode_text([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_the_embedded_sentence_encoder_takes_context_too():
    backbone = load_backbone("embedded")
    config = CoopConfig(init="a photo of a")
    context = initial_context(backbone, config, 3, 0, 0)
    assert context.shape == (1, 4, 384)
    found = encode_prompts(backbone, place_context(backbone, NAMES, config, 4), context[None].requires_grad_(), 2)[0]
    expected = backbone.encode_text([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)
    assert found.requires_grad


def test_random_context_is_a_function_of_seed_and_set(backbone):
    draw = [initial_context(backbone, CoopConfig(tokens=50), 3, seed, number) for seed, number in ((0, 0), (0, 0), (1, 0), (0, 1))]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    assert not torch.equal(draw[0], draw[3])
    assert draw[0].std().item() == pytest.approx(0.02, rel=0.05)
    assert abs(draw[0].mean().item()) < 2e-3
    assert initial_context(backbone, CoopConfig(class_specific=True), 3, 0, 0).shape == (3, 16, 32)


@pytest.mark.parametrize("per_class", [1, 3])
def test_chunks_with_checkpointing_give_the_same_gradient(backbone, per_class):
    prompts, calls = place_context(backbone, NAMES, CoopConfig(), 4), []
    target = unit_rows(2, 3, 48, seed=1)
    inner = backbone.encode_token_embeddings
    results = []
    for text_batch in (64, 4, 1):
        context = random_context(2, per_class, 4).requires_grad_()
        backbone.encode_token_embeddings = lambda x, ids: calls.append(len(x)) or inner(x, ids)
        features = encode_prompts(backbone, prompts, context, text_batch)
        (features * target).sum().backward()
        del backbone.encode_token_embeddings
        results.append((features.detach(), context.grad))
    for features, gradient in results[1:]:
        torch.testing.assert_close(features, results[0][0], atol=1e-6, rtol=0)
        torch.testing.assert_close(gradient, results[0][1], atol=1e-6, rtol=1e-5)
    # Six prompts at once; then in chunks, each encoded twice.
    assert calls[0] == 6
    assert sum(calls[1:]) == 2 * (6 + 6)
    assert max(calls[1:]) == 4


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (Coop, CoopConfig(tokens=3)),
        (Coop, CoopConfig(tokens=2, class_specific=True, position="middle")),
        (Upl, UplConfig(tokens=3, sets=2)),
    ],
)
def test_gradient_of_the_context_by_finite_differences(tmp_path, method, options):
    task = make(method, tmp_path / "vit", options, torch.float64)
    features = features_of(5, hints(0, 2, 1, -1, 0))
    task.prepare(replace(features, global_=features.global_.double()))
    batch = Batch(torch.tensor([4, 0, 2]))
    for position in (0, 17, task.context.numel() - 1):
        automatic, numeric = step_gradient(task, batch, "context", position, step=1e-5)
        assert automatic == pytest.approx(numeric, rel=1e-5, abs=1e-8)
        assert automatic != 0


def test_loss_is_the_cross_entropy_of_each_set(tiny_vit):
    task = make(Upl, tiny_vit, UplConfig(sets=3, tokens=4))
    task.prepare(features_of(6, hints(0, 2, 1, -1, 0)))
    batch = Batch(torch.tensor([4, 0, 2]))
    prototypes = task.text_features().detach()
    x = features_of().global_[[4, 0, 2]]
    expected = sum(F.cross_entropy(task.engine.backbone.logit_scale * x @ prototypes[s].T, torch.tensor([0, 0, 1])) for s in range(3))
    out = task.step(batch, 0, 0)
    torch.testing.assert_close(out.loss, expected)
    assert out.log["ce"].item() == pytest.approx(expected.item() / 3, rel=1e-5)
    # Every set learns as if it were alone.
    (gradient,) = torch.autograd.grad(out.loss, task.context)
    alone = F.cross_entropy(task.engine.backbone.logit_scale * x @ task.text_features()[1].T, torch.tensor([0, 0, 1]))
    torch.testing.assert_close(torch.autograd.grad(alone, task.context)[0][1], gradient[1])
    assert not task.text_features()[0].equal(task.text_features()[1])
    # The model's logits are the mean of the sets'.
    task.end_epoch(0)
    torch.testing.assert_close(task.logits(x, task.prototypes), task.logits(x, prototypes).mean(0))


def test_only_hinted_images_are_visited_and_only_the_context_learns(tiny_vit):
    task = make(Coop, tiny_vit, CoopConfig())
    task.prepare(features_of(6, hints(0, 2, -1, 1)))
    assert task.subset().tolist() == [0, 1, 3]
    assert task.labels.tolist() == [0, 2, 1]
    assert trainable_count(task) == 16 * 32
    assert task.views.weak is task.views.strong is False
    before = {name: p.clone() for name, p in task.engine.backbone.named_parameters()}
    optimizer = build_optimizer(task, 0.1)
    assert isinstance(optimizer, torch.optim.SGD)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = task.step(Batch(torch.tensor([0, 1, 3])), 0, 0).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in task.engine.backbone.named_parameters())
    with pytest.raises(UserError, match="none of these classes"):
        task.prepare(features_of(2, hints(-1, -1)))


def test_prototypes_are_all_that_is_saved_and_need_no_text(tiny_vit):
    task = make(Coop, tiny_vit, CoopConfig())
    task.prepare(features_of(3, hints(0, 1)))
    task.end_epoch(0)
    assert set(task.prediction_state()) == {"prototypes"}
    blank = Coop(task.engine, replace(build_heads(task.engine.backbone, CLASSES), classes=None), CoopConfig(), weight_decay=0.0, seed=0)
    blank.load_state_dict(task.prediction_state(), strict=False)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(blank.predict_logits(pixels)["logits"], task.predict_logits(pixels)["logits"])


POSTERIORS = torch.tensor([[0.9, 0.1, 0], [0.6, 0.4, 0], [0.7, 0.2, 0.1], [0.2, 0.8, 0], [0.3, 0.5, 0.2], [0.6, 0.3, 0.1]])


def chosen(*args) -> dict[int, int]:
    index, labels = select_confident(*args)
    assert index.tolist() == sorted(index.tolist())
    return dict(zip(index.tolist(), labels.tolist(), strict=True))


def test_the_most_confident_images_of_each_predicted_class():
    assert chosen(POSTERIORS, 1) == {0: 0, 3: 1}
    assert chosen(POSTERIORS, 2) == {0: 0, 2: 0, 3: 1, 4: 1}
    # Equal confidence: the first in the store.
    assert chosen(POSTERIORS, 3) == {0: 0, 1: 0, 2: 0, 3: 1, 4: 1}
    assert len(chosen(POSTERIORS, 16)) == 6


def test_hints_replace_labels_and_always_enter():
    # Image 0 is of no class, image 5 is of class 2, which nothing was predicted as.
    given = Hints(torch.tensor([0, 5]), torch.tensor([-1, 2]))
    assert chosen(POSTERIORS, 1, given) == {2: 0, 3: 1, 5: 2}
    # More hints of a class than it has places: all of them, and no others.
    given = Hints(torch.tensor([3, 4]), torch.tensor([0, 0]))
    assert chosen(POSTERIORS, 1, given) == {3: 0, 4: 0}
    assert chosen(POSTERIORS, 3, given) == {0: 0, 3: 0, 4: 0}


def test_the_class_prior_moves_the_selection(tiny_vit):
    """Most images are of class 0; one that lies between, a little nearer to class 1, is counted to the frequent class."""
    task = make(Upl, tiny_vit, UplConfig(tokens=2, sets=1, marginal="prior", per_class=30))
    task.zero_shot = unit_rows(3, 48, seed=5)
    between = F.normalize(0.49 * task.zero_shot[0] + 0.51 * task.zero_shot[1], dim=-1)
    x = torch.cat([task.zero_shot[[0] * 18 + [1, 2]], between[None]])
    task.prepare(TargetFeatures(x, torch.zeros(21, 64)))
    assert task.labels.tolist() == [0] * 18 + [1, 2, 0]
    task.config = replace(task.config, marginal="uniform")
    task.prepare(TargetFeatures(x, torch.zeros(21, 64)))
    assert task.labels.tolist() == [0] * 18 + [1, 2, 1]


def test_a_name_that_leaves_no_room_is_named(backbone):
    with pytest.raises(UserError, match=r"class name 'word word .*need 9\d tokens.*takes 77"):
        place_context(backbone, ["cat", "word " * 75], CoopConfig(), 16)


def test_a_text_tower_without_embeddings_is_refused_before_any_work(tmp_path):
    folder = write_tiny_vit(tmp_path, custom_text=True, text={"embed_cls": True})
    engine = tiny_engine(folder)
    heads = build_heads(engine.backbone, CLASSES)
    for name in ("coop", "upl"):
        method = find_method(name)
        with pytest.raises(UserError, match=rf"method {name} learns text context.*another --method: .*microclip"):
            method.build(engine, heads, method.config_class(), TrainingConfig(**method.training_defaults), 0)


@pytest.mark.parametrize("bad", [{"tokens": 0}, {"text_batch": 0}, {"per_class": 0}, {"sets": 0}, {"init": "a photo", "sets": 2}])
def test_options_are_checked(bad):
    with pytest.raises(UserError, match=r"method\."):
        UplConfig(**bad)


def test_published_schedule():
    config = TrainingConfig(**TRAINING)
    assert (config.lr, config.epochs, config.batch_size, config.weight_decay) == (0.002, 50, 32, 5e-4)
    rates = [learning_rate(step, 4, config, warmup_epochs=1) for step in range(200)]
    assert rates[:4] == [WARMUP_LR] * 4
    assert rates[4] == cosine_lr(4, 200, 0.002, 0.0) == pytest.approx(0.002, rel=1e-2)
    assert rates[-1] < 1e-6
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert learning_rate(0, 4, replace(config, epochs=1), warmup_epochs=1) == 0.002
    assert learning_rate(3, 4, config) == cosine_lr(3, 200, 0.002, 0.0)
