#!/usr/bin/env bash
# datasets 5.2.0: a map whose function only looks at the image column ({"width": example["image"].width}) writes the photographs anew. Bytes of a JPEG
# become another JPEG at Pillow's default quality of 75 without EXIF, each further such map included; one with an orientation in its EXIF becomes a PNG
# several times as large. The returned columns do not name the image, so it looks untouched. Features of a model before and after are of other pixels.
# A map that does not look at it keeps the bytes.
# Remedy: input_columns without the image, or cast_column("image", Image(decode=False)) and decoding in the function.
# Exits 0 while this is so.
set -eu
T=$(mktemp -d); trap 'rm -rf "$T"' EXIT
python3 -m venv "$T/env"
"$T/env/bin/pip" install -q datasets==5.2.0 pillow==13.0.0 "numpy>=2,<3"
cd "$T"
HF_HOME="$T/home" HF_HUB_OFFLINE=1 "$T/env/bin/python" - <<'P'
import io
import sys

import datasets
import numpy as np
from PIL import Image

datasets.disable_progress_bars()
coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
photo = coarse.resize((256, 256), Image.Resampling.BICUBIC)


def jpeg(orientation):
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0132] = "2026:05:01 06:00:00"
    if orientation:
        exif[0x0112] = orientation
    photo.save(buffer, "JPEG", quality=95, exif=exif)
    return {"bytes": buffer.getvalue(), "path": None}


def stored(rows):
    return [cell["image"]["bytes"] for cell in rows.cast_column("image", datasets.Image(decode=False))]


def shown(data):
    image = Image.open(io.BytesIO(data))
    return f"{image.format}, {len(data)} bytes, date {image.getexif().get(0x0132)}"


features = datasets.Features({"image": datasets.Image(), "name": datasets.Value("string")})
rows = datasets.Dataset.from_dict({"image": [jpeg(None), jpeg(6)], "name": ["upright", "turned"]}, features=features)
before = stored(rows)
kept = stored(rows.map(lambda example: {"length": len(example["name"])}))
looked = stored(rows.map(lambda example: {"width": example["image"].width}))
remedy = stored(rows.cast_column("image", datasets.Image(decode=False)).map(lambda row: {"width": Image.open(io.BytesIO(row["image"]["bytes"])).width}))
for name, *cells in zip(rows["name"], before, kept, looked):
    print(f"{name}: before: {shown(cells[0])}; name looked at: {shown(cells[1])}; image looked at: {shown(cells[2])}")
first, second = (np.asarray(Image.open(io.BytesIO(cells[0]))).astype(int) for cells in (before, looked))
print("upright one: largest difference of a pixel value:", np.abs(first - second).max())
written = [Image.open(io.BytesIO(data)) for data in looked]
same = kept == before == remedy and [image.format for image in written] == ["JPEG", "PNG"] and not any(dict(image.getexif()) for image in written)
sys.exit(not (same and len(looked[0]) < 0.6 * len(before[0]) and len(looked[1]) > 3 * len(before[1]) and np.abs(first - second).max() > 8))
P
