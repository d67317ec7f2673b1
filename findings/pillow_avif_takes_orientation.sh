#!/usr/bin/env bash
# Saving as AVIF with Pillow 13.0.0 takes the orientation out of the caller's own Image.Exif object.
# Whoever saves one picture to several formats in a loop gets all that come after AVIF lying; those before it are right.
# Remedy: give each save its own bytes, exif=exif.tobytes().
# Exits 0 while this is so.
set -eu
T=$(mktemp -d); trap 'rm -rf "$T"' EXIT
python3 -m venv "$T/env"
"$T/env/bin/pip" install -q pillow==13.0.0
"$T/env/bin/python" - <<'P'
import io
import sys

from PIL import Image

exif = Image.Exif()
exif[0x0112] = 6  # turn right to see it upright
found = []
for kind in ("JPEG", "WEBP", "AVIF", "JPEG", "WEBP"):
    buffer = io.BytesIO()
    Image.new("RGB", (80, 60)).save(buffer, kind, exif=exif)
    if kind != "AVIF":
        found.append(Image.open(buffer).getexif().get(0x0112))
    print(f"saved as {kind}; the caller's object has orientation {exif.get(0x0112)}")
print("orientation in the files, JPEG and WebP before AVIF, then after it:", found)
sys.exit(found != [6, 6, None, None])
P
