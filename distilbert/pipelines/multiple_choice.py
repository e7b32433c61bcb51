"""Multiple choice: how probable each of several continuations of a text is.

transformers has no such pipeline; the scores are the softmax of what its models give for the same pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import numpy as np
from tokenizers import Encoding

from distilbert.core.errors import InputError
from distilbert.pipelines.batching import Arrays
from distilbert.pipelines.pipeline import Pipeline, Sample, read_text, require_mapping, split_names
from distilbert.pipelines.scores import softmax


class Choice(TypedDict):
    """One choice with its probability."""

    choice: str
    score: float


@dataclass(frozen=True)
class Options:
    """How to choose.

    Args:
        truncation: cut texts that are too long for the model, with a warning; otherwise they are an error.
    """

    truncation: bool = True


class Item(NamedTuple):
    """A text, and what may follow it."""

    prompt: str
    choices: list[str]


class MultipleChoicePipeline(Pipeline):
    """Chooses, by ``logits`` (B, 1) of the model.

    An item is a mapping with ``prompt`` and ``choices``, a list of str, or one with commas. The answer is a list of
    mappings with ``choice`` and ``score``, in the order of the choices; the scores add up to 1.
    """

    task = head = "multiple-choice"
    options_class = Options

    @classmethod
    def columns(cls, options: Options) -> tuple[str, ...]:
        """Those of what the answer lists."""
        return ("choice", "score")

    def parse(self, item: Any, options: Options) -> Item:
        """The text and the choices."""
        require_mapping(item, *Item._fields)
        prompt, choices = read_text(item, "prompt"), item.get("choices")
        if isinstance(choices, str):  # the cell of a table
            choices = split_names(choices)
        if not isinstance(choices, (list, tuple)) or not choices:
            raise InputError(f"choices is {choices!r:.40}, expected a list of at least one str")
        return Item(prompt, [read_text(choice, "a choice") for choice in choices])

    def encode(self, items: Sequence[Item], options: Options) -> list[Sample]:
        """A window for each choice."""
        pairs = [[(item.prompt, choice) for choice in item.choices] for item in items]
        return self.encode_several(items, pairs, options.truncation)

    def keep(self, sample: Sample, window: Encoding, outputs: Arrays, options: Options) -> float:
        """The logit of a choice."""
        return float(outputs["logits"][0])

    def answer(self, sample: Sample, kept: list[float], options: Options) -> list[Choice]:
        """The probability of each choice."""
        scores = softmax(np.array(kept)).tolist()
        return [{"choice": choice, "score": score} for choice, score in zip(sample.item.choices, scores, strict=True)]
