"""Class names: reading and checking the list, and the one normal form by which names, folders and descriptions are matched."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from finelens.classes.class_lists import TABLE_SUFFIXES, names_in_table, refuse_other_than_names
from finelens.classes.text_files import counted, listing, plain_line, quote, read_lines, read_user_json
from finelens.core.options import nearest
from finelens.errors import UserError
from finelens.images.discover import display_name, is_leftover, visible_files

MAX_NAME_LENGTH = 200
CLASSES_JSON = "classes.json"

_HYPHENS = re.compile("[\u2010-\u2014\ufe58]")
_OUTER_HYPHENS = re.compile(r"(-*)(.*?)(-*)", re.DOTALL)
# A hyphen after a blank and before a digit is the sign of a number.
_INNER_HYPHEN = re.compile(r"(?<! )-|-(?!\d)")
_WHAT = "class file"


def normalise(name: str) -> str:
    """The form in which two names are compared.

    Compatibility composition (NFKC) and case folding as in the Unicode Standard, D146; invisible characters dropped; underscores, and hyphens between
    other characters, become spaces; white space is collapsed. Other punctuation stays, so ``C++``, ``C#`` and ``C`` differ; hyphens at either end
    stay, so ``-5`` and ``5`` differ, and so do signs of numbers, ``at -5`` and ``at 5``.

    Returns:
        The normal form; applying the function again changes nothing. Empty only for a name without a visible character.
    """
    if name.isascii():
        text = name.casefold()
    else:
        visible = "".join(char for char in name if unicodedata.category(char) != "Cf" and not "\ufe00" <= char <= "\ufe0f")
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFD", visible).casefold())
        text = _HYPHENS.sub("-", unicodedata.normalize("NFKC", text.casefold()))
    spaced = " ".join(text.replace("_", " ").split()) or "".join(text.split())
    outer = _OUTER_HYPHENS.fullmatch(spaced)
    assert outer is not None  # every string matches
    left, inner, right = outer.groups()
    return " ".join(f"{left}{_INNER_HYPHEN.sub(' ', inner)}{right}".split())


def match(names: Iterable[str], candidates: Iterable[str]) -> dict[str, str]:
    """Find for each name the candidate that is equal to it, or else the first with the same normal form.

    Returns:
        Name to candidate, in the order of ``names``; names without a counterpart are left out.
    """
    exact = dict.fromkeys(candidates)
    by_form: dict[str, str] = {}
    for candidate in exact:
        by_form.setdefault(normalise(candidate), candidate)
    found = {name: name if name in exact else by_form.get(normalise(name)) for name in names}
    return {name: candidate for name, candidate in found.items() if candidate is not None}


def read_class_file(path: str | Path) -> list[str]:
    """Read class names in the file's order.

    The file is text with one name a line, or, when it ends in ``.json``, a list of names or ``{"classes": [{"name": ..., "dir": ...}]}``, or a table,
    when it ends in ``.csv`` or ``.tsv``.

    Raises:
        UserError: The file cannot be read, its lines are evidently no plain names, or do not pass :func:`check_names`.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".json":
        names = _names_in_json(read_user_json(path, _WHAT), path)
        return check_names(names, source=f"{_WHAT} {quote(str(path))}")
    source = f"{_WHAT} {quote(str(path))}"
    table = suffix in TABLE_SUFFIXES
    if table:
        names, places = names_in_table(path, _WHAT)
    else:
        lines = read_lines(path, _WHAT)
        names, places = [line for _, line in lines], [f"line {number}" for number, _ in lines]
    refuse_other_than_names(names, source, None if table else Path(path))
    return check_names(names, source=source, places=places)


def _names_in_json(content: object, path: str | Path) -> list[str]:
    """Names of the two JSON forms; what is not a name is left for ``check_names`` to refuse."""
    if isinstance(content, list):
        return content
    entries = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise UserError(f'{_WHAT} {quote(str(path))} must be a JSON list of names or {{"classes": [{{"name": ...}}]}}')
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise UserError(f'{_WHAT} {quote(str(path))}: entry {number} of "classes" must be an object with a "name" text')
    return [entry["name"] for entry in entries]


