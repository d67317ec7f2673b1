from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest

from finelens.bench.rows.protocols import HALF, STRANGER, PartTruth, Protocol, SkippedError, make_split, name_rank, parse_protocol
from finelens.errors import UserError

NAMES = tuple(f"class {c}" for c in range(20))


def truth(per_class: int, classes: int = 20, offset: int = 0) -> PartTruth:
    labels = np.array([(7 * i + offset) % classes for i in range(per_class * classes)])
    return PartTruth(labels, [name_rank(f"{offset}/{i}") for i in range(len(labels))])


TRAIN, TEST = truth(40), truth(5, offset=3)


def split(text: str, seed: int = 0, limit: int | None = None, train: PartTruth = TRAIN, test: PartTruth = TEST):
    return make_split(parse_protocol(text), train, test, NAMES, seed, limit)


@pytest.mark.parametrize(
    ("text", "protocol"),
    [
        ("inductive", Protocol("inductive", "inductive")),
        (" online ", Protocol("online", "online")),
        ("longtail-10", Protocol("longtail-10", "inductive", "longtail", 10)),
        ("partial-half", Protocol("partial-half", "inductive", "partial", HALF)),
        ("transductive+partial-5", Protocol("transductive+partial-5", "transductive", "partial", 5)),
        ("balanced", Protocol("balanced", "inductive", "balanced")),
        ("unknown-half", Protocol("unknown-half", "inductive", "unknown", HALF)),
        ("unknown-none", Protocol("unknown-none", "inductive", "unknown")),
        ("transductive+unknown-with-dtd10", Protocol("transductive+unknown-with-dtd10", "transductive", "unknown", other="dtd10")),
    ],
)
def test_names_of_protocols(text, protocol):
    assert parse_protocol(text) == protocol


WRONG = [
    "",
    "longtail",
    "longtail-0",
    "partial--5",
    "inductive-3",
    "few-half",
    "balanced-2",
    "online+",
    "+few-1",
    "tail-10",
    "few-²",
    "transductive+fewshot-1",
    "unknown",
    "unknown-3",
    "unknown-with-",
    "online+unknown-half",
]


@pytest.mark.parametrize("text", WRONG)
def test_other_names_are_refused(text):
    with pytest.raises(UserError, match="unknown protocol"):
        parse_protocol(text)


def test_a_misspelt_protocol_names_the_nearest():
    with pytest.raises(UserError, match="did you mean transductive"):
        parse_protocol("transductiv")


def test_inductive_takes_every_image_of_both_parts():
    found = split("inductive")
    assert found.fit.tolist() == list(range(800))
    assert found.test.tolist() == list(range(100))
    assert found.names == NAMES


def test_transductive_adapts_to_what_it_is_asked_about():
    found = split("transductive", limit=30)
    assert found.fit.tolist() == found.test.tolist()
    assert len(found.fit) == 30


def test_online_is_a_seeded_order_of_the_test_part():
    first, again, other = split("online"), split("online"), split("online", seed=1)
    assert first.test.tolist() == again.test.tolist()
    assert first.test.tolist() != other.test.tolist()
    assert sorted(first.test.tolist()) == sorted(other.test.tolist()) == list(range(100))


@pytest.mark.parametrize("ratio", [10, 20, 50])
def test_a_long_tail_falls_exponentially_over_classes_in_a_drawn_order(ratio):
    sizes = []
    for seed in range(3):
        found = split(f"longtail-{ratio}", seed)
        counts = Counter(TRAIN.labels[found.fit].tolist())
        expected = [max(1, round(40 * ratio ** (-k / 19))) for k in range(20)]
        assert sorted(counts.values(), reverse=True) == sorted(expected, reverse=True)
        assert max(counts.values()) == 40
        assert min(counts.values()) == max(1, round(40 / ratio))
        assert found.test.tolist() == list(range(100))
        sizes.append([counts[c] for c in range(20)])
    assert sizes[0] != sizes[1] != sizes[2]


def test_the_tail_of_a_transductive_run_is_that_of_the_test_part():
    found = split("transductive+longtail-5")
    counts = Counter(TEST.labels[found.test].tolist())
    assert max(counts.values()) == 5
    assert min(counts.values()) == 1
    assert found.fit.tolist() == found.test.tolist()


