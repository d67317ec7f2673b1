"""Digests of what finelens makes of small inputs of its own, to show that a change of the code changed no result.

    OMP_NUM_THREADS=1 python scripts/fingerprint.py --out before.json        # before the change
    OMP_NUM_THREADS=1 python scripts/fingerprint.py --against before.json    # after it: a line for each difference, exit code 1 if there is any

Which finelens is asked is what ``import finelens`` finds; the path is printed. ``PYTHONPATH=DIR/src`` takes that of another checkout.

What equal digests show: on one processor and one thread, training, solving, predicting, resuming and the guard end in the same bits; run folders and
feature files hold the same tensors, rows, signals, events and options under the same names; reports, help, refusals and the parameters of the public
functions read the same. A resumed run is also compared with one that nothing interrupted.

What they do not show: other devices, several processes, methods and options that no case here uses, speed. Digests depend on the processor and on the
versions of torch, numpy and Pillow, so those are compared as well; never compare the files of two machines.

Only public names and the command line are used here, so the script outlives any move of modules. Left out of the digests are times, the place of the
folder, and the versions, which are told once.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import inspect
import io
import json
import os
import platform
import re
import runpy
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import PIL
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import finelens

CLASSES = ("red stripe", "green check", "blue disc", "yellow ramp")
DESCRIPTIONS = {name: [f"a picture with a {name}", f"{name} on a dark ground", f"a noisy {name.split()[0]} pattern"] for name in CLASSES}
COLOURS = np.array([(220, 40, 40), (40, 190, 60), (40, 60, 220), (230, 210, 40)])
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
TOWERS: dict[str, dict[str, Any]] = {
    "vit": {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2, "head_width": 16},
    "resnet": {"image_size": 64, "layers": [1, 1, 2, 1], "width": 8, "patch_size": None},
}
PREPROCESS = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
TRAINING = {"epochs": 2, "batch_size": 8, "lr": 1e-3, "precision": "float32", "guard": "off"}
VERBS = (
    *("adapt", "zero-shot", "resume", "predict", "evaluate", "features", "report", "explain", "review", "methods", "demo"),
    *("bench", "bench compare", "bench leaderboard", "bench summary", "bench table"),
)
ROOT = "@ROOT@"
# Keys of events and configurations that say when, how long and by which version, and digests of whole files, which those of the tensors stand for.
PASSING = ("time", "seconds", "finelens_version", "versions", "sha256")
# What a cache may spare a resumed run.
SPARED = ("no_grad_forwards",)

Digests = dict[str, str]


class Work:
    """A folder with the inputs, the runs made of them, and their digests.

    Args:
        root: An empty folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.digests: Digests = {}
        self.photos = write_photos(root / "photos", 6)
        self.new = write_photos(root / "new", 1, first=50)
        self.classes = root / "classes.txt"
        self.classes.write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
        self.descriptions = root / "descriptions.json"
        self.descriptions.write_text(json.dumps(DESCRIPTIONS), encoding="utf-8")
        for kind, vision in TOWERS.items():
            write_checkpoint(root / kind, vision)

    def backbone(self, kind: str = "vit") -> str:
        """Specification of one of the two tiny models."""
        return f"local:{self.root / kind}"

    def adapt(self, name: str, method: str, *, photos: Path | None = None, **given: Any) -> Path:
        """Run ``finelens.adapt`` into the folder ``name`` with a cache of its own, so that no case depends on another. Returns the folder."""
        out = self.root / name
        use_cache(self.root / "caches" / name)
        finelens.adapt(photos or self.photos, self.classes, out, method=method, **given)
        return out

    def train(self, name: str, method: str, *, tower: str = "vit", **given: Any) -> Path:
        """:meth:`adapt` by a method that trains, for a few steps."""
        return self.adapt(name, method, **{"backbone": self.backbone(tower), "options": {"training": TRAINING}, **given})

    def solve(self, name: str, method: str, **given: Any) -> Path:
        """:meth:`adapt` by a method that does not train."""
        return self.adapt(name, method, options={"training": {"precision": "float32"}}, **given)

    def plain(self, text: str) -> str:
        """A text without the place of the folder; Markdown may have escaped a part of it."""
        return text.replace("\\", "").replace(str(self.root), ROOT)

    def keep(self, name: str, content: bytes | str) -> None:
        """Take in the digest of a file's content."""
        data = content if isinstance(content, bytes) else self.plain(content).encode()
        self.digests[name] = hashlib.sha256(data).hexdigest()

    def keep_run(self, run: Path) -> None:
        """Take in everything that a finished run wrote."""
        name = run.relative_to(self.root).as_posix()
        for path in sorted((run / "model").glob("*.safetensors")):
            self.digests[f"{name}/model/{path.name}"] = tensors_digest(path)
        self.keep(f"{name}/predictions.csv", (run / "predictions.csv").read_bytes())
        for document in ("model/model.json", "config.json", "signals.json"):
            self.keep(f"{name}/{document}", lasting(json.loads((run / document).read_text(encoding="utf-8"))))
        self.keep(f"{name}/events.jsonl", "\n".join(map(lasting, read_events(run))))
        for page in ("report.html", "MODEL_CARD.md"):
            self.keep(f"{name}/{page}", timeless((run / page).read_text(encoding="utf-8")))
        self.keep(f"{name}/files", "\n".join(sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())))


