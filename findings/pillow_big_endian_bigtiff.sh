#!/usr/bin/env bash
# Pillow 13.0.0 does not know big-endian BigTIFF, which it lists among its prefixes; tifffile 2026.3.3 writes and reads it.
# Seen: "Pillow 13.0.0: big-endian BigTIFF: UnidentifiedImageError; little-endian BigTIFF: (48, 40); big-endian TIFF: (48, 40)"
# Exits 0 while this is so.
set -eu
T=$(mktemp -d); trap 'rm -rf "$T"' EXIT
python3 -m venv "$T/env"
"$T/env/bin/pip" install -q pillow==13.0.0 tifffile==2026.3.3 numpy
"$T/env/bin/python" - <<'P'
import io
import sys

import numpy as np
import PIL
import tifffile
from PIL import Image

pixels = np.arange(40 * 48 * 3, dtype=np.uint32).reshape(40, 48, 3).astype(np.uint8)


def seen(**options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, photometric="rgb", **options)
    assert (tifffile.imread(io.BytesIO(buffer.getvalue())) == pixels).all()
    try:
        return str(Image.open(io.BytesIO(buffer.getvalue())).size)
    except Exception as error:
        return type(error).__name__


big, little, plain = seen(bigtiff=True, byteorder=">"), seen(bigtiff=True, byteorder="<"), seen(byteorder=">")
print(f"Pillow {PIL.__version__}: big-endian BigTIFF: {big}; little-endian BigTIFF: {little}; big-endian TIFF: {plain}")
sys.exit((big, little, plain) != ("UnidentifiedImageError", "(48, 40)", "(48, 40)"))
P
