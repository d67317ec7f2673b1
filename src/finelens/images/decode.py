"""The one boundary where bytes from outside become pixels: whatever a file holds, the answer is an image or a typed failure, never an exception."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base
from torch import Tensor

from finelens.errors import UserError
from finelens.images.boxes import Box
from finelens.images.containers import brighten_png, is_upright, jxl_size, open_image
from finelens.images.dicom import is_dicom, read_dicom
from finelens.images.discover import display_name
from finelens.images.pixels import UnsupportedModeError, to_rgb
from finelens.images.raw import developed, is_raw, preview
from finelens.images.resize import resize
from finelens.images.signatures import foreign_format, is_camera_raw, promises_image
from finelens.images.tiff import Page, choose_page, pages, read_tiff, sub_pages, turned
from finelens.images.unheard import unheard

# Behind a JPEG that ends early: bytes that are pixels wherever the reader still waits for some, and every restart marker it may wait for.
_MORE = b"".join(bytes((0xFF, marker)) + b"\x53\xa9\x1d\x66" * 64 for marker in range(0xD0, 0xD8))[2:]
_END = b"\xff\xd9"
# A box of a smaller share of a side has no pixels to speak of in any photograph.
_THINNEST = 1e-4


@dataclass(frozen=True)
class DecodeLimits:
    """What is still decoded, and how large originals are kept.

    Attributes:
        max_pixels: Pixel budget of one image, checked in the header before anything is decoded.
        max_bytes: Largest file that is read at all.
        max_aspect: Longest over shortest side; beyond it a crop shows a stripe.
        min_side: Shortest side in pixels that can hold a recognisable object.
        short_side: Larger images are reduced to this short side (antialiased bicubic).
    """

    max_pixels: int = 64_000_000
    max_bytes: int = 1 << 30
    max_aspect: float = 20.0
    min_side: int = 8
    short_side: int = 448

    @property
    def of_any_form(self) -> DecodeLimits:
        """The same for images of any sides."""
        return replace(self, max_aspect=math.inf, min_side=1)


@dataclass(frozen=True)
class DecodedImage:
    """Pixels of a readable file.

    Attributes:
        pixels: (3, H, W) uint8, the channel last in memory (that is how they are resized fastest).
        sha256: Hexadecimal digest of the file's bytes, and of the box where it is a part; of shape and pixels for an image that never was a file.
        notes: What was done that the owner may not expect.
    """

    pixels: Tensor
    sha256: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class KnownImage:
    """A readable file whose pixels are not made before somebody looks at them.

    Attributes:
        sha256: As of :class:`DecodedImage`.
        notes: As of :class:`DecodedImage`.
        read: Decodes the file; raises :class:`~finelens.errors.UserError` where it is no longer what it was.
    """

    sha256: str
    notes: tuple[str, ...]
    read: Callable[[], Tensor]


class Known(Protocol):
    """Contents that are known to be readable."""

    def notes(self, sha256: str, path: Path) -> tuple[str, ...] | None:
        """What decoding said of that content under a name that ends alike; None where it is not known to be readable."""
        ...


@dataclass(frozen=True)
class Failure:
    """Why there are no pixels.

    Attributes:
        status: One of ``schemas.STATUSES`` other than ``ok``.
        reason: One line for the owner of the file.
    """

    status: str
    reason: str


class ChangedError(UserError):
    """A photograph is no longer what it was when its content was looked up.

    Attributes:
        name: What messages call it.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} has changed since this command began to read it; leave the photographs alone, and start it again")
        self.name = name


class _RefusedError(Exception):
    """Carries a failure up to the boundary."""

    def __init__(self, status: str, reason: str):
        super().__init__(reason)
        self.failure = Failure(status, reason)


