"""Tables of taxa as class lists, and probabilities summed over their ranks."""

from __future__ import annotations

import csv
import json
import tarfile
import zlib

import numpy as np
import pytest
import torch

from finelens import api
from finelens.classes.class_set import build_class_set
from finelens.classes.heads import build_heads, template_head
from finelens.classes.taxonomy import read_class_list, saved_taxonomy
from finelens.classes.templates import fill
from finelens.errors import UserError
from finelens.evaluation.ranks import deepest, summed
from finelens.runs.evaluate import evaluate, summary
from tests.toy import CLASSES, QUIET, options_for, write_photos


def table(tmp_path, text: str, name: str = "classes.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return read_class_list(path)


OWN = """name,order,family,genus,species,group,common_name,scientific_name,synonyms,notes
red fox,Carnivora,Canidae,Vulpes,vulpes,canid,,Vulpes vulpes,fox | reynard,seen at night
wolf,Carnivora,Canidae,Canis,lupus,canid,grey wolf,Canis lupus,fox,
lynx,Carnivora,Felidae,Lynx,,cat,,,,
"""


def test_ones_own_table(tmp_path):
    names, taxonomy = table(tmp_path, OWN)
    assert names == ["red fox", "wolf", "lynx"]
    assert taxonomy is not None
    assert taxonomy.ranks == ("order", "family", "genus", "species", "group")
    assert taxonomy.places[0] == ("Carnivora", "Canidae", "Vulpes", "Vulpes vulpes", "canid")
    assert taxonomy.places[2] == ("Carnivora", "Felidae", "Lynx", "", "cat")
    # A further name of two classes tells nothing apart.
    assert taxonomy.synonyms == (("Vulpes vulpes", "reynard"), ("grey wolf", "Canis lupus"), ())
    assert taxonomy.values("family") == (["Canidae", "Felidae"], [0, 0, 1])
    assert taxonomy.values("species") == (["Vulpes vulpes", "Canis lupus"], [0, 1, -1])
    taxonomy.save(tmp_path / "taxonomy.json")
    assert saved_taxonomy(tmp_path / "taxonomy.json") == taxonomy
    grown = taxonomy.with_names(["red fox", "wolf", "lynx", "bear"])
    assert (grown.places[3], grown.synonyms[3]) == (("",) * 5, ())


def test_exports_of_inaturalist(tmp_path):
    names, taxonomy = table(
        tmp_path,
        "id,observed_on,scientific_name,common_name,iconic_taxon_name,taxon_family_name,taxon_genus_name,taxon_species_name\n"
        "1,2026-05-01,Vulpes vulpes,Red Fox,Mammalia,Canidae,Vulpes,Vulpes vulpes\n"
        "2,2026-05-02,Vulpes vulpes,Red Fox,Mammalia,Canidae,Vulpes,Vulpes vulpes\n"
        '3,2026-05-02,Parus major,"Tit, Great",Aves,Paridae,Parus,Parus major\n',
    )
    assert names == ["Red Fox", "Tit, Great"]
    assert taxonomy is not None
    assert taxonomy.ranks == ("family", "genus", "species", "group")
    assert taxonomy.places[1] == ("Paridae", "Parus", "Parus major", "Aves")
    assert taxonomy.synonyms == (("Vulpes vulpes",), ("Parus major",))


def test_the_mapping_of_lila(tmp_path):
    names, taxonomy = table(
        tmp_path,
        "dataset_name,query,source,taxonomy_level,scientific_name,common_name,class,family,genus,species\n"
        "A,fox,gbif,species,vulpes vulpes,red fox,mammalia,canidae,vulpes,vulpes vulpes\n"
        "B,red_fox,gbif,species,vulpes vulpes,red fox,mammalia,canidae,vulpes,vulpes vulpes\n"
        "B,bird,gbif,class,aves,bird,aves,,,\n"
        "B,unknown,,,,,,,,\n",
    )
    assert names == ["red fox", "bird", "unknown"]
    assert taxonomy is not None
    assert taxonomy.ranks == ("class", "family", "genus", "species")
    assert taxonomy.places[1:] == (("aves", "", "", ""), ("", "", "", ""))


def test_labels_of_speciesnet(tmp_path):
    uuid = "0123abcd-0123-4567-89ab-0123456789ab"
    names, taxonomy = table(
        tmp_path,
        f"{uuid};mammalia;carnivora;canidae;vulpes;vulpes;red fox\n{uuid};mammalia;carnivora;felidae;;;felidae family\n{uuid};;;;;;blank\n",
        "labels.txt",
    )
    assert names == ["red fox", "felidae family", "blank"]
    assert taxonomy is not None
    assert taxonomy.ranks == ("class", "order", "family", "genus", "species")
    assert taxonomy.places[0] == ("mammalia", "carnivora", "canidae", "vulpes", "vulpes vulpes")


def test_occurrences_of_gbif(tmp_path):
    names, taxonomy = table(
        tmp_path,
        "gbifID\tscientificName\tvernacularName\tkingdom\tfamily\tgenus\tspecies\n"
        "1\tVulpes vulpes (Linnaeus, 1758)\t\tAnimalia\tCanidae\tVulpes\tVulpes vulpes\n"
        '2\tParus major L. "x\t\tAnimalia\tParidae\tParus\tParus major\n'
        "3\tVulpes vulpes crucigera\t\tAnimalia\tCanidae\tVulpes\tVulpes vulpes\n",
        "occurrence.txt",
    )
    assert names == ["Vulpes vulpes", "Parus major"]
    assert taxonomy is not None
    assert taxonomy.ranks == ("kingdom", "family", "genus", "species")
    assert taxonomy.synonyms == ((), ())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "red fox\nwolf\n"),
        ("a.csv", "name\nred fox\nwolf\n"),
        ("a.csv", "class,count\nred fox,3\nwolf,4\n"),
        ("a.csv", "0,red fox\n1,wolf\n"),
        ("a.json", '["red fox", "wolf"]'),
    ],
)
def test_plain_lists_stay_plain(tmp_path, name, text):
    assert table(tmp_path, text, name) == (["red fox", "wolf"], None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,family\nfox,Canidae\nfox,Felidae\n", r"'fox' is of family 'Canidae' in line 2 and 'Felidae' in line 3"),
        ("name,family\nfox,Canidae,x\n", r"line 2: expected 2 cells, got 3"),
    ],
)
def test_what_is_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        table(tmp_path, text)


