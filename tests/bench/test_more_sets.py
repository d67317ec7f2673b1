"""Loaders of ImageNet and its variants, of table layouts, drawn splits, Parquet shards and WebDataset shards, on tiny files in the real formats."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from finelens.bench.sets.find import find_data
from finelens.bench.sets.tar_shards import members
from finelens.bench.sets.webdataset import LABELS, MOST_LABEL_BYTES
from finelens.errors import UserError
from finelens.images.store import load_images
from tests.bench.test_sets import labels, picture, read

WNIDS = ("n01440764", "n02012849", "n03126707")


def statuses(part) -> list[str]:
    images = [image.path for image in part.images] if isinstance(part.images, list) else part.images
    return [record.status for record in load_images(images).records]


def jpeg(seed=0, form="JPEG") -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(data, form)
    return data.getvalue()


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
    with pytest.raises(UserError, match=r"n02012849 and n03126707 are both called 'crane'; name them in classnames.txt"):
        find_data("imagenet", tmp_path)[1]()
    (folder / "classnames.txt").write_text(f"{WNIDS[1]} crane bird\n")
    data = read("imagenet", tmp_path)
    assert data.class_names == ("tench", "crane bird", "crane")
    assert (labels(data.train), labels(data.test)) == ([0, 0, 1, 1, 2, 2], [0, 1, 2])
    (folder / "LOC_synset_mapping.txt").unlink()
    with pytest.raises(UserError, match=r"class folder n01440764 has no name; put a file classnames.txt"):
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
    (folder / "LOC_synset_mapping.txt").write_text(f"{WNIDS[0]} maillot\n{WNIDS[1]} maillot, tank suit\n{WNIDS[2]} crane, machine\n")
    assert read("imagenet", tmp_path).class_names == ("maillot", "maillot, tank suit", "crane")


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


def write_gtsrb(root):
    head = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
    folder = root / "GTSRB"
    for sign in (0, 14):
        place = folder / "Final_Training/Images" / f"{sign:05d}"
        for i in range(2):
            picture(place / f"0000{i}_00000.ppm", sign + i)
        (place / f"GT-{sign:05d}.csv").write_text(head + "".join(f"0000{i}_00000.ppm;29;30;5;6;24;25;{sign}\n" for i in range(2)))
    picture(folder / "Final_Test/Images/00000.ppm", 50)
    picture(folder / "Final_Test/Images/00001.ppm", 51)
    (folder / "GT-final_test.csv").write_text(head + "00000.ppm;53;54;6;5;48;49;14\n00001.ppm;42;45;5;5;36;40;0\n")
    return folder


def test_gtsrb_as_torchvision_downloads_it(tmp_path):
    folder = write_gtsrb(tmp_path)
    (tmp_path / "gtsrb").mkdir()
    (folder / "GT-final_test.csv").rename(tmp_path / "gtsrb/GT-final_test.csv")
    (folder / "Final_Training/Images").rename(folder / "Training")
    (folder / "Final_Training").rmdir()
    folder.rename(tmp_path / "gtsrb/GTSRB")
    data = read("gtsrb", tmp_path)
    assert (labels(data.train), labels(data.test)) == ([0, 0, 14, 14], [14, 0])
    assert data.split.startswith("Training and GT-final_test.csv")


def test_gtsrb(tmp_path):
    folder = write_gtsrb(tmp_path)
    data = read("gtsrb", tmp_path)
    assert len(data.class_names) == 43
    assert (data.class_names[0], data.class_names[14]) == ("speed limit of 20 km/h", "stop")
    assert (labels(data.train), labels(data.test)) == ([0, 0, 14, 14], [14, 0])
    # The list that comes with the images has no classes.
    (folder / "GT-final_test.csv").write_text("Filename;Width\n00000.ppm;53\n")
    with pytest.raises(UserError, match="line 2: expected a table with Filename and ClassId"):
        find_data("gtsrb", tmp_path)[1]()
    (folder / "GT-final_test.csv").unlink()
    with pytest.raises(UserError, match=r"GTSRB_Final_Test_GT.zip"):
        find_data("gtsrb", tmp_path)[1]()


@pytest.mark.parametrize(("name", "folder", "first", "train"), [("resisc45", "NWPU-RESISC45", "airplane", 2), ("aid", "AID", "Airport", 5)])
def test_drawn_splits_depend_on_names_alone(tmp_path, name, folder, first, train):
    for k, own in enumerate((first, "dense_residential")):
        for i in range(10):
            picture(tmp_path / folder / own / f"{own}_{i:03d}.jpg", 20 * k + i)
    (tmp_path / folder / "readme.txt").write_text("no image")
    data = read(name, tmp_path)
    assert data.class_names == (first.lower(), "dense residential")
    assert labels(data.train) == [0] * train + [1] * train
    both = [{image.name for image in part.images} for part in (data.train, data.test)]
    assert not both[0] & both[1]
    assert len(both[0] | both[1]) == 20
    assert data.split == read(name, tmp_path).split
    # One image less moves at most one other.
    gone = data.train.images[0].path
    gone.unlink()
    after = {image.name for image in read(name, tmp_path).train.images}
    assert len(after - both[0]) <= 1
    assert read(name, tmp_path).split != data.split


def test_caltech101_and_eurosat_have_names_of_ours(tmp_path):
    for folder in ("101_ObjectCategories/airplanes", "101_ObjectCategories/Faces_easy", "101_ObjectCategories/crocodile_head"):
        for i in range(2):
            picture(tmp_path / "caltech101" / folder / f"image_000{i}.jpg", i)
    data = read("caltech101", tmp_path)
    assert data.class_names == ("airplane", "crocodile head")
    assert (labels(data.train), labels(data.test)) == ([0, 1], [0, 1])
    assert {image.name.split("/")[0] for part in (data.train, data.test) for image in part.images} == {"airplanes", "crocodile_head"}
    for folder in ("AnnualCrop", "River", "SeaLake"):
        for i in range(2):
            picture(tmp_path / "eurosat/2750" / folder / f"{folder}_{i}.jpg", i)
    data = read("eurosat", tmp_path)
    assert data.class_names == ("fields of annual crops", "river", "a sea or lake")
    assert data.split.startswith("50 % of each class drawn by finelens (3 train, 3 test")


@pytest.mark.parametrize("layout", ["sun397", "torchvision"])
def test_sun397_with_the_split_of_its_authors(tmp_path, layout):
    root, lists = (tmp_path / "sun397", tmp_path / "sun397/Partitions") if layout == "sun397" else (tmp_path, tmp_path / "SUN397")
    places = ("/a/abbey", "/a/apartment_building/outdoor")
    for place in places:
        for i in range(2):
            picture(root / f"SUN397{place}" / f"sun_{i}.jpg", i)
    lists.mkdir(exist_ok=True)
    (lists / "ClassName.txt").write_text("".join(f"{place}\n" for place in places))
    (lists / "Training_01.txt").write_text(f"{places[0]}/sun_0.jpg\n{places[1]}/sun_1.jpg\n")
    (lists / "Testing_01.txt").write_text(f"{places[1]}/sun_0.jpg\n{places[0]}/sun_1.jpg\n")
    data = read("sun397", tmp_path)
    assert data.class_names == ("abbey", "outdoor apartment building")
    assert (labels(data.train), labels(data.test)) == ([0, 1], [1, 0])
    (lists / "Testing_01.txt").write_text("/a/attic/sun_0.jpg\n")
    with pytest.raises(UserError, match="is in no class of ClassName"):
        find_data("sun397", tmp_path)[1]()


@pytest.mark.parametrize("renamed", [True, False])
def test_ucf101_middle_frames_with_the_split_of_its_authors(tmp_path, renamed):
    folders = ("Apply_Lipstick", "Handstand_Pushups") if renamed else ("ApplyLipstick", "HandstandPushups")
    for folder, clip in zip(folders, ("ApplyLipstick", "HandStandPushups"), strict=True):
        for i in range(2):
            picture(tmp_path / "ucf101/UCF-101-midframes" / folder / f"v_{clip}_g01_c0{i}.jpg", i)
    lists = tmp_path / "ucf101/ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 ApplyLipstick\r\n2 HandstandPushups\r\n")
    (lists / "trainlist01.txt").write_text("HandstandPushups/v_HandStandPushups_g01_c00.avi 2\nApplyLipstick/v_ApplyLipstick_g01_c01.avi 1\n")
    (lists / "testlist01.txt").write_text("ApplyLipstick/v_ApplyLipstick_g01_c00.avi\nHandstandPushups/v_HandstandPushups_g01_c01.avi\n")
    data = read("ucf101", tmp_path)
    assert data.class_names == ("apply lipstick", "handstand pushups")
    assert (labels(data.train), labels(data.test)) == ([1, 0], [0, 1])
    (lists / "testlist01.txt").write_text("ApplyLipstick/v_ApplyLipstick_g09_c00.avi\n")
    with pytest.raises(UserError, match=r"1 of 1 images are not in .*, first ApplyLipstick/v_ApplyLipstick_g09_c00.jpg"):
        find_data("ucf101", tmp_path)[1]()
    (lists / "testlist01.txt").write_text("Yoga/v_Yoga_g09_c00.avi\n")
    with pytest.raises(UserError, match="is in no class of classInd"):
        find_data("ucf101", tmp_path)[1]()


def test_a_split_file_for_sets_without_split(tmp_path):
    for i in range(2):
        picture(tmp_path / "AID/Airport" / f"airport_{i}.jpg", i)
    rows = {part: [[f"Airport/airport_{i}.jpg", 0, "Airport"]] for i, part in enumerate(("train", "test"))}
    (tmp_path / "AID/split.json").write_text(json.dumps(rows))
    data = read("aid-coop", tmp_path)
    assert (data.layout, labels(data.test)) == ("coop", [0])


def test_birdsnap(tmp_path):
    folder = tmp_path / "birdsnap"
    paths = ["acadian_flycatcher/1.jpg", "acadian_flycatcher/2.jpg", "blue_jay/3.jpg", "blue_jay/4.jpg"]
    for i, path in enumerate(paths[:3]):
        picture(folder / "download/images" / path, i)
    (folder / "species.txt").write_text(
        "id\tcommon\tscientific\tdir\n1\tAcadian Flycatcher\tE. v.\tacadian_flycatcher\n2\tBlue Jay\tC. c.\tblue_jay\n"
    )
    (folder / "images.txt").write_text("url\tmd5\tpath\tspecies_id\tbb_x1\n" + "".join(f"u\tm\t{p}\t{1 + i // 2}\t9\n" for i, p in enumerate(paths)))
    (folder / "test_images.txt").write_text(f"path\n{paths[1]}\n{paths[3]}\n")
    data = read("birdsnap", tmp_path)
    assert data.class_names == ("Acadian Flycatcher", "Blue Jay")
    assert (labels(data.train), labels(data.test)) == ([0, 1], [0])
    assert "3 of 4 images there" in data.split


def annotations(rows):
    kinds = [("bbox_x1", "O"), ("class", "O"), ("fname", "O")]
    table = np.zeros((1, len(rows)), dtype=kinds)
    for i, (label, name) in enumerate(rows):
        table[0, i] = (39, label, name)
    return {"annotations": table}


@pytest.mark.parametrize("count", [1, 2])
def test_cars(tmp_path, count):
    folder = tmp_path / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    for i in range(count):
        picture(folder / "cars_train" / f"{i:05d}.jpg", i)
        picture(folder / "cars_test" / f"{i:05d}.jpg", 9 + i)
    names = np.array(["AM General Hummer SUV 2000", "Audi S6 Sedan 2011"], dtype=object)[None]
    savemat(folder / "devkit/cars_meta.mat", {"class_names": names})
    savemat(folder / "devkit/cars_train_annos.mat", annotations([(i + 1, f"{i:05d}.jpg") for i in range(count)]))
    savemat(folder / "cars_test_annos_withlabels.mat", annotations([(2 - i, f"{i:05d}.jpg") for i in range(count)]))
    data = read("cars", tmp_path)
    assert data.class_names == ("AM General Hummer SUV 2000", "Audi S6 Sedan 2011")
    assert (labels(data.train), labels(data.test)) == ([0, 1][:count], [1, 0][:count])
    savemat(folder / "devkit/cars_train_annos.mat", {"other": 1})
    with pytest.raises(UserError, match="holds no annotations"):
        find_data("cars", tmp_path)[1]()
    (folder / "devkit/cars_train_annos.mat").write_bytes(b"not a mat file")
    with pytest.raises(UserError, match="cannot read"):
        find_data("cars", tmp_path)[1]()


def test_flowers(tmp_path):
    folder = tmp_path / "oxford_flowers"
    for i in range(1, 6):
        picture(folder / "jpg" / f"image_{i:05d}.jpg", i)
    savemat(folder / "imagelabels.mat", {"labels": np.array([[2, 1, 2, 1, 1]], dtype=np.uint8)})
    savemat(folder / "setid.mat", {"trnid": np.array([[1]]), "valid": np.array([[2]]), "tstid": np.array([[5, 3, 4]])})
    with pytest.raises(UserError, match=r"hold no class names; put classes.txt there"):
        find_data("flowers102", tmp_path)[1]()
    (folder / "cat_to_name.json").write_text('{"2": "fire lily", "1": "pink primrose"}')
    data = read("flowers102", tmp_path)
    assert data.class_names == ("pink primrose", "fire lily")
    assert (labels(data.train), labels(data.test)) == ([1, 0], [0, 1, 0])
    (folder / "cat_to_name.json").write_text('{"1": "a", "3": "b"}')
    with pytest.raises(UserError, match="without a gap"):
        find_data("flowers102", tmp_path)[1]()


def write_shard(path, rows, names=("house_cat", "dog"), group=2):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    table = arrow.table({"image": [{"bytes": data, "path": "x.jpg"} for data, _ in rows], "label": [label for _, label in rows]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=group)


def test_hugging_face_shards(tmp_path):
    folder = tmp_path / "pets-hf"
    write_shard(folder / "data/train-00000-of-00002.parquet", [(jpeg(i), i % 2) for i in range(3)])
    write_shard(folder / "data/train-00001-of-00002.parquet", [(jpeg(3), 1)])
    write_shard(folder / "data/validation-00000-of-00001.parquet", [(jpeg(4, "PNG"), 1), (b"damaged", 0), (None, 0)])
    data = find_data("pets-hf", tmp_path)[1]()
    assert data.class_names == ("house cat", "dog")
    assert (labels(data.train), labels(data.test)) == ([0, 1, 0, 1], [1, 0, 0])
    assert data.split == "shards of train and validation, columns image and label"
    assert statuses(data.train) == ["ok"] * 4
    assert statuses(data.test) == ["ok", "corrupt", "corrupt"]
    for i in (3, 0, 2, 1):
        assert data.train.images[i].data == jpeg(i)
    assert len(set(data.train.names())) == 4
    # The same bytes are the same image, in a shard or in a folder.
    picture(tmp_path / "one.jpg", 2)
    (tmp_path / "one.jpg").write_bytes(jpeg(2))
    assert load_images([tmp_path / "one.jpg"]).store.ids[0] in load_images(data.train.images).store.ids
    (folder / "data/train-00000-of-00002.parquet").unlink()
    with pytest.raises(UserError, match="1 of 2 shards of train"):
        find_data("pets-hf", tmp_path)[1]()


@pytest.mark.parametrize(
    ("names", "label", "message"), [(("cat", "lion"), 0, "other columns or class names"), (("house_cat", "dog"), 2, "none of the 2 classes")]
)
def test_shards_that_do_not_fit(tmp_path, names, label, message):
    write_shard(tmp_path / "train-00000-of-00001.parquet", [(jpeg(), label)], names)
    write_shard(tmp_path / "test-00000-of-00001.parquet", [(jpeg(1), 0)])
    with pytest.raises(UserError, match=message):
        find_data(str(tmp_path), None)[1]()


def test_parquet_without_features_is_refused(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for part in ("train", "test"):
        parquet.write_table(arrow.table({"image": [b""], "label": [0]}), tmp_path / f"{part}-00000-of-00001.parquet")
    with pytest.raises(UserError, match="names no image column"):
        find_data(str(tmp_path), None)[1]()


def write_tar(path, members, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("layout", ["flat", "folders"])
@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tgz"])
def test_webdataset(tmp_path, layout, ending):
    place = {part: f"{part}/0.{ending}" if layout == "folders" else f"{part}-000000.{ending}" for part in ("train", "test")}
    mode = "w" if ending == "tar" else "w:gz"
    train = [("a/0.jpg", jpeg(0)), ("a/0.cls", b"1\n"), ("b/0.png", jpeg(1, "PNG")), ("b/0.json", b'{"label": "House cat"}')]
    test = [("../../x.cls", b"0"), ("../../x.jpg", jpeg(2)), ("y.y.txt", b"no sample"), ("z.JPG", b"?"), ("z.cls", b"dog")]
    write_tar(tmp_path / place["train"], train, mode)
    write_tar(tmp_path / place["test"], test, mode)
    (tmp_path / "classnames.txt").write_text("house cat\ndog\n")
    before = sorted(path for path in tmp_path.rglob("*"))
    data = find_data(str(tmp_path), None)[1]()
    assert (labels(data.train), labels(data.test)) == ([1, 0], [0, 1])
    assert data.train.images[0].data == jpeg(0)
    assert (statuses(data.train), statuses(data.test)) == (["ok", "ok"], ["ok", "corrupt"])
    # In any order.
    assert [data.train.images[i].data for i in (1, 0, 1)] == [jpeg(1, "PNG"), jpeg(0), jpeg(1, "PNG")]
    assert sorted(path for path in tmp_path.rglob("*")) == before, "nothing is unpacked"


def test_webdataset_without_training_shards(tmp_path):
    write_tar(tmp_path / "test.tar", [("0.jpg", jpeg(0)), ("0.cls", b"0")])
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert labels(find_data(str(tmp_path), None)[1]().train) == []


BAD_SHARDS = {
    "a sample without label": ([("0.jpg", b"x")], "sample 0 has no label"),
    "a sample without image": ([("0.cls", b"0")], "sample 0 has no image"),
    "a class that is none": ([("0.jpg", b"x"), ("0.cls", b"2")], "names none of the 2 classes"),
    "a negative class": ([("0.jpg", b"x"), ("0.json", b'{"label": -1}')], "names none of the 2 classes"),
    "a truth value": ([("0.jpg", b"x"), ("0.json", b'{"label": true}')], "names none of the 2 classes"),
    "broken JSON": ([("0.jpg", b"x"), ("0.json", b"{")], "holds no label"),
    "two of a kind": ([("0.jpg", b"x"), ("0.JPG", b"y"), ("0.cls", b"0")], "two files"),
}


@pytest.mark.parametrize("kind", BAD_SHARDS)
def test_a_bad_sample_is_one_line(tmp_path, kind):
    members, message = BAD_SHARDS[kind]
    write_tar(tmp_path / "test.tar", members)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match=message):
        find_data(str(tmp_path), None)[1]()


def test_links_are_no_samples_and_bad_archives_are_refused(tmp_path):
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "secret.jpg").write_bytes(jpeg())
    with tarfile.open(tmp_path / "test.tar", "w") as archive:
        link = tarfile.TarInfo("0.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.jpg")
        archive.addfile(link)
    write_tar(tmp_path / "more.tar", [("0.cls", b"0")])
    assert len(find_data(str(tmp_path), None)[1]().test.labels) == 0
    whole = [("0.jpg", jpeg()), ("0.cls", b"0"), ("1.jpg", jpeg(1)), ("1.cls", b"0")]
    write_tar(tmp_path / "test.tar", whole)
    (tmp_path / "test.tar").write_bytes((tmp_path / "test.tar").read_bytes()[:700])
    with pytest.raises(UserError, match=r"test\.tar"):
        find_data(str(tmp_path), None)[1]()


@pytest.mark.parametrize("cut", [4, 300, 1500])
def test_a_compressed_shard_that_is_cut_or_damaged_is_one_line(tmp_path, cut):
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    shard = tmp_path / "test.tar.gz"
    write_tar(shard, [(f"{i}.{kind}", data) for i in range(9) for kind, data in (("jpg", jpeg(i)), ("cls", b"0"))], "w:gz")
    whole = shard.read_bytes()
    for content in (whole[:-cut], whole[: cut + 50] + b"damage" + whole[cut + 56 :], b"no archive at all"):
        shard.write_bytes(content)
        with pytest.raises(UserError, match=r"test\.tar\.gz") as caught:
            find_data(str(tmp_path), None)[1]()
        assert "\n" not in str(caught.value)


def test_other_compressions_are_named_with_the_remedy(tmp_path):
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "test-0.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    with pytest.raises(UserError, match=r"only .tar.gz is read; decompress it, for example zstd -d"):
        find_data(str(tmp_path), None)[1]()


def test_a_bomb_is_refused_before_it_fills_memory_or_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("finelens.bench.sets.tar_shards.FREE_BYTES", 1 << 20)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    shard = tmp_path / "test.tar.gz"
    write_tar(shard, [("0.jpg", bytes(200 << 20)), ("0.cls", b"0")], "w:gz")
    assert shard.stat().st_size < 1 << 20
    tracemalloc.start()
    with pytest.raises(UserError, match="unpacks to more than 100 times its size"):
        list(members(shard, LABELS, MOST_LABEL_BYTES))
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_header_that_claims_gigabytes_is_refused(tmp_path, ending):
    """tarfile reads extended headers whole, before anybody sees them."""
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 8 << 20
    content = header.tobuf(tarfile.USTAR_FORMAT) + bytes(8 << 20)
    (tmp_path / f"test.{ending}").write_bytes(content if ending == "tar" else gzip.compress(content))
    with pytest.raises(UserError, match="a header of 8388608 bytes"):
        find_data(str(tmp_path), None)[1]()


def write_image_folder(folder, test="validation"):
    for part, count in (("train", 3), (test, 2)):
        for name in ("house_cat", "dog"):
            for i in range(count):
                picture(folder / part / name / f"{name}_{i}.png", i)
    return folder


@pytest.mark.parametrize("test", ["test", "validation", "val"])
def test_image_folder_of_hugging_face(tmp_path, test):
    folder = write_image_folder(tmp_path / "pets", test)
    if test == "test":
        picture(folder / "validation/dog/left_out.png")
    data = find_data("pets", tmp_path)[1]()
    assert (data.class_names, data.layout) == (("dog", "house cat"), "folder")
    assert (labels(data.train), labels(data.test)) == ([0, 0, 0, 1, 1, 1], [0, 0, 1, 1])
    assert data.split == f"train and {test} folders"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("above", [False, True])
def test_image_folder_with_metadata(tmp_path, kind, above):
    rows = {"train": [("a.png", "dog"), ("sub/b.png", "house cat")], "test": [("c.png", "House_Cat")]}
    for part, found in rows.items():
        for i, (path, _) in enumerate(found):
            picture(tmp_path / part / path, i)
    tables = {tmp_path: [(f"{part}/{path}", label) for part, own in rows.items() for path, label in own]}
    tables = tables if above else {tmp_path / part: own for part, own in rows.items()}
    for place, own in tables.items():
        table = [{"file_name": path, "label": label, "text": "a caption"} for path, label in own]
        if kind == "csv":
            (place / "metadata.csv").write_text("file_name,text,label\n" + "".join(f"{r['file_name']},a caption,{r['label']}\n" for r in table))
        elif kind == "jsonl":
            (place / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in table))
        else:
            arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
            parquet.write_table(arrow.Table.from_pylist(table), place / "metadata.parquet")
    (tmp_path / "classes.txt").write_text("house cat\ndog\n")
    data = find_data(str(tmp_path), None)[1]()
    assert (data.class_names, data.layout) == (("house cat", "dog"), "imagefolder")
    assert (labels(data.train), labels(data.test)) == ([1, 0], [0])
    assert (statuses(data.train), statuses(data.test)) == (["ok", "ok"], ["ok"])
    (tmp_path / "classes.txt").unlink()
    if kind == "csv":
        with pytest.raises(UserError, match="House_Cat"):  # "house cat" and "House_Cat" are one name, spelled in two ways
            find_data(str(tmp_path), None)[1]()


def write_metadata(folder, rows):
    for part, own in rows.items():
        for path, _ in own:
            picture(folder / part / path)
        text = "".join(json.dumps({"file_name": path, **({} if label is None else {"label": label})}) + "\n" for path, label in own)
        (folder / part / "metadata.jsonl").write_text(text)


def test_metadata_with_numbers_needs_names(tmp_path):
    write_metadata(tmp_path, {"train": [("a.png", 1), ("b.png", 0)], "test": [("c.png", 1)]})
    with pytest.raises(UserError, match=r"are numbers; put classes.txt there"):
        find_data(str(tmp_path), None)[1]()
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    data = find_data(str(tmp_path), None)[1]()
    assert (labels(data.train), labels(data.test)) == ([1, 0], [1])
    # Classes may be called by numbers: the name wins over the place.
    (tmp_path / "classes.txt").write_text("1\n0\n")
    assert labels(find_data(str(tmp_path), None)[1]().train) == [0, 1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"train": [("a.png", "dog")], "test": [("c.png", None)]}, "only train has a metadata table"),
        ({"train": [("a.png", "dog"), ("b.png", None)], "test": [("c.png", "dog")]}, "row 2: expected a file under file_name"),
        ({"train": [("a.png", "dog"), ("b.png", "lion")], "test": [("c.png", "dog")]}, "label 'lion' of its metadata is not in"),
        ({"train": [("a.png", "dog"), ("a.png", "dog")], "test": [("c.png", "dog")]}, "lists an image twice"),
    ],
)
def test_metadata_that_does_not_fit(tmp_path, rows, message):
    write_metadata(tmp_path, rows)
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    with pytest.raises(UserError, match=message):
        find_data(str(tmp_path), None)[1]()


def test_metadata_does_not_leave_the_folder(tmp_path):
    write_metadata(tmp_path, {"train": [("a.png", "dog")], "test": [("c.png", "cat")]})
    (tmp_path / "train/metadata.jsonl").write_text('{"file_name": "../../etc/x.png", "label": "dog"}\n')
    with pytest.raises(UserError, match="leaves"):
        find_data(str(tmp_path), None)[1]()


def test_metadata_without_labels_leaves_the_folders(tmp_path):
    folder = write_image_folder(tmp_path / "pets")
    (folder / "train/metadata.csv").write_text("file_name,text\ndog/dog_0.png,a dog\n")
    data = find_data("pets", tmp_path)[1]()
    assert data.layout == "folder"
    assert labels(data.test) == [0, 0, 1, 1]
