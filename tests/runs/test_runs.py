from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from finelens.core.schemas import SCHEMA_VERSION
from finelens.errors import UserError
from finelens.runs import folder as runs
from finelens.runs.config import RunConfig, to_json
from finelens.runs.folder import LOCK_FILE, RunFolder
from finelens.storage.files import write_text


@pytest.fixture
def config(tmp_path):
    (tmp_path / "photos").mkdir()
    return RunConfig("adapt", str(tmp_path / "photos"))


def finished(path, config):
    """A run with one of everything."""
    with RunFolder.create(path, config) as run:
        run.log("start")
        run.model_dir.mkdir()
        (run.model_dir / "model.json").write_text("{}")
        run.checkpoint_dir.mkdir()
        run.predictions_path.write_text("x")
        run.report_path.write_text("x")


def tree(path):
    return sorted(str(p.relative_to(path)) for p in path.rglob("*"))


def test_a_new_folder_with_parents(tmp_path, config):
    with RunFolder.create(tmp_path / "a" / "b", config) as run:
        assert json.loads(run.config_path.read_text()) == to_json(config)
        assert (run.path / LOCK_FILE).exists()
        paths = [run.config_path, run.events_path, run.predictions_path, run.model_dir, run.checkpoint_dir]
        assert [p.name for p in paths] == ["config.json", "events.jsonl", "predictions.csv", "model", "checkpoint"]
    assert tree(tmp_path / "a") == ["b", "b/config.json"]


def test_what_a_killed_start_leaves_counts_as_empty(tmp_path, config):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK_FILE).write_text("")
    (tmp_path / "out" / ".finelens-0.tmp").write_text("half")
    # Of a ``finelens write --to folders`` into the run's folder.
    (tmp_path / "out" / ".finelens-2.tmp" / "red fox").mkdir(parents=True)
    with RunFolder.create(tmp_path / "out", config):
        assert tree(tmp_path / "out") == [LOCK_FILE, "config.json"]


def test_an_existing_run_needs_overwrite(tmp_path, config):
    finished(tmp_path / "out", config)
    before = tree(tmp_path / "out")
    with pytest.raises(UserError, match=r"already holds a finelens run.*--overwrite"):
        RunFolder.create(tmp_path / "out", config)
    assert tree(tmp_path / "out") == before
    (tmp_path / "out" / "predictions.csv").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"finelens resume .* goes on with it, give another folder, or --overwrite"):
        RunFolder.create(tmp_path / "out", config)
    with RunFolder.create(tmp_path / "out", replace(config, seed=5), overwrite=True) as run:
        assert tree(run.path) == [LOCK_FILE, "config.json"]
        assert json.loads(run.config_path.read_text())["seed"] == 5


@pytest.mark.parametrize("content", [None, "{}", "{", '{"format": "other"}', "[1]"])
def test_a_foreign_folder_is_never_touched(tmp_path, config, content):
    out = tmp_path / "out"
    (out / "model").mkdir(parents=True)
    (out / "model" / "thesis.txt").write_text("years of work")
    if content is not None:
        (out / "config.json").write_text(content)
    before = tree(out)
    for overwrite in (False, True):
        with pytest.raises(UserError, match="not empty and was not written by finelens"):
            RunFolder.create(out, config, overwrite=overwrite)
    assert tree(out) == before


def test_overwrite_keeps_foreign_files_and_does_not_follow_links(tmp_path, config):
    out, victim = tmp_path / "out", tmp_path / "victim"
    finished(out, config)
    victim.mkdir()
    (victim / "a").write_text("precious")
    (out / "notes.txt").write_text("mine")
    shutil.rmtree(out / "model")
    (out / "model").symlink_to(victim)
    with RunFolder.create(out, config, overwrite=True):
        assert tree(out) == [LOCK_FILE, "config.json", "notes.txt"]
    assert (victim / "a").read_text() == "precious"


def test_overwrite_spares_a_run_in_progress(tmp_path, config):
    with RunFolder.create(tmp_path / "out", config) as run:
        run.log("start")
        with pytest.raises(UserError, match="another run is using"):
            RunFolder.create(tmp_path / "out", config, overwrite=True)
        assert [e["event"] for e in run.events()] == ["start"]
        run.log("end")


def test_a_run_that_came_and_went_while_we_waited_is_seen(tmp_path, config, monkeypatch):
    out = tmp_path / "out"
    acquire = runs.Lock.acquire

    def late(lock):
        monkeypatch.setattr(runs.Lock, "acquire", acquire)
        finished(out, config)
        acquire(lock)

    monkeypatch.setattr(runs.Lock, "acquire", late)
    with pytest.raises(UserError, match="already holds"):
        RunFolder.create(out, config)
    assert not (out / LOCK_FILE).exists()
    assert (out / "predictions.csv").exists()