def test_probabilities_are_summed_and_the_narrowest_sure_rank_found():
    p = np.array([[0.5, 0.375, 0.125, 0.0], [0.25, 0.25, 0.25, 0.25], [0.0, 0.125, 0.0, 0.875]])
    family, genus = summed(p, [0, 0, 1, -1], 2), summed(p, [0, 1, 2, -1], 3)
    assert family.tolist() == [[0.875, 0.125], [0.5, 0.25], [0.125, 0.0]]
    found = deepest([family, genus, p], 0.75)
    assert found.rank.tolist() == [0, -1, 2]
    assert found.name.tolist() == [0, -1, 3]
    assert found.probability[[0, 2]].tolist() == [0.875, 0.875]
    assert np.isnan(found.probability[1])


class Backbone:
    """Each text is a direction of its own."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def encode_text(self, texts):
        self.texts += texts
        rng = [np.random.default_rng(zlib.crc32(text.encode())).normal(size=6) for text in texts]
        return torch.nn.functional.normalize(torch.tensor(np.stack(rng), dtype=torch.float64), dim=1)


def test_every_name_of_a_class_fills_the_templates():
    templates = ("a {}.", "the {}.")
    classes, *_ = build_class_set(["fox", "owl"], None, templates, [("vulpes",), ()])
    backbone = Backbone()
    heads = build_heads(backbone, classes)
    assert sorted(set(backbone.texts)) == sorted(fill(template, name) for name in ("fox", "vulpes", "owl") for template in templates)
    one = backbone.encode_text([fill(template, name) for template in templates for name in ("fox", "vulpes")]).view(2, 2, -1).mean(1)
    assert torch.allclose(heads.templates[0], template_head(one[None])[0])
    alone = build_heads(Backbone(), build_class_set(["fox", "owl"], None, templates)[0])
    assert torch.allclose(heads.templates[1], alone.templates[1])
    assert not torch.allclose(heads.templates[0], alone.templates[0])


def test_a_run_answers_by_rank(tiny_vit, tmp_path):
    photos = write_photos(tmp_path / "photos", per_class=3)
    (photos / CLASSES[0] / "2.png").write_bytes(b"no picture")
    groups = ("warm", "cold", "cold", "warm")
    rows = "".join(f"{name},{'line' if i in (0, 3) else 'shape'},{groups[i]}\n" for i, name in enumerate(CLASSES))
    (tmp_path / "classes.csv").write_text(f"name,family,group\n{rows}")
    hints = [f"{name}/0.png,{name}" for name in CLASSES]
    (tmp_path / "hints.csv").write_text("path,label\n" + "\n".join(hints) + "\n")
    given = {"backbone": f"local:{tiny_vit}", "options": options_for("consensus"), "console": QUIET}
    api.adapt(photos, tmp_path / "classes.csv", tmp_path / "run", hints=tmp_path / "hints.csv", rank_floor=0.75, **given)
    by_path = {}
    with (tmp_path / "run" / "predictions_ranks.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            by_path[row["path"]] = row
    plain = {row.path: row for row in api.read_predictions(tmp_path / "run" / "predictions.csv")}
    assert list(by_path) == list(plain)
    told = by_path[f"{CLASSES[3]}/0.png"]
    assert [told[key] for key in ("family", "family_probability", "group", "sure_rank", "sure_name", "sure_probability")] == [
        *("line", "1", "warm", "name", CLASSES[3], "1")
    ]
    assert [by_path[f"{CLASSES[0]}/2.png"][key] for key in ("family", "sure_rank", "status")] == ["", "", "corrupt"]
    for path, row in plain.items():
        if row.status != "ok":
            continue
        # With four classes ``top5`` has all probabilities.
        p = dict(row.top5)
        line = sum(p.get(name, 0.0) for name in (CLASSES[0], CLASSES[3]))
        assert float(by_path[path]["family_probability"]) == pytest.approx(max(line, 1 - line), abs=1e-4)
        sure = row.probability is not None and row.probability >= 0.75
        assert by_path[path]["sure_rank"] == ("name" if sure else "family" if max(line, 1 - line) >= 0.75 else "")
    # The same of new photographs, and of parts of them.
    api.predict(tmp_path / "run", photos, tmp_path / "new.csv", console=QUIET)
    whole = (tmp_path / "new_ranks.csv").read_bytes()
    assert len(whole.splitlines()) == len(plain) + 1
    for shard in ("1/2", "2/2"):
        api.predict(tmp_path / "run", photos, tmp_path / "part.csv", shard=shard, console=QUIET)
    api.join(sorted(tmp_path.glob("part-*-of-00002.csv")), tmp_path / "joined.csv", console=QUIET)
    assert (tmp_path / "joined_ranks.csv").read_bytes() == whole
    # A name may stand twice: an archive takes it again.
    with tarfile.open(tmp_path / "twice.tar", "w") as archive:
        for name in CLASSES[:2]:
            archive.add(photos / name / "1.png", "same.png")
    twice = api.predict(tmp_path / "run", tmp_path / "twice.tar", tmp_path / "twice.csv", console=QUIET)
    with (tmp_path / "twice_ranks.csv").open(encoding="utf-8", newline="") as file:
        told_twice = [float(row["family_probability"]) for row in csv.DictReader(file)]
    lines = [sum(dict(row.top5).get(name, 0.0) for name in (CLASSES[0], CLASSES[3])) for row in twice]
    assert told_twice == pytest.approx([max(line, 1 - line) for line in lines], abs=1e-4)
    assert lines[0] != pytest.approx(lines[1], abs=1e-3)
    found = evaluate(tmp_path / "run", photos, "folders", json_file=tmp_path / "e.json", console=QUIET)
    assert [(own["rank"], own["names"], own["n"]) for own in found["by_rank"]] == [("family", 2, 7), ("group", 2, 7)]
    # The four that a person answered are in no number.
    answers = [row for row in api.read_predictions(tmp_path / "new.csv") if not row.path.endswith("/0.png")]
    truth = {row.path: row.label for row in answers if row.status == "ok"}
    right = [groups[CLASSES.index(str(label))] == groups[CLASSES.index(path.split("/")[0])] for path, label in truth.items()]
    assert found["by_rank"][1]["accuracy"] >= np.mean([label == path.split("/")[0] for path, label in truth.items()]) - 1e-9
    assert found["by_rank"][1]["accuracy"] == pytest.approx(np.mean(right), abs=0.1)
    assert f", group {found['by_rank'][1]['accuracy']:.1%}" in summary(found)
    assert json.loads((tmp_path / "e.json").read_text())["by_rank"] == found["by_rank"]
    api.report(tmp_path / "run", labels="folders", console=QUIET)
    assert "By rank" in (tmp_path / "run" / "report.html").read_text("utf-8")
