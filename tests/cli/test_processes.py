"""``finelens adapt`` and ``finelens resume`` in two processes: one run folder, one voice, one result; and what happens when one of them ends."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from finelens import cli
from finelens.core.voice import JUDGED
from finelens.storage.predictions import read_predictions
from finelens.training import loop
from tests.children import Child
from tests.cli.test_interrupt import HELD, PATIENCE, finished_epochs, held_file, wait_until_held
from tests.engine import shared_work
from tests.toy import events, write_noise

EPOCHS = 3
# In the second epoch: of four steps an epoch.
STEP = 5
FLOAT32 = ("--set", "training.precision=float32", "--set", "training.lr=0.0001")
OPTIONS = ("--method", "microclip", *FLOAT32, "--set", f"training.epochs={EPOCHS}", "--set", "training.batch_size=7", "--set", "method.crops=2")

Process = Child | subprocess.Popen[str]


@pytest.fixture
def started() -> Iterator[list[Process]]:
    """The processes of a test; those that are still there when it fails are ended."""
    processes: list[Process] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def arguments(world: Path, out: Path) -> list[str]:
    given = ["adapt", world / "photos", "--classes", world / "classes.txt", "--backbone", f"local:{world / 'backbone'}", "--out", out]
    return [*map(str, given), *OPTIONS]


def start(*commands: list[str]) -> list[Child]:
    return shared_work.start(*(["-m", "finelens", *command] for command in commands))


def held(world: Path, out: Path) -> list[str]:
    """The arguments of Python for a run whose second process stands still in its second epoch."""
    return [str(HELD), str(STEP), str(held_file(out)), *arguments(world, out)]


def end(processes: list[Process], *codes: int) -> list[str]:
    """What the processes said, once they have ended with these codes."""
    said = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    assert [process.returncode for process in processes] == list(codes), said
    return said


def losses(out: Path) -> list[float]:
    return [event["loss"] for event in events(out) if event["event"] == "epoch"]


def predictions(out: Path) -> tuple[list[list[str]], list[float]]:
    """Paths, statuses and classes of all rows, and all confidences."""
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [[row["path"], row["status"], row["class"]] for row in rows], [float(row["probability"] or 0) for row in rows]


def assert_close_runs(a: Path, b: Path) -> None:
    assert len(losses(a)) == EPOCHS
    assert losses(a) == pytest.approx(losses(b), abs=1e-5)
    assert predictions(a)[0] == predictions(b)[0]
    assert predictions(a)[1] == pytest.approx(predictions(b)[1], abs=1e-4)


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory) -> Path:
    """The run in one process."""
    out = tmp_path_factory.mktemp("one") / "run"
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments(world, out))
    assert not stop.value.code
    return out


def test_one_folder_one_voice_one_result(world, whole, tmp_path, started):
    started += start(arguments(world, tmp_path / "run"), arguments(world, tmp_path / "idle"))
    first, second = end(started, 0, 0)
    assert_close_runs(whole, tmp_path / "run")
    assert (tmp_path / "run" / "report.html").exists()
    assert "processes: 2 share the images" in first
    assert second == ""
    assert not (tmp_path / "idle").exists()


def test_a_run_that_is_kept_from_training(world, tmp_path, started):
    """Noise says nothing about any class: all processes come to the same end, and with --fail-on to the same code."""
    command = [*arguments(world, tmp_path / "run"), "--fail-on", "unclear"]
    command[1] = str(write_noise(tmp_path / "noise"))
    started += start(command, command)
    first, second = end(started, JUDGED, JUDGED)
    assert first.count("nothing is trained") == 1
    assert second == ""
    assert [event["event"] for event in events(tmp_path / "run")].count("guard") == 1
    assert losses(tmp_path / "run") == []
    rows = read_predictions(tmp_path / "run" / "predictions.csv")
    assert len(rows) == 52
    assert all(row.label == row.zero_shot_class for row in rows)
    again = start(*[["resume", str(tmp_path / "run"), "--fail-on", "unclear"]] * 2)
    started += again
    end(again, JUDGED, JUDGED)
    milder = start(*[["resume", str(tmp_path / "run"), "--fail-on", "do-not-use"]] * 2)
    started += milder
    end(milder, 0, 0)


def test_stopped_in_two_processes_and_resumed_in_one(world, whole, tmp_path, run, started):
    out = tmp_path / "run"
    started += shared_work.start(*[held(world, out)] * 2)
    wait_until_held(out, started[0])
    # One of them is asked; both stop at the same step.
    started[1].send_signal(signal.SIGINT)
    first, second = end(started, cli.INTERRUPTED, cli.INTERRUPTED)
    assert first.splitlines()[-1] == f"stopped; finelens resume {out} goes on from the last checkpoint"
    assert second == ""
    assert finished_epochs(out) < EPOCHS
    assert run("resume", out).code == 0
    assert_close_runs(whole, out)


def test_stopped_in_one_process_and_resumed_in_two(world, whole, tmp_path, run, started, monkeypatch):
    out, steps = tmp_path / "run", iter(range(100))
    set_lr = loop.set_lr

    def interrupt_in_step_6(optimizer, lr):
        set_lr(optimizer, lr)
        if next(steps) == 5:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "set_lr", interrupt_in_step_6)
        assert run(*arguments(world, out)).code == cli.INTERRUPTED
    started += start(*[["resume", str(out)]] * 2)
    assert end(started, 0, 0)[1] == ""
    assert_close_runs(whole, out)


def test_a_killed_process_ends_the_others(world, whole, tmp_path, run, started):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *held(world, out)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started.append(subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}, **pipes))
    wait_until_held(out, started[0])
    workers = subprocess.run(["ps", "-o", "pid=", "--ppid", str(started[0].pid)], capture_output=True, text=True, check=True).stdout.split()
    assert len(workers) == 2
    os.kill(int(workers[1]), signal.SIGKILL)
    end(started, 1)
    assert finished_epochs(out) < EPOCHS
    assert run("resume", out).code == 0
    assert_close_runs(whole, out)


def test_processes_with_other_options(world, tmp_path, started):
    started += start(arguments(world, tmp_path / "run"), [*arguments(world, tmp_path / "run"), "--seed", "1"])
    first, second = end(started, 2, 2)
    wrong = "process 1 has other options than process 0; start every process with the same command, over the same files\n"
    assert first == f"finelens: {wrong}"
    # It spoke because nobody ended it meanwhile.
    assert second == f"finelens, process 1 of 2: {wrong}"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["evaluate", "features", "bench", "demo", "methods"])
def test_verbs_of_one_process(run, monkeypatch, verb):
    for name, value in shared_work.environment(0, 2, 1).items():
        monkeypatch.setenv(name, value)
    result = run(verb)
    assert (result.code, result.out) == (2, "")
    assert result.err == f"finelens: finelens {verb} runs in one process; start it without torchrun (docs/distributed.md)\n"
    monkeypatch.setattr(cli, "FIRST_SPEAKS", 0.0)
    monkeypatch.setenv("RANK", "1")
    assert run(verb).err.startswith("finelens, process 1 of 2: ")
