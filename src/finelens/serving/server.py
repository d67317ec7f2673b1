"""``finelens serve``: the application on an address, until it is told to stop."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from finelens.core.console import Console
from finelens.errors import UserError
from finelens.runs.arguments import PredictArguments
from finelens.runs.classifier import load_run
from finelens.runs.folder import RunFolder
from finelens.runs.sources import source_at
from finelens.runs.to_file import conformal_rule
from finelens.serving.settings import Settings, is_loopback, read_token

if TYPE_CHECKING:
    from fastapi import FastAPI

# Seconds that requests under way have to end after the server was told to stop.
GRACE = 30
PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def need_packages() -> None:
    """Check, before the work, for what serves.

    Raises:
        UserError: The packages of the extra ``serve`` are not installed.
    """
    for name in PACKAGES:
        if find_spec(name) is None:
            raise UserError(f"finelens serve needs {name.replace('_', '-')}: pip install 'finelens[serve]'")


def serve(
    run: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: str | Path | None = None,
    device: str = "cpu",
    calibrate: str | Path | None = None,
    calibrate_photos: str | Path | None = None,
    coverage: float | None = None,
    extra_encoders: Sequence[str] = (),
    settings: Settings | None = None,
    console: Console | None = None,
) -> None:
    """Answer over HTTP until SIGTERM or Ctrl-C; requests under way are answered first. See docs/serve.md.

    Args:
        run: The run folder.
        host: Address to listen at. One that others reach needs a token.
        port: Port.
        token_file: File with the token that requests must carry; by default the environment variable ``FINELENS_TOKEN``.
        device: Where the model runs.
        calibrate: CSV file with the columns ``path`` and ``label`` of some photographs: answers carry conformal sets then.
        calibrate_photos: Folder of those photographs; by default the run's.
        coverage: Share of the sets that should hold the true class; by default 0.9.
        extra_encoders: Where the weights of encoders that were given by name are now, if they have moved; in their order.
        settings: Limits.
        console: What is said.

    Raises:
        UserError: Not a finished run, one that does not answer from single photographs, no token, or an address that cannot be listened at.
    """
    console, settings = console or Console(), settings or Settings()
    need_packages()
    token = read_token(host, None if token_file is None else Path(token_file))
    if calibrate is None and (calibrate_photos is not None or coverage is not None):
        raise UserError("--calibrate-photos and --coverage have an effect with --calibrate FILE only")
    from finelens.serving.answers import Answers
    from finelens.serving.app import make_app

    classifier = load_run(run, device=device, extra_encoders=extra_encoders)
    rule = None
    if calibrate is not None:
        photos = Path(calibrate_photos or RunFolder.open(run, lock=False).config.photos)
        question = PredictArguments(run=Path(run), photos=photos, csv=Path(), calibrate=Path(calibrate), coverage=coverage)
        rule = conformal_rule(classifier, source_at(photos), question, console)
        console.say(rule.guarantee())
    app = make_app(Answers(classifier, rule, round(settings.max_image_mb * 1e6)), settings, token)
    _listen(app, host, port, token, console)
    console.say("ended; all requests under way were answered")


def _listen(app: FastAPI, host: str, port: int, token: str | None, console: Console) -> None:
    """Answer until a signal ends it; requests under way are answered first.

    Raises:
        UserError: The address cannot be listened at.
    """
    import uvicorn

    config = uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=GRACE, server_header=False)
    try:
        sock = config.bind_socket()
    except SystemExit:
        raise UserError(f"cannot listen at {host}:{port}; choose another --host or --port") from None
    known = "loopback only" if is_loopback(host) else "others can reach it"
    address = f"http://{host}:{sock.getsockname()[1]}"
    console.answer("", address=address)
    console.say(f"listening at {address} ({known}, {'with' if token else 'without'} a token); Ctrl-C ends")
    # uvicorn gives the signal on once it has ended; what it would do then is done.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        uvicorn.Server(config).run(sockets=[sock])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sock.close()
