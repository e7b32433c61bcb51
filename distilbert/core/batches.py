"""How much a backend is given at a time, and in which form if it needs rectangles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from distilbert.core.config import Config
from distilbert.core.outputs import is_per_token

# Accelerators want all their cores busy.
TOKENS_ON_ACCELERATOR = 65536
VOCABULARY_SHARE = 8  # a masked LM gives a number for each word of the vocabulary, not a few dozen


def cached_tokens(itemsize: int) -> int:
    """How many tokens a CPU's caches have room for, in numbers of ``itemsize`` bytes: docs/measurements.md."""
    return 4096 // itemsize


def batch_rows(length: int, head: str, is_on_cpu: bool, itemsize: int = 4, parts: int = 1) -> int:
    """How many sequences of ``length`` tokens make a batch that runs fast, and fits; of numbers of so many bytes.

    On a CPU ``parts`` of a batch may run at the same time.
    """
    scores_words = head in ("masked-lm", "pretraining")
    if is_on_cpu:
        return (1 if scores_words else parts) * max(1, cached_tokens(itemsize) // length)
    return max(1, TOKENS_ON_ACCELERATOR // (VOCABULARY_SHARE if scores_words else 1) // length)


def pad(
    sequences: Sequence[Sequence[int]],
    segments: Sequence[Sequence[int]] | None,
    head: str,
    config: Config,
    places: Sequence[Sequence[int]] | None = None,
) -> dict[str, np.ndarray]:
    """The ids of some texts, and their segments if given, as what a model with that head takes: int64 (B, L).

    For multiple choice (B, 1, L): each text is the only choice of its row. ``places`` become (B, P), for P a power of
    two because what is compiled is compiled for each.
    """
    given: dict[str, Sequence[Sequence[int]]] = {"input_ids": sequences}
    given["attention_mask"] = [[1] * len(row) for row in sequences]
    if segments is not None:
        given["token_type_ids"] = segments
    if places is not None:
        given["places"] = places
    padded = {}
    for name, rows in given.items():
        longest = max(map(len, rows))
        if name == "places":
            longest = 1 << (longest - 1).bit_length()
        filler = (config.pad_token_id or 0) if name == "input_ids" else 0
        array = np.full((len(rows), longest), filler, np.int64)
        for number, row in enumerate(rows):
            array[number, : len(row)] = row
        padded[name] = array[:, None] if head == "multiple-choice" else array
    return padded


def unpad(
    outputs: Mapping[str, np.ndarray], sequences: Sequence[Sequence[int]], head: str
) -> list[dict[str, np.ndarray]]:
    """The outputs of each text, without those in places of padding: as many as its ids, or places, are."""
    return [
        {name: rows[number, : len(ids)] if is_per_token(name, head) else rows[number] for name, rows in outputs.items()}
        for number, ids in enumerate(sequences)
    ]