@pytest.mark.parametrize(("text", "count"), [("partial-5", 5), ("partial-half", 10), ("transductive+partial-3", 3)])
def test_few_classes_occur_but_all_are_named(text, count):
    found = split(text)
    part = TRAIN if "+" not in text else TEST
    classes = set(part.labels[found.fit].tolist())
    assert len(classes) == count == found.occurring
    assert set(TEST.labels[found.test].tolist()) == classes
    assert found.names == NAMES
    # Every image of those classes is there.
    assert len(found.fit) == np.isin(part.labels, list(classes)).sum()


def test_few_images_and_balance():
    few = split("few-4")
    assert set(Counter(TRAIN.labels[few.fit].tolist()).values()) == {4}
    uneven = PartTruth(np.repeat(np.arange(20), np.arange(3, 23)), [name_rank(str(i)) for i in range(250)])
    even = split("balanced", train=uneven)
    assert set(Counter(uneven.labels[even.fit].tolist()).values()) == {3}
    assert split("few-16", train=uneven).fit.tolist() == sorted(split("few-16", train=uneven).fit.tolist())


@pytest.mark.parametrize("limit", [None, 100, 50])
def test_few_shots_are_labelled_images_of_the_training_part(limit):
    found = split("fewshot-4", limit=limit)
    assert len(found.fit) == (limit or 800 if limit != 50 else 80)
    assert Counter(found.hint_labels) == dict.fromkeys(range(20), 4)
    assert TRAIN.labels[found.fit[list(found.hinted)]].tolist() == list(found.hint_labels)
    assert found.fit.tolist() == sorted(set(found.fit.tolist()))
    assert found.test.tolist() == list(range(100))
    assert split("few-4").hinted == ()
    other = split("fewshot-4", 1, limit)
    assert other.fit[list(other.hinted)].tolist() != found.fit[list(found.hinted)].tolist()


def test_noise_adds_names_that_no_image_has():
    found, other = split("noise-25"), split("noise-25", seed=1)
    assert len(found.names) == 45
    assert found.names[:20] == NAMES
    assert len(set(found.names)) == 45
    assert found.names != other.names
    assert found.occurring == 20


def test_noise_never_adds_a_name_of_the_set():
    taken = make_split(parse_protocol("noise-200"), TRAIN, TEST, NAMES, 0, None).names[20:]
    names = tuple(name.upper() for name in taken[:20])
    again = make_split(parse_protocol("noise-200"), TRAIN, TEST, names, 0, None).names[20:]
    assert not {name.lower() for name in names} & {name.lower() for name in again}


def test_a_limit_ignores_labels_and_order():
    found = split("inductive", limit=100)
    assert len(found.fit) == 100
    moved = PartTruth(np.zeros(800, dtype=np.int64), TRAIN.ranks)
    assert split("inductive", limit=100, train=moved).fit.tolist() == found.fit.tolist()
    back = PartTruth(TRAIN.labels[::-1], TRAIN.ranks[::-1])
    assert sorted(799 - split("inductive", limit=100, train=back).fit) == found.fit.tolist()


UNEVEN = PartTruth(np.repeat(np.arange(20), np.arange(3, 23)), [name_rank(f"uneven/{i}") for i in range(250)])


@pytest.mark.parametrize(
    ("text", "limit", "each"),
    [
        ("few-16", 300, 15),  # 20 x 16 = 320
        ("few-16", 320, 16),
        ("few-4", 79, 3),
        ("balanced", 300, 15),
        ("balanced", 20, 1),
        ("transductive+balanced", 60, 3),
        ("transductive+few-4", 59, 2),
        # One of each class is the least, although it is more than the limit.
        ("few-16", 19, 1),
        ("balanced", 1, 1),
    ],
)
def test_a_limit_leaves_equally_many_of_each_class(text, limit, each):
    found = split(text, limit=limit)
    part = TEST if found.fit.tolist() == found.test.tolist() else TRAIN
    assert Counter(part.labels[found.fit].tolist()) == dict.fromkeys(range(20), each)
    # The rest of the draw is cut, no other image comes in, and the profile's order says which.
    drawn = split(text).fit
    assert set(found.fit) <= set(drawn)
    for c in range(20):
        own = sorted((row for row in drawn if part.labels[row] == c), key=lambda row: part.ranks[row])
        assert set(own[:each]) <= set(found.fit)
    assert found.fit.tolist() == sorted(found.fit.tolist())
    assert found.fit.tolist() == split(text, limit=limit).fit.tolist()


