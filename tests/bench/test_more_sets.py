"""Loaders of table layouts, of drawn splits and of the splits of the authors, on tiny files in the real formats."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.io import savemat

from finelens.bench.sets.find import find_data
from finelens.errors import UserError
from tests.bench.test_sets import labels, picture, read


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
    if layout == "sun397":
        (lists / "ClassName.txt").rename(root / "SUN397/ClassName.txt")
        assert read("sun397", tmp_path).class_names == data.class_names
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
    ours = read("flowers102", tmp_path).class_names
    assert len(ours) == len(set(ours)) == 102
    # Places in the authors' labels, from 1.
    known = {1: "pink primrose", 4: "sweet pea", 16: "globe flower", 41: "barberton daisy", 60: "pink-yellow dahlia"}
    known |= {73: "water lily", 77: "passion flower", 78: "lotus", 90: "canna lily", 102: "blackberry lily"}
    assert {place: ours[place - 1] for place in known} == known
    (folder / "cat_to_name.json").write_text('{"2": "fire lily", "1": "pink primrose"}')
    data = read("flowers102", tmp_path)
    assert data.class_names == ("pink primrose", "fire lily")
    assert (labels(data.train), labels(data.test)) == ([1, 0], [0, 1, 0])
    (folder / "cat_to_name.json").write_text('{"1": "a", "3": "b"}')
    with pytest.raises(UserError, match="without a gap"):
        find_data("flowers102", tmp_path)[1]()
    (folder / "classes.txt").write_text("primrose\nlily\n")
    assert read("flowers102", tmp_path).class_names == ("primrose", "lily")
