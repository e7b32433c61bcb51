"""BERT and DistilBERT in PyTorch, TensorFlow/Keras and Flax: any checkpoint, any framework, the same numbers.

Names are imported when they are first used, so that ``import distilbert`` needs no framework and no time.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "distilbert.core.config": ("BertConfig", "DistilBertConfig"),
    "distilbert.core.tokenizer": (
        "BertTokenizer",
        "BertTokenizerFast",
        "DistilBertTokenizer",
        "DistilBertTokenizerFast",
    ),
    "distilbert.pipelines": ("pipeline",),
    "distilbert.pt": (
        "BertModel",
        "BertForPreTraining",
        "BertForMaskedLM",
        "BertForNextSentencePrediction",
        "BertForSequenceClassification",
        "BertForMultipleChoice",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
        "DistilBertModel",
        "DistilBertForMaskedLM",
        "DistilBertForSequenceClassification",
        "DistilBertForMultipleChoice",
        "DistilBertForTokenClassification",
        "DistilBertForQuestionAnswering",
    ),
    "distilbert.tf": (
        "TFBertModel",
        "TFBertForPreTraining",
        "TFBertForMaskedLM",
        "TFBertForNextSentencePrediction",
        "TFBertForSequenceClassification",
        "TFBertForMultipleChoice",
        "TFBertForTokenClassification",
        "TFBertForQuestionAnswering",
        "TFDistilBertModel",
        "TFDistilBertForMaskedLM",
        "TFDistilBertForSequenceClassification",
        "TFDistilBertForMultipleChoice",
        "TFDistilBertForTokenClassification",
        "TFDistilBertForQuestionAnswering",
    ),
    "distilbert.flax": (
        "FlaxBertModel",
        "FlaxBertForPreTraining",
        "FlaxBertForMaskedLM",
        "FlaxBertForNextSentencePrediction",
        "FlaxBertForSequenceClassification",
        "FlaxBertForMultipleChoice",
        "FlaxBertForTokenClassification",
        "FlaxBertForQuestionAnswering",
        "FlaxDistilBertModel",
        "FlaxDistilBertForMaskedLM",
        "FlaxDistilBertForSequenceClassification",
        "FlaxDistilBertForMultipleChoice",
        "FlaxDistilBertForTokenClassification",
        "FlaxDistilBertForQuestionAnswering",
    ),
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'distilbert' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
