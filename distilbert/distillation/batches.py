"""Batches of sequences of about one length, shared out among ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from distilbert.core.errors import InputError

LENGTH_STEP = 8  # lengths in between count as one, so that batches mix more, and are the widths that GPUs like


class LengthGroupedBatches:
    """Which sequences make a batch, for each step of each epoch.

    In an epoch every sequence is in exactly one batch of one rank, and all ranks have equally many batches, none of
    them empty. To that end the sequences are shuffled, sorted by length, and cut into steps, one batch for each rank,
    from the longest to the shortest; the steps then come in random order. What is left at the end makes a smaller step,
    or where it is less than a sequence for each rank, the last two steps share all of theirs evenly: so at most two
    batches of a rank are smaller than the others of their length.

    Args:
        lengths: tokens of each sequence (N,).
        batch_size: sequences in a batch; or
        max_tokens: tokens of a batch, once it is padded.
        buckets: the lengths that it is padded to; without any, to a multiple of 8.
        rank: which of the processes this is.
        world_size: how many processes there are.
        seed: decides, together with the number of the epoch; it must be the same for all ranks.

    Raises:
        InputError: contradictory arguments, or too few sequences for so many ranks.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        batch_size: int | None = None,
        max_tokens: int | None = None,
        buckets: Sequence[int] = (),
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
    ) -> None:
        if (batch_size is None) == (max_tokens is None):
            raise InputError("expected either batch_size or max_tokens")
        if not 0 <= rank < world_size:
            raise InputError(f"rank is {rank}, expected 0 to {world_size - 1}, below world_size")
        self.rank, self.world_size, self.seed = rank, world_size, seed
        lengths = np.asarray(lengths, np.int64)
        widths = -(-lengths // LENGTH_STEP)
        # What to sort by: the longest first. numpy sorts 16 bits in linear time.
        self._keys = widths.max(initial=0) - widths
        if self._keys.max(initial=0) < 1 << 16:
            self._keys = self._keys.astype(np.uint16)
        # The last bucket, the model's limit, need not be a multiple.
        rounded = np.minimum(np.sort(widths)[::-1] * LENGTH_STEP, lengths.max(initial=0))
        self._starts = self._cut(rounded, batch_size, max_tokens, buckets)

    def _cut(
        self, widths: np.ndarray, batch_size: int | None, max_tokens: int | None, buckets: Sequence[int]
    ) -> np.ndarray:
        """Where steps begin in the order of lengths, which is the same in all epochs, and where the last ends."""
        longest = padded_length(int(widths.max(initial=0)), buckets)
        if max_tokens is not None and longest > max_tokens:
            raise InputError(f"max_tokens is {max_tokens}, expected at least {longest} for the longest sequence")
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size is {batch_size}, expected at least 1")
        starts = [0]
        while starts[-1] < len(widths):
            width = padded_length(int(widths[starts[-1]]), buckets)
            rows = batch_size or 1 if max_tokens is None else max_tokens // width
            starts.append(min(starts[-1] + self.world_size * rows, len(widths)))
        if len(starts) > 1 and starts[-1] - starts[-2] < self.world_size:
            first = starts[-3] if len(starts) > 2 else 0
            if starts[-1] - first < 2 * self.world_size:
                raise InputError(
                    f"{len(widths)} sequences cannot be shared out among {self.world_size} ranks in equally many "
                    "batches; expected more sequences, or larger batches"
                )
            starts[-2] = (first + starts[-1]) // 2
        return np.array(starts)

    def __len__(self) -> int:
        """How many batches each rank has in an epoch."""
        return len(self._starts) - 1

    def epoch(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        """This rank's batches of an epoch from step ``start`` on, as indices of sequences (B,).

        Going on in the middle costs one shuffling of the indices, and no reading.
        """
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self._keys))
        order = order[np.argsort(self._keys[order], kind="stable")]
        for step in rng.permutation(len(self))[start:]:
            members = order[self._starts[step] : self._starts[step + 1]]
            first, last = (len(members) * rank // self.world_size for rank in (self.rank, self.rank + 1))
            yield members[first:last]


def padded_length(longest: int, buckets: Sequence[int]) -> int:
    """The first of ``buckets``, which rise, that is long enough; without any a multiple of 8."""
    return next((bucket for bucket in buckets if bucket >= longest), -(-longest // LENGTH_STEP) * LENGTH_STEP)


def collate(
    sequences: Sequence[np.ndarray], pad_token_id: int, pad_to_multiple_of: int = LENGTH_STEP
) -> dict[str, np.ndarray]:
    """One batch of sequences, padded behind to the longest, and on to a multiple; for JAX see ``pad_to_bucket``.

    Returns:
        ``input_ids`` and ``attention_mask``, int64 (B, L).
    """
    lengths = np.array([len(sequence) for sequence in sequences])
    width = -(-int(lengths.max(initial=0)) // pad_to_multiple_of) * pad_to_multiple_of
    attention_mask = (np.arange(width) < lengths[:, None]).astype(np.int64)
    input_ids = np.full(attention_mask.shape, pad_token_id, np.int64)
    for row, sequence in zip(input_ids, sequences, strict=True):
        row[: len(sequence)] = sequence
    return {"input_ids": input_ids, "attention_mask": attention_mask}
