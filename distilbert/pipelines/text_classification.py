"""Text classification: a label and a score for each text."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np

from distilbert.core.config import DistilBertConfig
from distilbert.core.errors import InputError
from distilbert.core.tokenizer import DistilBertTokenizer
from distilbert.pipelines.pipeline import Pipeline
from distilbert.pipelines.scores import sigmoid, softmax

logger = logging.getLogger("distilbert")

HEAD = "sequence-classification"


# From a row of logits to scores, under the names that users write.
FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "none": np.asarray,
}


class Classification(TypedDict):
    """One label with its score."""

    label: str
    score: float


class TextClassificationPipeline(Pipeline):
    """Classifies texts, by ``logits`` (B, C) of the model."""

    def __call__(
        self,
        texts: Sequence[str],
        *,
        top_k: int | None = None,
        function_to_apply: str | None = None,
        batch_size: int = 32,
        truncation: bool = True,
    ) -> list[Classification] | list[list[Classification]]:
        """Classify ``texts``.

        Args:
            texts: any number of texts.
            top_k: how many labels to return for each, best first (at most as many as there are).
            function_to_apply: from logits to scores: ``"softmax"``, ``"sigmoid"`` or ``"none"``; by default
                sigmoid for models of one label or of several labels at a time, softmax for others.
            batch_size: texts that the model sees at a time.
            truncation: cut texts that are too long for the model, with a warning; otherwise they are an error.

        Returns:
            For each text its best label, or with ``top_k`` a list of them.

        Raises:
            InputError: an option out of range, or a text too long for the model.
        """
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k is {top_k}, expected at least 1")
        scores = score_function(function_to_apply, self.config)
        sequences = encode(self.tokenizer, texts, self.config.max_position_embeddings if truncation else None)
        rows = self.run(sequences, batch_size)
        ranked = [self._rank(scores(row["logits"]), top_k or 1) for row in rows]
        return ranked if top_k is not None else [labels[0] for labels in ranked]

    def _rank(self, scores: np.ndarray, count: int) -> list[Classification]:
        best = np.argsort(-scores, kind="stable")[:count]
        return [{"label": self.config.id2label[int(index)], "score": float(scores[index])} for index in best]


def encode(tokenizer: DistilBertTokenizer, texts: Sequence[str], max_length: int | None) -> list[list[int]]:
    """Token ids of each text, cut to ``max_length`` with a warning that says how many were."""
    encoded = tokenizer(list(texts), truncation=max_length is not None, max_length=max_length, verbose=False)
    if cut := sum(bool(encoding.overflowing) for encoding in encoded.encodings or ()):
        logger.warning("%d of %d texts cut to the model's %d tokens", cut, len(texts), max_length)
    return encoded["input_ids"]


def score_function(name: str | None, config: DistilBertConfig) -> Callable[[np.ndarray], np.ndarray]:
    """The function from a row of logits (C,) to scores (C,) that ``name``, or the config, asks for.

    Raises:
        InputError: no such function.
    """
    if name is None:
        several = config.problem_type == "multi_label_classification" or config.num_labels == 1
        name = "sigmoid" if several else "softmax"
    if name not in FUNCTIONS:
        raise InputError(f"function_to_apply is {name!r}, expected one of {', '.join(FUNCTIONS)}")
    return FUNCTIONS[name]
