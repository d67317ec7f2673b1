"""Processor time of answers by the fitted default method, behind the tower: what each photograph of ``predict`` and ``serve`` costs there.

    OMP_NUM_THREADS=1 python benchmarks/answers.py --bank 2000 8192 --rows 1 64

One JSON line for each bank and number of rows in a call: the least of eight calls on random features (``solver_speed.py``), and the sum of
the answers.
"""

from __future__ import annotations

import argparse
import json
import time

from solver_speed import random_features

from finelens.solvers import Consensus

WIDTH, CLASSES, CALLS = 1664, 16, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", nargs="+", type=int, default=[2000, 8192])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 64])
    given = parser.parse_args()
    for bank in given.bank:
        x, prototypes = random_features(bank, CLASSES, WIDTH)
        solver = Consensus().fit(x, prototypes=prototypes, logit_scale=20.0)
        for count in given.rows:
            spent = []
            for _ in range(CALLS):
                start = time.process_time()
                found = solver.predict_log_proba(x[:count])
                spent.append(time.process_time() - start)
            row = {"bank": bank, "rows": count, "cpu_milliseconds": round(1000 * min(spent), 1), "sum": float(found.double().sum())}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
