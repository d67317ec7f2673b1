"""Every form, read back with other readers than the writer's own: values, not only shapes."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

import finelens
from finelens.core.schemas import PREDICTIONS_FILE
from finelens.errors import UserError
from finelens.exchange.datasets import folder_names
from finelens.exchange.forms import FORMS, write
from finelens.storage.predictions import PredictionRow, read_predictions, write_predictions
from tests.exchange.conftest import CLASSES, ROWS

WHO = "finelens 9.9, consensus on embedded"


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def written(run, tmp_path):
    """Writes a form and returns its path."""

    def go(to: str, **options: object) -> Path:
        out = tmp_path / f"out {to}"
        write(run, to, out, **options)  # type: ignore[arg-type]
        return out

    return go


def test_megadetector(written):
    document = json.loads(written("megadetector").read_text("utf-8"))
    images = {image["file"]: image for image in document["images"]}
    assert list(images) == [row.path for row in ROWS]
    assert document["info"]["format_version"] == "1.6"
    assert document["info"]["classifier"] == WHO
    assert document["info"]["classification_completion_time"] == "2026-11-28 10:11:12"
    names = document["classification_categories"]
    (fox,) = images["cam 1/a.jpg"]["detections"]
    assert (fox["category"], fox["conf"], fox["bbox"]) == ("1", 1.0, [0, 0, 1, 1])
    assert [(names[key], p) for key, p in fox["classifications"]] == [("red fox", 0.75), ("empty", 0.25)]
    assert images["cam 1/a.png"]["detections"] == []
    assert images["cam 2/b.jpg"]["detections"][0]["category"] == "2"
    assert images["cam 2/d.jpg"]["detections"][0]["classifications"] == []
    assert images["e.jpg"] == {"file": "e.jpg", "detections": None, "failure": "corrupt: the file is empty (0 bytes)"}


def test_speciesnet(written):
    predictions = json.loads(written("speciesnet").read_text("utf-8"))["predictions"]
    fox, *_, answered, none, lost = predictions
    assert fox["classifications"] == {"classes": [";;;;;;red fox", ";;;;;;empty"], "scores": [0.75, 0.25]}
    assert (fox["prediction"], fox["prediction_score"], fox["prediction_source"]) == (";;;;;;red fox", 0.75, "classifier")
    assert answered["prediction_source"] == "human"
    assert none == {"filepath": "cam 2/d.jpg", "model_version": WHO}
    assert lost["failures"] == ["CLASSIFIER"]


def test_pybioclip(written):
    rows = table(written("pybioclip"))
    assert list(rows[0]) == ["file_name", "classification", "score"]
    assert [row["file_name"] for row in rows] == ["cam 1/a.jpg"] * 2 + ["cam 1/a.png"] * 2 + ["cam 2/b.jpg"] * 2 + [row.path for row in ROWS[3:]]
    assert (rows[1]["classification"], float(rows[1]["score"])) == ("empty", 0.25)
    # A program reads it: an apostrophe more would be another class, and before a file name another file.
    assert rows[6]["classification"] == "=cmd"
    assert (rows[7]["classification"], rows[7]["score"]) == ("", "")


def test_wildlife_insights(written):
    fox, empty, _, answered, none, lost = table(written("wildlife-insights", project="p7"))
    assert (fox["project_id"], fox["deployment_id"], fox["filename"], fox["common_name"]) == ("p7", "cam 1", "a.jpg", "red fox")
    assert (fox["timestamp"], fox["cv_confidence"], fox["identified_by"]) == ("2026-05-04 03:02:01", "0.75", "Computer vision")
    assert (empty["is_blank"], empty["common_name"], empty["number_of_objects"]) == ("1", "", "0")
    assert (answered["identified_by"], answered["cv_confidence"]) == ("person", "")
    assert (none["identified_by"], none["common_name"]) == ("", "")
    assert lost["deployment_id"] == ""


def test_coco_camera_traps(written):
    document = json.loads(written("coco-ct").read_text("utf-8"))
    names = {category["id"]: category["name"] for category in document["categories"]}
    assert names[0] == "empty"
    assert sorted(names.values()) == sorted({"empty", *CLASSES})
    images = {image["id"]: image for image in document["images"]}
    # Orientation 6: shown upright, a photograph of 40 x 30 is 30 wide.
    assert (images["cam 1/a.jpg"]["width"], images["cam 1/a.jpg"]["height"]) == (30, 40)
    assert images["cam 1/a.jpg"]["datetime"] == "2026-05-04 03:02:01"
    assert images["e.jpg"]["corrupt"] is True
    found = {own["image_id"]: (names[own["category_id"]], own["score"]) for own in document["annotations"]}
    assert found == {"cam 1/a.jpg": ("red fox", 0.75), "cam 1/a.png": ("empty", 0.625), "cam 2/b.jpg": ("Person", 0.25), "cam 2/c.jpg": ("=cmd", 1.0)}


def test_label_studio(written):
    tasks = json.loads(written("label-studio").read_text("utf-8"))
    assert [task["data"]["image"] for task in tasks][:2] == ["/data/local-files/?d=cam%201/a.jpg", "/data/local-files/?d=cam%201/a.png"]
    (prediction,) = tasks[0]["predictions"]
    assert (prediction["model_version"], prediction["score"]) == (WHO, 0.75)
    assert prediction["result"] == [{"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": ["red fox"]}}]
    assert tasks[3]["annotations"][0]["result"][0]["value"] == {"choices": ["=cmd"]}
    assert "predictions" not in tasks[3]
    assert tasks[4].keys() == tasks[5].keys() == {"id", "data"}
    assert [task["id"] for task in tasks] == list(range(1, 1 + len(tasks)))


def test_cvat(written):
    root = ElementTree.parse(written("cvat")).getroot()
    assert root.findtext("version") == "1.1"
    assert [label.findtext("name") for label in root.iter("label")] == list(CLASSES)
    images = list(root.iter("image"))
    assert [image.get("name") for image in images] == [row.path for row in ROWS]
    assert (images[0].get("width"), images[0].get("height")) == ("30", "40")
    assert [(tag.get("label"), tag.get("source")) for tag in root.iter("tag")] == [
        ("red fox", "auto"),
        ("empty", "auto"),
        ("Person", "auto"),
        ("=cmd", "manual"),
    ]


def test_fiftyone(written):
    out = written("fiftyone")
    document = json.loads((out / "labels.json").read_text("utf-8"))
    assert document["classes"] == list(CLASSES)
    assert document["labels"]["cam 1/a"] == {"label": "red fox", "confidence": 0.75}
    # A second file of that stem is told apart.
    assert document["labels"]["cam 1/a.png"] == {"label": "empty", "confidence": 0.625}
    assert document["labels"]["cam 2/d"] is None
    stems = {str(path.relative_to(out / "data").with_suffix("")) for path in (out / "data").rglob("*") if path.is_file()}
    assert stems == set(document["labels"])
    assert table(out / "_not_read.csv") == [{"path": "e.jpg", "status": "corrupt", "reason": "the file is empty (0 bytes)"}]


def test_imagefolder(written, photos):
    out = written("imagefolder", how="link")
    rows = table(out / "metadata.csv")
    assert [(row["file_name"], row["label"], row["probability"]) for row in rows][:2] == [
        ("cam 1/a.jpg", "red fox", "0.75"),
        ("cam 1/a.png", "empty", "0.625"),
    ]
    assert len(rows) == 5
    assert all((out / row["file_name"]).resolve() == (photos / row["file_name"]).resolve() for row in rows)
    # Else a folder "train" or a file "test-1.jpg" would be all that datasets reads.
    assert (out / "README.md").read_text("utf-8").splitlines() == ["---", "configs:", "- config_name: default", '  data_files: "**"', "---"]


@pytest.mark.parametrize("how", ["copy", "hardlink", "link"])
def test_folders(written, photos, how):
    out = written("folders", how=how)
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert files == [
        "=cmd/cam 2/c.jpg",
        "Person/cam 2/b.jpg",
        "_none_of_these/cam 2/d.jpg",
        "_not_read.csv",
        "empty/cam 1/a.png",
        "red fox/cam 1/a.jpg",
    ]
    copy = out / "red fox/cam 1/a.jpg"
    assert copy.read_bytes() == (photos / "cam 1/a.jpg").read_bytes()
    assert copy.is_symlink() == (how == "link")
    assert copy.samefile(photos / "cam 1/a.jpg") == (how != "copy")


def test_folders_of_answers_that_are_not_sure(written):
    out = written("folders", at_least=0.7)
    assert sorted(path.name for path in out.iterdir()) == ["=cmd", "_no_answer", "_none_of_these", "_not_read.csv", "red fox"]


def test_folder_names_that_a_system_refuses():
    names = folder_names(["a/b", "a:b", "..", "CON", "Con.x", "dot.", "_no_answer", "Ümlaut", "A_b"])
    assert names == {
        "a/b": "a_b",
        "a:b": "a_b_2",
        "..": "_",
        "CON": "CON_",
        "Con.x": "Con.x_",
        "dot.": "dot_",
        "_no_answer": "no_answer",
        "Ümlaut": "Ümlaut",
        "A_b": "A_b_3",
    }


def test_sidecars(written, photos):
    before = (photos / "cam 1/a.jpg").read_bytes()
    out = written("xmp")
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.xmp")) == [
        "cam 1/a.jpg.xmp",
        "cam 1/a.png.xmp",
        "cam 2/b.jpg.xmp",
        "cam 2/c.jpg.xmp",
    ]
    root = ElementTree.parse(out / "cam 1/a.jpg.xmp").getroot()
    space = {"rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#", "dc": "http://purl.org/dc/elements/1.1/"}
    assert [item.text for item in root.findall("rdf:RDF/rdf:Description/dc:subject/rdf:Bag/rdf:li", space)] == ["red fox"]
    assert (photos / "cam 1/a.jpg").read_bytes() == before


@pytest.mark.parametrize("to", ["xmp", "folders", "fiftyone", "imagefolder"])
@pytest.mark.parametrize("climbs", [False, True])
def test_rows_of_a_list_never_lead_out_of_the_folder(run, photos, tmp_path, to, climbs):
    """Beside the photographs a sidecar may be somebody's work, which was written over."""
    source = photos / "cam 1/a.jpg"
    beside = source.with_name("a.jpg.xmp")
    beside.write_text("edits")
    path = "../photos/cam 1/a.jpg" if climbs else str(source)
    write_predictions(tmp_path / "list.csv", [replace(ROWS[0], path=path)])
    with pytest.raises(UserError, match="leads out of the folder that is written"):
        write(run, to, tmp_path / "out", predictions=tmp_path / "list.csv", photos=photos)
    assert beside.read_text() == "edits"
    assert not (tmp_path / "out").exists()