def decode(path: Path, limits: DecodeLimits, box: Box | None = None) -> DecodedImage | Failure:
    """Read, check and decode one file. The bytes are read once, so digest and pixels belong together.

    Args:
        path: The file.
        limits: What to refuse and what to reduce; sides and their ratio are those of the box.
        box: The part of the upright picture that is wanted; None for all of it.

    Returns:
        The image, upright by its EXIF orientation, 8-bit RGB by the rules of :mod:`finelens.images.pixels`, first frame only; or the failure:
        ``vanished`` (gone since it was listed), ``unreadable`` (the system refuses), ``too_large`` (bytes, pixels or memory), ``degenerate``
        (side or aspect ratio), ``unsupported`` (not an image by name, or an image of a kind that is not read), ``corrupt`` (called an image, but
        the bytes are not, or end early).
    """
    try:
        with unheard():
            return _whole_or_part(_read(path, limits), path, limits, box)
    except Exception as error:
        return _failure(error)


def recognise(path: Path, limits: DecodeLimits, known: Known, box: Box | None = None) -> DecodedImage | KnownImage | Failure:
    """As :func:`decode`, without pixels where the content is known to be readable."""
    try:
        data = _read(path, limits)
        identity = _identity(data, box)
        notes = known.notes(identity, path)
        if notes is None:
            with unheard():
                return _whole_or_part(data, path, limits, box, identity)
        return KnownImage(identity, notes, lambda: _again(path, limits, box, identity))
    except Exception as error:
        return _failure(error)


def _again(path: Path, limits: DecodeLimits, box: Box | None, identity: str) -> Tensor:
    found = decode(path, limits, box)
    if not isinstance(found, DecodedImage) or found.sha256 != identity:
        raise ChangedError(display_name(path))
    return found.pixels


def _whole_or_part(data: bytes, path: Path, limits: DecodeLimits, box: Box | None, identity: str | None = None) -> DecodedImage:
    pixels, notes = _decode_bytes(data, path, limits) if box is None else _cut(data, path, limits, box)
    return DecodedImage(reduce_to_short_side(pixels, limits.short_side), identity or _identity(data, box), notes)


def _identity(data: bytes, box: Box | None) -> str:
    whole = hashlib.sha256(data)
    return whole.hexdigest() if box is None else hashlib.sha256(whole.digest() + box.identity).hexdigest()


def decode_bytes(data: bytes, name: str, limits: DecodeLimits) -> DecodedImage | Failure:
    """Decode the bytes of a file that lies in an archive or a table, as :func:`decode` does; ``name`` is what the file is called."""
    try:
        if len(data) > limits.max_bytes:
            raise _RefusedError("too_large", f"{len(data) / 1e6:.0f} MB exceed the budget of {limits.max_bytes / 1e6:.0f} MB; save a smaller copy")
        with unheard():
            return _whole_or_part(data, Path(name), limits, None)
    except Exception as error:
        return _failure(error)


def _cut(data: bytes, path: Path, limits: DecodeLimits, box: Box) -> tuple[Tensor, tuple[str, ...]]:
    # So much more of the whole that the part has the size it is kept at; what form the whole is of says nothing of the part.
    side = math.ceil(limits.short_side / max(min(box.width, box.height), _THINNEST))
    whole = replace(limits.of_any_form, short_side=side)
    pixels, notes = _decode_bytes(data, path, whole)
    part = box.cut(pixels)
    _refuse(check_geometry(part.shape[2], part.shape[1], limits))
    return part, notes


def decode_open_image(image: Image.Image, limits: DecodeLimits) -> DecodedImage | Failure:
    """Decode an image that Pillow has opened already, as :func:`decode` does; that image keeps its size and orientation."""
    try:
        refused = check_geometry(image.width, image.height, limits)
        if refused is not None:
            return refused
        with unheard():
            own = image.copy()
            own.format = image.format
            pixels, notes = _decode_image(own, limits)
        return from_pixels(pixels, limits, notes)
    except Exception as error:
        return _failure(error)


