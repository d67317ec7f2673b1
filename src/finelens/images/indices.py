"""Index files of photographs that lie in zip archives, and tables that hold photographs: what they are called and how they are told from other files.

This module imports no tensor library, so that the command line can refuse a wrong path at once.
"""

from __future__ import annotations

from pathlib import Path

from finelens.errors import UserError
from finelens.images.discover import display_name

# Between the name of an archive and the path of a member.
IN_ARCHIVE = ".zip@"
# What an index may be called behind the name of its part.
ENDINGS = (".txt", "_images.txt", "_ic.txt", ".json", "_meta.json", "_coco.json", ".tsv")
_PARTS = ("train", "val", "test")
# As much of a file tells its form: categories and the first images of a document in COCO's form stand in it.
_HEAD_BYTES = 1 << 20


def is_index(path: Path) -> bool:
    """Whether a file lists photographs in zip archives or holds them in base64, as its first bytes say."""
    if path.suffix.lower() not in (".txt", ".json", ".tsv") or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False
    if path.suffix.lower() == ".tsv":
        return head.partition(b"\n")[0].partition(b"\t")[2].lstrip().startswith((b'[{"class"', b"[]\t"))
    packed = IN_ARCHIVE.encode() in (head.lstrip().partition(b"\n")[0] if path.suffix.lower() == ".txt" else head)
    return packed or (path.suffix.lower() == ".json" and b'"zip_file"' in head)


def check_part(folder: Path) -> None:
    """Refuse a folder of archives with index files: which part of the set is meant?

    Raises:
        UserError: It is one.
    """
    found = [folder / f"{part}{ending}" for part in _PARTS for ending in ENDINGS if is_index(folder / f"{part}{ending}")]
    if found:
        names = " or ".join(display_name(path) for path in found)
        raise UserError(f"{display_name(folder)} is a data set of several parts whose photographs lie in archives or tables; give one part: {names}")