def test_a_class_with_few_images_keeps_them_and_leaves_room_for_the_others():
    """Classes of 3, 4, 5 ... images: 3 + 4 + 18 x 5 = 97 keeps to the limit, 3 + 4 + 5 + 17 x 6 = 114 does not."""
    found = split("few-16", train=UNEVEN, limit=100)
    assert sorted(Counter(UNEVEN.labels[found.fit].tolist()).values()) == [3, 4, *[5] * 18]
    # Classes without an image are none of those that must keep one.
    half = PartTruth(np.repeat(np.arange(0, 20, 2), 8), [name_rank(str(i)) for i in range(80)])
    assert set(Counter(half.labels[split("few-4", train=half, limit=20).fit].tolist()).values()) == {2}


@pytest.mark.parametrize(
    ("text", "checksum"),
    [
        ("inductive", "15f962e514c60597"),
        ("transductive", "953f3f6f71ef2774"),
        ("online", "10e17efdca437e4a"),
        ("longtail-10", "8841ac1bef9465d5"),
        ("partial-5", "52a1e70859834f34"),
        ("partial-half", "101ace7418e3c888"),
        ("fewshot-1", "4c68065581cb897d"),
        ("noise-25", "15f962e514c60597"),
        ("transductive+longtail-10", "03afeda63d00e4dd"),
        ("transductive+partial-5", "5b1fd4477fa26657"),
    ],
)
def test_what_other_protocols_take_under_a_limit_never_changes(text, checksum):
    """Stored rows rest on these splits; the checksums are those of before ``balanced`` and ``few-K`` had a cut of their own."""
    found = split(text, 1, 60, train=UNEVEN)
    rows = " ".join(map(str, [*found.fit, -1, *found.test]))
    assert hashlib.sha256(rows.encode()).hexdigest()[:16] == checksum


@pytest.mark.parametrize(("text", "checksum"), [("few-4", "a23a68e1e48faacc"), ("few-16", "0593f796bfc11eed"), ("balanced", "8a5c7d2899a33f2f")])
@pytest.mark.parametrize("limit", [None, 1000])
def test_what_fits_the_limit_is_not_cut(text, checksum, limit):
    found = split(text, 1, limit, train=UNEVEN)
    rows = " ".join(map(str, [*found.fit, -1, *found.test]))
    assert hashlib.sha256(rows.encode()).hexdigest()[:16] == checksum


def test_what_cannot_be_split_says_why():
    with pytest.raises(SkippedError, match="only 20 classes"):
        split("partial-25")
    unlabelled = PartTruth(np.full(800, -1), TRAIN.ranks)
    with pytest.raises(SkippedError, match="not known"):
        split("longtail-10", train=unlabelled)
    assert len(split("inductive", train=unlabelled).fit) == 800
    with pytest.raises(SkippedError, match="extra names"):
        split("noise-100000")


def test_test_images_without_a_class_are_not_asked_about():
    labels = TEST.labels.copy()
    labels[10:20] = -1
    assert len(split("inductive", test=PartTruth(labels, TEST.ranks)).test) == 90


def test_half_of_the_classes_are_left_out_of_the_list_and_their_images_stay():
    found = split("unknown-half", seed=3)
    assert len(found.fit) == 800
    assert len(found.test) == 100
    assert len(found.names) == found.occurring == 10
    for row, position in zip(found.test.tolist(), found.truth.tolist(), strict=True):
        name = NAMES[TEST.labels[row]]
        assert found.names[position] == name if position >= 0 else name not in found.names
    assert found.names == tuple(sorted(found.names, key=NAMES.index))
    assert split("unknown-half", seed=4).names != found.names
    whole = split("unknown-none")
    assert whole.names == NAMES
    assert (whole.truth == TEST.labels).all()


def test_images_of_another_set_are_half_as_many_and_of_no_class():
    def with_others(part: PartTruth, count: int) -> PartTruth:
        labels = np.concatenate([part.labels, np.full(count, STRANGER)])
        return PartTruth(labels, [name_rank(str(i)) for i in range(len(labels))])

    train, test = with_others(TRAIN, 1000), with_others(TEST, 20)
    found = split("unknown-with-other", train=train, test=test)
    assert (found.fit < 800).sum() == 800
    assert (found.fit >= 800).sum() == 400
    # No more than there are.
    assert (found.truth == -1).sum() == 20
    assert (found.truth[:100] == TEST.labels).all()
    assert found.names == NAMES
    again = split("unknown-with-other", seed=1, train=train, test=test)
    assert found.fit.tolist() != again.fit.tolist()
    same = split("transductive+unknown-with-other", train=train, test=test)
    assert same.fit.tolist() == same.test.tolist()
