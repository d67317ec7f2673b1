from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelens.core.options import from_mapping
from finelens.errors import UserError
from finelens.methods.microclip.config import MicroClipConfig
from finelens.methods.registry import find_method
from finelens.runs.config import RunConfig, TextConfig, diff, from_json, parse_assignments, to_json
from finelens.storage.files import json_text
from finelens.training.config import TrainingConfig


@dataclass(frozen=True)
class Inner:
    weight: float = 1.0


@dataclass(frozen=True)
class Options:
    needed: int
    rate: float = 0.5
    fast: bool = False
    name: str = "x"
    mode: Literal["mean", "max", 3] = "mean"
    limit: Optional[int] = None  # noqa: UP045 - both spellings must work
    start: float | None = None
    either: int | str = 0
    sizes: tuple[int, ...] = ()
    pair: tuple[float, str] = (0.0, "")
    extra: Mapping[str, Any] = ()  # type: ignore[assignment]
    inner: Inner = Inner()


FULL = {
    "needed": 3,
    "rate": 1,
    "fast": True,
    "name": "Ä",
    "mode": 3,
    "limit": 7,
    "start": 2,
    "either": "b",
    "sizes": [1, 2],
    "pair": [1, "q"],
    "extra": {"a": 1},
    "inner": {"weight": 2},
}


def test_every_supported_type_is_read():
    options = from_mapping(Options, FULL, "method")
    assert options == Options(3, 1.0, True, "Ä", 3, 7, 2.0, "b", (1, 2), (1.0, "q"), {"a": 1}, Inner(2.0))
    assert type(options.rate) is float
    assert type(options.inner.weight) is float
    assert type(options.start) is float


def test_an_integer_stays_one_in_a_union():
    assert from_mapping(Options, {"needed": 1, "either": 4}, "m").either == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"needed": 1.5}, "method.needed: expected an integer, got 1.5"),
        ({"needed": True}, "method.needed: expected an integer, got True"),
        ({"needed": "3"}, "method.needed: expected an integer, got '3'"),
        ({"needed": None}, "method.needed: expected an integer, got None"),
        ({"rate": "a"}, "method.rate: expected a number, got 'a'"),
        ({"rate": False}, "method.rate: expected a number, got False"),
        ({"rate": float("nan")}, "method.rate must be a finite number, got nan"),
        ({"rate": 10**400}, "method.rate must be a finite number"),
        ({"fast": 1}, "method.fast: expected true or false, got 1"),
        ({"fast": "True"}, "method.fast: expected true or false, got 'True'"),
        ({"name": 5}, "method.name: expected a text, got 5"),
        ({"mode": "maxx"}, "method.mode: expected one of 'mean', 'max', 3, got 'maxx'; did you mean 'max'?"),
        ({"mode": 3.0}, "method.mode: expected one of 'mean', 'max', 3, got 3.0"),
        ({"limit": "x"}, "method.limit: expected an integer, got 'x'"),
        ({"start": float("inf")}, "method.start must be a finite number"),
        ({"either": 1.5}, "method.either: expected an integer or a text, got 1.5"),
        ({"sizes": 3}, "method.sizes: expected a list, each item an integer, got 3"),
        ({"sizes": [1, "b"]}, r"method.sizes\[1\]: expected an integer, got 'b'"),
        ({"pair": [1]}, "method.pair: expected a list of 2 items"),
        ({"extra": 1}, "method.extra: expected a mapping, got 1"),
        ({"inner": {"wieght": 1}}, r"unknown option method.inner.wieght; did you mean method.inner.weight\?"),
        ({"inner": 3}, "method.inner: expected a mapping of options, got 3"),
    ],
)
def test_wrong_types_are_refused_by_name(change, message):
    with pytest.raises(UserError, match=message):
        from_mapping(Options, {"needed": 1, **change}, "method")


def test_unknown_key_names_the_nearest():
    with pytest.raises(UserError, match=r"^unknown option training.epoch; did you mean training.epochs\?$"):
        from_mapping(TrainingConfig, {"epoch": 3}, "training")
    with pytest.raises(UserError, match=r"^unknown option text.zzz; options are: text.templates, text.synonyms$"):
        from_mapping(TextConfig, {"zzz": 3}, "text")


def test_missing_key_is_named():
    with pytest.raises(UserError, match=r"^missing option method.needed$"):
        from_mapping(Options, {}, "method")


def test_an_unsupported_field_type_is_the_programmers_error():
    @dataclass(frozen=True)
    class Odd:
        value: complex = 0j

    with pytest.raises(TypeError, match="value"):
        from_mapping(Odd, {"value": 1}, "m")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "training.epochs must be at least 1, got 0"),
        ({"batch_size": -1}, "training.batch_size"),
        ({"lr": 0.0}, "training.lr must be above 0"),
        ({"lr": float("nan")}, "training.lr"),
        ({"lr": float("inf")}, "training.lr"),
        ({"min_lr": 1.0}, r"training.min_lr must be between 0 and training.lr \(0.0001\), got 1.0"),
        ({"weight_decay": -0.1}, "training.weight_decay"),
        ({"scope": " "}, "training.scope"),
    ],
)
def test_ranges_hold_however_the_configuration_is_made(values, message):
    with pytest.raises(UserError, match=message):
        TrainingConfig(**values)
    with pytest.raises(UserError, match=r"training\."):
        from_mapping(TrainingConfig, values, "training")


