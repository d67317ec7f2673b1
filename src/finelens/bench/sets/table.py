"""The data sets that have a name: where they lie under the folder of data sets, how they are read, and how to get them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from finelens.bench.data import DataSet
from finelens.bench.sets.cifar import read_cifar10, read_cifar100
from finelens.bench.sets.coop import read_coop
from finelens.bench.sets.drawn import read_drawn
from finelens.bench.sets.imagenet import KAGGLE, SOLUTION, read_imagenet
from finelens.bench.sets.own import read_aircraft, read_cub, read_dtd, read_food101, read_pets, read_sun397, read_ucf101
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

    first = folder.partition("|")[0]
    where = f"{first}/{images}" if images != "." else first
    steps = (
        f"{get}, so that the images lie in {where}; put the split file {split}, which the CoOp project publishes with its data set notes, in {first}"
    )
    return SetSpec(name, folder, (split, *(() if images == "." else (images,))), read, steps, templates)


def _variant(name: str, folder: str, images: str, get: str, templates: tuple[str, ...]) -> SetSpec:
    def read(root: Path, own: tuple[str, ...] | None) -> DataSet:
        return read_variant(name, root, root / images, own)

    return SetSpec(name, folder, (images if images != "." else "README.txt",), read, f"{get}; {_WNID_NAMES}", templates)


def _drawn(
    name: str,
    folder: str,
    first: str,
    percent: int,
    get: str,
    templates: tuple[str, ...],
    *,
    called: Mapping[str, str] | None = None,
    left_out: Collection[str] = (),
) -> SetSpec:
    inner = first.rpartition("/")[0]

    def read(root: Path, own: tuple[str, ...] | None) -> DataSet:
        return read_drawn(name, root / inner, percent, own, called=called, left_out=left_out)

    where = f"{folder.partition('|')[0]}/{inner}".rstrip("/")
    return SetSpec(name, folder, (first,), read, f"{get}, so that the class folders lie in {where}", templates)


_WNID_NAMES = (
    "class names are read from lines WNID NAME of README.txt, LOC_synset_mapping.txt or classnames.txt in its folder, or in imagenet for a variant"
)
_PLAIN = ("a photo of a {}.", "a blurry photo of a {}.", "a small photo of a {}.")
_SATELLITE = ("a satellite image of {}.", "an aerial photo of {}, seen from above.")
_TEXTURE = ("a photo of a {} texture.", "a close-up of a {} surface.", "a {} pattern.")
_ACTION = ("a photo of a person doing {}.", "a video frame of {}.")
_PETS_GET = "download images.tar.gz and annotations.tar.gz from the Oxford-IIIT Pet page of the Visual Geometry Group and unpack both"
_FOOD_GET = "download food-101.tar.gz from the Food-101 page of ETH Zurich's vision group and unpack it"
_DTD_GET = "download dtd-r1.0.1.tar.gz from the Describable Textures page of the Visual Geometry Group and unpack it"
_RESISC_GET = "get NWPU-RESISC45 from the page of its authors at Northwestern Polytechnical University and unpack it"
_AID_GET = "get AID from the page of its authors at Wuhan University and unpack it"
_FLOWERS_GET = "download 102flowers.tgz from the Flowers-102 page of the Visual Geometry Group and unpack it"
_CALTECH_GET = "download caltech-101.zip from Caltech's data archive and unpack it and the 101_ObjectCategories archive in it"
_EUROSAT_GET = "download EuroSAT.zip (RGB) from the EuroSAT page and unpack it"
_SUN_GET = "download SUN397.tar.gz from the SUN page of Princeton's vision group and unpack it"
_UCF_GET = "get the middle frames of UCF101 (UCF-101-midframes.zip of the CoOp project) and unpack them"
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
    SetSpec("dtd", "dtd|dtd/dtd", ("images", "labels/train1.txt", "labels/test1.txt"), read_dtd, _DTD_GET, _TEXTURE),
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
        "caltech-101|caltech101",
        "split_zhou_Caltech101.json",
        "101_ObjectCategories",
        _CALTECH_GET,
        _PLAIN,
    ),
    _coop("dtd-coop", "dtd|dtd/dtd", "split_zhou_DescribableTextures.json", "images", _DTD_GET, _TEXTURE),
    _coop("eurosat-coop", "eurosat", "split_zhou_EuroSAT.json", "2750", _EUROSAT_GET, _SATELLITE),
    _coop("food101-coop", "food-101", "split_zhou_Food101.json", "images", _FOOD_GET, _photo("food")),
    _coop(
        "flowers102-coop",
        "oxford_flowers|flowers-102",
        "split_zhou_OxfordFlowers.json",
        "jpg",
        _FLOWERS_GET,
        _photo("flower"),
    ),
    _coop("pets-coop", "oxford_pets", "split_zhou_OxfordPets.json", "images", _PETS_GET, _photo("pet")),
    _coop(
        "cars-coop",
        "stanford_cars",
        "split_zhou_StanfordCars.json",
        ".",
        "get the Stanford Cars images cars_train and cars_test and unpack them",
        _CAR,
    ),
    _coop(
        "sun397-coop",
        "sun397",
        "split_zhou_SUN397.json",
        "SUN397",
        _SUN_GET,
        _SCENE,
    ),
    _coop(
        "ucf101-coop",
        "ucf101",
        "split_zhou_UCF101.json",
        "UCF-101-midframes",
        _UCF_GET,
        _ACTION,
    ),
    _coop("resisc45-coop", "NWPU-RESISC45", "split.json", ".", _RESISC_GET, _SATELLITE),
    _coop("aid-coop", "AID", "split.json", ".", _AID_GET, _SATELLITE),
    _drawn("resisc45", "NWPU-RESISC45", "airplane", 20, _RESISC_GET, _SATELLITE),
    _drawn("aid", "AID", "Airport", 50, _AID_GET, _SATELLITE),
    _drawn("eurosat", "eurosat", "2750/AnnualCrop", 50, _EUROSAT_GET, _SATELLITE, called=_LAND),
    _drawn(
        "caltech101",
        "caltech-101|caltech101",
        "101_ObjectCategories/airplanes",
        50,
        _CALTECH_GET,
        _PLAIN,
        called={"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"},
        left_out=("BACKGROUND_Google", "Faces_easy"),
    ),
    SetSpec(
        "sun397",
        "sun397|.",
        ("SUN397", "Training_01.txt|Partitions/Training_01.txt|SUN397/Training_01.txt"),
        read_sun397,
        f"{_SUN_GET} into sun397, with Partitions.zip of the same page beside the folder SUN397",
        _SCENE,
    ),
    SetSpec(
        "ucf101",
        "ucf101",
        ("UCF-101-midframes", "ucfTrainTestlist/classInd.txt", "ucfTrainTestlist/trainlist01.txt", "ucfTrainTestlist/testlist01.txt"),
        read_ucf101,
        f"{_UCF_GET} into ucf101; unpack UCF101TrainTestSplits-RecognitionTask.zip of the UCF101 page (University of Central Florida) beside them",
        _ACTION,
    ),
    SetSpec(
        "imagenet",
        "imagenet",
        (f"val|{KAGGLE}/val",),
        read_imagenet,
        "get the ILSVRC 2012 archives and the development kit from the ImageNet page and unpack train into train/WNID, val and the kit as they are; "
        f"or unpack the archive of Kaggle's ImageNet challenge, {SOLUTION} with it; {_WNID_NAMES}",
        _PLAIN,
    ),
    _variant(
        "imagenet-v2",
        "imagenetv2",
        "imagenetv2-matched-frequency-format-val",
        "download imagenetv2-matched-frequency.tar.gz from the ImageNetV2 page and unpack it into imagenetv2",
        _PLAIN,
    ),
    _variant("imagenet-a", "imagenet-a", ".", "download imagenet-a.tar from the page of natural adversarial examples and unpack it", _PLAIN),
    _variant("imagenet-r", "imagenet-r", ".", "download imagenet-r.tar from the ImageNet-R page and unpack it", ("a rendering of a {}.", *_PLAIN)),
    _variant(
        "imagenet-sketch",
        "imagenet-sketch",
        "sketch",
        "download ImageNet-Sketch from the page of its authors and unpack it into imagenet-sketch",
        ("a sketch of a {}.", "a pencil drawing of a {}."),
    ),
    SetSpec(
        "gtsrb",
        "GTSRB|gtsrb/GTSRB",
        ("Final_Training/Images|Training", "Final_Test/Images"),
        read_gtsrb,
        "download GTSRB_Final_Training_Images.zip, GTSRB_Final_Test_Images.zip and GTSRB_Final_Test_GT.zip from the GTSRB page and unpack them, "
        "GT-final_test.csv into GTSRB",
        ("a photo of a traffic sign: {}.", "a close-up of the road sign {}."),
    ),
    SetSpec(
        "birdsnap",
        "birdsnap",
        ("download/images", "images.txt", "test_images.txt", "species.txt"),
        read_birdsnap,
        "download birdsnap.tgz from the Birdsnap page of Columbia University, unpack it and run its get_birdsnap.py, which fetches the images",
        _photo("bird"),
    ),
    SetSpec(
        "cars",
        "stanford_cars",
        ("cars_train", "cars_test", "devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"),
        read_cars,
        "get cars_train, cars_test, car_devkit.tgz and cars_test_annos_withlabels.mat of Stanford Cars and unpack them in stanford_cars",
        _CAR,
    ),
    SetSpec(
        "flowers102",
        "oxford_flowers|flowers-102",
        ("jpg", "imagelabels.mat", "setid.mat"),
        read_flowers,
        f"{_FLOWERS_GET} with imagelabels.mat and setid.mat beside jpg, and put the class names there: classes.txt, one a line, or cat_to_name.json",
        _photo("flower"),
    ),
)
