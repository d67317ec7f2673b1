"""From a class list, descriptions and templates to the one ``ClassSet`` that every method reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finelens.classes.alignment_report import DescriptionReport
from finelens.classes.descriptions import align, load_descriptions
from finelens.classes.names import check_names, name_warnings
from finelens.classes.templates import DEFAULT_TEMPLATES, check_templates, fill
from finelens.classes.text_files import counted, listing, quote
from finelens.protocol import ClassSet


def build_class_set(
    names: Sequence[str],
    descriptions: str | Path | Mapping[str, Any] | None = None,
    templates: Sequence[str] | None = None,
    synonyms: Sequence[Sequence[str]] = (),
    *,
    count_tokens: Callable[[Sequence[str]], list[int]] | None = None,
    context_length: int | None = None,
) -> tuple[ClassSet, DescriptionReport | None, list[str]]:
    """Check names, templates and descriptions and put them together.

    Args:
        names: Class names.
        descriptions: Description file or dictionary; None for templates only.
        templates: Prompt templates; None for ``DEFAULT_TEMPLATES``.
        synonyms: Further names of each class; empty for none.
        count_tokens: ``Backbone.count_tokens``; with ``context_length``, texts that the model will cut are reported.
        context_length: ``Backbone.context_length``.

    Returns:
        The class set, the report of the descriptions (None without), and warnings about names, one line each.

    Raises:
        UserError: Names, templates or descriptions cannot be used.
    """
    checked = check_names(names)
    used = check_templates(DEFAULT_TEMPLATES if templates is None else templates)
    warnings = name_warnings(checked)
    if count_tokens is not None and context_length is not None:
        warnings += _prompts_cut(checked, used, count_tokens, context_length)
    called = tuple(map(tuple, synonyms)) if any(synonyms) else ()
    if descriptions is None:
        return ClassSet(tuple(checked), used, ((),) * len(checked), called), None, warnings
    aligned, report = align(checked, load_descriptions(descriptions), count_tokens=count_tokens, context_length=context_length)
    return ClassSet(tuple(checked), used, aligned, called), report, warnings


def _prompts_cut(
    names: Sequence[str], templates: Sequence[str], count_tokens: Callable[[Sequence[str]], list[int]], context_length: int
) -> list[str]:
    """Warn of names that do not fit the model in the longest template; the shorter ones would cut them at most as much."""
    lengths = count_tokens([fill(max(templates, key=len), name) for name in names])
    cut = [f"{quote(name)} ({tokens} tokens)" for name, tokens in zip(names, lengths, strict=True) if tokens > context_length]
    return (
        [f"{counted(len(cut), 'class name', 'class names')} in a template of more than {context_length} tokens, to be cut: {listing(cut)}"]
        if cut
        else []
    )
