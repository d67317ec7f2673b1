"""Whether the model hub can be reached, found out in seconds instead of by the hub client's retries."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

from finelens.errors import UserError

PROBE_SECONDS = 3.0


@lru_cache(maxsize=1)
def hub_reachable() -> bool:
    """Try one connection to the configured hub. With a proxy the client is trusted to find its way."""
    if getproxies():
        return True
    endpoint = urlsplit(constants.ENDPOINT)
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    try:
        socket.create_connection((endpoint.hostname or "", port), timeout=PROBE_SECONDS).close()
    except OSError:
        return False
    return True


@contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Put the hub client in offline mode while no hub answers: cached files are still found, others fail at once."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not hub_reachable()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def hub_errors(spec: str, remedy: str) -> Iterator[None]:
    """Context in which what hub clients raise becomes a :class:`~finelens.errors.UserError`.

    Args:
        spec: The user's specification.
        remedy: What to use without a hub.
    """
    try:
        with offline_if_unreachable():
            yield
    except UserError:
        raise
    except Exception as error:  # hub clients raise their own types for no network, no such file and no permission
        if constants.HF_HUB_OFFLINE:
            reason = "HF_HUB_OFFLINE is set and the files are not in the hub's cache"
        else:
            first = str(error).strip().split("\n", 1)[0] or type(error).__name__
            reason = first if hub_reachable() else "no model hub can be reached and the files are not in its cache"
        raise UserError(f"{spec}: cannot be fetched ({reason}); without a hub {remedy}") from error
