"""What was asked and what was found: files, statuses, duplicates, class names, descriptions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from finelens.evaluation.diversity import Diversity
from finelens.reporting.record import RunRecord

# Texts closer than this can hardly be told apart by a text tower.
NEAR_IDENTICAL = 0.95
LISTED = 2000
GROUPS = 50
CLOSEST = 5


def build(record: RunRecord) -> dict[str, Any]:
    """The part on inputs."""
    counts = Counter(row.status for row in record.rows)
    failed = [row for row in record.rows if row.status != "ok"]
    noted = [row for row in record.rows if row.status == "ok" and row.reason]
    groups = duplicates(record)
    return {
        "photos": record.config.photos,
        "files": len(record.rows),
        "statuses": sorted(counts.items(), key=lambda item: (item[0] != "ok", -item[1], item[0])),
        "failed": failed[:LISTED],
        "failed_more": max(0, len(failed) - LISTED),
        "noted": noted[:LISTED],
        "duplicate_files": sum(len(group) - 1 for group in groups),
        "duplicate_groups": groups[:GROUPS],
        "duplicate_more": max(0, len(groups) - GROUPS),
        "classes": len(record.classes),
        "similar": _similar(record),
        "varies": _varies(record),
        "templates": len(record.event("classes").get("templates", ())),
        "descriptions": _descriptions(record.event("classes").get("descriptions")),
    }


def _varies(record: RunRecord) -> str | None:
    """What varies in the folder, one sentence; None in runs of before it was measured."""
    found = record.measured.signals
    if found.directions is None or found.directions_by_text is None or found.directions_own is None or found.text_share is None:
        return None
    return Diversity(found.directions_own, found.directions_by_text, found.directions, found.text_share).line


def duplicates(record: RunRecord) -> list[list[str]]:
    """Names of files with the same content, groups of two and more."""
    by_id: dict[str, list[str]] = defaultdict(list)
    for row, sample in zip(record.predicted, record.measured.ids, strict=True):
        by_id[sample].append(row.path)
    return [names for names in by_id.values() if len(names) > 1]


def _similar(record: RunRecord) -> dict[str, Any]:
    pairs = [(record.classes[p.first], record.classes[p.second], p.score) for p in record.measured.similar]
    near = [pair for pair in pairs if pair[2] >= NEAR_IDENTICAL]
    return {"near": near[:20], "more": max(0, len(near) - 20), "closest": pairs[:CLOSEST]}


def _descriptions(report: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Counts and lists of what became of the descriptions file; None where none was given."""
    if report is None:
        return None
    problems: list[tuple[str, Sequence[str]]] = [
        ("without an entry; templates stand in", report["missing"]),
        ("with an entry that has no text; templates stand in", report["empty"]),
        ("entries that belong to no class of the list", report["extra"]),
        ("with exactly the same sentences as another", [" = ".join(group) for group in report["identical"]]),
    ]
    return {
        "matched": len(report["matched"]),
        "sentences": report["sentences"],
        "truncated": report["truncated"],
        "context_length": report["context_length"],
        "duplicate": sum(report["duplicate"].values()),
        "problems": [(what, list(names)[:20], max(0, len(names) - 20)) for what, names in problems if names],
    }