def test_a_file_or_dangling_link_in_the_way(tmp_path, config):
    (tmp_path / "out").write_text("x")
    with pytest.raises(UserError, match="is a file, and a run needs a folder"):
        RunFolder.create(tmp_path / "out", config, overwrite=True)
    with pytest.raises(UserError, match="cannot write"):
        RunFolder.create(tmp_path / "out" / "deeper", config)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="link to nothing"):
        RunFolder.create(tmp_path / "link", config)


@pytest.mark.parametrize("where", ["photos", "photos/out", "photos/../photos/x"])
def test_the_output_may_not_lie_among_the_photographs(tmp_path, config, where):
    with pytest.raises(UserError, match="lies inside the photographs"):
        RunFolder.create(tmp_path / where, config)
    assert tree(tmp_path) == ["photos"]


def test_open_reads_the_configuration_and_locks(tmp_path, config):
    finished(tmp_path / "out", config)
    (tmp_path / "out" / "checkpoint" / ".finelens-1.tmp").write_text("half")
    (tmp_path / "out" / ".finelens-2.tmp" / "red fox").mkdir(parents=True)
    with RunFolder.open(tmp_path / "out") as run:
        assert run.config == config
        assert not (tmp_path / "out" / ".finelens-2.tmp").exists()
        assert not list(run.checkpoint_dir.iterdir())
        with pytest.raises(UserError, match="another run"):
            RunFolder.open(tmp_path / "out")
        reader = RunFolder.open(tmp_path / "out", lock=False)
        assert reader.config == config
        with pytest.raises(RuntimeError, match="opened for reading"):
            reader.log("start")
        reader.close()
        assert (run.path / LOCK_FILE).exists()


