"""Several label-free opinions that fail differently, put on one scale, and one linear head that learns from all of them. Ours.

Where the parts come from: docs/methods/consensus.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.core.private_torch import version
from finelens.protocol import Tested
from finelens.solvers.assignments import centred
from finelens.solvers.chunks import chunks
from finelens.solvers.columns import centred_views, searched_columns, silenced
from finelens.solvers.consensus_passes import ConsensusPasses
from finelens.solvers.keys import cache_votes, centred_square, confident_rows, matching_weight, own_keys, sharpness_rate
from finelens.solvers.known import Known
from finelens.solvers.mixture import Mixture, MixtureFit
from finelens.solvers.neighbours import evenly_spread, smoothed, top_neighbours
from finelens.solvers.opinions import EVENNESS, LEAST_TOLD, SHARPER, EvenText, add_opinion, moments_of, size_of
from finelens.solvers.parameters import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, Constraints
from finelens.solvers.presence import all_present, asked_neighbours, information, neighbour_agreement
from finelens.solvers.return_rule import ReturnRule
from finelens.solvers.ridge import ridge_head
from finelens.solvers.rows import FitRows
from finelens.solvers.taught import NEAREST_SHARE, SCALES, Taught, left_out, spoken_for, steady, teach
from finelens.solvers.views import TRIED, ViewsSolver, searched_views, unheard_views

STATISTICS = ("means", "variances", "weights", "potentials")
# What models of before do not hold: they answer as they did.
LATE = ("spread_", "searched_")


@dataclass(frozen=True)
class _Bank:
    """The images that neighbours are looked for among, ready to be compared with.

    Attributes:
        made_of: Identity and versions of the tensors that they were made of, columns and type.
        held: These tensors: as long as they are held, no other has their identity.
        rows: (B, D).
        seen: Centred views, (B, D).
        searched: Those of them that neighbours are looked for in, (B, D').
    """

    made_of: tuple[Any, ...]
    held: tuple[Tensor, ...]
    rows: Tensor
    seen: Tensor
    searched: Tensor


# Of the solver's last question. A few images are asked about at a time, and to centre a bank of 8,192 took three quarters of each answer. No part of
# the solver: it is neither copied nor saved.
_BANKS: WeakKeyDictionary[Consensus, _Bank] = WeakKeyDictionary()


class Consensus(ConsensusPasses):
    """Answers by two mixtures, a cache and a head together, with class masses only as even as neighbours allow.

    ``X`` is one feature matrix, or a list of them with the same images in the same rows; the first is the one that the prototypes belong to. New
    images may come with the first matrix alone: the others then keep silent.

    With unit views x_v and text logits ``s x_1 W^T``:

    1. n(i), the k nearest images of the fit by the mean cosine of the centred views beside the first, or by it where it is alone; ``x~_i = unit((x_i
       + mean_n(i) x_j) / 2)`` in every view.
    2. A joint mixture (:class:`~finelens.solvers.JointGmm`), first with free masses. From there even masses (Sinkhorn) are tried, then half of
       their potentials: the first is taken for which the neighbour agreement kappa keeps the share ``tolerance`` (:mod:`~finelens.solvers.presence`).
       With fewer than two images a class the masses stay free. As far as they are even, the spreads of the classes' text logits over the images are
       drawn together, here and in 3 and 4 (:class:`~finelens.solvers.opinions.EvenText`).
    3. The same mixture with that choice on x~.
    4. A cache of each class's images of largest text posterior (:class:`~finelens.solvers.TipAdapter`), beside the text logits with the potentials.
    5. The three, centred over the classes and divided by their root mean square over the fit, are averaged. A ridge head on the centred views learns
       from the softmax of the average; the answer is the mean of both at one scale. Where the kappa of the answer is below ``enough``, the text
       logits get the share ``1 - kappa / enough``; where the text hardly tells the images apart, it keeps all.
    6. Gains over the text that the images do not support go back, by the share ``give_back`` (:mod:`~finelens.solvers.return_rule`).
    7. Hints change none of this. A second head learns from them and from that answer, and both answer together (:mod:`~finelens.solvers.taught`);
       it sees the centred views with a part of the two images nearest by all of them (:func:`~finelens.solvers.taught.steady`).

    Args:
        neighbours: k.
        tolerance: Share of the neighbour agreement that even masses must keep.
        anchor: Pseudo-images that hold each mean of the mixtures at its first value.
        confident: Images per class of the first means in the views without text.
        temperature: Divisor of a log-likelihood at 512 coordinates; it grows with the width.
        rounds: Rounds of the free mixture, and of the smoothed one.
        further: Rounds from there with even masses.
        shots: Keys of a class, fewer where all would exceed ``bank``.
        ridge: Penalty of the head, in units of the mean squared length of a centred image.
        enough: Neighbour agreement from which on the text needs no share of its own.
        give_back: Part of the unsupported gains that is returned.
        bank: Most images that neighbours are looked for among; they are part of the model.
        balance_steps: Most Sinkhorn steps of a round; each round goes on from the potentials of the last.
        head_steps: Steps of conjugate gradients for the head.
        chunk_size: Images in work at a time.

    Attributes:
        text_: Scaled prototypes (C, D_1), float64.
        centre_: Mean of the images, (D_1 + ... + D_V,), float64.
        bank_: Images that neighbours are looked for among, (B, D_1 + ... + D_V).
        means_: Of the first mixture, (C, D_1 + ... + D_V), float64; ``smooth_means_`` those of the second, and so below.
        variances_: (D_1 + ... + D_V,), float64.
        weights_: Of the views, (V,), float64, mean 1 of those that are listened to, 0 of others (:func:`~finelens.solvers.views.unheard_views`).
        potentials_: (C,), float64, with the shift of the text logits; zero where masses are free.
        keys_: Of the cache, (M, D_1).
        labels_: Class of each key, (M,), int64.
        alpha_: Weight of the votes, float64.
        beta_: Rate of the affinity, float64.
        sizes_: Root mean squares of centred logits: the three members, their mean, the head, the text; (6,), float64.
        share_: Of the answer beside the text logits, float64.
        head_: (D_1 + ... + D_V, C), float64.
        bias_: (C,), float64.
        centroids_: Means of the return rule, (C, D_1 + ... + D_V), float64.
        returns_: Its shares, (C, C), float64.
        widths_: D_1 to D_V, (V,), int64.
        spread_: What the text logits of the members are multiplied with, (C,), float64. Empty in models of before there was one, as is the next.
        searched_: 1 for each view that neighbours are looked for in, else 0, (V,), int64.
        taught_head_: Of step 7, (D_1 + ... + D_V, C), float64; empty without hints, as are ``taught_bias_`` (C,) and ``taught_scales_``, (4,): those
            of :class:`~finelens.solvers.taught.Taught`, and what the nearest two count in what it sees. Models of before have three of them, and
            it sees the image alone.
        evenness_: Share of the potentials to even masses that was taken; like the two below no part of the model.
        agreement_: Neighbour agreement of the answer.
        returned_: Mean probability of an image that went back to the text.
        told_: Share of the uncertainty about an image's class that the text takes away, by its own account.
    """

    state_names: ClassVar[tuple[str, ...]] = (
        *("text_", "centre_", "bank_"),
        *(f"{name}_" for name in STATISTICS),
        *(f"smooth_{name}_" for name in STATISTICS),
        *("keys_", "labels_", "alpha_", "beta_", "sizes_", "share_", "head_", "bias_", "centroids_", "returns_", "widths_"),
        *("taught_head_", "taught_bias_", "taught_scales_", *LATE),
    )
    late_state: ClassVar[frozenset[str]] = frozenset(LATE)
    potentials_: Tensor
    spread_: Tensor
    searched_: Tensor
    internal: ClassVar[frozenset[str]] = ViewsSolver.internal | {"balance_steps", "head_steps"}
    _parameter_constraints: ClassVar[Constraints] = {
        **dict.fromkeys(("neighbours", "confident", "rounds", "further", "shots", "bank", "balance_steps", "head_steps", "chunk_size"), COUNT),
        **dict.fromkeys(("temperature", "ridge", "enough"), POSITIVE),
        **dict.fromkeys(("tolerance", "anchor"), NOT_NEGATIVE),
        "give_back": FRACTION,
    }

    def __init__(
        self,
        *,
        neighbours: int = 5,
        tolerance: float = 0.95,
        anchor: float = 1.0,
        confident: int = 8,
        temperature: float = 50.0,
        rounds: int = 5,
        further: int = 3,
        shots: int = 16,
        ridge: float = 3.0,
        enough: float = 0.5,
        give_back: float = 0.5,
        bank: int = 8192,
        balance_steps: int = 20,
        head_steps: int = 6,
        chunk_size: int = 1024,
    ) -> None:
        self.neighbours, self.tolerance, self.anchor, self.confident, self.temperature = neighbours, tolerance, anchor, confident, temperature
        self.rounds, self.further, self.shots, self.ridge, self.enough, self.give_back = rounds, further, shots, ridge, enough, give_back
        self.bank, self.balance_steps, self.head_steps, self.chunk_size = bank, balance_steps, head_steps, chunk_size

    def _fit(self, x: Tensor, prototypes: Tensor, scale: float, known: Known) -> Tensor:
        widths = self.widths_.tolist()
        named = (x[:, : widths[0]] @ prototypes.T).argmax(1)
        x = silenced(x, unheard_views(x, named, widths, len(prototypes)), widths)
        log_p = self._label_free(x, prototypes, scale)
        self._nothing_taught()
        if not len(known):
            return log_p
        looks, rows = centred_views(x, self.centre_, widths), evenly_spread(len(x), self.bank, x.device)
        looks = steady(looks, looks[rows], widths, rows=rows, chunk_size=self.chunk_size)
        self._learn_answers(looks, log_p, known, self.bank)
        return self._with_answers(looks, log_p)

    def _nothing_taught(self) -> None:
        self.taught_head_, self.taught_bias_, self.taught_scales_ = (self.bias_.new_zeros(0) for _ in range(3))
        self.tested_ = None

    def _learn_answers(self, looks: Tensor, log_p: Tensor, known: Known, bank: int) -> None:
        """Learn from hints beside the label-free log-posteriors (N, C), and at most ``bank`` images without one."""
        taught = teach(looks, log_p, known, bank=bank, chunk_size=self.chunk_size)
        self.taught_head_, self.taught_bias_, self.taught_scales_ = taught.head, taught.bias, F.pad(taught.scales, (0, 1), value=NEAREST_SHARE)
        if known.looks > 1:
            guesses, changed = left_out(looks, log_p, known, taught=taught, bank=bank, chunk_size=self.chunk_size)
            self.tested_ = Tested(log_p[known.rows].argmax(1), guesses, spoken_for(looks, known, chunk_size=self.chunk_size), changed)

    def _fit_passes(self, rows: FitRows, prototypes: Tensor, scale: float) -> None:
        widths = self.widths_.tolist()
        tried = rows.at(rows.evenly(TRIED))
        free = rows.label_free().without(unheard_views(tried, (tried[:, : widths[0]] @ prototypes.T).argmax(1), widths, len(prototypes)))
        self._label_free_passes(free, prototypes, scale)
        self._nothing_taught()
        if len(rows.known):
            # Those that lessons are learnt from, and no others.
            banked = rows.evenly(self.bank)
            positions = torch.cat([banked, rows.known.rows]).unique()
            x, known = free.at(positions), rows.known.at(torch.searchsorted(positions, rows.known.rows))
            looks, banked = centred_views(x, self.centre_, widths), torch.searchsorted(positions, banked)
            looks = steady(looks, looks[banked], widths, rows=banked, chunk_size=self.chunk_size)
            self._learn_answers(looks, self._log_proba(x), known, len(x))

    def _with_answers(self, looks: Tensor, log_p: Tensor) -> Tensor:
        """Log-probabilities (M, C) of the label-free ones and of what hints have taught."""
        if not self.taught_head_.numel():
            return log_p
        logits = Taught(self.taught_head_, self.taught_bias_, self.taught_scales_[:SCALES]).logits(looks, log_p)
        return (SHARPER * self.sizes_[-1].to(logits) * logits).log_softmax(1)

    def _label_free(self, x: Tensor, prototypes: Tensor, scale: float) -> Tensor:
        """Log-probabilities (N, C) of the images of the fit."""
        widths, classes = self.widths_.tolist(), len(prototypes)
        self.text_ = scale * prototypes.double()
        self.centre_ = x.mean(0, dtype=torch.float64)
        text = x[:, : widths[0]] @ self.text_.to(x).T  # (N, C)
        looks = centred_views(x, self.centre_, widths)
        rows = evenly_spread(len(x), self.bank, x.device)
        self.bank_ = x[rows]
        self.searched_ = searched_views(x, widths)
        seen = searched_columns(looks, self.searched_.tolist(), widths)
        near = top_neighbours(seen, seen[rows], self.neighbours, chunk_size=self.chunk_size, rows=rows)[1]  # (N, k) in the bank
        del seen
        asked = rows[asked_neighbours(near, classes)]  # (N, k') in x
        total, sizes = torch.zeros_like(text), []
        first, evened = self._plain(x, text, prototypes, asked)
        sizes.append(add_opinion(total, first))
        sizes.append(add_opinion(total, self._smooth(smoothed(x, self.bank_, near, widths), prototypes, evened)))
        sizes.append(add_opinion(total, self._cached(x, text, evened)))
        del first
        total.div_(len(sizes))
        size = size_of(text)
        target = (SHARPER * size.to(x) * total).softmax(1)
        self.head_, self.bias_ = ridge_head(looks, target, penalty=self.ridge, steps=self.head_steps, chunk_size=self.chunk_size)
        del target
        sizes.append(size_of(total))
        total.div_(sizes[-1].to(x))
        sizes.append(add_opinion(total, torch.addmm(self.bias_.to(x), looks, self.head_.to(x))))
        total.div_(2)
        self.agreement_ = max(0.0, neighbour_agreement(total.argmax(1), asked, classes))
        self.told_ = information(text.softmax(1))
        self.share_ = torch.full_like(size, min(1.0, self.agreement_ / self.enough) if self.told_ >= LEAST_TOLD else 0.0)
        self.sizes_ = torch.stack([*sizes, size])
        p = self._posterior(total, text)
        a = text.softmax(1)
        rule = ReturnRule.learn(looks, a, p, share=self.give_back, chunk_size=self.chunk_size)
        self.centroids_, self.returns_ = rule.means, rule.shares
        answers, returned = rule.apply(looks, a, p, chunk_size=self.chunk_size)
        self.returned_ = float(returned.mean())
        return _log(answers)

    def _plain(self, x: Tensor, text: Tensor, prototypes: Tensor, asked: Tensor) -> tuple[Tensor, EvenText]:
        """Logits (N, C) of the mixture with masses as even as the neighbours ``asked`` (N, k) allow, and the text logits that go with them."""
        fit, classes = self._mixture_fit(x, text, prototypes), len(prototypes)
        mixture = fit.start()
        logits = fit.run(mixture, self.rounds)
        self.evenness_, evened = 0.0, EvenText.plain(mixture.potentials)
        free = logits.argmax(1)
        moments = moments_of(text)
        for evenness in EVENNESS if len(x) >= 2 * classes else ():
            if not evenness:
                break
            trial, text_trial = replace(mixture), EvenText.of(*moments, evenness)
            fit.tell(text_trial(text).log_softmax(1))
            tried = self._run_even(fit, trial, self.further, evenness)
            if all_present(free, tried.argmax(1), asked, classes, tolerance=self.tolerance):
                self.evenness_, mixture, logits, evened = evenness, trial, tried, text_trial
                break
        self._keep(mixture, "", evened)
        return logits, evened

    def _smooth(self, x: Tensor, prototypes: Tensor, evened: EvenText) -> Tensor:
        """Logits (N, C) of the mixture on images that are averaged with their neighbours."""
        fit = self._mixture_fit(x, evened(x[:, : prototypes.shape[1]] @ self.text_.to(x).T), prototypes)
        mixture = fit.start()
        logits = self._run_even(fit, mixture, self.rounds, self.evenness_)
        self._keep(mixture, "smooth_", evened)
        return logits

    def _cached(self, x: Tensor, text: Tensor, evened: EvenText) -> Tensor:
        """The mixtures' text logits (N, C) with their potentials and the votes of the most confident images."""
        classes, images = len(self.text_), x[:, : self.text_.shape[1]]
        rows, self.labels_ = confident_rows(evened(text).log_softmax(1), max(1, min(self.shots, self.bank // classes)))
        self.keys_ = images[rows]
        self.beta_ = sharpness_rate(images, self.keys_, 1.0)
        logits = self._spread(text) + self.potentials_.to(x)
        votes = cache_votes(images, self.keys_, self.labels_, self.beta_, classes, chunk_size=self.chunk_size, own=own_keys(rows, 0, len(images)))
        self.alpha_ = matching_weight(centred_square(logits), centred_square(votes))
        answers: Tensor = logits.add_(votes, alpha=float(self.alpha_))
        return answers

    def _mixture_fit(self, x: Tensor, text: Tensor, prototypes: Tensor) -> MixtureFit:
        return MixtureFit(
            x,
            text.log_softmax(1),
            prototypes,
            Known(*self.widths_.new_zeros(2, 0).to(x.device)),
            widths=self.widths_.tolist(),
            anchor=self.anchor,
            confident=self.confident,
            temperature=self.temperature,
            chunk_size=self.chunk_size,
        )

    def _run_even(self, fit: MixtureFit, mixture: Mixture, rounds: int, evenness: float) -> Tensor:
        uniform = torch.full_like(mixture.potentials, 1 / len(mixture.potentials)) if evenness else None
        return fit.run(mixture, rounds, uniform, evenness=evenness, max_iter=self.balance_steps)

    def _keep(self, mixture: Mixture, prefix: str, evened: EvenText) -> None:
        """Keep a mixture under text logits that are multiplied only: their shift goes to the potentials."""
        for name in STATISTICS:
            setattr(self, f"{prefix}{name}_", getattr(mixture, name))
        setattr(self, f"{prefix}potentials_", mixture.potentials + evened.shift)
        self.spread_ = evened.spread

    def _spread(self, text: Tensor) -> Tensor:
        """Text logits (N, C) as the members take them, but for what is added."""
        return text * self.spread_.to(text) if self.spread_.numel() else text

    def _kept(self, prefix: str) -> Mixture:
        kept = {name: getattr(self, f"{prefix}{name}_") for name in STATISTICS}
        return Mixture(widths=self.widths_.tolist(), temperature=self.temperature, **kept)

    def _searched(self) -> list[int]:
        """Which views neighbours are looked for in; all in models of before."""
        return self.searched_.tolist() or [1] * len(self.widths_)

    def _posterior(self, total: Tensor, text: Tensor) -> Tensor:
        """Probabilities (N, C) of the answer's logits, of root mean square about 1, and the text's by the share that they have."""
        size = self.sizes_[-1]
        mixed: Tensor = self.share_.to(total) * total + ((1 - self.share_) / size).to(total) * centred(text)
        return mixed.mul_(SHARPER * size.to(total)).softmax(1)

    def _log_proba(self, x: Tensor) -> Tensor:
        widths = self.widths_.tolist()
        x = silenced(x, [v for v, weight in enumerate(self.weights_.tolist()) if not weight], widths)
        bank = self._bank_for(x, widths)
        return torch.cat([self._answer(part, bank, widths) for part in (x[rows] for rows in chunks(x.shape[0], self.chunk_size))])

    def _bank_for(self, x: Tensor, widths: list[int]) -> _Bank:
        """The images that those of ``x`` (M, D) are compared with, in its type and columns."""
        held = (self.bank_, self.centre_, self.searched_)
        made_of = (*((id(tensor), version(tensor)) for tensor in held), x.shape[1], x.dtype, x.device)
        kept = _BANKS.get(self)
        if kept is None or kept.made_of != made_of:
            bank = self.bank_[:, : x.shape[1]].to(x)
            seen = centred_views(bank, self.centre_, widths)
            kept = _BANKS[self] = _Bank(made_of, held, bank, seen, searched_columns(seen, self._searched(), widths))
        return kept

    def _answer(self, x: Tensor, bank: _Bank, widths: list[int]) -> Tensor:
        """Log-probabilities (M, C) of images with neighbours in the bank."""
        looks = centred_views(x, self.centre_, widths)
        text = x[:, : widths[0]] @ self.text_.to(x).T  # (M, C)
        searched = searched_columns(looks, self._searched(), widths)
        near = top_neighbours(searched, bank.searched, self.neighbours, chunk_size=self.chunk_size)[1]
        smooth = smoothed(x, bank.rows, near, widths)
        total = self._opinion(self._members(x, text, smooth, None), looks)
        rule = ReturnRule(self.centroids_, self.returns_)
        answers = _log(rule.apply(looks, text.softmax(1), self._posterior(total, text), chunk_size=self.chunk_size)[0])
        if len(self.taught_scales_) > SCALES:
            looks = steady(looks, bank.seen, widths, chunk_size=self.chunk_size)
        return self._with_answers(looks, answers)

    def _members(self, x: Tensor, text: Tensor, smooth: Tensor, own: Tensor | None) -> list[Tensor]:
        """Logits (M, C) of both mixtures and of the cache; ``own`` are keys that are the images themselves, see ``keys.cache_votes``."""
        prototypes, first, spread = self.text_.to(x), self.text_.shape[1], self._spread(text)
        votes = cache_votes(x[:, :first], self.keys_.to(x), self.labels_, self.beta_, len(self.text_), chunk_size=self.chunk_size, own=own)
        return [
            self._kept("").scores(x, spread),
            self._kept("smooth_").scores(smooth, self._spread(smooth[:, :first] @ prototypes.T)),
            spread + self.potentials_.to(x) + self.alpha_.to(x) * votes,
        ]

    def _mean_member(self, members: list[Tensor]) -> Tensor:
        """Mean (M, C) of the members, each over its size."""
        total, sizes = torch.zeros_like(members[0]), self.sizes_.to(members[0])
        for member, size in zip(members, sizes[:3], strict=True):
            total += centred(member) / size
        return total / len(members)

    def _opinion(self, members: list[Tensor], looks: Tensor) -> Tensor:
        """Mean (M, C) of the members and the head at one scale."""
        sizes = self.sizes_.to(looks)
        head = torch.addmm(self.bias_.to(looks), looks, self.head_[: looks.shape[1]].to(looks))
        return (self._mean_member(members) / sizes[3] + centred(head) / sizes[4]) / 2

    def notes(self) -> list[str]:
        """What was decided about the classes' masses, how far neighbours agree, and what the text got back."""
        share, returned = 100 * float(self.share_), 100 * self.returned_
        taught = []
        if self.taught_head_.numel():
            own = 100 / (1 + float(self.taught_scales_[2]))
            taught = [f"hints: {own:.0f} % of the answer is from what they teach about the images, {100 - own:.0f} % is the label-free answer"]
        seen = (
            f"photographs that look alike agree on their class by {self.agreement_:.2f}, where 1 is always and 0 is by chance (kappa), "
            f"so {share:.0f} % of the answer is from the images, the rest from the text alone"
        )
        if self.told_ < LEAST_TOLD:
            seen = f"the text hardly tells these images apart ({self.told_:.2%}), and nothing else says which class is which: its answers stay"
        return [
            f"class sizes (class masses): {EVENNESS[self.evenness_]}",
            seen,
            f"{returned:.1f} % of the probability went back to the class that the text names",
            *taught,
        ]


def _log(p: Tensor) -> Tensor:
    return p.clamp_min_(torch.finfo(p.dtype).tiny).log_()
