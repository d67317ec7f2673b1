"""All rows that a command asks for, each computed once by one process and appended to the results file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finelens.bench.rows.context import Context, Start
from finelens.bench.rows.health import Health
from finelens.bench.rows.measures import Source, measure, measure_none, measure_several, stated
from finelens.bench.rows.origin import DEVICE, command, versions
from finelens.bench.rows.protocols import PartTruth, Protocol, SkippedError, Split, make_split, refuse_several
from finelens.bench.rows.results import Key, Result, ResultsFile, pack, run_seconds
from finelens.bench.rows.runner import answer, refuse, zero_shot
from finelens.bench.sets.data import DataSet
from finelens.bench.sets.sealed import RuleBroken
from finelens.core.console import Console
from finelens.core.options import nearest, to_plain
from finelens.errors import UserError
from finelens.methods.registry import Method, all_methods, find_method
from finelens.runs.config import parse_assignments

# Most images that are adapted to, and what training methods change.
PROFILES: dict[str, tuple[int | None, dict[str, dict[str, Any]]]] = {
    "small": (300, {"training": {"epochs": 5}}),
    "medium": (500, {}),
    "full": (None, {}),
}
GROUPS: dict[str, Callable[[Method], bool]] = {
    "all": lambda method: True,
    "training-free": lambda method: not method.trains,
    "features": lambda method: not method.needs_pixels,
    "training": lambda method: method.trains,
}


@dataclass(frozen=True)
class Plan:
    """What a command asks for.

    Attributes:
        protocols: Protocols.
        methods: Names of methods.
        seeds: Seeds.
        backbone: As for ``--backbone``.
        profile: Of :data:`PROFILES`.
        assignments: Arguments of ``--set``.
        device: Where the backbone runs.
        others: Read each data set whose images a protocol mixes in.
    """

    protocols: tuple[Protocol, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    backbone: str = "embedded"
    profile: str = "full"
    assignments: tuple[str, ...] = ()
    device: str = DEVICE
    others: Mapping[str, Callable[[], DataSet]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if "text" in parse_assignments(self.assignments):
            raise UserError("bench takes the texts of each data set; leave out --set text.KEY=VALUE")

    def keys(self, data: str) -> Iterator[tuple[Key, Protocol]]:
        """Every row about a data set, in the order of the file."""
        options = tuple(sorted(self.assignments))
        for protocol in self.protocols:
            for seed in self.seeds:
                for method in self.methods:
                    yield Key(data, protocol.name, method, self.backbone, seed, self.profile, options), protocol


def choose_methods(texts: Sequence[str]) -> tuple[str, ...]:
    """Names of methods from names and groups, in the order of the registry.

    Raises:
        UserError: A name is neither.
    """
    wanted: set[str] = set()
    for text in texts:
        if text in GROUPS:
            wanted |= {method.name for method in all_methods() if GROUPS[text](method)}
        elif text in {method.name for method in all_methods()}:
            wanted.add(text)
        else:
            near = nearest(text, [*GROUPS, *(method.name for method in all_methods())])
            raise UserError(
                f"unknown method {text!r}; " + (f"did you mean {near}?" if near else f"groups are {', '.join(GROUPS)}; see finelens methods")
            )
    return tuple(method.name for method in all_methods() if method.name in wanted)


def run(plan: Plan, data_sets: Sequence[Callable[[], DataSet]], names: Sequence[str], out: ResultsFile, console: Console) -> int:
    """Compute what is missing.

    Args:
        plan: What to compute.
        data_sets: Read each data set when its turn comes.
        names: Their names.
        out: Where results go.
        console: Progress.

    Returns:
        Number of rows that another process was computing.
    """
    start: Start | None = None
    busy = 0
    done = {row.key: row for row in out.read()}
    missing = {name: [pair for pair in plan.keys(name) if pair[0] not in done] for name in names}
    _say_kept([done[key] for name in names for key, _ in plan.keys(name) if key in done], console)
    with console.progress(sum(len(rows) for rows in missing.values()), "benchmark", "row") as bar:
        for name, read in zip(names, data_sets, strict=True):
            if not missing[name]:
                continue
            start = start or Start(plan.backbone, plan.device)
            context = Context(read(), start, console)
            for line in context.data.left_out:
                console.warn(f"{name}: left out: {line}")
            for key, protocol in missing[name]:
                with out.claim(key) as mine:
                    if not mine:
                        busy += 1
                    elif key not in out.keys():  # noqa: SIM118
                        result = compute(mixed(context, protocol, plan), key, protocol, plan)
                        out.append(result)
                        if result.status == "broke_a_rule":
                            # Nothing that the method may have touched is used again.
                            start = Start(plan.backbone, plan.device)
                            context = Context(context.data, start, console)
                        console.say(describe(result))
                bar.update(1)
    out.tidy()
    return busy


def mixed(context: Context, protocol: Protocol, plan: Plan) -> Context:
    """The context of a protocol: the set itself, or with the images of another."""
    if not protocol.other:
        return context
    return context.mixed_with(Context(plan.others[protocol.other](), context.start, context.console))


def _say_kept(rows: Sequence[Result], console: Console) -> None:
    """A file may hold rows of several states of the code; whoever goes on with it should know."""
    now = {name: versions(name) for name in {row.key.method for row in rows}}
    other = sum(row.versions != now[row.key.method] for row in rows)
    if other:
        console.warn(
            f"{other} of the {len(rows)} rows that are there already were computed by other code, versions or threads; "
            "they are kept, and computed again if their lines are deleted"
        )


def compute(context: Context, key: Key, protocol: Protocol, plan: Plan) -> Result:
    """One row; what goes wrong with a method is a row as well."""
    limit, options = _options(key, plan)
    config = context.config(key.method, key.seed, options)
    about: dict[str, Any] = {
        "key": key,
        "config": to_plain(config),
        "versions": versions(key.method),
        "source": context.source,
        "command": command(key, plan.device),
    }
    try:
        refuse(find_method(key.method), protocol)
        if context.data.test.labels.several:
            refuse_several(protocol)
        if protocol.other == key.data:
            raise SkippedError("the set is mixed in with itself")
        # The training part is not even decoded where nothing is adapted to it; some sets have none.
        train = (
            context.train.truth() if protocol.fit_part == "train" and len(context.data.train.labels) else PartTruth(np.zeros(0, dtype=np.int64), [])
        )
        split = make_split(protocol, train, context.test.truth(), context.data.class_names, key.seed, limit)
    except SkippedError as reason:
        return Result(status="skipped", reason=str(reason), **about)
    # Texts are shared by all rows: they are no part of a row's time.
    context.heads(split.names)
    about["split"] = _describe_split(context, protocol, split)
    try:
        answers = answer(context, config, protocol, split)
    except SkippedError as reason:
        return Result(status="skipped", reason=str(reason), **about)
    except RuleBroken as error:
        return Result(status="broke_a_rule", reason=str(error), **about)
    except (UserError, RuntimeError, ValueError, ArithmeticError, NotImplementedError) as error:
        return Result(status="failed", reason=" ".join(f"{type(error).__name__}: {error}".split()), **about)
    known, health = split.known, answers.health
    temperature = None if health is None else health.temperature
    said = {} if health is None else health.to_json()
    logits, first = ({name: values[known] for name, values in found.items()} for found in (answers.logits, zero_shot(context, split)))
    if context.data.test.labels.several:
        measures = measure_several(split.truth, logits, first)
        measures |= stated(key.data, measures)
        return Result(status="ok", measures=measures, cost=answers.cost, timing=answers.timing, health=said, **about)
    source = _source(health, protocol, split, context.pool(protocol.fit_part).truth().labels)
    measures, correct = measure(split.truth[known], logits, first, split.names, temperature, source)
    measures |= measure_none(answers.none_of_these, ~known) | stated(key.data, measures)
    # Hits stand in the order of rows, whatever the order of a stream.
    packed = pack(correct[np.argsort(split.test[known])])
    return Result(status="ok", measures=measures, cost=answers.cost, timing=answers.timing, health=said, correct=packed, **about)


def _source(health: Health | None, protocol: Protocol, split: Split, labels: np.ndarray) -> Source | None:
    """The images of the fit but for the hinted ones, with labels that are read when all is answered; empty where the test images are those."""
    if health is None:
        return None
    if protocol.setting != "inductive":
        return Source(np.zeros(0), None, health.answered)
    asked = np.setdiff1d(np.arange(len(split.fit)), np.array(split.hinted, dtype=np.int64))
    p, truth = health.probabilities.numpy()[asked], labels[split.fit][asked]
    known = protocol.change != "unknown" and bool((truth >= 0).all())
    return Source(p.max(axis=1), p.argmax(axis=1) == truth if known else None, health.answered)


def _options(key: Key, plan: Plan) -> tuple[int | None, dict[str, dict[str, Any]]]:
    limit, given = PROFILES[key.profile]
    merged = dict(given) if find_method(key.method).trains else {}
    for section, values in parse_assignments(plan.assignments).items():
        merged[section] = {**merged.get(section, {}), **values}
    return limit, merged


def _describe_split(context: Context, protocol: Protocol, split: Split) -> dict[str, Any]:
    fit = [context.pool(protocol.fit_part).row_digests[row] for row in split.fit]
    test = [context.test.row_digests[row] for row in split.test]
    known = [digest for digest, there in zip(test, split.known, strict=True) if there]
    unread = sum(len(pool.unread) for pool in {context.pool(protocol.fit_part), context.test})
    hints = [f"{position} {label}" for position, label in zip(split.hinted, split.hint_labels, strict=True)]
    return {
        "fit": len(fit),
        "test": len(known),
        **({"unknown": len(test) - len(known)} if len(test) > len(known) else {}),
        "classes": len(split.names),
        "occurring": split.occurring,
        "labelled": len(hints),
        "unread": unread,
        "checksum": _sha256([*fit, ";", *hints, ";", *test, ";", *split.names]),
        # Rows with the same test images can be compared image by image.
        "test_checksum": _sha256(sorted(known)),
    }


def _sha256(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def describe(result: Result) -> str:
    """A row as one line for a person."""
    key = result.key
    head = f"{key.data:11} {key.protocol:14} {key.method:12} seed {key.seed}"
    if result.status != "ok":
        return f"{head}  {result.status}: {result.reason}"
    m, untrained = result.measures, "  nothing was trained" if "untrained" in result.health else ""
    if "accuracy" not in m:
        low, high = m["mean_average_precision_difference_interval"]
        return (
            f"{head}  mean average precision {100 * m['mean_average_precision']:.1f} (zero-shot {100 * m['zero_shot_mean_average_precision']:.1f}, "
            f"descriptions {100 * m['description_ensemble_mean_average_precision']:.1f})  {100 * m['mean_average_precision_difference']:+.1f} "
            f"[{100 * low:+.1f}, {100 * high:+.1f}] against zero-shot  {_time(result)}{untrained}"
        )
    low, high = m["difference_interval"]
    return (
        f"{head}  {100 * m['accuracy']:.1f} (zero-shot {100 * m['zero_shot_accuracy']:.1f}, descriptions "
        f"{100 * m['description_ensemble_accuracy']:.1f})  {100 * m['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] against zero-shot  "
        f"{_time(result)}{untrained}"
    )


def _time(result: Result) -> str:
    """The wall time of a row; where methods share the encoded photographs, with and without that."""
    whole = f"{run_seconds(result):.1f} s with encoding"
    return f"{whole}, {result.timing['seconds']:.1f} s without" if "seconds_per_shared_forward" in result.timing else whole
