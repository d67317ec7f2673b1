"""Print what becomes of every TIFF that tifffile writes and reads back: a table of sample types and compressions.

    python scripts/tiff_matrix.py

A cell counts files: right without a word / right with a note / unsupported, with what it is as the reason. A file that is wrong in silence, or sound
and called corrupt, ends the script with exit code 1. Compressions beyond zlib need imagecodecs.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.images.tiff_matrix import COMPRESSIONS, DTYPES, outcomes

NAMES = {"u": "unsigned", "i": "signed", "f": "float", "c": "complex"}


def main() -> int:
    warnings.simplefilter("ignore")
    counts: Counter[tuple[str, str, str]] = Counter()
    reasons: Counter[str] = Counter()
    wrong = []
    for compression in COMPRESSIONS:
        for case, verdict, said in outcomes(compression):
            counts[case[0], compression, verdict] += 1
            if verdict == "unsupported":
                reasons[" ".join("#" if word.isdigit() else word for word in said.removeprefix("unsupported: ").split(";")[0].split())] += 1
            elif verdict == "wrong":
                wrong.append((compression, case, said))
    print("| samples | " + " | ".join(COMPRESSIONS) + " |")
    print("|---" * (1 + len(COMPRESSIONS)) + "|")
    for dtype in DTYPES:
        cells = []
        for compression in COMPRESSIONS:
            numbers = [counts[dtype, compression, verdict] for verdict in ("right", "noted", "unsupported")]
            cells.append(" / ".join(map(str, numbers)) if any(numbers) else "not written")
        print(f"| {8 * int(dtype[1])}-bit {NAMES[dtype[0]]} | " + " | ".join(cells) + " |")
    total = Counter(verdict for (_, _, verdict), count in counts.items() for _ in range(count))
    parts = f"{total['right']} right, {total['noted']} noted and right, {total['unsupported']} unsupported, {len(wrong)} wrong"
    print(f"\n{sum(total.values())} files: {parts}")
    for reason, count in reasons.most_common():
        print(f"- {count} x {reason}")
    for entry in wrong:
        print("wrong:", *entry)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
