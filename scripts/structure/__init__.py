"""Measure how a package is built: its rooms, their floors, and how far a value travels between them. Nothing of it is run.

    python -m scripts.structure [--source src/finelens] [--json FILE] [--verbose]
    python -m scripts.structure --source NEW --before OLD                    # two checkouts side by side
    python -m scripts.structure --walk api/predictions.py:predict:photos     # how far a parameter travels; may be given again
    python -m scripts.structure --source NEW --before OLD --walk "inputs=execution.py:read_inputs:config>runs/inputs.py:read_inputs:config"

Paths are those of package folders, and a walk's file is relative to the package: ``NAME=FILE:FUNCTION:PARAMETER``. ``NAME=`` may be left out. Where
the function moved between two checkouts, ``>`` stands between the old place and the new one. All definitions are the same for both checkouts:

Root module
    A ``.py`` file directly in the package folder, ``__init__.py`` included.
Room
    A root module, or a folder directly in the package with everything below it.
Import
    A pair of modules of which one imports the other, once however many names it takes: at the top, in a function or under ``if TYPE_CHECKING``.
Arrow
    An ordered pair of rooms with an import from the first to the second. An import of ``__version__`` from the package itself is one, too.
Floor
    A room stands above all that it imports: 1 + the highest floor among them. Where imports run in a circle, arrows are set aside so that what is
    left has none: those that stand for the fewest imports together. Set aside from the start is what takes nothing but ``__version__`` or another
    double-underscore name from the package itself: that is a constant, and its ``__init__`` only hands names on.
Climbing arrow, climbing import
    One from a lower floor to a higher one.
Circle
    Rooms each of which reaches each other by imports, those aside from the start not counted.
Move
    A call that hands a value on to a function in another room than its own. Each place in the code counts once, however often it is reached.

A walk starts at one parameter and follows every call that passes it on, into the parameter of the callee. It is still the same value after an
assignment, in a container, as an item or an attribute of it (``config.photos``), after a conversion (``Path``, ``str``, ``list``) or ``replace``, as
a field of a dataclass or of what an ``__init__`` filled, and where a function returns it. What is computed from it (``len``, a hash, a message) is
another value. Building a dataclass is no move, but its ``__post_init__`` may be one. Methods are found by annotations and constructors.
Not followed: methods of a ``Protocol`` or of an abstract class, objects of unknown type, functions passed as values, properties.
"""
