"""Our search for near rows of many against faiss: recall against all pairs, and processor seconds of one thread. One JSON line for each side.

    pip install faiss-cpu
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/near_rows.py --rows 200000 --out benchmarks/results/near_rows.jsonl

Rows are those of ``solver_scale.py``. Both sides divide them into N / 512 cells by k-means, look into the 16 nearest cells of a row and hold rows in
float16. Recall is of 2,000 rows, by exact cosines with all others.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import faiss
import torch
from measuring import provenance
from solver_scale import drawn

from finelens.solvers.known import Known
from finelens.solvers.rows import FitRows, TensorRows
from finelens.solvers.settling_passes import CELL, PROBED, near_rows

NEAR, ASKED = 3, 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    x = torch.cat([part for _, part, _ in drawn(given.classes, range(given.rows))])
    asked = torch.arange(0, len(x), len(x) // ASKED)
    cosines = x[asked] @ x.T
    cosines[torch.arange(len(asked)), asked] = -torch.inf
    truth = cosines.topk(NEAR, dim=1).indices
    for name in given.sides:
        start = time.process_time()
        found = SIDES[name](x)[asked]
        spent = time.process_time() - start
        recall = float((found[:, :, None] == truth[:, None, :]).any(1).double().mean())
        row = {"side": name, "rows": len(x), "columns": x.shape[1], "classes": given.classes, "faiss": faiss.__version__}
        line = json.dumps({**row, "recall": round(recall, 4), "cpu_seconds": round(spent, 1), **provenance()})
        print(line, flush=True)
        with given.out.open("a") as file:
            file.write(line + "\n")


def ours(x: torch.Tensor) -> torch.Tensor:
    """Positions (N, k)."""
    none = torch.zeros(0, dtype=torch.int64)
    return near_rows(FitRows(TensorRows(x), None, Known(none, none)), NEAR)[1]


def by_faiss(x: torch.Tensor) -> torch.Tensor:
    """Positions (N, k), each row's own left out."""
    cells = -(-len(x) // CELL)
    middles = faiss.IndexFlatIP(x.shape[1])
    index = faiss.IndexIVFScalarQuantizer(middles, x.shape[1], cells, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    rows = x.numpy()
    index.train(rows[:: max(1, len(x) // (40 * cells))])
    index.add(rows)
    index.nprobe = PROBED
    found = torch.from_numpy(index.search(rows, NEAR + 1)[1])
    own = found == torch.arange(len(x))[:, None]
    # Where the row itself is not among them, the last goes.
    own[~own.any(1), -1] = True
    return found[~own].view(len(x), NEAR)


SIDES = {"ours": ours, "faiss": by_faiss}

if __name__ == "__main__":
    main()
