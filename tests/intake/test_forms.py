"""What each form says: rows, boxes, class names, answers of people; and what is left out, counted and named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from finelens.errors import UserError
from finelens.intake.taken import Taken, saved, take

FILES = ("cam 1/a.jpg", "cam 1/b.jpg", "cam 2/a.jpg", "cam 2/c.jpg")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("intake") / "photos"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), "red").save(folder / name)
    return folder


@pytest.fixture
def read(photos, tmp_path):
    """Takes text, or JSON, from a file whose name says nothing."""

    def go(content: object, confidence: float = 0.2) -> Taken:
        file = tmp_path / "export.dat"
        file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return take(file, photos, confidence)

    return go


def rows(taken: Taken) -> list[tuple[str, tuple[float, ...] | None]]:
    return [(row.name, None if row.box is None else tuple(round(value, 6) for value in row.box.values)) for row in taken.rows]


def said(taken: Taken, part: str) -> str:
    (line,) = [line for line in taken.remarks if part in line]
    return line


DETECTED = {
    "info": {"format_version": "1.6"},
    "detection_categories": {"1": "animal", "2": "person", "3": "vehicle"},
    "images": [
        {
            "file": "cam 1/a.jpg",
            "detections": [
                {"category": "1", "conf": 0.9, "bbox": [0.1, 0.2, 0.5, 0.5]},
                {"category": "2", "conf": 0.9, "bbox": [0, 0, 1, 1]},
                {"category": "1", "conf": 0.1, "bbox": [0, 0, 1, 1]},
                {"category": "1", "conf": 0.3, "bbox": [0.9, 0.9, 0.5, 0.5]},
            ],
        },
        {"file": "cam 1/b.jpg", "detections": []},
        {"file": "cam 2/a.jpg", "detections": None, "failure": "image access failure"},
        {"file": "cam 2/gone.jpg", "detections": [{"category": "1", "conf": 0.5, "bbox": [0, 0, 1, 1]}]},
    ],
}


def test_megadetector(read):
    taken = read(DETECTED)
    assert taken.form == "megadetector"
    assert rows(taken) == [("cam 1/a.jpg#1", (0.1, 0.2, 0.5, 0.5)), ("cam 1/a.jpg#4", (0.9, 0.9, 0.1, 0.1)), ("cam 2/gone.jpg#1", (0, 0, 1, 1))]
    assert taken.classes == ()
    assert taken.hints is None
    assert "megadetector, 3 boxes in 2 photographs" in taken.remarks[0]
    assert said(taken, "below") == "left out: 1 boxes below confidence 0.2 (first cam 1/a.jpg#3)"
    assert said(taken, "person") == "left out: 1 boxes of category person (first cam 1/a.jpg#2)"
    assert said(taken, "without a box") == "left out: 1 photographs without a box to classify (first cam 1/b.jpg)"
    assert said(taken, "could not") == "left out: 1 photographs that the detector could not read (first cam 2/a.jpg)"
    assert said(taken, "does not name") == "left out: 1 photographs that the file does not name (first cam 2/c.jpg)"
    assert said(taken, "vanished") == "1 rows whose photograph is not in the folder; they are kept as vanished (first cam 2/gone.jpg#1)"
    # Every box of the file is a row or counted.
    assert [row[0] for row in rows(read(DETECTED, 0.0))] == ["cam 1/a.jpg#1", "cam 1/a.jpg#3", "cam 1/a.jpg#4", "cam 2/gone.jpg#1"]


def test_classes_that_a_detector_file_holds(read):
    taken = read({**DETECTED, "classification_categories": {"0": "red fox", "1": "Red Fox", "2": "wolf"}})
    assert taken.classes == ("red fox", "wolf")


def test_rows_are_kept_in_the_run(read, tmp_path):
    taken = read(DETECTED)
    taken.save(tmp_path / "given_in.json")
    kept = saved(tmp_path / "given_in.json")
    assert kept is not None
    assert (kept.form, kept.rows, kept.classes, kept.hints) == (taken.form, taken.rows, taken.classes, taken.hints)
    assert saved(tmp_path / "none.json") is None
    (tmp_path / "given_in.json").write_text('{"rows": 3}')
    with pytest.raises(UserError, match=r"given_in\.json is damaged"):
        saved(tmp_path / "given_in.json")


def test_rows_as_files(read, photos):
    images = read(DETECTED).images(photos)
    assert [(image.name, image.path.is_file(), image.box is None) for image in images] == [
        ("cam 1/a.jpg#1", True, False),
        ("cam 1/a.jpg#4", True, False),
        # A box around all of it is the photograph itself.
        ("cam 2/gone.jpg#1", False, True),
    ]


def test_coco_camera_traps(read):
    images = [{"id": "i1", "file_name": "cam 1/a.jpg", "width": 40, "height": 30}, {"id": "i2", "file_name": "cam 1/b.jpg"}]
    categories = [{"id": 0, "name": "empty"}, {"id": 5, "name": "lynx"}]
    boxes = [
        {"id": "x", "image_id": "i1", "category_id": 5, "bbox": [10, 15, 20, 15]},
        {"id": "y", "image_id": "i2", "category_id": 5, "bbox_relative": [0, 0, 0.5, 1]},
        {"id": "z", "image_id": "i2", "category_id": 5, "bbox": [0, 0, 5, 10]},
    ]
    taken = read({"images": images, "categories": categories, "annotations": boxes})
    assert (taken.form, taken.classes, taken.hints) == ("coco-ct", ("lynx",), None)
    assert rows(taken) == [("cam 1/a.jpg#1", (0.25, 0.5, 0.5, 0.5)), ("cam 1/b.jpg#1", (0, 0, 0.5, 1))]
    assert said(taken, "without width") == (
        "left out: 1 boxes without an area inside the photograph, or in pixels of one without width and height (first cam 1/b.jpg#2)"
    )
    whole = read({"images": images, "categories": categories, "annotations": [{"id": "x", "image_id": "i1", "category_id": 5}]})
    assert rows(whole) == [("cam 1/a.jpg", None), ("cam 1/b.jpg", None)]
    assert whole.classes == ("empty", "lynx")
    assert whole.hints is None


def test_speciesnet(read):
    label = "uuid;mammalia;carnivora;felidae;lynx;lynx;eurasian lynx"
    predictions = [
        {"filepath": "cam 1/a.jpg", "detections": [{"category": "1", "label": "animal", "conf": 0.8, "bbox": [0, 0, 0.5, 0.5]}], "prediction": label},
        {"filepath": "cam 2/c.jpg", "detections": [{"category": "2", "label": "human", "conf": 0.8, "bbox": [0, 0, 0.5, 0.5]}]},
    ]
    taken = read({"predictions": predictions})
    assert (taken.form, taken.classes) == ("speciesnet", ("eurasian lynx",))
    assert rows(taken) == [("cam 1/a.jpg#1", (0, 0, 0.5, 0.5))]
    listed = read({"instances": [{"filepath": "cam 1/b.jpg", "country": "NOR"}]})
    assert rows(listed) == [("cam 1/b.jpg", None)]


def choice(*labels: str, **more: object) -> dict[str, object]:
    return {"result": [{"type": "choices", "from_name": "c", "to_name": "i", "value": {"choices": list(labels)}}], **more}


def test_label_studio(read):
    box = {"type": "rectanglelabels", "value": {"x": 10, "y": 20, "width": 50, "height": 60, "rotation": 0, "rectanglelabels": ["lynx"]}}
    turned = {"type": "rectanglelabels", "value": {"x": 10, "y": 20, "width": 50, "height": 60, "rotation": 12, "rectanglelabels": ["lynx"]}}
    taken = read(
        [
            {"data": {"image": "/data/local-files/?d=cam%201/a.jpg"}, "annotations": [choice("lynx"), choice("wolf", was_cancelled=True)]},
            {"data": {"image": "/data/upload/3/0123abcd-b.jpg"}, "annotations": [choice("lynx"), choice("wolf")], "predictions": [choice("fox")]},
            {"data": {"image": "s3://traps/cam%202/a.jpg"}, "annotations": [{"result": [box, turned]}]},
            {"data": {"image": "https://host.example/x/cam 2/c.jpg?t=1"}, "predictions": [choice("bear")]},
        ]
    )
    assert taken.form == "label-studio"
    assert rows(taken) == [("cam 1/a.jpg", None), ("cam 1/b.jpg", None), ("cam 2/a.jpg#1", (0.1, 0.2, 0.5, 0.6)), ("cam 2/c.jpg", None)]
    assert taken.hints == {"cam 1/a.jpg": "lynx", "cam 2/a.jpg#1": "lynx"}
    assert taken.classes == ("lynx", "wolf", "fox", "bear")
    assert "different names" in said(taken, "call by")
    assert said(taken, "predictions") == "left out: 2 predictions of another model (first data/upload/3/0123abcd-b.jpg)"
    assert said(taken, "turned").endswith("(first cam 2/a.jpg#2)")


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<meta><task><labels><label><name>lynx</name></label><label><name>wolf</name></label></labels></task></meta>
<image id="0" name="cam 1/a.jpg" width="40" height="30"><tag label="lynx" source="manual"/></image>
<image id="1" name="cam 1/b.jpg" width="40" height="30"><tag label="wolf" source="auto"/></image>
<image id="2" name="cam 2/c.jpg" width="40" height="30">
  <box label="wolf" source="manual" xtl="10" ytl="15" xbr="30" ybr="30"/><box label="lynx" source="auto" xtl="0" ytl="0" xbr="40" ybr="30"/>
  <polygon label="lynx" points="1,1;2,2"/>
</image></annotations>"""


