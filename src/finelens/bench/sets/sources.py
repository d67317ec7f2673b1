"""Where the data sets with a name come from: what to download by hand, and commands for a shell in the folder of data sets.

``{folder}`` is the folder in which the set's loader looks. Archives that lie behind a login, a licence or a page of links are downloaded by hand.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """How to get a data set.

    Attributes:
        commands: For a shell.
        by_hand: Files to put into the folder of data sets before, and the pages that have them; may be empty.
        note: What else there is to know; may be empty.
    """

    commands: str
    by_hand: str = ""
    note: str = ""

    def steps(self, folder: str, holds: str) -> str:
        """One line.

        Args:
            folder: The set's folder, below the folder of data sets.
            holds: What must be in it then.
        """
        parts = [self.by_hand and f"download {self.by_hand}", f"run {self.commands}", f"then {folder} holds {holds}", self.note]
        return "; ".join(part for part in parts if part).replace("{folder}", folder)


def with_split(source: Source, split: str, place: str) -> Source:
    """A source with a split file in CoOp's form, which the set's folder needs as well.

    Args:
        source: Where the images come from.
        split: Name of the file.
        place: The page that has it; empty for a file of the user's own.
    """
    if not place:
        note = f'{split} is a file of yours in CoOp\'s form, {{"train": [[path, label, class name], ...], "test": ...}}'
        return Source(source.commands, source.by_hand, "; ".join(part for part in (note, source.note) if part))
    by_hand = f"{split} from {place}"
    by_hand = f"{source.by_hand}, and {by_hand}" if source.by_hand else by_hand
    return Source(f"{source.commands} && mv {split} {{folder}}", by_hand, source.note)


def _steps(*commands: str) -> str:
    return " && ".join(commands)


def _tar(url: str, *, inside: bool = False) -> str:
    """Download and unpack; ``inside`` the set's folder where the archive does not bring it."""
    return f"curl -fLO {url} && tar xf {url.rpartition('/')[2]}{' -C {folder}' if inside else ''}"


def _zip(url: str, *, inside: bool = False) -> str:
    return f"curl -fLO {url} && unzip -q {url.rpartition('/')[2]}{' -d {folder}' if inside else ''}"


_MAKE = "mkdir -p {folder}"
_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"
_SIGNS = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370"
_PRINCETON = "vision.princeton.edu/projects/2010/SUN"

