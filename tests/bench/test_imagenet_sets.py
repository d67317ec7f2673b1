"""Loaders of ImageNet and its variants, on tiny files in the real formats."""

from __future__ import annotations

import shutil
from collections import Counter
from importlib.resources import files

import numpy as np
import pytest
from scipy.io import savemat

from finelens.bench.sets.find import find_data
from finelens.bench.sets.wordnet import TOLD_APART, class_names, named
from finelens.classes.names import normalise
from finelens.errors import UserError
from tests.bench.small_files import statuses
from tests.bench.test_sets import labels, picture, read

WNIDS = ("n01440764", "n02012849", "n03126707")


def write_imagenet(root):
    folder = root / "imagenet"
    for k, wnid in enumerate(WNIDS):
        for i in range(2):
            picture(folder / "train" / wnid / f"{wnid}_{i}.JPEG", 10 * k + i)
        picture(folder / "val" / wnid / f"ILSVRC2012_val_{k:08d}.JPEG", 10 * k + 5)
    (folder / "LOC_synset_mapping.txt").write_text(f"{WNIDS[0]} tench, Tinca tinca\n{WNIDS[1]} crane\n{WNIDS[2]} crane\n")
    return folder


def test_imagenet(tmp_path):
    folder = write_imagenet(tmp_path)
    assert read("imagenet", tmp_path).class_names == ("tench", "crane bird", "construction crane")
    # What the user says has the last word, also where it does not tell the classes apart.
    (folder / "classnames.txt").write_text(f"{WNIDS[1]} crane\n")
    assert read("imagenet", tmp_path).class_names == ("tench", "crane", "construction crane")
    (folder / "classnames.txt").write_text(f"{WNIDS[1]} crane\n{WNIDS[2]} Crane\n")
    with pytest.raises(UserError, match=r"n02012849 and n03126707 are both called 'Crane'; name them in classnames.txt"):
        find_data("imagenet", tmp_path)[1]()
    (folder / "classnames.txt").write_text(f"{WNIDS[1]} crane bird\n")
    data = read("imagenet", tmp_path)
    assert data.class_names == ("tench", "crane bird", "crane")
    assert (labels(data.train), labels(data.test)) == ([0, 0, 1, 1, 2, 2], [0, 1, 2])
    (folder / "LOC_synset_mapping.txt").unlink()
    with pytest.raises(UserError, match=r"class folder n01440764 has no name; put a file classnames.txt"):
        find_data("imagenet", tmp_path)[1]()


def test_names_of_all_classes_are_apart():
    """The words of all 1,000 classes by WordNet id, as timm has them: ours are needed where two share the first, and nowhere else."""
    info = files("timm.data").joinpath("_info")
    wnids = info.joinpath("imagenet_synsets.txt").read_text().split()
    lines = (line.partition("\t") for line in info.joinpath("imagenet_synset_to_lemma.txt").read_text().splitlines())
    words = {wnid: text for wnid, _, text in lines if wnid in set(wnids)}
    assert len(words) == len(wnids) == 1000
    names = class_names(first=words)
    assert len(named(wnids, names)) == 1000
    firsts = Counter(normalise(text.partition(",")[0]) for text in words.values())
    shared = {wnid for wnid, text in words.items() if firsts[normalise(text.partition(",")[0])] > 1}
    assert shared == set(TOLD_APART)
    assert {names[wnid] for wnid in shared} == set(TOLD_APART.values())
    assert all(names[wnid] == words[wnid].partition(",")[0] for wnid in set(wnids) - shared)


def test_other_classes_with_one_name_are_refused(tmp_path):
    folder = write_imagenet(tmp_path)
    (folder / "LOC_synset_mapping.txt").write_text(f"{WNIDS[0]} fish\n{WNIDS[1]} tench\n{WNIDS[2]} crane\n")
    wnid = "n01443537"
    for part in ("train", "val"):
        picture(folder / part / wnid / "x.JPEG", 99)
    with (folder / "LOC_synset_mapping.txt").open("a") as file:
        file.write(f"{wnid} fish\n")
    with pytest.raises(UserError, match=r"n01440764 and n01443537 are both called 'fish'; name them in classnames.txt"):
        find_data("imagenet", tmp_path)[1]()


