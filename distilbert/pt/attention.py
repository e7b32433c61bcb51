"""Scaled dot-product attention over the tokens that a mask leaves visible.

B batch, H heads, L length (Q of queries), K size of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IMPLEMENTATIONS = ("sdpa", "eager")


def visible_tokens(attention_mask: Tensor) -> Tensor:
    """Turn a mask of 1 for tokens and 0 for padding, (B, L), into what attention takes: bool (B, 1, 1, L).

    A row with no token at all sees everything: its outputs mean nothing, but are finite in every dtype.
    """
    visible_BL = attention_mask != 0
    visible_BL = visible_BL | ~visible_BL.any(-1, keepdim=True)
    return visible_BL[:, None, None, :]


def eager_attention(
    query_BHQK: Tensor,
    key_BHLK: Tensor,
    value_BHLK: Tensor,
    visible: Tensor | None,
    dropout: float = 0.0,
    head_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention spelled out: returns the context (B, H, Q, K) and the probabilities (B, H, Q, L)."""
    score_BHQL = (query_BHQK * query_BHQK.shape[-1] ** -0.5) @ key_BHLK.transpose(-1, -2)
    if visible is not None:
        score_BHQL = score_BHQL.masked_fill(~visible, torch.finfo(score_BHQL.dtype).min)
    probability_BHQL = F.dropout(score_BHQL.softmax(-1), dropout)
    if head_mask is not None:
        probability_BHQL = probability_BHQL * head_mask
    return probability_BHQL @ value_BHLK, probability_BHQL


def sdpa_attention(
    query_BHQK: Tensor, key_BHLK: Tensor, value_BHLK: Tensor, visible: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """The same context (B, H, Q, K) from PyTorch's fused kernel, which keeps no probabilities."""
    return F.scaled_dot_product_attention(query_BHQK, key_BHLK, value_BHLK, attn_mask=visible, dropout_p=dropout)
