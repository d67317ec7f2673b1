"""Size and time of the report of a large run: a synthetic one is written, its report made, and the page opened in headless Chromium.

    python benchmarks/report_scale.py --images 50000 --classes 1000 [--keep FOLDER]

The photographs are noise with structure, which JPEG compresses worse than real ones; their features are a cloud around each class. Without Chromium
the times of the page are left out. ``map_ms`` are the middle and the longest of 60 drawings of the map each, from the event to the last pixel: as it
opens, while the pointer goes over it, while it is zoomed, and while it is moved at eight times its size. Chromium has no graphics card there.
"""

from __future__ import annotations

import argparse
import html
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from finelens.evaluation.layout import lay_out, write_layout
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
# Drawing is done at once instead of in the next frame, if there is anything to draw, and reading a pixel waits until all are there.
AT_ONCE = "<script>let drawing; requestAnimationFrame = (draw) => { drawing = draw; };</script>"
MAP_PROBE = """<script>
addEventListener('load', () => {
  const canvas = document.getElementById('map-canvas'), pen = canvas.getContext('2d'), wide = canvas.clientWidth, found = {};
  const at = (kind, x, y, more) => canvas.dispatchEvent(new (kind === 'wheel' ? WheelEvent : PointerEvent)(kind, Object.assign({
    clientX: canvas.getBoundingClientRect().left + x, clientY: canvas.getBoundingClientRect().top + y, pointerId: 1, cancelable: true }, more)));
  canvas.setPointerCapture = () => {};
  function timed(name, step) {
    const times = [];
    for (let i = 0; i < 60; i += 1) {
      const start = performance.now();
      step(i);
      if (drawing) drawing();
      drawing = undefined;
      pen.getImageData(0, 0, 1, 1);
      times.push(performance.now() - start);
    }
    times.sort((a, b) => a - b);
    found[name] = [times[30], times[59]].map((ms) => Math.round(10 * ms) / 10);
  }
  timed('all', () => dispatchEvent(new Event('resize')));
  timed('hover', (i) => at('pointermove', 5 * i + 20, 3 * i + 20, {}));
  timed('zoom', () => at('wheel', wide / 2, 200, { ctrlKey: true, deltaY: -300 * Math.log(8) / 60 }));
  at('pointerdown', 300, 200, {});
  timed('pan', (i) => at('pointermove', 300 + 2 * i, 200 + i, {}));
  at('pointerup', 300, 200, {});
  document.title = JSON.stringify(found);
});
</script>"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--keep", type=Path, help="leave the run here, a folder that does not exist")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = synthetic(given.keep or Path(scratch) / "run", given.images, given.classes)
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
        loads = [title for _ in range(3) if (title := probed(path, PROBE))]
        drawn = probed(path, MAP_PROBE, AT_ONCE)
        print(json.dumps(result | {"load_ms": min((int(title.split()[1]) for title in loads), default=None), "map_ms": drawn and json.loads(drawn)}))


def synthetic(folder: Path, images: int, classes: int) -> Path:
    """A finished run, without a model that could predict."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(classes, (images,), generator=generator)
    logits = 3 * torch.randn(images, classes, generator=generator)
    logits[torch.arange(images), truth] += 8
    first = logits + 3 * torch.randn(images, classes, generator=generator)
    centres = torch.randn(classes, 64, generator=generator)
    features = torch.nn.functional.normalize(centres[truth] + 0.8 * torch.randn(images, 64, generator=generator), dim=1)
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
        layout = lay_out(features)
        assert layout is not None
        write_layout(run.map_path, layout)
        run.model_dir.mkdir()
        write_json(run.model_dir / "model.json", {"class_names": names})
        run.log("end", no_grad_forwards=images, grad_forwards=0, seconds={"encode": 100.0})
    return folder


def photo(name: str) -> Photo:
    rng = np.random.default_rng(int(name[-10:-4]))
    coarse = torch.from_numpy(rng.integers(0, 256, (3, 24, 32), dtype=np.uint8)).float()
    fine = torch.nn.functional.interpolate(coarse[None], (240, 320), mode="bilinear")[0] + torch.from_numpy(rng.normal(0, 12, (3, 240, 320))).float()
    return Photo(fine.clamp(0, 255).to(torch.uint8), name)


def probed(path: Path, probe: str, before: str = "") -> str | None:
    """The title that a script gives a page once it has loaded; None without Chromium. ``before`` runs before the page's own script."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        return None
    # Measured on a copy whose policy lets the probe run.
    text = path.read_text(encoding="utf-8").replace("Content-Security-Policy", "X-Off", 1).replace("<head>", "<head>" + before, 1)
    text = text.replace("</body>", probe + "</body>")
    copy = path.with_name("probe.html")
    copy.write_text(text, encoding="utf-8")
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, *BROWSER, *QUIET, f"--user-data-dir={profile}", "--window-size=1400,1000", "--dump-dom", copy.as_uri()]
        page = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False).stdout
    copy.unlink()
    return html.unescape(page[page.find("<title>") + 7 : page.find("</title>")])


if __name__ == "__main__":
    main()
