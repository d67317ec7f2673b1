"""Other people's programs and this one on the same work, in turn: zero-shot with ViT-B/32, and the released codes of TransCLIP and StatA. JSON lines.

    python benchmarks/peers.py towers PHOTOS --classes names.txt --work DIR --out peers.jsonl
    python benchmarks/peers.py solvers --transclip CHECKOUT --stata CHECKOUT --out peers.jsonl

``towers``   One ViT-B/32 with random weights as open_clip builds it, and the same weights as ``finelens export`` converts them, kept in DIR.
             Each side of each turn is a process of its own that loads its model, answers a few photographs uncounted and is measured on the others.
             ``files`` is everything from the JPEG file to the class, ``pixels`` the tower alone on views that are in memory as bytes. With one thread
             a process is held on one core.
``solvers``  The authors' code runs from a checkout of github.com/MaxZanella/transduction-for-vlms and of github.com/MaxZanella/StatA, on a CPU: their
             ``cuda()`` calls are made to do nothing and the accuracy that they print is left out, all else is as released. Same features, same
             prototypes, logit scale 100 on both sides.

Wants ``open_clip_torch``, ``transformers`` and the extra ``onnx``, and for one side ``clip-benchmark``; a side whose package is missing is a row that
says so. ``cpu_seconds`` is processor time of all threads, ``megabytes_peak`` the largest resident size with interpreter, libraries and model.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from resident import peak_megabytes
from torch import Tensor, nn

ARCHITECTURE, BATCH = "ViT-B-32", 32
# Uncounted at first.
WARM = 4
Answer = Callable[[Any], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    towers = verbs.add_parser("towers")
    towers.set_defaults(run=compare_towers)
    towers.add_argument("photos", type=Path, help="a folder of JPEG files")
    towers.add_argument("--classes", type=Path, required=True)
    towers.add_argument("--images", type=int, default=64)
    towers.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    towers.add_argument("--work", type=Path, required=True, help="where the models are put, and found again")
    towers.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    solvers = verbs.add_parser("solvers")
    solvers.set_defaults(run=compare_solvers)
    solvers.add_argument("--transclip", type=Path, help="a checkout of transduction-for-vlms")
    solvers.add_argument("--stata", type=Path, help="a checkout of StatA")
    solvers.add_argument("--sizes", nargs="+", default=["20000x100"], help="images x classes, of 512 columns")
    for verb in (towers, solvers):
        verb.add_argument("--turns", type=int, default=3)
        verb.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.run(given)


# Zero-shot with one tower.


def compare_towers(given: argparse.Namespace) -> None:
    prepare(given.work, given.photos, given.classes, given.images)
    for threads in given.threads:
        for what in ("files", "pixels"):
            rows: dict[str, list[dict[str, Any]]] = {}
            for turn in range(given.turns):
                for side in given.sides:
                    packages, images, makers = SIDES[side]
                    absent = [name for name in packages if importlib.util.find_spec(name) is None]
                    if what not in makers or (absent and turn):
                        continue
                    about = {"part": "towers", "side": side, "what": what, "threads": threads}
                    if absent:
                        keep(given.out, about | {"skipped": f"not installed: {', '.join(absent)}"})
                        continue
                    row = child("tower", side, what, str(given.work), str(min(images, given.images)), str(threads), threads=threads)
                    rows.setdefault(side, []).append(row)
                    keep(given.out, about | {"turn": turn} | {name: value for name, value in row.items() if name != "answers"})
            summary(rows, what, threads, given.out)


def summary(rows: dict[str, list[dict[str, Any]]], what: str, threads: int, out: Path) -> None:
    """A row for each side: the best of the turns, how many times the processor time of finelens it takes, and how many answers are the same."""
    ours = rows.get("finelens")
    for side, turns in rows.items():
        milliseconds = min(row["cpu_seconds"] / row["images"] for row in turns) * 1e3
        row = {"cpu_ms_an_image": round(milliseconds, 1), "images_a_second": round(max(row["images"] / row["seconds"] for row in turns), 2)}
        if ours:
            own = [row["cpu_seconds"] / row["images"] for row in ours]
            paired = [row["cpu_seconds"] / row["images"] / mine for row, mine in zip(turns, own, strict=True)]
            row["times_the_processor_time_of_finelens"] = {
                "best": round(milliseconds / 1e3 / min(own), 2),
                "median": round(statistics.median(paired), 2),
            }
            answers = list(zip(turns[0]["answers"], ours[0]["answers"], strict=False))
            row["same_answer"] = round(sum(a == b for a, b in answers) / len(answers), 4)
        row |= {"megabytes_peak": max(row["megabytes_peak"] for row in turns)}
        keep(out, {"part": "towers", "what": what, "threads": threads, "side": side, "turns": len(turns), "best": row})


def prepare(work: Path, photos: Path, classes: Path, images: int) -> None:
    """The model of each side and the photographs, where they are not there yet."""
    import open_clip
    from safetensors.torch import save_file

    from finelens import api
    from finelens.core.console import Console

    files = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    folder = work / "photos"
    if not folder.is_dir():
        folder.mkdir(parents=True)
        # Spread over the folder: neighbours are often of one class.
        for number in range(min(images, len(files))):
            source = files[number * len(files) // min(images, len(files))]
            shutil.copyfile(source, folder / f"{number:05d}.jpg")
    if not (work / "open_clip").is_dir():
        torch.manual_seed(0)
        model = open_clip.create_model(ARCHITECTURE)
        (work / "open_clip").mkdir()
        config = {"model_cfg": open_clip.get_model_config(ARCHITECTURE), "preprocess_cfg": open_clip.get_model_preprocess_cfg(model)}
        (work / "open_clip" / "open_clip_config.json").write_text(json.dumps(config))
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, work / "open_clip" / "open_clip_model.safetensors")
    quiet = Console(enabled=False)
    if not (work / "run").is_dir():
        api.zero_shot(folder, classes, work / "run", backbone=f"local:{work / 'open_clip'}", console=quiet)
    for target in ("transformers", "onnx"):
        if not (work / target).is_dir():
            api.export(work / "run", work / target, to=target, console=quiet)
    if not (work / "views.pt").is_file():
        torch.save(views_of(work), work / "views.pt")


def views_of(work: Path) -> Tensor:
    """Centre views (N, 3, 224, 224) of the photographs, uint8."""
    from finelens.images.discover import visible_files
    from finelens.images.store import load_images
    from finelens.images.views import centre_view
    from finelens.runs.classifier import load_run

    classifier = load_run(work / "run")
    loaded = load_images(visible_files(work / "photos"), classifier.limits)
    order = [record.index for record in loaded.records if record.index is not None]
    return torch.stack([centre_view(loaded.store[index], classifier.preprocesses[0]) for index in order])


def head(work: Path) -> tuple[Tensor, Tensor]:
    """The run's classifier on unit-norm features: (E, C) and (C,)."""
    from safetensors.torch import load_file

    found = load_file(work / "transformers" / "classifier.safetensors")
    return found["weight"].T, found["bias"]


