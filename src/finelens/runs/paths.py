"""The names of what a run's folder holds."""

from __future__ import annotations

from pathlib import Path

from finelens.core.schemas import (
    CARD_FILE,
    CHECKPOINT_DIR,
    CONFIG_FILE,
    EVALUATION_FILE,
    EVENTS_FILE,
    FAILURE_DIR,
    GIVEN_HINTS_FILE,
    GROUPS_FILE,
    HINTS_FILE,
    MAP_FILE,
    MODEL_DIR,
    PART_FILE,
    PREDICTIONS_FILE,
    RANKS_FILE,
    REPORT_FILE,
    REVIEW_FILE,
    SIGNALS_FILE,
    TAKEN_FILE,
    TAXONOMY_FILE,
    VERDICT_FILE,
)

LOCK_FILE = ".finelens.lock"

# What ``--overwrite`` removes, in this order: the configuration goes last, so that a folder half emptied is still known as ours.
OWN_ENTRIES = (
    CHECKPOINT_DIR,
    FAILURE_DIR,
    MODEL_DIR,
    PREDICTIONS_FILE,
    PART_FILE,
    RANKS_FILE,
    GROUPS_FILE,
    SIGNALS_FILE,
    MAP_FILE,
    VERDICT_FILE,
    EVALUATION_FILE,
    REPORT_FILE,
    CARD_FILE,
    REVIEW_FILE,
    GIVEN_HINTS_FILE,
    TAKEN_FILE,
    TAXONOMY_FILE,
    EVENTS_FILE,
    CONFIG_FILE,
)


class RunPaths:
    """Paths of what a run writes.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def config_path(self) -> Path:
        """``config.json``."""
        return self.path / CONFIG_FILE

    @property
    def events_path(self) -> Path:
        """``events.jsonl``."""
        return self.path / EVENTS_FILE

    @property
    def predictions_path(self) -> Path:
        """``predictions.csv``."""
        return self.path / PREDICTIONS_FILE

    @property
    def part_path(self) -> Path:
        """``predictions_part.csv``, of a run of very many photographs: those that signals and report are about."""
        return self.path / PART_FILE

    @property
    def measured_path(self) -> Path:
        """The predictions that signals and report are about."""
        return self.part_path if self.part_path.is_file() else self.predictions_path

    @property
    def model_dir(self) -> Path:
        """Folder of the adapted model."""
        return self.path / MODEL_DIR

    @property
    def checkpoint_dir(self) -> Path:
        """Folder of the last checkpoint."""
        return self.path / CHECKPOINT_DIR

    @property
    def failure_dir(self) -> Path:
        """Folder of what a step that went wrong left to look into."""
        return self.path / FAILURE_DIR

    @property
    def report_path(self) -> Path:
        """``report.html``."""
        return self.path / REPORT_FILE

    @property
    def signals_path(self) -> Path:
        """``signals.json``."""
        return self.path / SIGNALS_FILE

    @property
    def map_path(self) -> Path:
        """``map.safetensors``: where the photographs lie on the map of the report."""
        return self.path / MAP_FILE

    @property
    def verdict_path(self) -> Path:
        """``verdict.json``: whether to trust the run, for programs."""
        return self.path / VERDICT_FILE

    @property
    def evaluation_path(self) -> Path:
        """``evaluation.json``: what labels said, once there were any."""
        return self.path / EVALUATION_FILE

    @property
    def card_path(self) -> Path:
        """``MODEL_CARD.md``."""
        return self.path / CARD_FILE

    @property
    def review_path(self) -> Path:
        """``review.html``."""
        return self.path / REVIEW_FILE

    @property
    def hints_path(self) -> Path:
        """``hints.csv``: a person's work, which ``--overwrite`` leaves alone."""
        return self.path / HINTS_FILE

    @property
    def given_hints_path(self) -> Path:
        """``given_hints.csv``: the hints that the run was started with, whatever becomes of the user's file."""
        return self.path / GIVEN_HINTS_FILE

    @property
    def taken_path(self) -> Path:
        """``given_in.json``: the rows that the run was started with, whatever becomes of the file of ``--in``."""
        return self.path / TAKEN_FILE

    @property
    def taxonomy_path(self) -> Path:
        """``taxonomy.json``: ranks and further names of the classes, where their list was a table."""
        return self.path / TAXONOMY_FILE

    @property
    def ranks_path(self) -> Path:
        """``predictions_ranks.csv``: the answers by rank."""
        return self.path / RANKS_FILE

    @property
    def groups_path(self) -> Path:
        """``predictions_groups.csv``: answers of groups beside those of photographs."""
        return self.path / GROUPS_FILE
