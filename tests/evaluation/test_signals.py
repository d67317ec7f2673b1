from __future__ import annotations

import dataclasses
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from finelens.evaluation.answered import Answered
from finelens.evaluation.collapse import balance, collapse_warning
from finelens.evaluation.confusion import estimate_confusion
from finelens.evaluation.signals import Signals, class_typicality, measure, read_measured, signals_of, write_measured
from finelens.evaluation.trust import estimates
from finelens.evaluation.verdict import verdict
from finelens.storage.predictions import PredictionRow

CLASSES = ("a", "b", "c", "d")


def rows(labels: str, zero_shot: str) -> list[PredictionRow]:
    return [PredictionRow(f"{i}.jpg", label=x, zero_shot_class=y) for i, (x, y) in enumerate(zip(labels, zero_shot, strict=True))]


def test_balance_counts_changes_and_unused_classes_and_leaves_unreadable_files_out():
    found = [*rows("aabc", "abbb"), PredictionRow("x.jpg", status="corrupt")]
    assert balance(found, CLASSES) == "2 of 4 images got another class than from the unadapted model (zero-shot); 1 of 4 classes hold none"
    assert balance(found, CLASSES[:3]).endswith("; no class is left empty")


def test_one_class_taking_over_is_a_warning():
    warning = collapse_warning(rows("aaaaabcd", "abbccddd"), CLASSES)
    assert warning is not None
    assert "5 of 8 images went to class 'a' (unadapted model: 1)" in warning


def test_a_class_that_was_large_before_is_no_collapse():
    # What does not train has no rate to lower.
    assert "training" not in (collapse_warning(rows("aaaaabcd", "abbccddd"), CLASSES, trains=False) or "training")
    assert collapse_warning(rows("aaaaabcd", "aaabbccd"), CLASSES) is None
    assert collapse_warning(rows("abcdabcd", "abcdabcd"), CLASSES) is None
    assert collapse_warning(rows("aaaa", "bbbb"), ("a", "b")) is None
    assert collapse_warning([], CLASSES) is None


# Signals and the verdict.


def logits_of(labels: list[int], classes: int = 4, sure: float = 5.0) -> torch.Tensor:
    return sure * torch.nn.functional.one_hot(torch.tensor(labels), classes).double()


def test_signals_by_hand():
    first = logits_of([0, 1, 2, 3, 0, 1, 2, 3])
    first[4:] /= 5  # the second half is less sure
    now = logits_of([0, 1, 2, 0, 1, 1, 1, 1])
    found = signals_of(now.softmax(1), first.softmax(1), logits_of([0, 0, 2, 3, 0, 1, 2, 2]))
    assert (found.images, found.classes) == (8, 4)
    assert found.agreement == 4 / 8
    assert found.kept == 3 / 4
    assert found.text_agreement == 6 / 8
    assert (found.unused, found.unused_zero_shot) == (1, 0)
    assert found.largest == 5 / 8
    entropy = -sum(p * math.log(p) for p in (2 / 8, 5 / 8, 1 / 8))
    assert found.spread == pytest.approx(math.exp(entropy) / 4)
    assert found.spread_zero_shot == pytest.approx(1)
    assert found.margin == pytest.approx((math.exp(5) - 1) / (math.exp(5) + 3))


def test_typicality_leaves_the_image_itself_out():
    features = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]]), dim=1)
    found = class_typicality(features, torch.tensor([0, 0, 0, 1]), 2)
    expected = features[0].double() @ torch.nn.functional.normalize((features[1] + features[2]).double(), dim=0)
    assert found[0] == pytest.approx(expected.item())
    assert math.isnan(found[3])


def test_confusion_is_shared_mass():
    p = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.6, 0.4, 0.0], [0.0, 0.0, 0.0, 1.0]])
    pairs = estimate_confusion(p)
    assert [(pair.first, pair.second) for pair in pairs] == [(0, 1), (1, 2)]
    assert [pair.score for pair in pairs] == pytest.approx([0.25, 0.24], rel=1e-5)


HEALTHY = {
    **dict.fromkeys([f.name for f in dataclasses.fields(Signals)], 0.5),
    "classes": 10,
    "images": 100,
    "agreement": 0.7,
    "kept": 0.9,
    "text_agreement": 0.8,
    "spread": 0.8,
    "spread_zero_shot": 0.8,
    "largest": 0.2,
    "name_sense": 9.0,
    "further_encoders": 0,
}


def judged(**changes) -> str:
    return verdict(Signals(**{**HEALTHY, **changes})).level


def test_verdicts():
    assert judged() == "improved"
    assert judged(kept=0.5) == "do not use"
    assert judged(kept=0.7) == "unclear"
    assert judged(text_agreement=0.4) == "unclear"
    assert judged(spread=0.3) == "do not use"
    same = Signals(**{**HEALTHY, "agreement": 1.0, "kept": 1.0})
    assert verdict(same).line.startswith("cannot judge. These are the answers of the unadapted model")
    assert verdict(same, labelled=True).line.startswith("cannot judge. But for what a person named, these are the answers")


