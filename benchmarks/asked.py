"""What a benchmark over data sets was asked, and the command that made a row, as anybody can give it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import finelens


def data_command() -> str:
    """This call of a benchmark whose first argument is the folder of data sets; of files only the names, since folders are of one machine."""
    said = [Path(argument).name if Path(argument).is_absolute() else argument for argument in sys.argv[2:]]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", "DATA", *said])


def set_parser(text: str | None) -> argparse.ArgumentParser:
    """``DATA --sets NAME ... --out FILE`` measures, ``--table FILE`` prints; a benchmark adds its own.

    Args:
        text: What ``--help`` says.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--sets", nargs="+", default=[])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, help="print the table of a file of results")
    return parser


def tabulated(given: argparse.Namespace, table: Callable[[Sequence[dict[str, Any]]], str]) -> bool:
    """Prints the table of ``--table``; whether it was asked for."""
    if given.table is not None:
        print(table([json.loads(line) for line in given.table.read_text().splitlines()]))
    return given.table is not None


def over_sets(
    text: str | None, count: int, measured: Callable[[Path, int], Iterable[Mapping[str, Any]]], table: Callable[[Sequence[dict[str, Any]]], str]
) -> None:
    """``DATA --sets ... --count N --out FILE`` writes the rows of each set, ``--table FILE`` prints those that are there.

    Args:
        text: What ``--help`` says.
        count: Photographs of a set, where nobody says.
        measured: Rows of a set's folder and so many of its photographs.
        table: Their table.
    """
    parser = set_parser(text)
    parser.add_argument("--count", type=int, default=count)
    given = parser.parse_args()
    if tabulated(given, table):
        return
    command = data_command()
    with given.out.open("w") as file:
        for name in given.sets:
            for row in measured(given.data / name, given.count):
                file.write(json.dumps({"set": name, **row, "finelens": finelens.__version__, "command": command}) + "\n")
                file.flush()
