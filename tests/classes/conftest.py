from __future__ import annotations

from hypothesis import settings

# Time per example says nothing on a shared machine, and a slow disk is not a failure.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
