"""All methods by name: what finelens brings, and what other packages add. A method is one module or solver, and one entry here."""

from __future__ import annotations

from finelens.core.options import nearest
from finelens.errors import UserError
from finelens.methods.method import Method
from finelens.methods.plugins import find_plugins

__all__ = ["DEFAULT_METHOD", "METHODS", "Method", "all_methods", "bringing_package", "check_hints", "find_method", "plugin_problems"]

DEFAULT_METHOD = "consensus"

METHODS = (
    Method("zero-shot", "text", "The unadapted model with a template ensemble: where every comparison starts."),
    Method("cupl", "text", "The unadapted model with the mean of each class's descriptions (CuPL)."),
    Method("descriptions", "text", "The unadapted model with the mean score of each class's descriptions, which can be read one by one."),
    Method("waffle", "text", "The unadapted model with random words in place of descriptions: what descriptions must beat."),
    Method("perceptionclip", "text", "The unadapted model after guessing how the photograph was taken from contextual factors."),
    Method("wca", "views", "Many crops of an image against the descriptions of each class, both weighted by relevance."),
    Method("mta", "views", "The mode of many views of one image, found by mean shift with inlierness scores."),
    Method("zero", "views", "A vote of the most confident views of one image."),
    Method("text-classifier", "text", "The unadapted model with a linear classifier that was trained on texts alone (LaFTer, first stage)."),
    Method(
        "carprt",
        "solver",
        "The unadapted model with a weight of each prompt template for each class, from unlabelled images (CARPRT).",
        "finelens.methods.carprt",
    ),
    Method(
        "gda",
        "solver",
        "Few-shot Gaussian discriminant analysis in closed form, from a few labelled photographs (--hints).",
        "finelens.solvers:Gda",
        needs={"hints"},
    ),
    Method(
        "gda-em",
        "solver",
        "Gaussian discriminant analysis from text posteriors by expectation maximisation; one linear classifier.",
        "finelens.solvers:GdaEm",
    ),
    Method(
        "stata",
        "solver",
        "Gaussian mixture anchored at the text statistics of each class; made for classes that may be absent.",
        "finelens.solvers:StatA",
    ),
    Method("transclip", "solver", "Gaussian mixture held to the text posterior and smoothed over nearest neighbours.", "finelens.solvers:TransClip"),
    Method(
        "ot",
        "solver",
        "Sinkhorn balancing: the mean posterior is brought to a given, uniform or estimated class prior.",
        "finelens.solvers:SinkhornOt",
    ),
    Method(
        "self-adaptive-ot",
        "solver",
        "Transport with even class masses from what text and several feature spaces say, each weighted by how far it agrees.",
        "finelens.solvers:SelfAdaptiveOt",
        needs={"extra"},
    ),
    Method("zlap", "solver", "Label propagation from class nodes over a graph of images and classes.", "finelens.solvers:ZLaP"),
    Method("inmap", "solver", "Image proxies of the classes, learned from balanced text posteriors.", "finelens.solvers:InMap"),
    Method(
        "joint-gmm",
        "solver",
        "Gaussian mixtures in several feature spaces that share one posterior an image; ours, after a published idea.",
        "finelens.solvers:JointGmm",
        needs={"extra"},
    ),
    Method(
        "consensus",
        "solver",
        "Photographs that look alike and the class names decide together, with no training (mixtures, a cache and a linear head); ours.",
        "finelens.solvers:Consensus",
        needs={"extra"},
    ),
    Method(
        "tip-adapter", "solver", "A cache of hinted images, or else of confident ones, votes beside the text logits.", "finelens.solvers:TipAdapter"
    ),
    Method("tip-adapter-f", "solver", "Tip-Adapter whose keys are then trained on their own classes, in seconds.", "finelens.solvers:TipAdapterF"),
    Method(
        "sus-x",
        "solver",
        "A support set of images from outside, made or found for each class, votes beside the text logits (TIP-X).",
        "finelens.solvers:SusX",
        needs={"support"},
    ),
    Method("caps-adapter", "solver", "SuS-X with a caption for every image of the support set.", "finelens.solvers:CapsAdapter", needs={"support"}),
    Method(
        "onzeta",
        "solver",
        "A stream in one pass: class weights that keep it balanced, and visual class vectors.",
        "finelens.solvers:OnZeta",
        needs={"stream"},
    ),
    Method(
        "tda",
        "solver",
        "A stream in one pass: small caches of sure and of doubtful images vote for and against classes.",
        "finelens.solvers:TDA",
        needs={"stream"},
    ),
    Method(
        "pta",
        "solver",
        "A stream in one pass: running class means of what the text names, weighted by its confidence.",
        "finelens.solvers:Pta",
        needs={"stream"},
    ),
    Method(
        "online-gda",
        "solver",
        "A stream in one pass: Gaussian discriminant analysis from the posteriors so far.",
        "finelens.solvers:OnlineGda",
        needs={"stream"},
    ),
    Method(
        "consensus-tuned",
        "self-training",
        "The answer of consensus teaches the tower, and consensus answers again on it; both answer together where label-free signals say so; ours.",
    ),
    Method("microclip", "self-training", "Coarse-fine token fusion: saliency-led patch pooling, a multi-view text prior and norm tuning."),
    Method("fair", "self-training", "Selected crops against trainable description anchors decide weighted pseudo-labels; norms and anchors learn."),
    Method("dpa", "self-training", "Text and image prototypes decide ranked pseudo-labels together; norms and text prototypes learn."),
    Method("lafter", "self-training", "A classifier trained on texts labels images; visual prompts, norms and its trained copy learn from them."),
    Method(
        "nola", "self-training", "A small network on a second encoder's features labels images; visual prompts, norms and text head learn from them."
    ),
    Method(
        "mars",
        "self-training",
        "For long tails: prompts and a text adapter learn answers that images support, then the tower learns labels or posteriors by class (MARS).",
    ),
    Method("upl", "self-training", "Prompt context learned on the most confident images of each class; several sets of prompts are averaged."),
    Method("coop", "few-shot", "Prompt context learned on a few labelled photographs."),
    Method("clip-svd", "few-shot", "Singular values of both towers' matrices learned on a few labelled photographs (CLIP-SVD)."),
)


