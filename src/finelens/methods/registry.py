"""All methods by name. A method is one module with ``CONFIG`` and ``build``, and one line here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from finelens.core.options import nearest
from finelens.errors import UserError

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


@dataclass(frozen=True)
class Method:
    """One line of the registry. Naming a method imports nothing; its module is loaded when it is used.

    Attributes:
        name: Lower case, hyphenated.
        family: What kind of method it is.
        summary: One sentence.
        module: Where ``CONFIG`` (a frozen dataclass) and ``build(engine, heads, config, training, seed)`` live.
        trains: Whether it runs the training loop.
        adapts: Whether it uses the target images at all; training methods and solvers do.
        needs: What it takes besides texts and features of the centre views, see :data:`Need`.
    """

    name: str
    family: str
    summary: str
    module: str
    trains: bool
    adapts: bool
    needs: frozenset[Need] = frozenset()

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
        config: type = importlib.import_module(self.module).CONFIG
        return config

    @property
    def training_defaults(self) -> dict[str, Any]:
        """Options of ``training`` that the method was published with, where they differ from the common ones: ``TRAINING`` of its module."""
        return dict(getattr(importlib.import_module(self.module), "TRAINING", {}))

    def training_with(self, options: Any) -> dict[str, Any]:
        """:attr:`training_defaults`, and above them what the method's own options ask for, such as a named preset: their ``training_defaults``."""
        return {**self.training_defaults, **getattr(options, "training_defaults", {})}

    @property
    def build(self) -> Builder:
        """Makes the task."""
        builder: Builder = importlib.import_module(self.module).build
        return builder


