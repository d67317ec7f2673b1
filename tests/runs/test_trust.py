"""What is said without labels where the starting model hardly knows the classes: nothing that it cannot know."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from finelens.core.console import Console
from finelens.evaluation.trust import Estimates
from finelens.runs import trust
from finelens.runs.alarms import say_none
from finelens.runs.predict import Predictions
from finelens.runs.trust import Seen

STRANGE = np.array([0.9] * 5 + [0.1] * 5)


@pytest.mark.parametrize("answers", [None, 0.7])
@pytest.mark.parametrize("hardly", [False, True])
def test_no_share_is_said_from_a_weak_start_without_answers(answers, hardly, monkeypatch, capsys):
    monkeypatch.setattr(trust, "estimates_of_run", lambda *_: Estimates(30, 0.36, answers=answers, answers_low=answers, answers_high=answers))
    seen = Seen()
    seen.add(Predictions([], {"logits": torch.zeros(30, 3)}, {}), np.full((30, 3), 1 / 3))
    seen.say(SimpleNamespace(), Console(), strangers=None, hardly=hardly)
    said = capsys.readouterr().err
    assert ("about 36%" in said) == (answers is not None or not hardly)
    assert ("nobody can say" in said) == (answers is None and hardly)


def test_strangers_of_a_weak_start_are_no_warning(capsys):
    assert "add the classes that it lacks" in str(say_none(STRANGE, Console()))
    capsys.readouterr()
    assert say_none(STRANGE, Console(), hardly=True) is None
    assert "5 of 10 photographs probably belong to none of the classes" in (said := capsys.readouterr().err)
    assert "that says little" in said
