from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from finelens.errors import UserError
from finelens.storage.lock import Lock, Owner, process_exists, start_time


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def write(path, owner):
    path.write_text(json.dumps(asdict(owner)))


def test_a_second_claim_is_refused_and_free_after_release(tmp_path):
    first, second = Lock(tmp_path / "l"), Lock(tmp_path / "l")
    first.acquire()
    with pytest.raises(UserError, match=rf"another run is using {tmp_path} \(process {os.getpid()}\); wait .* delete .*/l if"):
        second.acquire()
    second.release()  # not the holder: changes nothing
    assert (tmp_path / "l").exists()
    first.release()
    assert not (tmp_path / "l").exists()
    second.acquire()
    assert second.held


@pytest.mark.parametrize(
    "holder",
    [
        lambda: replace(Owner.current(), pid=dead_pid()),
        lambda: replace(Owner.current(), start="another boot:1"),  # the number was given to another process since
        lambda: replace(Owner.current(), pid=2**40),
        lambda: replace(Owner.current(), pid=-1),
    ],
)
def test_a_stale_lock_is_taken_over(tmp_path, holder):
    write(tmp_path / "l", holder())
    lock = Lock(tmp_path / "l")
    lock.acquire()
    assert json.loads((tmp_path / "l").read_text()) == asdict(Owner.current())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', '{"pid": "x", "start": "", "host": ""}', "null", "\ufffd"])
def test_a_damaged_lock_is_taken_over(tmp_path, content):
    (tmp_path / "l").write_text(content)
    lock = Lock(tmp_path / "l")
    lock.acquire()
    assert lock.held


def test_a_zombie_does_not_hold(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = replace(Owner.current(), pid=child.pid, start=start_time(child.pid))
    assert owner.is_alive()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process_exists(child.pid)
    assert not owner.is_alive()
    child.wait()


def test_another_machine_is_believed(tmp_path):
    write(tmp_path / "l", Owner(dead_pid(), "", "elsewhere"))
    with pytest.raises(UserError, match=r"process \d+ on elsewhere"):
        Lock(tmp_path / "l").acquire()


def test_a_forked_child_does_not_release(tmp_path):
    lock = Lock(tmp_path / "l")
    lock.acquire()
    child = os.fork()
    if child == 0:
        lock.release()
        os._exit(lock.held)
    assert os.waitpid(child, 0)[1] == 0
    assert (tmp_path / "l").exists()
    assert lock.held


def test_release_leaves_a_lock_that_another_run_took(tmp_path):
    lock = Lock(tmp_path / "l")
    lock.acquire()
    other = Owner(os.getpid(), "other", "elsewhere")
    write(tmp_path / "l", other)
    lock.release()
    assert json.loads((tmp_path / "l").read_text()) == asdict(other)


def test_of_many_claims_on_a_stale_lock_one_wins(tmp_path):
    write(tmp_path / "l", replace(Owner.current(), pid=dead_pid()))
    code = (
        "import sys; from pathlib import Path; from finelens.storage.lock import Lock; from finelens.errors import UserError\n"
        "sys.stdin.readline()\n"
        "try: Lock(Path(sys.argv[1])).acquire(); print('won', flush=True)\nexcept UserError: print('lost', flush=True)\nsys.stdin.readline()"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "l")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    answers = [child.stdout.readline().strip() for child in children]
    for child in children:
        child.communicate("\n")
    assert sorted(answers) == ["lost"] * 5 + ["won"]
    Lock(tmp_path / "l").acquire()  # the winner has died without releasing


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "l").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="cannot write"):
        Lock(tmp_path / "l").acquire()
    assert (tmp_path / "victim").read_text() == "precious"
