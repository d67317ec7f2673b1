"""What predictions say about themselves, without labels."""

from finelens.health.lines import balance, collapse_warning, pseudo_label_warning
from finelens.health.verdict import Verdict, verdict

__all__ = ["Verdict", "balance", "collapse_warning", "pseudo_label_warning", "verdict"]