def test_cvat(read):
    taken = read(CVAT)
    assert (taken.form, taken.classes) == ("cvat", ("lynx", "wolf"))
    assert rows(taken) == [("cam 1/a.jpg", None), ("cam 1/b.jpg", None), ("cam 2/c.jpg#1", (0.25, 0.5, 0.5, 0.5)), ("cam 2/c.jpg#2", (0, 0, 1, 1))]
    assert taken.hints == {"cam 1/a.jpg": "lynx", "cam 2/c.jpg#1": "wolf"}
    assert said(taken, "another model") == "left out: 2 labels of another model (first cam 1/b.jpg)"
    assert "polygon" in said(taken, "shapes")


def test_pybioclip(read):
    taken = read("file_name,classification,score\ncam 1/a.jpg,lynx,0.75\ncam 1/a.jpg,=wolf,0.25\n-gone.jpg,lynx,1\n")
    assert (taken.form, taken.classes, taken.hints) == ("pybioclip", ("lynx", "=wolf"), None)
    assert [name for name, _ in rows(taken)] == ["cam 1/a.jpg", "-gone.jpg"]
    ranks = "file_name,kingdom,genus,species_epithet,species,common_name,score\ncam 1/a.jpg,Animalia,Lynx,lynx,Lynx lynx,Eurasian Lynx,0.75\n"
    assert read(ranks + "cam 1/b.jpg,Animalia,Canis,lupus,Canis lupus,,0.5\n").classes == ("Eurasian Lynx", "Canis lupus")


