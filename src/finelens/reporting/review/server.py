"""A small page on this machine only: shows what is worth a look next and keeps each answer at once."""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from finelens.errors import UserError
from finelens.reporting.review.live import live_html
from finelens.reporting.review.log import AnswerLog
from finelens.reporting.review.plan import Plan, by_worth
from finelens.reporting.review.session import Session
from finelens.reporting.review.subject import Subject
from finelens.storage.files import json_text

LOOPBACK = "127.0.0.1"
# What a page sends is a name or two and a few file names.
LARGEST = 1 << 20
# A request that waits for news is answered after so many seconds at the latest.
PATIENCE = 20.0


class ReviewServer(ThreadingHTTPServer):
    """Serves one subject's review on the loopback interface.

    Args:
        subject: The photographs.
        hints: File to keep.
        port: 0 takes a free one.
        goal: Looks that the person wants to take; may be raised on the page.
        plan: Chooses the questions; by default by worth, with groups.

    Raises:
        UserError: The port is in use, or the hints file cannot be.
    """

    daemon_threads = True

    def __init__(self, subject: Subject, hints: Path, port: int = 0, goal: int = 20, plan: Plan | None = None) -> None:
        self.token, self.hints = secrets.token_urlsafe(16), hints
        self.session = Session(subject, hints, plan or by_worth, goal)
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OSError as error:
            self.session.close()
            raise UserError(f"cannot serve on port {port}: {error.strerror or error}; choose another --port") from error

    def server_close(self) -> None:
        """Free the port and the files."""
        super().server_close()
        self.session.close()

    @property
    def log(self) -> AnswerLog:
        """All that was done."""
        return self.session.log

    @property
    def page(self) -> bytes:
        """The page; what it shows it asks for."""
        return live_html(self.session, self.token, str(self.hints)).encode("utf-8", "backslashreplace")

    @property
    def address(self) -> str:
        """What to open. The loopback interface belongs to every user of the machine: who does not know the token gets nothing."""
        return f"http://{LOOPBACK}:{self.server_address[1]}{self.place}"

    @property
    def place(self) -> str:
        """Path and query of the page."""
        return f"/?token={self.token}"


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer

    def do_GET(self) -> None:
        """The page, and nothing else."""
        if not self._from_here() or not hmac.compare_digest(self.path.encode(errors="replace"), self.server.place.encode()):
            self._answer(HTTPStatus.NOT_FOUND, b"not here", "text/plain")
        else:
            self._answer(HTTPStatus.OK, self.server.page, "text/html; charset=utf-8")

    def do_POST(self) -> None:
        """What a page does; the answer is the look and the state after it."""
        text = self.headers.get("Content-Length") or ""
        # Python refuses to read a number of thousands of digits.
        length = int(text) if text.isdecimal() and len(text) <= len(str(LARGEST)) else 0
        if not self._from_here() or self.path not in _VERBS or not 0 < length <= LARGEST:
            return self._answer(HTTPStatus.NOT_FOUND, b"not here", "text/plain")
        try:
            document = json.loads(self.rfile.read(length))
            if not isinstance(document, Mapping) or not hmac.compare_digest(str(document["token"]).encode(), self.server.token.encode()):
                raise ValueError("the page is not the one this server gave out; reload it")
            reply = _VERBS[self.path](self.server.session, document)
        except (ValueError, KeyError, TypeError, OverflowError, UserError, RecursionError) as error:
            return self._answer(HTTPStatus.BAD_REQUEST, f"{error}".encode("utf-8", "replace"), "text/plain; charset=utf-8")
        return self._answer(HTTPStatus.OK, json_text(reply).encode("utf-8", "backslashreplace"), "application/json")

    def _from_here(self) -> bool:
        """Whether the request names this server: a page elsewhere that points a name at the loopback address does not."""
        return self.headers.get("Host") == f"{LOOPBACK}:{self.server.server_address[1]}"

    def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        try:
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            # Somebody closed the page while it waited for news.
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are no news."""


def _look(session: Session, asked: Mapping[str, Any]) -> dict[str, Any]:
    return {"look": session.look(_text(asked, "tab")), "state": session.state()}


def _take(session: Session, asked: Mapping[str, Any]) -> dict[str, Any]:
    odd = [str(path) for path in asked.get("odd", [])]
    session.answer(_text(asked, "tab"), _text(asked, "who"), int(asked["question"]), _text(asked, "label"), odd)
    return _look(session, asked)


def _skip(session: Session, asked: Mapping[str, Any]) -> dict[str, Any]:
    session.skip(_text(asked, "tab"), _text(asked, "who"), int(asked["question"]))
    return _look(session, asked)


def _undo(session: Session, asked: Mapping[str, Any]) -> dict[str, Any]:
    act = session.undo(_text(asked, "tab"), _text(asked, "who"))
    found = _look(session, asked)
    # Another look is given where somebody else answered the same one as well.
    back = act is not None and found["look"] is not None and found["look"]["id"] == act.question
    return {"undone": act is not None, "odd": session.present(act.odd) if act is not None and back else [], **found}


def _large(session: Session, asked: Mapping[str, Any]) -> dict[str, Any]:
    return {"pictures": session.large(int(asked["question"]))}


def _again(session: Session, asked: Mapping[str, Any]) -> dict[str, Any]:
    session.again(_text(asked, "tab"), _text(asked, "path"))
    return _look(session, asked)


def _go_on(session: Session, asked: Mapping[str, Any]) -> dict[str, Any]:
    session.go_on(int(asked["more"]))
    return _look(session, asked)


def _news(session: Session, asked: Mapping[str, Any]) -> dict[str, Any]:
    session.wait(_text(asked, "tab"), _text(asked, "seen"), PATIENCE)
    return {"state": session.state()}


def _text(asked: Mapping[str, Any], key: str) -> str:
    if not isinstance(value := asked[key], str):
        raise TypeError(f"{key} is no text")
    return value


_VERBS = {
    "/look": _look,
    "/answer": _take,
    "/skip": _skip,
    "/undo": _undo,
    "/again": _again,
    "/large": _large,
    "/more": _go_on,
    "/news": _news,
}
