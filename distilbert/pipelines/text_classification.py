"""Text classification: labels and scores for each text, or pair of texts.

Options, keys and scores are those of transformers 4.57's pipeline. The answer for one text is the one that it has in a
list of texts, a mapping; there, a text alone has a list with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from distilbert.core.config import Config
from distilbert.core.errors import InputError
from distilbert.pipelines.pipeline import Pipeline, Sample, read_text, require_count
from distilbert.pipelines.scores import sigmoid, softmax

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


@dataclass(frozen=True)
class Options:
    """How to classify.

    Args:
        top_k: how many labels to give, best first; None gives all.
        function_to_apply: from logits to scores: ``"softmax"``, ``"sigmoid"`` or ``"none"``; by default none for
            regression, sigmoid for one label or several at a time, softmax for others.
        truncation: cut texts that are too long for the model, with a warning; otherwise they are an error.
        max_length: tokens to cut texts to, by default as many as the model reads.
    """

    top_k: int | None = 1
    function_to_apply: str | None = None
    truncation: bool = True
    max_length: int | None = None

    def __post_init__(self) -> None:
        if self.max_length is not None:
            require_count("max_length", self.max_length)
        if self.top_k is not None:
            require_count("top_k", self.top_k)
        if self.function_to_apply not in (None, *FUNCTIONS):
            expected = ", ".join(FUNCTIONS)
            raise InputError(f"function_to_apply is {self.function_to_apply!r}, expected one of {expected}")


class TextClassificationPipeline(Pipeline):
    """Classifies texts by ``logits`` (B, C) of the model.

    An item is a text, or a mapping with ``text`` and perhaps ``text_pair``. The answer is a label with its score, or
    with another ``top_k`` than 1 a list of them.
    """

    task = "text-classification"
    head = "sequence-classification"
    options_class = Options

    @classmethod
    def columns(cls, options: Options) -> tuple[str, ...]:
        """Those of what the answer lists."""
        return ("label", "score")

    def parse(self, item: Any, options: Options) -> str | tuple[str, str]:
        """The text, or the two."""
        if isinstance(item, Mapping) and item.get("text_pair"):  # a table has it in all rows or in none
            return read_text(item), read_text(item, "text_pair")
        return read_text(item)

    def encode(self, items: Sequence[Any], options: Options) -> list[Sample]:
        """One window each."""
        return self.encode_whole(items, options.truncation, options.max_length)

    def answer(self, sample: Sample, kept: list[Any], options: Options) -> Classification | list[Classification]:
        """The best labels."""
        name = options.function_to_apply or default_function(self.config)
        scores = FUNCTIONS[name](kept[0]["logits"])
        best = np.argsort(-scores, kind="stable")[: options.top_k]
        ranked: list[Classification] = [
            {"label": self.config.id2label[int(index)], "score": float(scores[index])} for index in best
        ]
        return ranked[0] if options.top_k == 1 else ranked


def default_function(config: Config) -> str:
    """What makes scores of the logits of a model, by what it was trained for."""
    if config.problem_type == "regression":
        return "none"
    return "sigmoid" if config.problem_type == "multi_label_classification" or config.num_labels == 1 else "softmax"
