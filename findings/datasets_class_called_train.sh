#!/usr/bin/env bash
# datasets 5.2.0: load_dataset("imagefolder", data_dir=...) takes a class folder "train", which COCO and CIFAR-100 have, for the split of that name. The
# photographs of all other classes are left out and there is no label any more; nothing is said. One word between spaces, digits or "-._" is enough
# ("bullet-train"), and where no folder has one, a file name is: of a folder with "car/test-b.jpg" that one photograph is left.
# A metadata.csv above such folders is not read either. The words are train, training, validation, valid, val, dev, test, testing, eval and evaluation.
# Remedy: data_files="**" beside data_dir.
# Exits 0 while this is so.
set -eu
T=$(mktemp -d); trap 'rm -rf "$T"' EXIT
python3 -m venv "$T/env"
"$T/env/bin/pip" install -q datasets==5.2.0 pillow==13.0.0 "numpy>=2,<3"
cd "$T"
HF_HOME="$T/home" HF_HUB_OFFLINE=1 "$T/env/bin/python" - <<'P'
import sys
from pathlib import Path

import datasets
from PIL import Image

datasets.disable_progress_bars()
FOLDERS = {
    "control": ["bus/a.jpg", "car/b.jpg", "tram/c.jpg"],
    "class train": ["bus/a.jpg", "car/b.jpg", "train/c.jpg"],
    "class bullet-train": ["bus/a.jpg", "car/b.jpg", "bullet-train/c.jpg"],
    "file test-b.jpg": ["bus/a.jpg", "car/test-b.jpg", "tram/c.jpg"],
    "metadata.csv above train": ["bus/a.jpg", "car/b.jpg", "train/c.jpg", "metadata.csv"],
}
found = {}
for title, names in FOLDERS.items():
    for name in names:
        path = Path(title, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".csv":
            path.write_text("file_name,label\nbus/a.jpg,bus\ncar/b.jpg,car\ntrain/c.jpg,train\n")
        else:
            Image.new("RGB", (8, 8)).save(path)
    for more in ({}, {"data_files": "**"}):
        loaded = datasets.load_dataset("imagefolder", data_dir=title, **more)
        found[title, bool(more)] = {split: (len(part), "label" in part.column_names) for split, part in loaded.items()}
        print(f"{title}, {more or 'plain'}: 3 photographs in, (rows, labels) out: {found[title, bool(more)]}")
whole = {"train": (3, True)}
same = found["control", False] == whole and all(found[title, True] == whole for title in FOLDERS)
same &= all(found[title, False] == {"train": (1, False)} for title in ("class train", "class bullet-train", "metadata.csv above train"))
sys.exit(not (same and found["file test-b.jpg", False] == {"test": (1, False)}))
P
