"""What ``predict`` counts of its rows as they come, and says of them in the end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from finelens.core.columns import Column
from finelens.core.console import Console
from finelens.core.schemas import UNLIKE_NOTE
from finelens.evaluation.none_of_these import share_of_none
from finelens.images.load import Tally
from finelens.protocol import ImageRecord
from finelens.runs.alarms import say_none
from finelens.runs.folder import RunFolder
from finelens.runs.model import Model
from finelens.runs.predict import Predictions
from finelens.runs.trust import Seen, hardly_knows
from finelens.storage.predictions import each_prediction


class Account:
    """What became of the files, how like those of the fit they look, how many belong to no class; a few numbers for each.

    Args:
        step: Rows of a photograph: 1, or 1 and its tiles, which stand behind it. A photograph is counted as one file.
    """

    def __init__(self, step: int = 1) -> None:
        self._step = step
        self._tally, self._seen = Tally(), Seen()
        self._likeness, self._doubt = Column(), Column()

    def take_up(self, written: Path) -> None:
        """Count rows that an earlier command wrote, as if they were new."""
        doubt: list[float] = []
        for place, row in enumerate(each_prediction(written)):
            if not place % self._step:
                notes = [note for note in row.reason.split("; ") if note != UNLIKE_NOTE]
                self._tally.add([ImageRecord(row.path, row.status, "; ".join(notes), None)])
            if row.none_of_these is not None:
                doubt.append(row.none_of_these)
        self._doubt.add(doubt)

    def add(self, part: Predictions, probabilities: np.ndarray, done: int) -> None:
        """Count a group.

        Args:
            part: What the model answered.
            probabilities: Calibrated, (N, C).
            done: Rows before it.
        """
        self._likeness.add(part.likeness)
        self._doubt.add(part.none_of_these)
        self._seen.add(part, probabilities)
        self._tally.add(part.records[-done % self._step :: self._step])

    def say_files(self, console: Console, earlier: int, *, counted: bool = True) -> None:
        """Say what became of the files, ``earlier`` of whose rows another command wrote; without their numbers where these are not ``counted``."""
        if counted:
            self._tally.say(console, -(-earlier // self._step))
        self._tally.say_notes(console)

    def say_answers(self, folder: RunFolder, model: Model, console: Console, *, earlier: int, own: bool) -> None:
        """Say how like the photographs of the fit these are, how many belong to no class, and how many are probably right.

        Args:
            folder: The run.
            model: Its model.
            console: What to say.
            earlier: Rows that another command wrote.
            own: Whether answers are among the run's own classes.
        """
        familiarity, likes = model.familiarity, torch.from_numpy(self._likeness.numbers).float()
        if len(likes) and familiarity is not None and (complaint := familiarity.complaint(likes)):
            # How far earlier ones were from the fit is not in the file.
            console.warn(f"of what this command read, {complaint}" if earlier else complaint)
        hardly = hardly_knows(folder)
        say_none(self._doubt.numbers, console, hardly=hardly)
        # What was read by a command that was stopped is not here any more.
        if own and not earlier:
            self._seen.say(folder, console, strangers=share_of_none(self._doubt.numbers), hardly=hardly)
