"""Fits by passes answer as fits in memory do, with counted passes and no matrix of all posteriors."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from finelens.errors import UserError
from finelens.protocol import Hints, Rows
from finelens.solvers import (
    TDA,
    Consensus,
    Gda,
    GdaEm,
    InMap,
    JointGmm,
    OnlineGda,
    OnZeta,
    Pta,
    SinkhornOt,
    StatA,
    TipAdapter,
    TipAdapterF,
    TransClip,
    certified,
    rows,
    settling_passes,
)
from finelens.solvers.known import Known
from finelens.solvers.neighbours import top_neighbours
from finelens.solvers.rows import CHUNK, ChangedRows, FitRows, Moments, RowsBeside, Sums, TensorRows, TopRows, linear, mass_of
from finelens.solvers.sampled_balance import balanced
from finelens.solvers.settling_passes import near_rows
from finelens.solvers.sinkhorn import balance
from finelens.solvers.transclip import confident_means
from tests.solvers.test_many_rows import Work, clusters

SCALE = 30.0
NOTHING = torch.zeros(0, dtype=torch.int64)
# Solvers, and the passes that a fit may take.
FITS = {
    "consensus": (Consensus, 32),
    "joint-gmm": (JointGmm, 12),
    "joint-gmm, even": (lambda: JointGmm(prior="uniform", rounds=5), 9),
    "joint-gmm, estimated": (lambda: JointGmm(prior="estimated", rounds=3), 10),
    "ot": (SinkhornOt, 6),
    "stata": (StatA, 13),
    "transclip": (TransClip, 13),
    "inmap": (lambda: InMap(max_iter=10), 24),
    "gda-em": (lambda: GdaEm(max_iter=4, tol=0.0), 9),
    "tip-adapter": (TipAdapter, 1),
    "tip-adapter-f": (lambda: TipAdapterF(epochs=1), 1),
}


@pytest.fixture(autouse=True)
def _small_sample(monkeypatch):
    monkeypatch.setattr(rows, "SAMPLE", 1500)


def uneven(n: int, classes: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Soft clusters of which the last ones are rare."""
    x, w = clusters(n, classes, width)
    kept = torch.rand(n, generator=torch.Generator().manual_seed(1)) < 0.4 + 0.6 * ((x @ w.T).argmax(1) < classes // 2)
    return x[kept], w


class Largest(TorchDispatchMode):
    """The most numbers that one tensor had."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for one in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(one, torch.Tensor) and one.layout is torch.strided:
                self.numbers = max(self.numbers, one.untyped_storage().nbytes() // one.element_size())
        return made


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("hinted", [0, 90])
def test_the_answers_are_those_of_a_fit_in_memory(name, hinted):
    new, most = FITS[name]
    x, w = uneven(9000, 24, 48)
    hints = Hints(torch.arange(hinted), torch.arange(hinted) % 25 - 1) if hinted else None
    memory, passes = new(), new()
    memory.fit(x, prototypes=w, logit_scale=SCALE, hints=hints)
    read: list[FitRows] = []
    passes._fit_passes = lambda given, *further: (read.append(given), type(passes)._fit_passes(passes, given, *further))
    passes.fit(TensorRows(x), prototypes=w, logit_scale=SCALE, hints=hints)
    mine, other = passes.predict_proba(x), memory.predict_proba(x)
    assert float((mine.argmax(1) == other.argmax(1)).double().mean()) >= 0.995
    assert float((mine - other).abs().sum(1).mean()) < 0.02
    # Or the fit had nothing to say.
    assert float((other.argmax(1) == (x @ w.T).argmax(1)).double().mean()) < 0.99
    assert passes.state().keys() == memory.state().keys()
    for key, tensor in memory.state().items():
        assert passes.state()[key].dtype is tensor.dtype, key
    assert 0 < read[0].passes <= most


@pytest.mark.parametrize("name", FITS)
def test_no_matrix_of_all_posteriors_is_made(name, monkeypatch):
    monkeypatch.setattr(rows, "SAMPLE", 512)
    # With units for bfloat16 the search holds the cosines of 512 rows, more than these few classes are.
    monkeypatch.setattr(certified, "bfloat16_units", list)
    x, w = clusters(32 * CHUNK, 64, 16)
    new, _ = FITS[name]
    solver = Consensus(bank=512, shots=4) if name == "consensus" else new()
    with Largest() as made:
        solver.fit(TensorRows(x), prototypes=w, logit_scale=SCALE)
    # The rows themselves have as many numbers as a quarter of the posteriors, and a tile of the search for neighbours as many as half of them.
    assert made.numbers <= len(x) * 64 // 2


def test_two_feature_spaces_count_as_in_memory():
    x, w = clusters(6000, 12, 32)
    generator = torch.Generator().manual_seed(3)
    turned = torch.linalg.qr(torch.randn(32, 32, generator=generator))[0]
    other = F.normalize(x @ turned + 0.1 * torch.randn(len(x), 32, generator=generator), dim=1)
    noise = F.normalize(torch.randn(len(x), 24, generator=generator), dim=1)
    for solver in (JointGmm, Consensus):
        memory = solver().fit([x, other, noise], prototypes=w, logit_scale=SCALE)
        source = RowsBeside([TensorRows(x), ChangedRows(TensorRows(2 * other), lambda part: part / 2, 32), TensorRows(noise)])
        passes = solver().fit(source, prototypes=w, logit_scale=SCALE)
        assert passes.widths_.tolist() == [32, 32, 24]
        assert passes.weights_.tolist() == pytest.approx(memory.weights_.tolist(), abs=0.02)
        assert passes.weights_[2] == 0
        mine, given = passes.predict([x, other, noise]), memory.predict([x, other, noise])
        assert float((mine == given).double().mean()) >= 0.995


@pytest.mark.parametrize("prior", ["uniform", "hints", "estimated"])
def test_gda_by_passes(prior):
    x, w = uneven(6000, 12, 32)
    hints = Hints(torch.arange(60), (x[:60] @ w.T).argmax(1))
    memory, passes = (Gda(prior=prior).fit(source, prototypes=w, logit_scale=SCALE, hints=hints) for source in (x, TensorRows(x)))
    assert torch.allclose(passes.coef_, memory.coef_, atol=1e-3)
    assert torch.allclose(passes.intercept_, memory.intercept_, atol=0.02)
    with pytest.raises(UserError, match="labelled images"):
        Gda().fit(TensorRows(x), prototypes=w)


@pytest.mark.parametrize("solver", [OnZeta, TDA, Pta, OnlineGda])
def test_a_stream_has_the_bits_of_one_in_memory(solver):
    x, w = clusters(1300, 5, 12)
    hints = Hints(torch.tensor([7, 1200, 30]), torch.tensor([2, 0, -1]))
    memory, passes = (solver().fit(source, prototypes=w, logit_scale=SCALE, hints=hints) for source in (x, TensorRows(x)))
    assert all(torch.equal(passes.state()[name], tensor) for name, tensor in memory.state().items())


# In many columns of noise the nearest image may lie anywhere in its cluster.
@pytest.mark.parametrize(("width", "share"), [(16, 0.94), (48, 0.76)])
def test_near_images_are_found_in_cells(monkeypatch, width, share):
    x, _ = clusters(6000, 40, width)
    fit = FitRows(TensorRows(x), None, Known(NOTHING, NOTHING))
    exact = near_rows(fit, 3)
    assert torch.equal(exact[1], top_neighbours(x, x, 3, chunk_size=1000, same=True)[1])
    monkeypatch.setattr(settling_passes, "ALL", 100)
    monkeypatch.setattr(settling_passes, "CELL", 100)
    found = near_rows(fit, 3)
    # 16 of 60 cells are looked through.
    assert float((found[1][:, :, None] == exact[1][:, None]).any(1).double().mean()) >= share
    assert torch.allclose(found[0], (x[:, None] * x[found[1]]).sum(2), atol=2e-3)
    assert bool((found[1] != torch.arange(6000)[:, None]).all())


def test_a_cell_of_very_many_alike_images_takes_no_more_memory(monkeypatch):
    """Black frames of a camera at night: all of them are one cell."""
    x, _ = clusters(3000, 40, 16)
    x[::2] = x[0]
    fit = FitRows(TensorRows(x), None, Known(NOTHING, NOTHING))
    monkeypatch.setattr(settling_passes, "ALL", 100)
    monkeypatch.setattr(settling_passes, "CELL", 100)
    expected = near_rows(fit, 3)
    monkeypatch.setattr(settling_passes, "MOST_COSINES", 100_000)
    with Work(100_001) as work:
        found = near_rows(fit, 3)
    assert not work.large
    torch.testing.assert_close(found[0], expected[0])


@pytest.mark.parametrize("solver", [StatA, TransClip])
def test_cells_and_the_largest_entries_do(monkeypatch, solver):
    """All that is approximate of the solvers with neighbours, at once."""
    x, w = uneven(9000, 60, 48)
    memory = solver().fit(x, prototypes=w, logit_scale=SCALE)
    monkeypatch.setattr(settling_passes, "ALL", 100)
    monkeypatch.setattr(settling_passes, "CELL", 100)
    passes = solver().fit(TensorRows(x), prototypes=w, logit_scale=SCALE)
    assert float((passes.predict(x) == memory.predict(x)).double().mean()) >= 0.995


def test_a_source_of_rows_is_refused_where_all_answers_are_wanted():
    x, w = clusters(300, 3, 8)
    with pytest.raises(UserError, match="predict_proba"):
        JointGmm().fit_predict_proba(TensorRows(x), prototypes=w)
    with pytest.raises(UserError, match="columns"):
        JointGmm().fit(TensorRows(x[:, :7]), prototypes=w)
    x[7, 2] = math.nan
    with pytest.raises(UserError, match="not finite"):
        JointGmm().fit(TensorRows(x), prototypes=w)


def test_rows_of_no_class_are_passed_over():
    x, w = clusters(3000, 5, 16)
    kept = torch.cat([torch.arange(7, 1500), torch.arange(1600, 3000)])
    fit = FitRows(TensorRows(3 * x), kept, Known(torch.tensor([5, 1495]), torch.tensor([2, 3])))
    assert isinstance(TensorRows(x), Rows)
    assert len(fit) == len(kept)
    parts = list(fit.each(1000))
    assert torch.allclose(torch.cat([part for _, part in parts]), x[kept], atol=1e-6)
    assert [at.start for at, _ in parts] == [0, *torch.tensor([len(part) for _, part in parts]).cumsum(0)[:-1].tolist()]
    assert (fit.passes, fit.rows_read) == (1, len(kept))
    assert torch.allclose(fit.at(torch.tensor([5, 1495])), x[kept[[5, 1495]]], atol=1e-6)
    assert fit.rows_read == len(kept) + 2
    moments = Moments.of(fit)
    assert torch.allclose(moments.mean, x[kept].double().mean(0), atol=1e-6)
    assert torch.allclose(moments.squares, x[kept].double().square().mean(0), atol=1e-6)
    z = (SCALE * x[kept] @ w.T).softmax(1)
    z[[5, 1495]] = F.one_hot(torch.tensor([2, 3]), 5).float()
    sums = Sums.of(fit, linear(SCALE * w), 5, kind=torch.float32)
    assert torch.allclose(sums.mass, z.double().sum(0), atol=1e-2)
    assert torch.allclose(sums.sums, z.double().T @ x[kept].double(), atol=1e-2)
    free = torch.ones(len(kept), dtype=torch.bool)
    free[[5, 1495]] = False
    assert torch.allclose(sums.free, z[free].double().sum(0), atol=1e-2)
    assert torch.allclose(mass_of(fit, linear(SCALE * w), 5), sums.free, atol=1e-2)
    x_part, known = fit.part()
    assert torch.allclose(x_part[known.rows], x[kept[[5, 1495]]], atol=1e-6)


def test_the_surest_rows_are_gathered_while_they_pass():
    x, w = clusters(5000, 6, 16)
    # Nobody is so sure that two images are equally sure.
    z = (5 * x @ w.T).softmax(1)
    top = TopRows(8, 6)
    for start in range(0, 5000, 700):
        top.add(slice(start, start + 700), z[start : start + 700])
    fit = FitRows(TensorRows(x), None, Known(NOTHING, NOTHING))
    assert torch.allclose(top.means(fit), confident_means(x, z, 8), atol=1e-6)


@pytest.mark.parametrize("hinted", [0, 400])
def test_balanced_masses_are_those_of_all_rows(hinted):
    """A sixth of the rows is sampled: alone they would miss the masses by far more."""
    x, w = uneven(12000, 30, 32)
    known = Known(torch.arange(hinted), torch.arange(hinted) % 7)
    fit = FitRows(TensorRows(x), None, known)
    prior = torch.arange(30, 60).double() / torch.arange(30, 60).sum()
    score = linear(SCALE * w)
    potentials = balanced(fit, score, prior, steps=100, tol=1e-4, chunk_size=1000)
    exact, _ = balance(SCALE * x @ w.T, prior, known, max_iter=200, tol=1e-5, chunk_size=1000)
    assert float((potentials - exact).abs().max()) < 5e-3
    sampled, _ = balance(SCALE * x[:1500] @ w.T, prior, Known(NOTHING, NOTHING), max_iter=200, tol=1e-5, chunk_size=1000)
    assert float((sampled - exact).abs().max()) > 5e-2