def test_fiftyone_keeps_a_file_without_an_ending_behind_one_with(run, photos, tmp_path):
    rows = [replace(ROWS[0], path="a.jpg"), replace(ROWS[2], path="a"), replace(ROWS[1], path="a.png")]
    for row in rows:
        (photos / row.path).write_bytes((photos / ROWS[0].path).read_bytes())
    write_predictions(tmp_path / "list.csv", rows)
    write(run, "fiftyone", tmp_path / "out", predictions=tmp_path / "list.csv", photos=photos)
    labels = json.loads((tmp_path / "out/labels.json").read_text("utf-8"))["labels"]
    assert {key: label["label"] for key, label in labels.items()} == {"a": "red fox", "a_2": "Person", "a.png": "empty"}
    assert sorted(path.name for path in (tmp_path / "out/data").iterdir()) == ["a.jpg", "a.png.png", "a_2"]


@pytest.fixture
def package(tmp_path) -> Path:
    folder = tmp_path / "package"
    folder.mkdir()
    resources = [{"name": name, "path": f"{name}.csv"} for name in ("deployments", "media", "observations")]
    (folder / "datapackage.json").write_text(json.dumps({"name": "traps", "resources": resources}))
    (folder / "deployments.csv").write_text("deploymentID,latitude,longitude\nd1,60.1,10.2\n")
    (folder / "media.csv").write_text(
        "mediaID,deploymentID,timestamp,filePath,filePublic,fileName,fileMediatype\n"
        "m1,d1,2026-05-04T03:02:01+02:00,archive/cam 1/a.jpg,true,a.jpg,image/jpeg\n"
        "m3,d1,2026-05-04T03:02:09+02:00,archive/cam 2/b.jpg,true,b.jpg,image/jpeg\n"
        "m5,d1,2026-05-04T03:03:09+02:00,archive/cam 2/d.jpg,true,d.jpg,image/jpeg\n"
    )
    (folder / "observations.csv").write_text(
        "observationID,deploymentID,mediaID,observationType,scientificName\nold,d1,m1,animal,Vulpes vulpes\nfinelens:m1,d1,m1,animal,wolf\n"
    )
    return folder


