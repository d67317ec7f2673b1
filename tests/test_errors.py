"""A message names the options of the command; in Python it also names the arguments that say the same."""

from __future__ import annotations

import ast
import inspect
import pickle
import re
from pathlib import Path

import pytest

import finelens
from finelens import api
from finelens.errors import ARGUMENTS, UserError
from finelens.runs.classifier import Classifier
from finelens.serving.server import serve
from tests.toy import QUIET, write_classes, write_photos

SOURCE = Path(finelens.__file__).parent
# What the command alone is made of.
COMMAND = ("cli.py", "commands", "bench", "demo", "core/voice.py")
# Options that only the command has.
ONLY_THERE = {"engine", "ray-address", "pdf", "help", "force-reinstall", "data", "data-root"}


def named_in(path: Path) -> set[str]:
    """Options in the messages that a module raises."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    texts = [part.value for call in calls if getattr(call.func, "id", "") == "UserError" for part in ast.walk(call) if isinstance(part, ast.Constant)]
    return {flag for text in texts if isinstance(text, str) for flag in re.findall(r"(?<![\w-])--([a-z]+(?:-[a-z]+)*)", text)}


def test_every_option_in_a_message_has_its_argument():
    found = {flag for path in SOURCE.rglob("*.py") if not path.relative_to(SOURCE).as_posix().startswith(COMMAND) for flag in named_in(path)}
    assert len(found) > 30
    assert found - ARGUMENTS.keys() <= ONLY_THERE, f"finelens.errors lacks {sorted(found - ARGUMENTS.keys() - ONLY_THERE)}"


def test_every_argument_exists():
    public = [getattr(finelens, name) for name in finelens.__all__ if name not in ("RunResult", "UserError", "__version__")]
    public += [api.ask, api.join, api.predict_to, api.review_server, Classifier.with_classes, serve]
    known = {name for function in public for name in inspect.signature(function).parameters}
    assert {text.partition("=")[0] for text in ARGUMENTS.values()} <= known


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("give another folder, or --overwrite to replace that run", "overwrite=True"),
        ("--hints and --in say the same; leave --hints out", "hints=..., in_file=..."),
        ("raise it with --set views.max_megapixels=100", "options={'views': {'max_megapixels': ...}}"),
        ("--set names an option", "options=..."),
        ("nothing --serve, no-overwrite or a--csv", None),
    ],
)
def test_arguments_stand_behind_the_message(message, arguments):
    error = UserError(message)
    assert str(error) == (message if arguments is None else f"{message} (from Python: {arguments})")
    # What quotes it, and the command, have the message alone.
    assert f"{error}" == error.message == message
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_python_and_the_command_name_their_own(tmp_path, tiny_vit, capsys):
    from finelens.cli import main

    photos, classes = write_photos(tmp_path / "photos"), write_classes(tmp_path / "names.txt")
    given = {"backbone": f"local:{tiny_vit}", "method": "zero-shot", "console": QUIET}
    api.zero_shot(photos, classes, tmp_path / "run", **given)
    with pytest.raises(UserError, match=r"--overwrite to replace that run \(from Python: overwrite=True\)"):
        api.zero_shot(photos, classes, tmp_path / "run", **given)
    with pytest.raises(SystemExit):
        main(["zero-shot", str(photos), "--classes", str(classes), "--out", str(tmp_path / "run"), "--backbone", f"local:{tiny_vit}"])
    said = capsys.readouterr().err
    assert said.endswith("--overwrite to replace that run\n")
