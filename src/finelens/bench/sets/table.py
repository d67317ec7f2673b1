"""The data sets that have a name: where they lie under the folder of data sets, how they are read, and how to get them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from finelens.bench.sets import sources
from finelens.bench.sets.cifar import read_cifar10, read_cifar100
from finelens.bench.sets.coop import read_coop
from finelens.bench.sets.data import DataSet
from finelens.bench.sets.drawn import read_drawn
from finelens.bench.sets.imagenet import KAGGLE, read_imagenet
from finelens.bench.sets.own import read_aircraft, read_cub, read_dtd, read_food101, read_pets, read_sun397, read_ucf101
from finelens.bench.sets.sources import Source, coop_page, with_split
from finelens.bench.sets.tables import read_birdsnap, read_cars, read_flowers, read_gtsrb
from finelens.bench.sets.wordnet import read_variant

Reader = Callable[[Path, tuple[str, ...] | None], DataSet]


@dataclass(frozen=True)
class SetSpec:
    """A data set with a name.

    Attributes:
        name: What ``--data`` takes and rows say.
        folder: Its folder, below the folder of data sets; of several with | between them, the first that has what is needed.
        needs: Files or folders in it that must be there; of several with | between them, one.
        read: Reads the folder.
        source: How to get it.
        templates: Our prompts for it.
    """

    name: str
    folder: str
    needs: tuple[str, ...]
    read: Reader
    source: Source
    templates: tuple[str, ...]

    @property
    def first(self) -> str:
        """The folder that messages and commands name."""
        return self.folder.partition("|")[0]

    @property
    def steps(self) -> str:
        """How to get it, for a shell in the folder of data sets, and what its folder holds then."""
        return self.source.steps(self.first, ", ".join(need.partition("|")[0] for need in self.needs))


def _photo(kind: str) -> tuple[str, ...]:
    return (f"a photo of a {{}}, a type of {kind}.", f"a close-up photo of a {{}}, a type of {kind}.", f"a photo of the {kind} {{}}.")


def _coop(name: str, folder: str, split: str, images: str, source: Source, templates: tuple[str, ...]) -> SetSpec:
    def read(root: Path, own: tuple[str, ...] | None) -> DataSet:
        return read_coop(name, root / split, root / images, own)

    whole = with_split(source, split, coop_page(split))
    return SetSpec(name, folder, (split, *(() if images == "." else (images,))), read, whole, templates)


def _variant(name: str, folder: str, images: str, source: Source, templates: tuple[str, ...]) -> SetSpec:
    def read(root: Path, own: tuple[str, ...] | None) -> DataSet:
        return read_variant(name, root, root / images, own)

    return SetSpec(name, folder, (images if images != "." else "README.txt",), read, replace(source, note=_WNID_NAMES), templates)


def _drawn(
    name: str,
    folder: str,
    first: str,
    percent: int,
    source: Source,
    templates: tuple[str, ...],
    *,
    called: Mapping[str, str] | None = None,
    left_out: Collection[str] = (),
) -> SetSpec:
    inner = first.rpartition("/")[0]

    def read(root: Path, own: tuple[str, ...] | None) -> DataSet:
        return read_drawn(name, root / inner, percent, own, called=called, left_out=left_out)

    return SetSpec(name, folder, (first,), read, source, templates)


_WNID_NAMES = (
    "class names are read from the development kit or from lines WNID NAME of README.txt, LOC_synset_mapping.txt or classnames.txt, "
    "in its folder or, for a variant, in imagenet"
)
_PLAIN = ("a photo of a {}.", "a blurry photo of a {}.", "a small photo of a {}.")
_SATELLITE = ("a satellite image of {}.", "an aerial photo of {}, seen from above.")
_TEXTURE = ("a photo of a {} texture.", "a close-up of a {} surface.", "a {} pattern.")
_ACTION = ("a photo of a person doing {}.", "a video frame of {}.")
_SCENE = ("a photo of a {}.", "a photo taken at a {}.")
_LAND = {
    "AnnualCrop": "fields of annual crops",
    "HerbaceousVegetation": "grass and shrubs",
    "Highway": "a highway or road",
    "Industrial": "industrial buildings",
    "Pasture": "pasture",
    "PermanentCrop": "orchards or vineyards",
    "Residential": "residential buildings",
    "SeaLake": "a sea or lake",
}
_CAR = ("a photo of a {}, a car.", "a photo of the car model {}.")

SETS: tuple[SetSpec, ...] = (
    SetSpec(
        "cifar10",
        "cifar-10-batches-bin",
        ("batches.meta.txt", "data_batch_1.bin", "test_batch.bin"),
        read_cifar10,
        sources.CIFAR10,
        _PLAIN,
    ),
    SetSpec(
        "cifar100",
        "cifar-100-binary",
        ("fine_label_names.txt", "train.bin", "test.bin"),
        read_cifar100,
        sources.CIFAR100,
        _PLAIN,
    ),
    SetSpec(
        "pets",
        "oxford-iiit-pet",
        ("images", "annotations/trainval.txt", "annotations/test.txt"),
        read_pets,
        sources.PETS,
        _photo("pet"),
    ),
    SetSpec("food101", "food-101", ("images", "meta/train.txt", "meta/test.txt", "meta/classes.txt"), read_food101, sources.FOOD, _photo("food")),
    SetSpec("dtd", "dtd|dtd/dtd", ("images", "labels/train1.txt", "labels/test1.txt"), read_dtd, sources.DTD, _TEXTURE),
    SetSpec(
        "aircraft",
        "fgvc-aircraft-2013b",
        ("data/images", "data/variants.txt", "data/images_variant_trainval.txt", "data/images_variant_test.txt"),
        read_aircraft,
        sources.AIRCRAFT,
        _photo("aircraft"),
    ),
    SetSpec(
        "cub",
        "CUB_200_2011",
        ("images", "images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"),
        read_cub,
        sources.CUB,
        _photo("bird"),
    ),
    _coop("caltech101-coop", "caltech-101|caltech101", "split_zhou_Caltech101.json", "101_ObjectCategories", sources.CALTECH, _PLAIN),
    _coop("dtd-coop", "dtd|dtd/dtd", "split_zhou_DescribableTextures.json", "images", sources.DTD, _TEXTURE),
    _coop("eurosat-coop", "eurosat", "split_zhou_EuroSAT.json", "2750", sources.EUROSAT, _SATELLITE),
    _coop("food101-coop", "food-101", "split_zhou_Food101.json", "images", sources.FOOD, _photo("food")),
    _coop("flowers102-coop", "oxford_flowers|flowers-102", "split_zhou_OxfordFlowers.json", "jpg", sources.FLOWER_IMAGES, _photo("flower")),
    _coop("pets-coop", "oxford_pets", "split_zhou_OxfordPets.json", "images", sources.PETS, _photo("pet")),
    _coop("cars-coop", "stanford_cars", "split_zhou_StanfordCars.json", ".", sources.CARS, _CAR),
    _coop("sun397-coop", "sun397", "split_zhou_SUN397.json", "SUN397", sources.SUN_IMAGES, _SCENE),
    _coop("ucf101-coop", "ucf101", "split_zhou_UCF101.json", "UCF-101-midframes", sources.UCF_FRAMES, _ACTION),
    _coop("resisc45-coop", "NWPU-RESISC45", "split.json", ".", sources.RESISC, _SATELLITE),
    _coop("aid-coop", "AID", "split.json", ".", sources.AID, _SATELLITE),
    _drawn("resisc45", "NWPU-RESISC45", "airplane", 20, sources.RESISC, _SATELLITE),
    _drawn("aid", "AID", "Airport", 50, sources.AID, _SATELLITE),
    _drawn("eurosat", "eurosat", "2750/AnnualCrop", 50, sources.EUROSAT, _SATELLITE, called=_LAND),
    _drawn(
        "caltech101",
        "caltech-101|caltech101",
        "101_ObjectCategories/airplanes",
        50,
        sources.CALTECH,
        _PLAIN,
        called={"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"},
        left_out=("BACKGROUND_Google", "Faces_easy"),
    ),
    SetSpec(
        "sun397",
        "sun397|.",
        ("SUN397", "Training_01.txt|Partitions/Training_01.txt|SUN397/Training_01.txt"),
        read_sun397,
        sources.SUN,
        _SCENE,
    ),
    SetSpec(
        "ucf101",
        "ucf101",
        ("UCF-101-midframes", "ucfTrainTestlist/classInd.txt", "ucfTrainTestlist/trainlist01.txt", "ucfTrainTestlist/testlist01.txt"),
        read_ucf101,
        sources.UCF,
        _ACTION,
    ),
    SetSpec(
        "imagenet",
        "imagenet",
        (f"val|{KAGGLE}/val",),
        read_imagenet,
        replace(sources.IMAGENET, note=f"{sources.IMAGENET.note}; {_WNID_NAMES}"),
        _PLAIN,
    ),
    _variant(
        "imagenet-v2",
        "imagenetv2",
        "imagenetv2-matched-frequency-format-val",
        sources.IMAGENET_V2,
        _PLAIN,
    ),
    _variant("imagenet-a", "imagenet-a", ".", sources.IMAGENET_A, _PLAIN),
    _variant("imagenet-r", "imagenet-r", ".", sources.IMAGENET_R, ("a rendering of a {}.", *_PLAIN)),
    _variant(
        "imagenet-sketch",
        "imagenet-sketch",
        "sketch",
        sources.IMAGENET_SKETCH,
        ("a sketch of a {}.", "a pencil drawing of a {}."),
    ),
    SetSpec(
        "gtsrb",
        "GTSRB|gtsrb/GTSRB",
        ("Final_Training/Images|Training", "Final_Test/Images"),
        read_gtsrb,
        sources.GTSRB,
        ("a photo of a traffic sign: {}.", "a close-up of the road sign {}."),
    ),
    SetSpec(
        "birdsnap",
        "birdsnap",
        ("download/images", "images.txt", "test_images.txt", "species.txt"),
        read_birdsnap,
        sources.BIRDSNAP,
        _photo("bird"),
    ),
    SetSpec(
        "cars",
        "stanford_cars",
        ("cars_train", "cars_test", "devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"),
        read_cars,
        sources.CARS,
        _CAR,
    ),
    SetSpec(
        "flowers102",
        "oxford_flowers|flowers-102",
        ("jpg", "imagelabels.mat", "setid.mat"),
        read_flowers,
        sources.FLOWERS,
        _photo("flower"),
    ),
)
