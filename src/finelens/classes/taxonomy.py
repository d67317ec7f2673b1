"""Class lists that are tables of taxa: ranks, groups and further names of each class, and the forms in which other tools keep them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finelens.classes.class_lists import TABLE_SUFFIXES
from finelens.classes.hand_tables import SAVE, spreadsheet_text, without_mark
from finelens.classes.names import check_names, normalise, read_class_file
from finelens.classes.text_files import is_comment, quote, read_utf8, split_lines
from finelens.errors import UserError
from finelens.storage.cells import unescape_cell
from finelens.storage.files import read_saved, write_json

# From the widest to the narrowest. The group is the user's own and stands in no tree.
RANKS = ("kingdom", "phylum", "class", "order", "family", "subfamily", "tribe", "genus", "species")
GROUP = "group"
_COMMON, _SCIENTIFIC = ("common_name", "vernacularname", "vernacular_name", "english_name"), ("scientific_name", "scientificname", "binomial")
_NAMES = ("name", "class_name", "classname")
_SYNONYMS = ("synonyms", "synonym", "aliases")
_GROUPS = (GROUP, "iconic_taxon_name")
_SEMICOLONS = 6
_GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_SEPARATORS = re.compile(r"\s*[|;]\s*")
_WHAT = "class file"


@dataclass(frozen=True)
class Taxonomy:
    """What a table says of classes beside their names.

    Attributes:
        names: C class names.
        ranks: R ranks that any of them has, the widest first; ``group`` comes last where there is one.
        places: Name of each class at each rank, (C, R); empty where it has none.
        synonyms: Further names of each class, which are texts for the model too.
    """

    names: tuple[str, ...]
    ranks: tuple[str, ...]
    places: tuple[tuple[str, ...], ...]
    synonyms: tuple[tuple[str, ...], ...]

    def values(self, rank: str) -> tuple[list[str], list[int]]:
        """The names at a rank in the order of the classes, and which of them each class has; -1 where it has none."""
        own = [place[self.ranks.index(rank)] for place in self.places]
        found = list(dict.fromkeys(name for name in own if name))
        at = {name: i for i, name in enumerate(found)}
        return found, [at.get(name, -1) for name in own]

    def with_names(self, names: Sequence[str]) -> Taxonomy:
        """This taxonomy for a list of classes of which some may be new: those have no place."""
        at = {name: i for i, name in enumerate(self.names)}
        nowhere = ("",) * len(self.ranks)
        places = tuple(self.places[at[name]] if name in at else nowhere for name in names)
        return Taxonomy(tuple(names), self.ranks, places, tuple(self.synonyms[at[name]] if name in at else () for name in names))

    def save(self, path: Path) -> None:
        """Write it into a run folder."""
        classes = [{"name": name, "places": place, "synonyms": own} for name, place, own in zip(self.names, self.places, self.synonyms, strict=True)]
        write_json(path, {"ranks": self.ranks, "classes": classes})


def saved_taxonomy(path: Path) -> Taxonomy | None:
    """What :meth:`Taxonomy.save` wrote; None where there is nothing.

    Raises:
        UserError: The file is damaged.
    """
    return read_saved(path, _of_document)


def _of_document(document: Any) -> Taxonomy:
    ranks, own = tuple(map(str, document["ranks"])), document["classes"]
    places = tuple(tuple(map(str, entry["places"])) for entry in own)
    if any(len(place) != len(ranks) for place in places):
        raise ValueError("a class has another number of places than there are ranks")
    return Taxonomy(tuple(entry["name"] for entry in own), ranks, places, tuple(tuple(entry["synonyms"]) for entry in own))


def read_class_list(path: str | Path) -> tuple[list[str], Taxonomy | None]:
    """Read class names, and their taxonomy where the file has one.

    Tables with a header (comma, semicolon or tab) whose columns are ranks, ``group``, ``synonyms``, ``common_name`` or ``scientific_name``: one's
    own, an export of iNaturalist's observations, the taxonomy mapping of LILA, a GBIF occurrence list; and SpeciesNet labels (seven fields with
    semicolons). Rows about one class are one class. Any other file is a plain list, see :func:`finelens.classes.names.read_class_file`.

    Raises:
        UserError: It cannot be read, one class has two places, or the names do not pass ``check_names``.
    """
    rows = _table(path) if Path(path).suffix.lower() != ".json" else []
    if not rows:
        return read_class_file(path), None
    source = f"{_WHAT} {quote(str(path))}"
    return _taxonomy([(line, _row(row)) for line, row in rows], source)


@dataclass(frozen=True)
class _Taxon:
    name: str
    places: Mapping[str, str]
    texts: tuple[str, ...]


def _table(path: str | Path) -> list[tuple[int, dict[str, str]]]:
    """Line and cells by lower-case name of column, of a file that says more than names; empty for any other."""
    text = spreadsheet_text(path, _WHAT) if Path(path).suffix.lower() in TABLE_SUFFIXES else read_utf8(path, _WHAT)
    lines = [line for line in split_lines(text) if line.strip()]
    if not lines:
        return []
    if all(line.count(";") == _SEMICOLONS for line in lines) and any(_GUID.match(line) for line in lines):
        columns = ("id", *RANKS[2:5], "genus", "species_epithet", "common_name")
        return [(number, dict(zip(columns, map(str.strip, line.split(";")), strict=True))) for number, line in enumerate(lines, start=1)]
    told, body, before = without_mark(text)
    first = next((line for line in split_lines(body) if line.strip()), "")
    mark = told or max("\t,;", key=first.count)
    header = [cell.strip().lower().replace(" ", "_") for cell in next(csv.reader([first], delimiter=mark), [])]
    known = {*RANKS, *_GROUPS, *_SYNONYMS, *_COMMON, *_SCIENTIFIC} & set(header)
    if len(header) < 2 or not known - {"class"} or not {*_NAMES, *_COMMON, *_SCIENTIFIC, "species", "query"} & set(header):
        return []
    # GBIF's tables are not quoted, and hold quotation marks.
    plain = "gbifid" in header and mark == "\t"
    reader = csv.reader(io.StringIO(body, newline=""), delimiter=mark, quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL)
    rows: list[tuple[int, dict[str, str]]] = []
    try:
        for cells in reader:
            if not any(map(str.strip, cells)) or is_comment(cells[0].strip()):
                continue
            if len(cells) != len(header):
                where = f"{_WHAT} {quote(str(path))}, line {before + reader.line_num}"
                raise UserError(f"{where}: expected {len(header)} cells, got {len(cells)}; quote commas")
            rows.append((before + reader.line_num, {column: unescape_cell(cell.strip()) for column, cell in zip(header, cells, strict=True)}))
    except csv.Error as error:
        raise UserError(f"{_WHAT} {quote(str(path))}, line {before + reader.line_num}: {error}; {SAVE}") from error
    return rows[1:]


def _row(row: Mapping[str, str]) -> _Taxon:
    """A line of a table as a taxon; without a name where it names none."""

    def first(columns: Sequence[str]) -> str:
        return next((row[column] for column in columns if row.get(column)), "")

    places = {rank: row.get(rank) or row.get(f"taxon_{rank}_name", "") for rank in RANKS}
    genus, epithet = places["genus"], row.get("species_epithet", "")
    if epithet and genus:
        places["species"] = f"{genus} {epithet}"
    # Some tables hold the epithet only.
    elif genus and places["species"] and " " not in places["species"] and places["species"][0].islower():
        places["species"] = f"{genus} {places['species']}"
    places[GROUP] = first(_GROUPS)
    common, scientific = first(_COMMON), first(_SCIENTIFIC)
    # GBIF writes the author behind the name; its column species has none.
    scientific = places["species"] if "gbifid" in row and places["species"] else scientific
    narrowest = next((places[rank] for rank in reversed(RANKS) if places[rank]), "")
    name = first(_NAMES) or common or scientific or narrowest or row.get("query", "")
    synonyms = [text for text in _SEPARATORS.split(first(_SYNONYMS)) if text]
    return _Taxon(name, places, tuple(dict.fromkeys(text for text in (common, scientific, *synonyms) if text)))


def _taxonomy(taxa: Sequence[tuple[int, _Taxon]], source: str) -> tuple[list[str], Taxonomy]:
    merged: dict[str, tuple[int, _Taxon]] = {}
    for line, taxon in taxa:
        if not taxon.name:
            continue
        at, known = merged.setdefault(normalise(taxon.name), (line, taxon))
        clash = next((rank for rank, own in taxon.places.items() if own and known.places[rank] and own != known.places[rank]), None)
        if clash is not None:
            first, second = (quote(own.places[clash]) for own in (known, taxon))
            raise UserError(
                f"{source}: {quote(taxon.name)} is of {clash} {first} in line {at} and {second} in line {line}; "
                "correct one, or tell the two apart by their names"
            )
        places = {rank: known.places[rank] or own for rank, own in taxon.places.items()}
        merged[normalise(taxon.name)] = at, _Taxon(known.name, places, tuple(dict.fromkeys((*known.texts, *taxon.texts))))
    kept = list(merged.values())
    names = check_names([taxon.name for _, taxon in kept], source=source, places=[f"line {line}" for line, _ in kept])
    ranks = tuple(rank for rank in (*RANKS, GROUP) if any(taxon.places[rank] for _, taxon in kept))
    found = tuple(tuple(taxon.places[rank] for rank in ranks) for _, taxon in kept)
    return names, Taxonomy(tuple(names), ranks, found, _synonyms(names, [taxon for _, taxon in kept]))


def _synonyms(names: Sequence[str], taxa: Sequence[_Taxon]) -> tuple[tuple[str, ...], ...]:
    """Further names of each class; one that is the name of another class, or a further name of two, tells nothing apart."""
    counts: dict[str, int] = {}
    for taxon in taxa:
        for form in {normalise(text) for text in taxon.texts}:
            counts[form] = counts.get(form, 0) + 1
    own = {normalise(name) for name in names}
    return tuple(tuple(text for text in taxon.texts if normalise(text) not in own and counts[normalise(text)] == 1) for taxon in taxa)
