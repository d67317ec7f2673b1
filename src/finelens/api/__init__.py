"""The verbs of finelens from Python. The command line calls exactly these."""

from __future__ import annotations

from finelens.api.exports import export, serve
from finelens.api.predictions import join, predict, predict_to
from finelens.api.reports import explain, report
from finelens.api.reviews import DOUBT, WORTH, ask, questions_path, review, review_server
from finelens.api.runs import adapt, plan, resume, zero_shot
from finelens.runs.classifier import load_run
from finelens.runs.evaluate import evaluate
from finelens.runs.execute import RunResult
from finelens.storage.predictions import read_predictions

__all__ = [
    "DOUBT",
    "WORTH",
    "RunResult",
    "adapt",
    "ask",
    "evaluate",
    "explain",
    "export",
    "join",
    "load_run",
    "plan",
    "predict",
    "predict_to",
    "questions_path",
    "read_predictions",
    "report",
    "resume",
    "review",
    "review_server",
    "serve",
    "zero_shot",
]