def from_pixels(pixels: Tensor, limits: DecodeLimits, notes: tuple[str, ...] = ()) -> DecodedImage | Failure:
    """Take pixels (3, H, W) uint8. The digest is of the full size: large pictures that shrink to equal pixels stay different."""
    refused = check_geometry(pixels.shape[2], pixels.shape[1], limits)
    if refused is not None:
        return refused
    digest = hashlib.sha256(repr(tuple(pixels.shape)).encode())
    digest.update(pixels.permute(1, 2, 0).contiguous().numpy().data)  # (H, W, 3)
    return DecodedImage(reduce_to_short_side(pixels, limits.short_side), digest.hexdigest(), notes)


def check_geometry(width: int, height: int, limits: DecodeLimits, decoded: int | None = None) -> Failure | None:
    """The failure for a size beyond the limits, None for a good one; ``decoded`` is the number of pixels that are decoded of it, if not all."""
    short, long = min(width, height), max(width, height)
    if (width * height if decoded is None else decoded) > limits.max_pixels:
        remedy = "save a smaller copy, or raise the budget with --set views.max_megapixels=NUMBER"
        return Failure("too_large", f"{width} x {height} pixels exceed the budget of {limits.max_pixels / 1e6:g} million; {remedy}")
    if short < limits.min_side:
        return Failure("degenerate", f"{width} x {height} pixels: the short side is under {limits.min_side}")
    if long > limits.max_aspect * short:
        return Failure("degenerate", f"{width} x {height} pixels: the aspect ratio is over {limits.max_aspect:g}")
    return None


def reduce_to_short_side(pixels: Tensor, short_side: int) -> Tensor:
    """Shrink (3, H, W) uint8 to a short side; smaller images pass unchanged. The result has its channels last in memory."""
    if min(pixels.shape[1:]) > short_side:
        pixels = resize(pixels, [short_side])
    return pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # (3, H, W), strides of (H, W, 3)


