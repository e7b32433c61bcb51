"""How far apart backends may be: the one table. Issue 5 set the numbers."""

from __future__ import annotations

from math import inf, isfinite

# The largest difference from the reference and between any two backends, in units of the largest value where that
# is more than 1. By device; on CUDA without TF32.
FLOAT32 = {"cpu": 1e-5, "cuda": 2e-5}
# Lower precision: how much worse than the worst of the other frameworks a backend's typical error (root mean square,
# against float64) may be. The largest error would be chance, and so would be that of a loss, which is one number.
RATIO = 1.5
LEAST = 200  # numbers, of which fewer have no typical error
# What training in two backends from the same start may lead to: the difference of the losses at each step, and of
# the final weights, relative to the largest of a parameter.
TRAINED_LOSS = 1e-4
TRAINED_WEIGHTS = 1e-3


def float32_bound(device: str) -> float:
    """The bound on a device such as ``"cpu"`` or ``"cuda:0"``."""
    return FLOAT32["cpu" if device == "cpu" else "cuda"]


def low_precision_bound(others: list[float], count: int) -> float:
    """The bound on the typical error of ``count`` numbers, given those of other frameworks; infinite without any."""
    usable = [error for error in others if isfinite(error)]  # a NaN is outside itself and says nothing of others
    return RATIO * max(usable, default=inf) if count >= LEAST else inf
