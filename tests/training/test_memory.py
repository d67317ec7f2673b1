"""Numbers about pseudo-labels, and that a resumed run logs the same ones."""

from __future__ import annotations

import pytest
import torch

from finelens.protocol import StepOutput
from finelens.training.loop import Interrupted
from finelens.training.memory import PseudoLabelMemory
from tests.toy import Log, stop_after
from tests.training import test_loop
from tests.training.tasks import LeastSquares


def test_shares_by_hand():
    memory = PseudoLabelMemory(5, torch.tensor([0, 1, 2, 2, 0]))
    assert memory.end_epoch() == {}
    memory.remember(torch.tensor([0, 1]), torch.tensor([0, 0]))
    memory.remember(torch.tensor([4, 2]), torch.tensor([0, 2]))
    memory.remember(torch.tensor([3]), None)
    assert memory.end_epoch() == {"pseudo_largest": 3 / 4, "zero_shot_agreement": 3 / 4}
    memory.remember(torch.arange(5), torch.tensor([0, 1, 2, 2, 1]))
    assert memory.end_epoch() == {"pseudo_largest": 2 / 5, "zero_shot_agreement": 4 / 5, "pseudo_stability": 2 / 4}


class Labelling(LeastSquares):
    """Pseudo-labels that depend on the epoch and the image."""

    def step(self, batch, epoch, step_in_epoch):
        output = super().step(batch, epoch, step_in_epoch)
        return StepOutput(output.loss, output.log, (batch.index * (epoch + 1)) % 3)


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_resumed_runs_log_the_same(tmp_path, monkeypatch, steps):
    monkeypatch.setattr(test_loop, "LeastSquares", Labelling)
    reference, log = Log(), Log()
    test_loop.make_trainer(run=reference, zero_shot=torch.zeros(10, dtype=torch.int64)).run()
    given = {"run": log, "checkpoints": tmp_path, "zero_shot": torch.zeros(10, dtype=torch.int64)}
    with pytest.raises(Interrupted):
        test_loop.make_trainer(**given, should_stop=stop_after(steps)).run()
    again = test_loop.make_trainer(**given)
    again.resume()
    again.run()
    assert log.events == reference.events
    assert [event.get("pseudo_stability") is None for event in log.events] == [True, False, False]
