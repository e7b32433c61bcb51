"""Training and distilling on any backend: files → examples → steps → the backend's ``training.py`` → a checkpoint.

Here is what is common to all frameworks: settings, batches, evaluation, logs, and going on after a crash. What a step
computes is in each backend's ``training.py``, with that framework's own optimiser.
"""

from distilbert.distillation.recipe import Recipe, TaskRecipe
from distilbert.training.settings import Settings
from distilbert.training.training import distill, finetune

__all__ = ["Recipe", "Settings", "TaskRecipe", "distill", "finetune"]
