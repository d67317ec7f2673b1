"""Names of ImageNet's classes, and its variants: a folder for each class, named by its WordNet id, or by its place in the sorted ids."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from finelens.bench.sets.common import folder_part, mat_variable, text_lines
from finelens.bench.sets.data import DataSet, Part
from finelens.bench.sets.sealed import Labels
from finelens.classes.names import check_names, normalise
from finelens.errors import UserError
from finelens.images.discover import is_leftover

OWN_NAMES = "classnames.txt"
# The later ones win.
NAME_FILES = ("README.txt", "LOC_synset_mapping.txt")
# Crane, cardigan and maillot are the first synonyms of two classes each; no other is. These names are ours.
TOLD_APART = {
    "n02012849": "crane bird",
    "n03126707": "construction crane",
    "n02113186": "Cardigan Welsh corgi",
    "n02963159": "cardigan",
    "n03710637": "maillot",
    "n03710721": "one-piece swimsuit",
}
DEVKIT = "ILSVRC2012_devkit_t12/data"
Templates = tuple[str, ...] | None


def read_variant(name: str, folder: Path, images: Path, templates: Templates = None) -> DataSet:
    """A variant: test images only. Class names are those of the folder, of ``imagenet`` beside it, or of both.

    Args:
        name: Name of the set.
        folder: The set's folder, where its list of names lies.
        images: Folder with a folder for each class: ``WNID``, or its place in the sorted ids of all named classes.
        templates: Prompts of the set.

    Raises:
        UserError: Images or class names are missing.
    """
    imagenet = folder.parent / "imagenet"
    known = class_names(imagenet, folder, first=dict(synsets(imagenet).values()))
    folders = class_folders(images)
    if all(one.isdigit() for one in folders):
        ordered = sorted(known)
        outside = next((one for one in folders if int(one) >= len(ordered)), None)
        if outside is not None:
            raise UserError(f"{images / outside}: there are only {len(ordered)} class names; {_remedy(folder)}")
        wnids = [ordered[int(one)] for one in folders]
    else:
        wnids = folders
    test, left_out = folder_part(images, folders)
    split = f"all of {images.name}, no training part"
    return DataSet(name, named(wnids, known), Part([], Labels(np.zeros(0))), test, "authors", split, templates, left_out=left_out)


def class_names(*folders: Path, first: Mapping[str, str] | None = None) -> dict[str, str]:
    """Names by WordNet id from the files of folders: lines ``n01440764 tench, Tinca tinca``; other lines are passed over.

    Later folders win over earlier ones, and ``classnames.txt``, the user's own, over every other file.

    Of a list of synonyms the first is the name. Where two classes would share it, each takes our name if there is one, else its whole list; lines of
    ``classnames.txt`` are never replaced by our names.

    Args:
        folders: Where the files lie.
        first: Synonyms by WordNet id that any file overrules.
    """
    synonyms = dict(first or {})
    for folder in folders:
        for file in NAME_FILES:
            synonyms.update(_lines(folder / file))
    own = {wnid: name for folder in folders for wnid, name in _lines(folder / OWN_NAMES).items()}
    synonyms.update(own)
    groups: dict[str, list[str]] = defaultdict(list)
    for wnid, text in synonyms.items():
        groups[normalise(_first(text))].append(wnid)

    def name(wnid: str, text: str) -> str:
        if len(groups[normalise(_first(text))]) == 1:
            return _first(text)
        return text if wnid in own else TOLD_APART.get(wnid, text)

    return {wnid: name(wnid, text) for wnid, text in synonyms.items()}


def _lines(file: Path) -> dict[str, str]:
    """Names by WordNet id; none where the file is missing."""
    pairs = [line.partition(" ") for line in text_lines(file)] if file.is_file() else []
    return {wnid: name.strip() for wnid, _, name in pairs if is_wnid(wnid) and name.strip()}


def _first(text: str) -> str:
    return text.partition(",")[0].strip()


def find_file(folder: Path, file: str) -> Path | None:
    """A file of ImageNet's, where its folder or the development kit in it has it."""
    return next((path for place in (".", "val", DEVKIT, "data") if (path := folder / place / file).is_file()), None)


def synsets(folder: Path) -> dict[int, tuple[str, str]]:
    """WordNet id and words by the development kit's number of a class; empty without the kit.

    Raises:
        UserError: ``meta.mat`` is not that of the kit.
    """
    path = find_file(folder, "meta.mat")
    if path is None:
        return {}
    rows = mat_variable(path, "synsets")
    if not rows.dtype.names or not {"ILSVRC2012_ID", "WNID", "words", "num_children"} <= set(rows.dtype.names):
        raise UserError(f"{path}: synsets without ILSVRC2012_ID, WNID, words and num_children; take the file of the ILSVRC 2012 development kit")
    # Synsets with children are no classes of the challenge.
    return {int(row["ILSVRC2012_ID"]): (str(row["WNID"]), str(row["words"])) for row in rows if int(row["num_children"]) == 0}


def is_wnid(text: str) -> bool:
    """Whether a text has the form of a noun's WordNet id."""
    return len(text) == 9 and text[0] == "n" and text[1:].isascii() and text[1:].isdigit()


def class_folders(root: Path) -> list[str]:
    """Names of the folders in a folder, sorted.

    Raises:
        UserError: There is none.
    """
    found = sorted(path.name for path in root.iterdir() if path.is_dir() and not is_leftover(path.name))
    if not found:
        raise UserError(f"{root} holds no class folder; sort the images into folders named by WordNet id")
    return found


def named(wnids: list[str], known: Mapping[str, str]) -> tuple[str, ...]:
    """Names of classes; two that are equal are for the user to tell apart.

    Raises:
        UserError: A class has no name, or two have the same.
    """
    unnamed = next((wnid for wnid in wnids if wnid not in known), None)
    if unnamed is not None:
        raise UserError(f"class folder {unnamed} has no name; put a file classnames.txt beside the folders, with lines like {unnamed} NAME")
    by_form: dict[str, str] = {}
    for wnid in wnids:
        other = by_form.setdefault(normalise(known[wnid]), wnid)
        if other != wnid:
            raise UserError(f"classes {other} and {wnid} are both called {known[wnid]!r}; name them in classnames.txt, with lines like {wnid} NAME")
    return tuple(check_names([known[wnid] for wnid in wnids], source="class names of ImageNet"))


def _remedy(folder: Path) -> str:
    return f"put a file classnames.txt with a line WNID NAME for each class of ImageNet in {folder} or in {folder.parent / 'imagenet'}"
