"""Many rows: the quick forms of the solvers give the answers of the plain ones, and certified neighbours are the exact ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from finelens.protocol import Hints
from finelens.solvers import GdaEm, StatA, TransClip, ZLaP, certified, certified_pairs, pairs, settling
from finelens.solvers.chebyshev import chebyshev, rounds_of
from finelens.solvers.neighbours import RowProduct, sparse_rows, top_neighbours


def clusters(n: int, classes: int, width: int, noise: float = 2.5, copies: int = 0):
    """Soft clusters, (N, D) and (C, D), float32; the last rows are copies of the first."""
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(classes, width, generator=generator), dim=1)
    own = centres[torch.randint(classes, (n,), generator=generator)]
    x = F.normalize(own + noise * width**-0.5 * torch.randn(n, width, generator=generator), dim=1)
    if copies:
        x[-copies:] = x[:copies]
    return x, F.normalize(centres + width**-0.5 * torch.randn(classes, width, generator=generator), dim=1)


@pytest.mark.parametrize("solver", [StatA, TransClip, GdaEm])
@pytest.mark.parametrize("hinted", [0, 60])
def test_many_rows_are_answered_as_few_are(monkeypatch, solver, hinted):
    x, w = clusters(4000, 20, 64)
    hints = Hints(torch.arange(hinted), torch.arange(hinted) % 20) if hinted else None
    plain = solver().fit_predict_proba(x, prototypes=w, logit_scale=30.0, hints=hints)
    monkeypatch.setattr(settling, "MANY", 1)
    model = solver()
    quick = model.fit_predict_proba(x, prototypes=w, logit_scale=30.0, hints=hints)
    assert quick.sum(1) == pytest.approx(1.0, abs=1e-5)
    assert float((quick.argmax(1) == plain.argmax(1)).float().mean()) >= 0.999
    # On average over images, in L1.
    assert float((quick - plain).abs().sum(1).mean()) < 5e-3
    assert torch.equal(quick[:hinted].argmax(1), torch.arange(hinted) % 20)
    assert model.predict_proba(x[:5]).shape == (5, 20)


def test_settled_rows_are_left_out(monkeypatch):
    """What the quick form saves, counted: rows that are updated."""
    x, w = clusters(4000, 20, 64)
    updated = []
    update = settling.Settling._pass

    def count(self, rows, *given, **options):
        updated.append(len(rows))
        return update(self, rows, *given, **options)

    monkeypatch.setattr(settling.Settling, "_pass", count)
    monkeypatch.setattr(settling, "MANY", 1)
    StatA().fit(x, prototypes=w, logit_scale=30.0)
    # The plain form updates each row 51 times.
    assert sum(updated) <= 8 * len(x)
    assert updated[0] == updated[1] == updated[-1] == len(x)


def test_posteriors_keep_their_sums(monkeypatch):
    monkeypatch.setattr(settling, "bfloat16_units", lambda: ())
    x, w = clusters(600, 7, 24)
    graph = sparse_rows(torch.full((600, 2), 0.1), torch.stack([torch.arange(600).roll(1), torch.arange(600).roll(-1)], 1), 600)
    many = settling.Settling(x, graph, settling.Known(torch.tensor([3, 5]), torch.tensor([1, 2])), 7, squares=True)
    many.start(20 * w)
    moved = many._pass(torch.arange(0, 600, 3), (5 * w, -w, w[:, 0]))
    assert moved.shape == (200,)
    assert torch.allclose(many.mass, many.z.double().sum(0), atol=1e-4)
    assert torch.allclose(many.sums, many.z.double().T @ x.double(), atol=1e-4)
    assert torch.allclose(many.squares, many.z.double().T @ x.double().square(), atol=1e-4)
    assert torch.equal(many.best, many.z.argmax(1))
    assert many.z[[3, 5]].argmax(1).tolist() == [1, 2]


@pytest.mark.parametrize("kind", ["same, pairs", "same", "some", "others"])
@pytest.mark.parametrize("copies", [0, 300])
def test_certified_neighbours_are_the_exact_ones(monkeypatch, kind, copies):
    x, _ = clusters(900, 5, 32, copies=copies)
    rows = torch.arange(0, 900, 2)
    queries, keys, options = {
        "same, pairs": (x, x, {"same": True}),
        "same": (x, x, {"same": True}),
        "some": (x, x[rows], {"rows": rows}),
        "others": (x[:500], x[500:], {}),
    }[kind]
    exact = top_neighbours(queries, keys, 4, chunk_size=64, **options)
    monkeypatch.setattr(certified, "MANY_KEYS", 1)
    monkeypatch.setattr(certified, "bfloat16_units", lambda: ("made up",))
    monkeypatch.setattr(certified, "CHUNK", 128)
    monkeypatch.setattr(certified_pairs, "CHUNK", 320)
    monkeypatch.setattr("finelens.solvers.neighbours.MOST_NEIGHBOURS", 4 if kind == "same, pairs" else 3)
    searched = []
    name, of = ("certified_pairs", certified_pairs) if kind == "same, pairs" else ("certified_neighbours", certified)
    rough = getattr(of, name)
    monkeypatch.setattr(f"finelens.solvers.neighbours.{name}", lambda *given: searched.append(1) or rough(*given))
    values, index = top_neighbours(queries, keys, 4, chunk_size=64, **options)
    assert searched
    assert torch.allclose(values, exact[0], atol=1e-6)
    # Copies are equally near.
    assert torch.allclose((queries[:, None] * keys[index]).sum(2), exact[0], atol=1e-6)
    if not copies:
        assert torch.equal(index, exact[1])


@pytest.mark.parametrize("copies", [0, 300])
def test_neighbours_by_pairs_are_the_exact_ones_for_half_of_the_products(monkeypatch, copies):
    x, _ = clusters(900, 5, 32, copies=copies)
    exact = top_neighbours(x, x, 4, chunk_size=64, same=True)
    monkeypatch.setattr("finelens.solvers.neighbours.MANY", 1)
    # The last tile is narrower than the neighbours.
    monkeypatch.setattr(pairs, "TILE", 69)
    with FlopCounterMode(display=False) as counter:
        values, index = top_neighbours(x, x, 4, chunk_size=64, same=True)
    # All products are twice N^2 D.
    assert counter.get_total_flops() <= 0.55 * 2 * len(x) ** 2 * 32
    assert torch.allclose(values, exact[0], atol=1e-6)
    # Copies are equally near.
    assert torch.allclose((x[:, None] * x[index]).sum(2), exact[0], atol=1e-6)
    assert not (index == torch.arange(len(x))[:, None]).any()
    if not copies:
        assert torch.equal(index, exact[1])


def test_certified_pairs_take_half_of_the_products_and_little_again(monkeypatch):
    x, _ = clusters(8192, 40, 64, noise=1.0)
    with FlopCounterMode(display=False) as counter:
        _, index, doubtful = certified_pairs.certified_pairs(x, 3)
    # All products are twice N^2 D; what is compared exactly besides are a few rows and the candidates.
    assert counter.get_total_flops() <= 0.55 * 2 * len(x) ** 2 * 64
    assert len(doubtful) < 0.1 * len(x)
    sure = torch.ones(len(x), dtype=torch.bool)
    sure[doubtful] = False
    monkeypatch.setattr("finelens.solvers.neighbours.is_worth_it", lambda *given: False)
    assert torch.equal(index[sure], top_neighbours(x, x, 3, chunk_size=1024, same=True)[1][sure])


def test_rows_that_find_too_many_in_a_strip_are_compared_exactly(monkeypatch):
    """A row keeps few finds of a strip: one with more is not known to have kept its nearest."""
    x, _ = clusters(2000, 5, 32, copies=700)
    monkeypatch.setattr(certified_pairs, "MOST", 1)
    _, _, doubtful = certified_pairs.certified_pairs(x, 3)
    found = top_neighbours(x, x, 3, chunk_size=64, same=True)
    values, _, _ = certified_pairs.certified_pairs(x, 3)
    sure = torch.ones(len(x), dtype=torch.bool)
    sure[doubtful] = False
    assert len(doubtful) > 0
    assert torch.allclose(values[sure], found[0][sure], atol=1e-6)


def test_rows_without_positive_cosines_are_compared_exactly(monkeypatch):
    """The rough search orders bits, which says nothing below zero."""
    monkeypatch.setattr(certified, "CHUNK", 128)
    x, _ = clusters(500, 5, 32)
    keys = F.normalize(x + 5 * x.mean(0) / x.mean(0).norm(), dim=1)
    _, _, doubtful = certified.certified_neighbours(-keys, keys, 4, None)
    assert len(doubtful) == 500
    _, _, doubtful = certified.certified_neighbours(torch.zeros(3, 32), keys, 4, None)
    assert len(doubtful) == 3
    # One of each pair of opposites, and no other is near.
    _, _, doubtful = certified_pairs.certified_pairs(torch.eye(64), 4)
    assert len(doubtful) == 64


@pytest.mark.parametrize("radius", [0.3, 0.9])
def test_chebyshev_reaches_its_residual_in_the_rounds_it_says(radius):
    """Eigenvalues at both ends and between: the worst that the bound allows for."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=torch.float64))[0]
    matrix = (basis * torch.linspace(-radius, radius, 40, dtype=torch.float64)) @ basis.T
    rows, columns = torch.tensor([3, 17, 39]), torch.tensor([0, 1, 1])
    right = torch.zeros(40, 2, dtype=torch.float64)
    right[rows, columns] = 1
    for tol in (1e-2, 1e-6, 1e-12):
        x = chebyshev(matrix.to_sparse().coalesce(), rows, columns, 2, radius=radius, tol=tol)
        assert ((right - x + matrix @ x).norm(dim=0) / right.norm(dim=0)).max() <= tol
    assert rounds_of(0.3, 1e-6) == 8


