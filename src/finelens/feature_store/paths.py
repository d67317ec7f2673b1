"""Which paths name features. This module imports no tensor library, so that the command line can refuse a wrong path at once."""

from __future__ import annotations

from pathlib import Path

from finelens.core.beside import check_the_path
from finelens.errors import UserError

SUFFIXES = (".npy", ".safetensors")
# A folder of shards, see ``feature_store.folder``.
FOLDER_SUFFIX, FOLDER_FORMAT, MANIFEST = ".features", "finelens-feature-folder", "manifest.json"
# Names the shards of a folder that is not finished.
PART = "manifest.part.json"
# Files that hold features for others; they are named in the refusal rather than taken for a mistyped folder.
_FOREIGN = (".npz", ".pt", ".pth", ".pkl", ".pickle", ".h5", ".hdf5", ".csv", ".mat", ".bin")


def is_feature_folder(path: Path) -> bool:
    """Whether a path names a folder that ``finelens features`` wrote, or began to write."""
    return path.suffix.lower() == FOLDER_SUFFIX and path.is_dir()


def is_feature_path(path: str | Path) -> bool:
    """Whether a path names a file or folder of features rather than a folder of photographs.

    Raises:
        UserError: It names a file of features of a kind that is not read.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if is_feature_folder(path):
        return True
    if path.is_dir() or suffix not in (*SUFFIXES, *_FOREIGN):
        return False
    if suffix in _FOREIGN:
        raise UserError(f"{path}: features are read from .npy and .safetensors files, not from {suffix}; save them as one of these")
    if not path.is_file():
        raise UserError(f"feature file {path} does not exist; {check_the_path(path)}")
    return True
