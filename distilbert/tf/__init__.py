"""BERT and DistilBERT in Keras 3, on TensorFlow (or on JAX or PyTorch, with ``KERAS_BACKEND``)."""

from distilbert.core.backends import require_backend

require_backend("keras", extra="tf")

import keras  # noqa: E402

require_backend(keras.backend.backend(), extra="tf")

from distilbert.tf.encoder import TFBertModel, TFDistilBertModel  # noqa: E402
from distilbert.tf.heads import (  # noqa: E402
    TFBertForMaskedLM,
    TFBertForMultipleChoice,
    TFBertForNextSentencePrediction,
    TFBertForPreTraining,
    TFBertForQuestionAnswering,
    TFBertForSequenceClassification,
    TFBertForTokenClassification,
    TFDistilBertForMaskedLM,
    TFDistilBertForMultipleChoice,
    TFDistilBertForQuestionAnswering,
    TFDistilBertForSequenceClassification,
    TFDistilBertForTokenClassification,
)

__all__ = [
    "TFBertForMaskedLM",
    "TFBertForMultipleChoice",
    "TFBertForNextSentencePrediction",
    "TFBertForPreTraining",
    "TFBertForQuestionAnswering",
    "TFBertForSequenceClassification",
    "TFBertForTokenClassification",
    "TFBertModel",
    "TFDistilBertForMaskedLM",
    "TFDistilBertForMultipleChoice",
    "TFDistilBertForQuestionAnswering",
    "TFDistilBertForSequenceClassification",
    "TFDistilBertForTokenClassification",
    "TFDistilBertModel",
]
