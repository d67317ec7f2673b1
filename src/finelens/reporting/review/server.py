"""A small page on this machine only: shows the sheet and writes each answer to ``hints.csv`` at once."""

from __future__ import annotations

import hmac
import json
import secrets
import threading
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from finelens.classes.hints import hints_csv
from finelens.errors import UserError
from finelens.reporting.page import script_json
from finelens.reporting.record import RunRecord
from finelens.reporting.review.answers import earlier_answers, other_answers, own_answers, read_answers
from finelens.reporting.review.order import Look
from finelens.reporting.review.sheet import LIMIT, photographs, sheet_html
from finelens.storage.files import write_text

LOOPBACK = "127.0.0.1"
# An answer is a list of file names and class names; what is longer is no answer.
LARGEST = 8 << 20


class ReviewServer(ThreadingHTTPServer):
    """Serves one run's sheet on the loopback interface.

    Args:
        record: A finished run.
        hints: File to write.
        port: 0 takes a free one.
        limit: Most photographs on the sheet.
        chosen: The photographs in their order; by default those most likely to be wrong.

    Raises:
        UserError: The port is in use.
    """

    daemon_threads = True

    def __init__(self, record: RunRecord, hints: Path, port: int = 0, limit: int = LIMIT, chosen: Sequence[Look] | None = None) -> None:
        found = read_answers(hints)
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OSError as error:
            raise UserError(f"cannot serve on port {port}: {error.strerror or error}; choose another --port") from error
        self.token = secrets.token_urlsafe(16)
        self.hints = hints
        self.paths = frozenset(row.path for row in record.read)
        self.classes = frozenset(record.classes)
        self._others = other_answers(record, found)
        self._given = earlier_answers(record) | own_answers(record, found)
        self._lock = threading.Lock()
        # Pictures are made once; the answers of the moment are put in whenever the page is asked for.
        self._mark = {secrets.token_hex(8): ""}
        self._html = sheet_html(record, photographs(record), limit, token=self.token, answers=self._mark, hints=str(hints), chosen=chosen)

    @property
    def page(self) -> bytes:
        """The sheet with all answers so far."""
        return self._html.replace(script_json(self._mark), script_json(self._given)).encode("utf-8", "backslashreplace")

    def take(self, answers: Mapping[str, str]) -> int:
        """Add answers and write the file; what another page said, and rows about other photographs, stay.

        Returns:
            Answers so far.

        Raises:
            UserError: The file cannot be written.
        """
        with self._lock:
            given = self._given | dict(answers)
            write_text(self.hints, hints_csv(self._others | given))
            self._given = given
            return len(given)

    @property
    def address(self) -> str:
        """What to open. The loopback interface belongs to every user of the machine: who does not know the token gets nothing."""
        return f"http://{LOOPBACK}:{self.server_address[1]}{self.place}"

    @property
    def place(self) -> str:
        """Path and query of the sheet."""
        return f"/?token={self.token}"


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer

    def do_GET(self) -> None:
        """The sheet, and nothing else."""
        if not self._from_here() or not hmac.compare_digest(self.path.encode(errors="replace"), self.server.place.encode()):
            self._answer(HTTPStatus.NOT_FOUND, b"not here", "text/plain")
        else:
            self._answer(HTTPStatus.OK, self.server.page, "text/html; charset=utf-8")

    def do_POST(self) -> None:
        """The answers of a page; they are added to ``hints.csv``."""
        length = int(text) if (text := self.headers.get("Content-Length") or "").isdecimal() else 0
        if not self._from_here() or self.path != "/hints" or not 0 < length <= LARGEST:
            return self._answer(HTTPStatus.NOT_FOUND, b"not here", "text/plain")
        try:
            document = json.loads(self.rfile.read(length))
            count = self.server.take(self._checked(document))
        except (ValueError, KeyError, TypeError, UserError) as error:
            return self._answer(HTTPStatus.BAD_REQUEST, str(error).encode("utf-8", "replace"), "text/plain")
        return self._answer(HTTPStatus.OK, str(count).encode(), "text/plain")

    def _from_here(self) -> bool:
        """Whether the request names this server: a page elsewhere that points a name at the loopback address does not."""
        return self.headers.get("Host") == f"{LOOPBACK}:{self.server.server_address[1]}"

    def _checked(self, document: Any) -> dict[str, str]:
        if not isinstance(document, Mapping) or not hmac.compare_digest(str(document["token"]), self.server.token):
            raise ValueError("the page is not the one this server gave out; reload it")
        rows = {str(path): str(label) for path, label in document["hints"]}
        if strange := set(rows) - self.server.paths or set(rows.values()) - self.server.classes - {""}:
            raise ValueError(f"{sorted(strange)[0]!r} is no photograph or class of this run; reload the page")
        return rows

    def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are no news."""
