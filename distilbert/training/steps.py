"""The batches of a training run, step by step: the same whatever the number of devices, and from any step on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from distilbert.core.errors import ConfigError
from distilbert.distillation.batches import LengthGroupedBatches
from distilbert.training.settings import Settings

Batch = dict[str, np.ndarray]


class Source(Protocol):
    """Where batches come from."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence (N,)."""

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> Batch:
        """The sequences of these numbers as arrays with a leading B; ``rng`` decides what is random about them."""

    def terms(self, batch: Batch) -> dict[str, int]:
        """For each mean that the losses take over a batch, of how many terms."""


class Part(NamedTuple):
    """Rows of a step's batch that are computed at once.

    Losses are means over a part. Weighed with its shares of all that the means of the whole batch are taken over, they
    add up to those, however many parts and devices there are.
    """

    arrays: Batch
    shares: dict[str, float]


class Step(NamedTuple):
    """What one update is made from."""

    number: int  # from 0
    epoch: int
    indices: np.ndarray  # of the sequences
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

    Raises:
        ConfigError: batches smaller than the number of parts.
    """

    def __init__(self, source: Source, settings: Settings, parts: int) -> None:
        self.source, self.seed, self.parts = source, settings.seed, parts
        for name in ("batch_size", "max_tokens"):
            size = getattr(settings, name)
            if size is not None and size < parts:
                raise ConfigError(f"{name} is {size}, expected at least {parts}: a share for each of so many parts")
        self.batches = LengthGroupedBatches(
            source.lengths, batch_size=settings.batch_size, max_tokens=settings.max_tokens, seed=settings.seed
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
        return Step(number, epoch, indices, split(batch, self.parts, self.source))


def split(batch: Batch, count: int, source: Source) -> list[Part]:
    """A batch as parts of about as many rows; where it has fewer rows than that, some are copies without a share."""
    whole = source.terms(batch)
    rows = len(batch["attention_mask"])
    parts = []
    for number in range(count):
        first, last = (rows * edge // count for edge in (number, number + 1))
        arrays = {name: array[first : max(last, first + 1)] for name, array in batch.items()}
        terms = source.terms(arrays) if first < last else dict.fromkeys(whole, 0)
        parts.append(Part(arrays, {name: value / max(1, whole[name]) for name, value in terms.items()}))
    return parts
