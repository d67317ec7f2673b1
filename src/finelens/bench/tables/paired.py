"""Differences of two methods on the same test images, over seeds and data sets, with bootstrap intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from finelens.bench.rows.results import Key, Result, unpack
from finelens.evaluation.metrics import mcnemar

RESAMPLES, LEVEL = 2000, 0.95
# What every difference in a table, a sentence or a line of the terminal is to.
BASELINE = "zero-shot"
AGAINST = f"differences are to {BASELINE}"
WORST = "worst difference"
SECONDS = "seconds are of a run by itself, encoding included"

# Seed, and checksum of the test images.
Place = tuple[int, str]


@dataclass(frozen=True)
class Difference:
    """Accuracy of A minus accuracy of B.

    Attributes:
        a: Accuracy of A, mean over seeds.
        b: Accuracy of B.
        low: Lower end of the 95 % interval of the difference.
        high: Upper end.
        seeds: Number of pairs of rows.
        p: Exact McNemar p-value; None for several seeds, whose images are not independent.
        draws: Resampled differences.
    """

    a: float
    b: float
    low: float
    high: float
    seeds: int
    p: float | None
    draws: np.ndarray = field(repr=False, compare=False)

    @property
    def difference(self) -> float:
        """A minus B."""
        return self.a - self.b


def paired_difference(a: Iterable[Result], b: Iterable[Result]) -> Difference | None:
    """Compare rows of one data set, seed by seed.

    Rows belong together if seed and test images are the same. Where zero-shot has no row of a seed, its row about the same test images stands in, see
    :func:`row_at`. Other rows are left out. An image that several seeds ask about is one image: its differences are averaged before
    images are resampled.

    Returns:
        The difference; None without a pair.
    """
    left, right = _by_place(a), _by_place(b)
    groups: dict[str, list[np.ndarray]] = defaultdict(list)
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for place in dict.fromkeys([*left, *right]):
        row, other = row_at(left, place), row_at(right, place)
        if row is None or other is None:
            continue
        hits = [unpack(r.correct, r.measures["n"]) for r in (row, other)]
        pairs.append((hits[0], hits[1]))
        groups[place[1]].append(hits[0].astype(float) - hits[1])
    if not pairs:
        return None
    images = np.concatenate([np.mean(group, axis=0) for group in groups.values()])
    draws = _resample(images)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(
        a=float(np.mean([hits.mean() for hits, _ in pairs])),
        b=float(np.mean([hits.mean() for _, hits in pairs])),
        low=float(low),
        high=float(high),
        seeds=len(pairs),
        p=mcnemar(*pairs[0]) if len(pairs) == 1 else None,
        draws=draws,
    )


def _by_place(rows: Iterable[Result]) -> dict[Place, Result]:
    return {place_of(row): row for row in rows if row.status == "ok" and row.correct}


def place_of(row: Result) -> Place:
    """What rows of two methods share that belong together, within a data set."""
    return row.key.seed, row.split["test_checksum"]


def row_at(rows: Mapping[Place, Result], place: Place) -> Result | None:
    """A method's row at a place; of zero-shot any row about the same test images.

    Zero-shot answers alike whatever the seed, but for class names that the seed draws.
    """
    stand_in = (row for (_, images), row in rows.items() if row.key.method == BASELINE and images == place[1] and not _draws_names(row))
    return rows.get(place) or next(stand_in, None)


def _draws_names(row: Result) -> bool:
    return "noise-" in row.key.protocol


def _resample(values: np.ndarray) -> np.ndarray:
    """Means of images drawn with replacement. Equal values are drawn together: their counts are multinomial."""
    distinct, counts = np.unique(np.round(values, 12), return_counts=True)
    draws = np.random.default_rng(0).multinomial(len(values), counts / len(values), size=RESAMPLES)
    return np.asarray(draws @ distinct / len(values))


def mean_difference(parts: Sequence[Difference]) -> Difference:
    """Mean over data sets; their images are resampled independently of each other."""
    # Each set's draws come from the same stream of numbers; permuted, they are as good as independent.
    shuffled = [np.random.default_rng(i).permutation(part.draws) for i, part in enumerate(parts)]
    draws = np.mean(shuffled, axis=0)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    a, b = float(np.mean([part.a for part in parts])), float(np.mean([part.b for part in parts]))
    return Difference(a, b, float(low), float(high), min(part.seeds for part in parts), None, draws)


def by_data(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Results by data set, in order of appearance."""
    found: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        found[result.key.data].append(result)
    return dict(found)


