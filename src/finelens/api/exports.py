"""A finished run for other runtimes: ``export``, ``serve``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finelens.core.console import Console

if TYPE_CHECKING:
    from finelens.exporting.check import Difference


def export(
    run: str | Path,
    out: str | Path,
    *,
    to: str,
    weights: str = "float32",
    resize: bool = False,
    overwrite: bool = False,
    extra_encoders: Sequence[str] = (),
    console: Console | None = None,
) -> Difference:
    """Write the classifier of a finished run for another runtime, and compare its answers with the run's; see docs/export.md.

    Args:
        run: The run folder.
        out: Folder to write.
        to: ``open_clip`` or ``transformers`` (a folder in the library's own layout), ``onnx`` or ``torch`` (one file).
        weights: Type of the stored weights for ``onnx``: ``float32``, ``float16`` or ``int8``.
        resize: Whether resize and crop are inside, for ``onnx``: the input is then one photograph of any size.
        overwrite: Whether an earlier export in ``out`` is replaced.
        extra_encoders: As for :func:`predict`.
        console: What is said.

    Returns:
        How far its answers are from the run's: ``images``, ``largest`` (of a logit), ``equal`` (classes), and ``files`` of whole photographs.

    Raises:
        UserError: Not a finished run, a method or model that the target cannot hold, or an export whose answers are not the run's.
    """
    from finelens.exporting.write import as_target, as_weights
    from finelens.exporting.write import export as write_export

    target, stored = as_target(to), as_weights(weights)
    return write_export(run, out, to=target, weights=stored, resize=resize, overwrite=overwrite, extra_encoders=extra_encoders, console=console)


def serve(run: str | Path, **given: Any) -> None:
    """Answer over HTTP until SIGTERM or Ctrl-C; arguments are those of :func:`finelens.serving.server.serve`."""
    from finelens.serving.server import serve as serve_run

    serve_run(run, **given)
