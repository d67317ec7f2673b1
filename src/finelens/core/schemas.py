"""Names and versions of everything that finelens writes and reads back.

Changing a line here changes a file format: raise ``SCHEMA_VERSION`` and say so in the changelog.
"""

from __future__ import annotations

from typing import Final

from finelens._version import __version__

# Of the formats below, and of the program that writes them.
SCHEMA_VERSION: Final = 4
VERSION: Final = __version__

# predictions.csv: UTF-8, comma separated, one header row, one row per input file, in path order.
# ``path`` is relative to PHOTOS with forward slashes; ``top5`` is a JSON list of [class, probability] pairs; a cell that a spreadsheet would read
# as a formula (first character one of = + - @ tab or carriage return) is written with a leading apostrophe and read back without it.
# ``answered`` is ``yes`` where ``class`` is what a person said: then ``probability`` is 1, or ``class`` is empty for "none of these classes". Files
# of schema version 1 end before it. ``second_class`` and ``second_probability`` repeat the second pair of ``top5`` for those who read the file in a
# spreadsheet; files of schema version 2 end before them. ``none_of_these`` is above 0.5 where the photograph probably belongs to none of the classes,
# and empty where that was not asked; files of schema version 3 end before it.
FIRST_PREDICTION_COLUMNS: Final = ("path", "class", "probability", "margin", "top5", "zero_shot_class", "status", "reason")
SECOND_PREDICTION_COLUMNS: Final = (*FIRST_PREDICTION_COLUMNS, "answered")
THIRD_PREDICTION_COLUMNS: Final = (*SECOND_PREDICTION_COLUMNS, "second_class", "second_probability")
PREDICTION_COLUMNS: Final = (*THIRD_PREDICTION_COLUMNS, "none_of_these")

PROBABLY_NONE: Final = 0.5
# Decimals of that column: an order and a level, of which more would say nothing.
DOUBT_DIGITS: Final = 3

# ``OUT.sets.csv`` beside ``OUT.csv`` of ``predict --calibrate``: the same rows; ``set`` is a JSON list of classes, likeliest first.
SET_COLUMNS: Final = ("path", "set", "size", "status")

# A labels file for ``evaluate``: CSV with a header that has at least these columns; ``path`` is relative to TEST. A hints file for ``adapt`` has the
# same form with paths relative to PHOTOS, and an empty label says "none of these classes".
LABEL_COLUMNS: Final = ("path", "label")
# A hints file with the column ``why`` is a sheet of questions of ``review --ask N --csv``: there a row without a label is still to be answered.
WHY_COLUMN: Final = "why"
# Of a sheet of questions before it had a place for the answers.
OLDER_QUESTIONS: Final = ("path", WHY_COLUMN, "expected")
# A hints file of the served review also says how a label was given (``photo``, ``group``, or ``file`` where the review found it), who gave it, and
# for one of a group the path of the photograph that the group was around.
HOW_COLUMNS: Final = ("source", "by", "group")
TOLD_COLUMNS: Final = (*LABEL_COLUMNS, *HOW_COLUMNS)

# Status of an input file. Only ``ok`` rows carry a prediction; those that a person said are of no class carry none.
STATUSES: Final = ("ok", "corrupt", "too_large", "unsupported", "degenerate", "unreadable", "vanished")

# What a run's verdict can be, from the best to the worst; ``verdict`` of verdict.json.
VERDICTS: Final = ("improved", "cannot judge", "unclear", "do not use")

# In ``reason`` of what ``predict`` writes, for a photograph that looks unlike those of the fit.
UNLIKE_NOTE: Final = "unlike the photographs of the fit"

# What ``event`` of a line of events.jsonl can be; every line has a ``time`` too, and further fields depend on the event.
EVENTS: Final = (
    "start",
    "backbones",
    "choice",
    "images",
    "classes",
    "hints",
    "support",
    "extra",
    "stage",
    "guard",
    "epoch",
    "decision",
    "resume",
    "predictions",
    "warning",
    "end",
)

# Sections of ``--set section.key=value``; the keys are the fields of the frozen dataclasses in config.py.
CONFIG_SECTIONS: Final = ("training", "views", "text", "stage", "method")

# Files of a run folder.
CONFIG_FILE: Final = "config.json"
EVENTS_FILE: Final = "events.jsonl"
PREDICTIONS_FILE: Final = "predictions.csv"
# The photographs that signals and report are about, where they are not all.
PART_FILE: Final = "predictions_part.csv"
SIGNALS_FILE: Final = "signals.json"
VERDICT_FILE: Final = "verdict.json"
MAP_FILE: Final = "map.safetensors"
REPORT_FILE: Final = "report.html"
CARD_FILE: Final = "MODEL_CARD.md"
REVIEW_FILE: Final = "review.html"
HINTS_FILE: Final = "hints.csv"
GIVEN_HINTS_FILE: Final = "given_hints.csv"
# Ranks, groups and further names of the classes of a run whose class list is a table; its answers by rank, beside those by class.
TAXONOMY_FILE: Final = "taxonomy.json"
RANKS_FILE: Final = "predictions_ranks.csv"
# After ``path`` of RANKS_FILE come two columns a rank, its name and ``RANK_probability``, then these; ``sure_rank`` is ``name`` where the class is.
SURE_COLUMNS: Final = ("sure_rank", "sure_name", "sure_probability", "status")
# Answers of groups beside those of photographs, of a run with --group-by. ``copy_of`` is the photograph of the group that this one is a near-copy of.
GROUPS_FILE: Final = "predictions_groups.csv"
GROUP_COLUMNS: Final = ("path", "group", "group_size", "copy_of", "group_class", "group_probability", "class", "probability", "status")
# ``OUT_tiles.csv`` beside ``OUT.csv`` of ``predict --tiles``: a line for each class that a photograph shows, the surest first, and one without a
# class for a photograph that shows none. ``views`` of the ``read`` (tiles and the whole) name the class, ``best`` is the surest row of them, ``x`` to
# ``height`` where it is, in shares of the sides; ``refused`` of them probably belong to none of the classes; ``status`` is that of the photograph.
TILE_COLUMNS: Final = ("path", "class", "probability", "views", "best", "x", "y", "width", "height", "read", "refused", "status")
# Rows of a run with --in: photographs and boxes, what the file calls them, its class names and the answers of people in it.
TAKEN_FILE: Final = "given_in.json"
EVALUATION_FILE: Final = "evaluation.json"
MODEL_DIR: Final = "model"
CHECKPOINT_DIR: Final = "checkpoint"
FAILURE_DIR: Final = "failure"

# Files of a model folder.
MODEL_CONFIG_FILE: Final = "model.json"
MODEL_WEIGHTS_FILE: Final = "model.safetensors"
ZERO_SHOT_WEIGHTS_FILE: Final = "zero_shot.safetensors"

# Class means of ``evaluate``: a class with labelled images and no correct prediction counts as 0; a class without a labelled image is left out of the
# mean and listed under ``absent_classes``.
EVALUATION_KEYS: Final = ("accuracy", "class_mean_accuracy", "zero_shot_accuracy", "n")