def test_camtrap_dp_adds_to_a_package(written, package):
    out = written("camtrap-dp", package=package)
    rows = {row["observationID"]: row for row in table(out / "observations.csv")}
    # The owner's observation stays, an earlier one of ours is replaced, and photographs that the package lacks have none.
    assert list(rows) == ["old", "finelens:m1", "finelens:m3", "finelens:m5"]
    assert rows["old"]["scientificName"] == "Vulpes vulpes"
    fox = rows["finelens:m1"]
    assert (fox["observationType"], fox["scientificName"], fox["classificationProbability"]) == ("animal", "red fox", "0.75")
    assert (fox["eventStart"], fox["classificationMethod"], fox["classifiedBy"]) == ("2026-05-04T03:02:01+02:00", "machine", WHO)
    assert (rows["finelens:m3"]["observationType"], rows["finelens:m3"]["scientificName"]) == ("human", "")
    assert (rows["finelens:m5"]["observationType"], rows["finelens:m5"]["classificationMethod"]) == ("unclassified", "human")
    assert (out / "media.csv").read_bytes() == (package / "media.csv").read_bytes()
    assert json.loads((out / "datapackage.json").read_text())["created"] == "2026-11-28T10:11:12Z"


def test_a_cell_of_a_package_ends_where_csv_says(written, package):
    with (package / "observations.csv").open("a", encoding="utf-8") as file:
        file.write("next,d1,m3,animal,Lynx\u2028lynx\x85\x0cl\n")
    rows = {row["observationID"]: row for row in table(written("camtrap-dp", package=package) / "observations.csv")}
    assert rows["next"]["scientificName"] == "Lynx\u2028lynx\x85\x0cl"


