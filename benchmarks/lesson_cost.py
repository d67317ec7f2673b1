"""Processor seconds of a lesson and of the next questions, on random features.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/lesson_cost.py 2000x100x2944x200 50000x100x512x200 50000x100x2944x200

Each case is photographs x classes x columns x answers. A line has the seconds that :func:`~finelens.solvers.taught.teach` and the answers for all
photographs take, and those of :func:`~finelens.solvers.asking.ask` for as many further questions as there are answers.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F

from finelens.solvers.asking import ask
from finelens.solvers.known import Known
from finelens.solvers.taught import teach


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+")
    print("| photographs | classes | columns | answers | lesson | questions |\n|---|---|---|---|---|---|")
    for case in parser.parse_args().cases:
        n, classes, columns, answers = map(int, case.split("x"))
        draw = torch.Generator().manual_seed(0)
        looks = F.normalize(torch.randn(n, columns, generator=draw), dim=1)
        log_p = torch.randn(n, classes, generator=draw).mul(3).log_softmax(1)
        rows = torch.randperm(n, generator=draw)[:answers]
        known = Known(rows, torch.randint(classes, (answers,), generator=draw))
        start = time.process_time()
        p = teach(looks, log_p, known).logits(looks, log_p).softmax(1)
        taught = time.process_time()
        ask(looks, 1 - p.amax(1), rows.sort().values, answers, classes=classes)
        print(f"| {n} | {classes} | {columns} | {answers} | {taught - start:.1f} | {time.process_time() - taught:.1f} |", flush=True)


if __name__ == "__main__":
    main()
