#!/usr/bin/env bash
# Pillow 13.0.0 reads uncompressed 16-bit colour TIFFs whose planes are separate as 8-bit samples, without an error; compressed ones are right.
# Seen: "Pillow 13.0.0: uncompressed planes wrong: True; the same compressed wrong: False"
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

ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
planes = np.stack([ramp, ramp.T, 65535 - ramp])


def wrong(**options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, planes, photometric="rgb", planarconfig="separate", **options)
    assert (tifffile.imread(io.BytesIO(buffer.getvalue())) == planes).all()
    shown = np.asarray(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")).astype(int)
    return bool(np.abs(shown - (planes >> 8).transpose(1, 2, 0)).max() > 1)


plain, packed = wrong(), wrong(compression="zlib")
print(f"Pillow {PIL.__version__}: uncompressed planes wrong: {plain}; the same compressed wrong: {packed}")
sys.exit((plain, packed) != (True, False))
P
