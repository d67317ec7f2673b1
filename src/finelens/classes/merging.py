"""Answers of several people about the same photographs: what they agree on, and where they contradict one another."""

from __future__ import annotations

import csv
import io
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finelens.classes.hint_doubts import many_blanks
from finelens.classes.hints import GROUP, How, how_given, plain, unsure_labels
from finelens.classes.labels import answer_rows
from finelens.classes.names import normalise
from finelens.classes.text_files import content_line, counted, quote
from finelens.core.console import Console
from finelens.errors import UserError
from finelens.storage.cells import escape_cell, for_spreadsheets
from finelens.storage.files import check_target, write_text

COLUMNS = ("path", "label", "by", "source", "group")
# The first line of a class list that answers made; a comment to who reads it.
LIST_START = "# class names from answers"


@dataclass(frozen=True)
class Said:
    """One answer in one file.

    Attributes:
        file: The file, as it was given.
        line: Its line there.
        label: The name; empty for "none of these".
    """

    file: str
    line: int
    label: str

    def __str__(self) -> str:
        return f"{quote(self.label) if self.label else 'none of the classes'} in {self.file}, line {self.line}"


@dataclass(frozen=True)
class Contradiction:
    """Different answers about one photograph.

    Attributes:
        path: The photograph.
        said: All answers about it.
        kept: What more than half of them say; None where no name has so many.
    """

    path: str
    said: tuple[Said, ...]
    kept: str | None

    def __str__(self) -> str:
        end = "left out" if self.kept is None else f"kept: {quote(self.kept) if self.kept else 'none of the classes'}, which most say"
        return f"{self.path}: {', but '.join(map(str, self.said))}; {end}"


@dataclass(frozen=True)
class Merged:
    """Answers of several files.

    Attributes:
        answers: Name and who said it, by path; the empty name for "none of these".
        contradictions: Photographs that are answered differently.
        told: How they were given, where a file says it; ``who`` of each is empty. One of a group where somebody named it so.
    """

    answers: dict[str, tuple[str, tuple[str, ...]]]
    contradictions: tuple[Contradiction, ...]
    told: Mapping[str, How] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The names that answers use, sorted: a class list."""
        return sorted({label for label, _ in self.answers.values() if label}, key=normalise)


def merge(files: Sequence[Path]) -> Merged:
    """Join hints files; names that differ only in case, hyphens or spaces are one, spelled as it is first.

    A photograph that files answer differently keeps the name that more than half of the answers give; without one it is left out.

    Raises:
        UserError: A file cannot be read, or holds no answer.
    """
    said: dict[str, list[Said]] = {}
    spelling: dict[str, str] = {}
    for file in files:
        for line, path, label in answer_rows(file, ()):
            name = spelling.setdefault(normalise(label), label)
            said.setdefault(plain(path), []).append(Said(str(file), line, name))
    answers, contradictions = {}, []
    for path, own in said.items():
        (label, votes), *others = Counter(one.label for one in own).most_common()
        kept = label if 2 * votes > len(own) else None
        if others:
            contradictions.append(Contradiction(path, tuple(own), kept))
        if kept is not None:
            answers[path] = kept, tuple(dict.fromkeys(one.file for one in own if one.label == kept))
    told = [(path, how._replace(who="")) for file in files for path, how in (how_given(file) or {}).items() if how.source or how.group]
    return Merged(answers, tuple(contradictions), _joined(told))


def _joined(told: Sequence[tuple[str, How]]) -> dict[str, How]:
    """One account of each photograph, the first that names a group before others; groups with a photograph in common become one."""
    first: dict[str, How] = {}
    for path, how in sorted(told, key=lambda one: (not one[1].group, one[1].source != GROUP)):
        first.setdefault(path, how)
    joined: dict[str, str] = {}

    def root(group: str) -> str:
        while group in joined:
            group = joined[group]
        return group

    for path, how in told:
        if how.group and (one := root(first[path].group)) != (other := root(how.group)):
            joined[other] = one
    return {path: how._replace(group=root(how.group)) if how.group else how for path, how in first.items()}


def _refuse_unsure(files: Sequence[Path], console: Console, *, listed: bool) -> None:
    """Say where a label is ``unknown`` or the like, which ``adapt`` refuses unless a list has it.

    Raises:
        UserError: A class list is made of the answers, which would have it.
    """
    for file in files:
        told = unsure_labels(file, {label: line for line, _, label in reversed(answer_rows(file, ())) if label})
        if told is not None and listed:
            raise UserError(f"{told}. If it is the name of a class, leave out --classes and write the list by hand")
        if told is not None:
            console.warn(f"{told}. adapt refuses it unless the class list has it")


def merged_csv(merged: Merged) -> str:
    """The content of a hints file with three more columns: the files that say so, separated by semicolons, how it was given, and its group."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for path, (label, by) in merged.answers.items():
        how = merged.told.get(path, How())
        writer.writerow(map(escape_cell, (path, label, ";".join(by), how.source, how.group)))
    return for_spreadsheets(text.getvalue())


def class_list(names: Sequence[str]) -> str:
    """The content of a class list of names that answers use."""
    return "".join(f"{line}\n" for line in (LIST_START, *map(content_line, names)))


def merge_hints(
    files: Sequence[str | Path], out: str | Path, *, classes: str | Path | None = None, console: Console | None = None, photos: str = "PHOTOS"
) -> Merged:
    """Join the answers of several people into one hints file; contradictions are said, and left out unless more than half agree.

    Args:
        files: Hints files.
        out: File to write, with a column ``by`` that keeps who said what.
        classes: Class list to write, of the names that the answers use; None writes none.
        console: What is said on the way.
        photos: What the command that is said last calls the photographs.

    Raises:
        UserError: A file that cannot be read, written or replaced, or no answer is left.
    """
    console, out = console or Console(), Path(out)
    if out.absolute() in [Path(file).absolute() for file in files]:
        raise UserError(f"{out} is one of the files to merge; give --out another name")
    check_target(out, ",".join(COLUMNS))
    if classes is not None:
        check_target(Path(classes), LIST_START)
    _refuse_unsure([Path(file) for file in files], console, listed=classes is not None)
    for file in files:
        for doubt in many_blanks(Path(file)):
            console.warn(f"{file}: {doubt}")
    merged = merge([Path(file) for file in files])
    for contradiction in merged.contradictions:
        console.warn(str(contradiction))
    if not merged.answers:
        raise UserError(f"no answer is left of {counted(len(files), 'file', 'files')}: all of them contradict one another; correct one of the files")
    write_text(out, merged_csv(merged))
    left_out = sum(one.kept is None for one in merged.contradictions)
    console.say(f"wrote {out}: {len(merged.answers)} answers of {counted(len(files), 'file', 'files')}, {left_out} left out as contradictions")
    listed = "CLASSES"
    if classes is not None:
        write_text(Path(classes), class_list(merged.names))
        console.say(f"wrote {classes}: {counted(len(merged.names), 'name', 'names')}")
        listed = str(classes)
    console.say(shlex.join(["finelens", "adapt", photos, "--classes", listed, "--hints", str(out), "--out", "run"]))
    return merged
