"""Ranking without labels: the vote of the others finds who is right more often, and a spoiled copy is never taken."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from finelens.evaluation.encoder_rank import Seen, rank_encoders, shape_of_classes, vote_weights

CLASSES, IMAGES, DIM = 6, 400, 32


def world(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Class texts (C, D) with different distances, and true classes (N,)."""
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(CLASSES, DIM, generator=g), dim=1), torch.randint(CLASSES, (IMAGES,), generator=g)


def seen(name: str, texts: torch.Tensor, truth: torch.Tensor, noise: float, seed: int, shown: torch.Tensor | None = None) -> Seen:
    """An encoder whose features are the text of the true class and noise; ``shown`` are the texts that it believes in."""
    g = torch.Generator().manual_seed(seed)
    features = F.normalize(texts[truth] + noise * torch.randn(IMAGES, DIM, generator=g), dim=1)
    own = texts if shown is None else shown
    return Seen(name, (20 * features @ own.T).softmax(1), features, own)


def accuracy(one: Seen, truth: torch.Tensor) -> float:
    return float((one.probabilities.argmax(1) == truth).double().mean())


def test_the_order_is_that_of_the_true_accuracy():
    texts, truth = world()
    every = [seen(str(noise), texts, truth, noise, i) for i, noise in enumerate((1.2, 0.3, 0.8, 0.5))]
    ranked, vote = rank_encoders(every)
    found = {one.name: accuracy(one, truth) for one in every}
    assert [one.name for one in ranked] == sorted(found, key=lambda name: -found[name]) == ["0.3", "0.5", "0.8", "1.2"]
    assert [one.weight for one in ranked] == sorted((one.weight for one in ranked), reverse=True)
    assert accuracy(Seen("", vote, texts, texts), truth) >= found["0.5"]


def test_spoiled_copies_come_last_even_in_number():
    texts, truth = world(1)
    honest = [seen(f"honest {i}", texts, truth, noise, i) for i, noise in enumerate((0.4, 0.5, 0.6))]
    # Texts in the wrong order, each in another: they do not agree with each other either.
    spoiled = [seen(f"spoiled {i}", texts, truth, 0.3, 10 + i, texts.roll(i + 1, 0)) for i in range(4)]
    ranked, _ = rank_encoders([*spoiled, *honest])
    assert [one.name.partition(" ")[0] for one in ranked] == ["honest"] * 3 + ["spoiled"] * 4
    assert sum(one.weight for one in ranked[:3]) > 0.95


def test_one_alone_and_two_alike():
    texts, truth = world(2)
    one = seen("one", texts, truth, 0.5, 0)
    ranked, vote = rank_encoders([one])
    assert (ranked[0].agreement, ranked[0].weight) == (1.0, 1.0)
    torch.testing.assert_close(vote, one.probabilities.double())
    weights, agreement = vote_weights(torch.stack([one.probabilities, seen("two", texts, truth, 0.9, 1).probabilities]).double())
    assert agreement[0] == agreement[1]
    torch.testing.assert_close(weights, torch.full((2,), 0.5, dtype=torch.float64))


def test_shape_is_the_correlation_of_two_graphs():
    texts, truth = world(3)
    exact = F.one_hot(truth, CLASSES).double()
    assert shape_of_classes(texts[truth], texts, exact) > 0.999
    assert abs(shape_of_classes(texts[truth], texts.roll(1, 0), exact)) < 0.9
    assert shape_of_classes(texts[truth], texts[:2], exact[:, :2]) == 0.0
