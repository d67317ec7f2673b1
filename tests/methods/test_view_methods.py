"""Methods that answer from many views of one image: equations, and that an answer belongs to the image alone."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from finelens import api
from finelens.images.batches import inference_batches
from finelens.images.decode import DecodeLimits
from finelens.images.load import load
from finelens.images.views import inference_views
from finelens.methods.mta import bandwidths, find_mode
from finelens.methods.wca import weighted_crops
from finelens.methods.zero import vote
from finelens.protocol import InferenceViews
from finelens.runs.predict import predict_store
from tests.toy import QUIET, fit_toy, picture, pictures, write_classes, write_photos

VIEWS = {"wca": {"crops": 3}, "mta": {"views": 4}, "zero": {"views": 4}, "fair": {"crops": 3, "keep": 2, "inference": "las"}}


def options(method):
    training = {"epochs": 1, "batch_size": 8, "precision": "float32"} if method == "fair" else {"precision": "float32"}
    return {"training": training, "method": VIEWS[method]}


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("kind", ["crops", "resized"])
def test_views_belong_to_the_content_and_not_to_the_copy(tiny_vit, kind):
    prepared, _, _ = fit_toy(tiny_vit, "zero-shot", pictures(1))
    preprocess = prepared.engine.backbone.preprocess
    images = [picture(0, 0), picture(1, 0), picture(0, 0)]
    store = load(images, DecodeLimits(), QUIET).store
    plan = InferenceViews(3, kind)
    found = {store.ids[i]: further[0] for index, _, further in inference_batches(store, preprocess, plan, 1) for i in index.tolist()}
    copies = [sample_id for sample_id in found if sample_id.endswith("-1")]
    assert len(copies) == 1
    assert torch.equal(found[copies[0]], found[copies[0].removesuffix("-1")])
    assert len({tuple(view.flatten().tolist()[:50]) for view in found[copies[0]]}) == 3
    more = inference_views(store[0], preprocess, store.ids[0], InferenceViews(5, kind))
    assert torch.equal(more[:3], found[store.ids[0]])


@pytest.mark.parametrize("method", VIEWS)
def test_an_answer_does_not_depend_on_its_company(tiny_vit, method):
    images = pictures(2)
    _, fitted, _ = fit_toy(tiny_vit, method, images, options=options(method))
    store = load(images, DecodeLimits(), QUIET).store
    together = dict(zip(store.ids, predict_store(fitted.model, store, QUIET)["logits"], strict=True))
    alone = load([images[5]], DecodeLimits(), QUIET).store
    torch.testing.assert_close(predict_store(fitted.model, alone, QUIET)["logits"][0], together[alone.ids[0]], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", VIEWS)
def test_forwards_of_an_answer(tiny_vit, method):
    images = pictures(1)
    _, fitted, _ = fit_toy(tiny_vit, method, images, options=options(method))
    engine = fitted.model.engine
    before = engine.no_grad_forwards
    predict_store(fitted.model, load(images, DecodeLimits(), QUIET).store, QUIET)
    assert engine.no_grad_forwards - before == 4 * len(images)


@pytest.mark.parametrize("method", ["wca", "mta", "zero"])
def test_the_command_and_the_loaded_run_agree(tiny_vit, tmp_path, method):
    photos = write_photos(tmp_path / "photos", per_class=2)
    run = tmp_path / "run"
    classes = write_classes(tmp_path / "classes.txt")
    result = api.zero_shot(photos, classes, run, method=method, backbone=f"local:{tiny_vit}", options=options(method), console=QUIET)
    again = api.predict(run, photos, tmp_path / "again.csv", console=QUIET)
    assert [row.label for row in again] == [row.label for row in result.rows]
    assert all(math.isclose(a.probability, b.probability, abs_tol=1e-4) for a, b in zip(again, result.rows, strict=True))


def test_wca_weighs_crops_by_their_likeness_to_the_image():
    image, crops = unit(2, 6), unit(2, 4, 6, seed=1)
    expected = []
    for f, own in zip(image, crops, strict=True):
        weights = [math.exp(3 * float(crop @ f)) for crop in own]
        total = sum(w / sum(weights) * crop for w, crop in zip(weights, own, strict=True))
        expected.append(total / total.norm())
    torch.testing.assert_close(weighted_crops(image, crops, 3.0), torch.stack(expected))
    torch.testing.assert_close(weighted_crops(image, crops, 0.0), F.normalize(crops.mean(1), dim=-1))


def test_confident_views_vote_and_others_do_not():
    sure, unsure = 5.0, 0.5
    logits = torch.tensor([[[sure, 0, 0], [0, sure, 0], [sure, 0, 0], [0, 0, unsure], [0, 0, unsure]]])
    p = vote(logits, keep=3).exp()
    torch.testing.assert_close(p.sum(1), torch.ones(1))
    assert p[0].argsort(descending=True).tolist() == [0, 1, 2]
    # Two of three votes with weight 4/5, and the voters' mean posterior with weight 1/5.
    posterior = logits[0, :3].softmax(-1).mean(0)
    torch.testing.assert_close(p[0], 4 / 5 * torch.tensor([2 / 3, 1 / 3, 0]) + posterior / 5)


@pytest.mark.parametrize("seed", range(20))
def test_the_tie_break_never_outweighs_a_vote(seed):
    logits = 6 * torch.randn(30, 9, 4, generator=torch.Generator().manual_seed(seed))
    p = vote(logits, keep=9)
    votes = F.one_hot(logits.argmax(-1), 4).sum(1)
    assert (votes.gather(1, p.argmax(1, keepdim=True))[:, 0] == votes.amax(1)).all()


def plain_mode(features, posteriors, agreement, entropy, neighbours, rounds=10):
    """MTA of one image, as the equations have it."""
    n = len(features)
    distance = [[float((features[p] - features[q]).square().sum()) for q in range(n)] for p in range(n)]
    count = max(1, int(neighbours * (n - 1)))
    h2 = [sum(sorted(distance[p])[1 : count + 1]) / count for p in range(n)]
    mode, y = features[0], [1 / n] * n
    for _ in range(rounds):
        kernel = [math.exp(-float((features[p] - mode).square().sum()) / (2 * h2[p])) for p in range(n)]
        for _ in range(rounds):
            z = [(kernel[p] + agreement * sum(float(posteriors[p] @ posteriors[q]) * y[q] for q in range(n))) / entropy for p in range(n)]
            y = [math.exp(v - max(z)) for v in z]
            y = [v / sum(y) for v in y]
        mode = sum(y[p] * kernel[p] * features[p] for p in range(n))
        mode = mode / mode.norm()
    return mode, torch.tensor(y, dtype=torch.float64)


def test_the_mode_is_that_of_the_equations():
    features = F.normalize(unit(3, 1, 8) + 0.4 * unit(3, 7, 8, seed=1), dim=-1)
    posteriors = (20 * features @ unit(4, 8, seed=2).T).softmax(-1)
    mode, scores = find_mode(features, posteriors, agreement=4.0, entropy=0.2, neighbours=0.3)
    for b in range(3):
        expected, y = plain_mode(features[b], posteriors[b], 4.0, 0.2, 0.3)
        torch.testing.assert_close(mode[b], expected, atol=1e-8, rtol=0)
        torch.testing.assert_close(scores[b], y, atol=1e-8, rtol=0)


def test_the_mode_leaves_an_outlier_behind():
    features = F.normalize(torch.tensor([[[1.0, 0.1], [1, 0], [1, -0.1], [1, 0.05], [-1, 0.2]]], dtype=torch.float64), dim=-1)
    posteriors = torch.tensor([[[0.9, 0.1]] * 4 + [[0.1, 0.9]]], dtype=torch.float64)
    mode, scores = find_mode(features, posteriors, agreement=4.0, entropy=0.2, neighbours=0.5)
    assert scores[0, 4] < 0.01
    assert mode[0, 0] > 0.99


def test_identical_views_are_their_own_mode():
    features = unit(2, 1, 5).expand(2, 6, 5).contiguous()
    posteriors = torch.full((2, 6, 3), 1 / 3, dtype=torch.float64)
    mode, scores = find_mode(features, posteriors, agreement=4.0, entropy=0.2, neighbours=0.3)
    torch.testing.assert_close(mode, features[:, 0])
    torch.testing.assert_close(scores, torch.full((2, 6), 1 / 6, dtype=torch.float64))
    assert (bandwidths(features, 0.3) > 0).all()