def test_wildlife_insights(read):
    header = "project_id,deployment_id,image_id,filename,location,common_name,genus,species,identified_by\n"
    taken = read(f"{header}p,cam 1,7,a.jpg,gs://bucket/p/7.jpg,Lynx,Lynx,lynx,x\np,cam 2,8,a.jpg,gs://bucket/p/8.jpg,,Canis,lupus,x\n")
    assert (taken.form, taken.classes) == ("wildlife-insights", ("Lynx", "Canis lupus"))
    # Two photographs of that name: the deployment tells them apart.
    assert rows(taken) == [("cam 1/a.jpg", None), ("cam 2/a.jpg", None)]


def test_camtrap_dp(photos, tmp_path):
    resources = [{"name": "media", "path": "media.csv"}, {"name": "deployments", "path": "deployments.csv"}]
    package = {"resources": resources, "taxonomic": [{"scientificName": "Lynx lynx"}, {"scientificName": "Canis lupus"}]}
    (tmp_path / "datapackage.json").write_text(json.dumps(package))
    media = "mediaID,deploymentID,timestamp,filePath,fileName,fileMediatype\nm1,d,t,https://x.example/m1.jpg,b.jpg,image/jpeg\n"
    (tmp_path / "media.csv").write_text(f"{media}m2,d,t,cam 2/c.jpg,c.jpg,image/jpeg\nm3,d,t,cam 2/v.mp4,v.mp4,video/mp4\n")
    for given in (tmp_path, tmp_path / "datapackage.json"):
        taken = take(given, photos)
        assert (taken.form, taken.classes) == ("camtrap-dp", ("Lynx lynx", "Canis lupus"))
        assert rows(taken) == [("cam 1/b.jpg", None), ("cam 2/c.jpg", None)]
        assert "video/mp4" in said(taken, "media of type")
    (tmp_path / "datapackage.json").write_text(json.dumps({"resources": [{"name": "media", "path": "../../media.csv"}]}))
    with pytest.raises(UserError, match="does not name a resource media in its own folder"):
        take(tmp_path, photos)


def test_imagefolder(photos, read):
    taken = read("file_name,label\ncam 1/a.jpg,lynx\ncam 1/b.jpg,wolf\n")
    assert (taken.form, taken.classes, taken.hints) == ("imagefolder", ("lynx", "wolf"), None)
    assert rows(taken) == [("cam 1/a.jpg", None), ("cam 1/b.jpg", None)]
    assert read("file_name,label\ncam 1/a.jpg,0\ncam 1/b.jpg,1\n").classes == ()
    lines = '{"file_name": "cam 2/c.jpg", "label": "lynx", "objects": {}}\n{"file_name": "cam 1/a.jpg", "label": "lynx"}\n'
    assert [name for name, _ in rows(read(lines))] == ["cam 2/c.jpg", "cam 1/a.jpg"]


