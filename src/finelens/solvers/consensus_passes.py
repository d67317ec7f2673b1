"""The fit of :class:`~finelens.solvers.Consensus` to more images than memory holds: the same steps, by passes.

Sums over images (mixtures, head, return rule) and the choice of keys are of all images. Of a sample are numbers that are one for all: sizes, weights,
agreements. What images keep is the positions of their neighbours in the bank.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.solvers.assignments import centred
from finelens.solvers.columns import centred_views, searched_columns
from finelens.solvers.gaussians import logit_std
from finelens.solvers.keys import centred_square, matching_weight, own_among, own_keys, sharpness_of_mean, surest_rows
from finelens.solvers.mixture import Mixture
from finelens.solvers.mixture_passes import MixturePasses
from finelens.solvers.neighbours import smoothed, top_neighbours
from finelens.solvers.opinions import EVENNESS, LEAST_TOLD, SHARPER, TINY, EvenText, size_of
from finelens.solvers.presence import asked_neighbours, information, neighbour_agreement
from finelens.solvers.return_rule import ReturnRule
from finelens.solvers.ridge import ridge_of_moments
from finelens.solvers.rows import CHUNK, At, FitRows, Moments, Score, TextPass, linear, sum_type
from finelens.solvers.views import ViewsSolver, searched_views


class ConsensusPasses(ViewsSolver):
    """What makes the fitted tensors of ``Consensus`` from passes; it knows no answer of its own."""

    neighbours: int
    tolerance: float
    anchor: float
    confident: int
    temperature: float
    rounds: int
    further: int
    shots: int
    ridge: float
    enough: float
    give_back: float
    bank: int
    balance_steps: int
    head_steps: int
    chunk_size: int
    text_: Tensor
    potentials_: Tensor
    spread_: Tensor
    head_: Tensor
    bias_: Tensor

    @abstractmethod
    def _members(self, x: Tensor, text: Tensor, smooth: Tensor, own: Tensor | None) -> list[Tensor]: ...

    @abstractmethod
    def _mean_member(self, members: list[Tensor]) -> Tensor: ...

    @abstractmethod
    def _opinion(self, members: list[Tensor], looks: Tensor) -> Tensor: ...

    @abstractmethod
    def _posterior(self, total: Tensor, text: Tensor) -> Tensor: ...

    @abstractmethod
    def _spread(self, text: Tensor) -> Tensor: ...

    @abstractmethod
    def _keep(self, mixture: Mixture, prefix: str, evened: EvenText) -> None: ...

    def _label_free_passes(self, rows: FitRows, prototypes: Tensor, scale: float) -> None:
        """Fit to the images, hints apart."""
        self.text_ = scale * prototypes.double()
        classes, moments, seen = len(prototypes), Moments.of(rows), _Seen(self, rows)
        self.centre_ = moments.mean
        self.bank_ = seen.bank
        self.searched_ = searched_views(seen.bank, self.widths_.tolist())
        seen.look(self.centre_, self.searched_.tolist())
        self._cache(rows, moments, seen, self._mixtures(rows, prototypes, moments, seen))
        # Of the sample, and the bank behind it.
        x, text = seen.sample, seen.sample[:, : self.text_.shape[1]] @ self.text_.float().T
        count, size = seen.count, size_of(text[: seen.count])
        members = self._members(x, text, seen.smooth_sample, seen.own_sample(self._key_rows))
        self.sizes_ = torch.stack([*(size_of(member[:count]) for member in members), size, size, size])
        mean = self._mean_member(members)
        self.sizes_[3] = size_of(mean[:count])
        del members
        self._learn_head(rows, seen)
        looks = seen.looks(x)
        total = (mean / self.sizes_[3].to(x) + centred(torch.addmm(self.bias_.to(x), looks, self.head_.to(x))) / self.sizes_[4].to(x)) / 2
        labels = total.argmax(1)
        self.agreement_ = max(0.0, neighbour_agreement(labels[:count], seen.asked(classes), classes, labels[count:]))
        self.told_ = information(text[:count].softmax(1))
        self.share_ = torch.full_like(size, min(1.0, self.agreement_ / self.enough) if self.told_ >= LEAST_TOLD else 0.0)
        self._learn_returns(rows, seen)

    def _mixtures(self, rows: FitRows, prototypes: Tensor, moments: Moments, seen: _Seen) -> EvenText:
        """Fit both mixtures; returns the text logits that go with them."""
        classes = len(prototypes)
        uniform = torch.full((classes,), 1 / classes, dtype=torch.float64)

        def passes(of: FitRows, moments: Moments | None, evened: EvenText) -> MixturePasses:
            return MixturePasses(
                of,
                evened.weights(self.text_),
                prototypes,
                shift=evened.shift,
                anchor=self.anchor,
                confident=self.confident,
                temperature=self.temperature,
                chunk_size=self.chunk_size,
                moments=moments,
            )

        evened = EvenText.plain(uniform)
        fit = passes(rows, moments, evened)
        mixture = fit.start()
        fit.run(mixture, self.rounds)

        def agreement(of: Mixture) -> float:
            # Of all images: a choice between two fits hangs on it.
            score, labels = fit.score(of), torch.empty(len(rows), dtype=torch.int64)
            for at, x in rows.each():
                labels[at] = score(at, x).argmax(1)
            return neighbour_agreement(labels, asked_neighbours(seen.near, classes).long(), classes, labels[seen.positions[seen.count :]])

        self.evenness_, free = 0.0, agreement(mixture)
        for evenness in EVENNESS if len(rows) >= 2 * classes else ():
            if not evenness:
                break
            trial, text_trial = replace(mixture), EvenText.of(seen.text_mean, seen.text_variance, evenness)
            fit.tell(text_trial.weights(self.text_), text_trial.shift)
            fit.run(trial, self.further, uniform, evenness=evenness, max_iter=self.balance_steps)
            if agreement(trial) >= self.tolerance * free:
                self.evenness_, mixture, evened = evenness, trial, text_trial
                break
        self._keep(mixture, "", evened)
        smooth = passes(rows.through(seen.smoothed), None, evened)
        mixture = smooth.start()
        smooth.run(mixture, self.rounds, uniform if self.evenness_ else None, evenness=self.evenness_, max_iter=self.balance_steps)
        self._keep(mixture, "smooth_", evened)
        return evened

    def _cache(self, rows: FitRows, moments: Moments, seen: _Seen, evened: EvenText) -> None:
        """Keys, their rate and the weight of their votes."""
        classes, first = self.text_.shape
        named = TextPass(rows, evened.weights(self.text_), evened.shift) if self.evenness_ else seen
        self._key_rows, self.labels_ = surest_rows(named.confidence, named.answer, max(1, min(self.shots, self.bank // classes)))
        self.keys_ = rows.at(self._key_rows)[:, :first]
        self.beta_ = sharpness_of_mean(moments.mean[:first], self.keys_, 1.0)
        x = seen.sample[: seen.count]
        text = x[:, :first] @ self.text_.float().T
        logits = self._spread(text) + self.potentials_.float()
        # With a weight of one the votes are what they add.
        self.alpha_ = torch.ones((), dtype=torch.float64)
        votes = self._members(x, text, seen.smooth_sample[: seen.count], seen.own_sample(self._key_rows)[: seen.count])[2] - logits
        self.alpha_ = matching_weight(centred_square(logits), centred_square(votes))

    def _chunks(self, rows: FitRows, seen: _Seen) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, list[Tensor]]]:
        """Of each chunk its positions, looks, features, text logits and members: one pass."""
        for at, x in rows.each(CHUNK):
            text = x[:, : self.text_.shape[1]] @ self.text_.float().T
            own = own_keys(self._key_rows, at.start, len(x))
            yield at, seen.looks(x), x, text, self._members(x, text, seen.smoothed(at, x), own)

    def _learn_head(self, rows: FitRows, seen: _Seen) -> None:
        classes, kind = len(self.text_), sum_type()
        products, mass = torch.zeros(rows.width, classes, dtype=torch.float64), torch.zeros(classes, dtype=torch.float64)
        sharpness = float(SHARPER * self.sizes_[5])
        for _, looks, _, _, members in self._chunks(rows, seen):
            target = self._mean_member(members).mul_(sharpness).softmax(1)
            products += looks.to(kind).T @ target.to(kind)
            mass += target.sum(0)
        mean, second, count = seen.looks_mean, seen.looks_second, len(rows)
        self.head_, self.bias_ = ridge_of_moments(mean, second, products, mass / count, count, penalty=self.ridge, steps=self.head_steps)
        self.sizes_[4] = max(logit_std(self.head_.T, self.bias_, mean, second), TINY)

    def _learn_returns(self, rows: FitRows, seen: _Seen) -> None:
        def parts() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for _, looks, _, text, members in self._chunks(rows, seen):
                yield looks, text.softmax(1), self._posterior(self._opinion(members, looks), text)

        rule = ReturnRule.of_parts(parts(), seen.looks_by_text, share=self.give_back)
        self.centroids_, self.returns_ = rule.means, rule.shares
        x = seen.sample[: seen.count]
        text = x[:, : self.text_.shape[1]] @ self.text_.float().T
        members = self._members(x, text, seen.smooth_sample[: seen.count], seen.own_sample(self._key_rows)[: seen.count])
        answer = self._posterior(self._opinion(members, seen.looks(x)), text)
        self.returned_ = float(rule.apply(seen.looks(x), text.softmax(1), answer, chunk_size=CHUNK)[1].mean())


class _Seen:
    """What one look at all images leaves behind: the bank, who is near to whom in it, and what the text says.

    Args:
        solver: Whose parameters they are.
        rows: The images.

    Attributes:
        bank: Images that neighbours are looked for among, (B, D).
        near: Positions of each image's neighbours in the bank, (N, k), int32.
        confidence: Largest text posterior of each image, (N,).
        answer: The class that has it, (N,).
        text_mean: Mean of each class's text logits over the images, (C,), float64.
        text_variance: Their variance (C,), float64.
        positions: Those of the sample and then of the bank.
        sample: Images of the sample, ``count`` of them, and then of the bank.
        looks_mean: Mean of the centred views, (D,), float64.
        looks_second: Their second moment (D, D), float64.
        looks_by_text: Unit means of them by the text posterior, (C, D), float64.
    """

    def __init__(self, solver: ConsensusPasses, rows: FitRows) -> None:
        self._solver, self._rows, self._widths = solver, rows, list(rows.widths)
        self._bank_rows = rows.evenly(solver.bank)
        self.bank = rows.at(self._bank_rows)
        own = rows.sampled()
        self.count, self.positions = len(own), torch.cat([own, self._bank_rows])
        self.sample = torch.cat([rows.at(own), self.bank])

    def look(self, centre: Tensor, searched: list[int]) -> None:
        """One pass, once the mean of the images is known, and in which views neighbours are looked for."""
        solver, rows = self._solver, self._rows
        self._centre, n, classes, kind = centre, len(rows), len(solver.text_), sum_type()
        banked = searched_columns(self.looks(self.bank), searched, self._widths)
        self.near = torch.empty(n, min(solver.neighbours, len(self.bank) - 1), dtype=torch.int32)
        self.confidence, self.answer = torch.empty(n), torch.empty(n, dtype=torch.int32)
        mean, second = torch.zeros(rows.width, dtype=torch.float64), torch.zeros(rows.width, rows.width, dtype=torch.float64)
        by_text = torch.zeros(classes, rows.width, dtype=torch.float64)
        told, squares = torch.zeros(classes, dtype=torch.float64), torch.zeros(classes, dtype=torch.float64)
        score: Score = linear(solver.text_)
        # The search has a price of its own for each call.
        for at, x in rows.each(8 * CHUNK):
            looks = self.looks(x)
            sought = searched_columns(looks, searched, self._widths)
            self.near[at] = top_neighbours(sought, banked, solver.neighbours, chunk_size=CHUNK, rows=self._bank_rows - at.start)[1].int()
            for first in range(0, len(x), CHUNK):
                part, own = looks[first : first + CHUNK], slice(at.start + first, min(at.start + first + CHUNK, at.stop))
                text = score(own, x[first : first + CHUNK])
                told += text.sum(0)
                squares += text.square().sum(0)
                z = text.softmax(1)
                self.confidence[own], answer = z.max(1)
                self.answer[own] = answer.int()
                by_text += z.to(kind).T @ part.to(kind)
                second += part.T @ part
                mean += part.sum(0)
        self.looks_mean, self.looks_second, self.looks_by_text = mean / n, second / n, F.normalize(by_text, dim=1)
        self.text_mean = told / n
        self.text_variance = (squares / n - self.text_mean.square()).clamp_min(0)
        self.smooth_sample = self.smoothed(self.positions, self.sample)

    def looks(self, x: Tensor) -> Tensor:
        """Centred views (n, D)."""
        return centred_views(x, self._centre, self._widths)

    def smoothed(self, at: At, x: Tensor) -> Tensor:
        """Images (n, D) averaged with their neighbours."""
        return smoothed(x, self.bank, self.near[at].long(), self._widths)

    def asked(self, classes: int) -> Tensor:
        """The neighbours (S, k') in the bank that the agreement of the sample is asked of."""
        return asked_neighbours(self.near, classes)[self.positions[: self.count]].long()

    def own_sample(self, key_rows: Tensor) -> Tensor:
        """Key that each image of the sample and the bank is itself, or -1."""
        return own_among(key_rows, self.positions)