def test_open_refuses_what_is_no_run(tmp_path, config):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="is not the folder of a finelens run"):
            RunFolder.open(path)
    finished(tmp_path / "out", config)
    (tmp_path / "out" / "config.json").write_text(json.dumps({**to_json(config), "schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(UserError, match=r"out/config\.json: written by a newer finelens"):
        RunFolder.open(tmp_path / "out")
    assert not (tmp_path / "out" / LOCK_FILE).exists()


def test_events_are_one_line_each_at_once(tmp_path, config):
    with RunFolder.create(tmp_path / "out", config) as run:
        run.log("images", names=["a\nb", "caf\udce9", "日本"], loss=float("nan"))
        offset = run.log("epoch", epoch=1)
        lines = run.events_path.read_bytes().split(b"\n")
        assert len(lines) == 3
        assert lines[2] == b""
        assert offset == run.events_path.stat().st_size
        first, second = run.events()
    assert {k: v for k, v in first.items() if k != "time"} == {"event": "images", "names": ["a\nb", "caf\udce9", "日本"], "loss": "nan"}
    assert (second["event"], second["epoch"]) == ("epoch", 1)
    with pytest.raises(RuntimeError):
        run.log("end")


def test_unknown_events_are_the_programmers_error(tmp_path, config):
    with RunFolder.create(tmp_path / "out", config) as run, pytest.raises(ValueError, match="unknown event 'finished'"):
        run.log("finished")


def work(run, start, stop, store):
    """Five steps an epoch; the checkpoint keeps the offset of its own event."""
    for epoch in range(start, stop):
        for step in range(5):
            run.log("warning", epoch=epoch, step=step, loss=1 / (1 + step + 5 * epoch))
        offset = run.log("epoch", epoch=epoch)
        store.update(epoch=epoch + 1, offset=offset)
    return store


def without_time(run):
    return [{k: v for k, v in e.items() if k != "time"} for e in run.events() if e["event"] != "resume"]


@pytest.mark.parametrize("torn", [False, True])
def test_events_of_a_resumed_run_equal_those_of_an_uninterrupted_one(tmp_path, config, torn):
    with RunFolder.create(tmp_path / "whole", config) as whole:
        work(whole, 0, 4, {})
    with RunFolder.create(tmp_path / "cut", config) as run:
        store = work(run, 0, 2, {})
        run.log("warning", epoch=2, step=0, loss=99.0)  # work that the kill throws away
        run.log("warning", message="slow disk")
        if torn:
            run.events_path.write_bytes(run.events_path.read_bytes()[:-7])
    with RunFolder.open(tmp_path / "cut") as run:
        run.resume(store["offset"], epoch=store["epoch"])
        work(run, store["epoch"], 4, store)
        assert without_time(run) == without_time(whole)
        assert [e["epoch"] for e in run.events() if e["event"] == "resume"] == [2]


def test_resume_without_a_checkpoint_starts_the_events_again(tmp_path, config):
    with RunFolder.create(tmp_path / "out", config) as run:
        run.log("start")
        run.resume(0)
        assert [e["event"] for e in run.events()] == ["resume"]


def test_events_cut_by_a_crash_do_not_prevent_resume(tmp_path, config):
    with RunFolder.create(tmp_path / "out", config) as run:
        offset = run.log("epoch")
        run.events_path.write_bytes(b"")
        run.resume(offset)
        warning, resume = run.events()
    assert f"{offset} bytes shorter" in warning["message"]
    assert resume["event"] == "resume"


def test_a_full_disk_leaves_no_half_line(tmp_path, config, monkeypatch):
    real = os.write
    with RunFolder.create(tmp_path / "out", config) as run:
        run.log("start")
        calls = []

        def nearly_full(descriptor, data):
            calls.append(len(data))
            if len(calls) == 1:
                return real(descriptor, bytes(data)[:5])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(runs.os, "write", nearly_full)
        with pytest.raises(UserError, match=r"cannot write .*events\.jsonl: No space left on device; free some space"):
            run.log("end")
        monkeypatch.setattr(runs.os, "write", real)
        assert len(calls) == 2
        run.log("end")
        assert [e["event"] for e in run.events()] == ["start", "end"]


def test_a_reader_ignores_a_line_being_written_and_names_a_damaged_one(tmp_path, config):
    with RunFolder.create(tmp_path / "out", config) as run:
        run.log("start")
        content = run.events_path.read_bytes()
        run.events_path.write_bytes(content + b'{"time": "2')
        assert len(list(run.events())) == 1
        run.events_path.write_bytes(content + b"garbage\n" + content)
        with pytest.raises(UserError, match=r"events\.jsonl, line 2, is damaged"):
            list(run.events())


def test_a_killed_run_can_be_opened_again(tmp_path, config):
    finished(tmp_path / "out", config)
    child = os.fork()
    if child == 0:
        RunFolder.open(tmp_path / "out").log("start")
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert (tmp_path / "out" / LOCK_FILE).exists()
    with RunFolder.open(tmp_path / "out") as run:
        assert [e["event"] for e in run.events()] == ["start", "start"]


@pytest.fixture
def unprivileged():
    """Root may write everywhere, so as root another user is played for the length of a test."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    (folder / "ro").mkdir(mode=0o555)
    (folder / "hidden").mkdir(mode=0o700)
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    else:
        (folder / "hidden").chmod(0)
    try:
        yield folder
    finally:
        if was_root:
            os.seteuid(0)
        (folder / "hidden").chmod(0o700)
        (folder / "ro").chmod(0o755)
        shutil.rmtree(folder)


def test_a_place_that_may_not_be_written(unprivileged):
    config = RunConfig("adapt", "photos")
    for out in ("ro", "ro/out", "hidden/out", "hidden/out/deeper"):
        with pytest.raises(UserError, match=rf"cannot write .*{out}.*: Permission denied; make the folder writable or choose another one"):
            RunFolder.create(unprivileged / out, config)
    with pytest.raises(UserError, match=r"cannot read .*hidden: Permission denied"):
        RunFolder.create(unprivileged / "hidden", config)
    with pytest.raises(UserError, match="is not the folder of a finelens run"):
        RunFolder.open(unprivileged / "hidden")
    with pytest.raises(UserError, match="Permission denied"):
        write_text(unprivileged / "ro" / "a", "")


def test_names_that_no_file_system_takes(tmp_path, config):
    with pytest.raises(UserError, match="File name too long; choose a shorter name"):
        RunFolder.create(tmp_path / ("x" * 300), config)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match="link to nothing"):
        RunFolder.create(tmp_path / "loop", config)


def test_a_place_where_no_folder_can_be_made(config):
    with pytest.raises(UserError, match="cannot write /proc/finelens-run"):
        RunFolder.create("/proc/finelens-run", config)


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="this system has no such flag")
def test_events_are_not_written_through_a_link(tmp_path, config):
    secret = tmp_path / "secret"
    secret.write_text("token without a line end")
    with RunFolder.create(tmp_path / "run", config) as run:
        run.events_path.symlink_to(secret)
        for work in (lambda: run.resume(0), lambda: run.log("start")):
            with pytest.raises(UserError, match=r"events\.jsonl"):
                work()
    assert secret.read_text() == "token without a line end"
