"""The steps to get a data set: their commands run here, on archives that hold what the real ones hold, with downloads taken from a folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from finelens.bench.sets import sources
from finelens.bench.sets.find import find_data
from finelens.bench.sets.sources import Source
from finelens.bench.sets.table import SETS

COMMANDS = ("curl -f", "tar xf", "unzip -q", "unrar x")
# What each archive holds, as far as the loaders ask for it.
ARCHIVES = {
    "cifar-10-binary.tar.gz": [f"cifar-10-batches-bin/{name}" for name in ("batches.meta.txt", "data_batch_1.bin", "test_batch.bin")],
    "cifar-100-binary.tar.gz": [f"cifar-100-binary/{name}" for name in ("fine_label_names.txt", "train.bin", "test.bin")],
    "images.tar.gz": ["images/Abyssinian_1.jpg"],
    "annotations.tar.gz": ["annotations/trainval.txt", "annotations/test.txt"],
    "food-101.tar.gz": ["food-101/images/apple_pie/1.jpg", *(f"food-101/meta/{name}.txt" for name in ("train", "test", "classes"))],
    "dtd-r1.0.1.tar.gz": ["dtd/images/banded/1.jpg", "dtd/labels/train1.txt", "dtd/labels/test1.txt"],
    "fgvc-aircraft-2013b.tar.gz": [
        f"fgvc-aircraft-2013b/data/{name}" for name in ("images/1.jpg", "variants.txt", "images_variant_trainval.txt", "images_variant_test.txt")
    ],
    "CUB_200_2011.tgz": [
        "attributes.txt",
        "CUB_200_2011/images/1/1.jpg",
        *(f"CUB_200_2011/{name}.txt" for name in ("images", "image_class_labels", "train_test_split", "classes")),
    ],
    "101_ObjectCategories.tar.gz": ["101_ObjectCategories/airplanes/1.jpg"],
    "caltech-101.zip": ["caltech-101/101_ObjectCategories.tar.gz", "caltech-101/Annotations.tar"],
    "EuroSAT_RGB.zip": ["EuroSAT_RGB/AnnualCrop/AnnualCrop_1.jpg"],
    "102flowers.tgz": ["jpg/image_00001.jpg"],
    "cars_train.tgz": ["cars_train/1.jpg"],
    "cars_test.tgz": ["cars_test/1.jpg"],
    "car_devkit.tgz": ["devkit/cars_meta.mat", "devkit/cars_train_annos.mat"],
    "SUN397.tar.gz": ["SUN397/ClassName.txt", "SUN397/a/abbey/1.jpg"],
    "Partitions.zip": ["Training_01.txt", "Testing_01.txt", "ClassName.txt"],
    "UCF-101-midframes.zip": ["UCF-101-midframes/Apply_Eye_Makeup/1.jpg"],
    "UCF101TrainTestSplits-RecognitionTask.zip": [f"ucfTrainTestlist/{name}.txt" for name in ("classInd", "trainlist01", "testlist01")],
    "NWPU-RESISC45.rar": ["NWPU-RESISC45/airplane/1.jpg"],
    "AID.zip": ["AID/Airport/1.jpg"],
    "n01440764.tar": ["n01440764_1.JPEG"],
    "n01443537.tar": ["n01443537_1.JPEG"],
    "ILSVRC2012_img_train.tar": ["n01440764.tar", "n01443537.tar"],
    "ILSVRC2012_img_val.tar": ["ILSVRC2012_val_00000001.JPEG"],
    "ILSVRC2012_devkit_t12.tar.gz": ["ILSVRC2012_devkit_t12/data/meta.mat", "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"],
    "imagenetv2-matched-frequency.tar.gz": ["imagenetv2-matched-frequency-format-val/0/1.jpeg"],
    "imagenet-a.tar": ["imagenet-a/README.txt"],
    "imagenet-r.tar": ["imagenet-r/README.txt"],
    "ImageNet-Sketch.zip": ["sketch/n01440764/1.JPEG"],
    "GTSRB_Final_Training_Images.zip": ["GTSRB/Final_Training/Images/00000/GT-00000.csv"],
    "GTSRB_Final_Test_Images.zip": ["GTSRB/Final_Test/Images/00000.ppm"],
    "GTSRB_Final_Test_GT.zip": ["GT-final_test.csv"],
    "birdsnap.tgz": [f"birdsnap/{name}" for name in ("images.txt", "test_images.txt", "species.txt", "get_birdsnap.py")],
}
SHIMS = {
    "curl": """
        while [ $# -gt 0 ]; do case $1 in -o) out=$2; shift;; -*) ;; *) url=$1;; esac; shift; done
        cp "$SERVER/${url##*/}" "${out:-${url##*/}}"
    """,
    "unzip": 'into=.; [ "$3" = -d ] && into=$4; exec "$PYTHON" -m zipfile -e "$2" "$into"',
    "unrar": 'exec "$PYTHON" -m zipfile -e "$2" .',
    "python2": "test -f get_birdsnap.py && mkdir -p download/images",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Path:
    """A folder with every file that steps download, by name."""
    folder = tmp_path_factory.mktemp("server")
    for name, members in ARCHIVES.items():
        if name.endswith((".zip", ".rar")):
            with zipfile.ZipFile(folder / name, "w") as archive:
                for member in members:
                    inner = folder / Path(member).name
                    archive.writestr(member, inner.read_bytes() if inner.is_file() else b"x")
            continue
        with tarfile.open(folder / name, "w" if name.endswith(".tar") else "w:gz") as archive:
            for member in members:
                inner = folder / Path(member).name
                source = inner if inner.is_file() else folder / "content"
                source.write_bytes(source.read_bytes() if source == inner else b"x")
                archive.add(source, member)
    for name in ("imagelabels.mat", "setid.mat", "cars_test_annos_withlabels.mat", *sources.COOP_SPLITS):
        (folder / name).write_text("x")
    return folder


@pytest.fixture
def shell(tmp_path, server):
    """Runs commands where downloads come from the folder."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, script in SHIMS.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    environment = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "SERVER": str(server), "PYTHON": sys.executable}

    def run(commands: str, place: Path) -> None:
        subprocess.run(["sh", "-c", commands], cwd=place, env=environment, check=True, capture_output=True)

    return run


def names_of_files(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w./-])[\w.-]+\.(?:tar\.gz|tgz|tar|zip|rar|json|mat)\b", text))


