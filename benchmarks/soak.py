"""Soak: thousands of good and bad files of every kind in docs/faults.md, mixed with a folder of real ones, through ``finelens predict``.

    python benchmarks/soak.py --files 2000 --mix FOLDER --passes 3 --out benchmarks/results/soak.json

Checked: one row for each file, the expected status for each kind of generated file, no exception, and a resident memory that stays flat after the
first pass. The run that predicts is a zero-shot run with the embedded encoder over a few of the good files. Writes a JSON file with the command, and
beside it the memory over time as SVG; exit code 1 if anything is not as it should be.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import struct
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import finelens
from finelens import api
from finelens.core.console import Console

QUIET = Console(enabled=False)
SLACK = 1.10
"""How much more memory the last pass may take than the first."""


def picture(seed: int, height: int = 240, width: int = 320) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (240, 320), **options: Any) -> Callable[[int], bytes]:
    def make(seed: int) -> bytes:
        buffer = io.BytesIO()
        image = picture(seed, *size)
        (image.convert("I").convert(mode) if mode == "I;16" else image.convert(mode)).save(buffer, kind, **options)
        return buffer.getvalue()

    return make


def frames(kind: str) -> Callable[[int], bytes]:
    def make(seed: int) -> bytes:
        buffer, images = io.BytesIO(), [picture(seed + i) for i in range(3)]
        images[0].save(buffer, kind, save_all=True, append_images=images[1:])
        return buffer.getvalue()

    return make


def turned(seed: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded("JPEG", exif=exif)(seed)


def cut(make: Callable[[int], bytes]) -> Callable[[int], bytes]:
    return lambda seed: make(seed)[: len(make(seed)) * (30 + seed % 40) // 100]


def flipped(make: Callable[[int], bytes]) -> Callable[[int], bytes]:
    def damage(seed: int) -> bytes:
        data, rng = bytearray(make(seed)), np.random.default_rng(seed)
        for position in rng.integers(len(data) // 3, len(data), 8):
            data[position] ^= 1 << int(rng.integers(8))
        return bytes(data)

    return damage


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds a few bytes of zeros."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")


def text_bomb(seed: int) -> bytes:
    data = encoded("PNG")(seed)
    content = b"Comment\0\0" + zlib.compress(bytes(20_000_000))
    chunk = struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))
    return data[:33] + chunk + data[33:]


def archive(seed: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("../../escaped.png", bytes(1_000_000))
    return buffer.getvalue()


def constant(content: bytes) -> Callable[[int], bytes]:
    return lambda seed: content


# Suffix, content, and the statuses that are right for it.
KINDS: dict[str, tuple[str, Callable[[int], bytes], tuple[str, ...]]] = {
    "jpeg": (".jpg", encoded("JPEG"), ("ok",)),
    "upper case": (".JPG", encoded("JPEG"), ("ok",)),
    "progressive": (".jpeg", encoded("JPEG", progressive=True), ("ok",)),
    "large jpeg": (".jpg", encoded("JPEG", size=(1500, 2000)), ("ok",)),
    "cmyk": (".jpg", encoded("JPEG", "CMYK"), ("ok",)),
    "exif": (".jpg", turned, ("ok",)),
    "png": (".png", encoded("PNG"), ("ok",)),
    "alpha": (".png", encoded("PNG", "RGBA"), ("ok",)),
    "palette": (".png", encoded("PNG", "P", transparency=0), ("ok",)),
    "one bit": (".png", encoded("PNG", "1"), ("ok",)),
    "16-bit": (".png", encoded("PNG", "I;16"), ("ok",)),
    "float tiff": (".tif", encoded("TIFF", "F"), ("ok",)),
    "int32 tiff": (".tif", encoded("TIFF", "I"), ("ok",)),
    "packed tiff": (".tiff", encoded("TIFF", compression="tiff_lzw"), ("ok",)),
    "gif": (".gif", frames("GIF"), ("ok",)),
    "webp": (".webp", frames("WEBP"), ("ok",)),
    "bmp": (".bmp", encoded("BMP"), ("ok",)),
    "ppm": (".ppm", encoded("PPM"), ("ok",)),
    "wrong suffix": (".txt", encoded("PNG"), ("ok",)),
    "flipped jpeg": (".jpg", flipped(encoded("JPEG")), ("ok", "corrupt", "too_large", "degenerate")),
    "flipped png": (".png", flipped(encoded("PNG")), ("ok", "corrupt")),
    "flipped tiff": (".tif", flipped(encoded("TIFF", compression="tiff_deflate")), ("ok", "corrupt", "too_large", "degenerate", "unsupported")),
    "flipped webp": (".webp", flipped(encoded("WEBP")), ("ok", "corrupt")),
    "flipped gif": (".gif", flipped(encoded("GIF")), ("ok", "corrupt")),
    "cut jpeg": (".jpg", cut(encoded("JPEG")), ("corrupt",)),
    "cut png": (".png", cut(encoded("PNG")), ("corrupt",)),
    "cut webp": (".webp", cut(encoded("WEBP")), ("corrupt",)),
    "cut tiff": (".tif", cut(encoded("TIFF")), ("corrupt",)),
    "empty": (".jpg", constant(b""), ("corrupt",)),
    "text": (".png", constant(b"not a picture"), ("corrupt",)),
    "svg": (".jpg", constant(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), ("corrupt",)),
    "html": (".jpg", constant(b"<!doctype html><title>404</title>"), ("corrupt",)),
    "notes": (".txt", constant(b"notes"), ("unsupported",)),
    "pdf": (".pdf", constant(b"%PDF-1.7"), ("unsupported",)),
    "postscript": (".eps", constant(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), ("unsupported",)),
    "raw": (".NEF", encoded("TIFF"), ("unsupported",)),
    "heic": (".heic", constant(b"\0\0\0\x18ftypheic" + bytes(40)), ("unsupported",)),
    "archive": (".zip", archive, ("unsupported",)),
    "tiny": (".png", encoded("PNG", size=(1, 1)), ("degenerate",)),
    "stripe": (".png", encoded("PNG", size=(10, 2000)), ("degenerate",)),
    "bomb 144 MP": (".png", constant(png_header(12_000, 12_000)), ("too_large",)),
    "bomb 400 MP": (".png", constant(png_header(20_000, 20_000)), ("too_large",)),
    "bomb 623 MP": (".png", constant(png_header(24_000, 26_000)), ("too_large",)),
    "text bomb": (".png", text_bomb, ("corrupt", "ok")),
}
LINKS = ("broken link",)
ODD_NAMES = (
    b"plain",
    b"with space",
    "caf\u00e9".encode(),
    b"latin-\xe9",
    "\U0001f600".encode(),
    b"=formula",
    b"new\nline",
    b'comma,quote"',
    b"x" * 200,
)


def generate(folder: Path, count: int) -> dict[str, tuple[str, ...]]:
    """Write ``count`` files. Returns display-independent names (bytes as hexadecimal) with the statuses that are right."""
    expected: dict[str, tuple[str, ...]] = {}
    kinds = [*KINDS, *LINKS]
    for number in range(count):
        kind = kinds[number % len(kinds)]
        below = os.fsencode(folder / f"d{number % 7}" / f"e{number % 3}")
        os.makedirs(below, exist_ok=True)
        stem = ODD_NAMES[number % len(ODD_NAMES)] + b"-%d" % number
        if kind == "broken link":
            path = below + b"/" + stem + b".jpg"
            os.symlink(b"nowhere", path)
            expected[path.hex()] = ("vanished",)
            continue
        suffix, make, statuses = KINDS[kind]
        path = below + b"/" + stem + suffix.encode()
        with open(path, "wb") as file:
            file.write(make(number))
        expected[path.hex()] = statuses
    # What must not be listed, and must not be waited for.
    for name in (".hidden.jpg", "Thumbs.db", "desktop.ini"):
        (folder / name).write_bytes(b"x")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    return expected


class Memory:
    """Resident memory of this process over time."""

    def __init__(self, seconds: float = 0.2) -> None:
        self.samples: list[tuple[float, float]] = []
        self._stop, self._seconds, self._start = threading.Event(), seconds, time.perf_counter()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self._stop.wait(self._seconds):
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * page / 2**20
            self.samples.append((round(time.perf_counter() - self._start, 2), round(resident, 1)))

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def svg(samples: list[tuple[float, float]], marks: list[float]) -> str:
    """Megabytes over seconds as a line; vertical lines where a pass begins."""
    width, height, left, bottom = 640, 240, 60, 30
    last, top = samples[-1][0], max(value for _, value in samples) * 1.1

    def x(seconds: float) -> float:
        return left + (width - left - 10) * seconds / last

    def y(value: float) -> float:
        return height - bottom - (height - bottom - 10) * value / top

    step = max(1, len(samples) // 600)
    line = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in samples[::step])
    grid = "".join(
        f'<line x1="{left}" x2="{width - 10}" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="#ddd"/><text x="4" y="{y(v) + 4:.1f}">{v:.0f} MB</text>'
        for v in (0.0, top / 4, top / 2, top * 3 / 4)
    )
    passes = "".join(f'<line x1="{x(m):.1f}" x2="{x(m):.1f}" y1="10" y2="{height - bottom}" stroke="#999" stroke-dasharray="4"/>' for m in marks)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="white"/>{grid}{passes}<polyline points="{line}" fill="none" stroke="#2563eb" stroke-width="1.5"/>'
        f'<text x="{width / 2}" y="{height - 8}">{last:.0f} seconds; a dashed line where a pass begins</text></svg>\n'
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--mix", type=Path, help="folder of real photographs, linked into the soak")
    parser.add_argument("--mix-limit", type=int, default=500)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="finelens-soak-") as folder:
        result, samples, marks = soak(Path(folder), given)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.with_suffix(".svg").write_text(svg(samples, marks))
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0 if result["passed"] else 1


def soak(root: Path, given: argparse.Namespace) -> tuple[dict[str, Any], list[tuple[float, float]], list[float]]:
    photos = root / "photos"
    photos.mkdir()
    expected = generate(photos, given.files)
    mixed = sorted(path for path in given.mix.rglob("*.jpg"))[:: max(1, 4)][: given.mix_limit] if given.mix else []
    (photos / "mixed").mkdir()
    for number, path in enumerate(mixed):
        (photos / "mixed" / f"{number}{path.suffix}").symlink_to(path.resolve())
    names = root / "names.txt"
    names.write_text("cat\ndog\nflower\nbuilding\n")
    few = root / "few"
    few.mkdir()
    for seed in range(8):
        picture(seed).save(few / f"{seed}.png")
    api.zero_shot(few, names, root / "run", options={"training": {"precision": "float32"}}, console=QUIET)
    memory, marks, peaks = Memory(), [], []
    for number in range(given.passes):
        marks.append(time.perf_counter() - memory._start)
        rows = api.predict(root / "run", photos, root / "rows.csv", console=QUIET)
        inside = [value for seconds, value in memory.samples if seconds >= marks[-1]]
        peaks.append({"pass": number + 1, "median_mb": float(np.median(inside)), "peak_mb": max(inside)})
        print(f"pass {number + 1}: {len(rows)} rows, {peaks[-1]}", file=sys.stderr)
    memory.stop()
    by_number = {row.path.rsplit("-", 1)[-1].split(".")[0]: row.status for row in rows if not row.path.startswith("mixed/")}
    wrong = {}
    for name, statuses in expected.items():
        number = os.fsdecode(bytes.fromhex(name)).rsplit("-", 1)[-1].split(".")[0]
        if by_number.get(number) not in statuses:
            wrong[number] = [by_number.get(number), statuses]
    flat = peaks[-1]["median_mb"] <= SLACK * peaks[0]["median_mb"] and peaks[-1]["peak_mb"] <= SLACK * peaks[0]["peak_mb"]
    files = len(expected) + len(mixed)
    result = {
        "command": "python benchmarks/soak.py " + " ".join(sys.argv[1:]),
        "finelens": finelens.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "files": files,
        "generated": len(expected),
        "kinds": len(KINDS) + len(LINKS),
        "mixed": len(mixed),
        "rows": len(rows),
        "statuses": dict(Counter(row.status for row in rows)),
        "wrong_statuses": wrong,
        "passes": peaks,
        "flat": flat,
        "passed": len(rows) == files and not wrong and flat,
    }
    return result, memory.samples, marks


if __name__ == "__main__":
    sys.exit(main())
