from __future__ import annotations

import sys
import types
from dataclasses import dataclass
from importlib.util import find_spec

if find_spec("finelens.images.views") is None:
    # The views are another part of the package; until they exist a stand-in with the agreed fields lets runs be tested.
    @dataclass(frozen=True)
    class ViewConfig:
        crop_low: float = 0.5
        rand_layers: int = 2

    module = types.ModuleType("finelens.images.views")
    module.ViewConfig = ViewConfig
    sys.modules["finelens.images.views"] = module
