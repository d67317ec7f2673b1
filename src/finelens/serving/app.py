"""The HTTP interface of a finished run."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from finelens.core.schemas import STATUSES, VERSION
from finelens.images.decode import DecodedImage
from finelens.images.discover import display_name
from finelens.images.store import EncodedImage
from finelens.serving.answers import Answers
from finelens.serving.batcher import Batcher, FullError
from finelens.serving.metrics import Metrics
from finelens.serving.requests import read_uploads
from finelens.serving.settings import Settings

# The only path that a client without the token may ask: whoever restarts the server needs no secret.
HEALTH = "/health"
BUSY = 503
LATER = {"Retry-After": "1"}
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


class Answer(BaseModel):
    """What is said of one image."""

    name: str = Field(description="The name of the file in the form; empty for a raw body.")
    status: str = Field(description=f"ok, or why there is no answer: {', '.join(STATUSES[1:])}.")
    reason: str = Field(description="Of an image without an answer, why; of another, what was done that the owner may not expect.")
    class_: str | None = Field(alias="class", description="The likeliest class.")
    probability: float | None = Field(description="Its calibrated probability.")
    probabilities: dict[str, float] = Field(description="Calibrated probabilities, the largest first.")
    none_of_these: float | None = Field(
        description="Doubt whether it shows any of the classes; above 0.5 probably none. Null where the model does not know."
    )
    set: list[str] | None = Field(description="Conformal set, likeliest first; null where the server was started without --calibrate.")


class AnswerList(BaseModel):
    """What is said of all images of a request, in their order."""

    answers: list[Answer]


class Health(BaseModel):
    """That the server is there, and with which model."""

    status: str
    version: str
    method: str
    classes: int


GOOD = {
    "name": "cat.jpg",
    "status": "ok",
    "reason": "",
    "class": "Bengal cat",
    "probability": 0.93,
    "probabilities": {"Bengal cat": 0.93, "Egyptian Mau": 0.05},
    "none_of_these": 0.08,
    "set": ["Bengal cat"],
}
BAD = {"name": "notes.jpg", "status": "corrupt", "reason": "damaged, or not an image of a kind that is read (.jpg, 12 bytes)"}
EXAMPLE = {"answers": [GOOD, {**BAD, "class": None, "probability": None, "probabilities": {}, "none_of_these": None, "set": None}]}
BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {"images": {"type": "array", "items": {"type": "string", "format": "binary"}}}},
            "example": {"images": ["(bytes of cat.jpg)", "(bytes of notes.jpg)"]},
        },
        "image/*": {"schema": {"type": "string", "format": "binary"}},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}


def _failure(status: int, text: str, example: str) -> dict[int | str, dict[str, Any]]:
    return {status: {"description": text, "content": {"application/json": {"example": {"detail": example}}}}}


RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "An answer for each image; a bad image has its own status.", "content": {"application/json": {"example": EXAMPLE}}},
    **_failure(400, "No image in the request.", "the form has no file; send images as files, under any name"),
    **_failure(401, "No token, or a wrong one.", "send the token as: Authorization: Bearer TOKEN"),
    **_failure(408, "The request took too long to arrive.", "the request took longer than 30 s to arrive"),
    **_failure(413, "Too many bytes or images.", "a request may have 32 images"),
    **_failure(415, "Neither a form nor an image.", "send multipart/form-data with files, or one image as image/... or application/octet-stream"),
    **_failure(BUSY, "Too many images wait; try again.", "256 images wait already"),
}


def make_app(answers: Answers, settings: Settings, token: str | None = None) -> FastAPI:
    """The application.

    Args:
        answers: Of the run.
        settings: Limits.
        token: What requests must carry; None asks for none.
    """
    metrics = Metrics()
    batcher = Batcher(
        answers.answer, size=settings.batch, wait=settings.wait / 1000, queue=settings.queue, tell=lambda size: metrics.batches.observe(size)
    )
    metrics.waiting.set_function(lambda: batcher.waiting)

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await batcher.stop()

    # The pages that FastAPI offers for reading the interface load scripts from elsewhere.
    app = FastAPI(title="finelens", version=VERSION, summary="Classes of photographs.", lifespan=living, docs_url=None, redoc_url=None)
    _guard(app, metrics, token)
    _tell_of_model(app, answers)
    _tell_of_numbers(app, metrics)
    _classify(app, answers, settings, batcher, metrics)
    return app


def _guard(app: FastAPI, metrics: Metrics, token: str | None) -> None:
    """Turn away what comes without the token, and count every request."""

    @app.middleware("http")
    async def guarded(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        started = time.perf_counter()
        if token is not None and request.url.path != HEALTH and not _carries(request, token):
            response: Response = JSONResponse({"detail": "send the token as: Authorization: Bearer TOKEN"}, 401, {"WWW-Authenticate": "Bearer"})
        else:
            response = await call_next(request)
        metrics.requests.labels(str(response.status_code)).inc()
        if request.url.path == "/predict":
            metrics.seconds.observe(time.perf_counter() - started)
        return response


def _tell_of_model(app: FastAPI, answers: Answers) -> None:
    model = answers.classifier.model

    @app.get(HEALTH, response_model=Health)
    async def health() -> dict[str, Any]:
        """Whether the server answers; needs no token."""
        return {"status": "ok", "version": VERSION, "method": model.method, "classes": len(model.class_names)}

    @app.get("/classes")
    async def classes() -> list[str]:
        """All class names, in the order of the list."""
        return answers.classifier.classes


def _tell_of_numbers(app: FastAPI, metrics: Metrics) -> None:
    @app.get("/metrics", response_class=Response, responses={200: {"content": {PROMETHEUS: {}}}})
    async def numbers() -> Response:
        """Counters for Prometheus."""
        return Response(metrics.text(), media_type=PROMETHEUS)


def _classify(app: FastAPI, answers: Answers, settings: Settings, batcher: Batcher, metrics: Metrics) -> None:
    @app.post("/predict", response_model=AnswerList, responses=RESPONSES, openapi_extra={"requestBody": BODY})
    async def predict(request: Request, top: int = Query(5, ge=0, description="Classes to list for each image; 0 lists all.")) -> dict[str, Any]:
        """Classify images: every file of a form, or one image as the body."""
        uploads = await read_uploads(request, settings)
        try:
            batcher.reserve(len(uploads))
        except FullError:
            raise HTTPException(BUSY, f"{settings.queue} images wait already", LATER) from None
        try:
            found = await _answered(uploads, top, answers, batcher)
        except MemoryError:
            raise HTTPException(BUSY, "not enough memory for these images now", LATER) from None
        finally:
            batcher.release(len(uploads))
        for one in found:
            metrics.images.labels(one["status"]).inc()
        return {"answers": found}


async def _answered(uploads: list[EncodedImage], top: int, answers: Answers, batcher: Batcher) -> list[dict[str, Any]]:
    """A document for each upload, in their order; only those that can be read take a place in a batch."""
    results = await asyncio.gather(*(run_in_threadpool(answers.decode, upload) for upload in uploads))
    good = [result for result in results if isinstance(result, DecodedImage)]
    rows = iter(await batcher.answers(good))
    return [
        answers.document(display_name(upload.name), result, next(rows) if isinstance(result, DecodedImage) else None, top)
        for upload, result in zip(uploads, results, strict=True)
    ]


def _carries(request: Request, token: str) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    # In constant time: how long a wrong guess takes must not say how much of it is right.
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())
