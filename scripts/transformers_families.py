"""How far finelens' features are from transformers' own, for each family: on the same pixels, on texts, and on files.

    python scripts/transformers_families.py --photos DIR --limit 64

Checkpoints are small and random, of 224 pixels (ALIGN: 289, as released), written by transformers into a temporary folder. On files each side uses
its own preprocessing; what differs is given in levels of 255 before normalisation, and in the features. Prints the table of docs/backbones.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.backbones.transformers_checkpoints import FAMILIES, TEXTS, their_image_features, their_model, their_text_features, write_tiny

from finelens.backbones.registry import load_backbone
from finelens.images.discover import discover
from finelens.images.load import decode_limits
from finelens.images.store import load_images
from finelens.images.view_config import ViewConfig
from finelens.images.views import centre_view
from finelens.protocol import Backbone

SIDES = {"align": (289, 346)}


def write(folder: Path, family: str) -> tuple[Path, int]:
    side, resized = SIDES.get(family, (224, 224))
    square = {"height": side, "width": side}
    size = {"height": resized, "width": resized} if family in ("siglip", "align") else {"shortest_edge": side}
    processor = {"size": size} if family == "siglip" else {"size": size, "crop_size": square}
    vision = {"image_size": side} if family == "align" else {"image_size": side, "patch_size": 32}
    return write_tiny(folder, family, vision=vision, processor=processor), side


def views(photos: Path, limit: int, backbone: Backbone) -> tuple[list[Path], torch.Tensor]:
    """Paths and centre views (N, 3, S, S) of the first photographs."""
    files = discover(photos)[:limit]
    loaded = load_images(files, decode_limits(ViewConfig(), backbone.preprocess))
    rows = [(file.path, record.index) for file, record in zip(files, loaded.records, strict=True) if record.index is not None]
    return [path for path, _ in rows], torch.stack([centre_view(loaded.store[index], backbone.preprocess) for _, index in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=64)
    given = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    print("| family | pixels | texts | files: same pixels | files: levels off | files: cosine, mean / least |")
    print("|---|---|---|---|---|---|")
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as parent, torch.no_grad():
            folder, side = write(Path(parent) / family, family)
            model, backbone = their_model(folder), load_backbone(f"transformers:{folder}")
            noise = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))
            pixels = (backbone.encode_image(noise).global_ - their_image_features(model, noise)).abs().max()
            texts = (backbone.encode_text(TEXTS) - their_text_features(model, folder, TEXTS)).abs().max()
            processor = transformers.AutoImageProcessor.from_pretrained(folder)
            paths, ours = views(given.photos, given.limit, backbone)
            theirs = torch.cat([processor(images=Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"] for path in paths])
            levels = ((backbone.normalise(ours) - theirs) * torch.tensor(backbone.preprocess.std).view(3, 1, 1) * 255).abs()
            equal = (levels.amax(dim=(1, 2, 3)) < 0.01).sum()
            cosines = (backbone.encode_image(backbone.normalise(ours)).global_ * their_image_features(model, theirs)).sum(dim=1)
        files = f"{equal} of {len(paths)} | {levels.mean():.2f} | {cosines.mean():.4f} / {cosines.min():.2f}"
        print(f"| `{family}` | {pixels:.1e} | {texts:.1e} | {files} |")


if __name__ == "__main__":
    main()
