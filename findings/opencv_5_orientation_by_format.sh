#!/usr/bin/env bash
# OpenCV 5.0.0 (opencv-python-headless 5.0.0.93): whether an image comes upright depends on the format, not on the flag alone.
# JPEG, PNG and WebP are turned, unless IMREAD_UNCHANGED or IMREAD_IGNORE_ORIENTATION is asked for, as documented. TIFF is turned with these two
# flags as well, and IMREAD_REDUCED_COLOR_2 squeezes a turned one into the sides of the picture that lies (48 x 32 where 32 x 48 is half). AVIF is never
# turned. So one photograph gives a model other pixels by the format it was saved in.
# Remedy: Pillow with ImageOps.exif_transpose, which turns all five.
# Exits 0 while this is so.
set -eu
T=$(mktemp -d); trap 'rm -rf "$T"' EXIT
python3 -m venv "$T/env"
"$T/env/bin/pip" install -q opencv-python-headless==5.0.0.93 pillow==13.0.0 "numpy>=2,<3"
"$T/env/bin/python" - <<'P'
import io
import sys

import cv2
import numpy as np
from PIL import Image, ImageOps

pixels = np.zeros((64, 96, 3), np.uint8)
pixels[:32, :48] = 255  # white at the top left as stored, at the top right when upright
exif = Image.Exif()
exif[0x0112] = 6  # turn right to see it upright
FLAGS = {
    "COLOR": cv2.IMREAD_COLOR,
    "UNCHANGED": cv2.IMREAD_UNCHANGED,
    "IGNORE": cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION,
    "REDUCED": cv2.IMREAD_REDUCED_COLOR_2,
}


def seen(image):
    """Width, height, and whether the white corner is at the right."""
    height, width = image.shape[:2]
    return width, height, bool(image[: height // 2, width // 2 :].mean() > image[: height // 2, : width // 2].mean())


UP, LYING, HALF, HALF_LYING = (64, 96, True), (96, 64, False), (32, 48, True), (48, 32, False)
usual = [UP, LYING, LYING, HALF]
expected = {"JPEG": usual, "PNG": usual, "WEBP": usual, "TIFF": [UP, UP, UP, (48, 32, True)], "AVIF": [LYING, LYING, LYING, HALF_LYING]}
print("OpenCV", cv2.__version__, "flags", *FLAGS)
same = True
for kind, wanted in expected.items():
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, exif=exif.tobytes())
    found = [seen(cv2.imdecode(np.frombuffer(buffer.getvalue(), np.uint8), flag)) for flag in FLAGS.values()]
    same &= found == wanted and seen(np.asarray(ImageOps.exif_transpose(Image.open(buffer)))) == UP
    print(kind, found)
sys.exit(not same)
P
