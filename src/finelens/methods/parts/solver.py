"""A solver on frozen global features as a method: nothing is trained, its statistics of the target images are the model."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass, replace
from dataclasses import fields as dataclass_fields
from functools import cache, reduce
from operator import or_
from types import UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.classes.heads import ClassHeads
from finelens.core.options import require
from finelens.engine.engine import Engine
from finelens.methods.parts.frozen import FrozenTask
from finelens.protocol import Hints, ImageTokens, Rows, TargetFeatures, Tested
from finelens.solvers import Solver
from finelens.solvers.parameters import allowed, rule
from finelens.solvers.return_rule import ReturnRule
from finelens.training.state import resize_on_load

# What the return rule keeps with the model, and images that it has in work at a time.
RETURNS = ("return_means", "return_shares")
CHUNK = 1024


@dataclass(frozen=True)
class SolverConfig:
    """Options that all solvers share (``--set method.key=value``); :func:`solver_options` adds the parameters of one of them.

    Attributes:
        head: Text prototypes: mean of each class's ``descriptions`` (templates stand in for a class without), or the ensemble of ``templates``.
        return_rule: Share of the gains over the text without support by the images that goes back to the class that the text names
            (:mod:`~finelens.solvers.return_rule`); 0 leaves the answers alone, 1 is the published rule.
    """

    solver: ClassVar[type[Solver]]

    head: Literal["descriptions", "templates"] = "descriptions"
    return_rule: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.return_rule <= 1, "method.return_rule", "between 0 and 1", self.return_rule)
        for name in _parameters(self.solver):
            _require(f"method.{name}", self.solver._parameter_constraints[name], getattr(self, name))

    def new_solver(self, seed: int) -> Solver:
        """The solver with these parameters, not fitted; one that draws numbers gets the seed of the run."""
        own = {name: getattr(self, name) for name in _parameters(self.solver)}
        seeded = {"seed": seed} if "seed" in inspect.signature(self.solver).parameters else {}
        return self.solver(**own, **seeded)


@cache
def solver_options(solver: type[Solver], base: type[SolverConfig] = SolverConfig) -> type[SolverConfig]:
    """Options of a solver method as a frozen dataclass: those of ``base``, then the solver's parameters with its defaults and constraints."""
    hints = get_type_hints(solver.__init__)
    fields = [(name, _as_option(hints[name]), default) for name, default in _parameters(solver).items()]

    def reduced(self: SolverConfig) -> tuple[Any, ...]:
        # No module holds a class that is made here: a pickle names what it is made from.
        return _options, (solver, base, {field.name: getattr(self, field.name) for field in dataclass_fields(self)})

    namespace = {"solver": solver, "__doc__": solver.__doc__, "__module__": solver.__module__, "__reduce__": reduced}
    return make_dataclass(f"{solver.__name__}Config", fields, bases=(base,), namespace=namespace, frozen=True)


def _options(solver: Any, base: Any, values: dict[str, Any]) -> SolverConfig:
    return solver_options(solver, base)(**values)


def _parameters(solver: type[Solver]) -> dict[str, Any]:
    """Names and defaults of the parameters that are options."""
    parameters = inspect.signature(solver).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name not in solver.internal}


def _as_option(hint: Any) -> Any:
    """The type of a parameter as options are read: a tuple where any sequence will do."""
    if get_origin(hint) in (Union, UnionType):
        return reduce(or_, map(_as_option, get_args(hint)))
    as_read: Any = tuple
    return as_read[*get_args(hint), ...] if get_origin(hint) is Sequence else hint


def _require(key: str, constraints: Sequence[Any], value: Any) -> None:
    """Refuse a value that breaks a solver's constraints."""
    if not allowed(constraints, value):
        from sklearn.utils._param_validation import Interval, make_constraint

        found = [make_constraint(constraint) for constraint in constraints]
        require(False, key, " or ".join(rule(one) if isinstance(one, Interval) else str(one) for one in found), value)
    if isinstance(value, tuple):
        usable = bool(value) and all(0 < share < math.inf for share in value)
        require(usable, key, "estimated, uniform, or finite numbers above 0, one a class", list(value))


def _hints_of_all(features: TargetFeatures) -> Hints | None:
    """The hints about images of a part, as hints about all of them."""
    hints = features.hints
    return hints if hints is None or features.places is None else replace(hints, index=features.places[hints.index.cpu()])


