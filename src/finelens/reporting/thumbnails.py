"""Small pictures of the run's photographs, embedded in the page. Their names never are: a picture stands under the hash of its content."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image
from torch import Tensor

from finelens.core.schemas import TAKEN_FILE
from finelens.errors import UserError
from finelens.images.decode import DecodedImage, DecodeLimits, Failure, decode, decode_bytes
from finelens.images.discover import ImageFile
from finelens.images.resize import centre_crop, resize
from finelens.images.shards import ShardImages
from finelens.intake.taken import saved
from finelens.protocol import ImageStore
from finelens.reporting.kept_pictures import KeptPictures
from finelens.runs.photo_source import PhotoSource, ShardSource
from finelens.runs.sources import source_at

SIDE = 128
QUALITY = 78
# Thumbnails of one page: at about 5 kB each they stay far under its limit of 30 MB.
LIMIT = 1200


@dataclass(frozen=True)
class Photo:
    """A photograph.

    Attributes:
        read: Gives its pixels.
        sample_id: Its identity by content.
    """

    read: Callable[[], Tensor]
    sample_id: str

    @cached_property
    def pixels(self) -> Tensor:
        """(3, H, W) uint8."""
        return self.read()


Photos = Callable[[str], "Photo | None"]


class Thumbnails:
    """Square pictures by file name, each made once, up to a limit.

    Args:
        photos: Gives the photograph of a file name, None where there is none (any more).
        limit: How many different pictures may be made.
        side: Side of a picture, the longer one where it is not square.
        crop: Whether to show the central square or the whole image.
        kept: Pictures of earlier pages; None where none are kept.
    """

    def __init__(self, photos: Photos, limit: int = LIMIT, *, side: int = SIDE, crop: bool = True, kept: KeptPictures | None = None) -> None:
        self.photo, self.kept = photos, kept
        self._shape = square if crop else whole
        self._side = side
        self._made: dict[str, str | None] = {}
        self._left = limit

    @property
    def left(self) -> int:
        """How many more may be made."""
        return self._left

    def uri(self, name: str) -> str | None:
        """The picture as a ``data:`` address; None when the photograph is gone or the limit is reached."""
        if name not in self._made:
            photo = self.photo(name) if self._left > 0 else None
            if photo is None:
                return None
            # The ending of a name decides which reader is asked first.
            kind = f"{self._shape.__name__} {self._side} {Path(name).suffix.lower()}"
            picture = None if self.kept is None else self.kept.get(photo.sample_id, kind)
            if picture is None:
                try:
                    picture = jpeg(self._shape(photo.pixels, self._side))
                except UserError:
                    # Changed since its content was looked up.
                    return None
                if self.kept is not None:
                    self.kept.add(photo.sample_id, kind, picture)
            self._left -= 1
            self._made[name] = data_uri(picture)
        return self._made[name]


def no_photos(name: str) -> None:
    """A source for runs whose photographs are not at hand."""


def from_folder(photos: Path, limits: DecodeLimits) -> Photos:
    """Read photographs by the name that a run gives them, through the one decode boundary. A folder that is gone, or a feature file, has none."""
    try:
        source = source_at(photos)
        if isinstance(source, ShardSource):
            return _from_shards(source.images, limits)
        return _from_files(source.files, limits) if isinstance(source, PhotoSource) else no_photos
    except UserError:
        return no_photos


def from_run(run: Path, photos: str, limits: DecodeLimits) -> Photos:
    """As :func:`from_folder`, of the rows of a run, boxes among them.

    Args:
        run: Folder of the run.
        photos: Its photographs.
        limits: What to refuse and what to reduce.
    """
    taken = saved(run / TAKEN_FILE)
    return from_folder(Path(photos), limits) if taken is None else _from_files(taken.images(Path(photos)), limits)


def _from_files(found: Iterable[ImageFile], limits: DecodeLimits) -> Photos:
    files = {file.name: file for file in found}

    def photo(name: str) -> Photo | None:
        file = files.get(name)
        decoded = None if file is None else decode(file.path, limits, file.box)
        return _decoded_photo(decoded)

    return photo


def _decoded_photo(decoded: DecodedImage | Failure | None) -> Photo | None:
    if not isinstance(decoded, DecodedImage):
        return None
    pixels = decoded.pixels
    return Photo(lambda: pixels, decoded.sha256)


def _from_shards(images: ShardImages, limits: DecodeLimits) -> Photos:
    positions = {name: i for i, name in enumerate(images.names)}

    def photo(name: str) -> Photo | None:
        if name not in positions:
            return None
        return _decoded_photo(decode_bytes(images[positions[name]].data, name, limits))

    return photo


def from_store(positions: Mapping[str, int], store: ImageStore) -> Photos:
    """Take the images of a store, by file name at their positions in it."""

    def photo(name: str) -> Photo | None:
        place = positions.get(name)
        return None if place is None else Photo(lambda: store[place], store.ids[place])

    return photo


def square(image: Tensor, side: int) -> Tensor:
    """The central square of (3, H, W), resized to (3, side, side)."""
    short = min(image.shape[1:])
    return resize(centre_crop(image, short, short), [side, side])


def whole(image: Tensor, side: int) -> Tensor:
    """All of (3, H, W), reduced to ``side`` on its longer side if it is larger."""
    height, width = image.shape[1:]
    scale = min(1.0, side / max(height, width))
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    return resize(image, size)


def picture_uri(image: Image.Image) -> str:
    """A Pillow image as a JPEG in a ``data:`` address."""
    return data_uri(_jpeg(image))


def jpeg(image: Tensor) -> bytes:
    """(3, H, W) uint8 as a JPEG. The same pixels give the same bytes."""
    return _jpeg(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()))


def data_uri(picture: bytes) -> str:
    """A JPEG as a ``data:`` address."""
    return f"data:image/jpeg;base64,{base64.b64encode(picture).decode('ascii')}"


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY, optimize=True)
    return file.getvalue()
