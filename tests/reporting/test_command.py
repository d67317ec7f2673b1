"""The command in the report gives the run again."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finelens.engine.device import choose_precision
from finelens.reporting.sections.cost import command, next_command, options
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
    # A run writes down the precision that it took, asked for or not.
    assert changed == []
    assert "--set training.precision=float32" in command(config, Path("out"))


def test_the_next_round_keeps_all_but_hints_and_folder_and_another_method_has_options_of_its_own():
    # Not what this machine takes anyhow.
    usual_here = choose_precision("auto", torch.device("cpu")).name
    training = {"epochs": 3, "precision": "float32" if usual_here == "bfloat16" else "bfloat16"}
    given = {"training": training, "method": {"preset": "pets"}, "views": {"crop_low": 0.4}, "stage": {"name": "clip-refine", "lr": 1e-4}}
    config = make_config("adapt", "photos", "dpa", given, backbone="embedded", classes_file="names.txt", hints_file="old.csv", group_by="folder")
    config = replace(config, rank_floor=0.7, calibration=False)

    def words(text):
        return sorted(shlex.split(text))

    usual = command(replace(config, hints_file="new.csv"), Path("run-2"))
    assert "--set stage.lr=0.0001" in usual
    assert "--group-by folder" in usual
    assert words(next_command(config, "dpa", "new.csv", Path("run-2"))) == words(usual)
    other = next_command(config, "auto", "new.csv", Path("run-2"))
    assert {word for word in words(usual) if word not in words(other)} == {
        "dpa",
        "training.epochs=3",
        "method.preset=pets",
        "method.image_share=0.01",
    }
    assert {word for word in words(other) if word not in words(usual)} == {"auto"}


def test_the_next_round_repeats_nothing_that_nobody_set():
    config = make_config("adapt", "photos", "consensus", {}, backbone="embedded", classes_file="names.txt")
    assert next_command(config, "consensus", "new.csv", Path("run-2")) == "finelens adapt photos --classes names.txt --out run-2 --hints new.csv"
    # The line that gives the same bits again says what this machine chose.
    assert "--set training.precision=" in command(config, Path("run"))
    assert "--method consensus" in command(config, Path("run"))
