"""Write docs/api.md from the docstrings of the public names: ``python scripts/api_page.py``."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import finelens

PAGE = Path(__file__).parents[1] / "docs" / "api.md"


def page() -> str:
    parts = ["# Python", "", "What `import finelens` gives. Written by `python scripts/api_page.py` from the docstrings.", ""]
    for name in finelens.__all__:
        thing = getattr(finelens, name)
        if not callable(thing):
            continue
        text = inspect.getdoc(thing) or ""
        # References of the sources are names here.
        text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
        names = [parameter.name for parameter in inspect.signature(thing).parameters.values()] if not isinstance(thing, type) else []
        head, _, rest = text.partition("\n\n")
        parts += [f"## {name}", "", f"`finelens.{name}({', '.join(names)})`", "", head, ""]
        parts += ["```text", rest, "```", ""] if rest else []
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
