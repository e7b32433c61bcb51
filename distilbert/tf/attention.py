"""Scaled dot-product attention over the tokens that a mask leaves visible.

B batch, H heads, L length (Q of queries), K size of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import ml_dtypes
from keras import ops

Tensor = Any  # of whichever framework Keras runs on


def visible_tokens(attention_mask: Tensor) -> Tensor:
    """Turn a mask of 1 for tokens and 0 for padding, (B, L), into what attention takes: bool (B, 1, 1, L).

    A row with no token at all sees everything: its outputs mean nothing, but are finite in every dtype.
    """
    visible_BL = ops.not_equal(attention_mask, 0)
    visible_BL = ops.logical_or(visible_BL, ops.logical_not(ops.any(visible_BL, -1, keepdims=True)))
    return visible_BL[:, None, None, :]


def eager_attention(
    query_BHQK: Tensor,
    key_BHLK: Tensor,
    value_BHLK: Tensor,
    visible: Tensor | None,
    dropout: Callable[[Tensor], Tensor],
    head_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention spelled out: returns the context (B, H, Q, K) and the probabilities (B, H, Q, L)."""
    score_BHQL = ops.matmul(query_BHQK * query_BHQK.shape[-1] ** -0.5, ops.transpose(key_BHLK, (0, 1, 3, 2)))
    if visible is not None:
        # Added, not selected: oneDNN does it within the product. What is hidden may become -inf, which is no
        # harm beside at least one visible token.
        lowest = float(ml_dtypes.finfo(keras.backend.standardize_dtype(score_BHQL.dtype)).min)
        score_BHQL = score_BHQL + ops.cast(ops.where(visible, 0.0, lowest), score_BHQL.dtype)
    probability_BHQL = dropout(ops.softmax(score_BHQL))
    if head_mask is not None:
        probability_BHQL = probability_BHQL * head_mask
    return ops.matmul(probability_BHQL, value_BHLK), probability_BHQL