@pytest.mark.parametrize("to", ["megadetector", "coco-ct", "folders"])
def test_predictions_of_another_run_are_refused(run, tmp_path, to):
    rows = [PredictionRow("cam 1/a.jpg", "red fox", 0.75, 0.5, (("red fox", 0.75), ("wolf", 0.25)))]
    write_predictions(tmp_path / "new.csv", rows)
    with pytest.raises(UserError, match=r"new\.csv has the class 'wolf', which .*run has not"):
        write(run, to, tmp_path / "out", predictions=tmp_path / "new.csv")


def test_camtrap_dp_of_other_photographs(run, package, tmp_path):
    (package / "media.csv").write_text("mediaID,deploymentID,timestamp,filePath\nm1,d1,2026-05-04T03:02:01Z,x.jpg\n")
    with pytest.raises(UserError, match=r"none of the photographs is in .*media.csv \(first: cam 1/a.jpg\)"):
        write(run, "camtrap-dp", tmp_path / "out", package=package)
    assert not list(tmp_path.glob(".finelens-*"))


def test_the_same_bytes_again(run, tmp_path):
    for to in FORMS:
        if not FORMS[to].folder:
            options = {"project": "p"} if "project" in FORMS[to].needed else {}
            first, second = tmp_path / f"1 {to}", tmp_path / f"2 {to}"
            write(run, to, first, **options)
            finelens.write(run, to, second, **options)
            assert first.read_bytes() == second.read_bytes(), to


