from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
from pathlib import Path

import numpy as np
import pytest

import finelens
from finelens.bench.rows.origin import code_digest, command, versions
from finelens.bench.rows.results import Result, ResultsFile, from_json, pack, read_results, unpack
from finelens.errors import UserError
from tests.bench.world import key

COMMITTED = Path(__file__).parents[2] / "benchmarks/results"
SOURCE = {"checksum": "c", "train": 1, "test": 1, "classes": 2, "layout": "folder", "split": "folders"}
VERSIONS = {"finelens": "0", "code": "c0de", "python": "3", "torch": "2", "numpy": "2", "threads": 1}


def result(seed: int = 0, **changes) -> Result:
    values = {
        "key": key(seed=seed),
        "status": "ok",
        "config": {"method": "cupl", "seed": seed},
        "versions": VERSIONS,
        "source": SOURCE,
        "command": "finelens bench --data toy",
        "split": {"checksum": "s", "fit": 1, "test": 1},
        "measures": {"accuracy": 0.5},
        "correct": "80",
    }
    return Result(**{**values, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {}},
        {"config": {"method": "other", "seed": 0}},
        {"config": {"method": "cupl", "seed": 1}},
        {"command": ""},
        {"command": "python something.py"},
        *({"versions": {**VERSIONS, name: None}} for name in VERSIONS if name != "code"),
        *({"source": {k: v for k, v in SOURCE.items() if k != name}} for name in SOURCE),
        {"measures": {}},
        {"split": {}},
        {"correct": ""},
        {"status": "good"},
        {"status": "skipped"},
        {"status": "failed", "measures": {}, "reason": ""},
    ],
    ids=str,
)
def test_a_result_without_its_origin_cannot_be_made(changes):
    with pytest.raises(ValueError, match=r"result|status"):
        result(**changes)


def test_a_line_is_read_back_as_it_was(tmp_path):
    file = ResultsFile(tmp_path / "r.jsonl")
    for k in range(3):
        file.append(result(k))
    file.append(result(3, status="skipped", reason="why", measures={}, correct=""))
    assert file.read() == [result(0), result(1), result(2), result(3, status="skipped", reason="why", measures={}, correct="")]
    assert all(line["default"] for line in map(json.loads, file.path.read_text().splitlines()))


def test_a_line_that_is_cut_off_is_no_result_and_is_written_again(tmp_path):
    file = ResultsFile(tmp_path / "r.jsonl")
    file.append(result(0))
    whole = file.path.read_bytes()
    file.append(result(1))
    both = file.path.read_bytes()
    for end in (len(whole) + 1, len(both) - 1):
        file.path.write_bytes(both[:end])
        assert [r.key.seed for r in file.read()] == [0]
        file.append(result(1))
        assert file.path.read_bytes() == both


def test_a_new_row_names_its_code_and_an_old_one_is_still_read(tmp_path):
    old = result(versions={name: value for name, value in VERSIONS.items() if name != "code"})
    file = ResultsFile(tmp_path / "r.jsonl")
    with pytest.raises(ValueError, match=r"without versions\.code cannot be written"):
        file.append(old)
    assert not file.path.exists()
    file.path.write_text(json.dumps(old.to_json()) + "\n")
    assert file.read() == [old]


@pytest.mark.parametrize("path", sorted(COMMITTED.glob("bench_*.jsonl")), ids=lambda path: path.stem)
def test_committed_results_are_read(path):
    assert read_results([path])


def test_the_digest_of_the_code_knows_every_file_and_its_place(tmp_path):
    package = tmp_path / "package"
    (package / "part" / "__pycache__").mkdir(parents=True)
    (package / "part" / "a.py").write_text("a = 1\n")
    (package / "words.txt").write_text("a\n")
    digest = code_digest.__wrapped__
    first = digest(package)
    (package / "part" / "__pycache__" / "a.pyc").write_bytes(b"x")
    (package / ".a.py.swp").write_bytes(b"x")
    assert digest(package) == first
    (package / "words.txt").write_text("b\n")
    changed = digest(package)
    (package / "part" / "a.py").rename(package / "a.py")
    assert len({first, changed, digest(package)}) == 3
    assert re.fullmatch("[0-9a-f]{16}", first)
    assert versions("zero-shot")["code"] == digest(Path(finelens.__file__).parent)


def test_the_command_names_a_device_that_is_not_the_default():
    assert command(key(), "cuda:1").endswith(" --profile full --device cuda:1 --out results.jsonl")
    assert "--device" not in command(key())
    assert "--device" not in command(key(), "cpu")


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "r.jsonl"
    ResultsFile(path).append(result())
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(UserError, match=r"line 2: not a result"):
        read_results([path])
    path.write_text(path.read_text().replace('"command": "finelens bench --data toy"', '"command": ""'))
    with pytest.raises(UserError, match="without its command"):
        read_results([path])


def test_unknown_files_and_schemas(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_results([tmp_path / "none"])
    with pytest.raises(ValueError, match="schema 2"):
        from_json({**result().to_json(), "schema": 2})


def _append_many(path, first):
    for k in range(first, first + 25):
        ResultsFile(path).append(result(k))


def test_processes_append_whole_lines(tmp_path):
    path = tmp_path / "r.jsonl"
    workers = [multiprocessing.get_context("fork").Process(target=_append_many, args=(path, 25 * i)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(r.key.seed for r in read_results([path])) == list(range(100))


def test_a_claim_is_exclusive_and_ends_with_its_process(tmp_path):
    file = ResultsFile(tmp_path / "r.jsonl")
    reader, writer = os.pipe()
    holder = os.fork()
    if holder == 0:
        # Dies without letting go, as a killed process does.
        file.claim(key()).__enter__()
        os.write(writer, b"x")
        signal_end = os.read(reader, 0)
        os._exit(len(signal_end))
    os.read(reader, 1)
    os.waitpid(holder, 0)
    with file.claim(key()) as mine:
        assert mine
        child = os.fork()
        if child == 0:
            with file.claim(key()) as taken, file.claim(key(seed=1)) as free:
                os._exit(0 if (taken, free) == (False, True) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    file.tidy()
    with file.claim(key()) as mine:
        assert mine


def test_a_claim_that_cannot_be_written_is_nobodys(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("finelens.storage.lock.os.pwrite", full)
    with pytest.raises(UserError, match="No space left on device"), ResultsFile(tmp_path / "r.jsonl").claim(key()):
        pass


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100])
def test_hits_are_packed(count):
    hits = np.random.default_rng(count).random(count) > 0.5
    assert unpack(pack(hits), count).tolist() == hits.tolist()
