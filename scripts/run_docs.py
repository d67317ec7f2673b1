"""Run the commands that README and docs show, on the photographs of the demonstration: ``python scripts/run_docs.py [PAGE ...]``.

The names that pages use (PHOTOS, names.txt, run, ...) are files and folders of those names here, made once, and each page begins with a copy of its
own. The commands of a page run in their order. One line a command: ran, skipped with its reason, or failed with what it said; a failure ends with
code 1.
"""

from __future__ import annotations

import argparse
import csv
import glob
import multiprocessing
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Seconds that a command may take.
PATIENCE = 600
PRELOADED = ["finelens.cli", "finelens.api", "finelens.runs.execute", "finelens.runs.evaluate", "finelens.reporting.write"]
CACHE = "FINELENS_CACHE"
# What is not run, and why: the first line whose pattern is found in "PAGE: COMMAND".
SKIPPED: tuple[tuple[str, str], ...] = (
    (r"^recipes/", "tests/recipes runs it, on data that it makes"),
    (r": (serve|review .*--serve)\b", "waits for a person until it is stopped"),
    (r": adapt .*--hints (run/hints\.csv|hints\.csv --out run$)", "needs what a person answered to the line before"),
    (r"(open_clip|transformers|timm|local):|\brun-two\b", "needs weights that do not ship with finelens"),
    (r"nearest-mean .*(weight|compare)|,nearest-mean|compare consensus nearest-mean", "needs the package installed that the page writes"),
    (r": bench --data (?!SET --out)", "measures on data sets that do not ship, minutes to hours"),
    (r": bench --data SET", "tries every method, minutes"),
    (r": adapt (pets37|cifar10)/", "is about data sets that do not ship"),
    (r"--method (microclip|mars|coop|clip-svd)\b|--minutes", "trains"),
    (r": export .*--to (open_clip|transformers)\b", "needs a CLIP: these forms cannot hold the embedded encoder"),
    (r"method\.support=FOLDER", "needs a folder of generated photographs"),
    (r": join ", "needs the parts of eight machines"),
    (r"--pdf", "needs a browser; tests/reporting runs it"),
    (r"report RUNS/NAME", "is about many runs"),
)
NAMES, PHOTOS, RUN = ("names.txt", "classes.txt", "other.txt", "species.csv"), ("PHOTOS", "photos", "NEW", "TEST", "LABELLED"), ("run", "RUN")
HINTS = ("hints.csv", "labels.csv", "labelled.csv", "anna.csv", "ben.csv", "cleo.csv")
FEATURES = ("photos.safetensors", "clip.safetensors", "siglip.safetensors", "new-siglip.safetensors")
ENCODERS = ("dino", "new-dino", "test-dino")
RESULTS = ("results.jsonl", "rivals.jsonl", "training.jsonl", "views.jsonl", "free.jsonl", "consensus.jsonl", "before.jsonl", "after.jsonl")
BOXES = ("detections.json", "new.json", "new-boxes.json")
OTHERS = (
    "IMAGE",
    "names",
    "descriptions.json",
    "new.csv",
    "GROUPS.csv",
    "clip.npy",
    "images.npy",
    "rows.txt",
    "prototypes.npy",
    "export.json",
    "benchmarks",
)
# Everything that a command can be given without an earlier one that writes it.
MADE = frozenset((*NAMES, *PHOTOS, *RUN, *HINTS, *FEATURES, *RESULTS, *BOXES, *OTHERS, *(f"{n}{end}" for n in ENCODERS for end in (".npy", ".txt"))))
# Options that name what a command writes.
WRITTEN = ("--out", "--csv", "--html", "--json")


