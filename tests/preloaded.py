"""What a process of :mod:`tests.children` has imported before it starts: every module of finelens and the libraries that a run loads on its way."""

from __future__ import annotations

import importlib
import pkgutil

import open_clip  # noqa: F401
import timm  # noqa: F401
import torchvision  # noqa: F401
from open_clip.tokenizer import SimpleTokenizer

import finelens
from tests.toy import shared_tokenizer

for module in pkgutil.walk_packages(finelens.__path__, "finelens."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)

# Their own unpack CLIP's vocabulary, each anew.
SimpleTokenizer.__init__ = shared_tokenizer()  # type: ignore[method-assign]
SimpleTokenizer()
