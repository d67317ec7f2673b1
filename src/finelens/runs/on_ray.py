"""``predict`` and ``features`` with ``--engine ray``: parts on the machines of a cluster, put together to the bytes that one process writes."""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

from finelens.backbones.registry import absolute_spec
from finelens.core.console import Console
from finelens.core.phases import Phases
from finelens.errors import UserError
from finelens.feature_store.folder import ATTEMPT, TEXTS, FolderWriter, ShardEntry, write_shard
from finelens.feature_store.paths import FOLDER_SUFFIX
from finelens.images.load import Tally
from finelens.protocol import ImageRecord
from finelens.runs.arguments import PredictArguments
from finelens.runs.cluster import connected, crew_of
from finelens.runs.encode import check_out
from finelens.runs.encode_folder import FolderEncoder, photographs_at, shard_count
from finelens.runs.predict import GROUP
from finelens.runs.shard import PARTS, Shard, join_parts, ranks_path, sets_path
from finelens.runs.to_file import answers_key, load_asked, predict_to_file, source_of
from finelens.storage.files import write_error
from finelens.storage.lock import Lock
from finelens.storage.tensors import save_tensors

# Groups of a part: what is lost at most with a worker.
GROUPS = 8
# A folder of parts is called so after the key of their content.
_KEY = re.compile(r"[0-9a-f]{64}")


