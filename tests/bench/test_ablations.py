"""``benchmarks/ablations.py``: its switches are options of the methods, and its command is one that the program takes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from finelens.core.options import from_mapping
from finelens.methods.registry import find_method
from finelens.runs.config import parse_assignments
from tests.toy import load_script

SCRIPT = Path(__file__).parents[2] / "benchmarks/ablations.py"


@pytest.fixture(scope="module")
def ablations() -> ModuleType:
    return load_script(SCRIPT)


def test_every_switch_is_an_option_with_another_value_than_its_default(ablations):
    for method, switches in ablations.SWITCHES.items():
        config = find_method(method).config_class
        for switch in switches:
            options = parse_assignments([f"method.{switch}"])["method"]
            assert from_mapping(config, options, "method") != config(), switch


def test_the_command_is_taken_and_a_failure_stops_the_script(ablations, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        ablations.run("fair", "eta=0", tmp_path, ["nowhere"], tmp_path / "out.jsonl")
    assert stop.value.code == 2
    assert "nowhere" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_a_command_that_succeeds_lets_the_script_go_on(ablations, monkeypatch, tmp_path):
    given = []

    def succeed(arguments):
        given.append(arguments)
        raise SystemExit(0)

    monkeypatch.setattr(ablations, "finelens", succeed)
    ablations.run("fair", None, tmp_path, ["a", "b"], tmp_path / "out.jsonl")
    ablations.run("fair", "eta=0", tmp_path, ["a"], tmp_path / "out.jsonl")
    assert [arguments[-2:] for arguments in given] == [["--data", "b"], ["--set", "method.eta=0"]]


def test_the_table_shows_differences_and_why_a_number_is_missing(ablations):
    def row(accuracy, *options, data="a", status="ok"):
        key = {"method": "fair", "options": list(options), "data": data, "protocol": "inductive", "profile": "small", "seed": 0}
        return {**key, "status": status, "measures": {"accuracy": accuracy} if status == "ok" else {}}

    rows = [row(0.5), row(0.53, "method.eta=0"), row(0, "method.crops=0", status="broke_a_rule"), row(0.6, "method.eta=0", data="b")]
    lines = {line.split("|")[2].strip(): line for line in ablations.table(rows).splitlines() if "`fair`" in line}
    assert lines["default"].endswith("| 50.0 | - |")
    assert lines["`eta=0`"].endswith("| 53.0 (+3.0) | 60.0 |")
    assert lines["`crops=0`"].endswith("| broke a rule | - |")
