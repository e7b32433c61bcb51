"""DistilBERT in PyTorch."""

from distilbert.core.backends import require_backend

require_backend("torch", extra="torch")

from distilbert.pt.encoder import DistilBertModel  # noqa: E402
from distilbert.pt.heads import (  # noqa: E402
    DistilBertForMaskedLM,
    DistilBertForMultipleChoice,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
)

__all__ = [
    "DistilBertForMaskedLM",
    "DistilBertForMultipleChoice",
    "DistilBertForQuestionAnswering",
    "DistilBertForSequenceClassification",
    "DistilBertForTokenClassification",
    "DistilBertModel",
]
