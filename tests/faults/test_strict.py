"""``--strict``: bytes flipped inside a JPEG give wrong pixels without an error; the complaints of the library become a note in the row."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from finelens.api import load_run, predict, zero_shot
from finelens.core.console import Console
from finelens.images import complaints as strict
from finelens.images.boxes import Box
from finelens.images.complaints import PREFIX, SecondOpinion, note_complaints
from finelens.images.decode import DecodeLimits
from finelens.images.discover import ImageFile, discover
from finelens.images.second_opinion import complaints
from finelens.images.store import load_images
from finelens.storage.predictions import read_predictions
from tests.toy import QUIET, picture, write_classes


def flipped_jpeg() -> bytes:
    """Decodes without an error; libjpeg says that it is not whole."""
    buffer = io.BytesIO()
    Image.fromarray(picture(1, 0)).save(buffer, "JPEG")
    for position in range(700, len(buffer.getvalue()) - 2):
        damaged = bytearray(buffer.getvalue())
        damaged[position] ^= 0x5A
        if damaged[position] == 0xFF or damaged[position - 1] == 0xFF or buffer.getvalue()[position] == 0xFF:
            continue
        Path("flipped.jpg").write_bytes(damaged)
        if complaints("flipped.jpg"):
            return bytes(damaged)
    raise AssertionError("no flip was noticed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("strict")
    photos = root / "photos"
    photos.mkdir()
    before = os.getcwd()
    os.chdir(root)
    try:
        (photos / "b-flipped.jpg").write_bytes(flipped_jpeg())
    finally:
        os.chdir(before)
    Image.fromarray(picture(0, 0)).save(photos / "a-good.jpg")
    Image.fromarray(picture(2, 0)).save(photos / "c-good.png")
    (photos / "d-broken.jpg").write_bytes(b"\xff\xd8 and no more")
    return photos


def test_flipped_bytes_are_accepted_and_noted(folder, capsys):
    files = discover(folder)
    records = load_images(files).records
    assert [record.status for record in records] == ["ok", "ok", "ok", "corrupt"]
    assert not any(PREFIX in record.reason for record in records)
    noted = note_complaints(files, records, DecodeLimits(), Console())
    assert [PREFIX in record.reason for record in noted] == [False, True, False, False]
    assert "Corrupt JPEG data" in noted[1].reason
    assert noted[1].status == "ok"
    assert [record for i, record in enumerate(noted) if i != 1] == [record for i, record in enumerate(records) if i != 1]
    assert "strict: 1 files decode with warnings, first b-flipped.jpg" in capsys.readouterr().err


def test_complaints_of_both_libraries(folder, tmp_path):
    assert complaints(os.fspath(folder / "a-good.jpg")) == []
    assert complaints(os.fspath(folder / "c-good.png")) == []
    assert any("Corrupt JPEG data" in line for line in complaints(os.fspath(folder / "b-flipped.jpg")))
    Image.fromarray(picture(0, 0)).save(tmp_path / "palette.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(0, 0)).save(tmp_path / "a.tif", exif=exif)
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(content[:-2])
    assert complaints(os.fspath(tmp_path / "cut.tif"))
    assert complaints(os.fspath(tmp_path / "nothing.jpg"))[0].startswith("FileNotFoundError")


def test_the_helper_process_answers_each_line(folder):
    paths = [os.fspath(folder / name) for name in ("a-good.jpg", "b-flipped.jpg")]
    command = [sys.executable, "-m", "finelens.images.second_opinion"]
    lines = subprocess.run(
        command, input="".join(json.dumps(p) + "\n" for p in paths), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert [bool(json.loads(line)) for line in lines] == [False, True]


def test_a_file_within_the_budget_of_the_run_is_no_complaint(tmp_path, capsys):
    """The reader judged by a budget of its own, and by the form of photographs of which parts are rows."""
    Image.new("RGB", (9000, 7200)).save(tmp_path / "large.png")
    Image.new("RGB", (2100, 100)).save(tmp_path / "wide.png")
    files = [*discover(tmp_path)[:1], ImageFile(str(tmp_path / "wide.png"), "wide.png#1", Box(0.0, 0.0, 0.1, 1.0))]
    limits = DecodeLimits(max_pixels=70_000_000)
    records = load_images(files, limits).records
    assert [record.status for record in records] == ["ok", "ok"]
    assert note_complaints(files, records, limits, Console()) == records
    assert "exceed the budget" in complaints(files[0].place)[0]


def test_a_file_that_kills_the_reader_is_noted_and_the_next_is_read(monkeypatch, folder):
    code = "import sys\nfor line in sys.stdin:\n    if 'flipped' in line: sys.exit(1)\n    print('[]', flush=True)"
    popen = subprocess.Popen
    monkeypatch.setattr(strict.subprocess, "Popen", lambda command, **given: popen([sys.executable, "-c", code], **given))
    with SecondOpinion(DecodeLimits()) as opinion:
        assert opinion.complaints(folder / "a-good.jpg") == []
        assert opinion.complaints(folder / "b-flipped.jpg") == ["the checking reader crashed or did not answer"]
        assert opinion.complaints(folder / "a-good.jpg") == []


def test_a_reader_that_hangs_is_given_up_on(monkeypatch, folder):
    popen = subprocess.Popen
    monkeypatch.setattr(strict.subprocess, "Popen", lambda command, **given: popen([sys.executable, "-c", "import time; time.sleep(60)"], **given))
    monkeypatch.setattr(strict, "PATIENCE_SECONDS", 0.2)
    with SecondOpinion(DecodeLimits()) as opinion:
        assert opinion.complaints(folder / "a-good.jpg") == ["the checking reader crashed or did not answer"]


def test_every_verb_that_reads_photographs_takes_it(folder, tiny_vit, tmp_path, monkeypatch):
    monkeypatch.setattr(SecondOpinion, "complaints", lambda self, path: complaints(os.fspath(path)))
    options = {"training": {"precision": "float32"}}
    names = write_classes(tmp_path / "classes.txt")
    run = zero_shot(folder, names, tmp_path / "run", backbone=f"local:{tiny_vit}", options=options, strict=True, console=QUIET)
    assert [PREFIX in row.reason for row in run.rows] == [False, True, False, False]
    assert read_predictions(tmp_path / "run" / "predictions.csv") == run.rows
    plain = predict(tmp_path / "run", folder, tmp_path / "plain.csv", console=QUIET)
    rows = predict(tmp_path / "run", folder, tmp_path / "out.csv", strict=True, console=QUIET)
    assert [PREFIX in row.reason for row in rows] == [False, True, False, False]
    assert [row.label for row in rows] == [row.label for row in plain]
    assert not any(PREFIX in row.reason for row in plain)
    assert load_run(tmp_path / "run")._config.strict
