"""What the registry knows of a method."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from finelens.core.options import from_mapping

if TYPE_CHECKING:
    from finelens.classes.heads import ClassHeads
    from finelens.engine.engine import Engine
    from finelens.protocol import Task
    from finelens.training.config import TrainingConfig

    Builder = Callable[[Engine, ClassHeads, Any, TrainingConfig, int], Task]


# ``pixels``: the image tower, not only what it gave for the centre views. ``views``: further views of each image that it answers for. ``support``:
# a folder of images of the classes (``options.support``). ``extra``: it can look at features of further encoders (``options.files``). ``hints``:
# labelled photographs. ``stream``: it answers each image when it comes.
Need = Literal["pixels", "views", "support", "extra", "hints", "stream"]


# What becomes of class names that come after the run (``predict --classes``); names may go with every method.
NewClasses = Literal["rebuilt", "text", "refused"]
NEW_CLASSES: dict[NewClasses, str] = {
    "rebuilt": "answered as if they had been in the list from the start",
    "text": "the text says how likely a photograph is of one of them; among the classes of the run the method decides as before",
    "refused": "refused: what was trained knows the classes of the run alone",
}


# What answers where nothing else does.
ZERO_SHOT = "zero-shot"


class Family(NamedTuple):
    """What all methods of a kind have in common."""

    trains: bool
    adapts: bool
    needs: frozenset[Need] = frozenset()
    new_classes: NewClasses = "refused"


FAMILIES = {
    "text": Family(trains=False, adapts=False, new_classes="rebuilt"),
    "views": Family(trains=False, adapts=False, needs=frozenset({"pixels", "views"}), new_classes="rebuilt"),
    "solver": Family(trains=False, adapts=True, new_classes="text"),
    "self-training": Family(trains=True, adapts=True, needs=frozenset({"pixels"})),
    "few-shot": Family(trains=True, adapts=True, needs=frozenset({"pixels", "hints"})),
}


@dataclass(frozen=True)
class Method:
    """One entry of the registry. Naming a method imports nothing; its source is loaded when it is used.

    Attributes:
        name: Lower case, hyphenated.
        family: What kind of method it is, a key of :data:`FAMILIES`; that decides whether it trains and adapts.
        summary: One sentence.
        source: Module with ``CONFIG`` (a frozen dataclass) and ``build(engine, heads, config, training, seed)``; or ``module:Class`` of a solver,
            whose parameters are the options. By default the module of finelens that is called like the method.
        needs: What it takes besides texts and features of the centre views, see :data:`Need`; what its family needs may be left out.
    """

    name: str
    family: str
    summary: str
    source: str = ""
    needs: Set[Need] = frozenset()

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"family of method {self.name} must be one of {', '.join(FAMILIES)}, got {self.family!r}")
        object.__setattr__(self, "source", self.source or f"finelens.methods.{self.name.replace('-', '_')}")
        object.__setattr__(self, "needs", FAMILIES[self.family].needs | self.needs)

    @property
    def trains(self) -> bool:
        """Whether it runs the training loop."""
        return FAMILIES[self.family].trains

    @property
    def adapts(self) -> bool:
        """Whether it uses the target images at all; training methods and solvers do."""
        return FAMILIES[self.family].adapts

    @property
    def few_shot(self) -> bool:
        """Whether it learns from labelled photographs (``--hints``) and cannot run without."""
        return "hints" in self.needs

    @property
    def needs_pixels(self) -> bool:
        """Whether features of the centre views by the unadapted tower are not all it takes."""
        return "pixels" in self.needs

    @property
    def config_class(self) -> type:
        """Frozen dataclass of the method's options."""
        config: type = self._load().CONFIG
        return config

    def options_of_file(self, document: Mapping[str, Any]) -> Any:
        """Options that a file holds. One that is not in it is newer than the file and takes what ``BEFORE`` of the module says, else its default.

        Args:
            document: All options that there were, as JSON holds them.

        Raises:
            UserError: An unknown or ill-typed option; the message names it.
        """
        options: Any = from_mapping(self.config_class, document, "method")
        before = getattr(self._load(), "BEFORE", {})
        return replace(options, **{name: value for name, value in before.items() if name not in document})

    @property
    def new_classes(self) -> NewClasses:
        """What becomes of class names that come after the run: ``NEW_CLASSES`` of the module, that of the solver, or what the family does."""
        declared: NewClasses = getattr(self._load(), "NEW_CLASSES", FAMILIES[self.family].new_classes)
        return declared

    @property
    def training_defaults(self) -> dict[str, Any]:
        """Options of ``training`` that the method was published with, where they differ from the common ones: ``TRAINING`` of its module."""
        return dict(getattr(self._load(), "TRAINING", {}))

    def training_with(self, options: Any) -> dict[str, Any]:
        """:attr:`training_defaults`, and above them what the method's own options ask for, such as a named preset: their ``training_defaults``."""
        return {**self.training_defaults, **getattr(options, "training_defaults", {})}

    def without_training(self, options: Any) -> tuple[str, Any]:
        """Name and options of what answers where a weak start keeps the method from training: as its module says, else zero-shot."""
        declared: Callable[[Any], tuple[str, Any]] | None = getattr(self._load(), "without_training", None)
        return (ZERO_SHOT, None) if declared is None else declared(options)

    @property
    def build(self) -> Builder:
        """Makes the task."""
        builder: Builder = self._load().build
        return builder

    def _load(self) -> Any:
        module, _, solver = self.source.partition(":")
        loaded = importlib.import_module(module)
        if not solver:
            return loaded
        from finelens.methods.parts.solver_method import SolverMethod

        return SolverMethod(getattr(loaded, solver), self.needs)
