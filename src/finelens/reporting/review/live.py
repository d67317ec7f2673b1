"""The page of a live review."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finelens.core.schemas import VERSION
from finelens.reporting.page import render

if TYPE_CHECKING:
    from finelens.reporting.review.session import Session


def live_html(session: Session, token: str, hints: str) -> str:
    """The page; questions, pictures and all that changes it asks the server for.

    Args:
        session: What it is about.
        token: Secret of the server.
        hints: File that the answers go to.
    """
    subject = session.subject
    content = {
        "title": f"Review of {subject.name}",
        "name": subject.name,
        "classes": bool(subject.classes),
        "new_names": subject.new_names,
        "hints": hints,
        "command": subject.command,
        "version": VERSION,
    }
    data = {"review-data": {"classes": list(subject.classes), "token": token}}
    return render("live.html.j2", content, data, script=("names.js", "live.js"), answers=True)