class Files(torch.utils.data.Dataset):
    """Photographs as torch's data sets give them."""

    def __init__(self, files: Sequence[Path], transform: Callable[[Any], Any]) -> None:
        self._files, self._transform = files, transform

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        return self._transform(Image.open(self._files[index]).convert("RGB")), 0


def open_clip_model(work: Path) -> tuple[nn.Module, Callable[[Any], Any]]:
    import open_clip

    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{work / 'open_clip'}")
    return model.eval(), preprocess


def in_batches(encode: Callable[[Tensor], Tensor], views: Tensor, work: Path) -> Tensor:
    """Classes of uint8 views, normalised as CLIP wants them."""
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    weight, bias = head(work)
    mean, std = (torch.tensor(values)[:, None, None] for values in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    with torch.no_grad():
        parts = [F.normalize(encode((part.float() / 255 - mean) / std), dim=1) @ weight + bias for part in views.split(BATCH)]
    return torch.cat(parts).argmax(1)


def open_clip_files(work: Path) -> Answer:
    model, preprocess = open_clip_model(work)
    weight, bias = head(work)

    def answer(files: Sequence[Path]) -> Tensor:
        with torch.no_grad():
            loader = torch.utils.data.DataLoader(Files(files, preprocess), batch_size=BATCH)
            return torch.cat([model.encode_image(images, normalize=True) @ weight + bias for images, _ in loader]).argmax(1)

    return answer


def open_clip_pixels(work: Path) -> Answer:
    model, _ = open_clip_model(work)
    return lambda views: in_batches(model.encode_image, views, work)


def clip_benchmark_files(work: Path, *, amp: bool) -> Answer:
    from clip_benchmark.metrics.zeroshot_classification import run_classification

    model, preprocess = open_clip_model(work)
    weight, _ = head(work)

    def answer(files: Sequence[Path]) -> Tensor:
        loader = torch.utils.data.DataLoader(Files(files, preprocess), batch_size=64)
        return run_classification(model, weight, loader, "cpu", amp=amp)[0].argmax(1)

    return answer


def pipeline_files(work: Path) -> Answer:
    from transformers import pipeline

    names = json.loads((work / "transformers" / "classifier.json").read_text())["class_names"]
    ask = pipeline("zero-shot-image-classification", model=str(work / "transformers"), device=-1)

    def answer(files: Sequence[Path]) -> Tensor:
        found = ask([str(file) for file in files], candidate_labels=names)
        return torch.tensor([names.index(row[0]["label"]) for row in found])

    return answer


def transformers_tower(work: Path) -> Callable[[Tensor], Tensor]:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(work / "transformers").eval()
    return lambda pixels: model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)


