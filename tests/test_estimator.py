"""``LabelFreeClassifier`` keeps scikit-learn's promises."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score
from sklearn.utils import get_tags

import finelens
from finelens.errors import UserError
from finelens.estimator import LabelFreeClassifier
from tests.toy import CLASSES, pictures, quick

TRUTH = [name for name in CLASSES for _ in range(6)]


@pytest.fixture(scope="module")
def model(tiny_vit) -> LabelFreeClassifier:
    return LabelFreeClassifier(CLASSES, method="microclip", backbone=f"local:{tiny_vit}", options=quick(), seed=3).fit(pictures())


def test_parameters_survive_get_set_and_clone(tiny_vit):
    model = LabelFreeClassifier(CLASSES, method="cupl", backbone=f"local:{tiny_vit}", options={"training": {"precision": "float32"}}, seed=5)
    parameters = model.get_params()
    assert set(parameters) == {
        "classes",
        "method",
        "descriptions",
        "backbone",
        "seed",
        "device",
        "options",
        "minutes",
        "verbose",
        "prototypes",
        "extra_encoders",
    }
    twin = clone(model)
    assert twin is not model
    assert twin.get_params() == parameters
    assert model.set_params(seed=9, method="zero-shot") is model
    assert (model.get_params()["seed"], model.method) == (9, "zero-shot")
    assert twin.seed == 5
    with pytest.raises(ValueError, match="epochs"):
        model.set_params(epochs=3)


def test_is_a_classifier():
    assert is_classifier(LabelFreeClassifier())
    assert get_tags(LabelFreeClassifier()).estimator_type == "classifier"
    assert finelens.LabelFreeClassifier is LabelFreeClassifier


def test_fit_returns_itself_and_says_nothing(model, capsys, tiny_vit):
    other = LabelFreeClassifier(CLASSES, method="zero-shot", backbone=f"local:{tiny_vit}")
    assert other.fit(pictures(1)) is other
    assert capsys.readouterr() == ("", "")
    assert list(model.classes_) == sorted(CLASSES)


def test_probabilities_predictions_and_score_agree(model):
    p = model.predict_proba(pictures())
    assert p.shape == (24, 4)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-9)
    names = model.predict(pictures())
    assert list(names) == [model.classes_[i] for i in p.argmax(1)]
    assert model.score(pictures(), TRUTH) == accuracy_score(TRUTH, names)


def test_one_row_for_each_input_in_its_order(model, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not much")
    Image.fromarray(pictures()[0]).save(tmp_path / "good.png")
    mixed = [tmp_path / "broken.jpg", pictures()[9], tmp_path / "good.png", tmp_path / "missing.png"]
    p = model.predict_proba(mixed)
    assert np.isnan(p).all(1).tolist() == [True, False, False, True]
    np.testing.assert_allclose(p[1:3], model.predict_proba(pictures())[[9, 0]], atol=1e-6)
    names = model.predict(mixed)
    assert [names[0], names[3]] == ["", ""]
    assert set(names[1:3]) <= set(CLASSES)
    folder = model.predict_proba(tmp_path)
    assert folder.shape == (2, 4)
    assert np.isnan(folder[0]).all()


def test_nothing_readable_gives_rows_of_nan(model, tmp_path):
    (tmp_path / "a.jpg").write_text("no")
    assert np.isnan(model.predict_proba([tmp_path / "a.jpg", tmp_path / "b.jpg"])).all()
    assert list(model.predict([tmp_path / "a.jpg"])) == [""]


def test_no_images_give_no_rows(model):
    assert model.predict_proba([]).shape == (0, 4)
    assert model.predict([]).shape == (0,)
    with pytest.raises(UserError, match="with a length, got int"):
        model.predict(7)


def test_y_is_ignored(model, tiny_vit):
    again = clone(model)
    for y in (["nonsense"], np.arange(999), object()):
        again.fit(pictures(), y)
        np.testing.assert_array_equal(again.predict_proba(pictures()), model.predict_proba(pictures()))


def test_seed_is_used(model):
    other = clone(model).set_params(seed=4).fit(pictures())
    assert not np.array_equal(other.predict_proba(pictures()), model.predict_proba(pictures()))


def test_order_of_the_images_does_not_matter(model):
    other = clone(model).fit(pictures()[::-1])
    np.testing.assert_array_equal(other.predict_proba(pictures()), model.predict_proba(pictures()))


def test_class_file_and_descriptions_from_python(tiny_vit, classes):
    texts = {name: [f"something like {name}.", f"mostly {name.split()[0]}."] for name in CLASSES}
    given = {"method": "cupl", "backbone": f"local:{tiny_vit}"}
    from_file = LabelFreeClassifier(classes, descriptions=texts, **given).fit(pictures(1))
    from_list = LabelFreeClassifier(list(CLASSES), descriptions=texts, **given).fit(pictures(1))
    plain = LabelFreeClassifier(CLASSES, **given).fit(pictures(1))
    assert list(from_file.classes_) == sorted(CLASSES)
    np.testing.assert_array_equal(from_file.predict_proba(pictures()), from_list.predict_proba(pictures()))
    assert not np.allclose(from_file.predict_proba(pictures()), plain.predict_proba(pictures()))


def test_unfitted_and_misused(tiny_vit):
    with pytest.raises(NotFittedError):
        LabelFreeClassifier(CLASSES).predict(pictures(1))
    with pytest.raises(NotFittedError):
        LabelFreeClassifier(CLASSES).predict_proba(pictures(1))
    given = {"backbone": f"local:{tiny_vit}"}
    for model, images, words in (
        (LabelFreeClassifier(**given), pictures(1), "no class names"),
        (LabelFreeClassifier(CLASSES, method="nonsense", **given), pictures(1), "unknown method"),
        (LabelFreeClassifier(CLASSES, method="microclip", options={"training": {"epoch": 1}}, **given), pictures(1), "did you mean training.epochs"),
        (LabelFreeClassifier(CLASSES, **given), [1, 2], r"image \[0\] is int"),
        (LabelFreeClassifier(CLASSES, **given), 7, "must be a folder, a sequence or a data set with a length, got int"),
        (LabelFreeClassifier(CLASSES, **given), iter(pictures(1)), "got list_iterator"),
        (LabelFreeClassifier(CLASSES, **given), [], "no image"),
    ):
        with pytest.raises(UserError, match=words):
            model.fit(images)


@pytest.mark.parametrize("method", ["gda-em", "joint-gmm", "consensus"])
def test_a_fitted_classifier_can_be_pickled(method):
    rng = np.random.default_rng(0)
    prototypes = rng.standard_normal((3, 16))
    features = prototypes[rng.integers(0, 3, 60)] + 0.15 * rng.standard_normal((60, 16))
    model = LabelFreeClassifier(["a", "b", "c"], method=method).fit(features, prototypes=prototypes)
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.predict_proba(features), model.predict_proba(features))
    assert again.classifier_.model.method_options == model.classifier_.model.method_options
