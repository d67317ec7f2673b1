#!/usr/bin/env bash
# pyarrow 26.0.1: a Parquet file of photographs that write_table made with its defaults cannot be read in little memory, whatever is asked of the reader.
# A page is compared with data_page_size (1 MiB) after each 1,024 values only, so with cells of 100 kB a page is 100 MB, and a row group has up to a million rows.
# ParquetFile.iter_batches(batch_size=1) then holds the file nearly three times for the first photograph, and twice with buffer_size and pre_buffer=False.
# Remedy: write with write_batch_size=8 (or max_rows_per_page=8), read with buffer_size and pre_buffer=False; either alone leaves the whole file in memory.
# Seen for 76 MiB: "written with {}: read plain 229 MiB, buffered 152 MiB; {'write_batch_size': 8}: read plain 80 MiB, buffered 4 MiB"
# Exits 0 while this is so.
set -eu
T=$(mktemp -d); trap 'rm -rf "$T"' EXIT
python3 -m venv "$T/env"
"$T/env/bin/pip" install -q pyarrow==26.0.1 "numpy>=2,<3"
cd "$T"
cat > peak.py <<'P'
import sys

import pyarrow
import pyarrow.parquet

options = {"buffer_size": 65536, "pre_buffer": False} if sys.argv[1] == "buffered" else {}
for batch in pyarrow.parquet.ParquetFile("photos.parquet", **options).iter_batches(batch_size=1, columns=["image"]):
    assert batch.num_rows == 1
print(pyarrow.default_memory_pool().max_memory())
P
"$T/env/bin/python" - <<'P'
import subprocess
import sys

import numpy as np
import pyarrow
import pyarrow.parquet

random = np.random.default_rng(0)
photos = pyarrow.table({"image": [random.bytes(100_000) for _ in range(800)], "label": list(range(800))})
size, ratios = photos["image"].nbytes, []
for written in ({}, {"write_batch_size": 8}, {"max_rows_per_page": 8}):
    pyarrow.parquet.write_table(photos, "photos.parquet", **written)
    peaks = [int(subprocess.check_output([sys.executable, "peak.py", how])) for how in ("plain", "buffered")]
    ratios.append([peak / size for peak in peaks])
    print(f"{size >> 20} MiB of photographs, written with {written}: read plain {peaks[0] >> 20} MiB, buffered {peaks[1] >> 20} MiB")
default, *small = ratios
sys.exit(not (default[0] > 2 and default[1] > 1.5 and all(plain > 0.9 and buffered < 0.1 for plain, buffered in small)))
P
