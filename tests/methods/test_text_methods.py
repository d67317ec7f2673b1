"""Methods that only change the text side: scores against plain transcriptions, prompts, files, explanations."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from finelens.classes.heads import build_heads
from finelens.classes.phrases import as_clause, random_phrases
from finelens.errors import UserError
from finelens.images.batches import centre_batches
from finelens.images.decode import DecodeLimits
from finelens.images.load import load
from finelens.methods.descriptions import Descriptions, DescriptionsConfig, text_weights, wrapped_texts
from finelens.methods.perceptionclip import DEFAULT_FACTORS, PerceptionClip, PerceptionClipConfig, context_features, context_prompt
from finelens.methods.registry import find_method
from finelens.methods.waffle import WaffleConfig, waffle_head
from finelens.protocol import ClassSet
from finelens.runs.fit import fit
from finelens.runs.model import load_model, save_model
from tests.toy import CLASSES, QUIET, pictures, prepare_toy

PHRASES = (("a red surface", "stripes across"), (), ("a blue disc.", "This blue disc is round", "antlers"), ("yellow ramp",))


@pytest.fixture
def prepared(tiny_vit):
    config, found = prepare_toy(tiny_vit, "zero-shot")
    return config, found


def described(prepared) -> ClassSet:
    return replace(prepared.classes, descriptions=PHRASES)


def pixels(prepared) -> torch.Tensor:
    store = load(pictures(1), DecodeLimits(), QUIET).store
    return next(iter(centre_batches(store, prepared.engine.backbone.preprocess, 64)))[1]


@pytest.mark.parametrize(
    ("phrase", "sentence"),
    [
        ("a long tail", "red fox, which is a long tail."),
        ("an animal", "red fox, which is an animal."),
        ("antlers", "red fox, which has antlers."),
        ("has a tail", "red fox, which has a tail."),
        ("used for hunting.", "red fox, which is used for hunting."),
        ("can be orange", "red fox, which can be orange."),
        ("", "red fox, which has ."),
    ],
)
def test_a_phrase_becomes_a_clause_with_the_verb_it_asks_for(phrase, sentence):
    assert as_clause("red_fox", phrase) == sentence


def test_only_phrases_are_wrapped_unless_told_otherwise():
    classes = ClassSet(CLASSES, ("{}",), PHRASES)
    auto = wrapped_texts(classes, "auto")
    assert auto[0] == ("red stripe, which is a red surface.", "red stripe, which has stripes across.")
    assert auto[1] == ()
    assert auto[2] == ("a blue disc.", "This blue disc is round", "blue disc, which has antlers.")
    assert auto[3] == ("yellow ramp",)
    assert wrapped_texts(classes, "never") == PHRASES
    assert wrapped_texts(classes, "always")[3] == ("yellow ramp, which has yellow ramp.",)


def test_scores_are_the_mean_of_cosines_and_not_the_cosine_of_the_mean(prepared):
    _, found = prepared
    heads = build_heads(found.engine.backbone, described(found))
    task = Descriptions(found.engine, DescriptionsConfig(wrap="never"))
    task.write(heads)
    images = pixels(found)
    x = found.engine.encode_frozen(images).global_
    expected = torch.stack([(x @ F.normalize(own, dim=-1).T).mean(1) for own in heads.sentences], dim=1)
    logits = task.predict_logits(images)["logits"]
    torch.testing.assert_close(logits, found.engine.backbone.logit_scale * expected)
    ensemble = found.engine.backbone.logit_scale * x @ heads.descriptions.T
    assert not torch.allclose(logits, ensemble, atol=1e-2)


def test_the_largest_score_can_stand_for_the_class_and_padding_never_does(prepared):
    _, found = prepared
    heads = build_heads(found.engine.backbone, described(found))
    task = Descriptions(found.engine, DescriptionsConfig(aggregate="max", wrap="never"))
    task.write(heads)
    images = pixels(found)
    x = found.engine.encode_frozen(images).global_
    expected = torch.stack([(x @ F.normalize(own, dim=-1).T).amax(1) for own in heads.sentences], dim=1)
    torch.testing.assert_close(task.predict_logits(images)["logits"], found.engine.backbone.logit_scale * expected)
    cosines = task.cosines(x)
    assert cosines.shape[1:] == task.weights.shape
    assert torch.isneginf(cosines[:, 0, 2:]).all()
    torch.testing.assert_close(cosines[:, 2, :3], x @ F.normalize(heads.sentences[2], dim=-1).T)


@pytest.mark.parametrize("weighting", ["uniform", "cosine", "softmax"])
def test_weights_follow_the_cosine_with_the_name_and_sum_to_one(weighting):
    generator = torch.Generator().manual_seed(0)
    texts = F.normalize(torch.randn(2, 3, 5, generator=generator, dtype=torch.float64), dim=-1)
    texts[1, 2] = 0
    present = torch.tensor([[True, True, True], [True, True, False]])
    names = F.normalize(texts.sum(1) + 0.1, dim=-1)
    weights = text_weights(texts, present, names, weighting, 7.0)
    for c, count in enumerate((3, 2)):
        cosines = [float(texts[c, j] @ names[c]) for j in range(count)]
        raw = {"uniform": [1.0] * count, "cosine": [max(x, 0) for x in cosines], "softmax": [math.exp(7 * x) for x in cosines]}[weighting]
        expected = [x / sum(raw) for x in raw] + [0.0] * (3 - count)
        torch.testing.assert_close(weights[c], torch.tensor(expected, dtype=torch.float64))


def test_texts_that_all_point_away_from_the_name_count_alike():
    texts = -torch.eye(3, dtype=torch.float64)[None, :2]
    names = F.normalize(torch.ones(1, 3, dtype=torch.float64), dim=-1)
    weights = text_weights(texts, torch.ones(1, 2, dtype=torch.bool), names, "cosine", 1.0)
    assert weights.tolist() == [[0.5, 0.5]]


def test_random_phrases_are_pairs_of_words_and_letters_of_the_same_lengths():
    phrases = random_phrases(5, seed=3)
    assert len(phrases) == 10
    assert phrases == random_phrases(5, seed=3)
    assert phrases != random_phrases(5, seed=4)
    for words, letters in zip(phrases[::2], phrases[1::2], strict=True):
        assert [len(word) for word in words.split()] == [len(word) for word in letters.split()]
        assert words != letters


def test_every_class_gets_the_same_random_phrases(prepared):
    _, found = prepared
    backbone = found.engine.backbone
    head = waffle_head(backbone, CLASSES, WaffleConfig(count=2, concept="shape"), 0)
    for row, name in zip(head, CLASSES, strict=True):
        texts = [f"a photo of a shape: a {as_clause(name, phrase)}" for phrase in random_phrases(2, 0)]
        torch.testing.assert_close(row, backbone.encode_text(texts).mean(0))


def test_a_prompt_leaves_out_what_is_unsaid():
    assert context_prompt("red_fox", ["", "", ""]) == "a photo of a red fox."
    assert context_prompt("red_fox", ["blurry", "", "in the dark"]) == "a photo of a red fox, blurry, in the dark."


def test_phrasings_of_a_combination_are_averaged(prepared):
    _, found = prepared
    backbone = found.engine.backbone
    features = context_features(backbone, "fox", DEFAULT_FACTORS)
    values = [list(values.values()) for values in DEFAULT_FACTORS.values()]
    combinations = list(product(*values))
    assert len(features) == len(combinations) == 27
    texts = [context_prompt("fox", phrases) for phrases in product(*combinations[14])]
    torch.testing.assert_close(features[14], F.normalize(backbone.encode_text(texts).mean(0), dim=-1))


@pytest.mark.parametrize("context", ["with-class", "without-class"])
def test_the_posterior_sums_over_contexts(prepared, context):
    _, found = prepared
    found.engine.backbone.logit_scale = 3.0
    task = PerceptionClip(found.engine, PerceptionClipConfig(context=context, temperature=2.0))
    task.write(CLASSES)
    x = F.normalize(torch.randn(5, task.head.shape[-1], generator=torch.Generator().manual_seed(1)), dim=-1)
    for features, log_p in zip(x.double(), task.log_posterior(x), strict=True):
        f = 3 * torch.einsum("cze,e->cz", task.head.double(), features)
        seen = (f / 2).exp().sum(0) if context == "with-class" else (3 * task.generic.double() @ features / 2).exp()
        p = (f.exp() / f.exp().sum(0) * (seen / seen.sum())).sum(1)
        torch.testing.assert_close(log_p.double(), p.log(), atol=1e-5, rtol=1e-5)


def test_one_context_without_words_is_zero_shot_with_one_template(prepared, tmp_path):
    _, found = prepared
    file = tmp_path / "factors.json"
    file.write_text(json.dumps({"none": {"unsaid": [""]}}))
    task = PerceptionClip(found.engine, PerceptionClipConfig(factors=str(file)))
    task.write(CLASSES)
    x = F.normalize(torch.randn(5, task.head.shape[-1], generator=torch.Generator().manual_seed(1)), dim=-1)
    head = found.engine.backbone.encode_text([f"a photo of a {name}." for name in CLASSES])
    torch.testing.assert_close(task.log_posterior(x), (found.engine.backbone.logit_scale * x @ head.T).log_softmax(1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "must be a JSON object"),
        ("{}", "must be a JSON object"),
        ('{"a": {"b": []}}', "must be a JSON object"),
        ('{"a": {"b": [1]}}', "must be a JSON object"),
        (json.dumps({str(i): {"x": ["a", "b"], "y": ["c", "d"]} for i in range(6)}), "4096 combinations"),
    ],
)
def test_a_bad_file_of_factors_is_named(prepared, tmp_path, content, words):
    _, found = prepared
    file = tmp_path / "factors.json"
    file.write_text(content)
    with pytest.raises(UserError, match=words) as error:
        PerceptionClip(found.engine, PerceptionClipConfig(factors=str(file))).write(CLASSES)
    assert "factors.json" in str(error.value)


@pytest.mark.parametrize("method", ["descriptions", "waffle", "perceptionclip", "wca"])
def test_a_loaded_model_needs_no_texts(prepared, tmp_path, method):
    config, found = prepared
    found = replace(found, classes=described(found))
    line = find_method(method)
    heads = build_heads(found.engine.backbone, found.classes)
    options = line.config_class(**({"crops": 2} if method == "wca" else {}))
    task = line.build(found.engine, heads, options, config.training, 5)
    store = load(pictures(1), DecodeLimits(), QUIET).store
    config = replace(config, method=method, method_options=options)
    model = fit(replace(found, method=line, heads=heads, task=task), store, config, QUIET).model
    save_model(tmp_path, model)
    images = pixels(found)
    assert torch.equal(load_model(tmp_path).logits(images)["logits"], model.logits(images)["logits"])