@pytest.mark.parametrize(
    ("to", "options", "said"),
    [
        ("megadetektor", {}, "did you mean megadetector"),
        ("megadetector", {"how": "link"}, "--how has an effect with --to fiftyone, imagefolder, folders only"),
        ("wildlife-insights", {}, "--to wildlife-insights needs --project"),
        ("megadetector", {"at_least": 2.0}, "--at-least is a probability"),
        ("camtrap-dp", {"package": "."}, "is no Camtrap DP: it has no datapackage.json"),
        ("folders", {"photos": "missing"}, "photograph folder missing does not exist"),
    ],
)
def test_refusals(run, tmp_path, monkeypatch, to, options, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        write(run, to, "out", **options)
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(run, photos, tmp_path):
    (tmp_path / "out.json").write_text("mine")
    with pytest.raises(UserError, match=r"out\.json exists; choose a new file"):
        write(run, "megadetector", tmp_path / "out.json")
    with pytest.raises(UserError, match="lies inside the photographs"):
        write(run, "folders", photos / "sorted")


def test_strangers_are_counted(run, tmp_path):
    rows = read_predictions(run / PREDICTIONS_FILE)
    write_predictions(run / PREDICTIONS_FILE, [replace(row, none_of_these=0.75) if row.path.endswith("a.png") else row for row in rows])
    strange = "1 of which probably belongs to none of the classes (--none-apart takes them out)"
    assert f"4 of 6 photographs with a class, {strange}, 1 without an answer" in write(run, "folders", tmp_path / "out")
    assert (tmp_path / "out" / "empty" / "cam 1" / "a.png").is_file()
    assert "3 of 6 photographs with a class, 2 without an answer" in write(run, "folders", tmp_path / "apart", none_apart=True)
    assert (tmp_path / "apart" / "_none_of_these" / "cam 1" / "a.png").is_file()
    assert "3 of 6 photographs with a class" in write(run, "pybioclip", tmp_path / "apart.csv", none_apart=True)
    assert ["", ""] in [[row["classification"], row["score"]] for row in table(tmp_path / "apart.csv") if row["file_name"].endswith("a.png")]


def test_runs_of_before_do_not_know_strangers(run, tmp_path):
    rows = read_predictions(run / PREDICTIONS_FILE)
    write_predictions(run / PREDICTIONS_FILE, [replace(row, none_of_these=None) for row in rows])
    with pytest.raises(
        UserError, match=r"predictions\.csv does not say of which photographs none of the classes is probable.*leave --none-apart out"
    ):
        write(run, "folders", tmp_path / "out", none_apart=True)
    assert not (tmp_path / "out").exists()


def test_a_photograph_that_is_gone_since(run, photos, tmp_path):
    (photos / "cam 2/b.jpg").unlink()
    with pytest.raises(UserError, match=r"cam 2/b\.jpg is not in .* any more"):
        write(run, "folders", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    # Forms that only look into its header go on without.
    write(run, "coco-ct", tmp_path / "out")


def test_a_run_on_features_needs_the_folder_for_files_only(run, photos, tmp_path):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"photos": str(tmp_path / "x.safetensors")}))
    write(run, "megadetector", tmp_path / "out")
    with pytest.raises(UserError, match=r"x\.safetensors is no folder of photographs, or not any more; give their folder with --photos"):
        write(run, "folders", tmp_path / "out folders")
    write(run, "folders", tmp_path / "out folders", photos=photos)


@pytest.mark.parametrize("program", ["timelapse", "AddaxAI"])
def test_a_program_is_answered_with_the_form_that_it_opens(program, tmp_path):
    with pytest.raises(UserError, match="did you mean megadetector"):
        write(tmp_path / "run", program, tmp_path / "out")
