"""Hostile files and what leaves the machine. The threat model is in SECURITY.md."""

from __future__ import annotations

import ast
import csv
import os
import pickle
import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import finelens
from finelens import api
from finelens.backbones import hub, open_clip_source
from finelens.backbones.registry import load_backbone
from finelens.classes.labels import read_labels
from finelens.classes.names import read_class_file
from finelens.errors import UserError
from finelens.storage.cache import state_digest
from finelens.storage.tensors import load_tensors
from tests.faults.examples import attempt
from tests.toy import QUIET, picture, write_classes

SOURCE = Path(finelens.__file__).parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Payload:
    """What a hostile pickle is made of: loading it runs a command."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


# Pickles.


@pytest.mark.parametrize("suffix", open_clip_source.PICKLE_SUFFIXES)
def test_pickle_checkpoint_is_refused_and_not_run(tiny_vit, tmp_path, suffix):
    folder, trace = tmp_path / "backbone", tmp_path / "ran"
    folder.mkdir()
    shutil.copy(tiny_vit / "open_clip_config.json", folder)
    (folder / f"model{suffix}").write_bytes(pickle.dumps({"state_dict": Payload(trace)}))
    with pytest.raises(UserError, match=rf"model\{suffix}: pickle checkpoints are refused because they can run code; convert it once: .*save_file"):
        load_backbone(f"local:{folder}")
    # Nor under a name that promises tensors.
    (folder / f"model{suffix}").rename(folder / "open_clip_model.safetensors")
    with pytest.raises(UserError, match="cannot load"):
        load_backbone(f"local:{folder}")
    assert not trace.exists()


@pytest.mark.parametrize("file", ["model/model.safetensors", "model/zero_shot.safetensors", "checkpoint/last.safetensors"])
def test_pickle_in_a_run_folder_is_refused_and_not_run(adapted_run, tmp_path, file):
    run, trace = tmp_path / "run", tmp_path / "ran"
    shutil.copytree(adapted_run, run)
    (run / file).write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(UserError, match=r"is damaged or not safetensors"):
        load_tensors(run / file)
    if file.startswith("model/"):
        with pytest.raises(UserError, match="is damaged or not safetensors"):
            api.load_run(run)
    assert not trace.exists()


@pytest.fixture(scope="module")
def adapted_run(photos, classes, tiny_vit, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("adapted") / "run"
    options = {"training": {"epochs": 1, "precision": "float32"}}
    api.adapt(photos, classes, out, method="dpa", backbone=f"local:{tiny_vit}", options=options, console=QUIET)
    return out


def _calls() -> dict[str, list[str]]:
    """Every dotted call in the package, with the files it stands in."""
    found: dict[str, list[str]] = {}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                found.setdefault(ast.unparse(node.func), []).append(f"{path.relative_to(SOURCE)}: {ast.unparse(node)}")
    return found


def test_nothing_that_runs_code_is_ever_called_on_data():
    calls = _calls()
    # A module's eval() takes no text; the others run it.
    assert not [name for name in calls if name.split(".")[-1] in ("exec", "system", "popen") or name == "eval"]
    assert not [name for name in calls if name.split(".")[0] in ("pickle", "yaml", "marshal", "shelve", "joblib", "dill")]
    # torch.load and np.load are the two doors through which a pickle could come.
    loads = [call for name in ("torch.load", "np.load", "numpy.load", "open_clip.load_checkpoint") for call in calls.get(name, [])]
    assert loads
    assert all("weights_only=True" in call or "allow_pickle=False" in call for call in loads), loads
    shells = [call for calls_ in calls.values() for call in calls_ if "shell=True" in call]
    assert not shells


def test_no_module_for_pickles_or_yaml_is_imported():
    allowed = {"backbones/open_clip_source.py": {"pickle"}}  # the type of the error that torch raises, nothing else
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            bad = {name.split(".")[0] for name in names} & {"pickle", "yaml", "marshal", "shelve", "joblib", "dill"}
            assert bad <= allowed.get(path.relative_to(SOURCE).as_posix(), set()), path


def test_yaml_is_text_like_any_other(tmp_path):
    trace = tmp_path / "ran"
    (tmp_path / "names.yaml").write_text(f"!!python/object/apply:os.system ['touch {trace}']\n")
    assert read_class_file(tmp_path / "names.yaml") == [f"!!python/object/apply:os.system ['touch {trace}']"]
    assert not trace.exists()


# Safetensors.


def _safetensors(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


@pytest.mark.parametrize(
    "content",
    [
        (2**64 - 1).to_bytes(8, "little"),
        (10**12).to_bytes(8, "little") + b"{}",
        _safetensors(b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'),
        _safetensors(b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}', bytes(8)),
        _safetensors(b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', bytes(4)),
        _safetensors(b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}}', bytes(4)),
        _safetensors(b"{" * 100_000),
        _safetensors(b'{"a":{"dtype":"U8","shape":[' + b"1," * 50_000 + b'1],"data_offsets":[0,1]}}', bytes(1)),
    ],
    ids=["length 2^64", "length 10^12", "shape overflow", "4 TB", "overlap", "backwards", "nested", "50,000 dimensions"],
)
def test_absurd_safetensors_headers(tmp_path, content):
    """Refused, or read as the little that is really there; nothing is allocated on the word of a header."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    tensors, refusal = attempt(load_tensors, path)
    if refusal is not None:
        assert "is damaged or not safetensors" in refusal
        assert len(refusal) < 2000
    else:
        assert sum(tensor.numel() for tensor in tensors.values()) <= len(content)


# Tables.


