"""Size and time of the report of a large run: a synthetic one is written, its report made, and the page opened in headless Chromium.

    python benchmarks/report_scale.py --images 50000 --classes 1000

The photographs are noise with structure, which JPEG compresses worse than real ones. Without Chromium the load time is left out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from finelens.evaluation.signals import measure, write_measured
from finelens.protocol import ImageRecord
from finelens.reporting.thumbnails import Photo
from finelens.reporting.write import write_report
from finelens.runs.config import to_json
from finelens.runs.folder import RunFolder
from finelens.runs.resolve import make_config
from finelens.storage.files import write_json
from finelens.storage.predictions import rows_from_logits, write_predictions

BROWSER = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
QUIET = ("--disable-component-update", "--disable-sync")
PROBE = "<script>addEventListener('load',()=>{document.title='loaded '+Math.round(performance.now())+' ms'})</script>"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = synthetic(Path(scratch) / "run", given.images, given.classes)
        start = time.perf_counter()
        with RunFolder.open(folder) as run:
            path = write_report(run, photo)
        seconds = time.perf_counter() - start
        result = {
            "images": given.images,
            "classes": given.classes,
            "megabytes": round(path.stat().st_size / 1e6, 1),
            "write_seconds": round(seconds, 1),
        }
        print(json.dumps(result | {"load_ms": load_time(path)}))


def synthetic(folder: Path, images: int, classes: int) -> Path:
    """A finished run, without a model that could predict."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(classes, (images,), generator=generator)
    logits = 3 * torch.randn(images, classes, generator=generator)
    logits[torch.arange(images), truth] += 8
    first = logits + 3 * torch.randn(images, classes, generator=generator)
    features = torch.nn.functional.normalize(torch.randn(images, 64, generator=generator), dim=1)
    names = [f"class number {i} of many" for i in range(classes)]
    records = [ImageRecord(f"some/folder/of/photographs/IMG_{i:06d}.jpg", "ok", "", f"{i:064x}", i) for i in range(images)]
    config = make_config("adapt", "/nowhere/photos", "stata", {"training": {"precision": "float32"}}, classes_file="/nowhere/classes.txt")
    with RunFolder.create(folder, config) as run:
        run.log("start", config=to_json(config), digest="0")
        run.log("images", files=images, counts={"ok": images}, digest="0")
        run.log("classes", classes=classes, templates=["a photo of {}"], descriptions=None, digest="0")
        write_predictions(run.predictions_path, rows_from_logits(records, names, logits.numpy(), first.argmax(1).numpy()))
        heads = torch.nn.functional.normalize(torch.randn(classes, 64, generator=generator), dim=1)
        ids = [f"{i:064x}"[::-1] for i in range(images)]
        write_measured(run.signals_path, measure(logits, first, None, features, heads, ids, range(images)))
        run.model_dir.mkdir()
        write_json(run.model_dir / "model.json", {"class_names": names})
        run.log("end", no_grad_forwards=images, grad_forwards=0, seconds={"encode": 100.0})
    return folder


def photo(name: str) -> Photo:
    rng = np.random.default_rng(int(name[-10:-4]))
    coarse = torch.from_numpy(rng.integers(0, 256, (3, 24, 32), dtype=np.uint8)).float()
    fine = torch.nn.functional.interpolate(coarse[None], (240, 320), mode="bilinear")[0] + torch.from_numpy(rng.normal(0, 12, (3, 240, 320))).float()
    return Photo(fine.clamp(0, 255).to(torch.uint8), name)


def load_time(path: Path) -> int | None:
    """Milliseconds from navigation to the load event, the page's own script included; the least of three."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        return None
    # Measured on a copy whose policy lets the probe run.
    text = path.read_text(encoding="utf-8").replace("Content-Security-Policy", "X-Off", 1).replace("</body>", PROBE + "</body>")
    copy = path.with_name("probe.html")
    copy.write_text(text, encoding="utf-8")
    found = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as profile:
            command = [browser, *BROWSER, *QUIET, f"--user-data-dir={profile}", "--dump-dom", copy.as_uri()]
            page = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False).stdout
        title = page[page.find("<title>") + 7 : page.find("</title>")]
        if title.startswith("loaded "):
            found.append(int(title.split()[1]))
    return min(found) if found else None


if __name__ == "__main__":
    main()
