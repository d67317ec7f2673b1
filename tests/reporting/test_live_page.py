"""The page of the live review and the program behind it: requests, keyboard, and a program that is killed."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from urllib.parse import urlsplit

import numpy as np
import pytest

from finelens import api
from tests.reporting.browser import ENTER, available, browser
from tests.reporting.woods import NAMES, SIZES, TRUTH, truth
from tests.solvers.data import cloud
from tests.toy import QUIET


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    x, w, _ = cloud(SIZES)
    np.save(folder / "x.npy", x)
    np.save(folder / "w.npy", w)
    (folder / "rows.txt").write_text("".join(f"{i:03}.png\n" for i in range(len(TRUTH))))
    (folder / "names.txt").write_text("\n".join(NAMES) + "\n")
    given = {"prototypes": folder / "w.npy", "row_names": folder / "rows.txt", "method": "stata", "console": QUIET}
    api.adapt(folder / "x.npy", folder / "names.txt", folder / "run", **given)
    return folder / "run"


@contextmanager
def program(run, hints):
    """``finelens review --serve`` as a process of its own, and the address that it prints."""
    command = [sys.executable, "-m", "finelens", "review", str(run), "--ask", "20", "--serve", "--hints", str(hints)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    try:
        yield process, re.search(r"http://\S+", process.stdout.readline())[0]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def served(run, hints):
    """The same in this process, which starts faster."""
    with api.review_server(run, hints, limit=20, order=api.WORTH, console=QUIET) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.address
        server.shutdown()
        thread.join()


def test_requests_that_no_page_makes_are_refused_and_the_server_goes_on(run, tmp_path, capsys):
    with served(run, tmp_path / "hints.csv") as address:
        place = urlsplit(address)
        token = place.query.removeprefix("token=")

        def asked(body, length=None):
            page = http.client.HTTPConnection(place.hostname, place.port, timeout=10)
            page.putrequest("POST", "/answer")
            page.putheader("Content-Length", length or str(len(body)))
            page.endheaders(body)
            status = page.getresponse().status
            page.close()
            return status

        given = f'{{"token": "{token}", "tab": "t", "who": "", "label": "birch", "question": %s}}'
        assert [asked((given % number).encode()) for number in ("Infinity", "NaN", "1e999", '"x"', "-1", "[]", "9" * 5000)] == [400] * 7
        assert asked(b"", "9" * 5000) == 404
        assert asked((given % 1).replace(token, "\\ud800").encode()) == 400
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "hints.csv").exists()


SETTLED = "return !sending && look && document.getElementById('learning').dataset.settled === 'true'"


def answer_by_keyboard(page, count):
    """Looks answered with number keys, typed names, letters that take out, "none of these", undo and skip, by what the page shows."""
    for _ in range(count):
        page.wait(SETTLED)
        number, paths, choices = page.run("return [state.looks, look.photos.map((photo) => photo.path), look.choices.map(([name]) => name)]")
        odd = "".join("abcdefghijkl"[i] for i, path in enumerate(paths) if truth(path) != truth(paths[0]))
        name = truth(paths[0])
        typed = "/" + {NAMES[0]: "oak", NAMES[1]: "irc", NAMES[2]: "H tr"}[name] + ENTER
        named = typed if number % 2 else str(choices.index(name) + 1)
        page.press({4: "n", 9: "s"}.get(number, odd + named))
        page.wait(f"return !sending && state.looks === {number + 1}")
        if number == 6:
            page.press("u")
            page.wait(f"return !sending && state.looks === {number}")
            assert page.run("return odd.size") == len(odd)
            page.press(named)
            page.wait(f"return !sending && state.looks === {number + 1}")


@pytest.mark.skipif(not available(), reason="no Chromium with its driver on this machine")
def test_the_page_says_that_others_have_the_last_looks(run, tmp_path):
    """Its words need no server: what it shows follows from the state."""
    with served(run, tmp_path / "hints.csv") as address, browser() as page:
        page.open(address)
        page.wait("return !document.getElementById('sheet').hidden")
        said = "tell({...state, more: 10, looks: 1, goal: 2, open: %d}); return document.getElementById('finished').textContent"
        interval = "tell({...state, unnamed: 0.6, progress: {tested: 9, wanted: 0, gain: null, stop: false, estimate: 0.8, low: 0.6, high: 0.9}})"
        assert page.run(interval + "; return at('interval').textContent").endswith("about 60 % are probably of others")
        assert page.run("return at('summary').textContent").endswith("are probably of others.")
        assert page.run(said % 1) == "The last looks are open in other pages; a page that was closed gives its look back within a minute"
        assert page.run(said % 0) == "There is nothing left to ask"


@pytest.mark.skipif(not available(), reason="no Chromium with its driver on this machine")
def test_enter_accepts_what_is_suggested_for_the_photographs_that_are_left(run, tmp_path):
    """Keys keep their classes; a suggestion that has none comes last. The photograph that a group is around is marked."""
    made = "look = {...look, middle: 0, choices: [['oak', [0.9, 0.9, 0.2, 0.1]], ['birch', [0, 0, 0.9, 0.1]]], further: [['larch', [0, 0, 0, 0.8]]]}"
    marked = "return [...document.querySelectorAll('#choices .suggested bdi')].map((name) => name.textContent)"
    keys = "return [...document.querySelectorAll('#choices li')].map((one) => one.innerText.replace('Enter', '').replace(/\\s/g, ''))"
    with served(run, tmp_path / "hints.csv") as address, browser() as page:
        page.open(address)
        page.wait("return !sending && look && look.photos.length > 4")
        assert page.run("return at('group').children[look.middle].className + document.querySelectorAll('.central').length") == "member central1"
        page.run(f"look.photos = look.photos.slice(0, 4); {made}; window.kept = look; show(look)")
        assert page.run(marked) == ["oak"]
        page.press("ab")
        assert page.run(marked) == ["birch"]
        page.press("c")
        assert page.run(marked) == ["larch"]
        assert page.run(keys) == ["1oak", "2birch", "larch"]
        page.press("a")
        assert page.run(keys) == ["1oak", "2birch"]
        page.press("a")
        page.run("window.sent = []; window.fetch = (verb, {body}) => { sent.push([verb, JSON.parse(body).label]); return Promise.reject('gone'); }")
        page.press(ENTER)
        assert ["/answer", "larch"] in page.run("return sent")


@pytest.mark.skipif(not available(), reason="no Chromium with its driver on this machine")
def test_more_looks_are_offered_where_something_is_left(run, tmp_path):
    told = "tell({...state, looks: 6, goal: %d, certain: %s, more: %d, remaining: %d});"
    told += "return [at('where').textContent, at('more').hidden, at('more').textContent]"
    with served(run, tmp_path / "hints.csv") as address, browser() as page:
        page.open(address)
        page.wait(SETTLED)
        assert page.run(told % (20, "false", 10, 12)) == ["look 7 of up to 20", False, "M up to 10 more looks"]
        assert page.run(told % (20, "true", 1, 1))[::2] == ["look 7 of 20", "M one more look"]
        assert page.run(told % (6, "true", 0, 0))[:2] == ["6 looks", True]
        assert page.run("return [wanted(1), (state.remaining = 1, wanted(1))]") == ["too few looks tell of it", "1 more answer tells"]
        # No more than there are can gain anything.
        advice = "return advice({gain: 0.05, stop: false})"
        assert page.run(advice) == ""
        page.run(told % (20, "true", 10, 14))
        assert page.run(advice).startswith("Go on")
        page.run("window.sent = []; window.fetch = (verb) => { sent.push(verb); return Promise.reject(); }")
        page.run("look = null; at('done').hidden = false; state.more = 0")
        page.press("m")
        assert "/more" not in page.run("return sent")


@pytest.mark.skipif(not available(), reason="no Chromium with its driver on this machine")
def test_a_name_that_was_not_taken_stays_typed(run, tmp_path):
    with served(run, tmp_path / "hints.csv") as address, browser() as page:
        page.open(address)
        page.wait(SETTLED)
        page.run("window.kept = fetch; window.fetch = () => Promise.reject(new Error('gone'))")
        page.press("/oak" + ENTER)
        page.wait("return !sending && !at('message').hidden")
        assert page.run("return at('name').value") == "oak"


@pytest.mark.skipif(not available(), reason="no Chromium with its driver on this machine")
def test_twenty_answers_by_keyboard_survive_a_kill(run, tmp_path):
    with browser() as page:
        with served(run, tmp_path / "whole.csv") as address:
            page.open(address)
            page.wait(SETTLED)
            learning = "return [document.getElementById('learning').textContent, (state.error = 'no memory', learning())]"
            assert page.run(learning) == ["waits for the first answer", "could not be taught: no memory"]
            page.open(address)
            answer_by_keyboard(page, 19)
            page.wait(SETTLED)
            assert page.run("return document.getElementById('learning').textContent") == "has learnt all answers"
            page.press("?")
            assert page.run("return document.getElementById('help').open")
            page.press("\ue00c")
            page.press("t")
            assert page.text("message") == "Press / to type a name."
            page.press("z")
            page.wait("return document.getElementById('enlarged').open")
            shown = "return [...document.querySelectorAll('#large bdi')].map((name) => name.textContent)"
            assert page.run(shown) == page.run("return look.photos.map((photo) => photo.path)")
            page.press("\ue00c")
            page.press("1")
            page.wait("return !document.getElementById('done').hidden")
            assert page.run("return document.querySelectorAll('b').length") == 0
        with program(run, tmp_path / "parts.csv") as (process, address):
            page.open(address)
            answer_by_keyboard(page, 11)
            page.wait(SETTLED)
            shown = page.run("return look.id")
            page.open(address)
            page.wait(SETTLED)
            assert page.run("return look.id") == shown
            process.send_signal(signal.SIGKILL)
            process.wait()
            page.press("1")
            page.wait("return document.getElementById('message').textContent.startsWith('Not saved')")
        with program(run, tmp_path / "parts.csv") as (_, address):
            page.open(address)
            page.wait(SETTLED)
            assert page.run("return state.looks") == 11
            answer_by_keyboard(page, 8)
            page.wait(SETTLED)
            page.press("1")
            page.wait("return !document.getElementById('done').hidden")
    whole = (tmp_path / "whole.csv").read_text()
    assert (tmp_path / "parts.csv").read_text() == whole
    assert len(whole.splitlines()) > 20
    assert "group" in whole
    acts = [json.loads(line) for line in (tmp_path / "parts.jsonl").read_text().splitlines()]
    assert [act["event"] for act in acts].count("act") == 21
