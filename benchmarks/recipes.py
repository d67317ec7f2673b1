"""The recipes of scenes from above and of species, by their own commands, on photographs with known classes; one JSON line a run, resumable.

    python benchmarks/recipes.py satellite DATA --sets eurosat aid --out benchmarks/results/recipes.jsonl
    python benchmarks/recipes.py species DATA --sets pets37 cifar100 --out benchmarks/results/recipes.jsonl
    python benchmarks/recipes.py --table benchmarks/results/recipes.jsonl

DATA/SET has ``train/CLASS``, ``test/CLASS`` and ``classes.txt`` in the order of the folders. A run adapts to ``train`` without labels but for those
of ``--hints``, and is scored on ``test``. Labels of a run: as many as there are classes, twice and four times that, drawn at random (three draws) or
those that ``review RUN --ask`` asks for after the run without labels. Of cifar100 the 55 animals and plants are taken, in its own 11 groups.
"""

from __future__ import annotations

import csv
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asked import set_parser, tabulated

import finelens
from finelens import api
from finelens.core.console import Console
from finelens.core.schemas import VERDICT_FILE
from finelens.images.discover import visible_files
from finelens.images.randomness import generator, permutation

QUIET = Console(enabled=False)
TIMES, DRAWS, FLOOR = (1, 2, 4), 3, 0.8
CATS = (
    *("abyssinian", "bengal", "birman", "bombay", "british shorthair", "egyptian mau"),
    *("maine coon", "persian", "ragdoll", "russian blue", "siamese", "sphynx"),
)
LIVING = {
    "aquatic mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large omnivores and herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium-sized mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "invertebrates other than insects": ("crab", "lobster", "snail", "spider", "worm"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple tree", "oak tree", "palm tree", "pine tree", "willow tree"),
}


def main() -> None:
    parser = set_parser(__doc__)
    parser.add_argument("recipe", nargs="?", choices=["satellite", "species"])
    given = parser.parse_args()
    if tabulated(given, tables):
        return
    for name in given.sets:
        lines = given.out.read_text().splitlines() if given.out.exists() else []
        found = [json.loads(line) for line in lines]
        done = {(row["way"], row["labels"], row["draw"]) for row in found if (row["recipe"], row["set"]) == (given.recipe, name)}
        with tempfile.TemporaryDirectory() as place:
            world = World.of(given.data / name, Path(place), living=name == "cifar100")
            for row in (satellite if given.recipe == "satellite" else species)(world, done):
                command = f"python benchmarks/recipes.py {given.recipe} DATA --sets {name} --out {given.out}"
                with given.out.open("a") as file:
                    file.write(json.dumps({"recipe": given.recipe, "set": name, **row, "finelens": finelens.__version__, "command": command}) + "\n")
                print(json.dumps(row), flush=True)


@dataclass(frozen=True)
class World:
    """A set, and files about it.

    Attributes:
        place: Folder for runs.
        train: Photographs that are adapted to.
        test: Photographs with labels in ``labels.csv`` of the place.
        names: Class names.
        truth: Class name by path, of ``train``.
    """

    place: Path
    train: Path
    test: Path
    names: tuple[str, ...]
    truth: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path, place: Path, *, living: bool) -> World:
        """Links to the set's class folders, of all classes or of animals and plants."""
        kept = {name for own in LIVING.values() for name in own}
        folders = sorted(path.name for path in (folder / "test").iterdir() if path.is_dir())
        names = dict(zip(folders, (folder / "classes.txt").read_text().splitlines(), strict=True))
        names = {own: name for own, name in names.items() if not living or name in kept}
        for part in ("train", "test"):
            (place / part).mkdir()
            for own in names:
                (place / part / own).symlink_to((folder / part / own).resolve())
        labels = {part: {file.name: names[file.name.partition("/")[0]] for file in visible_files(place / part)} for part in ("train", "test")}
        (place / "classes.txt").write_text("\n".join(names.values()) + "\n")
        write_labels(place / "labels.csv", labels["test"])
        return cls(place, place / "train", place / "test", tuple(names.values()), labels["train"])

    def scored(self, way: str, labels: int, draw: int, **given: Any) -> dict[str, Any]:
        """A run, and what ``evaluate`` says of it on the test part."""
        out = self.place / f"{way} {labels} {draw}".replace(" ", "-")
        start = time.perf_counter()
        adapt = api.zero_shot if way == "zero-shot" else api.adapt
        adapt(self.train, given.pop("classes", self.place / "classes.txt"), out, console=QUIET, **given)
        seconds = time.perf_counter() - start
        verdict = json.loads((out / VERDICT_FILE).read_text())["verdict"]
        found = api.evaluate(out, self.test, labels=self.place / "labels.csv", console=QUIET)
        kept = ("accuracy", "accuracy_interval", "zero_shot_accuracy", "difference", "difference_interval", "n", "estimates")
        row = {"way": way, "labels": labels, "draw": draw, "seconds": round(seconds, 1), "verdict": verdict} | {key: found[key] for key in kept}
        return row | ({"by_rank": found["by_rank"]} if "by_rank" in found else {})

    def with_labels(self, way: str, labels: int, draw: int, paths: Sequence[str]) -> dict[str, Any]:
        """A run that is told the classes of some photographs."""
        hints = self.place / "hints.csv"
        write_labels(hints, {path: self.truth[path] for path in paths})
        named = len({self.truth[path] for path in paths})
        return self.scored(way, labels, draw, hints=hints) | {"given": len(paths), "named": named}

    def sure(self, way: str, ranks: Mapping[str, Sequence[str]]) -> dict[str, dict[str, int]]:
        """By sure rank of the test photographs: how many, and how many of their names are right."""
        api.predict(self.place / f"{way}-0-0", self.test, self.place / f"{way}.csv", console=QUIET)
        truth = {file["path"]: file["label"] for file in csv.DictReader((self.place / "labels.csv").open(newline=""))}
        found: dict[str, dict[str, int]] = {}
        for row in csv.DictReader((self.place / f"{way}_ranks.csv").open(newline="")):
            own = found.setdefault(row["sure_rank"] or "none", {"n": 0, "right": 0})
            own["n"] += 1
            own["right"] += row["sure_name"] in (truth[row["path"]], *ranks[truth[row["path"]]])
        return found