def test_assignments():
    parsed = parse_assignments(
        ["training.epochs=3", "training.lr=1e-3", "training.scope=norm", "text.templates=a=b.txt", "method.x=null", 'method.y="3"', "method.z=[1, 2]"]
    )
    assert parsed == {
        "training": {"epochs": 3, "lr": 1e-3, "scope": "norm"},
        "text": {"templates": "a=b.txt"},
        "method": {"x": None, "y": "3", "z": [1, 2]},
    }
    assert parse_assignments(["training.epochs=3", "training.epochs=4"]) == {"training": {"epochs": 4}}
    assert parse_assignments(["method.a="]) == {"method": {"a": ""}}


@pytest.mark.parametrize("bad", ["training.epochs", "epochs=3", "training.=3", "=3", ""])
def test_assignment_without_its_parts(bad):
    with pytest.raises(UserError, match=r"expected section\.key=value"):
        parse_assignments([bad])


def test_assignment_to_an_unknown_section():
    with pytest.raises(UserError, match=r"unknown section 'trainin'; did you mean training\.epochs\?"):
        parse_assignments(["trainin.epochs=3"])
    with pytest.raises(UserError, match="sections are: training, views, text, stage, method"):
        parse_assignments(["qqq.epochs=3"])


training = st.builds(
    TrainingConfig,
    epochs=st.integers(1, 10**6),
    batch_size=st.integers(1, 10**6),
    lr=st.floats(1e-6, 1e3),
    min_lr=st.floats(0, 1e-6),
    weight_decay=st.floats(0, 10),
    scope=st.sampled_from(["norm", "last-3-norm", "all"]),
    precision=st.sampled_from(["auto", "float32", "bfloat16"]),
    compile=st.sampled_from(["auto", "on", "off"]),
)
options = st.none() | st.builds(MicroClipConfig, crops=st.integers(1, 256), projection_lr_scale=st.none() | st.floats(0, 2), train_head=st.booleans())
runs = st.builds(
    RunConfig,
    verb=st.sampled_from(["zero-shot", "adapt", "predict"]),
    photos=st.text(min_size=1),
    method=st.just("microclip"),
    classes_file=st.none() | st.text(),
    descriptions_file=st.none() | st.text(),
    seed=st.integers(0, 2**63 - 1),
    training=training,
    text=st.builds(TextConfig, templates=st.none() | st.just("t.txt")),
    method_options=options,
)


@given(runs)
def test_round_trip_through_json(config):
    text = json_text(to_json(config)).encode("utf-8", "backslashreplace").decode()
    assert from_json(json.loads(text), "config.json") == config


@given(runs, runs)
def test_diff_is_empty_exactly_for_equal_configurations(a, b):
    assert diff(a, a) == []
    assert bool(diff(a, b)) == (a != b)


def test_diff_names_options_as_the_user_sets_them():
    a = RunConfig("adapt", "p", method="joint-gmm", method_options=find_method("joint-gmm").config_class(extra=("cls", "a.npy"), rounds=4))
    b = replace(a, training=TrainingConfig(epochs=3), method_options=replace(a.method_options, rounds=8), seed=1)
    assert diff(a, b) == ["seed: 0 -> 1", "training.epochs: 15 -> 3", "method.rounds: 4 -> 8"]
    other = diff(a, replace(a, method="microclip", method_options=MicroClipConfig()))
    assert {'method.extra: ["cls", "a.npy"] -> (absent)', 'method.query: (absent) -> "saliency"'} <= set(other)


def test_newer_version_is_refused_politely():
    document = {**to_json(RunConfig("adapt", "p")), "schema_version": 99, "finelens_version": "7.1", "future_option": 1}
    with pytest.raises(UserError, match=r"^out/config.json: written by a newer finelens \(7.1, format 99\).*upgrade"):
        from_json(document, "out/config.json")


@pytest.mark.parametrize("document", [None, [], {}, {"format": "else"}, {"verb": "adapt", "photos": "p"}])
def test_foreign_json_is_not_a_configuration(document):
    with pytest.raises(UserError, match="not the configuration of a finelens run"):
        from_json(document, "config.json")


@pytest.mark.parametrize("version", [None, "1", True, 0, 1.0])
def test_a_version_that_is_none(version):
    with pytest.raises(UserError, match="is not a version"):
        from_json({**to_json(RunConfig("adapt", "p")), "schema_version": version}, "config.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"epoch": 1}}, r"^c.json: unknown option training.epoch; did you mean training.epochs\?$"),
        ({"views": {"crop_lo": 1}}, r"did you mean views.crop_low\?"),
        ({"sed": 1}, r"unknown option sed; did you mean seed\?"),
        ({"seed": -1}, "seed must be between"),
        ({"verb": "adept"}, r"verb: expected one of .* did you mean 'adapt'\?"),
        ({"photos": ""}, "photos must be given"),
    ],
)
def test_edited_configuration_is_refused_with_its_file(change, message):
    with pytest.raises(UserError, match=message):
        from_json({**to_json(RunConfig("adapt", "p")), **change}, "c.json")


def test_the_module_does_not_import_torch():
    modules = "finelens.runs.config, finelens.runs.folder, finelens.storage.predictions, finelens.core.console"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
