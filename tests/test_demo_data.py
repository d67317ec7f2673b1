from __future__ import annotations

import csv
import io
import itertools
import json
import re
import struct
import zlib
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from finelens import demo
from tests.toy import load_script

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "build_demo.py"
ALLOWED = re.compile(r"^(public domain|cc0 public domain|CC0-1\.0|CC-BY-(SA-)?\d\.0)( \(original photo: CC-BY-(SA-)?\d\.0\))?$", re.IGNORECASE)


def labels() -> dict[str, str]:
    with demo.labels_file().open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == ["path", "label"]
        rows = [(row["path"], row["label"]) for row in reader]
    assert len(dict(rows)) == len(rows), "a photograph is labelled twice"
    return dict(rows)


def photos() -> list[Path]:
    return sorted(demo.photos_dir().iterdir())


def attribution() -> list[list[str]]:
    text = (demo.photos_dir().parent / "ATTRIBUTION.md").read_text(encoding="utf-8")
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if re.match(r"\| \d{4}\.jpg ", line)]


def classes() -> list[str]:
    return demo.classes_file().read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script(SCRIPT)


def test_size_and_counts() -> None:
    assert len(photos()) >= 150
    assert len(classes()) >= 12
    assert sum(path.stat().st_size for path in demo.photos_dir().parent.rglob("*") if path.is_file()) < 6_000_000


def test_names_tell_nothing() -> None:
    assert [path.name for path in photos()] == [f"{number:04d}.jpg" for number in range(1, len(photos()) + 1)]
    order = [label for _, label in sorted(labels().items())]
    # If the numbers followed the classes nearly every neighbour would share its label; by chance it is about one in twenty.
    assert np.mean([a == b for a, b in itertools.pairwise(order)]) < 0.15


def test_every_photograph_is_labelled_once_with_a_listed_class() -> None:
    assert set(labels()) == {path.name for path in photos()}
    assert len(set(classes())) == len(classes())
    assert set(labels().values()) == set(classes())
    assert min(Counter(labels().values()).values()) >= 4


def test_every_photograph_is_attributed_once_under_free_terms() -> None:
    rows = attribution()
    assert [row[0] for row in rows] == [path.name for path in photos()]
    assert len({row[1] for row in rows}) == len(rows), "one source image used twice"
    for name, path, author, terms, origin in rows:
        assert path.endswith(".webp`"), name
        assert author, name
        assert ALLOWED.match(terms), (name, terms)
        assert origin.startswith("<https://"), name


def test_photographs_decode_and_carry_no_metadata() -> None:
    for path in photos():
        with Image.open(path) as image:
            image.load()
            assert image.format == "JPEG", path.name
            assert image.mode == "RGB", path.name
            assert 100 <= min(image.size) <= 256, (path.name, image.size)
            assert not image.getexif(), path.name
            assert not {"exif", "icc_profile", "xmp", "comment"} & set(image.info), path.name


def test_photographs_differ_from_each_other() -> None:
    hashes = []
    for path in photos():
        grey = np.asarray(Image.open(path).convert("L").resize((17, 16)), dtype=int)
        hashes.append((grey[:, 1:] > grey[:, :-1]).ravel())
    bits = np.array(hashes)
    distance = (bits[:, None] != bits[None]).sum(-1) + 256 * np.eye(len(bits), dtype=int)
    # The same photograph in another size or quality differs in fewer than ten of the 256 gradient signs.
    assert distance.min() > 20


def test_descriptions_cover_the_classes() -> None:
    descriptions = json.loads(demo.descriptions_file().read_text(encoding="utf-8"))
    assert list(descriptions) == classes()
    for name, sentences in descriptions.items():
        assert 6 <= len(sentences) <= 10, name
        assert len(set(sentences)) == len(sentences), name


def test_tables_follow_from_the_list_of_sources(script: ModuleType, tmp_path: Path) -> None:
    sources = script.read_sources(SCRIPT.parent / "demo_sources.tsv")
    script.write_tables(sources, tmp_path)
    for name in ("labels.csv", "ATTRIBUTION.md"):
        assert (tmp_path / name).read_text(encoding="utf-8") == (demo.photos_dir().parent / name).read_text(encoding="utf-8"), name


def test_boxes_lie_in_photographs_that_are_there() -> None:
    boxes = demo.object_boxes()
    assert len(boxes) == 60
    assert set(boxes) <= {path.name for path in photos()}
    for own in boxes.values():
        assert all(0 <= left < right <= 1 and 0 <= top < bottom <= 1 for left, top, right, bottom in own)


def qt_resource(files: dict[str, tuple[bytes, bool]]) -> bytes:
    """A version-1 Qt resource with the given files in one folder ``d``; the flag says whether to compress."""
    names, data, offsets = b"", b"", {}
    for name in ["d", *files]:
        offsets[name] = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    nodes = struct.pack(">IHII", 0, 2, 1, 1) + struct.pack(">IHII", offsets["d"], 2, len(files), 2)
    for name, (content, compress) in files.items():
        stored = struct.pack(">I", len(content)) + zlib.compress(content) if compress else content
        nodes += struct.pack(">IHHHI", offsets[name], int(compress), 0, 0, len(data))
        data += struct.pack(">I", len(stored)) + stored
    head = 20
    return struct.pack(">4sIIII", b"qres", 1, head, head + len(nodes) + len(names), head + len(nodes)) + nodes + names + data


def test_resource_reader(script: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "x.rcc"
    path.write_bytes(qt_resource({"plain.txt": (b"hello", False), "packed.txt": (b"again " * 50, True)}))
    assert script.read_resource(path) == {"d/plain.txt": b"hello", "d/packed.txt": b"again " * 50}
    path.write_bytes(b"nope" + bytes(16))
    with pytest.raises(SystemExit, match="not a Qt binary resource"):
        script.read_resource(path)


def test_shrink_reduces_the_short_side_and_drops_metadata(script: ModuleType) -> None:
    source = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "secret"
    Image.new("RGB", (1024, 768), "red").save(source, "JPEG", exif=exif)
    small = Image.open(io.BytesIO(script.shrink(source.getvalue())))
    assert small.size == (341, 256)
    assert not small.getexif()
    tiny = io.BytesIO()
    Image.new("RGB", (320, 240), "red").save(tiny, "PNG")
    assert Image.open(io.BytesIO(script.shrink(tiny.getvalue()))).size == (320, 240)


def test_wrong_package_is_refused(script: ModuleType, tmp_path: Path) -> None:
    package = tmp_path / "other.deb"
    package.write_bytes(b"not it")
    with pytest.raises(SystemExit, match="SHA-256"):
        script.unpack(package, tmp_path)