def test_without_a_second_opinion_nothing_is_improved():
    alone = {"text_agreement": None, "descriptions_information": None}
    found = verdict(Signals(**{**HEALTHY, **alone}))
    assert found.level == "cannot judge"
    assert all(way in found.sentence for way in ("a descriptions file", "named by you", "labels"))
    assert [reason.code for reason in found.reasons].count("no-second-opinion") == 1
    # What speaks against a run is said all the same.
    assert judged(**alone, kept=0.5) == "do not use"
    assert judged(**alone, largest=0.5) == "unclear"
    # Each of the three is a second opinion.
    assert verdict(Signals(**{**HEALTHY, **alone}), labelled=True).level == "improved"
    told = {count: Answered(count, 0, (), 1, "the unadapted model") for count in (4, 5)}
    levels = {count: verdict(Signals(**{**HEALTHY, **alone}), labelled=True, answered=own).level for count, own in told.items()}
    assert levels == {4: "cannot judge", 5: "improved"}
    # That photographs are of no class says nothing of what is known of the classes.
    none = Answered(40, 36, (), 1, "the unadapted model")
    assert verdict(Signals(**{**HEALTHY, **alone}), labelled=True, answered=none).level == "cannot judge"
    assert judged(**alone, further_encoders=1) == "improved"
    assert judged(**alone, further_encoders=1, kept=0.8) == "unclear"


def test_where_the_start_knew_little_its_answers_are_no_measure_of_what_a_person_taught():
    hardly = {"templates_information": 0.05, "descriptions_information": None, "text_agreement": None, "kept": 0.2}
    found = verdict(Signals(**{**HEALTHY, **hardly}), labelled=True)
    assert found.level == "unclear"
    assert "no measure of what was learnt from a person" in found.sentence
    assert verdict(Signals(**{**HEALTHY, "kept": 0.2}), labelled=True).level == "do not use"


@pytest.mark.parametrize(("knows", "kind"), [(0.3, "bad"), (0.05, "note")])
def test_strangers_are_believed_as_far_as_the_start_knows_the_classes(knows, kind):
    signals = Signals(**{**HEALTHY, "templates_information": knows, "descriptions_information": None, "none_of_these": 0.5})
    (reason,) = [reason for reason in verdict(signals).reasons if reason.code == "none-of-these"]
    assert reason.kind == kind
    assert ("says little" in reason.text) == (kind == "note")


def test_a_class_that_holds_far_more_than_its_share_is_looked_at():
    assert judged(largest=0.39) == "improved"
    assert judged(largest=0.4) == "unclear"
    # Of three classes one may well hold half.
    assert judged(classes=3, largest=0.5) == "improved"
    assert judged(classes=3, largest=0.7) == "unclear"
    assert judged(classes=2, largest=0.9) == "improved"


def test_few_photographs_are_too_few():
    assert judged(images=50) == "improved"
    # Nor are they enough where there is hardly one a class.
    assert judged(images=199, classes=100) == "cannot judge"
    assert judged(images=200, classes=100) == "improved"
    found = verdict(Signals(**{**HEALTHY, "images": 49}))
    assert (found.level, found.sentence) == ("cannot judge", "49 photographs are too few to judge 10 classes without labels; 50 would do.")
    # With names alone more photographs would not be enough either.
    names_alone = verdict(Signals(**{**HEALTHY, "images": 49, "text_agreement": None}))
    assert names_alone.sentence.endswith("; it takes 50, and a second opinion: a descriptions file, 5 photographs named by you, or labels.")
    # What few photographs overturn says nothing either; a collapse does.
    assert judged(images=49, kept=0.3) == "cannot judge"
    assert judged(images=49, spread=0.3) == "do not use"


def test_what_a_model_that_knows_little_was_surest_of_is_no_measure():
    assert judged(kept=0.3) == "do not use"
    assert judged(kept=0.3, templates_information=0.1) == "unclear"


def test_names_that_say_nothing():
    alone = {"text_agreement": None, "descriptions_information": None}
    for sense, level in ((0.9, "do not use"), (1.0, "unclear"), (2.4, "unclear")):
        found = verdict(Signals(**{**HEALTHY, **alone, "name_sense": sense}))
        assert found.level == level
        assert "made-up words" in found.sentence
    # Descriptions may speak for names that are codes; of two classes nothing can be told.
    assert judged(name_sense=2.4) == "improved"
    assert any(reason.code == "names" for reason in verdict(Signals(**{**HEALTHY, "name_sense": 2.4})).reasons)
    assert judged(**alone, name_sense=2.4, classes=2) == "cannot judge"
    assert judged(**alone, name_sense=2.5) == "cannot judge"