@dataclass(frozen=True)
class Shown:
    """A command on a page.

    Attributes:
        page: Below docs, or README.md.
        words: What follows ``finelens``.
        given: File that is piped into it.
        kept: File that its output is sent to.
    """

    page: str
    words: tuple[str, ...]
    given: str | None = None
    kept: str | None = None

    @property
    def text(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"

    @property
    def reason(self) -> str | None:
        """Why it is not run; None where it is."""
        return next((reason for pattern, reason in SKIPPED if re.search(pattern, self.text)), None)

    def writes(self) -> list[str]:
        """Names of what it writes."""
        options = {"write": ("--out",), "merge-hints": ("--out", "--classes")}.get(self.words[0], WRITTEN)
        own = [value for option, value in zip(self.words, self.words[1:], strict=False) if option in options and not value.startswith("--")]
        return own if self.kept is None else [*own, self.kept]


def pages() -> list[Path]:
    """README, and every page of docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def shown_on(path: Path) -> Iterator[Shown]:
    """The commands in the code blocks of a page, in their order."""
    name = path.relative_to(ROOT / "docs").as_posix() if (ROOT / "docs") in path.parents else path.name
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(encoding="utf-8"), re.S | re.M)
    for block in (text for language, text in blocks if language in ("", "sh")):
        for line in block.replace("\\\n", " ").splitlines():
            match = re.match(r"(?:cat (\S+) \| |.*&& )?finelens (.*)", line.strip())
            if match is None:
                continue
            words = shlex.split(match.group(2), comments=True)
            kept = None
            if ">" in words:
                kept, words = words[words.index(">") + 1], words[: words.index(">")]
            yield Shown(name, tuple(words), match.group(1), kept)


def make_world(folder: Path, photographs: int = 60) -> None:
    """All that :data:`MADE` names, from the demonstration.

    Args:
        folder: Empty, and the working folder from here on.
        photographs: So many of it.

    Raises:
        RuntimeError: A command that makes a part of it failed.
    """
    import numpy as np
    from safetensors.numpy import load_file

    from finelens import demo

    with demo.labels_file().open(encoding="utf-8") as file:
        labels = {row["path"]: row["label"] for row in csv.DictReader(file)}
    names = [f"{labels[photo]}/{photo}" for photo in sorted(labels)[:photographs]]
    for name in PHOTOS:
        for photo in names:
            (folder / name / photo).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(demo.photos_dir() / Path(photo).name, folder / name / photo)
    for name in NAMES:
        shutil.copy(demo.classes_file(), folder / name)
    classes = demo.classes_file().read_text(encoding="utf-8").split("\n")
    (folder / "species.csv").write_text("name,group\n" + "".join(f"{name},{name[0]}\n" for name in classes if name), encoding="utf-8")
    shutil.copy(demo.descriptions_file(), folder / "descriptions.json")
    shutil.copy(folder / "PHOTOS" / names[0], folder / "IMAGE")
    (folder / "names").write_text("".join(f"PHOTOS/{photo}\n" for photo in names[:3]))
    for name in HINTS:
        _table(folder / name, [("path", "label"), *((photo, photo.split("/")[0]) for photo in names[: photographs // 2])])
    _table(folder / "GROUPS.csv", [("path", "group"), *((photo, f"group {i // 3}") for i, photo in enumerate(names))])
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks", target_is_directory=True)
    for words in (
        "adapt PHOTOS --classes names.txt --descriptions descriptions.json --out run",
        "features PHOTOS --out photos.safetensors --classes names.txt",
        "predict run NEW --csv new.csv",
        "write run --to megadetector --out detections.json",
        "write run --to label-studio --out export.json",
    ):
        if problem := ran(Shown("", tuple(words.split())), folder):
            raise RuntimeError(f"finelens {words}: {problem}")
    shutil.copytree(folder / "run", folder / "RUN")
    for name in FEATURES[1:]:
        shutil.copy(folder / FEATURES[0], folder / name)
    for name in BOXES[1:]:
        shutil.copy(folder / BOXES[0], folder / name)
    stored = load_file(folder / "photos.safetensors")
    rows = next(value for key, value in stored.items() if key == "global")
    for name in ("clip.npy", "images.npy"):
        np.save(folder / name, rows.astype(np.float32))
    (folder / "rows.txt").write_text("".join(f"{photo}\n" for photo in names))
    np.save(folder / "prototypes.npy", np.random.default_rng(0).normal(size=(len([n for n in classes if n]), rows.shape[1])).astype(np.float32))
    for name in ENCODERS:
        np.save(folder / f"{name}.npy", np.random.default_rng(1).normal(size=(len(names), 16)).astype(np.float32))
        (folder / f"{name}.txt").write_text("".join(f"{photo}\n" for photo in names))
    kept = "".join(
        (ROOT / "benchmarks" / "results" / f"bench_{name}.jsonl").read_text(encoding="utf-8") for name in ("consensus", "training_free", "training")
    )
    for name in RESULTS:
        (folder / name).write_text(kept, encoding="utf-8")


def _table(path: Path, rows: Sequence[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def ran(shown: Shown, folder: Path, patience: float = PATIENCE) -> str:
    """Run a command in a folder, in a process that is forked from one that has imported everything.

    Returns:
        What went wrong; empty where nothing did.
    """
    for name in shown.writes():
        # A page may write the same name twice; whoever follows it by hand chooses another.
        if (folder / name).is_dir() and not name.startswith(("/", "~")):
            shutil.rmtree(folder / name)
        elif not name.startswith(("/", "~")):
            (folder / name).unlink(missing_ok=True)
    words = [found for word in shown.words for found in (sorted(glob.glob(word, root_dir=folder)) if "*" in word else [word])]
    kept = None if shown.kept is None or shown.kept.startswith(("/", "~")) else shown.kept
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as place:
        said = Path(place) / "said"
        said.touch()
        process = context.Process(target=_work, args=(words, str(folder), shown.given, kept, str(said), os.environ.get(CACHE)))
        process.start()
        process.join(patience)
        if process.exitcode is None:
            process.kill()
            process.join()
            return f"took more than {patience:g} s"
        lines = said.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return "" if process.exitcode == 0 else f"code {process.exitcode}: {' / '.join(lines[-2:])}"


def _work(words: list[str], folder: str, given: str | None, kept: str | None, said: str, cache: str | None) -> None:
    os.chdir(folder)
    if cache is not None:
        # The process that this one is forked from may be older than the setting.
        os.environ[CACHE] = cache
    error = os.open(said, os.O_WRONLY | os.O_CREAT)
    os.dup2(os.open(given or os.devnull, os.O_RDONLY), 0)
    os.dup2(error if kept is None else os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(error, 2)
    # A process of multiprocessing has nothing on its standard input.
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    from finelens.cli import main

    main(words)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, help="pages; default: README.md and all of docs")
    given = parser.parse_args()
    counts = {"ran": 0, "skipped": 0, "failed": 0}
    seen: set[tuple[str, ...]] = set()
    with tempfile.TemporaryDirectory(prefix="finelens-docs-") as scratch:
        os.environ.setdefault(CACHE, str(Path(scratch) / "cache"))
        world = Path(scratch) / "world"
        world.mkdir()
        make_world(world)
        for path in [page.absolute() for page in given.pages] or pages():
            own = Path(scratch) / "page"
            shown = list(shown_on(path))
            if any(each.reason is None and each.words not in seen for each in shown):
                shutil.copytree(world, own, symlinks=True)
            # What a later line of the page needs runs again.
            for each in shown:
                problem = ""
                if reason := each.reason:
                    state = "skipped"
                elif each.words in seen and not each.writes():
                    state, reason = "skipped", "ran on an earlier page"
                else:
                    problem = ran(each, own)
                    state = "failed" if problem else "ran"
                    seen.add(each.words)
                counts[state] += 1
                print(f"{state:8}{each.text}" + (f"   [{reason or problem}]" if reason or problem else ""), flush=True)
            shutil.rmtree(own, ignore_errors=True)
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