def test_no_cell_of_a_table_is_a_formula(tiny_vit, tmp_path):
    """Class names and file names that a spreadsheet would run."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("=cmd|'' !A0.png", "+1.png", "-1.png", "@sum.png"):
        Image.fromarray(picture(0, 0)).save(photos / name)
    names = write_classes(tmp_path / "names.txt", ["=cmd|' /C calc'!A0", "+SUM(1)", "-2+3", "@x"])
    run = api.zero_shot(photos, names, tmp_path / "run", backbone=f"local:{tiny_vit}", options={"training": {"precision": "float32"}}, console=QUIET)
    api.predict(tmp_path / "run", photos, tmp_path / "new.csv", console=QUIET)
    for table in (tmp_path / "run" / "predictions.csv", tmp_path / "new.csv"):
        with open(table, newline="", encoding="utf-8") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert {row.label for row in run.rows} <= {"=cmd|' /C calc'!A0", "+SUM(1)", "-2+3", "@x"}


def test_labels_that_leave_the_folder_are_refused(photos, tmp_path):
    for path in ("../secret.png", "/etc/passwd", "a/../../b.png"):
        (tmp_path / "labels.csv").write_text(f"path,label\n{path},red stripe\n")
        with pytest.raises(UserError, match="leaves the folder of the images"):
            read_labels(photos, tmp_path / "labels.csv", ["red stripe"])


def test_nothing_is_written_outside_the_run_and_the_cache(photos, classes, tiny_vit, tmp_path, monkeypatch):
    """Every file that is opened for writing, and every rename, is below one of the two."""
    allowed = [tmp_path / "run", tmp_path / "cache"]
    monkeypatch.setenv("FINELENS_CACHE", str(tmp_path / "cache"))
    targets: list[str] = []
    watching = [True]

    def audit(event: str, arguments: tuple) -> None:
        if watching[0] and event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            targets.append(os.fsdecode(arguments[0]) if not isinstance(arguments[0], int) else "")
        if watching[0] and event == "os.rename":
            targets.append(os.fsdecode(arguments[1]))

    sys.addaudithook(audit)
    try:
        options = {"training": {"epochs": 1, "precision": "float32"}}
        api.adapt(photos, classes, tmp_path / "run", method="dpa", backbone=f"local:{tiny_vit}", options=options, console=QUIET)
    finally:
        watching[0] = False
    assert any(target.endswith("predictions.csv") for target in targets)
    strangers = [t for t in targets if t and not any(Path(t).is_relative_to(folder) for folder in allowed) and not t.startswith("/dev/")]
    assert strangers == []


# The network.


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to reach another machine is an error of the test."""

    def refuse(*arguments, **given):
        raise AssertionError(f"the network was used: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    hub.hub_reachable.cache_clear()
    yield
    hub.hub_reachable.cache_clear()


def test_nothing_leaves_the_machine_unless_asked(no_network, photos, classes, tiny_vit, tmp_path):
    assert load_backbone("embedded").encode_text(["a bird"]).shape[0] == 1
    options = {"training": {"precision": "float32"}}
    api.zero_shot(photos, classes, tmp_path / "run", backbone=f"local:{tiny_vit}", options=options, console=QUIET)
    api.predict(tmp_path / "run", photos, tmp_path / "new.csv", console=QUIET)


def test_offline_is_honoured_without_a_single_probe(no_network, monkeypatch):
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "getproxies", dict)
    for spec in ("hf-hub:org/no-such-model", "hf-hub:org/no-such-model@main"):
        with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set and the files are not in the hub's cache.*local:DIR"):
            load_backbone(spec)
    assert hub.constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("asked", ["org/model", "org/model@main", f"org/model@{COMMIT}"])
def test_a_hub_model_is_pinned_to_the_commit_that_was_loaded(monkeypatch, photos, classes, tiny_vit, tmp_path, asked):
    """Configuration and weights come from one commit, and the run remembers it."""
    snapshot = tmp_path / "hub" / "snapshots" / COMMIT
    shutil.copytree(tiny_vit, snapshot)
    revisions = []

    def serve(repository, filename=None, revision=None):
        assert repository == "org/model"
        revisions.append(revision)
        return str(snapshot / (filename or "open_clip_model.safetensors"))

    monkeypatch.setattr(open_clip_source, "download_pretrained_from_hf", serve)
    monkeypatch.setattr(open_clip_source.open_clip, "get_tokenizer", lambda name: open_clip_source.open_clip.SimpleTokenizer())
    options = {"training": {"precision": "float32"}}
    api.zero_shot(photos, classes, tmp_path / "run", backbone=f"hf-hub:{asked}", options=options, console=QUIET)
    assert revisions == [asked.partition("@")[2] or None, COMMIT]
    assert api.load_run(tmp_path / "run")._config.backbone == f"hf-hub:org/model@{COMMIT}"


def test_no_module_but_the_hub_probe_opens_connections():
    users = {}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                if name.split(".")[0] in ("socket", "requests", "httpx", "aiohttp", "ftplib", "smtplib") or name in ("urllib.request", "http.client"):
                    users.setdefault(path.relative_to(SOURCE).as_posix(), set()).add(name)
    # The lock asks for the machine's name; the demo downloads a data set only when asked to; --engine ray asks the cluster that it was given.
    assert set(users) <= {"backbones/hub.py", "storage/lock.py", "demo/run.py", "demo/pets.py", "runs/cluster.py"}, users


def test_weights_that_change_are_noticed_on_resume():
    """Checked for every run by the digest in events.jsonl; see tests/cli/test_interrupt.py for photographs and classes."""
    one, other = {"a": torch.zeros(3)}, {"a": torch.tensor([0.0, 0.0, -0.0])}
    assert state_digest(one) != state_digest(other)