class Work(TorchDispatchMode):
    """Counts operations of matrix products, sparse ones by rows apart, and matrices of the size of all posteriors."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.products, self.large = size, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in ("mm", "addmm"):
            left, right = args[-2:]
            self.products += 2 * left.shape[0] * left.shape[1] * right.shape[1]
        if isinstance(made, torch.Tensor) and made.layout is torch.strided and made.dtype is torch.float32 and made.numel() >= self.size:
            self.large.add(made.untyped_storage().data_ptr())
        return made


def test_work_of_gda_em_counted():
    """A product of the posteriors and one of the sums a round, one for the last answer, and one matrix of posteriors."""
    n, c, d = 20_000, 60, 32
    x, w = clusters(n, c, d)
    with Work(n * c) as work:
        model = GdaEm(max_iter=4, tol=0.0).fit(x, prototypes=w, logit_scale=30.0)
    assert model.n_iter_ == 4
    rows = 2 * n * d
    assert work.products <= 1.02 * rows * (5 * c + 4 * c + (4 + 1) * d)
    assert len(work.large) == 1


def test_work_of_zlap_counted(monkeypatch):
    """One product with the texts beside the search, and two matrices of scores: what is answered and what is kept."""
    n, c, d = 20_000, 60, 32
    x, w = clusters(n, c, d)
    monkeypatch.setattr("finelens.solvers.zlap.top_neighbours", lambda x, *given, **options: (torch.ones(n, 1), torch.arange(n).roll(1)[:, None]))
    monkeypatch.setattr("finelens.solvers.zlap.COLUMNS", 16)
    with Work(n * c) as work:
        ZLaP().fit(x, prototypes=w)
    assert work.products == 2 * n * c * d
    assert len(work.large) == 2


def test_products_by_rows():
    matrix = sparse_rows(torch.rand(6, 2), torch.tensor([[0, 3], [1, 2], [4, 0], [2, 3], [3, 1], [0, 1]]), 5)
    matrix = torch.sparse_coo_tensor(matrix.indices()[:, :-2], matrix.values()[:-2], (6, 5)).coalesce()
    dense = torch.rand(5, 3)
    product = RowProduct(matrix)
    assert torch.allclose(product.between(0, 6, dense), matrix.to_dense() @ dense)
    assert torch.allclose(product.between(2, 5, dense), (matrix.to_dense() @ dense)[2:5])
    assert torch.allclose(product.of(torch.tensor([1, 4, 5]), dense), (matrix.to_dense() @ dense)[[1, 4, 5]])


def test_nearly_equal_images_are_summed_exactly_where_rounding_leaves_no_covariance(monkeypatch):
    """Half of the digits of such features are the same: sums of rounded products end as noise around zero, which has no inverse."""
    monkeypatch.setattr(settling, "MANY", 0)
    torch.manual_seed(0)
    prototypes = torch.nn.functional.normalize(torch.randn(5, 32, dtype=torch.float64), dim=1)
    x = torch.nn.functional.normalize(torch.ones(200, 32) + 1e-5 * torch.randn(200, 32), dim=1)
    found = GdaEm().fit_predict_proba(x, prototypes=prototypes, logit_scale=100.0)
    assert torch.isfinite(torch.as_tensor(found)).all()
    plain = GdaEm().fit_predict_proba(x.double(), prototypes=prototypes, logit_scale=100.0)
    assert (torch.as_tensor(found).argmax(1) == torch.as_tensor(plain).argmax(1)).float().mean() > 0.9
