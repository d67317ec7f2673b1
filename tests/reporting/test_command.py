"""The command in the report gives the run again."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from finelens.reporting.sections.cost import command, options
from finelens.runs.config import parse_assignments
from finelens.runs.resolve import make_config


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("microclip", {}),
        ("microclip", {"training": {"scope": "last-3-norm", "cached_prefix": 2}, "method": {"crops": 4}}),
        # Common defaults that are not the method's own.
        ("coop", {"training": {"epochs": 15, "lr": 1e-4}}),
        ("upl", {"method": {"sets": 1}}),
        ("dpa", {"method": {"preset": "pets"}}),
        ("dpa", {"method": {"preset": "pets", "image_share": 0.5}, "training": {"lr": 1e-4, "epochs": 10}}),
        ("stata", {"training": {"precision": "float32"}}),
    ],
)
def test_the_command_gives_the_same_configuration(method, given):
    config = make_config("adapt", "photos", method, given, backbone="embedded", classes_file="classes.txt")
    words = shlex.split(command(config, Path("out")))
    assignments = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    again = make_config("adapt", "photos", method, parse_assignments(assignments), backbone="embedded", classes_file="classes.txt")
    assert again == config


def test_options_that_a_method_was_published_with_are_not_called_changed():
    config = make_config("adapt", "photos", "coop", {"training": {"precision": "float32"}}, backbone="embedded")
    changed = [name for name, _, is_changed in options(config) if is_changed]
    assert changed == ["training.precision"]