def flat(folder, source=None):
    """The validation part as its own archive unpacks; returns the WordNet id of each image by its number."""
    numbers = {1: WNIDS[2], 2: WNIDS[0], 3: WNIDS[1]}
    for path in sorted((folder / "val").rglob("*.JPEG")):
        path.unlink()
    for wnid in WNIDS:
        (folder / "val" / wnid).rmdir()
    for number in numbers:
        picture(folder / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", 50 + number)
    return numbers


def synsets(path, rows):
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    table = np.zeros((len(rows), 1), dtype=kinds)
    for i, (number, wnid, words, children) in enumerate(rows):
        table[i, 0] = (number, wnid, words, "a gloss", children)
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"synsets": table})


def by_file(data):
    return {image.path.stem[-1]: data.class_names[label] for image, label in zip(data.test.images, labels(data.test), strict=True)}


def kaggle_solution(folder, numbers):
    rows = [f"ILSVRC2012_val_{number:08d},{wnid} 85 1 499 272 {wnid} 1 1 9 9" for number, wnid in numbers.items()]
    (folder / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *reversed(rows)]) + "\n")


TRUE = {"1": "crane machine", "2": "tench", "3": "crane bird"}


@pytest.mark.parametrize("layout", ["kaggle", "flat"])
def test_imagenet_as_kaggle_packs_it(tmp_path, layout):
    folder = write_imagenet(tmp_path)
    numbers = flat(folder)
    (folder / "LOC_synset_mapping.txt").write_text(f"{WNIDS[0]} tench, Tinca\n{WNIDS[1]} crane bird\n{WNIDS[2]} crane machine\n")
    if layout == "kaggle":
        (folder / "ILSVRC/Data/CLS-LOC").mkdir(parents=True)
        for part in ("train", "val"):
            (folder / part).rename(folder / "ILSVRC/Data/CLS-LOC" / part)
    with pytest.raises(UserError, match=r"no class folders: put LOC_val_solution.csv .*, or sort the images into .*val/WNID"):
        find_data("imagenet", tmp_path)[1]()
    kaggle_solution(folder, numbers)
    data = read("imagenet", tmp_path)
    assert labels(data.train) == [0, 0, 1, 1, 2, 2]
    assert by_file(data) == TRUE
    assert data.split == "train folders and LOC_val_solution.csv (3 of 3 images there)"
    (folder / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nILSVRC2012_val_00000001, \n")
    with pytest.raises(UserError, match=r"line 2: expected a table with ImageId and PredictionString"):
        find_data("imagenet", tmp_path)[1]()
    kaggle_solution(folder, {1: WNIDS[0], 2: WNIDS[1]})
    with pytest.raises(UserError, match=r"says nothing about ILSVRC2012_val_00000003.JPEG"):
        find_data("imagenet", tmp_path)[1]()


def test_imagenet_with_a_list_of_wordnet_ids(tmp_path):
    folder = write_imagenet(tmp_path)
    numbers = flat(folder)
    (folder / "classnames.txt").write_text(f"{WNIDS[1]} crane bird\n{WNIDS[2]} crane machine\n")
    (folder / "val/imagenet_2012_validation_synset_labels.txt").write_text("\n".join(numbers.values()))
    assert by_file(read("imagenet", tmp_path)) == TRUE
    (folder / "val/imagenet_2012_validation_synset_labels.txt").write_text("490\n361\n171\n")
    with pytest.raises(UserError, match="'490' is no WordNet id"):
        find_data("imagenet", tmp_path)[1]()


def test_imagenet_with_the_development_kit(tmp_path):
    """Its numbers of classes are no places in the sorted ids: only its own table says what they mean."""
    folder = write_imagenet(tmp_path)
    flat(folder)
    (folder / "LOC_synset_mapping.txt").unlink()
    kit = folder / "ILSVRC2012_devkit_t12/data"
    kit.mkdir(parents=True)
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n3\n2\n")
    with pytest.raises(UserError, match=r"put meta.mat of the same development kit beside it"):
        find_data("imagenet", tmp_path)[1]()
    rows = [
        (1, WNIDS[2], "crane machine", 0),
        (2, WNIDS[1], "crane bird, bird", 0),
        (3, WNIDS[0], "tench, Tinca tinca", 0),
        (1001, "n00000001", "thing", 2),
    ]
    synsets(kit / "meta.mat", rows)
    assert by_file(read("imagenet", tmp_path)) == TRUE
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n3\n1001\n")
    with pytest.raises(UserError, match="'1001' is no class of meta"):
        find_data("imagenet", tmp_path)[1]()


def test_imagenet_without_its_training_part(tmp_path):
    folder = write_imagenet(tmp_path)
    (folder / "classnames.txt").write_text(f"{WNIDS[1]} crane bird\n")
    shutil.rmtree(folder / "train")
    data = find_data("imagenet", tmp_path)[1]()
    assert (labels(data.train), labels(data.test), data.split) == ([], [0, 1, 2], "val folders, no training part")


def test_two_classes_with_one_first_synonym_take_their_whole_lists(tmp_path):
    folder = write_imagenet(tmp_path)
    wnid = "n01443537"
    for part in ("train", "val"):
        picture(folder / part / wnid / "x.JPEG", 99)
    (folder / "LOC_synset_mapping.txt").write_text(f"{WNIDS[0]} jay\n{wnid} jay, blue jay\n{WNIDS[1]} crane bird\n{WNIDS[2]} crane, machine\n")
    assert read("imagenet", tmp_path).class_names == ("jay", "jay, blue jay", "crane bird", "crane")


@pytest.mark.parametrize(("name", "folder", "images"), [("imagenet-a", "imagenet-a", "."), ("imagenet-r", "imagenet-r", ".")])
def test_variants_name_their_classes_themselves(tmp_path, name, folder, images):
    root = tmp_path / folder
    picture(root / images / WNIDS[0] / "0.jpg", 1)
    picture(root / images / WNIDS[2] / "1.jpg", 2)
    (root / "README.txt").write_text(f"Notes.\n\nThe class names are\n{WNIDS[0]} tench\n{WNIDS[2]} crane machine\n")
    data, again = (find_data(name, tmp_path)[1]() for _ in range(2))
    assert data.class_names == ("tench", "crane machine")
    assert (labels(data.train), labels(data.test)) == ([], [0, 1])
    assert statuses(data.test) == ["ok", "ok"]
    assert data.texts_digest() == again.texts_digest()


def test_variants_that_rest_on_the_names_of_imagenet(tmp_path):
    (write_imagenet(tmp_path) / "classnames.txt").write_text(f"{WNIDS[1]} crane bird\n")
    for k in (0, 2):
        picture(tmp_path / "imagenetv2/imagenetv2-matched-frequency-format-val" / str(k) / "x.jpeg", k)
        picture(tmp_path / "imagenet-sketch/sketch" / WNIDS[k] / "sketch_1.JPEG", k)
    for name in ("imagenet-v2", "imagenet-sketch"):
        data = find_data(name, tmp_path)[1]()
        assert data.class_names == ("tench", "crane")
        assert labels(data.test) == [0, 1]
    picture(tmp_path / "imagenetv2/imagenetv2-matched-frequency-format-val/3/x.jpeg")
    with pytest.raises(UserError, match="only 3 class names"):
        find_data("imagenet-v2", tmp_path)[1]()


def test_variants_take_names_from_the_development_kit_of_imagenet(tmp_path):
    for k in (0, 2):
        picture(tmp_path / "imagenetv2/imagenetv2-matched-frequency-format-val" / str(k) / "x.jpeg", k)
    rows = [(1, WNIDS[2], "crane", 0), (2, WNIDS[1], "crane", 0), (3, WNIDS[0], "tench, Tinca tinca", 0), (1001, "n00000001", "thing", 2)]
    synsets(tmp_path / "imagenet/ILSVRC2012_devkit_t12/data/meta.mat", rows)
    assert find_data("imagenet-v2", tmp_path)[1]().class_names == ("tench", "construction crane")
    (tmp_path / "imagenetv2/classnames.txt").write_text(f"{WNIDS[2]} hoist\n")
    assert find_data("imagenet-v2", tmp_path)[1]().class_names == ("tench", "hoist")


def test_imagenet_v2_folders_are_numbers_and_not_texts(tmp_path):
    """As texts, 10 stands before 2: the names must not move."""
    lines = [f"n{k:08d} class {k}" for k in range(12)]
    root = tmp_path / "imagenetv2"
    root.mkdir()
    (root / "classnames.txt").write_text("\n".join(lines))
    for k in range(12):
        picture(root / "imagenetv2-matched-frequency-format-val" / str(k) / f"{k}.jpeg", k)
    data = find_data("imagenet-v2", tmp_path)[1]()
    for image, label in zip(data.test.images, labels(data.test), strict=True):
        assert data.class_names[label] == f"class {image.path.stem}"


def test_the_users_names_win_over_every_other_file(tmp_path):
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet-r").mkdir()
    (tmp_path / "imagenet/classnames.txt").write_text("n02012849 wading crane\n")
    (tmp_path / "imagenet-r/README.txt").write_text("n02012849 crane\nn01440764 tench\n")
    assert class_names(tmp_path / "imagenet", tmp_path / "imagenet-r") == {"n02012849": "wading crane", "n01440764": "tench"}
