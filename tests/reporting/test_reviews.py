"""The review sheet: its order, its safety, its server, and that its answers can be adapted with."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from finelens import api
from finelens.classes.hints import hints_csv, read_hints
from finelens.errors import UserError
from finelens.evaluation.signals import neighbour_support
from finelens.images.decode import DecodeLimits
from finelens.images.discover import discover
from finelens.images.load import load
from finelens.reporting.kept_pictures import KeptPictures
from finelens.reporting.record import read_run
from finelens.reporting.review.answers import earlier_answers, read_answers
from finelens.reporting.review.order import looks, ranks
from finelens.reporting.review.sheet import adapt_command, sheet_html
from finelens.reporting.thumbnails import Photo, Thumbnails, no_photos, whole
from finelens.runs.folder import RunFolder
from tests.reporting.browser import ENTER, available, browser
from tests.toy import QUIET, options_for, write_classes, write_photos

# Names that would do harm where they are taken for markup, script, or a formula.
NAMES = ("<script>alert(1)</script>", '" onerror="x', "=cmd|calc", "\u202eעברית")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from tests.backbones.checkpoints import write_tiny_vit

    folder = tmp_path_factory.mktemp("review")
    photos = write_photos(folder / "photos", ["<b>a", "b'\"", "-c", "d"], per_class=3)
    (photos / "broken.jpg").write_bytes(b"no picture")
    backbone = write_tiny_vit(folder / "vit")
    api.adapt(
        photos,
        write_classes(folder / "classes.txt", NAMES),
        folder / "run",
        backbone=f"local:{backbone}",
        method="stata",
        options=options_for("stata"),
        console=QUIET,
    )
    return folder / "run"


@pytest.fixture
def record(run):
    return read_run(RunFolder.open(run, lock=False))


def data_of(html: str):
    return json.loads(re.search(r'<script type="application/json" id="review-data">(.*?)</script>', html, re.S)[1])


def test_equal_values_share_their_rank():
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [0.625, 0.0, 0.625, 0.25]
    assert ranks(np.array([])).tolist() == []


def test_doubtful_and_unsupported_photographs_come_first(record):
    n = len(record.predicted)
    rows = iter([replace(row, probability=0.9, margin=0.8) for row in record.predicted])
    rows = [next(rows) if row.label is not None else row for row in record.rows]
    predicted = [i for i, row in enumerate(rows) if row.label is not None]
    rows[predicted[4]] = replace(rows[predicted[4]], probability=0.3, margin=0.05)
    support = [0.9] * n
    support[7] = 0.1
    support[4] = 0.2
    made = replace(record, rows=tuple(rows), measured=replace(record.measured, support=tuple(support)))
    order = looks(made, 100)
    assert [look.row.path for look in order[:2]] == [rows[predicted[i]].path for i in (4, 7)]
    assert "hardly surer" in order[0].why
    assert "look like it" in order[1].why
    assert len(looks(made, 3)) == 3


def test_copies_are_looked_at_once(record):
    n = len(record.predicted)
    ids = list(record.measured.ids)
    ids[1] = ids[0]
    copied = replace(record, measured=replace(record.measured, ids=tuple(ids)))
    assert len(looks(copied, 100)) == n - 1
    assert f"{n - 1} of {n} photographs; 1 copy is not shown again." in sheet_html(copied, no_photos)


def test_support_is_what_the_nearest_others_say():
    import torch

    features = torch.tensor([[1.0, 0.0], [0.99, 0.1], [-1.0, 0.0], [-0.99, 0.1]])
    p = torch.tensor([[0.8, 0.2], [0.3, 0.7], [0.1, 0.9], [0.4, 0.6]])
    torch.testing.assert_close(neighbour_support(torch.nn.functional.normalize(features, dim=1), p), torch.tensor([0.3, 0.2, 0.6, 0.9]))
    assert neighbour_support(features[:1], p[:1]).tolist() == [1.0]


def test_names_are_text_wherever_they_stand(record):
    html = sheet_html(record, no_photos)
    assert html.count("<script") == 2
    assert NAMES[0] not in html
    sheet = data_of(html)
    assert sheet["classes"] == list(NAMES)
    assert {item["path"] for item in sheet["items"]} == {row.path for row in record.predicted}
    assert f"{len(record.predicted)} of {len(record.predicted)} photographs." in html
    assert "broken.jpg" not in html
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    assert "default-src &#39;none&#39;" in policy
    assert "connect-src" not in policy


def test_the_sheet_is_written_beside_the_run_and_never_over_something_else(run, tmp_path):
    assert api.review(run, console=QUIET) == run / "review.html"
    assert (run / "review.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    api.review(run, console=QUIET)
    other = tmp_path / "other.html"
    other.write_text("a diary")
    with pytest.raises(UserError, match="not written by finelens"):
        api.review(run, other, console=QUIET)
    with pytest.raises(UserError, match="not the folder of a finelens run"):
        api.review(tmp_path, console=QUIET)


def test_pictures_show_the_whole_photograph():
    import torch

    assert whole(torch.zeros(3, 100, 400, dtype=torch.uint8), 200).shape == (3, 50, 200)
    assert whole(torch.zeros(3, 10, 20, dtype=torch.uint8), 200).shape == (3, 10, 20)


def test_answers_come_back_and_can_be_adapted_with(run, record, tmp_path):
    photos = run.parent / "photos"
    paths = [row.path for row in record.predicted]
    given = {paths[0]: NAMES[2], paths[1]: "", paths[2]: NAMES[0]}
    file = tmp_path / "hints.csv"
    file.write_text(hints_csv(given), encoding="utf-8")
    assert "'=cmd|calc" in file.read_text(encoding="utf-8")
    assert read_answers(file) == given
    loaded = load(discover(photos), DecodeLimits(), QUIET)
    hints = read_hints(file, photos, loaded.records, NAMES)
    assert sorted(hints.label.tolist()) == [-1, 0, 2]


def test_the_review_of_a_second_round_keeps_the_answers_of_the_first(record, tmp_path):
    paths = [row.path for row in record.predicted]
    file = tmp_path / "first.csv"
    file.write_text(hints_csv({paths[0]: NAMES[2], paths[1]: "", "gone.png": NAMES[0]}), encoding="utf-8")
    second = replace(record, config=replace(record.config, hints_file=str(file)))
    assert earlier_answers(record) == {}
    assert earlier_answers(second) == {paths[0]: NAMES[2], paths[1]: ""}
    file.unlink()
    assert earlier_answers(second) == {}


def test_the_command_of_the_second_round_is_quoted(record):
    strange = replace(record, config=replace(record.config, photos="/data/my photos; rm -rf"))
    assert "'/data/my photos; rm -rf'" in adapt_command(strange)


@contextmanager
def serving(run, hints):
    with api.review_server(run, hints, console=QUIET) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, method, path, body=None, host=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    headers = {"Host": host} if host else {}
    connection.request(method, path, body=None if body is None else json.dumps(body), headers=headers)
    reply = connection.getresponse()
    return reply.status, reply.read().decode()


def test_the_server_takes_answers_from_its_own_page_only(run, tmp_path):
    hints = tmp_path / "hints.csv"
    with serving(run, hints) as server:
        assert server.server_address[0] == "127.0.0.1"
        status, html = ask(server, "GET", server.place)
        assert status == 200
        assert "connect-src &#39;self&#39;" in html
        assert NAMES[0] not in html
        assert html.count("<script") == 2
        token = data_of(html)["token"]
        assert ask(server, "GET", server.place, host="evil.example")[0] == 404
        # Another user of the machine reaches the port, and does not know the token.
        assert server.address == f"http://127.0.0.1:{server.server_address[1]}/?token={token}"
        assert len(token) >= 20
        for guess in ("/", "/?token=", f"/?token={token[:-1]}", f"/?token={token}x", "/?token=%C3%A9", f"/{token}", f"/?TOKEN={token}"):
            assert ask(server, "GET", guess) == (404, "not here"), guess
        assert ask(server, "GET", "/../config.json")[0] == 404
        mine = {"token": token, "tab": "t", "who": ""}
        status, body = ask(server, "POST", "/look", mine)
        look = json.loads(body)["look"]
        answer = {**mine, "question": look["id"], "label": NAMES[0]}
        assert ask(server, "POST", "/answer", answer, host="evil.example")[0] == 404
        for wrong in (
            {"token": "guess"},
            {"token": "\u00e9"},
            {"question": 10**9},
            {"label": "\u0007"},
            {"label": NAMES[2] + "s"},
            {"label": "?"},
            {"odd": ["/etc/passwd"]},
            {"label": 3},
            {"tab": []},
        ):
            assert ask(server, "POST", "/answer", {**answer, **wrong})[0] == 400, wrong
        assert ask(server, "POST", "/answer", [])[0] == 400
        assert ask(server, "POST", "/elsewhere", answer)[0] == 404
        assert not hints.exists()
        status, body = ask(server, "POST", "/answer", answer)
        assert status == 200
        assert json.loads(body)["state"]["answered"] == 1
        assert read_answers(hints) == {look["photos"][0]["path"]: NAMES[0]}


def test_a_port_in_use_and_a_file_of_another_kind_are_refused(run, tmp_path):
    with api.review_server(run, tmp_path / "hints.csv", console=QUIET) as server:
        with pytest.raises(UserError, match="--port"):
            api.review_server(run, tmp_path / "others.csv", port=server.server_address[1], console=QUIET)
        # Two programs would take each other's answers out of the file.
        with pytest.raises(UserError, match="using"):
            api.review_server(run, tmp_path / "hints.csv", console=QUIET)
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="not a hints file"):
        api.review_server(run, tmp_path / "notes.csv", console=QUIET)


@pytest.mark.skipif(not available(), reason="no Chromium with its driver on this machine")
def test_the_file_offers_the_same_answers(run, record):
    api.review(run, console=QUIET)
    order = [look.row for look in looks(record, 100)]
    with browser() as page:
        page.open((run / "review.html").as_uri())
        page.press("an2u")
        page.press("b")
        page.press("/")
        page.wait("return document.activeElement.id === 'name'")
        page.press(NAMES[3][:2])
        page.wait("return !document.getElementById('options').hidden")
        page.press(ENTER)
        page.wait("return document.getElementById('where').textContent.startsWith('photograph 3 ')")
        assert page.run("return csv()") == hints_csv({order[0].path: order[0].label, order[1].path: NAMES[3]})
        page.press("?")
        assert page.run("return document.getElementById('help').open")
        # A busy browser hands what was stored to the next page a moment later.
        for _ in range(50):
            page.open((run / "review.html").as_uri())
            if page.text("where").startswith("photograph 3 "):
                break
            time.sleep(0.1)
        assert page.text("where").startswith("photograph 3 ")


def test_answers_of_before_and_rows_of_others_stay(run, record, tmp_path):
    hints = tmp_path / "hints.csv"
    paths = [row.path for row in record.predicted]
    hints.write_text(hints_csv({f"./{paths[2]}": NAMES[1], "elsewhere/x.jpg": "another class"}), encoding="utf-8")
    with serving(run, hints) as server:
        token = data_of(ask(server, "GET", server.place)[1])["token"]
        mine = {"token": token, "tab": "t", "who": "Ada"}
        found = json.loads(ask(server, "POST", "/look", mine)[1])
        assert found["state"]["answered"] == 1
        path = found["look"]["photos"][0]["path"]
        assert path != paths[2]
        ask(server, "POST", "/answer", {**mine, "question": found["look"]["id"], "label": ""})
    assert read_answers(hints) == {"elsewhere/x.jpg": "another class", paths[2]: NAMES[1], path: ""}
    assert hints.read_text(encoding="utf-8").splitlines()[-1].endswith(",,photo,Ada,")


def test_kept_answers_belong_to_the_photographs_and_classes(record):
    other = replace(record, events=tuple({**event, "digest": "x"} if event["event"] == "classes" else event for event in record.events))
    assert data_of(sheet_html(record, no_photos))["id"] != data_of(sheet_html(other, no_photos))["id"]


def test_the_second_round_of_a_method_that_does_not_adapt_is_auto(record):
    words = adapt_command(replace(record, config=replace(record.config, method="cupl", method_options=None))).split()
    assert words[words.index("--method") + 1] == "auto"


def test_a_photograph_that_is_answered_in_two_ways_is_refused_and_an_open_line_takes_no_answer_away(tmp_path):
    file = tmp_path / "ask.csv"
    file.write_text("path,label,why,expected\na.jpg, owl ,x,owl\nb.jpg,  ,x,owl\na.jpg,,x,owl\na.jpg,owl,x,owl\n")
    assert read_answers(file) == {"a.jpg": "owl"}
    file.write_text("path,label,why,expected\na.jpg,owl,x,owl\na.jpg,lark,x,owl\n")
    with pytest.raises(UserError, match=r"ask\.csv: 'a\.jpg' is 'owl' in one line and 'lark' in another; keep one of the two"):
        read_answers(file)


def test_pictures_of_another_reader_are_not_taken(monkeypatch):
    """Another version may make other pixels of the same bytes, and so may the reader that another ending asks first."""
    kept = []
    for version, name in (("1", "a.tif"), ("1", "a.tif"), ("2", "a.tif"), ("2", "a.nef")):
        monkeypatch.setattr("finelens.images.known.installed_versions", lambda names, version=version: (version,))
        with KeptPictures(448) as pictures:
            made = []
            photo = Photo(lambda made=made: made.append(1) or torch.zeros(3, 30, 30, dtype=torch.uint8), "pictures-of-readers")
            Thumbnails(lambda name, photo=photo: photo, kept=pictures).uri(name)
        kept.append(not made)
    assert kept == [False, True, False, False]
