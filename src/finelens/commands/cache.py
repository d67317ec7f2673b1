"""``finelens cache``: where it is, what it holds, and how to empty it."""

from __future__ import annotations

import click

from finelens.core.console import Console
from finelens.core.voice import voice
from finelens.errors import UserError


@click.group(invoke_without_command=True)
@voice
@click.pass_context
def cache(context: click.Context, console: Console) -> None:
    """Show where encoded photographs and texts are kept, and how much they take; finelens cache clear removes them."""
    if context.invoked_subcommand is not None:
        return
    from finelens.storage.cache_place import FEATURES, KINDS, LIMIT_VARIABLE, cache_files, cache_folder, cache_limit

    folder, limit = cache_folder(), cache_limit()
    sizes = dict.fromkeys(KINDS, 0)
    counts = dict.fromkeys(KINDS, 0)
    for file in cache_files():
        sizes[file.kind] += file.size
        counts[file.kind] += 1
    lines = [f"{folder}: {size_text(sum(sizes.values()))}"]
    for kind, (what, _) in KINDS.items():
        bound = f", at most {size_text(limit)} ({LIMIT_VARIABLE})" if kind == FEATURES else ""
        lines.append(f"  {what}: {size_text(sizes[kind])} in {counts[kind]:,} files{bound}")
    console.answer("\n".join(lines), folder=str(folder), bytes=sizes, files=counts, limit=limit)


@cache.command()
@voice
@click.option("--older-than", "days", default=0.0, metavar="DAYS", help="Keep what was used within so many days.  [default: keep nothing]")
def clear(days: float, console: Console) -> None:
    """Remove cached files. Runs that are going on are not disturbed: what is missing is computed again."""
    from finelens.storage.cache_place import cache_folder, clear_cache

    if not days >= 0:
        raise UserError(f"--older-than must be a number of days from 0, got {days}")
    count, total, kept = clear_cache(days)
    if kept:
        console.warn(f"{kept} files of {cache_folder()} could not be removed: in use, or another user's")
    console.answer(f"removed {count:,} files, {size_text(total)}, from {cache_folder()}", removed=count, bytes=total, kept=kept)


def size_text(size: float) -> str:
    """Bytes as a person reads them: ``812 kB``, ``3.4 GB``."""
    for unit, one in (("GB", 1e9), ("MB", 1e6)):
        if size >= one:
            return f"{size / one:.1f} {unit}"
    return f"{size / 1e3:.0f} kB"
