#!/usr/bin/env bash
# torch: the first arithmetic on a meta tensor imports the whole compiler (torch._dynamo, sympy and a thousand modules more), which takes seconds.
#
# Models are built on the meta device to spare the time of drawing weights that a file replaces anyway. torch.nn.Linear, which draws with uniform_, costs
# nothing there; torch.nn.Embedding, which draws with normal_, and any product with a number, which nobody asked to be compiled, import the
# compiler in the middle of loading. A process that only wants to answer one image pays several times the time of reading the weights.
# Remedy: assign parameters with torch.empty in the model's own constructor, or torch.nn.utils.skip_init, where weights come from a file.
# Seen with torch 2.14.1: 'torch._dynamo' is absent after import torch, empty, zeros, uniform_ and Linear on meta, and present after normal_, or
# after a product with 2. Exits 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.14.1" "numpy>=2,<3"
cd "$folder"
cat > one.py <<'PY'
import sys
import time

import torch

CASES = {
    "empty": lambda: torch.empty(3, device="meta"),
    "uniform_": lambda: torch.empty(3, device="meta").uniform_(),
    "Linear": lambda: torch.nn.Linear(3, 4, device="meta"),
    "normal_": lambda: torch.empty(3, device="meta").normal_(),
    "Embedding": lambda: torch.nn.Embedding(3, 4, device="meta"),
    "times two": lambda: torch.empty(3, device="meta") * 2,
}
before, start = len(sys.modules), time.perf_counter()
assert "torch._dynamo" not in sys.modules
CASES[sys.argv[1]]()
spent, found = time.perf_counter() - start, "torch._dynamo" in sys.modules
print(f"{sys.argv[1]}: compiler imported: {found}; {len(sys.modules) - before} further modules, {spent:.2f} s")
raise SystemExit(0 if found == (sys.argv[1] in ("normal_", "Embedding", "times two")) else 1)
PY
for case in empty uniform_ Linear normal_ Embedding "times two"; do
    "$folder/venv/bin/python" one.py "$case"
done
