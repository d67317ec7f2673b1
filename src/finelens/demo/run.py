"""``finelens demo``: the main job on the photographs that ship with the package, or on a public data set."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from finelens import api, demo
from finelens.core.console import Console
from finelens.core.schemas import EVALUATION_FILE, REPORT_FILE
from finelens.errors import UserError
from finelens.runs.folder import RunFolder
from finelens.runs.place import is_run

PETS_BACKBONE = "open_clip:ViT-B-32-quickgelu/openai"


def run_demo(out: Path, dataset: str, data_dir: Path, *, should_stop: Callable[[], bool] | None = None, console: Console | None = None) -> str:
    """Adapt without labels, then score with them.

    Args:
        out: Run folder; an earlier demonstration in it is replaced.
        dataset: ``embedded`` or ``pets``.
        data_dir: Where ``pets`` is downloaded to.
        should_stop: As for :func:`finelens.api.adapt`.
        console: As for :func:`finelens.api.adapt`.

    Returns:
        The result, for standard output.

    Raises:
        UserError: The data set cannot be fetched, or ``out`` holds a run on other photographs.
    """
    _refuse_others(out, data_dir / "pets" / "train" if dataset == "pets" else demo.photos_dir())
    if dataset == "pets":
        return _run_pets(out, data_dir, should_stop, console)
    api.adapt(
        demo.photos_dir(),
        demo.classes_file(),
        out,
        descriptions=demo.descriptions_file(),
        overwrite=True,
        should_stop=should_stop,
        console=console,
        labels_follow=True,
    )
    result = api.evaluate(out, demo.photos_dir(), demo.labels_file(), json_file=out / EVALUATION_FILE, console=console)
    api.report(out, console=console)
    return _show(result, out, "the demonstration photographs")


def _refuse_others(out: Path, photos: Path) -> None:
    if is_run(out) and Path(RunFolder.open(out, lock=False).config.photos) != photos:
        raise UserError(f"{out} holds a run that is not this demonstration; give another folder with --out")


def _run_pets(out: Path, data_dir: Path, should_stop: Callable[[], bool] | None, console: Console | None) -> str:
    train, test = data_dir / "pets" / "train", data_dir / "pets" / "test"
    names = _fetch_pets(data_dir, train, test)
    classes = data_dir / "pets" / "classes.txt"
    classes.write_text("\n".join(names) + "\n", encoding="utf-8")
    api.adapt(train, classes, out, backbone=PETS_BACKBONE, overwrite=True, should_stop=should_stop, console=console, labels_follow=True)
    result = api.evaluate(out, test, test / "labels.csv", json_file=out / EVALUATION_FILE, console=console)
    api.report(out, console=console)
    return _show(result, out, "Oxford-IIIT Pets, test part")


def _fetch_pets(data_dir: Path, train: Path, test: Path) -> list[str]:
    """Download Oxford-IIIT Pets and link its official parts into two folders; labels go to ``labels.csv`` of the test part only."""
    from torchvision.datasets import OxfordIIITPet

    names: list[str] = []
    for folder, split in ((train, "trainval"), (test, "test")):
        try:
            data = OxfordIIITPet(str(data_dir), split=split, target_types="category", download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"Oxford-IIIT Pets could not be downloaded ({error}); check the network, or run finelens demo without --dataset"
            ) from error
        folder.mkdir(parents=True, exist_ok=True)
        names = list(data.classes)
        rows = []
        for source, label in zip(data._images, data._labels, strict=True):
            link = folder / Path(source).name
            if not link.exists():
                link.hardlink_to(source)
            rows.append((link.name, names[label]))
        if split == "test":
            with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("path", "label"), *rows])
    return names


def _show(result: dict[str, object], out: Path, what: str) -> str:
    def percent(key: str) -> str:
        value = result[key]
        assert isinstance(value, float)
        return f"{value:6.1%}"

    described = [] if result["description_ensemble_accuracy"] is None else ["description_ensemble_accuracy"]
    return "\n".join(
        [
            f"{what}: {result['n']} images",
            f"  before: by the class names alone (zero-shot)  {percent('zero_shot_accuracy')} right",
            *(f"  before: with descriptions                     {percent(key)} right" for key in described),
            f"  after: adapted, without labels                {percent('accuracy')} right",
            f"what to do next: open {out / REPORT_FILE} in a browser",
        ]
    )
