#!/usr/bin/env bash
# safetensors writes a numpy array that is not contiguous in memory order, under the shape of the array, and says nothing.
#
# A transpose, a slice or an array in Fortran order (what scikit-learn's PCA returns) comes back with its numbers in other places. The writer takes
# the buffer of the array as it lies in memory.
# Remedy: np.ascontiguousarray(array) before save_file.
# Seen with safetensors 0.8.0 and numpy 2.x. Exits 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "safetensors==0.8.0" "numpy>=2,<3"
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

array = np.arange(6.0, dtype=np.float32).reshape(2, 3)
given = {"transpose": array.T, "fortran": np.asfortranarray(array), "slice": np.arange(12.0, dtype=np.float32).reshape(2, 6)[:, ::2]}
print("safetensors", safetensors.__version__, "numpy", np.__version__)
wrong = {}
for name, value in given.items():
    try:
        save_file({name: value}, "a.safetensors")
    except Exception as error:
        print(f"{name}: refused ({type(error).__name__}: {error})")
        continue
    back = load_file("a.safetensors")[name]
    wrong[name] = back.shape == value.shape and not np.array_equal(back, value)
    print(f"{name}: wrote {value.tolist()}, read {back.tolist()}")
save_file({"a": np.ascontiguousarray(array.T)}, "b.safetensors")
assert np.array_equal(load_file("b.safetensors")["a"], array.T)
raise SystemExit(0 if wrong.get("transpose") and wrong.get("fortran") else 1)
PY
