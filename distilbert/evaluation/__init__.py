"""How good a model is on labelled data: metrics of its task, in one pass over a file."""

from distilbert.evaluation.evaluation import Report, evaluate

__all__ = ["Report", "evaluate"]
