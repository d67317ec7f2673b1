"""Methods of another package: one of each family, each a module or a solver, and one entry."""

from finelens.methods.registry import Method

METHODS = [
    Method("toy-text", "text", "The unadapted model.", "finelens_toys.text"),
    Method("toy-views", "views", "The mean of several views.", "finelens_toys.views"),
    Method("toy-solver", "solver", "Class means of the posterior.", "finelens_toys.solvers:ToyMeans"),
    Method("toy-support", "solver", "Class means that start from a support set.", "finelens_toys.solvers:ToySupport", needs={"support"}),
    Method("toy-extra", "solver", "A mixture in several views.", "finelens_toys.solvers:ToyExtra", needs={"extra"}),
    Method("toy-stream", "solver", "Running class means.", "finelens_toys.solvers:ToyStream", needs={"stream"}),
    Method("toy-self-training", "self-training", "A head towards its own labels.", "finelens_toys.self_training"),
    Method("toy-few-shot", "few-shot", "A head towards given labels.", "finelens_toys.few_shot"),
]