def transformers_files(work: Path) -> Answer:
    from PIL import Image
    from transformers import AutoImageProcessor

    encode, processor, (weight, bias) = transformers_tower(work), AutoImageProcessor.from_pretrained(work / "transformers"), head(work)

    def answer(files: Sequence[Path]) -> Tensor:
        parts = []
        with torch.no_grad():
            for start in range(0, len(files), BATCH):
                images = [Image.open(file).convert("RGB") for file in files[start : start + BATCH]]
                pixels = processor(images=images, return_tensors="pt")["pixel_values"]
                parts.append(F.normalize(encode(pixels), dim=1) @ weight + bias)
        return torch.cat(parts).argmax(1)

    return answer


def transformers_pixels(work: Path) -> Answer:
    encode = transformers_tower(work)
    return lambda views: in_batches(encode, views, work)


def onnx_session(work: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(work / "onnx" / "classifier.onnx"), options, providers=["CPUExecutionProvider"])
    return lambda views: torch.from_numpy(session.run(["logits"], {"images": views.numpy()})[0])


def onnx_files(work: Path) -> Answer:
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

    ask = onnx_session(work)
    transform = Compose([Resize(224, InterpolationMode.BICUBIC), CenterCrop(224), PILToTensor()])

    def answer(files: Sequence[Path]) -> Tensor:
        return torch.cat([ask(images) for images, _ in torch.utils.data.DataLoader(Files(files, transform), batch_size=BATCH)]).argmax(1)

    return answer


def onnx_pixels(work: Path) -> Answer:
    ask = onnx_session(work)
    return lambda views: torch.cat([ask(part) for part in views.split(BATCH)]).argmax(1)


def finelens_files(work: Path) -> Answer:
    from finelens.runs.classifier import load_run

    classifier = load_run(work / "run")
    return lambda files: torch.from_numpy(classifier.predict_proba(files)).argmax(1)