def check_names(names: Sequence[str], *, source: str = "class names", places: Sequence[str] | None = None) -> list[str]:
    """Check a list of class names.

    Args:
        names: The names.
        source: Where they come from, for messages.
        places: Place of each name in the source, for messages (``line 3``); its number by default.

    Returns:
        The names without surrounding white space, otherwise as written.

    Raises:
        UserError: No names; a name that is not text, too long, invisible, or has control characters; names equal after normalisation.
    """
    if isinstance(names, str):
        raise UserError(f"{source}: one text {quote(names)} was given where a list of names is needed")
    if not names:
        raise UserError(f"{source}: there are no class names; write one name a line")
    places = places or [f"entry {number}" for number in range(1, len(names) + 1)]
    checked = [_check_name(name, f"{source}, {place}") for name, place in zip(names, places, strict=True)]
    _refuse_duplicates(checked, places, source)
    return checked


def _check_name(name: object, where: str) -> str:
    doubt, form = "; is this a class list?", "one plain name a line"
    line = plain_line(name, where, called="name", named="the name ", most=MAX_NAME_LENGTH, doubt=doubt, form=form)
    if not normalise(line):
        raise UserError(f"{where}: the name has no visible character; write a name or remove the entry")
    return line


def _refuse_duplicates(names: Sequence[str], places: Sequence[str], source: str) -> None:
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(normalise(name), []).append(index)
    repeated = [", ".join(f"{quote(names[i])} ({places[i]})" for i in group) for group in groups.values() if len(group) > 1]
    if repeated:
        shown = "; ".join(repeated[:5]) + (f"; and {len(repeated) - 5} more" if len(repeated) > 5 else "")
        raise UserError(
            f"{source}: names that are equal up to case, spaces, hyphens and underscores: {shown}; keep one of each; "
            "if they are different classes, write what tells them apart into the names ('capital A', 'small a'): models hardly see it otherwise"
        )


def name_warnings(names: Sequence[str]) -> list[str]:
    """Lines about checked names that are allowed but unlikely to be meant: a single class, or names that differ in punctuation only."""
    warnings = []
    if len(names) == 1:
        one_a_line = "; names stand one a line, not behind commas" if "," in names[0] else ""
        warnings.append(
            f"only one class, {quote(names[0])}: every image will be given this class; add the classes it should be told from{one_a_line}"
        )
    groups: dict[str, list[str]] = {}
    for name in names:
        bare = "".join(char for char in normalise(name) if char.isalnum() or unicodedata.category(char).startswith("M"))
        if bare:
            groups.setdefault(bare, []).append(quote(name))
    twins = [" and ".join(group) for group in groups.values() if len(group) > 1]
    if twins:
        warnings.append(f"class names that differ in punctuation or spaces only, and may be one class: {listing(twins)}")
    return warnings


def folder_classes(
    test_dir: str | Path, class_names: Sequence[str], *, classes_json: str | Path | None = None, left_out: list[str] | None = None
) -> dict[str, str]:
    """Find the class of each folder in ``test_dir``.

    A folder belongs to the class that a ``classes.json`` gives it (in ``test_dir``, else beside it; ``{"classes": [{"dir": ..., "name": ...}]}``), or
    else to the class of the same name. The order of folders and of names plays no part.

    Args:
        test_dir: Folder of class folders. Hidden folders and leftovers of systems are skipped.
        class_names: Checked class names.
        classes_json: Such a file in another place.
        left_out: Takes a line for each folder of no class; None refuses them. Refused all the same are folders of which none has a class, and names
            that are nearly those of classes without a folder.

    Returns:
        Folder name to class name, in order of folder names.

    Raises:
        UserError: ``test_dir`` cannot be read or has no folders, a folder belongs to no class, or ``classes.json`` is malformed.
    """
    return classes_of_folders(test_dir, _folders(Path(test_dir)), class_names, classes_json=classes_json, left_out=left_out)


