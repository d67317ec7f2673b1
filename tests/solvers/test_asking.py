"""Whom to ask: one image a cluster, large clusters first, near-copies once, and no cluster twice while another has no answer."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from finelens.solvers.asking import ask

NOBODY = torch.zeros(0, dtype=torch.int64)
SIZES = [40, 25, 15, 8]


def clusters(spread: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows (N, D) around four directions, and the cluster of each."""
    draw = torch.Generator().manual_seed(3)
    label = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))[torch.randperm(sum(SIZES), generator=draw)]
    return F.normalize(torch.eye(16)[label] + spread * torch.randn(len(label), 16, generator=draw), dim=1), label


def asked(x, answered=NOBODY, n=4, doubt=None, **options):
    return ask(x, torch.full((len(x),), 0.5) if doubt is None else doubt, answered, n, classes=4, **options)


def test_one_image_of_each_cluster_is_asked_and_the_largest_first():
    x, label = clusters()
    found = asked(x)
    assert label[found.rows].tolist() == [0, 1, 2, 3]
    assert found.speaks_for.tolist() == SIZES


def test_the_questions_are_the_middles_of_what_they_speak_for():
    x, label = clusters()
    for row in asked(x, neighbours=0).rows.tolist():
        own = x[label == label[row]]
        assert float((own @ x[row]).mean()) >= float((own @ own.T).mean(1).max()) - 1e-6


def test_clusters_with_an_answer_come_last():
    x, label = clusters()
    first = (label == 0).nonzero()[:1, 0]
    found = asked(x, first, 3)
    assert set(label[found.rows].tolist()) == {1, 2, 3}
    assert first.item() not in found.rows.tolist()


def test_near_copies_are_one_question():
    x, _ = clusters()
    twice = torch.cat([x, x])
    found = asked(twice, n=200, copy=0.9999)
    assert sorted((found.rows % len(x)).tolist()) == list(range(len(x)))
    answered = found.rows[:5]
    again = asked(twice, answered, n=200, copy=0.9999)
    assert not set((again.rows % len(x)).tolist()) & set((answered % len(x)).tolist())


def test_doubt_counts_as_answers_grow():
    x, label = clusters()
    answered = torch.cat([(label == c).nonzero()[:6, 0] for c in range(4)])

    def asked_of_last(doubt):
        return int((label[asked(x, answered, 4, doubt).rows] == 3).sum())

    assert asked_of_last(torch.where(label == 3, 1.0, 0.01)) > asked_of_last(torch.where(label == 3, 0.01, 1.0))


def test_many_images_are_represented_by_a_bank():
    x, label = clusters()
    many = x.repeat_interleave(20, 0)
    found = asked(many, n=4, bank=100, copy=0.9999)
    assert set(label[found.rows // 20].tolist()) == {0, 1, 2, 3}
    assert abs(float(found.speaks_for.sum()) - len(many)) < 1e-6
    answered = torch.tensor([1, 33])
    assert not set(asked(many, answered, bank=100).rows.tolist()) & {1, 33}


def test_the_same_question_has_the_same_answer():
    x, _ = clusters(0.5)
    assert torch.equal(asked(x, n=10).rows, asked(x, n=10).rows)


def test_few_images_are_all_asked():
    x, _ = clusters()
    assert sorted(asked(x[:3], n=9, copy=1.1).rows.tolist()) == [0, 1, 2]
    assert asked(x[:1], n=9).rows.tolist() == [0]
    assert asked(x[:1], torch.tensor([0]), n=9).rows.tolist() == []


def test_greedy_places_are_those_of_the_whole_search():
    x, _ = clusters(0.4)
    found = asked(x, n=12, neighbours=0, rounds=0, copy=1.1).rows
    likeness, chosen, best = x @ x.T, [], torch.full((len(x),), -1.0)
    for _ in range(12):
        added = (likeness - best).clamp_min(0).sum(1)
        chosen.append(int(added.argmax()))
        best = torch.maximum(best, likeness[chosen[-1]])
    assert sorted(found.tolist()) == sorted(chosen)


def test_moving_only_gains():
    x, _ = clusters()

    def value(rows):
        return float((x @ x[rows].T).amax(1).sum())

    start, moved = (asked(x, n=4, neighbours=0, rounds=rounds).rows for rounds in (0, 10))
    assert not torch.equal(start.sort().values, moved.sort().values)
    assert value(moved) > value(start)
