"""Line coverage of what stands between a run and its loss: images, run state, checkpoints. Fails below 95 %.

python scripts/measure_coverage.py
"""

from __future__ import annotations

import subprocess
import sys

MODULES = (
    *("images", "storage", "runs.folder", "runs.execute", "runs.alarms"),
    *("training.checkpoint", "training.failure", "training.loop", "engine.microbatch"),
)
TESTS = (
    *("tests/images", "tests/runs", "tests/storage", "tests/faults", "tests/feature_store", "tests/classes/test_hints.py"),
    *("tests/test_api.py", "tests/cli", "tests/training/test_loop.py", "tests/engine/test_engine.py"),
)
BAR = 95

if __name__ == "__main__":
    measured = [f"--cov=finelens.{module}" for module in MODULES]
    report = ["--cov-report=term-missing:skip-covered", f"--cov-fail-under={BAR}"]
    # Processes that tests start are not measured.
    raise SystemExit(subprocess.call([sys.executable, "-m", "pytest", "-q", *measured, *report, *TESTS, *sys.argv[1:]]))