@pytest.mark.parametrize("spec", SETS, ids=lambda spec: spec.name)
def test_steps_name_the_folder_the_page_and_the_commands(spec):
    assert spec.first in spec.steps
    assert re.search(r"https?://\S", spec.steps)
    assert any(command in spec.steps for command in COMMANDS)
    assert "{folder}" not in spec.steps
    for need in spec.needs:
        assert need.partition("|")[0] in spec.steps


@pytest.mark.skipif(os.name == "nt", reason="the commands are for a shell")
@pytest.mark.parametrize("spec", SETS, ids=lambda spec: spec.name)
def test_after_its_steps_a_set_is_there(tmp_path, spec, shell, server):
    root = tmp_path / "root"
    root.mkdir()
    commands = spec.source.commands.replace("{folder}", spec.first)
    for name in names_of_files(spec.source.by_hand):
        assert name in commands, "what is downloaded by hand is used"
        (root / name).write_bytes((server / name).read_bytes())
    shell(commands, root)
    if "split.json" in spec.needs:
        (root / spec.first / "split.json").write_text("{}")
    assert find_data(spec.name, root)[0] == spec.name


@pytest.mark.skipif(os.name == "nt", reason="the commands are for a shell")
def test_imagenet_s_training_part_is_sorted_by_class(tmp_path, shell, server):
    for name in names_of_files(sources.IMAGENET.by_hand):
        (tmp_path / name).write_bytes((server / name).read_bytes())
    shell(sources.IMAGENET.commands.replace("{folder}", "imagenet"), tmp_path)
    train = tmp_path / "imagenet/train"
    assert sorted(str(path.relative_to(train)) for path in train.rglob("*.*")) == ["n01440764/n01440764_1.JPEG", "n01443537/n01443537_1.JPEG"]
    assert (tmp_path / "imagenet/ILSVRC2012_devkit_t12/data/meta.mat").is_file()


def test_a_split_file_of_the_user_s_own_is_called_so():
    steps = {spec.name: spec.steps for spec in SETS}
    for name in ("resisc45-coop", "aid-coop"):
        assert "split.json is a file of yours" in steps[name]
    assert "drive.google.com" in steps["pets-coop"]
    assert "file of yours" not in steps["pets-coop"]


def test_steps_are_one_line_with_what_there_is():
    assert Source("tar xf a.tar").steps("a", "b, c") == "run tar xf a.tar; then a holds b, c"
    assert Source("unrar x a.rar -C {folder}", "a.rar", "so").steps("d", "e") == "download a.rar; run unrar x a.rar -C d; then d holds e; so"
