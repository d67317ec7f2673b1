"""Reads images out of a request, no more bytes than are allowed."""

from __future__ import annotations

import asyncio

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as PlainHTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect

from finelens.images.store import EncodedImage
from finelens.serving.settings import Settings

MULTIPART, RAW = "multipart/form-data", ("image/", "application/octet-stream", "application/dicom")
MILLION = 1_000_000


class _TooLargeError(Exception):
    """The body has more bytes than are allowed."""


async def read_uploads(request: Request, settings: Settings) -> list[EncodedImage]:
    """The images of a request: every file of a form, or the body itself.

    Raises:
        HTTPException: 400 for a form that is none, or without files; 408 for a client that is too slow; 413 for too many bytes or images; 415 for
            another kind of content.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != MULTIPART and not kind.startswith(RAW):
        raise HTTPException(415, f"send {MULTIPART} with files, or one image as image/... or application/octet-stream")
    most = int(settings.max_request_mb * MILLION)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise _too_large(settings)
    try:
        async with asyncio.timeout(settings.patience):
            if kind == MULTIPART:
                return await _files(_limited(request, most), settings)
            body = b"".join([part async for part in _limited(request, most).stream()])
    except TimeoutError:
        raise HTTPException(408, f"the request took longer than {settings.patience:g} s to arrive") from None
    except _TooLargeError:
        raise _too_large(settings) from None
    except ClientDisconnect:
        raise HTTPException(400, "the client went before its request was whole") from None
    if not body:
        raise HTTPException(400, "the body is empty; send the bytes of an image")
    return [EncodedImage(body, "")]


def _too_large(settings: Settings) -> HTTPException:
    return HTTPException(413, f"a request may have {settings.max_request_mb:g} MB")


def _limited(request: Request, most: int) -> Request:
    """The request, whose body ends in an error after so many bytes."""
    receive, seen = request.receive, 0

    async def counted() -> dict[str, object]:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > most:
            raise _TooLargeError
        return dict(message)

    return Request(request.scope, counted)


async def _files(request: Request, settings: Settings) -> list[EncodedImage]:
    try:
        form = await request.form(max_files=settings.max_images, max_fields=settings.max_images, max_part_size=MILLION)
    except (MultiPartException, PlainHTTPException) as error:
        said = error.message if isinstance(error, MultiPartException) else str(error.detail)
        if said.startswith("Too many files"):
            raise HTTPException(413, f"a request may have {settings.max_images} images") from None
        raise HTTPException(400, f"the form cannot be read: {said}") from None
    try:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files:
            raise HTTPException(400, "the form has no file; send images as files, under any name")
        return [EncodedImage(await file.read(), _text(file.filename)) for file in files]
    finally:
        await form.close()


def _text(name: str | None) -> str:
    """A name that can be written: some encodings of a form give halves of characters."""
    return (name or "").encode("utf-8", "replace").decode("utf-8")
