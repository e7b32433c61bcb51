"""Feature extraction: vectors for each token, or one for each text.

The vectors of tokens are those of transformers 4.57's pipeline, but an array (L, D) instead of lists in lists, and
texts too long for the model are cut unless ``truncation=False``; there, they make the model fail. Vectors of texts are
those of sentence-transformers' pooling of the same states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding

from distilbert.core.errors import InputError
from distilbert.pipelines.batching import Arrays
from distilbert.pipelines.pipeline import Pipeline, Sample, require_count

# From the states (L, D) of all tokens, special ones too, to one vector (D,).
POOLINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "cls": lambda hidden_LD: hidden_LD[0],
    "mean": lambda hidden_LD: hidden_LD.mean(0),
    "max": lambda hidden_LD: hidden_LD.max(0),
}


@dataclass(frozen=True)
class Options:
    """Which vectors to give.

    Args:
        pooling: one vector for each text: ``"cls"`` takes that of the first token, ``"mean"`` and ``"max"`` combine
            those of all; None gives every token's.
        normalize: make the vectors of texts one long.
        truncation: cut texts that are too long for the model, with a warning; otherwise they are an error.
        max_length: tokens to cut texts to, by default as many as the model reads.
    """

    pooling: str | None = None
    normalize: bool = True
    truncation: bool = True
    max_length: int | None = None

    def __post_init__(self) -> None:
        if self.max_length is not None:
            require_count("max_length", self.max_length)
        if self.pooling not in (None, *POOLINGS):
            raise InputError(f"pooling is {self.pooling!r}, expected one of {', '.join(POOLINGS)}, or None")


class FeatureExtractionPipeline(Pipeline):
    """Gives vectors, by ``last_hidden_state`` (B, L, D) of the model.

    An item is a text. The answer is an array of float32: (L, D) with a row for each token, ``[CLS]`` and ``[SEP]``
    among them, or with ``pooling`` (D,).
    """

    task = "feature-extraction"
    head = "base"
    options_class = Options

    @classmethod
    def columns(cls, options: Options) -> tuple[str, ...]:
        """None: the answer is an array."""
        return ()

    def encode(self, items: Sequence[str], options: Options) -> list[Sample]:
        """One window each."""
        return self.encode_whole(items, options.truncation, options.max_length)

    def keep(self, sample: Sample, window: Encoding, outputs: Arrays, options: Options) -> np.ndarray:
        """The vectors, as an array of their own: a part of the batch's would keep all of it in memory."""
        hidden_LD = outputs["last_hidden_state"]
        if options.pooling is None:
            return hidden_LD.copy()
        pooled_D = POOLINGS[options.pooling](hidden_LD)
        return pooled_D / max(np.linalg.norm(pooled_D), 1e-12) if options.normalize else pooled_D.copy()

    def answer(self, sample: Sample, kept: list[np.ndarray], options: Options) -> np.ndarray:
        """The vectors."""
        return kept[0]