CIFAR10 = Source(_tar("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"))
CIFAR100 = Source(_tar("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"))
PETS = Source(_steps(_MAKE, _tar(f"{_OXFORD}/pets/data/images.tar.gz", inside=True), _tar(f"{_OXFORD}/pets/data/annotations.tar.gz", inside=True)))
FOOD = Source(_tar("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz"))
DTD = Source(_tar(f"{_OXFORD}/dtd/download/dtd-r1.0.1.tar.gz"))
AIRCRAFT = Source(_tar(f"{_OXFORD}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz"))
CUB = Source(_tar("https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"))
CALTECH = Source(
    _steps(
        _zip("https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip"),
        "tar xf caltech-101/101_ObjectCategories.tar.gz -C {folder}",
    )
)
EUROSAT = Source(
    _steps(_MAKE, _zip("https://zenodo.org/records/7711810/files/EuroSAT_RGB.zip", inside=True), "mv {folder}/EuroSAT_RGB {folder}/2750"),
)
FLOWER_IMAGES = Source(_steps(_MAKE, _tar(f"{_OXFORD}/flowers/102/102flowers.tgz", inside=True)))
FLOWERS = Source(
    _steps(
        FLOWER_IMAGES.commands,
        f"curl -fL -o {{folder}}/imagelabels.mat {_OXFORD}/flowers/102/imagelabels.mat",
        f"curl -fL -o {{folder}}/setid.mat {_OXFORD}/flowers/102/setid.mat",
    ),
    note="class names of yours may lie there as classes.txt, one a line in the order of the labels, or as cat_to_name.json",
)
CARS = Source(
    _steps(
        _MAKE,
        *(f"tar xf {archive}.tgz -C {{folder}}" for archive in ("cars_train", "cars_test", "car_devkit")),
        "mv cars_test_annos_withlabels.mat {folder}",
    ),
    "cars_train.tgz, cars_test.tgz, car_devkit.tgz and cars_test_annos_withlabels.mat of Stanford Cars from a copy of them (the authors' page, "
    "https://ai.stanford.edu/~jkrause/cars/car_dataset.html, no longer has the files)",
)
SUN_IMAGES = Source(_steps(_MAKE, _tar(f"http://{_PRINCETON}/SUN397.tar.gz", inside=True)))
SUN = Source(_steps(SUN_IMAGES.commands, _zip(f"https://{_PRINCETON}/download/Partitions.zip", inside=True)))
UCF_FRAMES = Source(
    _steps(_MAKE, "unzip -q UCF-101-midframes.zip -d {folder}"),
    "UCF-101-midframes.zip, the middle frames by the CoOp project, from https://drive.google.com/file/d/10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O/view",
)
UCF = Source(
    _steps(UCF_FRAMES.commands, _zip("https://www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip", inside=True)),
    UCF_FRAMES.by_hand,
)
RESISC = Source("unrar x NWPU-RESISC45.rar", "NWPU-RESISC45.rar from where https://gcheng-nwpu.github.io/#Datasets links to")
AID = Source("unzip -q AID.zip", "the data set as AID.zip from where https://captain-whu.github.io/AID/ links to")
IMAGENET = Source(
    _steps(
        "mkdir -p {folder}/train {folder}/val",
        "tar xf ILSVRC2012_img_train.tar -C {folder}/train",
        "for one in {folder}/train/*.tar; do mkdir ${one%.tar} && tar xf $one -C ${one%.tar} && rm $one; done",
        "tar xf ILSVRC2012_img_val.tar -C {folder}/val",
        "tar xf ILSVRC2012_devkit_t12.tar.gz -C {folder}",
    ),
    "ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz from "
    "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php, which needs an account",
    "or unpack the archive of https://www.kaggle.com/c/imagenet-object-localization-challenge into {folder}, LOC_val_solution.csv with it",
)
IMAGENET_V2 = Source(
    _steps(_MAKE, "tar xf imagenetv2-matched-frequency.tar.gz -C {folder}"),
    "imagenetv2-matched-frequency.tar.gz from where https://github.com/modestyachts/ImageNetV2 links to",
)
IMAGENET_A = Source(_tar("https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar"))
IMAGENET_R = Source(_tar("https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar"))
IMAGENET_SKETCH = Source(
    _steps(_MAKE, "unzip -q ImageNet-Sketch.zip -d {folder}"), "ImageNet-Sketch.zip from where https://github.com/HaohanWang/ImageNet-Sketch links to"
)
GTSRB = Source(
    _steps(
        _zip(f"{_SIGNS}/GTSRB_Final_Training_Images.zip"),
        _zip(f"{_SIGNS}/GTSRB_Final_Test_Images.zip"),
        _zip(f"{_SIGNS}/GTSRB_Final_Test_GT.zip", inside=True),
    )
)
BIRDSNAP = Source(
    _steps(_tar("https://thomasberg.org/datasets/birdsnap/1.1/birdsnap.tgz"), "(cd {folder} && python2 get_birdsnap.py)"),
    note="get_birdsnap.py fetches the images one by one, as far as they can still be had",
)
# Of the CoOp project's notes, https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md.
COOP_SPLITS = {
    "split_zhou_Caltech101.json": "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN",
    "split_zhou_DescribableTextures.json": "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x",
    "split_zhou_EuroSAT.json": "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o",
    "split_zhou_Food101.json": "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl",
    "split_zhou_OxfordFlowers.json": "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT",
    "split_zhou_OxfordPets.json": "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs",
    "split_zhou_StanfordCars.json": "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT",
    "split_zhou_SUN397.json": "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq",
    "split_zhou_UCF101.json": "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y",
}


def coop_page(split: str) -> str:
    """Page with one of the CoOp project's split files; empty where it publishes none."""
    return f"https://drive.google.com/file/d/{COOP_SPLITS[split]}/view" if split in COOP_SPLITS else ""
