"""``--engine ray``: the bytes of one process from two machines, one of which is lost, and an end of everything that could wait for ever."""

from __future__ import annotations

import csv
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from finelens import api
from finelens.errors import UserError
from finelens.feature_store import folder as feature_folder
from finelens.images.load import Tally
from finelens.runs import cluster, encode_folder, on_ray
from finelens.runs.cluster import ATTEMPTS, Crew, Said, Worker, connected, crew_of, versions
from finelens.runs.early import Question
from finelens.runs.encode import features
from finelens.runs.on_ray import PartFiles, ShardFiles, count_rows, part_count
from tests.toy import QUIET, options_for, write_classes, write_photos

# Seconds after which the cluster of the test is taken down, whatever it does.
LIMIT = 120


class Lost(Exception):
    """A worker is gone."""


class Failed(Lost):
    """A worker raised."""


class FakeRay:
    """Answers at once what the actors of the test say; starts, which come last, before parts."""

    exceptions = SimpleNamespace(RayError=Lost, RayTaskError=Failed)

    def __init__(self) -> None:
        self.killed = 0

    def wait(self, refs: list[Any], **given: Any) -> tuple[list[Any], list[Any]]:
        return refs[-1:], refs[:-1]

    def get(self, ref: Any) -> Any:
        if isinstance(ref.answer, Exception):
            raise ref.answer
        return ref.answer

    def kill(self, actor: Any) -> None:
        self.killed += 1


class Ref:
    def __init__(self, answer: Any) -> None:
        self.answer = answer


class FakeActor:
    def __init__(self, start: Any, answer: Any) -> None:
        self.begin = SimpleNamespace(remote=lambda: Ref(start))
        self.part = SimpleNamespace(remote=lambda number, folder: Ref(answer(number)))


class FakeTarget:
    def __init__(self, left: list[int]) -> None:
        self.left, self.taken = left, list[int]()

    def open(self, key: Any) -> list[int]:
        return self.left

    def place(self) -> Path:
        return Path("attempt")

    def accept(self, number: int, folder: Path, value: Any) -> int:
        self.taken.append(number)
        return 1