class SolverTask(FrozenTask):
    """Fits a solver to the target images in :meth:`prepare` and answers for new images one by one.

    Args:
        engine: Runs the backbone.
        heads: Text heads.
        solver: Not fitted yet.
        config: Options.
    """

    def __init__(self, engine: Engine, heads: ClassHeads, solver: Solver, config: SolverConfig) -> None:
        super().__init__(engine)
        self.solver = solver
        self.config = config
        self.prototypes = getattr(heads, config.head)
        # Statistics are kept in float64, which Apple's GPUs do not know.
        self.place = torch.device("cpu") if engine.device.type == "mps" else engine.device
        for name in solver.state_names:
            self.register_buffer(name, torch.empty(0, device=self.place))
        resize_on_load(self, *solver.state_names)
        if config.return_rule:
            for name in RETURNS:
                self.register_buffer(name, torch.empty(0, device=self.place))
            resize_on_load(self, *RETURNS)

    def rows(self, tokens: ImageTokens | TargetFeatures) -> Tensor | list[Tensor]:
        """What the solver takes of the images: their joint-space feature."""
        return tokens.global_.to(self.place)

    def many_rows(self, features: TargetFeatures) -> Rows | None:
        """The same of all images where the features are those of a part; else None."""
        return features.rows

    def prepare(self, features: TargetFeatures) -> None:
        """Fit the solver; its state becomes the buffers."""
        prototypes, scale = self.prototypes.to(self.place), self.engine.backbone.logit_scale
        many = self.many_rows(features)
        if many is None:
            probabilities = self.solver.fit_predict_proba(self.rows(features), prototypes=prototypes, logit_scale=scale, hints=features.hints)
        else:
            self.solver.fit(many, prototypes=prototypes, logit_scale=scale, hints=_hints_of_all(features))
            probabilities = self.solver.predict_proba(self.rows(features))
        if self.config.return_rule:
            probabilities = self._learn_returns(features, probabilities)
        # What the solver says of the images of the fit themselves, (N, C), may rest on more than it keeps; it is no part of the model.
        self.target_log_proba = probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()
        for name, tensor in self.solver.state().items():
            setattr(self, name, tensor)

    def _learn_returns(self, features: TargetFeatures, answer: Tensor) -> Tensor:
        """The answers (N, C) after the return. A hinted image is its own text, so nothing goes back; one of no class teaches nothing."""
        x, text = features.global_.to(self.place), self._text_posterior(features.global_)
        counted = torch.ones(len(x), dtype=torch.bool, device=self.place)
        if features.hints is not None:
            index, label = features.hints.index.to(self.place), features.hints.label.to(self.place)
            counted[index[label < 0]] = False
            text[index[label >= 0]] = F.one_hot(label[label >= 0], text.shape[1]).to(text)
        share, chunk = self.config.return_rule, CHUNK
        rule = ReturnRule.learn(x[counted], text[counted], answer[counted], share=share, chunk_size=chunk)
        self.return_means, self.return_shares = rule.means, rule.shares
        after, returned = rule.apply(x, text, answer, chunk_size=chunk)
        self.returned = float(returned.mean())
        return after

    def _text_posterior(self, features: Tensor) -> Tensor:
        """``softmax(s <x, w_c>)`` (B, C) of unit-norm features (B, E)."""
        return (self.engine.backbone.logit_scale * features.to(self.place) @ self.prototypes.to(features).to(self.place).T).softmax(1)

    def notes(self) -> list[str]:
        """What the solver decided, and what went back to the text."""
        said = [f"{100 * self.returned:.1f} % of the probability went back to the class that the text names"] if self.config.return_rule else []
        return [*self.solver.notes(), *said]

    def tested(self) -> Tested | None:
        """What the solver found when it was fitted."""
        return self.solver.tested_

    @torch.no_grad()
    def predict_logits(self, images: Tensor) -> dict[str, Tensor]:
        """Log-probabilities of the images' features under the fitted solver."""
        rows = self.seen(images)
        log_proba = self.fitted().predict_log_proba(rows)
        if self.config.return_rule:
            x = first_view(rows)
            rule = ReturnRule(self.return_means, self.return_shares)
            answers = rule.apply(x, self._text_posterior(x), log_proba.exp(), chunk_size=CHUNK)[0]
            log_proba = answers.clamp_min(torch.finfo(answers.dtype).tiny).log()
        return {"logits": log_proba.float()}

    def fitted(self) -> Solver:
        """The solver with the buffers as its state."""
        state = {name: getattr(self, name) for name in self.solver.state_names}
        classes, width = self.prototypes.shape
        return self.solver.load_state(state, classes=classes, features=width)

    def prediction_state(self) -> dict[str, Tensor]:
        """The buffers; one that models of before do not hold is no part of such a model."""
        late = self.solver.late_state
        return {name: tensor for name, tensor in self.state_dict().items() if name not in late or tensor.numel()}

    def seen(self, images: Tensor) -> Tensor | list[Tensor]:
        """What the solver takes of uint8 centre views (B, 3, S, S), or of :class:`~finelens.protocol.FeatureRows` of them."""
        return self.rows(self.engine.encode_frozen(images))


def first_view(rows: Tensor | list[Tensor]) -> Tensor:
    """The joint-space feature among what a solver takes."""
    return rows[0] if isinstance(rows, list) else rows
