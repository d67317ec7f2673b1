"""What happens to a run's folder when the disk, the clock, another process or a kill interferes."""

from __future__ import annotations

import errno
import json
import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

from finelens import api
from finelens.errors import UserError
from finelens.runs import event_log
from finelens.runs.config import to_json
from finelens.runs.folder import RunFolder
from finelens.runs.paths import LOCK_FILE
from finelens.storage import cache
from finelens.storage.cache_place import ENVIRONMENT_VARIABLE
from finelens.storage.files import write_json
from finelens.storage.tensors import load_tensors
from finelens.training.loop import Interrupted
from tests.children import Child
from tests.toy import QUIET, digest, events, quick, stop_after

RESULTS = ("model/model.safetensors", "model/zero_shot.safetensors", "predictions.csv")


@pytest.fixture
def adapt(photos, classes, tiny_vit):
    def call(out: Path | None = None, **given):
        options = given.pop("options", quick())
        return api.adapt(photos, classes, out, method="dpa", backbone=f"local:{tiny_vit}", options=options, console=QUIET, **given)

    return call


def interrupted(adapt, out: Path, steps: int = 4) -> Path:
    with pytest.raises(Interrupted):
        adapt(out, should_stop=stop_after(steps))
    return out


def assert_equal_runs(a: Path, b: Path) -> None:
    for name in RESULTS:
        assert digest(a / name) == digest(b / name), name
    assert events(a) == events(b)


@pytest.mark.parametrize("file", ["last.safetensors", "model.safetensors", "zero_shot.safetensors", "model.json", "predictions.csv"])
def test_disk_full_while_any_file_is_written(adapt, tmp_path, monkeypatch, file):
    """One line names the file and the remedy, what stood there before is whole, and with room again resume ends as if nothing had been."""
    adapt(tmp_path / "whole")
    out = tmp_path / "run"
    replace, written = os.replace, []

    def full(source, target):
        written.append(Path(target).name)
        # The second checkpoint, so that there is one to keep; the other files are written once.
        if written[-1] == file and written.count(file) == (2 if file == "last.safetensors" else 1):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(UserError, match=rf"cannot write .*{file}: No space left on device; free some space and run the same command again"):
            adapt(out)
    assert not [path for path in out.rglob(".finelens-*") if path.name != LOCK_FILE]
    assert load_tensors(out / "checkpoint" / "last.safetensors")
    assert api.resume(out, console=QUIET) is not None
    assert_equal_runs(tmp_path / "whole", out)


def test_disk_full_while_an_event_is_written(adapt, tmp_path, monkeypatch):
    adapt(tmp_path / "whole")
    out, write = tmp_path / "run", os.write

    def full(descriptor, data):
        if b'"epoch": 1' in bytes(data):
            write(descriptor, data[:5])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(UserError, match=r"cannot write .*events\.jsonl: No space left on device"):
            adapt(out)
    assert (out / "events.jsonl").read_bytes().endswith(b"\n")
    assert api.resume(out, console=QUIET) is not None
    assert_equal_runs(tmp_path / "whole", out)


def test_disk_full_while_caching_costs_nothing_but_time(tmp_path, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    assert torch.equal(cache.cached_tensors(["k"], lambda: {"a": torch.ones(2)})["a"], torch.ones(2))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_many_writers_of_one_cache_entry(tmp_path):
    code = (
        "import sys, torch\nfrom finelens.storage.cache import cached_tensors\n"
        "for i in range(20):\n"
        "    got = cached_tensors(['k', str(i)], lambda: {'a': torch.full((1000,), float(i))})\n"
        "    assert (got['a'] == i).all()\n"
    )
    processes = [Child(["-c", code], {**os.environ, ENVIRONMENT_VARIABLE: str(tmp_path)}) for _ in range(2)]
    assert [(p.communicate(timeout=120).err, p.returncode) for p in processes] == [("", 0)] * 2
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 20
    assert all(load_tensors(path) for path in files)


KILLED_IN_THE_SECOND_CHECKPOINT = """
import os, signal, sys
from pathlib import Path
from finelens import api
from finelens.core.console import Console
from tests.toy import quick

photos, classes, backbone, out = sys.argv[1:]
replace, seen = os.replace, []


def die(source, target):
    seen.append(Path(target).name)
    if seen.count("last.safetensors") == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)


os.replace = die
api.adapt(photos, classes, out, method="dpa", backbone="local:" + backbone, options=quick(), console=Console(enabled=False))
"""


def test_killed_while_the_checkpoint_is_written(adapt, photos, classes, tiny_vit, tmp_path):
    """The process dies before the rename of its second checkpoint: the first is whole, and the run goes on from it."""
    out = tmp_path / "killed"
    process = Child(["-c", KILLED_IN_THE_SECOND_CHECKPOINT, photos, classes, tiny_vit, out])
    said = process.communicate(timeout=300).err
    assert process.returncode == -signal.SIGKILL, said
    assert load_tensors(out / "checkpoint" / "last.safetensors")
    assert len(list(out.rglob("*.tmp"))) == 1
    adapt(tmp_path / "whole")
    assert api.resume(out, console=QUIET) is not None
    assert_equal_runs(tmp_path / "whole", out)
    assert not list(out.rglob("*.tmp"))


def test_configuration_changed_before_resume_is_refused_with_what_changed(adapt, tmp_path):
    out = interrupted(adapt, tmp_path / "run")
    with RunFolder.open(out) as run:
        document = to_json(run.config)
    document["training"]["lr"] = 0.5
    document["seed"] = 3
    write_json(out / "config.json", document)
    with pytest.raises(
        UserError, match=r"config\.json has changed since the run was started \(.*seed: 0 -> 3.*training\.lr: 0\.001 -> 0\.5.*\); restore it"
    ):
        api.resume(out, console=QUIET)


def test_a_clock_that_goes_backwards_changes_nothing(adapt, tmp_path, monkeypatch):
    adapt(tmp_path / "whole")
    now = [datetime(2030, 1, 1, tzinfo=UTC)]

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            now[0] -= timedelta(hours=1)
            return now[0]

    monkeypatch.setattr(event_log, "datetime", Clock)
    interrupted(adapt, tmp_path / "run")
    assert api.resume(tmp_path / "run", console=QUIET) is not None
    assert_equal_runs(tmp_path / "whole", tmp_path / "run")
    times = [json.loads(line)["time"] for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert times == sorted(times, reverse=True)


def test_a_second_run_on_the_same_folder_is_refused_until_the_first_ends(adapt, tmp_path):
    out = interrupted(adapt, tmp_path / "run")
    with RunFolder.open(out):
        for again in (lambda: api.resume(out, console=QUIET), lambda: adapt(out, overwrite=True)):
            with pytest.raises(UserError, match=r"another run is using .* \(process \d+\); wait for it or choose another folder"):
                again()
    assert api.resume(out, console=QUIET) is not None


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser writes everywhere")
def test_read_only_output(adapt, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match="Permission denied; make the folder writable or choose another one"):
        adapt(tmp_path / "locked" / "run")


def test_what_a_failed_step_left_goes_with_overwrite(adapt, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(UserError, match=r"The batch and the state before it are in .*failure"):
        adapt(out, options=quick(lr=1e30))
    assert {path.name for path in (out / "failure").iterdir()} == {"failure.json", "state.safetensors"}
    adapt(out, overwrite=True)
    assert not (out / "failure").exists()
