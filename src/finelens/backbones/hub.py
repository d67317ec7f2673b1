"""Whether the model hub can be reached, found out in seconds instead of by the hub client's retries."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

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