def picture(kind: int, seed: int, height: int = 70, width: int = 90) -> np.ndarray:
    """A noisy picture of class ``kind``, (H, W, 3) uint8: a colour and a pattern of its own."""
    rng = np.random.default_rng(1000 * kind + seed)
    y, x = np.mgrid[0:height, 0:width]
    period, phase = rng.integers(10, 16), rng.integers(0, 10)
    pattern = (
        (x + phase) // (period // 2) % 2,
        ((x + phase) // period + y // period) % 2,
        (np.hypot(x - width / 2 - phase, y - height / 2) < 2 * period).astype(int),
        (y + phase) / (height + 10),
    )[kind]
    pixels = 30 + pattern[..., None] * (COLOURS[kind] - 30) + rng.normal(0, 6, (height, width, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def write_photos(folder: Path, per_class: int, first: int = 0) -> Path:
    """Pictures in one sub-folder per class. Returns ``folder``."""
    for kind, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for seed in range(first, first + per_class):
            Image.fromarray(picture(kind, seed)).save(folder / name / f"{seed}.png")
    return folder


def write_noise(folder: Path, count: int = 52) -> Path:
    """Photographs that say nothing about any class, enough for the guard to judge by. Returns ``folder``."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{i:02}.png")
    return folder


def write_checkpoint(folder: Path, vision: Mapping[str, Any]) -> None:
    """A small random model in the layout that open_clip saves."""
    config = {"embed_dim": 48, "quick_gelu": True, "vision_cfg": dict(vision), "text_cfg": dict(TEXT)}
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = open_clip.CLIP(**json.loads(json.dumps(config))).state_dict()
        # Vectors (biases, norms) move off their neutral values, so that a forgotten one shows.
        state = {name: _perturbed(name, tensor).contiguous() for name, tensor in state.items()}
    save_file(state, folder / "open_clip_model.safetensors")
    document = {"model_cfg": config, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(document), encoding="utf-8")


def _perturbed(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point() or tensor.ndim != 1:
        return tensor.clone()
    noise = 0.2 * torch.randn_like(tensor)
    return (tensor + noise.abs()) if name.endswith("running_var") else tensor + noise


def use_cache(folder: Path) -> None:
    """Let finelens keep what it has encoded in ``folder``."""
    os.environ["FINELENS_CACHE"] = str(folder)


def tensors_digest(path: Path) -> str:
    """Hash of names, types, shapes and bytes of the tensors of a file, whatever their order in it."""
    digest = hashlib.sha256()
    with safe_open(path, framework="pt", device="cpu") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def array_digest(array: np.ndarray) -> bytes:
    """Type, shape and bytes of an array."""
    return f"{array.dtype} {array.shape};".encode() + np.ascontiguousarray(array).tobytes()


def read_events(run: Path) -> list[dict[str, Any]]:
    """The events of a run."""
    return [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def lasting(document: Any, leave_out: Sequence[str] = PASSING) -> str:
    """A document as text, without the keys that differ between two equal runs, wherever they stand; the order of the others counts."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(item) for key, item in value.items() if key not in leave_out}
        return [strip(item) for item in value] if isinstance(value, list) else value

    return json.dumps(strip(document), ensure_ascii=False)


def timeless(page: str) -> str:
    """A page without times, versions and the table of how the time was spent, whose order is that of the times."""
    page = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "TIME", page)
    page = re.sub(r'"Time by stage">.*?</table>', "SPENT", page, flags=re.DOTALL)
    page = re.sub(r"\b\d+ (?:s|min|h)\b", "SPENT", page)
    for version in {finelens.__version__, *environment().values()}:
        page = page.replace(version, "VERSION")
    return page


def stop_after(steps: int) -> Callable[[], bool]:
    """A ``should_stop`` that says yes after so many training steps."""
    left = iter(range(steps - 1))
    return lambda: next(left, None) is None


def command(*arguments: object) -> tuple[int, str, str]:
    """``python -m finelens`` in this process: exit code, standard output and standard error."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["finelens", *map(str, arguments)]
    code: Any = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_module("finelens", run_name="__main__")
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = before
    return int(code), out.getvalue(), err.getvalue()


def trained(work: Work) -> None:
    """Four methods that train, two seeds each, the second one with descriptions; one of them on the other tower."""
    for method in ("microclip", "fair", "dpa", "lafter"):
        work.keep_run(work.train(f"{method}-0", method, seed=0))
        work.keep_run(work.train(f"{method}-1", method, seed=1, descriptions=work.descriptions))
    work.keep_run(work.train("microclip-resnet", "microclip", tower="resnet"))


def solved(work: Work) -> None:
    """Solvers: on photographs, and on a feature file with that of a second encoder beside it; and the unadapted model with descriptions."""
    files = {}
    for kind in TOWERS:
        use_cache(work.root / "caches" / f"features-{kind}")
        files[kind] = work.root / f"{kind}.safetensors"
        finelens.features(work.photos, files[kind], backbone=work.backbone(kind), classes=work.classes)
        work.digests[f"features/{kind}"] = tensors_digest(files[kind])
    for seed in (0, 1):
        descriptions = work.descriptions if seed else None
        work.keep_run(work.solve(f"stata-{seed}", "stata", seed=seed, descriptions=descriptions, backbone=work.backbone()))
        work.keep_run(
            work.solve(f"joint-gmm-{seed}", "joint-gmm", seed=seed, descriptions=descriptions, photos=files["vit"], extra=[files["resnet"]])
        )
    use_cache(work.root / "caches" / "zero-shot")
    finelens.zero_shot(work.photos, work.classes, work.root / "zero-shot", method="cupl", descriptions=work.descriptions, backbone=work.backbone())
    work.keep_run(work.root / "zero-shot")


def resumed(work: Work) -> None:
    """Runs that are stopped in the first and in the second epoch and then go on.

    Raises:
        SystemExit: One ends otherwise than the run that nothing interrupted.
    """
    for method, steps in (("microclip", 4), ("dpa", 2)):
        name = f"{method}-0-resumed"
        try:
            work.train(name, method, seed=0, should_stop=stop_after(steps))
        except Exception as error:
            # Its class is not among the public names.
            if type(error).__name__ != "Interrupted":
                raise
        run = work.root / name
        if (run / "predictions.csv").exists():
            sys.exit(f"{name}: the run was to be interrupted after {steps} steps and was not")
        work.digests[f"{name}/checkpoint at the stop"] = tensors_digest(run / "checkpoint" / "last.safetensors")
        finelens.resume(run)
        work.keep_run(run)
        check_equal(work, run, work.root / f"{method}-0")


def check_equal(work: Work, run: Path, whole: Path) -> None:
    """Refuse a resumed run that is not equal to the uninterrupted one.

    Raises:
        SystemExit: They differ.
    """
    same = ("model/model.safetensors", "model/zero_shot.safetensors", "predictions.csv", "signals.json", "model/model.json")
    bad = [file for file in same if work.digests[f"{run.name}/{file}"] != work.digests[f"{whole.name}/{file}"]]
    texts = [
        [work.plain(lasting(event, (*PASSING, *SPARED))) for event in read_events(folder) if event["event"] != "resume"] for folder in (run, whole)
    ]
    bad += [] if texts[0] == texts[1] else ["events.jsonl"]
    if bad:
        sys.exit(f"{run.name}: differs from the run that nothing interrupted: {', '.join(bad)}")


def kept(work: Work) -> None:
    """A run that the guard keeps from training."""
    options = {"training": {**TRAINING, "guard": "on"}}
    work.keep_run(work.train("guarded", "dpa", photos=write_noise(work.root / "noise"), options=options))


def asked(work: Work) -> None:
    """What a finished run answers, from Python and from the command line; and the same without a run folder."""
    run = work.root / "microclip-0"
    use_cache(work.root / "caches" / "asked")
    work.keep("load/predict_proba", array_digest(finelens.load(run).predict_proba(work.new)))
    finelens.predict(run, work.new, work.root / "new.csv")
    work.keep("predict", (work.root / "new.csv").read_bytes())
    code, out, err = command("predict", run, work.new, "--csv", work.root / "again.csv")
    work.keep("command predict", (work.root / "again.csv").read_bytes())
    work.keep("command predict, said", f"{code} {out} {err}")
    code, out, _ = command("evaluate", run, work.new, "--labels", "folders", "--json", work.root / "scores.json")
    work.keep("command evaluate", f"{code} {out} {(work.root / 'scores.json').read_text(encoding='utf-8')}")
    code, out, _ = command("explain", run, work.photos / CLASSES[2] / "3.png", "--out", work.root / "explain.html")
    work.keep("command explain", f"{code} {out} {timeless((work.root / 'explain.html').read_text(encoding='utf-8'))}")
    work.keep("report with labels", timeless(finelens.report(run, labels="folders").read_text(encoding="utf-8")))
    work.keep("review sheet", timeless(finelens.review(run).read_text(encoding="utf-8")))
    images = [picture(kind, seed) for kind in range(len(CLASSES)) for seed in range(6)]
    made = finelens.LabelFreeClassifier(list(CLASSES), method="dpa", backbone=work.backbone(), options={"training": TRAINING}).fit(images)
    work.keep("LabelFreeClassifier on images", array_digest(made.predict_proba(images[::3])))
    rows, prototypes = (np.random.default_rng(seed).normal(size=(count, 16)).astype(np.float32) for seed, count in ((0, 40), (1, len(CLASSES))))
    made = finelens.LabelFreeClassifier(list(CLASSES), method="stata").fit(rows, prototypes=prototypes)
    work.keep("LabelFreeClassifier on features", array_digest(made.predict_proba(rows)))


def worded(work: Work) -> None:
    """Public names with their parameters, help, the list of methods, and refusals. Refusals are told in full, not as digests."""
    for name in finelens.__all__:
        value = getattr(finelens, name)
        # ``report`` may be a function or a package that can be called like it, whose parameters say nothing.
        work.digests[f"public {name}"] = parameters(value) if callable(value) and name != "report" else "there"
        methods = vars(value) if inspect.isclass(value) else {}
        work.digests |= {f"public {name}.{key}": parameters(own) for key, own in methods.items() if inspect.isfunction(own) and key[0] != "_"}
    for verb in ("", *VERBS):
        code, out, err = command(*verb.split(), "--help")
        work.keep(f"help {verb}", f"{code} {out} {err}")
    work.keep("list of methods", command("methods")[1])
    given = ("--classes", work.classes, "--backbone", work.backbone(), "--out", work.root / "refused")
    for arguments in (
        ("adapt", work.photos, "--classes", work.root / "none.txt", "--out", work.root / "refused"),
        ("adapt", work.root / "none", *given),
        ("adapt", work.photos, *given, "--method", "mikroclip"),
        ("adapt", work.photos, *given, "--method", "coop"),
        ("adapt", work.photos, *given, "--device", "tpu"),
        ("adapt", work.photos, *given, "--set", "training.epoch=3"),
        ("adapt", work.photos, *given, "--set", "training.epochs=0"),
        ("adapt", work.photos, *given, "--set", "method.gama=0.5"),
        ("adapt", work.photos, *given, "--method", "fair", "--set", "method.keep=99"),
        ("adapt", work.photos, *given, "--method", "dpa", "--set", "method.marginal=none at all"),
        ("adapt", work.photos, *given, "--method", "stata", "--set", "training.epochs=3"),
        ("adapt", work.photos, *given, "--extra", "second.npy"),
        ("adapt", work.photos, *given[:2], "--backbone", f"local:{work.root / 'nowhere'}", *given[4:]),
        ("adapt", work.photos, *given[:4], "--out", work.root / "dpa-0"),
        ("adapt", work.photos, *given[:4], "--out", work.photos / "run"),
        ("adapt", work.root / "vit.safetensors", *given[:2], *given[4:]),
        ("zero-shot", work.photos, *given, "--method", "dpa"),
        ("resume", work.photos),
        ("predict", work.root / "none", work.new, "--csv", work.root / "refused.csv"),
        ("predict", work.root / "joint-gmm-0", work.root / "vit.safetensors", "--csv", work.root / "refused.csv"),
        ("evaluate", work.root / "dpa-0", work.new, "--labels", work.classes),
        ("evaluate", work.root / "dpa-0", work.root / "noise", "--labels", "folders"),
        ("report", work.root / "dpa-0", "--test", work.new),
        ("features", work.photos, "--out", work.root / "features.npy"),
        ("adopt",),
    ):
        code, out, err = command(*arguments)
        work.digests[work.plain("refused: " + " ".join(map(str, arguments)))] = work.plain(f"{code} {out}{err}".strip())


def parameters(function: Callable[..., Any]) -> str:
    """Names, kinds and defaults of the parameters of a function; annotations may be spelled in many ways."""
    signature = inspect.signature(function)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def environment() -> dict[str, str]:
    """What the bits depend on besides finelens."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__, "pillow": PIL.__version__}
    return {**found, "open_clip": open_clip.__version__, "processor": torch.backends.cpu.get_cpu_capability()}


def fingerprint(root: Path) -> dict[str, Digests]:
    """All digests.

    Args:
        root: An empty folder for the inputs and the runs.
    """
    torch.set_num_threads(1)
    # Help is wrapped to the width of the terminal.
    os.environ["COLUMNS"] = "100"
    work = Work(root)
    said = io.StringIO()
    for part in (trained, solved, resumed, kept, asked, worded):
        try:
            with contextlib.redirect_stderr(said):
                part(work)
        except Exception:
            print(said.getvalue(), file=sys.stderr)
            raise
    return {"environment": environment(), "digests": work.digests}


def differences(before: Mapping[str, Mapping[str, str]], after: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A line for each entry that is not the same."""
    lines = []
    for section in ("environment", "digests"):
        old, new = before.get(section, {}), after[section]
        for name in [*old, *(name for name in new if name not in old)]:
            if name not in new:
                lines.append(f"{name}: gone")
            elif name not in old:
                lines.append(f"{name}: new")
            elif old[name] != new[name]:
                lines.append(f"{name}: {old[name]} -> {new[name]}")
    return lines


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Digests of what finelens makes of small inputs of its own.")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the digests to this file; by default they are printed")
    parser.add_argument("--against", type=Path, metavar="FILE.json", help="compare with an earlier output; exit code 1 if anything differs")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a new or empty folder for the inputs and the runs, which stay there")
    args = parser.parse_args()
    # Read before the work, so that a wrong path is told at once.
    before = None if args.against is None else json.loads(args.against.read_text(encoding="utf-8"))
    print(f"finelens from {Path(finelens.__file__).parent}", file=sys.stderr)
    if args.keep is None:
        with tempfile.TemporaryDirectory(prefix="finelens-fingerprint-") as folder:
            after = fingerprint(Path(folder).resolve())
    else:
        args.keep.mkdir(parents=True, exist_ok=True)
        if any(args.keep.iterdir()):
            parser.error(f"--keep {args.keep}: the folder is not empty")
        after = fingerprint(args.keep.resolve())
    text = json.dumps(after, indent=1, ensure_ascii=False) + "\n"
    if args.out is not None:
        args.out.write_text(text, encoding="utf-8")
    elif before is None:
        print(text, end="")
    if before is None:
        return
    found = differences(before, after)
    print("\n".join(found) if found else f"all {len(after['digests'])} entries are the same")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
