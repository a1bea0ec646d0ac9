"""Predictions for images with a trained model or an exported file; the latter without torch."""

from .answers import ANSWERS, Answer
from .boxes import predict_boxes
from .classes import predict
from .masks import predict_masks
from .model import Model, load
from .predictor import open_predictor
from .tags import predict_tags

__all__ = [
    "ANSWERS",
    "Answer",
    "Model",
    "load",
    "open_predictor",
    "predict",
    "predict_boxes",
    "predict_masks",
    "predict_tags",
]
