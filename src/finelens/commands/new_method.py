"""``finelens new-method NAME``: a package with a method that works, to be made another's own."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

import click

from finelens.core.console import Console
from finelens.core.given import PATH
from finelens.core.schemas import VERSION
from finelens.core.voice import voice
from finelens.errors import UserError

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@click.command("new-method")
@voice
@click.argument("name")
@click.option("--out", type=PATH, help="Folder to write.  [default: finelens-NAME]")
def new_method(name: str, out: Path | None, console: Console) -> None:
    """Write a package with a method NAME whose tests pass as written: a solver on features, found by finelens once it is installed.

    docs/adding_a_method.md says what to change, how to publish it, and how to put its row beside ours.
    """
    import shlex

    from finelens.methods.registry import all_methods

    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise UserError(f"a method is called in lower case with hyphens, as nearest-mean is; got {name!r}")
    if name in {"auto", *(method.name for method in all_methods())}:
        raise UserError(f"there is a method {name} already; choose another name")
    out = out or Path(f"finelens-{name}")
    written = write_package(name, out)
    module = module_of(name)
    console.say(f"wrote {len(written)} files to {out}; the method is in {out / 'src' / module / 'solver.py'}")
    console.say(f"next: pip install --editable {shlex.quote(f'{out}[test]')} && pytest {shlex.quote(str(out))} && finelens methods")
    console.answer("", out=str(out), module=module, files=[str(path) for path in written])


def module_of(name: str) -> str:
    """Name of the module of a method."""
    return f"finelens_{name.replace('-', '_')}"


def write_package(name: str, out: Path) -> list[Path]:
    """Write the files of a package with a method of that name.

    Returns:
        The files.

    Raises:
        UserError: The folder is there and not empty, or cannot be written.
    """
    module = module_of(name)
    places = {
        "pyproject.txt": "pyproject.toml",
        "readme.txt": "README.md",
        "init.txt": f"src/{module}/__init__.py",
        "solver.txt": f"src/{module}/solver.py",
        "test.txt": f"tests/test_{name.replace('-', '_')}.py",
    }
    from importlib.resources import files

    words = {"@NAME@": name, "@MODULE@": module, "@CLASS@": name.title().replace("-", ""), "@VERSION@": VERSION}
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} is there already; choose another --out")
        for source, place in places.items():
            text = files("finelens.commands").joinpath("scaffold", source).read_text(encoding="utf-8")
            for word, value in words.items():
                text = text.replace(word, value)
            path = out / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}; choose another --out") from error
    return [out / place for place in places.values()]
