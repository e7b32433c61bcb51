"""Running many texts of mixed length through a model without padding them all to the longest."""

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
        self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray | None = None
    ) -> Arrays:
        """From ids, mask and segments, (B, L) or for multiple choice (B, C, L), to arrays with a leading B."""


def run_by_length(
    model: Model,
    sequences: Sequence[Sequence[int]],
    keep: Callable[[int, Arrays], Any],
    *,
    segments: Sequence[Sequence[int]] | None = None,
    batch_size: int | None = None,
    shape: tuple[int, ...] = (),
) -> list[Any]:
    """Run a model over token sequences, batched with others of about their length.

    Args:
        model: takes ids and mask, and segments where they are given; gives arrays.
        sequences: token ids of each text.
        keep: what to keep of the outputs for a sequence, given its number and them, which may have padding at the
            end; all that is not kept is freed with the batch.
        segments: of each token.
        batch_size: sequences in a batch, by default as many as the model likes of that length.
        shape: of what stands between B and L in the model's input.

    Returns:
        For each sequence, in the order given, what was kept.
    """
    kept: list[Any] = [None] * len(sequences)
    pad_token_id = model.config.pad_token_id or 0
    # The longest first: a batch that does not fit into memory fails at once, not after an hour.
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    start = 0
    while start < len(order):
        longest = len(sequences[order[start]])
        batch = order[start : start + (batch_size or model.batch_rows(longest))]
        input_ids = np.full((len(batch), longest), pad_token_id, dtype=np.int64)
        attention_mask, token_type_ids = np.zeros_like(input_ids), np.zeros_like(input_ids)
        for row, index in enumerate(batch):
            length = len(sequences[index])
            input_ids[row, :length] = sequences[index]
            attention_mask[row, :length] = 1
            if segments is not None:
                token_type_ids[row, :length] = segments[index]
        given = [input_ids, attention_mask] if segments is None else [input_ids, attention_mask, token_type_ids]
        outputs = model(*(array.reshape(len(batch), *shape, longest) for array in given))
        for row, index in enumerate(batch):
            kept[index] = keep(index, {name: values[row] for name, values in outputs.items()})
        start += len(batch)
    return kept
