from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from finelens.errors import UserError
from finelens.storage import files
from finelens.storage.files import atomic_writer, json_text, read_json, write_bytes, write_json, write_text
from finelens.storage.tensors import load_metadata, load_tensors, save_tensors


def fail_with(code):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_failing_step_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch, call):
    target = tmp_path / "a.txt"
    write_text(target, "old")
    monkeypatch.setattr(files.os, call, fail_with(errno.EIO))
    with pytest.raises(UserError, match=r"cannot write .*a\.txt: Input/output error"):
        write_text(target, "new")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("code", "remedy"),
    [(errno.ENOSPC, "free some space"), (errno.EACCES, "make the folder writable"), (errno.EROFS, "read-only"), (errno.EDQUOT, "quota")],
)
def test_the_message_names_file_reason_and_remedy(tmp_path, monkeypatch, code, remedy):
    monkeypatch.setattr(files.os, "fsync", fail_with(code))
    with pytest.raises(UserError, match=rf"cannot write .*b\.json: {os.strerror(code)}; .*{remedy}"):
        write_json(tmp_path / "b.json", {})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("write", [lambda path: write_text(path, "x"), lambda path: files.check_target(path, "x")])
def test_a_pipe_or_device_is_refused_and_stays(tmp_path, write, linked):
    os.mkfifo(tmp_path / "pipe")
    target = tmp_path / "pipe"
    if linked:
        target = tmp_path / "link"
        target.symlink_to(tmp_path / "pipe")
    with pytest.raises(UserError, match="is a pipe or a device"):
        write(target)
    assert stat.S_ISFIFO(target.stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == sorted({"pipe", target.name})


def test_any_exception_in_the_block_removes_the_temporary_file(tmp_path):
    def interrupted():
        with atomic_writer(tmp_path / "a") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []


def test_the_content_is_synchronised_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda fd: (calls.append(("fsync", os.readlink(f"/proc/self/fd/{fd}"))), fsync(fd)))
    monkeypatch.setattr(files.os, "replace", lambda a, b: (calls.append(("replace", str(b))), replace(a, b)))
    write_bytes(tmp_path / "a", b"x")
    assert [name for name, _ in calls] == ["fsync", "replace", "fsync"]
    assert calls[0][1].endswith(".tmp")
    assert calls[2][1] == str(tmp_path)


def test_missing_folder_and_folder_in_the_way(tmp_path):
    with pytest.raises(UserError, match="create the folder first"):
        write_text(tmp_path / "no" / "a", "")
    (tmp_path / "d").mkdir()
    with pytest.raises(UserError, match="a folder stands where the file belongs"):
        write_text(tmp_path / "d", "")
    assert os.listdir(tmp_path) == ["d"]


def test_new_files_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    """A child rewrites a file without pause and is killed at several moments: the file is always one of the versions, complete."""
    target = tmp_path / "a.json"
    code = (
        "import sys; from pathlib import Path; from finelens.storage.files import write_json\n"
        "n = 0\nwhile True: write_json(Path(sys.argv[1]), {'n': n, 'pad': 'x' * 200000}); n += 1"
    )
    for delay in (0.0, 0.013, 0.031):
        child = subprocess.Popen([sys.executable, "-c", code, str(target)])
        while not target.exists():
            assert child.poll() is None
            time.sleep(0.005)
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        document = json.loads(target.read_text())
        assert len(document["pad"]) == 200000
        target.unlink()


def test_json_is_strict_and_takes_what_runs_hold():
    document = {"a": float("nan"), "b": [np.float32(0.5), np.int64(3), float("-inf")], "p": Path("x/y"), 3: torch.tensor(2.0)}
    assert json.loads(json_text(document)) == {"a": "nan", "b": [0.5, 3, "-inf"], "p": "x/y", "3": 2.0}
    assert "NaN" not in json_text({"x": np.float32("nan")})


def test_json_keeps_undecodable_names_and_other_scripts(tmp_path):
    names = ["caf\udce9.jpg", "日本", "a\u202eb", "😀"]
    write_json(tmp_path / "a.json", names)
    assert read_json(tmp_path / "a.json") == names
    assert "日本" in (tmp_path / "a.json").read_text("utf-8")


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"[" * 100000])
def test_damaged_json_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_missing_json_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*a\.json: No such file"):
        read_json(tmp_path / "a.json")


def tensors():
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    return {
        "t": base.T,
        "view": base[1:],
        "half": base.bfloat16(),
        "empty": torch.zeros(0, 3),
        "ids": torch.tensor([3, 1]),
        "scalar": torch.tensor(2.0),
    }


def test_tensors_round_trip_with_shared_storage_and_metadata(tmp_path):
    path = tmp_path / "a.safetensors"
    metadata = {f"key{i}": "ä" * i for i in range(12)}
    save_tensors(path, tensors(), metadata)
    loaded = load_tensors(path)
    assert loaded.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    assert load_metadata(path) == metadata
    assert (int.from_bytes(path.read_bytes()[:8], "little") + 8) % 8 == 0


def test_equal_tensors_give_equal_bytes(tmp_path):
    metadata = {f"key{i}": str(i) for i in range(12)}
    contents = set()
    for i in range(4):
        save_tensors(tmp_path / str(i), tensors(), metadata)
        contents.add((tmp_path / str(i)).read_bytes())
    assert len(contents) == 1


def test_full_disk_while_saving_tensors_keeps_the_old_file(tmp_path):
    """A real short write: the child may not write files above 64 kB."""
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.ones(3)})
    code = (
        "import resource, signal, sys, torch\nfrom pathlib import Path\nfrom finelens.errors import UserError\n"
        "from finelens.storage.tensors import save_tensors\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "try: save_tensors(Path(sys.argv[1]), {'a': torch.zeros(100000)})\nexcept UserError as e: print(e)"
    )
    output = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
    assert output.startswith(f"cannot write {path}: File too large")
    assert torch.equal(load_tensors(path)["a"], torch.ones(3))
    assert os.listdir(tmp_path) == ["a.safetensors"]


def header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04\x95",
        (2**63).to_bytes(8, "little") + b"{}",
        header(b"not json"),
        header(b'{"a":{"dtype":"F32","shape":[1000000000000,1000000000000],"data_offsets":[0,4]}}') + b"\0" * 4,
        header(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}') + b"\0" * 4,
        header(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}') + b"\0" * 4,
        header(b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}') + b"\0" * 4,
        header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[9999999999,10000000003]}}') + b"\0" * 4,
    ],
)
def test_damaged_tensors_are_named_with_the_remedy(tmp_path, content):
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"m\.safetensors is damaged or not safetensors .*restore it"):
        load_tensors(tmp_path / "m.safetensors")


def test_a_pickle_is_refused_and_not_run(tmp_path):
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    torch.save({"w": Evil()}, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match="not safetensors"):
        load_tensors(tmp_path / "m.safetensors")
    assert not marker.exists()


def test_truncated_tensors_are_refused(tmp_path):
    path = tmp_path / "a"
    save_tensors(path, tensors())
    content = path.read_bytes()
    for cut in (4, 9, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(UserError, match="damaged"):
            load_tensors(path)


def test_missing_tensors_are_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*none"):
        load_tensors(tmp_path / "none")
