"""Authors' layouts that rest on tables: GTSRB's CSV files, Birdsnap's tab-separated lists, the MATLAB files of Cars and Flowers."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from finelens.bench.sets.common import finish, mat_variable, read_table
from finelens.bench.sets.data import DataSet
from finelens.classes.names import read_class_file
from finelens.errors import UserError
from finelens.storage.files import read_json

Templates = tuple[str, ...] | None
Rows = list[tuple[str, int]]


def read_gtsrb(folder: Path, templates: Templates = None) -> DataSet:
    """GTSRB: ``Final_Training/Images/00000/GT-00000.csv`` and so on, ``Final_Test/Images`` with ``GT-final_test.csv``; names of signs by us.

    ``Training/00000``, which torchvision downloads, holds fewer images; the split says which of the two it was.
    """
    names = files("finelens.bench.sets").joinpath("traffic_signs.txt").read_text(encoding="utf-8").splitlines()
    training: Rows = []
    part = next(name for name in ("Final_Training/Images", "Training") if (folder / name).is_dir())
    for table in sorted((folder / part).glob("*/GT-*.csv")):
        place = f"{part}/{table.parent.name}"
        training += [(f"{place}/{row['Filename']}", _number(row, "ClassId", table)) for row in read_table(table, ";", ("Filename", "ClassId"))]
    places = (folder, folder / "Final_Test/Images", folder.parent)
    list_file = next((place / "GT-final_test.csv" for place in places if (place / "GT-final_test.csv").is_file()), None)
    if list_file is None:
        raise UserError(f"{folder}: GT-final_test.csv is missing; it is in GTSRB_Final_Test_GT.zip, and belongs in this folder")
    test = [
        (f"Final_Test/Images/{row['Filename']}", _number(row, "ClassId", list_file)) for row in read_table(list_file, ";", ("Filename", "ClassId"))
    ]
    return finish("gtsrb", folder, names, training, test, f"{part.partition('/')[0]} and GT-final_test.csv", templates)


def read_birdsnap(folder: Path, templates: Templates = None) -> DataSet:
    """Birdsnap: ``species.txt``, ``images.txt`` and ``test_images.txt`` with heads, tabs between the cells, and the images in ``download/images``.

    Images that can no longer be had are left out of both parts, and the split says how many are left.
    """
    species = {_number(row, "id", folder / "species.txt"): row["common"] for row in read_table(folder / "species.txt", "\t", ("id", "common"))}
    place = {key: i for i, key in enumerate(sorted(species))}
    testing = {row["path"] for row in read_table(folder / "test_images.txt", "\t", ("path",))}
    parts: tuple[Rows, Rows] = [], []
    listed = 0
    for row in read_table(folder / "images.txt", "\t", ("path", "species_id")):
        key = _number(row, "species_id", folder / "images.txt")
        if key not in place:
            raise UserError(f"{folder / 'images.txt'}: species {key} is not in species.txt")
        listed += 1
        if (folder / "download/images" / row["path"]).is_file():
            parts[row["path"] in testing].append((row["path"], place[key]))
    split = f"test_images.txt, {sum(map(len, parts))} of {listed} images there"
    return finish("birdsnap", folder / "download/images", [species[key] for key in sorted(species)], *parts, split, templates)


def read_cars(folder: Path, templates: Templates = None) -> DataSet:
    """Stanford Cars: ``cars_train``, ``cars_test``, ``devkit/cars_meta.mat``, ``devkit/cars_train_annos.mat``, ``cars_test_annos_withlabels.mat``."""
    names = [str(name) for name in mat_variable(folder / "devkit/cars_meta.mat", "class_names").ravel()]

    def rows(file: str, images: str) -> Rows:
        table = mat_variable(folder / file, "annotations").ravel()
        if not table.dtype.names or not {"class", "fname"} <= set(table.dtype.names):
            raise UserError(f"{folder / file}: annotations without class and fname; take the file of the data set's authors")
        return [(f"{images}/{row['fname']}", int(row["class"]) - 1) for row in table]

    train, test = rows("devkit/cars_train_annos.mat", "cars_train"), rows("cars_test_annos_withlabels.mat", "cars_test")
    return finish("cars", folder, names, train, test, "cars_train_annos.mat and cars_test_annos_withlabels.mat", templates)


def read_flowers(folder: Path, templates: Templates = None) -> DataSet:
    """Flowers-102: ``jpg``, ``imagelabels.mat``, ``setid.mat``; names from ``classes.txt``, ``cat_to_name.json`` or us. Training: trnid, valid."""
    labels = mat_variable(folder / "imagelabels.mat", "labels").ravel().astype(int)
    ids = {part: mat_variable(folder / "setid.mat", part).ravel().astype(int) for part in ("trnid", "valid", "tstid")}
    outside = next((int(i) for own in ids.values() for i in own if not 1 <= i <= len(labels)), None)
    if outside is not None:
        raise UserError(f"{folder / 'setid.mat'}: there is no image {outside}; imagelabels.mat has {len(labels)}")
    training, test = ([(f"image_{i:05d}.jpg", int(labels[i - 1]) - 1) for i in own] for own in ([*ids["trnid"], *ids["valid"]], ids["tstid"]))
    return finish("flowers102", folder / "jpg", _flower_names(folder), training, test, "setid.mat, trnid and valid against tstid", templates)


def _flower_names(folder: Path) -> list[str]:
    if (folder / "classes.txt").is_file():
        return read_class_file(folder / "classes.txt")
    path = folder / "cat_to_name.json"
    if not path.is_file():
        return files("finelens.bench.sets").joinpath("flowers.txt").read_text(encoding="utf-8").splitlines()
    table = read_json(path)
    keys = [str(i) for i in range(1, len(table) + 1)] if isinstance(table, dict) else []
    if not keys or set(keys) != set(table) or not all(isinstance(name, str) for name in table.values()):
        raise UserError(f'{path}: expected {{"1": name, "2": name, ...}} without a gap')
    return [table[key] for key in keys]


def _number(row: Mapping[str, str], column: str, path: Path) -> int:
    if not (row[column].isascii() and row[column].isdigit()):
        raise UserError(f"{path}: {column} {row[column]!r} is no number")
    return int(row[column])