def mixed_seeds(rows: Iterable[Result]) -> dict[str, str]:
    """The seeds of each method in words where on some data set methods differ in them, so that their means are over other rows; else nothing."""
    seeds: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for row in rows:
        if row.status == "ok":
            seeds[row.key.method][row.key.data].add(row.key.seed)
    by_set: dict[str, set[tuple[int, ...]]] = defaultdict(set)
    for own in seeds.values():
        for data, found in own.items():
            by_set[data].add(tuple(sorted(found)))
    if all(len(found) == 1 for found in by_set.values()):
        return {}
    return {method: _seeds_in_words(own) for method, own in seeds.items()}


def _seeds_in_words(own: Mapping[str, set[int]]) -> str:
    texts = {data: ", ".join(map(str, sorted(found))) for data, found in own.items()}
    return next(iter(texts.values())) if len(set(texts.values())) == 1 else " and ".join(f"{text} on {data}" for data, text in texts.items())


def applicable(rows: Sequence[Result]) -> list[str]:
    """Data sets of a table in order of appearance, without those that every method skipped."""
    tried = {row.key.data for row in rows if row.status != "skipped"}
    return [name for name in by_data(rows) if name in tried]


Group = tuple[str, str, str, tuple[str, ...]]


def group_of(key: Key) -> Group:
    """What rows must share to stand in one table: protocol, backbone, profile, options."""
    return key.protocol, key.backbone, key.profile, key.options


def unique(results: Iterable[Result]) -> list[Result]:
    """One result per key; of several the last."""
    return list({result.key: result for result in results}.values())


# Of a table without a row.
NO_RESULT = "there is no result to show: give files that finelens bench --out wrote, with a row that has a number"


def of_one_class(results: Iterable[Result]) -> tuple[list[Result], str]:
    """Rows without those of sets whose photographs have several classes, which have no accuracy; and a sentence that names these, empty without one.

    Args:
        results: Rows.
    """
    rows = list(results)
    left_out = dict.fromkeys(row.key.data for row in rows if row.status == "ok" and "accuracy" not in row.measures)
    kept = [row for row in rows if row.key.data not in left_out]
    several = f"Photographs of {', '.join(left_out)} have several classes and no accuracy: finelens bench table --measure mean_average_precision."
    return kept, several if left_out else ""


def grouped(results: Iterable[Result]) -> Mapping[Group, list[Result]]:
    """Unique results by group, in order of appearance."""
    groups: dict[Group, list[Result]] = defaultdict(list)
    for result in unique(results):
        groups[group_of(result.key)].append(result)
    return dict(groups)


def title(group: Group) -> str:
    """Heading of a group."""
    protocol, backbone, profile, options = group
    return f"{protocol}, {backbone}, profile {profile}" + (f", not the defaults: {' '.join(options)}" if options else "")


def zero_shot_rows(results: Iterable[Result]) -> dict[tuple[str, str], list[Result]]:
    """Rows of zero-shot by protocol and backbone, of every profile: it adapts to nothing, so where the test images are the same it is the same."""
    found: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for row in unique(results):
        if row.key.method == BASELINE and not row.key.options:
            found[row.key.protocol, row.key.backbone].append(row)
    return dict(found)


def forwards_per_image(rows: Sequence[Result]) -> float | None:
    """Forwards of the image tower per image adapted to or predicted, one with gradient counting as two; an image of a stream is one image.

    First blocks that did not have to run (``training.cached_prefix``) are taken off by their share of a forward.
    """
    work = sum(row.cost["no_grad_forwards"] + 2 * row.cost["grad_forwards"] - _spared(row) for row in rows)
    images = sum(row.split["test"] + (0 if row.key.protocol.startswith("online") else row.split["fit"]) for row in rows)
    return work / images if rows else None


def _spared(row: Result) -> float:
    spared = row.cost.get("spared_prefixes", 0)
    return float(spared * row.cost["flops_of_prefix"] / row.cost["flops_per_forward"]) if spared else 0.0
