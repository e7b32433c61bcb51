"""Running many texts of mixed length through a model without padding them all to the longest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Model = Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]


def run_by_length(
    model: Model, sequences: Sequence[Sequence[int]], *, batch_size: int, pad_token_id: int
) -> list[dict[str, np.ndarray]]:
    """Run a model over token sequences, batched with others of about their length.

    Args:
        model: takes ids (B, L) and mask (B, L), gives arrays with a leading B.
        sequences: token ids of each text.
        batch_size: texts in a batch.
        pad_token_id: fills the shorter texts of a batch.

    Returns:
        For each sequence, in the order given, the model's outputs for it, with any padding still at the end.
    """
    rows: list[dict[str, np.ndarray]] = [{}] * len(sequences)
    # The longest first: a batch that does not fit into memory fails at once, not after an hour.
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        longest = len(sequences[batch[0]])
        input_ids = np.full((len(batch), longest), pad_token_id, dtype=np.int64)
        attention_mask = np.zeros((len(batch), longest), dtype=np.int64)
        for row, index in enumerate(batch):
            input_ids[row, : len(sequences[index])] = sequences[index]
            attention_mask[row, : len(sequences[index])] = 1
        outputs = model(input_ids, attention_mask)
        for row, index in enumerate(batch):
            rows[index] = {name: values[row] for name, values in outputs.items()}
    return rows
