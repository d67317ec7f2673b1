"""Rebuild the photographs, the labels and the attribution of ``src/finelens/demo`` from the Debian package that carries them.

    python scripts/build_demo.py            # needs apt-get and dpkg-deb; or --package FILE for a package already downloaded
    python scripts/build_demo.py --check    # rebuild in a temporary folder and compare with what the repository holds

``demo_sources.tsv`` beside this script is the list: one line a photograph with its path in GCompris, its class, its author, the terms as the README
beside the image in GCompris states them, and the page it came from. The choice was made by terms and availability only, never by what a model says.
Numbers follow the SHA-256 of the source path, so neither a name nor the order tells the class.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import struct
import subprocess
import sys
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops, ImageStat

PACKAGE, VERSION = "gcompris-qt-data", "3.1-2"
PACKAGE_SHA256 = "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f"
RESOURCE_FOLDER = "usr/share/gcompris-qt/rcc"
RESOURCE_ROOT = "gcompris/src/activities/"
SHORT_SIDE, QUALITY = 256, 80
# JPEG encoders differ between builds of the library: a rebuilt photograph may differ by this much (mean absolute level, 0 to 255).
TOLERANCE = 2.0
HERE = Path(__file__).resolve().parent
DEMO = HERE.parent / "src" / "finelens" / "demo"

HEAD = """# Where the photographs come from

The {count} photographs in `photos/` were made by others. The Apache licence of finelens does **not** cover them: each is under the terms of its line
below. All come from the Debian package `{package}` {version} (GCompris, an educational suite by KDE), SHA-256 of the package
`{sha}`.

* **Path** is the image inside the package: the resource file `{folder}/<activity>.rcc`, below `{root}`,
  where `<activity>` is the first part of the path.
* **Author, terms and origin** are those that GCompris states for the image in the `README` of its folder in the source (`src/activities/...`), with
  licence names in one spelling. The package's own `copyright` file still describes earlier images of the same names and does not apply.
  Read at these commits of GCompris: categorization fishes `747cfd9f`, tools `1d43def5`, renewable `de920859`, monuments `71ea34a4`, others
  `e8eabafe`; details `69e25676`; erase `fae112ec`; explore_farm_animals `479d754b`; explore_monuments `aeee78a3`; explore_world_animals `de72bf18`.
  That each image of the package is the one described there was checked by eye.
* **Changes, to every photograph**: resized to a short side of {side} pixels (never enlarged), re-encoded as JPEG of quality {quality}, metadata
  removed, renamed. GCompris had cropped or sharpened some before; for those from `details/` it names a new licence beside that of the original.
* Adapted photographs under a ShareAlike licence stay under that same licence here.
* Images with GPL terms only, with unnamed terms, or of recent architecture and sculpture in countries without freedom of panorama were left out.
  No endorsement by any author is implied.
* `labels.csv` and `boxes.csv`, the boxes around the objects of 60 photographs, are not from GCompris: they were made for finelens, by hand, and are
  under its licence.