METHODS = (
    Method(
        "zero-shot",
        "text",
        "The unadapted model with a template ensemble: where every comparison starts.",
        "finelens.methods.zero_shot",
        trains=False,
        adapts=False,
    ),
    Method(
        "cupl",
        "text",
        "The unadapted model with the mean of each class's descriptions (CuPL).",
        "finelens.methods.cupl",
        trains=False,
        adapts=False,
    ),
    Method(
        "descriptions",
        "text",
        "The unadapted model with the mean score of each class's descriptions, which can be read one by one.",
        "finelens.methods.descriptions",
        trains=False,
        adapts=False,
    ),
    Method(
        "waffle",
        "text",
        "The unadapted model with random words in place of descriptions: what descriptions must beat.",
        "finelens.methods.waffle",
        trains=False,
        adapts=False,
    ),
    Method(
        "perceptionclip",
        "text",
        "The unadapted model after guessing how the photograph was taken from contextual factors.",
        "finelens.methods.perceptionclip",
        trains=False,
        adapts=False,
    ),
    Method(
        "wca",
        "views",
        "Many crops of an image against the descriptions of each class, both weighted by relevance.",
        "finelens.methods.wca",
        trains=False,
        adapts=False,
        needs=frozenset({"pixels", "views"}),
    ),
    Method(
        "mta",
        "views",
        "The mode of many views of one image, found by mean shift with inlierness scores.",
        "finelens.methods.mta",
        trains=False,
        adapts=False,
        needs=frozenset({"pixels", "views"}),
    ),
    Method(
        "zero",
        "views",
        "A vote of the most confident views of one image.",
        "finelens.methods.zero",
        trains=False,
        adapts=False,
        needs=frozenset({"pixels", "views"}),
    ),
    Method(
        "text-classifier",
        "text",
        "The unadapted model with a linear classifier that was trained on texts alone (LaFTer, first stage).",
        "finelens.methods.text_classifier",
        trains=False,
        adapts=False,
    ),
    Method(
        "gda",
        "solver",
        "Few-shot Gaussian discriminant analysis in closed form, from a few labelled photographs (--hints).",
        "finelens.methods.gda",
        trains=False,
        adapts=True,
        needs=frozenset({"hints"}),
    ),
    Method(
        "gda-em",
        "solver",
        "Gaussian discriminant analysis from text posteriors by expectation maximisation; one linear classifier.",
        "finelens.methods.gda_em",
        trains=False,
        adapts=True,
    ),
    Method(
        "stata",
        "solver",
        "Gaussian mixture anchored at the text statistics of each class; made for classes that may be absent.",
        "finelens.methods.stata",
        trains=False,
        adapts=True,
    ),
    Method(
        "transclip",
        "solver",
        "Gaussian mixture held to the text posterior and smoothed over nearest neighbours.",
        "finelens.methods.transclip",
        trains=False,
        adapts=True,
    ),
    Method(
        "ot",
        "solver",
        "Sinkhorn balancing: the mean posterior is brought to a given, uniform or estimated class prior.",
        "finelens.methods.ot",
        trains=False,
        adapts=True,
    ),
    Method(
        "zlap",
        "solver",
        "Label propagation from class nodes over a graph of images and classes.",
        "finelens.methods.zlap",
        trains=False,
        adapts=True,
    ),
    Method(
        "inmap",
        "solver",
        "Image proxies of the classes, learned from balanced text posteriors.",
        "finelens.methods.inmap",
        trains=False,
        adapts=True,
    ),
    Method(
        "joint-gmm",
        "solver",
        "Gaussian mixtures in several feature spaces that share one posterior an image; ours, after a published idea.",
        "finelens.methods.joint_gmm",
        trains=False,
        adapts=True,
        needs=frozenset({"extra"}),
    ),
    Method(
        "tip-adapter",
        "solver",
        "A cache of hinted images, or else of confident ones, votes beside the text logits.",
        "finelens.methods.tip_adapter",
        trains=False,
        adapts=True,
    ),
    Method(
        "tip-adapter-f",
        "solver",
        "Tip-Adapter whose keys are then trained on their own classes, in seconds.",
        "finelens.methods.tip_adapter_f",
        trains=False,
        adapts=True,
    ),
    Method(
        "sus-x",
        "solver",
        "A support set of images from outside, made or found for each class, votes beside the text logits (TIP-X).",
        "finelens.methods.sus_x",
        trains=False,
        adapts=True,
        needs=frozenset({"support"}),
    ),
    Method(
        "caps-adapter",
        "solver",
        "SuS-X with a caption for every image of the support set.",
        "finelens.methods.caps_adapter",
        trains=False,
        adapts=True,
        needs=frozenset({"support"}),
    ),
    Method(
        "onzeta",
        "solver",
        "A stream in one pass: class weights that keep it balanced, and visual class vectors.",
        "finelens.methods.onzeta",
        trains=False,
        adapts=True,
        needs=frozenset({"stream"}),
    ),
    Method(
        "tda",
        "solver",
        "A stream in one pass: small caches of sure and of doubtful images vote for and against classes.",
        "finelens.methods.tda",
        trains=False,
        adapts=True,
        needs=frozenset({"stream"}),
    ),
    Method(
        "online-gda",
        "solver",
        "A stream in one pass: Gaussian discriminant analysis from the posteriors so far.",
        "finelens.methods.online_gda",
        trains=False,
        adapts=True,
        needs=frozenset({"stream"}),
    ),
    Method(
        "microclip",
        "self-training",
        "Coarse-fine token fusion: saliency-led patch pooling, a multi-view text prior and norm tuning.",
        "finelens.methods.microclip",
        trains=True,
        adapts=True,
        needs=frozenset({"pixels"}),
    ),
    Method(
        "fair",
        "self-training",
        "Selected crops against trainable description anchors decide weighted pseudo-labels; norms and anchors learn.",
        "finelens.methods.fair",
        trains=True,
        adapts=True,
        needs=frozenset({"pixels"}),
    ),
    Method(
        "dpa",
        "self-training",
        "Text and image prototypes decide ranked pseudo-labels together; norms and text prototypes learn.",
        "finelens.methods.dpa",
        trains=True,
        adapts=True,
        needs=frozenset({"pixels"}),
    ),
    Method(
        "lafter",
        "self-training",
        "A classifier trained on texts labels images; visual prompts, norms and its trained copy learn from them.",
        "finelens.methods.lafter",
        trains=True,
        adapts=True,
        needs=frozenset({"pixels"}),
    ),
    Method(
        "nola",
        "self-training",
        "A small network on a second encoder's features labels images; visual prompts, norms and text head learn from them.",
        "finelens.methods.nola",
        trains=True,
        adapts=True,
        needs=frozenset({"pixels"}),
    ),
    Method(
        "upl",
        "self-training",
        "Prompt context learned on the most confident images of each class; several sets of prompts are averaged.",
        "finelens.methods.upl",
        trains=True,
        adapts=True,
        needs=frozenset({"pixels"}),
    ),
    Method(
        "coop",
        "few-shot",
        "Prompt context learned on a few labelled photographs.",
        "finelens.methods.coop",
        trains=True,
        adapts=True,
        needs=frozenset({"pixels", "hints"}),
    ),
)


def find_method(name: str) -> Method:
    """The method of that name.

    Raises:
        UserError: There is none; the message names the nearest.
    """
    for method in METHODS:
        if method.name == name:
            return method
    near = nearest(name, [method.name for method in METHODS])
    remedy = f"did you mean {near}?" if near else f"known are: {', '.join(method.name for method in METHODS)}"
    raise UserError(f"unknown method {name!r}; {remedy}")


def check_hints(method: Method, *, given: bool) -> None:
    """Refuse a few-shot method without hints, and hints that could have no effect.

    Raises:
        UserError: One of the two.
    """
    if method.few_shot and not given:
        free = ", ".join(other.name for other in METHODS if other.adapts and not other.few_shot)
        raise UserError(
            f"method {method.name} learns from labelled photographs: give some with --hints FILE.csv, or choose a label-free method: {free}"
        )
    if given and not method.adapts:
        raise UserError(f"hints have no effect: method {method.name} does not adapt to the images; leave them out or choose another --method")