def classes_of_folders(
    test_dir: str | Path,
    folders: Sequence[str],
    class_names: Sequence[str],
    *,
    classes_json: str | Path | None = None,
    left_out: list[str] | None = None,
) -> dict[str, str]:
    """Class of each folder, for folders that are known by name; ``test_dir`` may be a feature file, beside which a ``classes.json`` may lie.

    Raises:
        UserError: There are no folders, one belongs to no class, or ``classes.json`` is malformed.
    """
    if not folders:
        raise UserError(f"the paths stored in {quote(str(test_dir))} lie in no folders; give the labels as a CSV file")
    given = _names_of_folders(Path(test_dir), classes_json)
    known = match(folders, given)
    named = {folder: given[known[folder]] for folder in folders if folder in known}
    by_file, by_name = match(named.values(), class_names), match(folders, class_names)
    result = {folder: by_file.get(named.get(folder, ""), by_name.get(folder)) for folder in folders}
    unmatched = [folder for folder, name in result.items() if name is None]
    # A name that is nearly that of a class without a folder is a slip, not an extra folder.
    slips = [folder for folder in unmatched if (near := nearest(folder, class_names, normalise)) is not None and near not in result.values()]
    if unmatched and (left_out is None or slips or len(unmatched) == len(result)):
        raise UserError(_unmatched_message(Path(test_dir), unmatched, class_names))
    if left_out is not None:
        left_out += [f"folder {quote(folder)} is of no class" for folder in unmatched]
    return {folder: name for folder, name in result.items() if name is not None}


def _folders(test_dir: Path) -> list[str]:
    try:
        with os.scandir(test_dir) as entries:
            found = [entry for entry in entries if entry.is_dir() and not is_leftover(entry.name)]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"test folder {quote(str(test_dir))} cannot be listed: {reason}") from None
    # Of linked folders those count that are followed: one that leads back is no class.
    linked = any(entry.is_symlink() for entry in found)
    followed = {file.name.partition("/")[0] for file in visible_files(test_dir)} if linked else set()
    folders = sorted(entry.name for entry in found if not entry.is_symlink() or display_name(entry.name) in followed)
    if not folders:
        raise UserError(f"test folder {quote(str(test_dir))} has no class folders; put the images of each class in a folder of its name")
    return folders


def _names_of_folders(test_dir: Path, classes_json: str | Path | None) -> dict[str, str]:
    """The ``dir`` to ``name`` table of a classes.json; empty when there is none or its entries have no ``dir``."""
    places = [Path(classes_json)] if classes_json is not None else [test_dir / CLASSES_JSON, test_dir.resolve().parent / CLASSES_JSON]
    path = next((place for place in places if classes_json is not None or place.is_file()), None)
    content = [] if path is None else read_user_json(path, _WHAT)
    if path is None or isinstance(content, list):
        return {}
    _names_in_json(content, path)
    table: dict[str, str] = {}
    for number, entry in enumerate(content["classes"], start=1):
        folder = entry.get("dir")
        if folder is None:
            continue
        if not isinstance(folder, str) or folder in table:
            raise UserError(f'{_WHAT} {quote(str(path))}: entry {number} of "classes" has a "dir" that is not text or repeats another')
        table[folder] = entry["name"]
    return table


def _unmatched_message(test_dir: Path, unmatched: Sequence[str], class_names: Sequence[str]) -> str:
    hints = []
    for folder in unmatched[:5]:
        near = nearest(folder, class_names, normalise)
        hints.append(quote(folder) + (f" (nearest class: {quote(near)})" if near else ""))
    more = f" and {len(unmatched) - 5} more" if len(unmatched) > 5 else ""
    return (
        f"test folder {quote(str(test_dir))}: {counted(len(unmatched), 'folder', 'folders')} of no class: {', '.join(hints)}{more}; "
        f'rename them or list them in a {CLASSES_JSON}: {{"classes": [{{"dir": "folder", "name": "class"}}]}}'
    )