Licences: [CC0 1.0](https://creativecommons.org/publicdomain/zero/1.0/), [CC BY 2.0](https://creativecommons.org/licenses/by/2.0/),
[CC BY 3.0](https://creativecommons.org/licenses/by/3.0/), [CC BY 4.0](https://creativecommons.org/licenses/by/4.0/),
[CC BY-SA 2.0](https://creativecommons.org/licenses/by-sa/2.0/), [CC BY-SA 3.0](https://creativecommons.org/licenses/by-sa/3.0/),
[CC BY-SA 4.0](https://creativecommons.org/licenses/by-sa/4.0/).

`scripts/build_demo.py` of the source repository rebuilds this folder from the package. `classes.txt`, `descriptions.json` and the labels are the
work of the finelens authors, under the licence of finelens.

| Photograph | Path | Author | Terms | Origin |
| --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True)
class Source:
    """One line of the list: where a photograph is, what it shows and whose it is."""

    path: str
    label: str
    author: str
    terms: str
    origin: str

    @property
    def activity(self) -> str:
        return self.path.split("/")[0]


def read_sources(path: Path) -> list[Source]:
    """The list, in the order of the numbers."""
    with path.open(encoding="utf-8", newline="") as file:
        sources = [Source(**row) for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    return sorted(sources, key=lambda source: hashlib.sha256(source.path.encode()).hexdigest())


def fetch_package(folder: Path) -> Path:
    """Download the package by name with the system's package client."""
    subprocess.run(["apt-get", "download", f"{PACKAGE}={VERSION}"], cwd=folder, check=True)
    return next(folder.glob(f"{PACKAGE}_*.deb"))


def unpack(package: Path, folder: Path) -> Path:
    """Check the package's digest, unpack it and return the folder of its resource files."""
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    if digest != PACKAGE_SHA256:
        sys.exit(f"{package}: SHA-256 is {digest}, expected {PACKAGE_SHA256}; get {PACKAGE} {VERSION}")
    subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True)
    return folder / RESOURCE_FOLDER


def read_resource(path: Path) -> dict[str, bytes]:
    """Files of a Qt binary resource (magic ``qres``): path to content. Entries are stored raw or zlib-compressed."""
    blob = path.read_bytes()
    magic, version, tree, data, names = struct.unpack_from(">4sIIII", blob)
    if magic != b"qres":
        sys.exit(f"{path}: not a Qt binary resource")
    node_size = 14 if version < 2 else 22  # version 2 added a modification time
    directory, compressed, zstd = 2, 1, 4
    found: dict[str, bytes] = {}

    def name_at(offset: int) -> str:
        (length,) = struct.unpack_from(">H", blob, names + offset)
        return blob[names + offset + 6 : names + offset + 6 + 2 * length].decode("utf-16-be")

    def content_at(offset: int, flags: int) -> bytes:
        (length,) = struct.unpack_from(">I", blob, data + offset)
        content = blob[data + offset + 4 : data + offset + 4 + length]
        if flags & zstd:
            sys.exit(f"{path}: zstd-compressed entries are not supported")
        # A compressed entry starts with its plain length, as qCompress writes it.
        return zlib.decompress(content[4:]) if flags & compressed else content

    def walk(index: int, prefix: str) -> None:
        position = tree + index * node_size
        name_offset, flags = struct.unpack_from(">IH", blob, position)
        here = f"{prefix}/{name_at(name_offset)}" if index else ""
        if flags & directory:
            count, first = struct.unpack_from(">II", blob, position + 6)
            for child in range(first, first + count):
                walk(child, here)
        else:
            (offset,) = struct.unpack_from(">I", blob, position + 10)
            found[here.lstrip("/")] = content_at(offset, flags)

    walk(0, "")
    return found


def shrink(content: bytes) -> bytes:
    """Decode, reduce the short side to ``SHORT_SIDE`` and encode as JPEG without metadata."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    ratio = SHORT_SIDE / min(image.size)
    if ratio < 1:
        image = image.resize((round(image.width * ratio), round(image.height * ratio)), Image.Resampling.LANCZOS)
    # A new image carries none of the old one's EXIF, XMP or colour profile.
    clean = Image.new("RGB", image.size)
    clean.paste(image)
    out = io.BytesIO()
    clean.save(out, "JPEG", quality=QUALITY, optimize=True, subsampling="4:2:0")
    return out.getvalue()


def write_tables(sources: list[Source], demo: Path) -> None:
    """``labels.csv`` and ``ATTRIBUTION.md``."""
    names = [f"{number:04d}.jpg" for number in range(1, len(sources) + 1)]
    with (demo / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "label"])
        writer.writerows((name, source.label) for name, source in zip(names, sources, strict=True))
    head = HEAD.format(
        count=len(sources),
        package=PACKAGE,
        version=VERSION,
        sha=PACKAGE_SHA256,
        folder=RESOURCE_FOLDER,
        root=RESOURCE_ROOT,
        side=SHORT_SIDE,
        quality=QUALITY,
    )
    lines = [f"| {name} | `{s.path}` | {s.author} | {s.terms} | <{s.origin}> |\n" for name, s in zip(names, sources, strict=True)]
    (demo / "ATTRIBUTION.md").write_text(head + "".join(lines), encoding="utf-8")


def build(sources: list[Source], resources: Path, demo: Path) -> None:
    """Write photographs, labels and attribution into ``demo``."""
    photos = demo / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    for old in photos.glob("*.jpg"):
        old.unlink()
    contents = {activity: read_resource(resources / f"{activity}.rcc") for activity in {source.activity for source in sources}}
    for number, source in enumerate(sources, start=1):
        (photos / f"{number:04d}.jpg").write_bytes(shrink(contents[source.activity][RESOURCE_ROOT + source.path]))
    write_tables(sources, demo)


def compare(built: Path, kept: Path) -> list[str]:
    """What differs between a rebuilt folder and the kept one, one line each."""
    texts = ["labels.csv", "ATTRIBUTION.md"]
    problems = [f"{name}: differs" for name in texts if (built / name).read_text("utf-8") != (kept / name).read_text("utf-8")]
    new, old = ({path.name: path for path in (folder / "photos").iterdir()} for folder in (built, kept))
    problems += [f"photos/{name}: only on one side" for name in sorted(new.keys() ^ old.keys())]
    for name in sorted(new.keys() & old.keys()):
        left, right = Image.open(new[name]), Image.open(old[name])
        if left.size != right.size:
            problems.append(f"photos/{name}: size differs")
        elif (error := max(ImageStat.Stat(ImageChops.difference(left, right)).mean)) > TOLERANCE:
            problems.append(f"photos/{name}: differs by {error:.1f} levels")
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description="Rebuild the demonstration set.")
    parser.add_argument("--package", type=Path, help=f"the file of {PACKAGE} {VERSION}, if already downloaded")
    parser.add_argument("--check", action="store_true", help="compare with the repository instead of writing to it")
    args = parser.parse_args()
    sources = read_sources(HERE / "demo_sources.tsv")
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        resources = unpack(args.package or fetch_package(work), work / "unpacked")
        demo = work / "demo" if args.check else DEMO
        build(sources, resources, demo)
        problems = compare(demo, DEMO) if args.check else []
    if problems:
        sys.exit("\n".join(problems))
    print(f"{len(sources)} photographs {'match the repository' if args.check else f'written to {DEMO}'}")


if __name__ == "__main__":
    main()
