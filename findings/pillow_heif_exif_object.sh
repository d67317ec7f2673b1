#!/usr/bin/env bash
# pillow-heif 1.8.1 loses the orientation of a picture that is saved as HEIC with `exif=Image.Exif()`; with the same data as bytes it is kept.
# The object is what `image.getexif()` returns, so opening a picture, changing a tag and saving it as HEIC leaves it lying for good: the container
# has no rotation and its tag reads 1. JPEG, PNG and WebP keep the tag either way.
# Remedy: exif=exif.tobytes(), or ImageOps.exif_transpose before saving.
# Exits 0 while this is so.
set -eu
T=$(mktemp -d); trap 'rm -rf "$T"' EXIT
python3 -m venv "$T/env"
"$T/env/bin/pip" install -q pillow==13.0.0 pillow-heif==1.8.1
"$T/env/bin/python" - <<'P'
import io
import sys

import pillow_heif
from PIL import Image

pillow_heif.register_heif_opener()
exif = Image.Exif()
exif[0x0112] = 6  # turn right to see it upright


def reopened(given, kind="HEIF"):
    buffer = io.BytesIO()
    Image.new("RGB", (80, 60)).save(buffer, kind, exif=given)
    image = Image.open(buffer)
    return image.size, image.getexif().get(0x0112)


print("given to all: 80 x 60, orientation 6")
print("HEIC, as an object:", reopened(exif), " as bytes:", reopened(exif.tobytes()), " JPEG, as an object:", reopened(exif, "JPEG"))
same = (reopened(exif), reopened(exif.tobytes())) == (((80, 60), 1), ((60, 80), 1))
sys.exit(not same)
P
