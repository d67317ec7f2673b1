"""``--shard I/K``: a part of the inputs for each of several processes or machines, and their files as one again."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from finelens.classes.text_files import counted
from finelens.core.console import Console
from finelens.core.schemas import GROUP_COLUMNS, PREDICTION_COLUMNS, SET_COLUMNS, SURE_COLUMNS, TILE_COLUMNS
from finelens.errors import UserError
from finelens.runs.place import refuse_own_answers
from finelens.storage.files import atomic_writer, check_target, write_error

# What the folder of a file whose parts several machines write is called behind its name.
PARTS = ".parts"

_FORM = re.compile(r"(\d{1,5})/(\d{1,5})")
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.[^.]+")


@dataclass(frozen=True)
class Shard:
    """Part ``number`` (from 1) of ``count``."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``I/K``.

        Raises:
            UserError: It is no such text, or I is not from 1 to K.
        """
        found = _FORM.fullmatch(text)
        number, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= count:
            raise UserError(f"--shard {text}: expected I/K with I from 1 to K, for example 1/8 for the first of eight parts")
        return cls(number, count)

    @staticmethod
    def pattern(csv: Path, count: int) -> str:
        """What a shell finds the parts of a file by."""
        return f"{csv.with_suffix('')}-*-of-{count:05d}{csv.suffix or '.csv'}"

    def rows(self, total: int, unit: int) -> range:
        """Positions of this part: neighbours, from a multiple of ``unit`` on, so that they have the bits that they have without parts."""
        units = -(-total // unit)
        first, last = ((units * number) // self.count * unit for number in (self.number - 1, self.number))
        return range(min(first, total), min(last, total))

    def of(self, csv: Path) -> Path:
        """The file of this part: ``new.csv`` is written as ``new-00001-of-00008.csv`` and so on."""
        return csv.with_name(f"{csv.stem}-{self.number:05d}-of-{self.count:05d}{csv.suffix or '.csv'}")

    def all_of(self, csv: Path) -> list[Path]:
        """The files of all parts."""
        return [Shard(number, self.count).of(csv) for number in range(1, self.count + 1)]


def sets_path(csv_file: Path) -> Path:
    """Where the sets of a file of predictions go: ``new.csv`` has ``new.sets.csv`` beside it."""
    return csv_file.with_name(f"{csv_file.stem}.sets.csv")


def ranks_path(csv_file: Path) -> Path:
    """Where the answers by rank of a file of predictions go: ``new.csv`` has ``new_ranks.csv`` beside it."""
    return csv_file.with_name(f"{csv_file.stem}_ranks.csv")


def groups_path(csv_file: Path) -> Path:
    """Where the answers of groups of a file of predictions go: ``new.csv`` has ``new_groups.csv`` beside it."""
    return csv_file.with_name(f"{csv_file.stem}_groups.csv")


def tiles_path(csv_file: Path) -> Path:
    """Where the classes that tiles show go: ``new.csv`` has ``new_tiles.csv`` beside it."""
    return csv_file.with_name(f"{csv_file.stem}_tiles.csv")


def drop_left_over(csv_file: Path, written: Collection[Path]) -> None:
    """Remove what an earlier command wrote beside a file of predictions that is replaced: it is about answers that are gone.

    Args:
        csv_file: The file of predictions.
        written: What is written anew, and stays.

    Raises:
        UserError: A file cannot be removed.
    """
    starts = {sets_path(csv_file): SET_COLUMNS, groups_path(csv_file): GROUP_COLUMNS, tiles_path(csv_file): TILE_COLUMNS}
    for path in (*starts, ranks_path(csv_file)):
        if path in written or not path.is_file():
            continue
        try:
            with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
                columns = tuple(file.readline().rstrip("\r\n").split(","))
            # A file of somebody else's stays. Ranks have the names of the class list between the first column and the last.
            if columns == starts.get(path) or (path not in starts and columns[0] == "path" and columns[-len(SURE_COLUMNS) :] == SURE_COLUMNS):
                path.unlink()
        except OSError as error:
            raise write_error(path, error) from error


def join_parts(parts: Sequence[Path], csv: Path, console: Console) -> Path:
    """One file of the parts of ``predict --shard``: the bytes of a run without them. Conformal sets and answers by rank beside the parts are joined
    beside it.

    Args:
        parts: All of them, in any order.
        csv: File to write.
        console: What is said.

    Raises:
        UserError: A part is missing or given twice, is no such file, or is not finished.
    """
    refuse_own_answers(csv)
    ordered = _whole(parts)
    sets = [sets_path(part) for part in ordered]
    jobs: list[tuple[list[Path], Path, tuple[str, ...]]] = [(ordered, csv, PREDICTION_COLUMNS)]
    without = [path for path in sets if not path.is_file()]
    if without and len(without) < len(sets):
        raise UserError(f"{without[0]} is missing, and other parts have their sets: give predict --calibrate with every part or with none")
    if not without:
        jobs.append((sets, sets_path(csv), SET_COLUMNS))
    # Columns of ranks are those of the run; a run either has them or not.
    ranks = [path for path in map(ranks_path, ordered) if path.is_file()]
    if len(ranks) == len(ordered):
        with ranks[0].open(encoding="utf-8", newline="") as file:
            jobs.append((ranks, ranks_path(csv), tuple(file.readline().rstrip("\r\n").split(","))))
    targets, replaced = [target for _, target, _ in jobs], csv.is_file()
    for paths, target, columns in jobs:
        if target in paths:
            raise UserError(f"{target} is one of the parts; choose another name for the whole")
        check_target(target, ",".join(columns))
        _join(paths, target, (",".join(columns) + "\r\n").encode())
        console.say(f"wrote {target} from {counted(len(paths), 'part', 'parts')}")
    if replaced:
        drop_left_over(csv, targets)
    return csv


def _whole(parts: Sequence[Path]) -> list[Path]:
    """The parts in their order, if they are all."""
    by_number: dict[int, Path] = {}
    counts: set[int] = set()
    for part in parts:
        found = _PART.fullmatch(part.name)
        if found is None:
            raise UserError(f"{part}: expected the name of a part, such as new-00001-of-00008.csv; give what predict --shard wrote")
        number = int(found["number"])
        if number in by_number:
            raise UserError(f"{part} and {by_number[number]} are the same part; give each once")
        by_number[number] = part
        counts.add(int(found["count"]))
    if len(counts) != 1:
        raise UserError(f"the files are parts of {' and of '.join(map(str, sorted(counts))) or 'nothing'}; give all parts of one whole")
    stems = sorted({part.name.rpartition("-of-")[0].rpartition("-")[0] for part in by_number.values()})
    if len(stems) != 1:
        raise UserError(f"the files are parts of {' and of '.join(stems)}; give all parts of one whole")
    count = counts.pop()
    missing = [number for number in range(1, count + 1) if number not in by_number]
    if missing:
        raise UserError(f"part {missing[0]}/{count} is not among the files: run predict --shard {missing[0]}/{count}, and give all parts")
    if len(by_number) != count:
        raise UserError(f"a part has a number beyond {count}: give what predict --shard wrote")
    return [by_number[number] for number in range(1, count + 1)]


def _join(parts: Sequence[Path], target: Path, header: bytes) -> None:
    with atomic_writer(target) as whole:
        whole.write(header)
        for part in parts:
            try:
                with part.open("rb") as file:
                    if file.read(len(header)) != header:
                        raise UserError(f"{part} does not begin as a file of predict --shard does; write it again")
                    shutil.copyfileobj(file, whole, 1 << 20)
            except OSError as error:
                raise UserError(f"cannot read {part}: {error.strerror or error}; check the path and its permissions") from error
