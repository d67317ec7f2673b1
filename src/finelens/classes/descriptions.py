"""Class descriptions: reading files of sentences and aligning them with class names, by name and never by position."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finelens.classes.alignment_report import DescriptionReport, TruncatedText
from finelens.classes.names import normalise
from finelens.classes.text_files import control_character, listing, quote, read_user_json
from finelens.errors import UserError

MAX_TEXT_LENGTH = 20_000
_SURROGATE = re.compile("[\ud800-\udfff]")
_WHAT = "description file"
_FILE_KEYS = frozenset({"dataset", "kind", "classes", "source"})
_CLASS_KEYS = frozenset({"name", "aliases", "texts"})
_WORST = 5


@dataclass(frozen=True)
class ClassTexts:
    """One entry of a description file.

    Attributes:
        name: The entry's class name, as written.
        texts: Its texts, as written.
        aliases: Other names of the same class.
    """

    name: str
    texts: tuple[str, ...]
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class RawDescriptions:
    """A description file whose shape has been checked: no two entries share a name or alias.

    Attributes:
        entries: In file order, which has no meaning.
        source: What the entries come from, for messages.
    """

    entries: tuple[ClassTexts, ...]
    source: str


def load_descriptions(source: str | Path | Mapping[str, Any]) -> RawDescriptions:
    """Read descriptions from a JSON file or a dictionary.

    Two forms are read: ``{class: [sentence, ...]}`` and ``{"classes": [{"name": ..., "aliases": [...], "texts": [...]}]}``; the second may also have
    ``dataset``, ``source`` and ``kind``, which must be ``sentence``.

    Raises:
        UserError: The file cannot be read or has another shape; the message names the key. Names or aliases that are equal after normalisation.
    """
    if isinstance(source, Mapping):
        label, content = "descriptions", dict(source)
    else:
        label, content = f"{_WHAT} {quote(str(source))}", read_user_json(source, _WHAT)
    if not isinstance(content, dict):
        raise UserError(f"{label} must be a JSON object {{class: [sentence, ...]}}, not a {_kind(content)}")
    classes = content.get("classes")
    # A class may itself be called "classes": its value is then a list of texts.
    if isinstance(classes, list) and any(isinstance(entry, dict) for entry in classes):
        entries = _entries_of_structured(content, label)
    else:
        entries = [_entry_of_pair(key, value, f"{label}, key {quote(str(key))}") for key, value in content.items()]
    if not entries:
        raise UserError(f"{label} has no classes; write {{class: [sentence, ...]}}")
    _refuse_ambiguous(entries, label)
    return RawDescriptions(tuple(entries), label)


def _entry_of_pair(key: object, value: object, where: str) -> ClassTexts:
    return ClassTexts(_name(key, where), _texts(value, where))


def _entries_of_structured(content: dict[str, Any], label: str) -> list[ClassTexts]:
    unknown = sorted(set(map(str, content)) - _FILE_KEYS)
    if unknown:
        raise UserError(f"{label} has unknown keys {listing([quote(key) for key in unknown])}; known are {', '.join(sorted(_FILE_KEYS))}")
    if content.get("kind", "sentence") != "sentence":
        raise UserError(f'{label} has "kind" {quote(str(content["kind"]))}; only "sentence" is supported: write whole sentences that name the class')
    entries = []
    for number, entry in enumerate(content["classes"], start=1):
        where = f'{label}, entry {number} of "classes"'
        if not isinstance(entry, dict) or "name" not in entry or "texts" not in entry or set(map(str, entry)) - _CLASS_KEYS:
            raise UserError(f'{where} must be an object with "name", "texts" and, if wanted, "aliases"')
        name = _name(entry["name"], where)
        aliases = _texts(entry.get("aliases", []), f"{where} ({quote(name)}), aliases")
        entries.append(ClassTexts(name, _texts(entry["texts"], f"{where} ({quote(name)}), texts"), tuple(_name(alias, where) for alias in aliases)))
    return entries


def _kind(value: object) -> str:
    """What JSON calls the type of a value."""
    names = {dict: "JSON object", list: "list", str: "text", bool: "true/false value", int: "number", float: "number", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _name(value: object, where: str) -> str:
    if not isinstance(value, str) or not normalise(value) or control_character(value.strip()):
        raise UserError(f"{where}: a class name must be text with visible characters and without control characters")
    return value.strip()


def _texts(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise UserError(f"{where}: expected a list of sentences, found a {_kind(value)}; put it in [ ]")
    for number, text in enumerate(value, start=1):
        if not isinstance(text, str):
            raise UserError(f"{where}: item {number} is a {_kind(text)}, not a sentence in quotation marks")
        if len(text) > MAX_TEXT_LENGTH:
            raise UserError(f"{where}: item {number} has {len(text)} characters, at most {MAX_TEXT_LENGTH} are allowed; split it into sentences")
        if _SURROGATE.search(text):
            raise UserError(f"{where}: item {number} contains half of a surrogate pair, which is not a character; remove it")
    return tuple(value)


def _refuse_ambiguous(entries: Sequence[ClassTexts], label: str) -> None:
    """A name or alias must lead to one entry; an entry may repeat its own."""
    owner: dict[str, tuple[int, str]] = {}
    clashes = []
    for index, entry in enumerate(entries):
        for name in (entry.name, *entry.aliases):
            first, spelled = owner.setdefault(normalise(name), (index, name))
            if first != index:
                clashes.append(f"{quote(spelled)} and {quote(name)}")
    if clashes:
        raise UserError(
            f"{label} has entries whose names or aliases are equal up to case, spaces, hyphens and underscores: {listing(clashes)}; merge them"
        )


def clean_texts(texts: Sequence[str]) -> list[str]:
    """Split texts at line breaks, collapse white space and control characters, drop what is then empty. Repetitions stay."""
    lines = [line for text in texts for line in text.splitlines()]
    printable = ["".join(" " if char < " " or "\x7f" <= char <= "\x9f" else char for char in line) for line in lines]
    return [joined for joined in (" ".join(line.split()) for line in printable) if joined]


def align(
    class_names: Sequence[str],
    raw: RawDescriptions,
    *,
    count_tokens: Callable[[Sequence[str]], list[int]] | None = None,
    context_length: int | None = None,
) -> tuple[tuple[tuple[str, ...], ...], DescriptionReport]:
    """Give each class its sentences.

    An entry serves one class at most: the class that has its name, else the first that has one of its aliases. Two classes with the same texts could
    not be told apart.

    Args:
        class_names: Checked class names.
        raw: Descriptions.
        count_tokens: Length of texts in tokens, special tokens included; with ``context_length``, texts that the model will cut are reported.
        context_length: Longest text of the model in tokens.

    Returns:
        One tuple of sentences per class, empty where there is none, in the order of ``class_names``; and what was found on the way.

    Raises:
        UserError: No class has any text.
    """
    chosen = _choose_entries(class_names, raw.entries)
    cleaned = {name: clean_texts(entry.texts) for name, entry in chosen.items()}
    unique = {name: tuple(dict.fromkeys(texts)) for name, texts in cleaned.items()}
    if not any(unique.values()):
        raise UserError(_nothing_matched(class_names, raw, bool(chosen)))
    used = {entry.name for entry in chosen.values()}
    truncated, worst = _find_truncated(unique, count_tokens, context_length)
    report = DescriptionReport(
        source=raw.source,
        classes=len(class_names),
        matched=tuple(name for name, texts in unique.items() if texts),
        missing=tuple(name for name in class_names if name not in chosen),
        empty=tuple(name for name, texts in unique.items() if not texts),
        extra=tuple(entry.name for entry in raw.entries if entry.name not in used),
        sentences=sum(map(len, unique.values())),
        duplicate={name: len(texts) - len(unique[name]) for name, texts in cleaned.items() if len(texts) > len(unique[name])},
        identical=_find_identical(unique),
        context_length=context_length if count_tokens is not None else None,
        truncated=truncated,
        worst=worst,
    )
    return tuple(unique.get(name, ()) for name in class_names), report


def _choose_entries(class_names: Sequence[str], entries: Sequence[ClassTexts]) -> dict[str, ClassTexts]:
    """Class name to entry, in class order, without the classes that have none."""
    by_name = {normalise(entry.name): entry for entry in entries}
    by_alias = {normalise(alias): entry for entry in entries for alias in entry.aliases}
    forms = {name: normalise(name) for name in class_names}
    chosen = {name: by_name[form] for name, form in forms.items() if form in by_name}
    taken = {entry.name for entry in chosen.values()}
    for name, form in forms.items():
        entry = by_alias.get(form)
        if name not in chosen and entry is not None and entry.name not in taken:
            chosen[name] = entry
            taken.add(entry.name)
    return {name: chosen[name] for name in class_names if name in chosen}


def _find_identical(unique: Mapping[str, tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """Groups of classes whose sentences are exactly the same."""
    groups: dict[frozenset[str], list[str]] = {}
    for name, texts in unique.items():
        if texts:
            groups.setdefault(frozenset(texts), []).append(name)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def _find_truncated(
    unique: Mapping[str, tuple[str, ...]], count_tokens: Callable[[Sequence[str]], list[int]] | None, context_length: int | None
) -> tuple[int, tuple[TruncatedText, ...]]:
    if count_tokens is None or context_length is None:
        return 0, ()
    pairs = [(name, text) for name, texts in unique.items() for text in texts]
    lengths = count_tokens([text for _, text in pairs])
    cut = [TruncatedText(name, tokens, text) for (name, text), tokens in zip(pairs, lengths, strict=True) if tokens > context_length]
    return len(cut), tuple(sorted(cut, key=lambda text: -text.tokens)[:_WORST])


def _nothing_matched(class_names: Sequence[str], raw: RawDescriptions, any_entry: bool) -> str:
    if any_entry:
        return f"{raw.source} has entries for these classes, but no text in any of them; add sentences or leave the descriptions out"
    ours, theirs = listing([quote(name) for name in class_names], 3), listing([quote(entry.name) for entry in raw.entries], 3)
    return (
        f"{raw.source} describes none of the {len(class_names)} classes: the classes are {ours}; the file has {theirs}; is it for another data set?"
    )
