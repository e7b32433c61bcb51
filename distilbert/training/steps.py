"""The batches of a training run, step by step: the same whatever the number of devices, and from any step on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from distilbert.core.errors import ConfigError
from distilbert.distillation.batches import LengthGroupedBatches
from distilbert.training.settings import Settings

Batch = dict[str, np.ndarray]


class Source(Protocol):
    """Where batches come from."""

    buckets: Sequence[int]  # the lengths that they are padded to

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence (N,)."""

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> Batch:
        """The sequences of these numbers as arrays with a leading B; ``rng`` decides what is random about them."""

    def terms(self, batch: Batch) -> dict[str, np.ndarray]:
        """For each mean that the losses take over a batch, how many terms each row has in it (B,)."""


class Part(NamedTuple):
    """Rows of a step's batch that are computed at once.

    Losses are means over the rows at hand. Weighed with the share that these rows have of all terms of the whole
    batch's mean, they add up to that, however many parts and devices there are.
    """

    arrays: Batch
    row_shares: dict[str, np.ndarray]  # (B,)

    @property
    def shares(self) -> dict[str, float]:
        """Those of all rows together."""
        return {name: float(rows.sum()) for name, rows in self.row_shares.items()}


class Step(NamedTuple):
    """What one update is made from."""

    number: int  # from 0
    epoch: int
    indices: np.ndarray  # of the sequences
    terms: dict[str, int]  # that the means over the whole batch have
    parts: list[Part]

    @property
    def tokens(self) -> int:
        """How many there are, without padding."""
        return sum(int(part.arrays["attention_mask"].sum()) for part in self.parts)


class Steps:
    """All steps of a run.

    Args:
        source: where batches come from.
        settings: which sizes they have, how many steps there are, and the seed.
        parts: into how many parts each batch is split.
        buckets: the lengths that it is padded to.

    Raises:
        ConfigError: batches smaller than the number of parts.
    """

    def __init__(self, source: Source, settings: Settings, parts: int, buckets: Sequence[int] = ()) -> None:
        self.source, self.seed, self.parts = source, settings.seed, parts
        source.buckets = buckets
        for name in ("batch_size", "max_tokens"):
            size = getattr(settings, name)
            if size is not None and size < parts:
                raise ConfigError(f"{name} is {size}, expected at least {parts}: a share for each of so many parts")
        self.batches = LengthGroupedBatches(
            source.lengths,
            batch_size=settings.batch_size,
            max_tokens=settings.max_tokens,
            buckets=buckets,
            seed=settings.seed,
        )
        self.per_epoch = len(self.batches)
        self.count = settings.max_steps or max(1, round(settings.epochs * self.per_epoch))

    def __len__(self) -> int:
        return self.count

    def starting(self, first: int) -> Iterator[Step]:
        """The steps from number ``first`` on."""
        for epoch in range(first // self.per_epoch, -(-self.count // self.per_epoch)):
            start = max(0, first - epoch * self.per_epoch)
            for number, indices in enumerate(self.batches.epoch(epoch, start), epoch * self.per_epoch + start):
                if number == self.count:
                    return
                yield self.step(number, epoch, indices)

    def step(self, number: int, epoch: int, indices: np.ndarray) -> Step:
        """One step. What is random about it follows from the seed and its number."""
        batch = self.source.batch(indices, np.random.default_rng([self.seed, number]))
        terms = self.source.terms(batch)
        totals = {name: int(rows.sum()) for name, rows in terms.items()}
        return Step(number, epoch, indices, totals, split(batch, terms, self.parts))


def split(batch: Batch, terms: dict[str, np.ndarray], count: int) -> list[Part]:
    """A batch as parts of about as many rows; where it has fewer rows than that, some are copies without a share."""
    shares = {name: rows / max(1, rows.sum()) for name, rows in terms.items()}
    rows = len(batch["attention_mask"])
    parts = []
    for number in range(count):
        first, last = (rows * edge // count for edge in (number, number + 1))
        taken = slice(first, max(last, first + 1))
        arrays = {name: array[taken] for name, array in batch.items()}
        parts.append(Part(arrays, {name: share[taken] * (last > first) for name, share in shares.items()}))
    return parts
