"""Reading the small text and JSON files that users write, with errors that name the file and the place, and wording shared by those errors.

In the text files blank lines are skipped, and so are comments: lines whose first word consists of number signs (``# like this``). ``C#`` and ``#1``
are content. A line of content that would read as a comment is written with a backslash before it (``\\# 5``), or in the JSON form of the file.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finelens.core.beside import check_the_path
from finelens.errors import UserError

MAX_BYTES = 256 * 2**20
_SHOWN = 5
_QUOTED_LENGTH = 80
_COMMENT = re.compile(r"#+(\s|$)")
_ESCAPED = re.compile(r"\\+#")
_LINE_END = re.compile(r"\r\n|\n|\r")


def quote(text: str) -> str:
    """The text as it may stand in a one-line message: quoted, unprintable characters escaped, shortened in the middle: paths end in what matters."""
    half = (_QUOTED_LENGTH - 3) // 2
    return repr(text if len(text) <= _QUOTED_LENGTH else f"{text[:half]}...{text[-half:]}")


def counted(number: int, singular: str, plural: str) -> str:
    """The number with the noun in agreement, ``1 class``, ``2 classes``."""
    return f"{number} {singular if number == 1 else plural}"


def listing(items: Sequence[str], limit: int = _SHOWN) -> str:
    """The first items joined by commas, then how many more there are."""
    return _first(items, limit, ", ", " ")


def faults(items: Sequence[str]) -> str:
    """What is wrong in several places, as far as a person can take it in at once, then how many more there are."""
    return _first(items, _SHOWN, "; ", "; ")


def _first(items: Sequence[str], limit: int, between: str, last: str) -> str:
    shown = between.join(items[:limit])
    return shown if len(items) <= limit else f"{shown}{last}and {len(items) - limit} more"


def control_character(text: str) -> str | None:
    """The first character that has no place in a line of text, as ``U+0007``: controls, line separators, and surrogates, which UTF-8 cannot hold."""
    bad = next((char for char in text if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")), None)
    return None if bad is None else f"U+{ord(bad):04X}"


def split_lines(text: str) -> list[str]:
    """Lines without their ends, which only newlines and returns are: ``str.splitlines`` also cuts names that hold U+0085, U+2028 or a form feed."""
    lines = _LINE_END.split(text)
    return lines if lines[-1] else lines[:-1]


# Where names were typed and a file of them is meant.
_TYPED = "give a text file, one entry a line"


def read_utf8(path: str | Path, what: str) -> str:
    """Read a whole UTF-8 file, with or without a byte-order mark.

    Args:
        path: The file.
        what: What the file is to the user, for messages (``class file``).

    Raises:
        UserError: As :func:`read_bytes`, or not UTF-8.
    """
    data = read_bytes(path, what)
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise not_utf8(path, what, data, error) from None


def not_utf8(path: str | Path, what: str, data: bytes, error: UnicodeDecodeError) -> UserError:
    """What to say of a file of another encoding."""
    found = "it looks like UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else f"byte 0x{data[error.start]:02x}"
    return UserError(f"{what} {quote(str(path))} is not UTF-8 at byte offset {error.start} ({found}); save it as UTF-8")


def read_bytes(path: str | Path, what: str) -> bytes:
    """Read a whole file; arguments as for :func:`read_utf8`.

    Raises:
        UserError: The file is missing, a folder, unreadable, or larger than ``MAX_BYTES``.
    """
    try:
        # A device or pipe has no size to check beforehand, so the limit is on what is read.
        with open(path, "rb") as stream:
            blocks, left = [], MAX_BYTES + 1
            # One read of that length would reserve it all for a list of ten names.
            while left > 0 and (block := stream.read(min(left, 1 << 20))):
                blocks.append(block)
                left -= len(block)
            data, emptied = b"".join(blocks), not blocks and stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    except FileNotFoundError:
        raise UserError(f"{what} {quote(str(path))} does not exist; {_TYPED if ',' in str(path) else check_the_path(path)}") from None
    except IsADirectoryError:
        raise UserError(f"{what} {quote(str(path))} is a folder; give a file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        remedy = f"; {_TYPED}" if getattr(error, "errno", None) == errno.ENAMETOOLONG else ""
        raise UserError(f"{what} {quote(str(path))} cannot be read: {reason}{remedy}") from None
    if emptied:
        raise UserError(f"{what} {quote(str(path))} is a pipe that holds nothing more, and it is read more than once; give a file")
    if len(data) > MAX_BYTES:
        raise UserError(f"{what} {quote(str(path))} is larger than {MAX_BYTES // 2**20} MiB; is it the right file?")
    return data


def is_comment(line: str) -> bool:
    """Whether a line without surrounding white space is a comment."""
    return _COMMENT.match(line) is not None


def read_lines(path: str | Path, what: str) -> list[tuple[int, str]]:
    """Read the content lines of a text file, without surrounding white space, each with its number counted from 1.

    Raises:
        UserError: As :func:`read_utf8`.
    """
    lines = [line.strip() for line in split_lines(read_utf8(path, what))]
    content = [(number, line) for number, line in enumerate(lines, start=1) if line and not is_comment(line)]
    return [(number, line[1:] if _ESCAPED.match(line) else line) for number, line in content]


def content_line(text: str) -> str:
    """A text as the line that :func:`read_lines` reads it from: a backslash keeps what would be a comment."""
    return f"\\{text}" if is_comment(text) or _ESCAPED.match(text) else text


def plain_line(text: object, where: str, *, called: str, named: str, most: int, doubt: str = "", form: str) -> str:
    """A text without surrounding white space.

    Args:
        text: The text.
        where: Where it stands, for messages, like all that follow but ``most``.
        called: What such a text is called.
        named: What stands before it.
        most: Characters that are allowed.
        doubt: What a longer one may come from.
        form: How it should be written.

    Raises:
        UserError: Not text, too long, or with control characters.
    """
    if not isinstance(text, str):
        raise UserError(f"{where}: {quote(str(text))} is not text; put the {called} in quotation marks")
    text = text.strip()
    if len(text) > most:
        raise UserError(f"{where}: {named}{quote(text)} has {len(text)} characters, at most {most} are allowed{doubt}")
    if bad := control_character(text):
        raise UserError(f"{where}: {named}{quote(text)} contains the control character {bad}; write {form}")
    return text


def read_user_json(path: str | Path, what: str) -> Any:
    """Read a UTF-8 JSON file; a key that an object repeats is an error, because all but its last value would be lost.

    Raises:
        UserError: As :func:`read_utf8`, or not JSON, or a repeated key.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            repeated = [quote(key) for key, count in Counter(key for key, _ in pairs).items() if count > 1]
            raise UserError(f"{what} {quote(str(path))} repeats the key {listing(repeated)}; keep one of each")
        return result

    text = read_utf8(path, what)
    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise UserError(f"{what} {quote(str(path))} is not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise UserError(f"{what} {quote(str(path))} is nested too deeply to be read") from None
    except ValueError as error:
        raise UserError(f"{what} {quote(str(path))} is not valid JSON: {error}") from None
