"""Published numbers: what the file may hold, and which of them may be compared with a table of ours."""

from __future__ import annotations

import copy
import json
from importlib.resources import files

import pytest

from finelens.bench.rows.protocols import parse_protocol
from finelens.bench.sets.table import SETS
from finelens.bench.tables.leaderboard import leaderboard
from finelens.bench.tables.published import BACKBONES, STAND_IN, beside, parse, published
from finelens.bench.tables.table import markdown_tables
from tests.bench.test_leaderboard import entry as leader_entry
from tests.bench.test_results import SOURCE
from tests.bench.test_table import entry

B32 = BACKBONES["CLIP ViT-B/32"]


def document() -> dict:
    return json.loads(files("finelens.bench.tables").joinpath("published.json").read_text(encoding="utf-8"))


def coop(data="dtd-coop", layout="coop", **changes):
    row = entry("zero-shot", data, 0.4, **{"backbone": B32, **changes})
    return type(row)(**{**vars(row), "source": {**SOURCE, "layout": layout}})


def test_every_number_says_where_it_is_from():
    entries = published()
    assert len(entries) > 500
    assert len({(e.method, e.data, e.backbone, e.protocol, e.source) for e in entries}) == len(entries)
    known = {spec.name.removesuffix("-coop") for spec in SETS} | {"mean", "places365"}
    assert {e.data for e in entries} <= known
    for e in entries:
        if e.protocol not in (None, "zero-shot"):
            parse_protocol(e.protocol)
    # A source that picks its epoch on test images, adapts otherwise or hides its split is never comparable.
    assert {(e.method, e.protocol, e.split) for e in entries if e.comparable} == {("CLIP", "zero-shot", "coop")}


@pytest.mark.parametrize(
    ("method", "data", "backbone", "protocol", "paper", "value"),
    [
        ("GTA-CLIP", "eurosat", "CLIP ViT-B/16", "transductive", "GTA-CLIP, ICCV 2025", 76.35),
        ("DPA", "cifar100", "CLIP ViT-B/32", "inductive", "DPA, WACV 2025", 76.47),
        ("LaFTer", "imagenet-a", "CLIP ViT-B/32", "inductive", "LaFTer, NeurIPS 2023", 31.5),
        ("WCA", "places365", "CLIP ViT-L/14", "zero-shot", "WCA, ICML 2024", 42.23),
        ("MUST", "gtsrb", "CLIP ViT-B/16", "inductive", "MUST", 65.5),
        ("microCLIP", "aircraft", "CLIP ViT-B/32", "longtail-50", "MARS, 2026", 15.36),
        ("GDA, unsupervised", "mean", "CLIP RN50", None, "GDA", 63.46),
    ],
)
def test_some_numbers(method, data, backbone, protocol, paper, value):
    found = [e.value for e in published() if (e.method, e.data, e.backbone, e.protocol, e.paper) == (method, data, backbone, protocol, paper)]
    assert found == [value]


def test_means_are_those_of_their_rows():
    """Where a table has all sets of its mean, the mean must come out: a misread cell would show."""
    checked = 0
    for table in document()["tables"]:
        if table["sets"][-1] == "mean" and len(table["sets"]) > 1:
            for method, values in table["rows"].items():
                if None not in values:
                    checked += 1
                    assert sum(values[:-1]) / (len(values) - 1) == pytest.approx(values[-1], abs=0.16), (table["source"], method)
    assert checked > 25


BROKEN = {
    "a key too many": lambda t: t.update(note="x"),
    "a key too few": lambda t: t.pop("why"),
    "an empty reason": lambda t: t.update(why=" "),
    "a source without paper": lambda t: t["source"].update(paper=None),
    "comparable as text": lambda t: t.update(comparable="no"),
    "comparable with a split not known": lambda t: t.update(comparable=True, split=None),
    "a row too short": lambda t: t["rows"].update(CLIP=[1.0]),
    "a share in place of per cent": lambda t: t["rows"].update(CLIP=[0] * len(t["sets"])),
    "a set twice": lambda t: t["sets"].__setitem__(0, t["sets"][1]),
    "a number above 100": lambda t: t["rows"].update(CLIP=[101.0] * len(t["sets"])),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_is_not_as_it_has_to_be_is_refused(kind):
    broken = copy.deepcopy(document())
    BROKEN[kind](broken["tables"][0])
    with pytest.raises(ValueError, match="published numbers, table 0"):
        list(parse(broken))


def test_the_embedded_stand_in_is_never_comparable():
    for one in beside([coop(backbone="embedded"), coop("eurosat-coop", backbone="embedded")]):
        assert not one.comparable
        assert one.mark == f"no: {STAND_IN}"


def test_comparable_needs_the_same_backbone_split_and_protocol():
    best = beside([coop()])[0]
    assert (best.method, best.values, best.comparable) == ("CLIP", {"dtd-coop": 42.9}, {"dtd-coop"})
    assert best.source.startswith("LaFTer")
    assert sum(bool(one.comparable) for one in beside([coop()])) == 1
    for other in (
        coop("dtd", layout="authors"),
        coop(layout="folder"),
        coop(backbone=BACKBONES["CLIP ViT-B/16"]),
        coop(protocol="longtail-10"),
        coop(protocol="transductive", profile="small"),
    ):
        assert not any(one.comparable for one in beside([other]))
    assert beside([coop(protocol="online")])[0].comparable
    mixed = beside([coop(), coop("eurosat-coop", layout="folder")])[0]
    assert mixed.comparable == {"dtd-coop"}
    assert mixed.mark.startswith("dtd-coop only: ")


def test_tables_show_them_apart_and_only_when_asked():
    rows = [coop(), entry("ot", "dtd-coop", 0.5, backbone="embedded")]
    assert "Published" not in markdown_tables(rows)
    text = markdown_tables(rows, published=True)
    ours, theirs, *_ = text.split("#### Published by others")
    assert "42.9" not in ours
    assert "| CLIP | LaFTer, NeurIPS 2023, main table on the project page | CLIP ViT-B/32 | zero-shot | 42.9 | yes: " in theirs
    assert text.count("#### Published by others") == 2
    assert STAND_IN in text.rpartition("#### Published by others")[2]
    assert "No published number is known" in markdown_tables([entry("ot", "a", 0.5)], published=True)


def test_the_leaderboard_shows_them_apart():
    page = leaderboard([leader_entry("zero-shot", "dtd"), leader_entry("ot", "dtd")])
    ours, _, theirs = page.partition('<details class="published">')
    assert "DPA" not in ours
    assert STAND_IN in theirs
    assert "yes: " not in theirs
    assert "<details" not in leaderboard([leader_entry("ot")])
