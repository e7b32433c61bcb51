"""Running many texts of mixed length through a model, each together with others of about its length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from distilbert.core.config import Config

Arrays = dict[str, np.ndarray]


class Model(Protocol):
    """What a backend contributes: arrays in, arrays out."""

    @property
    def config(self) -> Config:
        """The loaded model's config."""

    def batch_rows(self, length: int) -> int:
        """How many sequences of ``length`` tokens to give it at a time."""

    def __call__(
        self,
        sequences: Sequence[Sequence[int]],
        segments: Sequence[Sequence[int]] | None = None,
        places: Sequence[Sequence[int]] | None = None,
    ) -> Sequence[Arrays]:
        """From the ids of some texts, and the segments of their tokens, to each text's outputs, without padding.

        With ``places``, a masked LM's at those alone.
        """


def run_by_length(
    model: Model,
    sequences: Sequence[Sequence[int]],
    keep: Callable[[int, Arrays], Any],
    *,
    segments: Sequence[Sequence[int]] | None = None,
    places: Sequence[Sequence[int]] | None = None,
    batch_size: int | None = None,
) -> list[Any]:
    """Run a model over token sequences, batched with others of about their length.

    Args:
        model: gives the outputs of sequences, and of their segments where they are given.
        sequences: token ids of each text.
        keep: what to keep of the outputs for a sequence, given its number and them; all that is not kept is freed with
            the batch.
        segments: of each token.
        places: the only ones in each text at which words have to be scored.
        batch_size: sequences in a batch, by default as many as the model likes of that length.

    Returns:
        For each sequence, in the order given, what was kept.
    """
    kept: list[Any] = [None] * len(sequences)
    # The longest first: a batch that does not fit into memory fails at once, not after an hour.
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    start = 0
    while start < len(order):
        batch = order[start : start + (batch_size or model.batch_rows(len(sequences[order[start]])))]
        optional = {"segments": segments, "places": places}
        given = {name: [of[index] for index in batch] for name, of in optional.items() if of is not None}
        for index, outputs in zip(batch, model([sequences[index] for index in batch], **given), strict=True):
            kept[index] = keep(index, outputs)
        start += len(batch)
    return kept