def all_methods() -> tuple[Method, ...]:
    """Those of finelens, then those of other packages; the first call imports what other packages name."""
    return (*METHODS, *find_plugins(_own_names()).methods)


def plugin_problems() -> tuple[str, ...]:
    """What of other packages was left out and why, one line each."""
    return find_plugins(_own_names()).problems


def bringing_package(name: str) -> str | None:
    """Package and version that bring a method; None of a method of finelens."""
    return find_plugins(_own_names()).brought.get(name)


def find_method(name: str) -> Method:
    """The method of that name.

    Raises:
        UserError: There is none; the message names the nearest, or else all, packages whose methods could not be had, and where others were
            looked for.
    """
    for method in METHODS:
        if method.name == name:
            return method
    names = [method.name for method in all_methods()]
    if name in names:
        return all_methods()[names.index(name)]
    if near := nearest(name, names):
        raise UserError(f"unknown method {name!r}; did you mean {near}?")
    plugins = find_plugins(_own_names())
    raise UserError("; ".join([f"unknown method {name!r}; known are: {', '.join(names)}", *plugins.problems, plugins.searched()]))


def _own_names() -> frozenset[str]:
    # The word for choosing one of them is no name of a method.
    return frozenset({"auto", *(method.name for method in METHODS)})


def check_hints(method: Method, *, given: bool) -> None:
    """Refuse a few-shot method without hints, and hints that could have no effect.

    Raises:
        UserError: One of the two.
    """
    if method.few_shot and not given:
        free = ", ".join(other.name for other in all_methods() if other.adapts and not other.few_shot)
        raise UserError(
            f"method {method.name} learns from labelled photographs: give some with --hints FILE.csv, or choose a label-free method: {free}"
        )
    if given and not method.adapts:
        raise UserError(f"hints have no effect: method {method.name} does not adapt to the images; leave them out or choose another --method")