def part_count(total: int, groups: int = GROUPS) -> int:
    """Parts of so many inputs; depends on nothing else, and ``--shard`` can name them."""
    return min(max(1, -(-total // (GROUP * groups))), 99_999)


class Predicting:
    """What a worker of ``predict`` holds.

    Args:
        asked: The question without a shard, and the number of parts.
        console: Warnings.
    """

    def __init__(self, asked: tuple[PredictArguments, int], console: Console) -> None:
        self._question, self._count = asked
        self._loaded = load_asked(self._question, console)
        self.key = answers_key(self._question, self._loaded)

    def write(self, number: int, folder: Path, console: Console) -> None:
        """Write a part as ``--shard`` does."""
        own = replace(self._question, csv=folder / self._question.csv.name, shard=Shard(number, self._count))
        predict_to_file(own, console, self._loaded)


class PartFiles:
    """Parts of a file of predictions that are whole, in ``NAME.parts`` beside it. Use as a context manager, which claims and releases them.

    Args:
        csv: The file to be.
        total: Number of inputs.
        count: Number of parts.
    """

    def __init__(self, csv: Path, total: int, count: int) -> None:
        self._csv, self._total = csv, total
        self._shards = [Shard(number, count) for number in range(1, count + 1)]
        self._home = csv.with_name(csv.name + PARTS)
        self._lock = Lock(csv.with_name(f"{csv.name}{PARTS}.lock"))
        self._folder = self._home

    def __enter__(self) -> PartFiles:
        """Claim the parts.

        Raises:
            UserError: Another command writes them, or something else lies in their place.
        """
        with self._lock.claimed():
            if self._home.exists() and not (self._home.is_dir() and all(_KEY.fullmatch(entry.name) for entry in self._home.iterdir())):
                raise UserError(f"{self._home} is not a folder that finelens wrote; move it, or give --csv another name")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.release()

    def open(self, key: str) -> list[int]:
        """Parts that are left; those of another key are thrown away, and so are attempts that were not finished."""
        self._folder = self._home / key
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for other in [*self._home.iterdir(), *self._folder.iterdir()]:
                if other != self._folder and other.is_dir():
                    shutil.rmtree(other, ignore_errors=True)
        except OSError as error:
            raise write_error(self._folder, error) from error
        return [shard.number for shard in self._shards if not self._part(shard).is_file()]

    def place(self) -> Path:
        """A folder for one attempt."""
        return _attempt(self._folder)

    def accept(self, number: int, folder: Path, value: Any) -> int:
        """Take the files of a part; the one that says that it is whole goes last."""
        shard = self._shards[number - 1]
        written = shard.of(folder / self._csv.name)
        for path in (sets_path(written), ranks_path(written), written):
            if path.is_file() or path == written:
                _move(path, self._folder / path.name)
        shutil.rmtree(folder, ignore_errors=True)
        return len(shard.rows(self._total, GROUP))

    def join(self, console: Console) -> Path:
        """Put the parts together after counting their rows.

        Raises:
            UserError: A part has not one row for each of its inputs.
        """
        tally = Tally()
        for shard in self._shards:
            count_rows(self._part(shard), len(shard.rows(self._total, GROUP)), tally)
        join_parts([self._part(shard) for shard in self._shards], self._csv, console)
        shutil.rmtree(self._home, ignore_errors=True)
        tally.say(console)
        return self._csv

    def _part(self, shard: Shard) -> Path:
        return shard.of(self._folder / self._csv.name)


def count_rows(part: Path, expected: int, tally: Tally) -> None:
    """Count the rows of a part by status; a name may hold the end of a line.

    Raises:
        UserError: They are not as many as expected; the part is removed then.
    """
    before = tally.files
    with part.open(encoding="utf-8", newline="") as file:
        tally.add(ImageRecord(row["path"], row["status"], "", None) for row in csv.DictReader(file))
    if tally.files - before != expected:
        part.unlink()
        raise UserError(f"{part.name} had {tally.files - before} rows of {expected} inputs and was removed; give the command again")


def predict_on_ray(question: PredictArguments, console: Console, address: str | None = None, groups: int = GROUPS) -> int:
    """Classify on a Ray cluster; the bytes of :func:`finelens.runs.to_file.predict_to_file` on machines of the same kind.

    Args:
        question: Without a shard.
        console: Progress, and the warnings of the workers.
        address: Of the cluster; by default ``RAY_ADDRESS``, else a cluster of this machine alone.
        groups: Groups of :data:`finelens.runs.predict.GROUP` files in a part.

    Returns:
        How many attempts at a part were lost with their worker.

    Raises:
        UserError: Input that cannot be used, or a cluster that cannot do it.
    """
    question = question.absolute()
    total = source_of(question, console).listing().count
    count = part_count(total, groups)
    with PartFiles(question.csv, total, count) as parts, connected(address) as ray:
        crew = crew_of(ray, Predicting, (question, count), question.csv.parent, parts, parts=count, device=question.device, console=console)
        with console.progress(total, "predict") as bar:
            lost = crew.run(bar)
        _say_lost(lost, console)
        parts.join(console)
    return lost


@dataclass(frozen=True)
class FeatureArguments:
    """What ``features --engine ray`` was asked; fields as the arguments of :func:`finelens.runs.encode.features`."""

    photos: Path
    out: Path
    backbone: str = "embedded"
    device: str = "cpu"
    classes: Path | None = None
    descriptions: Path | None = None


class Encoding:
    """What a worker of ``features`` holds.

    Args:
        asked: The question.
        console: Warnings.
    """

    def __init__(self, asked: FeatureArguments, console: Console) -> None:
        self._work = FolderEncoder(asked.photos, asked.backbone, asked.device, asked.classes, asked.descriptions, console)
        self.key = (self._work.key, self._work.metadata)

    def write(self, number: int, folder: Path, console: Console) -> tuple[ShardEntry, Tally] | None:
        """Write shard ``number`` - 1; behind the last one the texts."""
        if number > shard_count(self._work.listing.count):
            assert self._work.texts is not None
            save_tensors(folder / TEXTS, self._work.texts, self._work.metadata)
            return None
        with console.progress(0, "") as silent:
            records, rows = self._work.shard(number - 1, Phases(silent))
        tally = Tally()
        tally.add(records)
        return write_shard(folder, number - 1, records, rows, self._work.metadata), tally


class ShardFiles:
    """The folder of shards of ``features``; its journal is that of one process, so that either can go on behind the other.

    Args:
        out: The folder.
        total: Number of photographs.
        texts: Whether prototypes are asked for.
    """

    def __init__(self, out: Path, total: int, texts: bool) -> None:
        self._out, self._count, self._texts = out, shard_count(total), texts
        self._writer: FolderWriter | None = None
        # The journal names shards in their order: one that is whole before its turn waits.
        self._early: dict[int, ShardEntry] = {}
        self.tally = Tally()

    @property
    def parts(self) -> int:
        """Shards, and the texts as one more."""
        return self._count + self._texts

    def open(self, key: tuple[str, dict[str, str]]) -> Sequence[int]:
        """Claim the folder; the parts that are left."""
        self._writer = FolderWriter(self._out, key[1], key[0]).__enter__()
        return range(len(self._writer.entries) + 1, self.parts + 1)

    def place(self) -> Path:
        """A folder for one attempt."""
        return _attempt(self._out)

    def accept(self, number: int, folder: Path, value: tuple[ShardEntry, Tally] | None) -> int:
        """Take a shard, or the texts."""
        assert self._writer is not None
        if value is None:
            _move(folder / TEXTS, self._out / TEXTS)
            shutil.rmtree(folder, ignore_errors=True)
            return 0
        entry, tally = value
        _move(folder / entry.name, self._out / entry.name)
        shutil.rmtree(folder, ignore_errors=True)
        self.tally.merge(tally)
        self._early[number] = entry
        while (following := len(self._writer.entries) + 1) in self._early:
            self._writer.adopt(self._early.pop(following))
        return entry.files

    def finish(self) -> None:
        """Write the manifest."""
        assert self._writer is not None
        self._writer.finish()

    def close(self) -> None:
        """Release the folder."""
        if self._writer is not None:
            for leftover in self._out.glob(f"{ATTEMPT}*"):
                shutil.rmtree(leftover, ignore_errors=True)
            self._writer.__exit__(None, None, None)


def features_on_ray(asked: FeatureArguments, console: Console, address: str | None = None, *, overwrite: bool = False) -> int:
    """Encode on a Ray cluster; the folder that :func:`finelens.runs.encode.features` writes on machines of the same kind.

    Args:
        asked: The question; ``out`` ends in ``.features``.
        console: Progress, and the warnings of the workers.
        address: Of the cluster; by default ``RAY_ADDRESS``, else a cluster of this machine alone.
        overwrite: Whether an earlier folder is replaced.

    Returns:
        How many attempts at a shard were lost with their worker.

    Raises:
        UserError: Input that cannot be used, or a cluster that cannot do it.
    """
    if asked.out.suffix.lower() != FOLDER_SUFFIX:
        raise UserError(f"--engine ray writes shards: give --out NAME{FOLDER_SUFFIX} in the place of {asked.out}")
    check_out(asked.out, asked.photos, overwrite)
    absolute: dict[str, Any] = {
        name: Path(os.path.abspath(own)) for name in ("photos", "out", "classes", "descriptions") if (own := getattr(asked, name)) is not None
    }
    asked = replace(asked, backbone=absolute_spec(asked.backbone), **absolute)
    total = photographs_at(asked.photos).listing().count
    target = ShardFiles(asked.out, total, asked.classes is not None)
    with connected(address) as ray:
        try:
            crew = crew_of(ray, Encoding, asked, asked.out.parent, target, parts=target.parts, device=asked.device, console=console)
            with console.progress(total, "encode images") as bar:
                lost = crew.run(bar)
            _say_lost(lost, console)
            target.finish()
        finally:
            target.close()
    target.tally.say(console)
    target.tally.say_notes(console)
    console.say(f"wrote {asked.out}")
    return lost


def _attempt(folder: Path) -> Path:
    path = folder / f"{ATTEMPT}{uuid4().hex}"
    try:
        path.mkdir()
    except OSError as error:
        raise write_error(path, error) from error
    return path


def _move(path: Path, to: Path) -> None:
    try:
        os.replace(path, to)
    except OSError as error:
        raise write_error(to, error) from error


def _say_lost(lost: int, console: Console) -> None:
    if lost:
        console.say(f"{lost} times a part was lost with its worker and written again")
