"""``finelens completion SHELL``: what makes the tab key complete verbs, options, methods and paths."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem, get_completion_class

from finelens.core.console import Console
from finelens.core.voice import voice
from finelens.methods.auto import AUTO
from finelens.methods.registry import METHODS

# Where click looks for the shell's question.
_VARIABLE = "_FINELENS_COMPLETE"


@click.command()
@voice
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str, console: Console) -> None:
    """Print the script that completes finelens in SHELL; docs/command.md says where to put it."""
    made = get_completion_class(shell)
    assert made is not None
    text = made(context.find_root().command, {}, "finelens", _VARIABLE).source()
    console.answer(text, shell=shell, script=text)


def complete_method(context: click.Context, option: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of the methods of finelens that begin so; those of other packages would have to be imported."""
    known = {AUTO: "chooses one and says why", **{method.name: method.summary for method in METHODS}}
    return [CompletionItem(name, help=summary) for name, summary in known.items() if name.startswith(incomplete)]
