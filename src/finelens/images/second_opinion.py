"""What the image libraries complain of while they decode a file that comes out "fine". Runs as a process of its own: ``python -m`` this module.

libjpeg writes its complaints to standard error and Pillow swallows them, so this process decodes once more with a reader that lets them through, and
reads its own standard error. A file that kills or leaks in such a reader does so here.

It answers each line of standard input, a JSON text that is a path, with one line of standard output, a JSON list of complaints. Its argument, if any,
is the budget of pixels of one image.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

MAX_COMPLAINTS = 5


def complaints(path: str, max_pixels: int | None = None) -> list[str]:
    """Warnings of Pillow and of libjpeg about one file, without repetitions.

    Args:
        path: The file.
        max_pixels: Budget of pixels of the command that asks; None for the default.
    """
    import torch
    from torchvision.io import decode_jpeg

    from finelens.images.decode import DecodeLimits, Failure, decode
    from finelens.images.unheard import heard

    with tempfile.TemporaryFile() as captured, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            with _standard_error(captured), open(path, "rb") as file:
                data = file.read()
                limits = DecodeLimits() if max_pixels is None else DecodeLimits(max_pixels=max_pixels)
                # Of what is a part, the whole may have any form.
                with heard():
                    result = decode(Path(path), limits.of_any_form)
                if data[:2] == b"\xff\xd8":
                    decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        except Exception as error:
            # Readable for the boundary, not for this reader: worth a word as well.
            said_last = [f"{type(error).__name__}: {error}"]
        else:
            said_last = [result.reason] if isinstance(result, Failure) else []
        captured.seek(0)
        lines = captured.read().decode("utf-8", "replace").splitlines()
    found = [str(warning.message) for warning in said if not issubclass(warning.category, DeprecationWarning)] + lines + said_last
    return list(dict.fromkeys(joined for line in found if (joined := " ".join(line.split())[:200])))[:MAX_COMPLAINTS]


@contextmanager
def _standard_error(target: BinaryIO) -> Iterator[None]:
    """Standard error of the whole process, C libraries included, in a file."""
    sys.stderr.flush()
    kept = os.dup(2)
    os.dup2(target.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def main() -> None:
    """Answer until standard input ends."""
    budget = int(sys.argv[1]) if len(sys.argv) > 1 else None
    for line in sys.stdin:
        print(json.dumps(complaints(json.loads(line), budget)), flush=True)


if __name__ == "__main__":
    main()
