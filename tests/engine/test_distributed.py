"""Two processes that share the image tower compute what one process computes."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from finelens.core.launch import launched
from finelens.engine.distributed import ALONE, Processes, join
from finelens.errors import UserError
from tests.engine import shared_work
from tests.methods.tiny import tiny_engine
from tests.toy import TRAINING
from tests.training.test_loop import make_trainer

PATIENCE = 240


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "vit"
    tiny_engine(folder)
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory, tiny_vit, small) -> list[dict[str, Tensor]]:
    """What each of two processes found."""
    out = tmp_path_factory.mktemp("both")
    started = shared_work.start(*[["-m", "tests.engine.shared_work", out, tiny_vit, small]] * 2)
    said = [process.communicate(timeout=PATIENCE)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    return [load_file(out / f"{rank}.safetensors") for rank in range(2)]


def part(found: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}/"): tensor for name, tensor in found.items() if name.startswith(f"{prefix}/")}


@pytest.mark.parametrize("method", shared_work.METHODS)
def test_two_processes_work_like_one(method, both, tiny_vit):
    alone = shared_work.train(method, tiny_vit, ALONE)
    first, second = (part(found, method) for found in both)
    assert len(alone["losses"]) >= (5 if method in TRAINING else 0)
    assert first.keys() == second.keys() == alone.keys()
    # Both hold the same bits ...
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    # ... and those of one process up to the order of summation.
    torch.testing.assert_close(first["losses"], alone["losses"], atol=1e-5, rtol=0)
    assert torch.equal(first["logits"].argmax(1), alone["logits"].argmax(1))
    assert torch.equal(first["looks"], alone["looks"])
    assert torch.equal(first["forwards"], alone["forwards"])


@pytest.mark.parametrize("kind", shared_work.GRADIENTS)
def test_gradients_are_those_of_one_process(kind, both, small):
    alone = shared_work.gradients(kind, small, ALONE)
    for found in both:
        torch.testing.assert_close(part(found, f"gradients.{kind}"), alone, atol=1e-12, rtol=1e-9)
    learned = {"microclip": ("soap.query", "visual.transformer.resblocks.1.mlp.c_fc.weight", "head"), "lafter": ("prompts", "head")}
    assert all(alone[name].abs().max() > 1e-6 for name in learned.get(kind, ("scale",)))


def test_exchanges(both):
    for found in (part(found, "collectives") for found in both):
        assert found["gathered"].tolist() == [[0.0], [1.0], [2.0], [3.0], [4.0]]
        assert found["integers"].tolist() == [0, 1, 2, 3, 4]
        assert found["followed"].tolist() == [[0.0, 0.0]] * 3
        assert found["mean"].tolist() == [0.5, 0.5]
        assert found["any"].tolist() == [True, False]
        assert found["total"].item() == 3
        assert found["first"].item() == 7


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("multiple", [1, 16])
@pytest.mark.parametrize("rows", [0, 1, 7, 40, 64, 100, 113])
def test_shares_cover_every_row_once(rows, multiple, count):
    shares = [Processes(rank, count).divide(rows, multiple) for rank in range(count)]
    if -(-rows // multiple) < count:
        assert shares == [None] * count
        return
    covered = [row for share in shares for row in range(rows)[share.own]]
    assert covered == list(range(rows))
    assert all(share.counts == shares[0].counts for share in shares)
    assert [len(range(rows)[share.own]) for share in shares] == list(shares[0].counts)
    assert all(share.own.start % multiple == 0 and share.own.start < share.own.stop for share in shares)
    assert max(shares[0].counts) - min(shares[0].counts) <= 2 * multiple - 1


def test_one_process_exchanges_nothing():
    tensor = torch.ones(2, requires_grad=True)
    tensor.sum().backward()
    ALONE.average_gradients([tensor])
    ALONE.follow_first([tensor])
    ALONE.check_same({"options": "a"})
    assert tensor.grad.tolist() == [1, 1]
    assert ALONE.divide(100) is None
    assert ALONE.total(5) == 5
    assert (ALONE.any(True), ALONE.any(False), ALONE.first_value(3.5)) == (True, False, 3.5)
    assert ALONE.device(torch.device("cuda:3")) == torch.device("cuda:3")


def test_environment(monkeypatch):
    assert launched() == (0, 1)
    assert join("cpu") is ALONE
    for name, value in shared_work.environment(1, 3, 1234).items():
        monkeypatch.setenv(name, value)
    assert launched() == (1, 3)
    monkeypatch.delenv("MASTER_PORT")
    assert launched() == (0, 1)
    monkeypatch.setenv("MASTER_PORT", "1234")
    for value in ("many", "1", "0"):
        monkeypatch.setenv("WORLD_SIZE", value)
        with pytest.raises(UserError, match=f"RANK=1 and WORLD_SIZE={value}"):
            launched()


def test_a_process_waits_while_another_encodes_what_it_found_in_the_cache(monkeypatch):
    for name, value in shared_work.environment(1, 2, 1234).items():
        monkeypatch.setenv(name, value)
    given, waits = [], []

    def meet(url, rank, count, timeout):
        waits.append(timeout)
        yield torch.distributed.HashStore(), rank, count

    monkeypatch.setattr(torch.distributed, "rendezvous", meet)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **options: given.append((backend, options["timeout"])))
    assert [join(device) for device in ("cpu", "cuda")] == [Processes(1, 2)] * 2
    assert [backend for backend, _ in given] == ["gloo", "cpu:gloo,cuda:nccl"]
    assert all(timeout >= timedelta(hours=12) for _, timeout in given)
    # Nothing can interrupt the wait for a partner that never starts.
    assert all(wait <= timedelta(minutes=10) for wait in waits)


@pytest.mark.parametrize("port", ["abc", "99999", "0", "-1"])
def test_a_port_that_is_none(monkeypatch, port):
    for name, value in (shared_work.environment(1, 2, 1234) | {"MASTER_PORT": port}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"MASTER_PORT={port} is not the number of a port; start with torchrun"):
        join("cpu")


@pytest.mark.parametrize("device", ["mps", "cuda:0"])
def test_devices_of_one_process(device):
    with pytest.raises(UserError, match=f"device '{device}' serves one process, and there are 2"):
        Processes(0, 2).device(torch.device(device))


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="process 1 of this machine has no GPU, there are 1"):
        Processes(1, 2).device(torch.device("cuda"))


class Several(Processes):
    """One of several processes, the others of which are not there."""

    def divide(self, rows, multiple=1):
        return None

    def average_gradients(self, parameters):
        pass

    def any(self, flag):
        return flag

    def follow_first(self, tensors):
        pass


def test_only_the_first_process_saves(tmp_path):
    for rank in (1, 0):
        assert not list(tmp_path.iterdir())
        trainer = make_trainer(checkpoints=tmp_path)
        trainer.engine.processes = Several(rank, 2)
        trainer.run()
    assert [path.name for path in tmp_path.iterdir()] == ["last.safetensors"]


def test_one_of_several_does_not_repeat_a_step():
    trainer = make_trainer()
    trainer.engine.processes = Several(0, 2)
    steps = []

    def step(*arguments):
        steps.append(arguments)
        raise torch.OutOfMemoryError("of the device")

    trainer.task.step = step
    with pytest.raises(UserError, match="out of memory in epoch 1, step 1; the last checkpoint is intact"):
        trainer.run()
    assert len(steps) == 1