def write_labels(file: Path, labels: Mapping[str, str]) -> None:
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "label"), *labels.items()])


def satellite(world: World, done: set[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """Without labels, and with some that are drawn or asked for."""
    count = len(world.names)
    for way in ("zero-shot", "no labels"):
        if (way, 0, 0) not in done:
            yield world.scored(way, 0, 0)
    for labels in (count * times for times in TIMES):
        for draw in range(DRAWS):
            if ("drawn labels", labels, draw) not in done:
                paths = sorted(world.truth)
                order = permutation(generator(draw, 0, "", "recipe labels"), len(paths))
                yield world.with_labels("drawn labels", labels, draw, [paths[i] for i in order[:labels].tolist()])
        if ("asked labels", labels, 0) not in done:
            run = world.place / "first"
            if not run.exists():
                api.adapt(world.train, world.place / "classes.txt", run, console=QUIET)
            looks = api.ask(run, labels, console=QUIET)
            yield world.with_labels("asked labels", labels, 0, [look.path for look in looks])


def species(world: World, done: set[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """With a plain list, and with a table; how right the sure names of the table are."""
    table = world.place / "species.csv"
    living = {name: group for group, names in LIVING.items() for name in names}
    rows = [
        (name, living[name]) if name in living else (name, *(("Felis", "Felidae") if name in CATS else ("Canis", "Canidae"))) for name in world.names
    ]
    with table.open("w", newline="") as stream:
        csv.writer(stream).writerows([("name", "group") if len(rows[0]) == 2 else ("name", "genus", "family"), *rows])
    for way in ("zero-shot", "plain list", "table"):
        if (way, 0, 0) in done:
            continue
        given = {} if way == "plain list" else {"classes": table, "rank_floor": FLOOR}
        row = world.scored(way, 0, 0, **given)
        yield row | ({"sure": world.sure(way, {own[0]: own[1:] for own in rows})} if given else {})


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table a recipe and set: accuracy in per cent with its interval, and the gain on zero-shot."""
    lines = []
    for recipe, name in dict.fromkeys((row["recipe"], row["set"]) for row in rows):
        own = [row for row in rows if (row["recipe"], row["set"]) == (recipe, name)]
        lines += [f"{recipe}, {name}: {own[0]['n']} test photographs, zero-shot {100 * own[0]['zero_shot_accuracy']:.1f}", ""]
        lines += ["| run | labels | accuracy | 95 % | gain on zero-shot | said without labels | verdict |", "|---|---|---|---|---|---|---|"]
        for way, labels in dict.fromkeys((row["way"], row["labels"]) for row in own):
            lines.append(line([row for row in own if (row["way"], row["labels"]) == (way, labels)]))
        lines += ["", *sure_lines(own)]
    return "\n".join(lines)


def line(draws: Sequence[Mapping[str, Any]]) -> str:
    """Draws of one way: one with its interval, several as mean and range."""
    first = draws[0]
    values, gains = ([100 * row[key] for row in draws] for key in ("accuracy", "difference"))
    if len(draws) == 1:
        low, high = (100 * end for end in first["accuracy_interval"])
        below, above = (100 * end for end in first["difference_interval"])
        spread, gain = f"{low:.1f} to {high:.1f}", f"{gains[0]:+.1f} [{below:+.1f}, {above:+.1f}]"
    else:
        spread, gain = f"draws {min(values):.1f} to {max(values):.1f}", f"{sum(gains) / len(gains):+.1f}"
    said = [100 * row["estimates"]["confidence"] for row in draws]
    verdicts = ", ".join(dict.fromkeys(row["verdict"] for row in draws))
    return f"| {first['way']} | {first['labels']} | {sum(values) / len(values):.1f} | {spread} | {gain} | {sum(said) / len(said):.0f} | {verdicts} |"


def sure_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Accuracy by rank, and how many names are sure and how many of these are right."""
    lines = []
    for row in rows:
        lines += [f"{row['way']}, {own['rank']}: {100 * own['accuracy']:.1f} of {own['n']}" for own in row.get("by_rank", ())]
        lines += [f"{row['way']}, sure at {rank}: {own['n']} photographs, {own['right']} right" for rank, own in row.get("sure", {}).items()]
    return [*lines, ""] if lines else []


if __name__ == "__main__":
    main()
