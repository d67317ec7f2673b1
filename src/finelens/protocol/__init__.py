"""The contracts every part of finelens speaks.

Data flows one way: images and classes -> backbone -> method -> predictions -> report. The types here are what crosses each arrow. Nothing here
computes; it may be imported by every other module of finelens and imports none of them.
"""

from __future__ import annotations

from finelens.protocol.backbone import Backbone, ImageTokens, Interpolation, NotAvailableError, Preprocess, ResizeMode
from finelens.protocol.classes import ClassSet
from finelens.protocol.features import FeatureRows, Hints, PrefixRows, Rows, Support, TargetFeatures, Tested
from finelens.protocol.images import ImageRecord, ImageStore, Loaded
from finelens.protocol.task import Cost, Optimisation, StepOutput, Task
from finelens.protocol.views import Batch, InferenceViews, ViewPlan

__all__ = [
    "Backbone",
    "Batch",
    "ClassSet",
    "Cost",
    "FeatureRows",
    "Hints",
    "ImageRecord",
    "ImageStore",
    "ImageTokens",
    "InferenceViews",
    "Interpolation",
    "Loaded",
    "NotAvailableError",
    "Optimisation",
    "PrefixRows",
    "Preprocess",
    "ResizeMode",
    "Rows",
    "StepOutput",
    "Support",
    "TargetFeatures",
    "Task",
    "Tested",
    "ViewPlan",
]