def test_names_count_from_the_folder_of_the_metadata(tmp_path):
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    for path in (folder / "a.png", folder.parent / "b.png"):
        Image.new("RGB", (9, 9)).save(path)
    (folder / "metadata.csv").write_text("file_name,label\na.png,lynx\n")
    assert rows(take(folder, tmp_path / "set")) == [("train/a.png", None)]


def test_a_last_name_is_enough_where_it_is_ones_alone_on_both_sides(read):
    def listed(*names: str) -> list[str]:
        return [name for name, _ in rows(read("file_name,label\n" + "".join(f"{name},x\n" for name in names)))]

    assert listed("D:\\traps\\c.jpg", "cam 1/a.jpg") == ["cam 2/c.jpg", "cam 1/a.jpg"]
    # Two of that name in the folder, or in the file.
    assert listed("elsewhere/a.jpg", "cam 1/b.jpg") == ["elsewhere/a.jpg", "cam 1/b.jpg"]
    assert listed("x/c.jpg", "y/c.jpg", "cam 1/b.jpg") == ["x/c.jpg", "y/c.jpg", "cam 1/b.jpg"]


def test_a_path_that_leaves_the_folder_leads_nowhere(read, photos):
    (photos.parent / "secret.jpg").write_bytes((photos / FILES[0]).read_bytes())
    taken = read(f"file_name,label\n../secret.jpg,x\n{FILES[0]},x\n")
    assert [image.path.exists() for image in taken.images(photos)] == [False, True]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it has no rows"),
        ("path,label\na,b\n", "its columns are label, path"),
        ({"shapes": []}, "JSON of another form .its keys are shapes"),
        ({"images": 3, "detection_categories": {}}, "images must be a list of objects"),
        ({"images": [], "detection_categories": {}}, "holds nothing to classify"),
        ([{"data": {}}], "task 1: its data names no image"),
        ("<a/>", "no export of CVAT"),
        ("<annotations><track/></annotations>", "CVAT for video"),
        ("<annotations><image", "not valid XML"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><annotations/>', "declares a document type"),
        ("file_name,label\nno.jpg,x\n", "names no photograph that is in .*its first is 'no.jpg'.*give the folder that its paths count from"),
    ],
)
def test_what_is_refused(read, content, message):
    with pytest.raises(UserError, match=message):
        read(content)


BOXED = {"category": "1", "conf": 0.9, "bbox": [0, 0, 1, 1]}
COCO = {
    "images": [{"id": 1, "file_name": "cam 1/a.jpg", "width": 40, "height": 30}],
    "categories": [{"id": 1, "name": "fox"}],
    "annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4]}],
}
ODD = ("\ud800", 10**400, [], {}, "http://[bad", None, True, "\0")


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize(
    "made",
    [
        lambda odd: {**DETECTED, "images": [*DETECTED["images"], {"file": odd, "detections": [BOXED]}]},  # type: ignore[misc]
        lambda odd: {**DETECTED, "images": [{"file": "cam 1/a.jpg", "detections": [{**BOXED, "conf": odd}, BOXED]}]},
        lambda odd: {**COCO, "images": [*COCO["images"], {"id": odd, "file_name": odd, "width": odd, "height": 3}]},
        lambda odd: {**COCO, "categories": [{"id": odd, "name": odd}]},
        lambda odd: {**COCO, "annotations": [*COCO["annotations"], {"image_id": odd, "bbox": [odd, 0, 1, 1]}]},
        lambda odd: [{"data": {"image": "cam 1/a.jpg"}}, {"data": {"image": odd, "other": "b.jpg"}}],
        lambda odd: {"resources": odd, "taxonomic": odd},
    ],
)
def test_whatever_a_document_holds_it_is_read_or_refused(read, photos, tmp_path, made, odd):
    """Each of these ended in a traceback with one of the values at least."""
    try:
        taken = read(made(odd))
    except UserError:
        return
    taken.images(photos)
    taken.save(tmp_path / "given_in.json")
    assert saved(tmp_path / "given_in.json").rows == taken.rows


def test_a_folder_without_a_file_that_is_known(photos):
    with pytest.raises(UserError, match=r"is a folder without datapackage\.json or metadata\.csv"):
        take(photos, photos)
