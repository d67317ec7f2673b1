"""Limits of the server, and who may ask it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from finelens.core.options import require
from finelens.errors import UserError

TOKEN_VARIABLE = "FINELENS_TOKEN"
LEAST_TOKEN = 16


@dataclass(frozen=True)
class Settings:
    """How much is taken at a time.

    Attributes:
        max_images: Images of a request.
        max_image_mb: Bytes of an image, in millions.
        max_request_mb: Bytes of a request, in millions.
        batch: Most images that the model answers at a time.
        wait: Milliseconds that a batch waits for further images.
        queue: Images that wait at most; requests beyond are told to come back later.
        patience: Seconds that a client has to send its request.
    """

    max_images: int = 32
    max_image_mb: float = 20.0
    max_request_mb: float = 64.0
    batch: int = 16
    wait: float = 5.0
    queue: int = 256
    patience: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_images", "max_image_mb", "max_request_mb", "batch", "queue", "patience"):
            require(getattr(self, name) > 0, f"--{name.replace('_', '-')}", "above 0", getattr(self, name))
        require(self.wait >= 0, "--wait", "at least 0", self.wait)
        require(self.queue >= self.max_images, "--queue", "at least --max-images", self.queue)


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def read_token(host: str, file: Path | None) -> str | None:
    """The token that requests must carry, from a file or the environment; never from the command line, which others can read.

    Args:
        host: Address to listen at.
        file: File that holds the token; None looks at the environment.

    Raises:
        UserError: There is none though others reach the address, or it can be guessed or not be read.
    """
    try:
        token = os.environ.get(TOKEN_VARIABLE, "") if file is None else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: the token cannot be read ({error})") from error
    token = token.strip()
    if not token and file is None and is_loopback(host):
        return None
    if not token:
        raise UserError(
            f"others can reach {host}, so requests must carry a token: give --token-file FILE, or set {TOKEN_VARIABLE} "
            "(openssl rand -hex 32 makes one)"
        )
    if len(token) < LEAST_TOKEN or not token.isascii() or any(character.isspace() for character in token):
        raise UserError(f"the token must have at least {LEAST_TOKEN} characters, without blanks or others than ASCII (openssl rand -hex 32)")
    return token
