"""What is not imported where it is not needed: torchvision alone brings torch's compiler along, which takes longer than a run on features."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import finelens
from finelens import api
from tests.solvers.data import cloud
from tests.toy import CLASSES, QUIET, options_for, write_classes, write_photos

# Slow to import, and none of them is needed before a tower is built, a text encoded or a page of the hub read.
LIBRARIES = ("torchvision", "timm", "transformers", "open_clip", "tokenizers", "huggingface_hub")
HEAVY = (*LIBRARIES, "torch._dynamo", "torch._inductor", "sympy", "triton")
# What scikit-learn brings along takes as long as torch does; a solver needs it only where a parameter is refused or scikit-learn asks.
STATISTICS = ("sklearn", "joblib", "pandas", "pyarrow", "scipy")
PACKAGE = Path(finelens.__file__).parent
MODULES = sorted(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__") for path in PACKAGE.rglob("*.py"))
# Loaded with the backbone that they are about.
_TOWERS = ("align_tower", "hub", "image_encoders", "open_clip_loader", "open_clip_source", "open_clip_text", "resnet", "timm_tower")
_FOLDERS = ("finelens.exporting.open_clip_folder", "finelens.exporting.transformers_folder")
OF_A_TOWER = [*(f"finelens.backbones.{name}" for name in (*_TOWERS, "transformers_loader", "transformers_source")), *_FOLDERS]


def imported(code: str, *names: str) -> list[str]:
    """Those of the modules that a new interpreter has imported after ``code``."""
    told = f"import sys\n{code}\nprint('\\n' + ' '.join(name for name in {names!r} if name in sys.modules))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, env=environment, check=True)
    return done.stdout.splitlines()[-1].split()


def run_command(*words: str) -> str:
    """Code that runs the command line."""
    call = f"sys.argv = {['finelens', *words]!r}\nfrom finelens.cli import main"
    return f"{call}\ntry:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code"


def test_no_module_imports_what_it_may_not_need():
    light = [name for name in MODULES if name not in OF_A_TOWER and name != "finelens.__main__"]
    assert imported("\n".join(f"import {name}" for name in light), *LIBRARIES) == []


@pytest.mark.parametrize("method", ["joint-gmm", "zero-shot"])
def test_a_solver_on_cached_features(tmp_path, method):
    """The command of a second run: features and prototypes are there, only the method is another."""
    features, prototypes, _ = cloud([20, 15, 25, 0], 12)
    np.save(tmp_path / "X.npy", features)
    np.save(tmp_path / "W.npy", prototypes)
    write_classes(tmp_path / "classes.txt", CLASSES)
    command = ["adapt", "X.npy", "--prototypes", "W.npy", "--classes", "classes.txt", "--method", method, "--out", "run"]
    command = [str(tmp_path / word) if "." in word or word == "run" else word for word in command]
    assert imported(run_command(*command), "torch", *HEAVY, *STATISTICS) == ["torch"]
    assert (tmp_path / "run" / "predictions.csv").exists()


def test_a_solver_on_photographs_that_were_encoded_before(tmp_path):
    """The tokenizer counts the tokens of every text, known or not, and is light."""
    photos, classes = write_photos(tmp_path / "photos", per_class=2), write_classes(tmp_path / "classes.txt")
    command = ["adapt", str(photos), "--classes", str(classes), "--method"]
    imported(run_command(*command, "zero-shot", "--out", str(tmp_path / "first")))
    assert imported(run_command(*command, "joint-gmm", "--out", str(tmp_path / "run")), "torch", *HEAVY, *STATISTICS) == ["torch", "tokenizers"]
    assert (tmp_path / "run" / "report.html").exists()


def test_a_run_with_a_vit_answers_without_the_compiler(tmp_path, tiny_vit):
    photos, classes = write_photos(tmp_path / "photos", per_class=2), write_classes(tmp_path / "classes.txt")
    options = options_for("zero-shot")
    api.zero_shot(photos, classes, tmp_path / "run", backbone=f"local:{tiny_vit}", options=options, console=QUIET)
    asked = run_command("predict", str(tmp_path / "run"), str(photos), "--csv", str(tmp_path / "new.csv"))
    # Tensors without storage bring sympy along, and need no compiler.
    assert imported(asked, "torch", *HEAVY, *STATISTICS) in (["torch"], ["torch", "sympy"])
    assert (tmp_path / "new.csv").exists()


def test_help_needs_no_library_of_numbers():
    assert imported(run_command("--help"), "importlib.metadata", "torch", "numpy", "scipy", "sklearn", "PIL", *HEAVY) == []
