"""Several models: the run takes the one that its log ranks first, says so in the report, and refuses what cannot be ranked."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

import finelens
from finelens.backbones.registry import several
from finelens.errors import UserError
from finelens.runs import choose_backbone as module
from tests.backbones.checkpoints import write_tiny_vit
from tests.toy import CLASSES, QUIET


def test_the_first_of_the_ranking_is_taken(photos, classes, tiny_vit, tiny_resnet, tmp_path, monkeypatch):
    asked: list[tuple[str, int]] = []
    own = module.rank_encoders

    def watched(seen):
        asked.extend((one.name, len(one.probabilities)) for one in seen)
        return own(seen)

    monkeypatch.setattr(module, "rank_encoders", watched)
    monkeypatch.setattr(module, "MOST", 12)
    write_tiny_vit(tmp_path / "other", seed=3)
    specs = [f"local:{folder}" for folder in (tiny_resnet, tiny_vit, tmp_path / "other")]
    finelens.adapt(photos, classes, tmp_path / "run", method="zero-shot", verb="zero-shot", backbone=",".join(specs), console=QUIET)
    assert asked == [(spec, 12) for spec in specs]
    (event,) = [e for e in map(json.loads, (tmp_path / "run/events.jsonl").read_text().splitlines()) if e["event"] == "backbones"]
    ranked = [one["name"] for one in event["ranked"]]
    assert sorted(ranked) == sorted(specs)
    assert [one["agreement"] for one in event["ranked"]] == sorted((one["agreement"] for one in event["ranked"]), reverse=True)
    assert json.loads((tmp_path / "run/config.json").read_text())["backbone"] == ranked[0]
    assert event["reason"].startswith(f"of 3 models {ranked[0]} answers most often as the vote of the others does")
    assert "How the model was chosen: of 3 models" in (tmp_path / "run/report.html").read_text()
    # The model alone gives the same answers.
    finelens.adapt(photos, classes, tmp_path / "alone", method="zero-shot", verb="zero-shot", backbone=ranked[0], console=QUIET)
    assert (tmp_path / "alone/predictions.csv").read_bytes() == (tmp_path / "run/predictions.csv").read_bytes()


def test_the_estimator_takes_several(photos, tiny_vit, tiny_resnet, monkeypatch):
    choice = SimpleNamespace(spec=f"local:{tiny_resnet}")
    monkeypatch.setattr("finelens.runs.label_free.choose_backbone", lambda specs, *_: choice if len(specs) == 2 else None)
    model = finelens.LabelFreeClassifier(CLASSES, method="zero-shot", backbone=f"local:{tiny_vit},local:{tiny_resnet}").fit(photos)
    assert model.classifier_.model.engine.backbone.name == f"local:{tiny_resnet}"


def test_what_cannot_be_ranked_is_refused(photos, classes, tiny_vit, tmp_path):
    finelens.features(photos, tmp_path / "F.safetensors", backbone=f"local:{tiny_vit}", console=QUIET)
    both = f"local:{tiny_vit},embedded"
    with pytest.raises(UserError, match="give photographs, without --prototypes or --in"):
        finelens.adapt(tmp_path / "F.safetensors", classes, tmp_path / "run", method="zero-shot", backbone=both, console=QUIET)
    assert not (tmp_path / "run").exists()


def test_lists_and_names_with_commas():
    assert several("embedded, local:/a,hf-hub:o/r") == ["embedded", "local:/a", "hf-hub:o/r"]
    assert several("local:/photos, old/model") == ["local:/photos, old/model"]
    assert several("embedded") == ["embedded"]