def finelens_pixels(work: Path) -> Answer:
    from finelens.runs.classifier import load_run

    classifier = load_run(work / "run")

    def answer(views: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([classifier(part) for part in views.split(BATCH)]).argmax(1)

    return answer


def finelens_predict(work: Path) -> Answer:
    """The command, from a folder to a table on the disk with digests, statuses and notes."""
    from finelens import api
    from finelens.core.console import Console

    names = json.loads((work / "transformers" / "classifier.json").read_text())["class_names"]

    def answer(files: Sequence[Path]) -> Tensor:
        with tempfile.TemporaryDirectory() as folder:
            photos = Path(folder) / "photos"
            photos.mkdir()
            for file in files:
                (photos / file.name).hardlink_to(file)
            rows = api.predict(work / "run", photos, Path(folder) / "new.csv", zero_shot=False, console=Console(enabled=False))
            return torch.tensor([names.index(row.label) for row in rows if row.label])

    return answer


# Packages, the most photographs that the slow ones are asked about, and what is measured.
SIDES: dict[str, tuple[tuple[str, ...], int, dict[str, Callable[[Path], Answer]]]] = {
    "finelens": ((), 1 << 30, {"files": finelens_files, "pixels": finelens_pixels}),
    "finelens predict": ((), 1 << 30, {"files": finelens_predict}),
    "open_clip": (("open_clip",), 1 << 30, {"files": open_clip_files, "pixels": open_clip_pixels}),
    "clip_benchmark, no amp": (("clip_benchmark",), 1 << 30, {"files": lambda work: clip_benchmark_files(work, amp=False)}),
    "clip_benchmark": (("clip_benchmark",), 16, {"files": lambda work: clip_benchmark_files(work, amp=True)}),
    "transformers": (("transformers",), 1 << 30, {"files": transformers_files, "pixels": transformers_pixels}),
    "transformers pipeline": (("transformers",), 16, {"files": pipeline_files}),
    "onnxruntime": (("onnxruntime", "onnx"), 1 << 30, {"files": onnx_files, "pixels": onnx_pixels}),
}


def measure_tower(side: str, what: str, place: str, images: str, threads: str) -> None:
    """In a process of its own."""
    work, count = Path(place), int(images)
    torch.set_num_threads(int(threads))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    answer = SIDES[side][2][what](work)
    given: Any = sorted((work / "photos").iterdir()) if what == "files" else torch.load(work / "views.pt")
    answer(given[:WARM])
    found: dict[str, Any] = {"images": min(count, len(given)), "megabytes_before": peak_megabytes()}
    wall, cpu = time.perf_counter(), time.process_time()
    answers = answer(given[:count])
    found |= {"seconds": round(time.perf_counter() - wall, 3), "cpu_seconds": round(time.process_time() - cpu, 3), "megabytes_peak": peak_megabytes()}
    print(json.dumps(found | {"answers": answers.tolist()}))


# Solvers as released.


def compare_solvers(given: argparse.Namespace) -> None:
    from solver_speed import random_features

    checkouts = {name: path for name, path in (("transclip", given.transclip), ("stata", given.stata)) if path is not None}
    for name in {"transclip", "stata"} - set(checkouts):
        keep(given.out, {"part": "solvers", "method": name, "skipped": "no checkout of the released code given"})
    for size in given.sizes:
        images, classes = map(int, size.split("x"))
        with tempfile.TemporaryDirectory() as place:
            features = Path(place) / "features.pt"
            torch.save(random_features(images, classes, 512), features)
            for method, checkout in checkouts.items():
                rows: dict[str, list[dict[str, Any]]] = {"released": [], "finelens": []}
                for _ in range(given.turns):
                    for side, own in rows.items():
                        own.append(child("solver", method, side, str(checkout.resolve()), str(features), str(Path(place) / f"{side}.pt"), threads=1))
                        keep(given.out, {"part": "solvers", "method": method, "size": size, "side": side, **own[-1]})
                same = float((torch.load(Path(place) / "released.pt") == torch.load(Path(place) / "finelens.pt")).float().mean())
                seconds = {side: min(row["cpu_seconds"] for row in own) for side, own in rows.items()}
                peaks = {side: max(row["megabytes_peak"] for row in own) for side, own in rows.items()}
                row = {
                    "cpu_seconds": seconds,
                    "ratio": round(seconds["released"] / seconds["finelens"], 2),
                    "megabytes_peak": peaks,
                    "same_answer": same,
                }
                keep(given.out, {"part": "solvers", "method": method, "size": size, "side": "both", "turns": given.turns, **row})


def measure_solver(method: str, side: str, checkout: str, features: str, answers: str) -> None:
    """One fit, in a process of its own."""
    x, prototypes = torch.load(features)
    fit = ours(method) if side == "finelens" else released(method, Path(checkout))
    before, wall, cpu = peak_megabytes(), time.perf_counter(), time.process_time()
    with torch.no_grad():
        found = fit(x, prototypes)
    row = {"seconds": round(time.perf_counter() - wall, 2), "cpu_seconds": round(time.process_time() - cpu, 2)}
    torch.save(found.argmax(1), answers)
    print(json.dumps(row | {"megabytes_before": before, "megabytes_peak": peak_megabytes()}))


def ours(method: str) -> Callable[[Tensor, Tensor], Tensor]:
    from finelens.solvers import StatA, TransClip

    solver = {"stata": StatA, "transclip": TransClip}[method]()
    return lambda x, prototypes: solver.fit_predict_proba(x, prototypes=prototypes, logit_scale=100.0)


def released(method: str, checkout: Path) -> Callable[[Tensor, Tensor], Tensor]:
    """The authors' function, on the CPU; it takes labels for the accuracy that it prints, and counts the classes by them."""
    for kind in (Tensor, nn.Module):
        kind.cuda = lambda self, *_, **__: self  # type: ignore[assignment,method-assign]
    sys.path.insert(0, str(checkout))
    if method == "transclip":
        transclip: Any = importlib.import_module("TransCLIP_solver.TransCLIP")
        # It asks numpy for what numpy 2.4 refuses.
        transclip.cls_acc = lambda *_: 0.0

        def fit(x: Tensor, prototypes: Tensor) -> Tensor:
            labels = torch.arange(len(x)) % len(prototypes)
            return transclip.TransCLIP_solver(None, None, None, None, x, labels, prototypes.T, verbose=False)[0]

        return fit
    # Its package imports further methods and what they need.
    spec = importlib.util.spec_from_file_location("released_stata", checkout / "solvers" / "StatA.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda x, prototypes: module.StatA_solver(x, torch.zeros(len(x)), prototypes.T[None])[1]


# Both.


def child(verb: str, *arguments: str, threads: int) -> dict[str, Any]:
    """What a process of its own measured."""
    variables = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive", "FINELENS_CACHE_GB": "0", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, __file__, f"--{verb}", *arguments], env=os.environ | variables, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{verb} {arguments[:2]}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def keep(out: Path, row: dict[str, Any]) -> None:
    """Append a row with the versions and what the processor has."""
    from measuring import provenance

    from finelens.core.private_torch import bfloat16_units

    print(json.dumps(row), flush=True)
    about = provenance()
    about.pop("threads")
    with out.open("a") as file:
        file.write(json.dumps(row | about | {"bfloat16_units": bfloat16_units()}) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--tower"]:
        measure_tower(*sys.argv[2:])
    elif sys.argv[1:2] == ["--solver"]:
        measure_solver(*sys.argv[2:])
    else:
        main()
