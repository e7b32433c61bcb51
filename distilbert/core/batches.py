"""How much a backend is given at a time."""

from __future__ import annotations

# On CPUs larger batches fall out of the caches: docs/measurements.md. Accelerators want all their cores busy.
TOKENS_ON_CPU = 1024
TOKENS_ON_ACCELERATOR = 65536
VOCABULARY_SHARE = 8  # a masked LM gives a number for each word of the vocabulary, not a few dozen


def batch_rows(length: int, head: str, is_on_cpu: bool) -> int:
    """How many sequences of ``length`` tokens make a batch that runs fast, and fits."""
    tokens = TOKENS_ON_CPU if is_on_cpu else TOKENS_ON_ACCELERATOR
    if head in ("masked-lm", "pretraining") and not is_on_cpu:
        tokens //= VOCABULARY_SHARE
    return max(1, tokens // length)