def _read(path: Path, limits: DecodeLimits) -> bytes:
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):
        raise _RefusedError("unsupported", "not a regular file")
    if info.st_size > limits.max_bytes:
        raise _RefusedError("too_large", f"{info.st_size / 1e6:.0f} MB exceed the budget of {limits.max_bytes / 1e6:.0f} MB; save a smaller copy")
    with open(path, "rb", opener=_open_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise _RefusedError("unsupported", "not a regular file")
        return file.read(min(info.st_size, limits.max_bytes) + 1)


def _open_without_waiting(path: str, flags: int) -> int:
    """A pipe that took the place of the file since it was looked at would block for ever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _decode_bytes(data: bytes, path: Path, limits: DecodeLimits) -> tuple[Tensor, tuple[str, ...]]:
    def check(width: int, height: int) -> None:
        _refuse(check_geometry(width, height, limits))

    found = pages(data)
    below = [page for top in found for page in sub_pages(data, top)]
    if is_camera_raw(path) or is_raw(data, [*found, *below]):
        # Such files are TIFF outside: a reader would take the first thumbnail for the photograph.
        return _decode_raw(data, [*found, *below], limits, check)
    if is_dicom(data):
        return _tensor(*read_dicom(data, check))
    if (size := jxl_size(data)) is not None:
        check(*size)
    try:
        if found:
            return _decode_tiff(data, found, limits)
        with open_image(data) as image:
            return _decode_image(image, limits, data)
    except UnidentifiedImageError:
        raise _unidentified(data, path) from None
    except OSError as error:
        if not (data[:2] == b"\xff\xd8" and "truncated" in str(error)):
            raise
        return _decode_without_end(data, limits, error)


def _decode_tiff(data: bytes, found: list[Page], limits: DecodeLimits) -> tuple[Tensor, tuple[str, ...]]:
    page, notes = choose_page(data, found)
    _refuse(check_geometry(page.width, page.height, limits))
    read = read_tiff(data, found, page)
    if read is not None:
        return _tensor(read[0], [*notes, *read[1]])
    with open_image(data) as image:
        return _decode_image(image, limits)


def _decode_raw(data: bytes, found: list[Page], limits: DecodeLimits, check: Callable[[int, int], None]) -> tuple[Tensor, tuple[str, ...]]:
    inside = preview(data, found)
    if inside is None:
        return _tensor(*developed(data, check))
    jpeg, orientation, note = inside
    with open_image(jpeg) as image:
        own = image.getexif().get(Base.Orientation)
        pixels, more = _decode_image(image, limits)
    if own is None:
        pixels = torch.from_numpy(turned(pixels.permute(1, 2, 0).numpy(), orientation)).permute(2, 0, 1)  # (3, H, W)
    return pixels, (note, *more)


def _decode_without_end(data: bytes, limits: DecodeLimits, error: OSError) -> tuple[Tensor, tuple[str, ...]]:
    """A JPEG without its end marker. Whether pixels are missing shows in what further bytes would change."""
    whole = data[:-1] if data.endswith(b"\xff") else data
    with open_image(whole + _END) as image, open_image(whole + _MORE + _END) as other:
        pixels, notes = _decode_image(image, limits)
        if not torch.equal(pixels, _decode_image(other, limits)[0]):
            raise error
    return pixels, ("the JPEG's end marker is missing, but none of its pixels", *notes)


def _unidentified(data: bytes, path: Path) -> _RefusedError:
    """The name decides the status (was this meant to be a photograph?), the content the reason."""
    status = "corrupt" if promises_image(path) else "unsupported"
    if not data:
        return _RefusedError(status, "the file is empty (0 bytes)")
    foreign = foreign_format(data)
    if foreign is not None:
        # Shards are read where the user names them: among other files one is a file.
        remedy = "unpack it, or give tar shards by themselves" if foreign.endswith("archive") else "convert it to JPEG or PNG"
        return _RefusedError(status, f"the content is {foreign}, which is not read among photographs; {remedy}")
    suffix = display_name(path.suffix) or "no extension"
    return _RefusedError(status, f"damaged, or not an image of a kind that is read ({suffix}, {len(data)} bytes)")


def _refuse(failure: Failure | None) -> None:
    if failure is not None:
        raise _RefusedError(failure.status, failure.reason)


def _tensor(rgb: np.ndarray, notes: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    writeable = rgb if rgb.flags.writeable else rgb.copy()
    return torch.from_numpy(writeable).permute(2, 0, 1), tuple(notes)  # (3, H, W)


def _decode_image(image: Image.Image, limits: DecodeLimits, data: bytes = b"") -> tuple[Tensor, tuple[str, ...]]:
    width, height = image.size
    notes = ["several frames or pages: only the first is used"] if getattr(image, "is_animated", False) else []
    if image.format in ("JPEG", "MPO"):
        # The decoder halves sides in the frequency domain, down to the smallest size that still covers the request: 8 times faster at 12 MP.
        scale = limits.short_side / min(width, height)
        image.draft(None, (max(1, round(width * scale)), max(1, round(height * scale))))
    # A progressive JPEG is held whole, whatever size it is shown at.
    judged = (width, height) if image.info.get("progressive") else image.size
    _refuse(check_geometry(width, height, limits, judged[0] * judged[1]))
    image.load()
    notes += brighten_png(image, data)
    if not is_upright(image):
        try:
            ImageOps.exif_transpose(image, in_place=True)
        except Exception:
            notes.append("EXIF data damaged: orientation not applied")
    rgb, conversion_notes = to_rgb(image)
    return _tensor(rgb, [*notes, *conversion_notes])


def _failure(error: Exception) -> Failure:
    if isinstance(error, _RefusedError):
        return error.failure
    reason = _one_line(error)
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError)):
        return Failure("too_large", reason if str(error) else "not enough memory to decode it")
    if isinstance(error, UnsupportedModeError):
        return Failure("unsupported", reason)
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE):
            return Failure("vanished", f"the file is gone, or a link leads nowhere: {error.strerror}")
        return Failure("unreadable", f"the system refuses to read it: {error.strerror}")
    return Failure("corrupt", reason)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
