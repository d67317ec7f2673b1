"""Ctrl-C and kill -9 in the middle of a run, and what ``finelens resume`` makes of it. The interrupted runs are real processes."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image

from finelens.cli import main
from finelens.commands.stops import graceful_stop
from tests.children import Child
from tests.toy import digest, events, picture

EPOCHS = 3
# Of three steps an epoch.
STEP = 4
LONG = ("--method", "microclip", "--set", f"training.epochs={EPOCHS}", "--set", "training.batch_size=8", "--set", "training.lr=0.001")
RESULTS = ("model/model.safetensors", "model/zero_shot.safetensors", "predictions.csv")
HELD = Path(__file__).with_name("held.py")
# Not how long anything takes: when to give up on a process that does not come.
PATIENCE = 600.0


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory) -> Path:
    """The run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.raises(SystemExit) as stop:
        main(arguments(world, out))
    assert not stop.value.code
    return out


def arguments(world: Path, out: Path) -> list[str]:
    given = ["adapt", world / "photos", "--classes", world / "classes.txt", "--backbone", f"local:{world / 'backbone'}", "--out", out, *LONG]
    return list(map(str, given))


def start(world: Path, out: Path) -> Child:
    """A run that stands still in its second epoch."""
    process = Child([HELD, STEP, held_file(out), *arguments(world, out)])
    wait_until_held(out, process)
    return process


def held_file(out: Path) -> Path:
    return out.with_name(f"{out.name}-held")


def finished_epochs(out: Path) -> int:
    try:
        return (out / "events.jsonl").read_text(encoding="utf-8").count('"event": "epoch"')
    except FileNotFoundError:
        return 0


def wait_until_held(out: Path, process: Child | subprocess.Popen[str]) -> None:
    """Until the run has finished an epoch and stands still."""
    deadline = time.monotonic() + PATIENCE
    while not (held_file(out).exists() and finished_epochs(out) >= 1):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_equal_runs(a: Path, b: Path) -> None:
    for file in RESULTS:
        assert digest(a / file) == digest(b / file), file
    assert events(a) == events(b)


def test_ctrl_c_saves_and_says_how_to_go_on(world, whole, tmp_path, run):
    out = tmp_path / "run"
    process = start(world, out)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert said.splitlines()[-1] == f"stopped; finelens resume {out} goes on from the last checkpoint"
    assert "finishing this step" in said
    assert finished_epochs(out) < EPOCHS
    assert not (out / "predictions.csv").exists()
    assert run("resume", out).code == 0
    assert_equal_runs(whole, out)


def test_killed_run_resumes_to_the_same_bits(world, whole, tmp_path, run):
    out = tmp_path / "run"
    process = start(world, out)
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL
    assert finished_epochs(out) < EPOCHS
    result = run("resume", out)
    assert result.code == 0, result.err
    assert_equal_runs(whole, out)


@pytest.fixture
def stopped(run, given, tmp_path, monkeypatch) -> Path:
    """A run that stopped in its second epoch, without a process of its own."""
    out = tmp_path / "run"
    steps = iter(range(100))

    def interrupt_in_step_5(optimizer, lr):
        if next(steps) == STEP:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr("finelens.training.loop.set_lr", interrupt_in_step_5)
        assert run("adapt", *given, "--out", out, *LONG).code == 130
    return out


def test_resume_after_the_photographs_changed(run, stopped, world, tmp_path):
    saved = tmp_path / "saved"
    shutil.copytree(world / "photos", saved)
    try:
        Image.fromarray(picture(0, 77)).save(world / "photos" / "new.png")
        result = run("resume", stopped)
        *_, line = result.err.splitlines()
        assert result.code == 2
        assert line.startswith("finelens: the photographs in")
        assert "have changed since the run was started" in line
    finally:
        (world / "photos" / "new.png").unlink()
    # The refusal did no harm.
    result = run("resume", stopped)
    assert result.code == 0, result.err


def test_resume_without_the_photographs(run, stopped, world):
    (world / "photos").rename(world / "elsewhere")
    try:
        result = run("resume", stopped)
    finally:
        (world / "elsewhere").rename(world / "photos")
    assert result.code == 2
    assert len(result.err.splitlines()) == 1
    assert "any more, and a run goes on where it began: put them back" in result.err


@pytest.mark.parametrize("change", [lambda names: [*names, "fifth class"], lambda names: names[::-1], lambda names: ["red cat", *names[1:]]])
def test_resume_after_the_classes_changed(run, stopped, world, change):
    text = (world / "classes.txt").read_text()
    (world / "classes.txt").write_text("\n".join(change(text.splitlines())))
    try:
        result = run("resume", stopped)
    finally:
        (world / "classes.txt").write_text(text)
    assert result.code == 2, result.err
    assert "class names, templates or descriptions" in result.err.splitlines()[-1]


def test_second_ctrl_c_stops_at_once(capsys, tmp_path):
    before = signal.getsignal(signal.SIGINT)

    def train() -> None:
        with graceful_stop(tmp_path / "run") as should_stop:
            assert not should_stop()
            signal.raise_signal(signal.SIGINT)
            assert should_stop()
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the second Ctrl-C must not return")

    with pytest.raises(SystemExit) as stop:
        train()
    assert stop.value.code == 130
    assert (
        capsys.readouterr().err.splitlines()[-1]
        == "stopped; nothing was written yet: the same command begins again, with what was encoded in the cache"
    )
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(("files", "said"), [((), "starts again"), (("last.safetensors",), "goes on from the last checkpoint")])
def test_what_is_said_when_stopped_depends_on_whether_there_is_a_checkpoint(tmp_path, capsys, files, said):
    run = tmp_path / "run"
    (run / "checkpoint").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    for name in files:
        (run / "checkpoint" / name).write_bytes(b"")
    with pytest.raises(SystemExit), graceful_stop(run):
        raise KeyboardInterrupt
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"finelens resume {run} {said}" in last
    assert ("before there was a checkpoint" in last) == (not files)


def test_ctrl_c_before_training_stops_at_once(tmp_path):
    def load() -> None:
        with graceful_stop(tmp_path / "run"):
            signal.raise_signal(signal.SIGINT)
            pytest.fail("nothing is worth saving yet")

    with pytest.raises(SystemExit) as stop:
        load()
    assert stop.value.code == 130
