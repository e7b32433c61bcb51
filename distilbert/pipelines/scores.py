"""From logits to probabilities, and to the best of them."""

from __future__ import annotations

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Of each number."""
    with np.errstate(over="ignore"):  # exp overflows to infinity, whose reciprocal is the right 0
        return 1 / (1 + np.exp(-logits))


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Where the ``count`` largest of some numbers (N,) are, the largest first; all where there are fewer."""
    count = min(count, len(values))
    found = np.sort(np.argpartition(-values, count - 1)[:count])
    return found[np.argsort(-values[found], kind="stable")]
