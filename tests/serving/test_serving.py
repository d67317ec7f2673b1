"""The server gives the run's own answers to whatever is posted, and says what is wrong with the rest."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from finelens import api
from finelens.cli import cli
from finelens.core.console import Console
from finelens.core.schemas import UNLIKE_NOTE
from finelens.errors import UserError
from finelens.evaluation.conformal import Conformal, calibrate
from finelens.feature_store.extra_towers import ExtraEncoder
from finelens.images.decode import DecodedImage
from finelens.images.store import EncodedImage
from finelens.runs.classifier import load_run
from finelens.serving import server
from finelens.serving.answers import Answers
from finelens.serving.batcher import Batcher, FullError
from finelens.serving.settings import Settings, is_loopback, read_token
from finelens.storage.predictions import read_predictions
from tests.backbones.encoder_checkpoints import write_timm
from tests.toy import CLASSES, QUIET, options_for, picture, write_classes, write_photos

pytest.importorskip("python_multipart")
pytest.importorskip("prometheus_client")
app = pytest.importorskip("finelens.serving.app")
httpx = pytest.importorskip("httpx")
TestClient = pytest.importorskip("starlette.testclient").TestClient

TOKEN = "0123456789abcdef0123456789abcdef"
SMALL = Settings(max_images=4, max_image_mb=0.1, max_request_mb=0.3, batch=4, wait=1.0, queue=8)


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_vit) -> SimpleNamespace:
    parent = tmp_path_factory.mktemp("serving")
    photos, classes = write_photos(parent / "photos", per_class=2), write_classes(parent / "classes.txt")
    api.adapt(photos, classes, parent / "run", backbone=f"local:{tiny_vit}", options=options_for("consensus"), console=QUIET)
    classifier = load_run(parent / "run")
    files = sorted(photos.rglob("*.png"))
    return SimpleNamespace(run=parent / "run", classifier=classifier, files=files, wanted=classifier.predict_proba(files))


@pytest.fixture
def client(world):
    answers = Answers(world.classifier, Conformal(0.2, 0.9, 20), round(SMALL.max_image_mb * 1e6))
    with TestClient(app.make_app(answers, SMALL)) as found:
        yield found


def png(pixels: np.ndarray) -> bytes:
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "png")
    return held.getvalue()


def row(answer: dict) -> list[float]:
    return [answer["probabilities"][name] for name in CLASSES]


def test_a_form_and_a_raw_body_get_the_runs_own_probabilities(client, world):
    """Also in one batch with a copy of itself."""
    files = [("images", (path.name, path.read_bytes())) for path in [*world.files[:3], world.files[0]]]
    told = client.post("/predict?top=0", files=files).json()["answers"]
    assert [answer["name"] for answer in told] == ["0.png", "1.png", "0.png", "0.png"]
    assert np.allclose([row(answer) for answer in told], world.wanted[[0, 1, 2, 0]], atol=1e-5)
    (raw,) = client.post("/predict?top=0", content=world.files[0].read_bytes(), headers={"content-type": "image/png"}).json()["answers"]
    assert np.allclose(row(raw), world.wanted[0], atol=1e-5)
    assert raw["class"] == CLASSES[int(world.wanted[0].argmax())]
    assert raw["probability"] == max(row(raw))
    likely = sorted((p, name) for name, p in raw["probabilities"].items() if p >= 0.2)[::-1]
    assert raw["set"] == ([name for _, name in likely] or [raw["class"]])
    (short,) = client.post("/predict?top=2", content=world.files[0].read_bytes(), headers={"content-type": "image/png"}).json()["answers"]
    assert list(short["probabilities"].items()) == sorted(raw["probabilities"].items(), key=lambda item: -item[1])[:2]


def test_a_bad_image_has_a_status_and_the_others_their_answers(client, world):
    small, large = png(np.zeros((4, 4, 3), np.uint8)), png(np.random.default_rng(0).integers(0, 256, (250, 250, 3), dtype=np.uint8))
    files = [
        ("a", ("text.jpg", b"no image")),
        ("b", ("small.png", small)),
        ("c", ("large.png", large)),
        ("d", ("x.png", world.files[5].read_bytes())),
    ]
    response = client.post("/predict?top=0", files=files)
    assert response.status_code == 200
    told = response.json()["answers"]
    assert [answer["status"] for answer in told] == ["corrupt", "degenerate", "too_large", "ok"]
    assert [answer["class"] is None for answer in told] == [True, True, True, False]
    assert "exceed the budget of 0 MB" in told[2]["reason"]
    assert np.allclose(row(told[3]), world.wanted[5], atol=1e-5)
    empty = client.post("/predict", files=[("a", ("", b"")), ("b", ("e.png", b""))]).json()["answers"]
    assert {answer["status"] for answer in empty} == {"corrupt"}


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        ({"content": b"hello", "headers": {"content-type": "text/plain"}}, 415, "send multipart/form-data with files"),
        ({"content": b"", "headers": {"content-type": "image/png"}}, 400, "the body is empty"),
        ({"content": b"x" * 300_001, "headers": {"content-type": "image/png"}}, 413, "a request may have 0.3 MB"),
        ({"content": iter([b"x" * 100_000] * 4), "headers": {"content-type": "image/png"}}, 413, "a request may have 0.3 MB"),
        ({"files": [("a", ("a.png", b"x"))] * 5}, 413, "a request may have 4 images"),
        ({"files": [("a", ("a.png", b"x" * 400_000))]}, 413, "a request may have 0.3 MB"),
        ({"data": {"url": "http://example.org/a.jpg"}, "files": []}, 415, "send multipart"),
        ({"content": b"--b\r\nnonsense", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400, "the form"),
        ({"content": b"nonsense", "headers": {"content-type": "multipart/form-data"}}, 400, "the form cannot be read"),
    ],
)
def test_a_bad_request_is_refused_with_the_reason(sent, status, said, client):
    response = client.post("/predict", **sent)
    assert response.status_code == status, response.text
    assert said in response.json()["detail"]


def test_health_and_metrics_count(client, world):
    assert client.get("/health").json()["classes"] == len(CLASSES)
    assert client.get("/classes").json() == list(CLASSES)
    client.post("/predict", files=[("a", ("a.png", world.files[0].read_bytes())), ("b", ("b.png", b"bad"))])
    client.post("/predict", content=b"x", headers={"content-type": "text/plain"})
    lines = client.get("/metrics").text.splitlines()
    for line in (
        'finelens_images_total{status="ok"} 1.0',
        'finelens_images_total{status="corrupt"} 1.0',
        'finelens_requests_total{code="415"} 1.0',
        "finelens_batch_images_count 1.0",
        "finelens_request_seconds_count 2.0",
        "finelens_waiting_images 0.0",
    ):
        assert line in lines


def test_without_the_token_nothing_but_health_is_said(world):
    with TestClient(app.make_app(Answers(world.classifier, None, 10**6), SMALL, TOKEN)) as client:
        assert client.get("/health").status_code == 200
        wrong = ["", "Bearer", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", f"Bearer {TOKEN}x"]
        for given in wrong:
            for path in ("/predict", "/metrics", "/openapi.json", "/classes"):
                assert client.request("POST" if path == "/predict" else "GET", path, headers={"authorization": given}).status_code == 401
        right = {"authorization": f"Bearer {TOKEN}", "content-type": "image/png"}
        (answer,) = client.post("/predict", content=world.files[0].read_bytes(), headers=right).json()["answers"]
        assert answer["status"] == "ok"
        assert answer["set"] is None


def test_the_interface_is_described_with_examples(client):
    told = client.get("/openapi.json").json()["paths"]["/predict"]["post"]
    assert set(told["requestBody"]["content"]) == {"multipart/form-data", "image/*", "application/octet-stream"}
    assert {"200", "400", "401", "408", "413", "415", "503"} <= set(told["responses"])
    examples = told["responses"]["200"]["content"]["application/json"]["example"]["answers"]
    assert [one["status"] for one in examples] == ["ok", "corrupt"]
    assert client.get("/docs").status_code == 404


def test_images_of_many_requests_are_answered_together_and_each_gets_its_own():
    sizes, batches = [], []

    def answer(images):
        batches.append(len(images))
        if any(image.sha256 == "bad" for image in images):
            raise RuntimeError("broken")
        return np.array([[float(image.sha256)] for image in images])

    async def ask():
        batcher = Batcher(answer, size=4, wait=0.05, queue=8, tell=sizes.append)
        batcher.start()
        images = [DecodedImage(torch.zeros(3, 8, 8, dtype=torch.uint8), str(i)) for i in range(6)]
        found = await asyncio.gather(*(batcher.answers([image]) for image in images))
        assert [float(rows[0][0]) for rows in found] == [0, 1, 2, 3, 4, 5]
        assert await batcher.answers([]) == []
        with pytest.raises(RuntimeError, match="broken"):
            await batcher.answers([DecodedImage(images[0].pixels, "bad")])
        # One that failed ends no other.
        late = asyncio.ensure_future(batcher.answers(images[:1]))
        await asyncio.sleep(0)
        await batcher.stop()
        assert float((await late)[0][0]) == 0

    asyncio.run(ask())
    assert sizes == batches == [4, 2, 1, 1]


def test_what_finds_no_room_is_told_to_come_back(world):
    batcher = Batcher(lambda images: np.zeros((0, 0)), size=4, wait=0, queue=8, tell=lambda size: None)
    batcher.reserve(8)
    with pytest.raises(FullError):
        batcher.reserve(1)
    batcher.release(1)
    batcher.reserve(1)


def test_clients_at_once_lose_and_mix_up_nothing(client, world):
    def ask(i: int) -> tuple[int, dict]:
        response = client.post("/predict?top=0", content=world.files[i].read_bytes(), headers={"content-type": "image/png"})
        return i, response.json()["answers"][0]

    with ThreadPoolExecutor(4) as pool:
        for i, answer in pool.map(ask, [0, 1, 2, 3, 4, 5, 6, 7] * 2):
            assert np.allclose(row(answer), world.wanted[i], atol=1e-5)


def test_it_serves_sets_and_ends_when_it_is_told_to(world, tmp_path):
    """With SIGTERM, once it has said where it is and answered. A signal before that would end the tests."""
    photos = world.files[0].parents[1]
    rows = [f"{path.relative_to(photos).as_posix()},{path.parent.name}" for path in world.files]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows, ""]), encoding="utf-8")
    said, answers = [], []

    class Told(Console):
        def say(self, text: str) -> None:
            said.append(text)

    def ask() -> None:
        while not any("listening" in line for line in said):
            time.sleep(0.01)
        address = next(re.search(r"http://[0-9.:]+", line).group() for line in said if "listening" in line)
        with httpx.Client(base_url=address, timeout=30) as client:
            while True:
                try:
                    client.get("/health")
                    break
                except httpx.ConnectError:
                    time.sleep(0.01)
            answers.append(client.post("/predict", content=world.files[0].read_bytes(), headers={"content-type": "image/png"}).json()["answers"][0])
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        server.serve(world.run, port=0, calibrate=tmp_path / "labels.csv", coverage=0.8, console=Told(enabled=False))
        asking.result()
    rule = calibrate(world.wanted, np.array([CLASSES.index(path.parent.name) for path in world.files]), 0.8)
    inside = {name for name, kept in zip(CLASSES, rule.contains(world.wanted[:1])[0], strict=True) if kept}
    assert set(answers[0]["set"]) == inside
    assert "without a token" in said[-2]
    assert said[-1] == "ended; all requests under way were answered"
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_address_that_others_reach_needs_a_token(tmp_path, monkeypatch):
    monkeypatch.delenv("FINELENS_TOKEN", raising=False)
    assert [is_loopback(host) for host in ("localhost", "127.0.0.1", "127.1.2.3", "::1", "0.0.0.0", "::", "192.168.1.5", "example.org")] == [
        *[True] * 4,
        *[False] * 4,
    ]
    assert read_token("127.0.0.1", None) is None
    with pytest.raises(UserError, match=r"others can reach 0\.0\.0\.0, so requests must carry a token"):
        server.serve(tmp_path, host="0.0.0.0", console=QUIET)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_token("0.0.0.0", tmp_path / "token") == TOKEN
    (tmp_path / "token").write_text("short")
    with pytest.raises(UserError, match="at least 16 characters"):
        read_token("127.0.0.1", tmp_path / "token")
    (tmp_path / "token").write_text("\n")
    with pytest.raises(UserError, match="must carry a token"):
        read_token("127.0.0.1", tmp_path / "token")
    monkeypatch.setenv("FINELENS_TOKEN", TOKEN)
    assert read_token("127.0.0.1", None) == TOKEN


def test_the_command_refuses_before_the_work(tmp_path, monkeypatch):
    def said(*arguments: str) -> str:
        found = CliRunner().invoke(cli, ["serve", str(tmp_path), *arguments])
        return found.output + str(found.exception)

    assert "--coverage have an effect with --calibrate FILE only" in said("--coverage", "0.8")
    assert "--queue must be at least --max-images" in said("--queue", "3")
    assert "--batch must be above 0" in said("--batch", "0")
    monkeypatch.setattr(server, "find_spec", lambda name: None if name == "python_multipart" else object())
    assert "finelens serve needs python-multipart: pip install 'finelens[serve]'" in said()


def test_decoding_never_raises(world):
    answers = Answers(world.classifier, None, 1000)
    for upload in (
        EncodedImage(b"", ""),
        EncodedImage(b"\xff\xd8" * 10, "a\0b"),
        EncodedImage(b"x" * 2000, "big.png"),
        EncodedImage(png(picture(0, 0))[:200], "cut.png"),
    ):
        assert answers.document(upload.name, answers.decode(upload), None, 0)["status"] in ("corrupt", "unsupported", "too_large")


def test_features_from_a_file_are_refused(world):
    model = SimpleNamespace(engine=SimpleNamespace(backbone=None), extra=(ExtraEncoder(64, "digest", "another model"),))
    with pytest.raises(UserError, match="adapt with --extra-encoder instead of --extra"):
        Answers(SimpleNamespace(model=model), None, 1)


@pytest.fixture(scope="module")
def further(tmp_path_factory, tiny_vit) -> SimpleNamespace:
    """A run beside a further encoder by name."""
    parent = tmp_path_factory.mktemp("further")
    photos, classes = write_photos(parent / "photos", per_class=2), write_classes(parent / "classes.txt")
    weights = parent / "second.safetensors"
    write_timm(weights, "test_vit")
    given = {"method": "consensus", "backbone": f"local:{tiny_vit}", "options": options_for("consensus"), "console": QUIET}
    api.adapt(photos, classes, parent / "run", extra_encoders=[f"timm:test_vit@{weights}"], **given)
    return SimpleNamespace(run=parent / "run", files=sorted(photos.rglob("*.png")), weights=weights)


def test_a_run_beside_a_further_encoder_answers_as_it_predicts(further):
    classifier = load_run(further.run)
    answers = Answers(classifier, None, 10**6)
    with TestClient(app.make_app(answers, Settings())) as found:
        sent = [("images", (file.name, file.read_bytes(), "image/png")) for file in further.files]
        got = found.post("/predict?top=0", files=sent).json()["answers"]
    said = np.array([[one["probabilities"][name] for name in CLASSES] for one in got])
    np.testing.assert_allclose(said, classifier.predict_proba(further.files), atol=1e-6)


def test_doubt_and_likeness_are_those_of_predict(tmp_path):
    """Photographs of other things than those of the fit, sent and predicted."""
    photos, classes = write_photos(tmp_path / "photos", per_class=6), write_classes(tmp_path / "classes.txt")
    api.adapt(photos, classes, tmp_path / "run", options=options_for("consensus"), console=QUIET)
    others = tmp_path / "others"
    others.mkdir()
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        (others / f"{seed}.png").write_bytes(png(pixels))
    api.predict_to(tmp_path / "run", others, tmp_path / "new.csv", console=QUIET)
    rows = read_predictions(tmp_path / "new.csv")
    with TestClient(app.make_app(Answers(load_run(tmp_path / "run"), None, 10**6), Settings())) as found:
        sent = [("images", (row.path, (others / row.path).read_bytes(), "image/png")) for row in rows]
        got = found.post("/predict", files=sent).json()["answers"]
    np.testing.assert_allclose([one["none_of_these"] for one in got], [row.none_of_these for row in rows], atol=1e-3)
    assert [one["reason"] for one in got] == [row.reason for row in rows]
    assert all(UNLIKE_NOTE in row.reason for row in rows)


def test_what_clients_send_is_not_kept(further, monkeypatch, tmp_path):
    answers = Answers(load_run(further.run), None, 10**6)
    monkeypatch.setenv("FINELENS_CACHE", str(tmp_path / "cache"))
    image = answers.decode(EncodedImage(png(picture(1, 7)), "new.png"))
    assert answers.answer([image])[0].probabilities.shape == (len(CLASSES),)
    assert not list(tmp_path.rglob("*"))


def test_weights_of_a_further_encoder_that_moved_are_named(further, tmp_path):
    moved = further.weights.rename(tmp_path / "moved.safetensors")
    try:
        with pytest.raises(UserError, match=r"second\.safetensors"):
            Answers(load_run(further.run), None, 10**6)
        found = Answers(load_run(further.run, extra_encoders=[f"timm:test_vit@{moved}"]), None, 10**6)
        assert len(found.answer([found.decode(EncodedImage(png(picture(0, 0)), ""))])) == 1
    finally:
        moved.rename(further.weights)


def test_a_run_folder_is_needed(tmp_path):
    with pytest.raises(UserError, match=r"is not the folder of a finelens run|does not exist"):
        server.serve(Path(tmp_path), console=QUIET)
