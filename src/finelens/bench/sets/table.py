"""The data sets that have a name: where they lie under the folder of data sets, how they are read, and how to get them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from finelens.bench.data import DataSet, read_folder
from finelens.bench.sets.cifar import read_cifar10, read_cifar100
from finelens.bench.sets.coop import read_coop
from finelens.bench.sets.lists import list_files, read_lists
from finelens.bench.sets.own import read_aircraft, read_cub, read_dtd, read_food101, read_pets
from finelens.errors import UserError

Reader = Callable[[Path, tuple[str, ...] | None], DataSet]


@dataclass(frozen=True)
class SetSpec:
    """A data set with a name.

    Attributes:
        name: What ``--data`` takes and rows say.
        folder: Its folder, below the folder of data sets.
        needs: Files or folders in it that must be there.
        read: Reads the folder.
        steps: How to get it, as commands and sentences.
        templates: Our prompts for it.
    """

    name: str
    folder: str
    needs: tuple[str, ...]
    read: Reader
    steps: str
    templates: tuple[str, ...]


def _photo(kind: str) -> tuple[str, ...]:
    return (f"a photo of a {{}}, a type of {kind}.", f"a close-up photo of a {{}}, a type of {kind}.", f"a photo of the {kind} {{}}.")


def _coop(name: str, folder: str, split: str, images: str, get: str, templates: tuple[str, ...]) -> SetSpec:
    def read(root: Path, own: tuple[str, ...] | None) -> DataSet:
        return read_coop(name, root / split, root / images, own)

    where = f"{folder}/{images}" if images != "." else folder
    steps = (
        f"{get}, so that the images lie in {where}; put the split file {split}, which the CoOp project publishes with its data set notes, in {folder}"
    )
    return SetSpec(name, folder, (split, *(() if images == "." else (images,))), read, steps, templates)


_PLAIN = ("a photo of a {}.", "a blurry photo of a {}.", "a small photo of a {}.")
_SATELLITE = ("a satellite image of {}.", "an aerial photo of {}, seen from above.")
_TEXTURE = ("a photo of a {} texture.", "a close-up of a {} surface.", "a {} pattern.")
_ACTION = ("a photo of a person doing {}.", "a video frame of {}.")
_PETS_GET = "download images.tar.gz and annotations.tar.gz from the Oxford-IIIT Pet page of the Visual Geometry Group and unpack both"
_FOOD_GET = "download food-101.tar.gz from the Food-101 page of ETH Zurich's vision group and unpack it"
_DTD_GET = "download dtd-r1.0.1.tar.gz from the Describable Textures page of the Visual Geometry Group and unpack it"

SETS: tuple[SetSpec, ...] = (
    SetSpec(
        "cifar10",
        "cifar-10-batches-bin",
        ("batches.meta.txt", "data_batch_1.bin", "test_batch.bin"),
        read_cifar10,
        "download cifar-10-binary.tar.gz, the binary version, from the CIFAR page of the University of Toronto and unpack it",
        _PLAIN,
    ),
    SetSpec(
        "cifar100",
        "cifar-100-binary",
        ("fine_label_names.txt", "train.bin", "test.bin"),
        read_cifar100,
        "download cifar-100-binary.tar.gz, the binary version, from the CIFAR page of the University of Toronto and unpack it",
        _PLAIN,
    ),
    SetSpec(
        "pets",
        "oxford-iiit-pet",
        ("images", "annotations/trainval.txt", "annotations/test.txt"),
        read_pets,
        f"{_PETS_GET} into oxford-iiit-pet",
        _photo("pet"),
    ),
    SetSpec("food101", "food-101", ("images", "meta/train.txt", "meta/test.txt", "meta/classes.txt"), read_food101, _FOOD_GET, _photo("food")),
    SetSpec("dtd", "dtd", ("images", "labels/train1.txt", "labels/test1.txt"), read_dtd, _DTD_GET, _TEXTURE),
    SetSpec(
        "aircraft",
        "fgvc-aircraft-2013b",
        ("data/images", "data/variants.txt", "data/images_variant_trainval.txt", "data/images_variant_test.txt"),
        read_aircraft,
        "download fgvc-aircraft-2013b.tar.gz from the FGVC-Aircraft page of the Visual Geometry Group and unpack it",
        _photo("aircraft"),
    ),
    SetSpec(
        "cub",
        "CUB_200_2011",
        ("images", "images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"),
        read_cub,
        "download CUB_200_2011.tgz from the CUB-200-2011 page of Caltech's data archive and unpack it",
        _photo("bird"),
    ),
    _coop(
        "caltech101-coop",
        "caltech-101",
        "split_zhou_Caltech101.json",
        "101_ObjectCategories",
        "download caltech-101.zip from Caltech's data archive and unpack it and the 101_ObjectCategories archive in it",
        _PLAIN,
    ),
    _coop("dtd-coop", "dtd", "split_zhou_DescribableTextures.json", "images", _DTD_GET, _TEXTURE),
    _coop("eurosat-coop", "eurosat", "split_zhou_EuroSAT.json", "2750", "download EuroSAT.zip (RGB) from the EuroSAT page and unpack it", _SATELLITE),
    _coop("food101-coop", "food-101", "split_zhou_Food101.json", "images", _FOOD_GET, _photo("food")),
    _coop(
        "flowers102-coop",
        "oxford_flowers",
        "split_zhou_OxfordFlowers.json",
        "jpg",
        "download 102flowers.tgz from the Flowers-102 page of the Visual Geometry Group and unpack it",
        _photo("flower"),
    ),
    _coop("pets-coop", "oxford_pets", "split_zhou_OxfordPets.json", "images", _PETS_GET, _photo("pet")),
    _coop(
        "cars-coop",
        "stanford_cars",
        "split_zhou_StanfordCars.json",
        ".",
        "get the Stanford Cars images cars_train and cars_test and unpack them",
        ("a photo of a {}, a car.", "a photo of the car model {}."),
    ),
    _coop(
        "sun397-coop",
        "sun397",
        "split_zhou_SUN397.json",
        "SUN397",
        "download SUN397.tar.gz from the SUN page of Princeton's vision group and unpack it",
        ("a photo of a {}.", "a photo taken at a {}."),
    ),
    _coop(
        "ucf101-coop",
        "ucf101",
        "split_zhou_UCF101.json",
        "UCF-101-midframes",
        "get the middle frames of UCF101 (UCF-101-midframes.zip of the CoOp project) and unpack them",
        _ACTION,
    ),
)


def find_data(text: str, root: Path | None) -> tuple[str, Callable[[], DataSet]]:
    """A data set's name and how to read it.

    Args:
        text: A folder, a name under ``root``, or the name of a set of :data:`SETS`.
        root: Folder of data sets.

    Raises:
        UserError: There is no such folder, or the set is not there; the message says how to get it.
    """
    for folder in [Path(text), *([] if root is None else [root / text])]:
        if folder.is_dir() and ((folder / "train").is_dir() or (folder / "test").is_dir()):
            return folder.resolve().name, partial(read_folder, folder)
        if folder.is_dir() and list_files(folder) is not None:
            return folder.resolve().name, partial(read_lists, folder)
    spec = next((spec for spec in SETS if spec.name == text), None)
    if spec is None:
        where = "" if root is None else f" and none in {root}"
        names = ", ".join(known.name for known in SETS)
        raise UserError(f"--data {text}: there is no such folder{where} with train and test in it; give one, or one of {names} with --data-root")
    if root is None:
        raise UserError(f"--data {text}: say with --data-root where {spec.folder} lies. To get it: {spec.steps}")
    folder = root / spec.folder
    missing = [need for need in spec.needs if not (folder / need).exists()]
    if missing:
        raise UserError(f"--data {text}: {folder / missing[0]} is missing. To get it: {spec.steps}; all in {root}")
    return spec.name, partial(spec.read, folder, spec.templates)
