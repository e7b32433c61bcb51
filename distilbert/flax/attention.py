"""Scaled dot-product attention over the tokens that a mask leaves visible.

B batch, H heads, L length (Q of queries), K size of a head.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array


def visible_tokens(attention_mask: Array) -> Array:
    """Turn a mask of 1 for tokens and 0 for padding, (B, L), into what attention takes: bool (B, 1, 1, L).

    A row with no token at all sees everything: its outputs mean nothing, but are finite in every dtype.
    """
    visible_BL = attention_mask != 0
    visible_BL = visible_BL | ~visible_BL.any(-1, keepdims=True)
    return visible_BL[:, None, None, :]


def eager_attention(
    query_BHQK: Array,
    key_BHLK: Array,
    value_BHLK: Array,
    visible: Array | None,
    dropout: Callable[[Array], Array],
    head_mask: Array | None = None,
) -> tuple[Array, Array]:
    """Attention spelled out: returns the context (B, H, Q, K) and the probabilities (B, H, Q, L)."""
    score_BHQL = (query_BHQK * query_BHQK.shape[-1] ** -0.5) @ key_BHLK.swapaxes(-1, -2)
    if visible is not None:
        score_BHQL = jnp.where(visible, score_BHQL, jnp.finfo(score_BHQL.dtype).min)
    wide = jnp.promote_types(score_BHQL.dtype, jnp.float32)
    probability_BHQL = jax.nn.softmax(score_BHQL.astype(wide)).astype(score_BHQL.dtype)
    probability_BHQL = dropout(probability_BHQL)
    if head_mask is not None:
        probability_BHQL = probability_BHQL * head_mask
    return probability_BHQL @ value_BHLK, probability_BHQL