def measured(low: float, high: float, right: float = 0.6, described: float | None = 0.5) -> dict[str, object]:
    return {
        "n": 100,
        "accuracy": right,
        "zero_shot_accuracy": 0.5,
        "description_ensemble_accuracy": described,
        "difference_interval": [low, high],
    }


@pytest.mark.parametrize(
    ("evaluation", "level"),
    [
        (measured(0.02, 0.2), "improved"),
        (measured(0.02, 0.2, described=None), "improved"),
        (measured(-0.01, 0.2), "unclear"),
        (measured(-0.2, -0.01, right=0.4), "do not use"),
        # Above the class names alone, below the descriptions.
        (measured(0.02, 0.2, described=0.65), "unclear"),
    ],
)
def test_what_labels_say_goes_first(evaluation, level):
    for changes in ({}, {"kept": 0.3}, {"text_agreement": None, "descriptions_information": None}):
        signals = Signals(**{**HEALTHY, **changes})
        found = verdict(signals, evaluation=evaluation)
        assert (found.level, found.measured) == (level, True)
        assert found.sentence.startswith("Measured on 100 labelled photographs")
        assert ("descriptions" in found.sentence) == (evaluation["description_ensemble_accuracy"] is not None)
        free = next(reason.text for reason in found.reasons if reason.code == "without-labels")
        assert free == f"Without the labels the verdict was: {verdict(signals).level}."
        assert not any("second opinion" in reason.text for reason in found.reasons)


def test_a_method_that_trains_nothing_is_not_told_what_training_needs():
    texts = {trains: " ".join(r.text for r in verdict(Signals(**HEALTHY), trains=trains).reasons) for trains in (True, False)}
    assert "training needs" in texts[True]
    assert "training needs" not in texts[False]


def test_an_alarm_decides():
    usual = dict.fromkeys([f.name for f in dataclasses.fields(Signals)], 0.5)
    found = verdict(Signals(**{**usual, "kept": 1.0, "classes": 9}), ["it burns"])
    assert found.level == "do not use"
    assert found.reasons[0].text == "It burns."


def test_signals_come_back_as_written(tmp_path):
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    features = torch.nn.functional.normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(1)), dim=1)
    measured = measure(logits, logits.flip(0), None, features, features[:3], [f"id{i}" for i in range(6)], [5, 4, 3, 2, 1, 0])
    assert measured.ids == ("id5", "id4", "id3", "id2", "id1", "id0")
    write_measured(tmp_path / "signals.json", measured)
    assert read_measured(tmp_path / "signals.json") == measured


def test_answers_decide_where_chance_does_not_explain_them():
    def answered(gain: float) -> Answered:
        found = Answered(40, 0, (), 30, "the model without answers", 0.7, 0.6, 0.8, 8)
        return replace(found, gain=gain, gain_low=gain - 0.1, gain_high=gain + 0.1)

    signals = Signals(**{**HEALTHY, "largest": 0.9})
    free = verdict(signals, labelled=True)
    assert free.level == "unclear"
    better, chance, worse = (verdict(signals, labelled=True, answered=answered(gain)) for gain in (0.3, 0.05, -0.2))
    assert (better.level, chance.level, worse.level) == ("improved", "unclear", "do not use")
    assert better.sentence.startswith("By the answers of a person about 70% are right; against the unadapted model that is +30 points (+20 to +40")
    assert [reason.code for reason in better.reasons[:2]] == ["answers", "without-answers"]
    assert chance.sentence == free.sentence
    # Beside any verdict it is no contradiction: it says by what the verdict goes.
    assert chance.reasons[-1].text.endswith("the verdict goes by the other signs, and more answers would tell.")
    assert (better.shown, chance.shown, worse.shown) == (True, False, True)
    assert not better.measured


@pytest.mark.parametrize(("unnamed", "level", "kind"), [(0.6, "unclear", "bad"), (0.1, "improved", "note")])
def test_where_most_classes_have_no_name_nothing_has_improved(unnamed, level, kind):
    told = Answered(10, 0, (), 5, "the unadapted model", 0.81, 0.6, 0.95, 3, gain=0.4, gain_low=0.2, gain_high=0.6, unnamed=unnamed)
    found = verdict(Signals(**HEALTHY), labelled=True, answered=told)
    assert found.level == level
    assert [reason.kind for reason in found.reasons if reason.code == "unnamed"] == [kind]
    # No accuracy is told without it.
    accuracies = [text for text in (found.sentence, *(reason.text for reason in found.reasons)) if "81%" in text]
    assert accuracies
    assert all("nobody has named" in text for text in accuracies)
    # A run that its answers did not test as well.
    assert verdict(Signals(**HEALTHY), labelled=True, answered=replace(told, gain=None)).level == level
    assert "of others" in estimates(np.array([0.8, 0.9]), np.array([0, 1]), [], answered=told).line(None)