class Heard:
    """A console that keeps warnings."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, line: str) -> None:
        self.lines.append(line)


STARTED = Said("a", "key")


def crew(answer: Any, start: Any = STARTED, left: tuple[int, ...] = (1, 2, 3), room: int = 2) -> Crew:
    starts = start if callable(start) else lambda: start
    return Crew(FakeRay(), lambda: FakeActor(starts(), answer), lambda: room, FakeTarget(list(left)), 3, Heard())


def run(made: Crew) -> tuple[int, list[int]]:
    return made.run(SimpleNamespace(update=lambda n: None)), sorted(made.target.taken)


def test_parts_depend_on_the_number_of_inputs_only():
    assert [part_count(total) for total in (0, 1, 4096, 4097, 2_000_000)] == [1, 1, 1, 2, 489]


def test_a_lost_part_is_written_again_and_once():
    tried: Counter[int] = Counter()

    def answer(number: int) -> Any:
        tried[number] += 1
        return Lost("node died") if number == 2 and tried[2] < ATTEMPTS else Said("a")

    assert run(crew(answer)) == (ATTEMPTS - 1, [1, 2, 3])
    assert tried == {1: 1, 2: ATTEMPTS, 3: 1}


def test_attempts_have_an_end_and_workers_are_dismissed():
    made = crew(lambda number: Lost("trace\nOutOfMemoryError: 8 GB") if number == 2 else Said("a"))
    with pytest.raises(UserError, match=f"part 2 of 3 was lost {ATTEMPTS} times.*OutOfMemoryError: 8 GB.*the same command goes on"):
        run(made)
    assert made.ray.killed >= ATTEMPTS


def test_what_a_worker_raises_or_says_ends_the_work():
    with pytest.raises(UserError, match="part 1 of 3 failed: Failed: no space"):
        run(crew(lambda number: Failed("no space"), room=1))
    with pytest.raises(UserError, match="a worker on a says: no such run"):
        run(crew(None, Said("a", error="no such run")))


def test_workers_that_do_not_start_or_differ():
    with pytest.raises(UserError, match=f"{ATTEMPTS} workers in a row did not start: Lost: ModuleNotFoundError: finelens"):
        run(crew(None, Lost("ModuleNotFoundError: finelens")))
    starts = iter([Said("a", "key"), Said("b", "other")])
    with pytest.raises(UserError, match=r"[ab] would write other bytes than the worker before it"):
        run(crew(lambda number: Said("a"), lambda: next(starts)))


def test_a_cluster_without_room_is_refused_and_one_that_lost_it_given_up(monkeypatch):
    with pytest.raises(UserError, match="no machine of the Ray cluster"):
        run(crew(None, room=0))
    rooms = iter([1])
    monkeypatch.setattr(cluster, "PATIENCE", 0.0)
    monkeypatch.setattr(cluster, "TICK", 0.0)
    made = crew(None)
    made.room = lambda: next(rooms, 0)
    with pytest.raises(UserError, match="no worker for 0 s"):
        run(made)


def test_a_cluster_that_is_gone_is_an_error_for_a_person():
    made, rooms = crew(None), iter([1])

    def room() -> int:
        for first in rooms:
            return first
        raise Lost("no GCS")

    made.room = room
    with pytest.raises(UserError, match="the Ray cluster is gone: Lost: no GCS"):
        run(made)


def test_room_is_counted_a_machine_at_a_time():
    nodes = [
        {"Alive": True, "Resources": {"CPU": 3.0, "GPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 0.5}},
        {"Alive": False, "Resources": {"CPU": 9.0}},
    ]
    ray = SimpleNamespace(nodes=lambda: nodes, remote=lambda **given: lambda kind: kind)

    def room(device: str) -> int:
        return crew_of(ray, None, None, Path(), FakeTarget([]), parts=9, device=device, console=QUIET).room()

    assert (room("cpu"), room("cuda")) == (3, 2)
    del nodes[0]["Resources"]["GPU"]
    assert room("cuda") == 0
    with pytest.raises(UserError, match="cuda:1 names one of this machine"):
        room("cuda:1")


def test_warnings_are_passed_on_once():
    made = crew(lambda number: Said("a", warnings=("dim",) if number < 3 else ("far",)))
    run(made)
    assert made.console.lines == ["dim (said 2 times)", "far"]


def test_a_worker_looks_before_it_loads(tmp_path):
    seen = Worker(None, None, tmp_path, 1, {**versions(), "torch": "0.1"}).begin()
    assert "install the same versions" in seen.error
    assert "0.1 here" in seen.error
    assert "does not see" in Worker(None, None, tmp_path / "elsewhere", 1, versions()).begin().error


def test_without_ray_and_without_an_answer(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        free = taken.getsockname()[1]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        with pytest.raises(UserError, match=r"pip install 'finelens\[ray\]'"), connected(None):
            pass
    pytest.importorskip("ray")
    for address in (f"127.0.0.1:{free}", f"ray://127.0.0.1:{free}"):
        with pytest.raises(UserError, match=r"no Ray cluster at .*check --ray-address"), connected(address):
            pass


def test_a_row_that_is_missing_is_seen_and_a_line_break_in_a_name_is_none(tmp_path):
    part, tally = tmp_path / "part.csv", Tally()
    part.write_bytes(b'path,status\r\n"a\r\nb.png",ok\r\nc.png,broken\r\n')
    count_rows(part, 2, tally)
    assert tally.counts == {"ok": 1, "broken": 1}
    with pytest.raises(UserError, match="2 rows of 3 inputs and was removed"):
        count_rows(part, 3, tally)
    assert not part.exists()


def test_whole_parts_stay_for_the_same_key(tmp_path):
    target = tmp_path / "new.csv"
    with PartFiles(target, 1000, 2) as parts:
        assert parts.open("a" * 64) == [1, 2]
        folder = parts.place()
        (folder / "new-00002-of-00002.csv").write_text("x")
        assert parts.accept(2, folder, None) == 488
        parts.place()
    with PartFiles(target, 1000, 2) as parts:
        assert parts.open("a" * 64) == [1]
        assert [path.name for path in (tmp_path / "new.csv.parts" / ("a" * 64)).iterdir()] == ["new-00002-of-00002.csv"]
        assert parts.open("b" * 64) == [1, 2]
    assert [path.name for path in (tmp_path / "new.csv.parts").iterdir()] == ["b" * 64]
    (tmp_path / "new.csv.parts" / "mine").touch()
    with pytest.raises(UserError, match="not a folder that finelens wrote"), PartFiles(target, 1000, 2):
        pass


def test_shards_in_any_order_are_those_of_one_process(tmp_path, tiny_vit, monkeypatch):
    for module in (feature_folder, encode_folder):
        monkeypatch.setattr(module, "SHARD", 10)
    photos = write_photos(tmp_path / "photos")
    (photos / "red stripe" / "9.png").write_bytes(b"no picture")
    classes = write_classes(tmp_path / "c.txt")
    asked = on_ray.FeatureQuestion(photos, tmp_path / "two.features", f"local:{tiny_vit}", classes=classes)
    features(photos, tmp_path / "one.features", backbone=asked.backbone, classes=classes, console=QUIET)
    work = on_ray.Encoding(asked, QUIET)

    def write(order: list[int], expected: list[int]) -> ShardFiles:
        target = ShardFiles(asked.out, 25, True)
        assert list(target.open(work.key)) == expected
        for number in order:
            folder = target.place()
            target.accept(number, folder, work.write(number, folder, QUIET))
        return target

    # Shard 3 is before its turn when the work ends, and is written again.
    write([1, 4, 3], [1, 2, 3, 4]).close()
    last = write([3, 4, 2], [2, 3, 4])
    last.finish()
    last.close()
    assert last.tally.files == 15
    one, two = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (tmp_path / "one.features", asked.out))
    assert one == two
    assert len(one) == 5


def test_a_machine_dies_and_another_goes_on(tmp_path, tiny_vit, monkeypatch):
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    photos = write_photos(tmp_path / "train")
    run_folder, target, many = tmp_path / "run", tmp_path / "two.csv", tmp_path / "many"
    api.zero_shot(
        photos, write_classes(tmp_path / "c.txt"), run_folder, backbone=f"local:{tiny_vit}", options=options_for("zero-shot"), console=QUIET
    )
    many.mkdir()
    for number in range(600):
        Image.new("RGB", (32, 32), (number % 256, number // 256 * 40, 77)).save(many / f"{number:04d}.bmp")
    (many / "0530.bmp").write_bytes(b"no picture")
    api.predict(run_folder, many, tmp_path / "one.csv", console=QUIET)
    # The first machine only holds the cluster together, so that it is certain who works when.
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    down = threading.Timer(LIMIT, machines.shutdown)
    down.daemon = True
    down.start()
    try:
        second = machines.add_node(num_cpus=1)
        killed = threading.Event()

        def kill_who_writes() -> None:
            while down.is_alive() and not killed.is_set():
                if list(tmp_path.glob("two.csv.parts/*/.finelens-attempt-*/*.part")):
                    machines.remove_node(second, allow_graceful=False)
                    killed.set()
                time.sleep(0.01)

        def crew_that_gets_a_machine(*asked: Any, **given: Any) -> Crew:
            made = crew_of(*asked, **given)
            count, further = made.room, list[Any]()

            def room() -> int:
                # In this thread, as a node wants to hear signals.
                if killed.is_set() and not further:
                    further.append(machines.add_node(num_cpus=1))
                return count()

            made.room = room
            return made

        monkeypatch.setattr(on_ray, "crew_of", crew_that_gets_a_machine)
        killer = threading.Thread(target=kill_who_writes, daemon=True)
        killer.start()
        lost = on_ray.predict_on_ray(Question(run_folder, many, target), QUIET, machines.address, groups=1)
        killer.join(LIMIT)
    finally:
        down.cancel()
        machines.shutdown()
    assert killed.is_set()
    assert lost == 1
    assert target.read_bytes() == (tmp_path / "one.csv").read_bytes()
    with target.open(newline="") as file:
        assert Counter(row["status"] for row in csv.DictReader(file))["ok"] == 599
    assert not list(tmp_path.glob("two.csv.*"))
