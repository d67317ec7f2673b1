"""``finelens methods`` and ``backbones``: what there is to choose from."""

from __future__ import annotations

import click

from finelens.core.console import Console
from finelens.core.voice import voice
from finelens.methods import auto
from finelens.methods.registry import DEFAULT_METHOD, all_methods


@click.command()
@voice
def methods(console: Console) -> None:
    """List the methods: name, family, one sentence. The default comes first."""
    known = sorted(all_methods(), key=lambda method: method.name != DEFAULT_METHOD)
    lines = [(method.name, method.family, f"Default. {method.summary}" if method.name == DEFAULT_METHOD else method.summary) for method in known]
    lines.insert(1, (auto.AUTO, auto.FAMILY, auto.SUMMARY))
    name_width = max(len(name) for name, _, _ in lines)
    family_width = max(len(family) for _, family, _ in lines)
    text = "\n".join(f"{name:<{name_width}}  {family:<{family_width}}  {summary}" for name, family, summary in lines)
    console.answer(text, methods=[{"name": name, "family": family, "summary": summary} for name, family, summary in lines], default=DEFAULT_METHOD)


@click.command()
@voice
@click.option("--for", "use", help="natural, satellite, species, medical or languages.  [default: all]")
def backbones(use: str | None, console: Console) -> None:
    """List models to start from: what for, size, licence, published zero-shot accuracy and its source."""
    from finelens.backbones.catalogue import known_backbones, table_lines

    rows = known_backbones(use)
    console.answer("\n".join(table_lines(rows)), backbones=[row.to_json() for row in rows])
