"""``--engine ray``: the bytes of one process from two machines, one of which is lost, and an end of everything that could wait for ever."""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from contextlib import suppress
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
from finelens.runs.arguments import PredictArguments
from finelens.runs.cluster import ATTEMPTS, Crew, Said, Worker, connected, crew_of, versions
from finelens.runs.encode import features
from finelens.runs.on_ray import PartFiles, ShardFiles, count_rows, part_count
from finelens.runs.predict import GROUP
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


@pytest.mark.skipif(sys.platform != "linux", reason="an orphan goes to init elsewhere")
@pytest.mark.parametrize(
    ("raised", "seen"), [(Exception("The current node timed out during startup."), UserError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_a_cluster_that_did_not_get_ready_is_taken_down(monkeypatch, raised, seen):
    pytest.importorskip("ray")
    # As a node does that is gone before its helpers.
    wait = [sys.executable, "-c", "import time; time.sleep(60)"]
    leave = f"import subprocess; print(subprocess.Popen([*{wait}, 'ray::Helper'], stdout=-3, stderr=-3).pid)"
    helper: list[int] = []
    bystanders: list[subprocess.Popen[bytes]] = []

    def init(**given: Any) -> None:
        helper.append(int(subprocess.run([sys.executable, "-c", leave], capture_output=True, check=True).stdout))
        bystanders.append(subprocess.Popen(wait))
        raise raised

    ended: list[int] = []
    ray = SimpleNamespace(
        is_initialized=lambda: False, init=init, shutdown=lambda: ended.append(1), exceptions=FakeRay.exceptions, __file__="/nowhere/ray/__init__.py"
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(cluster, "GRACE", 0.1)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(seen) as found, connected(None):
        pass
    assert ended == [1]
    assert os.WIFSIGNALED(os.waitpid(helper[0], 0)[1])
    # What somebody else began meanwhile is none of Ray's.
    assert bystanders[0].poll() is None
    bystanders[0].kill()
    bystanders[0].wait()
    assert seen is not UserError or "no Ray cluster at this machine (Exception: The current node timed out" in str(found.value)


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
    asked = on_ray.FeatureArguments(photos, tmp_path / "two.features", f"local:{tiny_vit}", classes=classes)
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


@pytest.fixture
def two_machines(monkeypatch):
    """A Ray cluster of two nodes with a core each, without what Ray has beside for people; the second can be killed."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    # Else workers give way to all other work of the machine.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setattr("ray._private.node.Node.start_api_server", lambda *given, **options: None, raising=False)
    lean = {"num_cpus": 1, "include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
    machines = Cluster(initialize_head=True, head_node_args=lean)
    down = threading.Timer(LIMIT, machines.shutdown)
    down.daemon = True
    down.start()
    try:
        yield machines, machines.add_node(num_cpus=1)
    finally:
        down.cancel()
        machines.shutdown()


class Placing:
    """Ray, with the first worker on the one machine and the second on the other, of which nothing is heard before the first is lost."""

    def __init__(self, ray: Any, machines: list[str], lost: threading.Event) -> None:
        self._ray, self._left, self._lost, self._held = ray, machines, lost, list[Any]()
        self.exceptions, self.get, self.kill, self.nodes = ray.exceptions, ray.get, ray.kill, ray.nodes

    def remote(self, **options: Any) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

        def of(kind: type) -> Any:
            def hire(*given: Any) -> Any:
                first = len(self._left) > 1
                place = On(self._left.pop(0) if first else self._left[0], soft=False)
                actor = self._ray.remote(**options)(kind).options(scheduling_strategy=place).remote(*given)
                return actor if first else SimpleNamespace(begin=SimpleNamespace(remote=lambda: self._hold(actor)), part=actor.part)

            return SimpleNamespace(remote=hire)

        return of

    def _hold(self, actor: Any) -> Any:
        self._held.append(actor.begin.remote())
        return self._held[-1]

    def wait(self, refs: list[Any], **given: Any) -> tuple[list[Any], list[Any]]:
        heard = refs if self._lost.is_set() else [ref for ref in refs if ref not in self._held]
        return self._ray.wait(heard, **given)


def children(process: int) -> list[int]:
    """Processes that another one has started, and that run."""
    found = []
    for own in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name in brackets may hold anything; what is behind it does not.
            if int(own.read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(own.parent.name))
    return found


def send(what: signal.Signals, processes: list[int]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, what)


def test_a_machine_dies_and_another_goes_on(tmp_path, tiny_vit, monkeypatch, two_machines):
    machines, second = two_machines
    photos = write_photos(tmp_path / "train")
    run_folder, target, many = tmp_path / "run", tmp_path / "two.csv", tmp_path / "many"
    api.zero_shot(
        photos, write_classes(tmp_path / "c.txt"), run_folder, backbone=f"local:{tiny_vit}", options=options_for("zero-shot"), console=QUIET
    )
    many.mkdir()
    for number in range(2 * GROUP):
        Image.new("RGB", (8, 8), (number % 256, number // 256 * 40, 77)).save(many / f"{number:04d}.bmp")
    (many / "0530.bmp").write_bytes(b"no picture")
    api.predict(run_folder, many, tmp_path / "one.csv", console=QUIET)
    killed, over = threading.Event(), threading.Event()

    def kill_who_writes() -> None:
        while not over.wait(0.01):
            if list(tmp_path.glob("two.csv.parts/*/.finelens-attempt-*/*.part")):
                # Its worker would go on for a moment without its raylet, long enough to end so small a part.
                workers = children(second.all_processes["raylet"][0].process.pid)
                send(signal.SIGSTOP, workers)
                machines.remove_node(second, allow_graceful=False)
                send(signal.SIGKILL, workers)
                killed.set()
                return

    def crew_on_both(ray: Any, *asked: Any, **given: Any) -> Crew:
        return crew_of(Placing(ray, [second.node_id, machines.head_node.node_id], killed), *asked, **given)

    monkeypatch.setattr(on_ray, "crew_of", crew_on_both)
    killer = threading.Thread(target=kill_who_writes, daemon=True)
    killer.start()
    try:
        lost = on_ray.predict_on_ray(PredictArguments(run=run_folder, photos=many, csv=target), QUIET, machines.address, groups=1)
    finally:
        over.set()
        killer.join(LIMIT)
    assert killed.is_set()
    assert lost == 1
    assert target.read_bytes() == (tmp_path / "one.csv").read_bytes()
    with target.open(newline="") as file:
        assert Counter(row["status"] for row in csv.DictReader(file))["ok"] == 2 * GROUP - 1
    assert not list(tmp_path.glob("two.csv.*"))
