"""A finished run as the exchange forms see it: a folder of files, without a model behind it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from finelens.core.schemas import CONFIG_FILE, EVENTS_FILE, MODEL_CONFIG_FILE, MODEL_DIR, PREDICTIONS_FILE
from finelens.runs.config import RunConfig, to_json
from finelens.storage.files import write_json, write_text
from finelens.storage.predictions import PredictionRow, write_predictions

CLASSES = ("red fox", "empty", "Person", "=cmd")
ROWS = (
    PredictionRow("cam 1/a.jpg", "red fox", 0.75, 0.5, (("red fox", 0.75), ("empty", 0.25)), "empty"),
    PredictionRow("cam 1/a.png", "empty", 0.625, 0.25, (("empty", 0.625), ("red fox", 0.375)), "empty"),
    PredictionRow("cam 2/b.jpg", "Person", 0.25, 0.0, (("Person", 0.25), ("=cmd", 0.25)), "empty"),
    PredictionRow("cam 2/c.jpg", "=cmd", 1.0, 1.0, (("=cmd", 1.0),), "red fox", answered="yes"),
    PredictionRow("cam 2/d.jpg", zero_shot_class="red fox", answered="yes"),
    PredictionRow("e.jpg", status="corrupt", reason="the file is empty (0 bytes)"),
)


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    for row in ROWS:
        path = folder / row.path
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        if row.path == "cam 1/a.jpg":
            exif[0x0112], exif[0x0132] = 6, "2026:05:04 03:02:01"
        if row.status == "ok":
            Image.new("RGB", (40, 30), "red").save(path, exif=exif)
        else:
            path.write_bytes(b"")
    return folder


@pytest.fixture
def run(tmp_path, photos) -> Path:
    folder = tmp_path / "run"
    (folder / MODEL_DIR).mkdir(parents=True)
    write_json(folder / CONFIG_FILE, to_json(RunConfig("adapt", str(photos))))
    write_text(folder / EVENTS_FILE, json.dumps({"time": "2026-11-28T10:11:12.000+00:00", "event": "end"}) + "\n")
    write_json(folder / MODEL_DIR / MODEL_CONFIG_FILE, {"class_names": CLASSES, "method": "consensus", "finelens_version": "9.9"})
    write_predictions(folder / PREDICTIONS_FILE, ROWS)
    return folder
