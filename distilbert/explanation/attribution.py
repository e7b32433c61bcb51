"""Integrated gradients (Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365): what each token adds to an output.

L length, D model, S steps, R steps at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def integrated_gradients(
    gradient: Callable[[np.ndarray], np.ndarray],
    vectors_LD: np.ndarray,
    baseline_LD: np.ndarray,
    *,
    steps: int,
    rows: int,
) -> np.ndarray:
    """Share what a function gains on the way from a baseline to a text out among the text's tokens.

    Args:
        gradient: from points float32 (R, L, D) to the function's gradients there, of the same shape.
        vectors_LD: the text's word vectors.
        baseline_LD: those of the text that says nothing.
        steps: at how many points of the straight line between the two gradients are taken.
        rows: how many points ``gradient`` is given at a time, always as many.

    Returns:
        float64 (L,), whose sum is the function's value at the text less that at the baseline, but for the error of
        the quadrature.
    """
    # Gauss-Legendre: between the kinks of a ReLU the network is smooth, where this beats any even spacing.
    places_S, weights_S = np.polynomial.legendre.leggauss(steps)
    # Points that count nothing fill the last batch, because JAX compiles for every shape.
    filling = (0, -steps % rows)
    places_S, weights_S = np.pad((places_S + 1) / 2, filling), np.pad(weights_S / 2, filling)
    way_LD = vectors_LD.astype(np.float64) - baseline_LD
    mean_LD = np.zeros_like(way_LD)
    for start in range(0, len(places_S), rows):
        some = slice(start, start + rows)
        points_RLD = baseline_LD + places_S[some, None, None] * way_LD
        mean_LD += np.tensordot(weights_S[some], gradient(points_RLD.astype(np.float32)).astype(np.float64), 1)
    return (way_LD * mean_LD).sum(-1)
