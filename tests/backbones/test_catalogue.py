"""The table of known models: what it names exists, and it sends nobody to the embedded encoder or CLIP B/32."""

from __future__ import annotations

import json

import open_clip
import pytest

from finelens.backbones.catalogue import RECOMMENDED, USES, known_backbones, table_lines
from finelens.backbones.registry import check_spec
from finelens.cli import main
from finelens.errors import UserError


def test_every_model_can_be_asked_for():
    known = set(open_clip.list_pretrained())
    for one in known_backbones():
        check_spec(one.spec)
        scheme, _, rest = one.spec.partition(":")
        assert scheme != "open_clip" or tuple(rest.split("/")) in known, one.spec
        assert set(one.uses) <= set(USES)
        assert one.licence
        assert (one.zero_shot is None) == (not one.source), one.spec


def test_the_recommended_one_has_the_best_published_accuracy():
    best = max((one for one in known_backbones("natural") if one.zero_shot is not None), key=lambda one: one.zero_shot)
    assert best.spec == RECOMMENDED == known_backbones()[0].spec
    assert {use for one in known_backbones() for use in one.uses} == set(USES)


def test_table_and_json_of_the_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["backbones", "--for", "satellite"])
    out = capsys.readouterr().out
    assert not stop.value.code
    assert "hf-hub:joaodaniel/RS-M-CLIP" in out
    assert "PE-Core-B-16/meta " not in out
    with pytest.raises(SystemExit):
        main(["backbones", "--json"])
    rows = json.loads(capsys.readouterr().out.splitlines()[0])["backbones"]
    assert [row["spec"] for row in rows if row["recommended"]] == [RECOMMENDED]
    assert rows[0]["zero_shot"] == 81.5
    assert "2606.08126" in rows[0]["source"]
    with pytest.raises(UserError, match="unknown use 'birds'; there are: natural"):
        known_backbones("birds")


def test_every_number_has_its_source_under_the_table():
    lines = table_lines(known_backbones())
    assert any("OSTB" in line for line in lines)
    assert any("81.5" in line and "Apache-2.0" in line for line in lines)
