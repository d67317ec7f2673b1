"""The label-free temperature: against its definition, where it must be known, and in a run."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import finelens
from finelens import api
from finelens.bench.rows.measures import measure
from finelens.errors import UserError
from finelens.evaluation.calibration import HIGHEST, LOWEST, confidence, label_free_temperature, reference_confidence
from finelens.evaluation.metrics import ece
from finelens.evaluation.signals import nearest_images, neighbour_support
from finelens.storage.predictions import read_predictions, softmax
from tests.toy import CLASSES, QUIET, options_for, write_classes, write_photos


def toy(n: int = 300, classes: int = 5, scale: float = 3.0, seed: int = 0):
    """Calibrated logits (N, C), labels drawn from their own softmax, and three neighbours each."""
    rng = np.random.default_rng(seed)
    z = scale * rng.normal(size=(n, classes))
    y = (softmax(z).cumsum(1) > rng.random((n, 1))).argmax(1)
    return torch.from_numpy(z), y, torch.from_numpy(rng.integers(0, n, (n, 3)))


def test_mean_confidence_equals_that_of_the_reference_written_out():
    z, _, near = toy()
    u, w = toy(seed=1)[0], toy(seed=2, scale=1.0)[0]
    p, pu, pw = softmax(z.float()), softmax(u), softmax(w)
    expected = np.mean([((pu[i] + pw[i]) / 2 + p[near[i]].mean(0)).max() / 2 for i in range(len(z))])
    assert reference_confidence(z, [u, w], near) == pytest.approx(expected, abs=1e-5)
    t = label_free_temperature(z, [u, w], near)
    assert np.mean(softmax(z.numpy() / t).max(1)) == pytest.approx(expected, abs=1e-4)


def test_confidence_falls_with_temperature_and_equals_the_largest_probability():
    z, _, _ = toy()
    values = [confidence(z, t) for t in (0.1, 0.5, 1.0, 2.0, 10.0)]
    assert values == sorted(values, reverse=True)
    assert values[2] == pytest.approx(softmax(z.numpy()).max(1).mean())


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_chunks_do_not_matter(chunk, monkeypatch):
    z, _, near = toy()
    whole = label_free_temperature(z, [0.5 * z], near)
    monkeypatch.setattr("finelens.evaluation.calibration.CHUNK", chunk)
    assert label_free_temperature(z, [0.5 * z], near) == pytest.approx(whole, rel=1e-9)


def test_unadapted_model_with_agreeing_neighbours_keeps_its_scale():
    z, _, _ = toy()
    itself = torch.arange(len(z))[:, None]
    assert label_free_temperature(z, [z], itself) == pytest.approx(1.0, abs=1e-4)


def test_overconfident_copy_of_a_calibrated_model_is_mended():
    u, _, _ = toy(100)
    rng = np.random.default_rng(1)
    # Neighbours are images of the same kind on which the sure model decides at random.
    kinds = u.repeat(20, 1)
    y = (softmax(kinds).cumsum(1) > rng.random((2000, 1))).argmax(1)
    z = 5 * (kinds + torch.from_numpy(rng.gumbel(size=kinds.shape)))
    near = (torch.arange(2000)[:, None] + 100 * torch.arange(1, 11)) % 2000
    t = label_free_temperature(z, [kinds], near)
    assert t > 2
    assert ece(y, softmax(z.numpy() / t)) < 0.5 * ece(y, softmax(z.numpy()))


def test_answers_do_not_move_and_labels_are_no_argument():
    z, _, near = toy()
    t = label_free_temperature(z, [0.1 * z], near)
    assert (z / t).argmax(1).equal(z.argmax(1))


def test_bounds_and_degenerate_inputs():
    z, _, near = toy()
    flat = torch.zeros_like(z)
    assert label_free_temperature(100 * z, [flat], near) <= HIGHEST
    assert label_free_temperature(flat, [z], near) == LOWEST
    one_hot = torch.eye(5).repeat(60, 1)
    assert label_free_temperature(1e-3 * one_hot, [1000 * one_hot], torch.arange(300)[:, None]) == LOWEST
    assert label_free_temperature(z, [z], near[:, :0]) == 1
    assert label_free_temperature(z[:, :1], [z[:, :1]], near) == 1
    assert label_free_temperature(z * math.nan, [z], near) == 1
    assert label_free_temperature(z[:1], [z[:1]], near[:1]) == 1


def test_neighbours_found_before_give_the_same_support():
    x = torch.nn.functional.normalize(torch.randn(60, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    p = toy(60)[0].softmax(1)
    near = nearest_images(x, 5)
    assert near.shape == (60, 6)
    assert not (near == torch.arange(60)[:, None]).any()
    assert neighbour_support(x, p, near).equal(neighbour_support(x, p))


def test_benchmark_measures_calibration_where_there_is_a_temperature():
    z, y, _ = toy()
    logits = {"logits": 4 * z.numpy()}
    zero_shot = {"templates": z.numpy(), "descriptions": z.numpy()}
    names = [str(i) for i in range(5)]
    plain, _ = measure(y, logits, zero_shot, names)
    found, _ = measure(y, logits, zero_shot, names, 4.0)
    assert "calibrated_ece" not in plain
    assert found["ece"] == plain["ece"]
    assert found["calibrated_ece"] == pytest.approx(found["zero_shot_ece"])
    assert found["calibrated_nll"] == pytest.approx(found["zero_shot_nll"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_vit):
    """The same run, calibrated and not."""
    folder = tmp_path_factory.mktemp("calibrated")
    photos, classes = write_photos(folder / "photos"), write_classes(folder / "classes.txt", CLASSES)
    for name, calibration in (("with", True), ("without", False)):
        given = {"backbone": f"local:{tiny_vit}", "method": "stata", "options": options_for("stata"), "console": QUIET}
        api.adapt(photos, classes, folder / name, calibration=calibration, **given)
    return folder


def test_a_run_divides_its_logits_and_keeps_its_answers(runs):
    calibrated, plain = (read_predictions(runs / name / "predictions.csv") for name in ("with", "without"))
    assert [row.label for row in calibrated] == [row.label for row in plain]
    model = json.loads((runs / "with" / "model" / "model.json").read_text())
    assert model["temperature"] != 1
    assert json.loads((runs / "without" / "model" / "model.json").read_text())["temperature"] == 1
    raw = np.log(finelens.load(runs / "without").predict_proba(runs / "photos"))
    expected = softmax(raw / model["temperature"])
    assert finelens.load(runs / "with").predict_proba(runs / "photos") == pytest.approx(expected, abs=1e-5)
    assert [row.probability for row in calibrated] == pytest.approx(expected.max(1), abs=1e-5)


def test_report_and_card_say_what_the_probabilities_are(runs):
    for name, said, other in (("with", "calibrated without labels", "not calibrated"), ("without", "not calibrated", "calibrated without labels,")):
        for file in ("report.html", "MODEL_CARD.md"):
            text = (runs / name / file).read_text()
            assert said in text
            assert other not in text


@pytest.mark.parametrize("value", ["0", "-1", "NaN", '"warm"', "null"])
def test_damaged_temperature_is_refused(runs, tmp_path, value):
    import shutil

    run = shutil.copytree(runs / "with", tmp_path / "run")
    path = run / "model" / "model.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "temperature": "?"}).replace('"?"', value))
    with pytest.raises(UserError):
        finelens.load(run)
