"""``python -m scripts.structure``: measure, and print a table."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from scripts.structure import __doc__ as DEFINITIONS
from scripts.structure.package import StructureError
from scripts.structure.report import Measured, Trip, details, measure, table


def main(arguments: list[str] | None = None) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=DEFINITIONS, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=Path("src/finelens"), metavar="DIR", help="package folder to measure")
    parser.add_argument("--before", type=Path, metavar="DIR", help="package folder of an earlier checkout, for a second column")
    parser.add_argument("--walk", action="append", default=[], metavar="[NAME=]FILE:FUNCTION:PARAMETER", help="count the moves of a parameter")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, too")
    parser.add_argument("--verbose", action="store_true", help="print floors, circles, climbing imports and itineraries")
    given = parser.parse_args(arguments)
    try:
        trips = [Trip.of(text) for text in given.walk]
        columns: dict[str, Measured] = {}
        if given.before is not None:
            columns["before"] = measure(given.before, {trip.name: trip.before for trip in trips})
        columns["after" if columns else "now"] = measure(given.source, {trip.name: trip.after for trip in trips})
    except StructureError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(table(columns)))
    if given.verbose:
        for title, measured in columns.items():
            print(f"\n{title}", *details(measured), sep="\n")
    if given.json is not None:
        given.json.write_text(json.dumps({title: measured.to_json() for title, measured in columns.items()}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
