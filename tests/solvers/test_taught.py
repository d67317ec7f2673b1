"""What answers teach: the parts by their equations, and the consensus of hints and label-free answer as a model that is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finelens.protocol import Hints
from finelens.solvers import Consensus
from finelens.solvers.columns import centred_views
from finelens.solvers.known import Known
from finelens.solvers.neighbours import top_neighbours
from finelens.solvers.ridge import ridge_head
from finelens.solvers.taught import SCALES, Taught, _in_own_basis, left_out, parts_left_out, spoken_for, steadied, teach
from tests.solvers.data import SCALE, cloud

X, W, Y = cloud([30] * 5, spread=0.2, tilt=0.6)
NEW, _, NEW_Y = cloud([20] * 5, spread=0.2, tilt=0.6)
ROWS = np.concatenate([(c == Y).nonzero()[0][:3] for c in range(5)])
HINTS = Hints(torch.tensor(ROWS), torch.tensor(Y[ROWS]))


def fitted(hints=HINTS, x=X, **options):
    return Consensus(**options).fit(x, prototypes=W, logit_scale=SCALE, hints=hints)


def test_a_ridge_with_counts_is_that_of_repeated_rows():
    rng = np.random.default_rng(1)
    x, target, times = torch.tensor(rng.normal(size=(20, 4))), torch.tensor(rng.dirichlet(np.ones(3), size=20)), torch.tensor([1, 3] * 10)
    head, _ = ridge_head(x.repeat_interleave(times, 0), target.repeat_interleave(times, 0), penalty=0.3, steps=20, chunk_size=7)
    # The sum over half as many rows weighs half as much against the penalty.
    found, bias = ridge_head(x, target, penalty=0.3 / 2, steps=20, chunk_size=7, counts=times / times.double().mean())
    np.testing.assert_allclose(found, head, atol=1e-10)
    np.testing.assert_allclose(bias, -(x * times[:, None] / 2).mean(0) @ head, atol=1e-10)


def test_answers_decide_where_texts_know_nothing():
    log_p = torch.full((len(X), 5), 0.2).double().log()
    looks = torch.tensor(X)
    taught = teach(looks, log_p, Known(HINTS.index, HINTS.label))
    assert (taught.logits(looks, log_p).argmax(1).numpy() == Y).mean() > 0.9
    assert (taught.logits(torch.tensor(NEW), log_p[: len(NEW)]).argmax(1).numpy() == NEW_Y).mean() > 0.9


def test_a_text_that_explains_the_answers_keeps_its_say():
    looks, known = torch.tensor(X), Known(HINTS.index, HINTS.label)
    right = torch.nn.functional.one_hot(torch.tensor(Y), 5).double() * 0.9 + 0.02
    wrong = right.roll(1, 1)
    weights = [float(teach(looks, p.log(), known).scales[2]) for p in (right, wrong)]
    assert weights[0] > 100 * weights[1]


def test_the_order_of_answers_does_not_matter():
    looks, log_p = torch.tensor(X), torch.tensor(X @ W.T * SCALE).log_softmax(1)
    turn = torch.arange(len(ROWS)).flip(0)
    one, other = (teach(looks, log_p, Known(HINTS.index[order], HINTS.label[order])) for order in (torch.arange(len(ROWS)), turn))
    assert torch.equal(one.head, other.head)


def test_what_is_left_out_is_not_learnt():
    log_p = torch.full((len(X), 5), 0.2).double().log()
    known = Known(HINTS.index, HINTS.label)
    assert (left_out(torch.tensor(X), log_p, known)[0] == known.labels).double().mean() > 0.8
    # Two answers of two classes: each is told from the other alone, so wrongly.
    pair = Known(known.rows[[0, 3]], known.labels[[0, 3]])
    assert left_out(torch.tensor(X), log_p, pair)[0].tolist() == pair.labels.flip(0).tolist()


def test_what_changes_without_an_answer_is_of_the_images_that_it_speaks_for():
    looks, log_p, known = torch.tensor(X), torch.tensor(X @ W.T).log_softmax(1), Known(HINTS.index[::2], HINTS.label[::2])
    taught = teach(looks, log_p, known)
    full, nearest = taught.logits(looks, log_p).argmax(1), (looks @ looks[known.rows].T).argmax(1)
    parts = list(parts_left_out(looks, log_p, known, taught=taught, chunk_size=7))
    for own, _, changed in parts:
        rest = torch.ones(len(known), dtype=torch.bool)
        rest[own] = False
        found = teach(looks, log_p, known.some(rest)).logits(looks, log_p).argmax(1)
        for answer, share in zip(own.tolist(), changed.tolist(), strict=True):
            spoken = nearest == answer
            spoken[known.rows] = False
            assert share == pytest.approx(float((found != full)[spoken].double().mean()) if spoken.any() else 0)
    assert any(changed.any() for *_, changed in parts)
    assert torch.equal(left_out(looks, log_p, known)[1][parts[0][0]], parts[0][2])


def test_what_was_named_at_one_look_is_left_out_together():
    log_p, looks = torch.full((len(X), 5), 0.2).double().log(), torch.tensor(X)
    group = torch.tensor((Y == 1).nonzero()[0][:6])
    rows = torch.cat([group, torch.tensor(ROWS)[torch.tensor(Y[ROWS]) != 1]])
    known = Known(rows, torch.tensor(Y)[rows], torch.cat([torch.full((6,), 50), torch.arange(len(rows) - 6)]))
    parts = [own.tolist() for own, *_ in parts_left_out(looks, log_p, known, folds=3)]
    assert sorted(i for part in parts for i in part) == list(range(len(rows)))
    assert [set(range(6)) <= set(part) for part in parts if set(range(6)) & set(part)] == [True]
    # Numbers are names: with one for each answer nothing changes.
    each = Known(known.rows, known.labels, torch.arange(len(rows)) * 7)
    found, same = left_out(looks, log_p, each), left_out(looks, log_p, Known(known.rows, known.labels))
    assert torch.equal(found[0], same[0])
    assert torch.equal(found[1], same[1])


def test_every_image_is_spoken_for_by_the_nearest_answer():
    looks = torch.eye(3).repeat(4, 1)[:10]
    assert spoken_for(looks, Known(torch.tensor([0, 2]), torch.tensor([0, 1])), chunk_size=3).tolist() == [7, 3]


def test_answers_help_on_new_images():
    right = {True: 0, False: 0}
    for seed in range(3):
        x, w, y = cloud([30] * 5, spread=0.2, tilt=2.0, seed=seed)
        rows = np.concatenate([(y == c).nonzero()[0][:2] for c in range(5)])
        for given in right:
            hints = Hints(torch.tensor(rows), torch.tensor(y[rows])) if given else None
            solver = Consensus().fit(x[:100], prototypes=w, logit_scale=SCALE, hints=hints)
            right[given] += (solver.predict(x[100:]) == y[100:]).sum()
    assert right[True] > right[False] + 30


def test_what_was_taught_is_kept_to_the_bit():
    solver = fitted()
    state = {name: tensor.clone() for name, tensor in solver.state().items()}
    again = Consensus().load_state(state, classes=5, features=X.shape[1])
    assert np.array_equal(again.predict_proba(NEW), solver.predict_proba(NEW))
    assert state["taught_head_"].shape == (X.shape[1], 5)


def test_hints_leave_the_label_free_part_alone():
    before, after = fitted(None).state(), fitted().state()
    for name, tensor in before.items():
        assert name.startswith("taught") or torch.equal(tensor, after[name]), name
    assert not before["taught_head_"].numel()


@pytest.mark.parametrize("bank", [10, 40])
def test_a_bank_stands_for_many_images(bank):
    assert (fitted(bank=bank).predict(NEW) == NEW_Y).mean() > 0.6


def test_the_first_view_alone_is_answered():
    z, _, _ = cloud([30] * 5, dim=9, spread=0.2)
    p = Consensus().fit([X, z], prototypes=W, logit_scale=SCALE, hints=HINTS).predict_proba(NEW)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-6)


def test_few_answers_leave_a_good_text_its_say():
    looks, truth = torch.tensor(X), torch.tensor(Y)
    log_p = (torch.nn.functional.one_hot(truth, 5).double() * 0.9 + 0.02).log()
    few, many = (Known(rows, truth[rows]) for rows in (torch.arange(0, 150, 30), torch.arange(0, 150, 2)))
    assert float(teach(looks, log_p, few).scales[2]) == 8
    assert float(teach(looks, log_p, many).scales[2]) == pytest.approx((32 / 75) ** 3)
    assert float(teach(looks, log_p, few, heard=False).scales[2]) == 0
    # Of two classes half of the answers are right by chance.
    pair = torch.full((len(X), 2), 0.5).double().log()
    assert float(teach(looks, pair, Known(few.rows, few.labels.clamp_max(1))).scales[2]) == 0


def test_tested_heads_overrule_the_expected_weight():
    looks, truth = torch.tensor(X), torch.tensor(Y)
    rows = torch.arange(0, 150, 8)
    # Right on three classes of five: well believed by its accuracy, but heads that had not learnt the answers know more.
    half = torch.where(truth >= 3, (truth + 1) % 5, truth)
    weights = []
    for named in (truth, half):
        log_p = (torch.nn.functional.one_hot(named, 5).double() * 0.9 + 0.02).log()
        weights.append(float(teach(looks, log_p, Known(rows, truth[rows])).scales[2]))
    assert weights[0] == pytest.approx((32 / 19) ** 3)
    assert weights[1] < 1


def test_looks_lean_on_the_nearest_two_in_every_view():
    x = torch.nn.functional.normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=1)
    looks = centred_views(torch.cat([x[:, :3], x[:, 3:]], 1), torch.zeros(5), [3, 2])
    near = torch.tensor([[1, 2, 5], [0, 3, 5], [4, 0, 5], [1, 4, 5], [2, 3, 5], [0, 1, 2]])
    found = steadied(looks, looks, near, [3, 2])
    leant = looks + (looks[near[:, 0]] + looks[near[:, 1]]) / 4
    for own, view in zip(found.split([3, 2], 1), leant.split([3, 2], 1), strict=True):
        torch.testing.assert_close(own, torch.nn.functional.normalize(view, dim=1) / 2**0.5)
    torch.testing.assert_close(steadied(looks[:, :3], looks, near, [3, 2]), found[:, :3])
    assert torch.equal(steadied(looks, looks, near[:, :0], [3, 2]), looks)


def test_new_images_are_answered_as_lessons_were_learnt():
    # Neighbours by all views, whatever the label-free part looks for neighbours in.
    z, new_z = (cloud([n] * 5, dim=9, spread=0.2)[0] for n in (30, 20))
    views, new, widths = [X, z], [NEW, new_z], [X.shape[1], 9]
    solver, free = fitted(x=views), fitted(None, x=views)
    looks, seen = (centred_views(part, solver.centre_, widths) for part in (torch.cat(list(map(torch.as_tensor, new)), 1), solver.bank_.double()))
    steady = steadied(looks, seen, top_neighbours(looks, seen, 2, chunk_size=64)[1], widths)
    taught = Taught(solver.taught_head_, solver.taught_bias_, solver.taught_scales_[:SCALES])
    logits = taught.logits(steady, torch.as_tensor(free.predict_log_proba(new)))
    expected = (2 * float(solver.sizes_[-1]) * logits).softmax(1)
    np.testing.assert_allclose(solver.predict_proba(new), expected, atol=1e-4)


def test_a_model_of_before_sees_new_images_alone():
    """Its head learnt from images that leaned on nothing, and its scales do not say how much they do."""
    solver, free = fitted(), fitted(None)
    solver.taught_scales_ = solver.taught_scales_[:SCALES]
    looks = centred_views(torch.as_tensor(NEW), solver.centre_, [X.shape[1]])
    taught = Taught(solver.taught_head_, solver.taught_bias_, solver.taught_scales_)
    logits = taught.logits(looks, torch.as_tensor(free.predict_log_proba(NEW)))
    expected = (2 * float(solver.sizes_[-1]) * logits).softmax(1)
    np.testing.assert_allclose(solver.predict_proba(NEW), expected, atol=1e-5)


def test_features_in_a_basis_of_their_own_teach_the_same():
    x = torch.nn.functional.normalize(torch.randn(30, 80, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=1)
    short, log_p, known = _in_own_basis(x), torch.full((30, 3), 1 / 3).double().log(), Known(torch.arange(6), torch.arange(6) % 3)
    assert short.shape == (30, 30)
    torch.testing.assert_close(teach(short, log_p, known).logits(short, log_p), teach(x, log_p, known).logits(x, log_p))
    assert _in_own_basis(x[:, :20]).shape == (30, 20)
