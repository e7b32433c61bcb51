"""Scaled dot-product attention over the tokens that a mask leaves visible, in padded batches and in packed ones.

A packed batch has no padding: the tokens of its sequences lie end to end, and ``cu_seqlens`` says where each begins,
as for FlashAttention (Dao 2023, https://arxiv.org/abs/2307.08691).

B batch, H heads, L length (Q of queries), K size of a head, N sequences of T tokens together, of which S ask.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.util import find_spec
from itertools import groupby, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# PyTorch's kernel for CPUs takes exponentials of 16 scores at a time, and of those behind the last 16 one by one, which
# costs more from so many on than scores of keys that a mask hides (measured: docs/performance.md).
SCORES, FEW = 16, 4
IMPLEMENTATIONS = ("sdpa", "flash_attention_2", "eager")
HAS_VARLEN = find_spec("torch.nn.attention.varlen") is not None  # since PyTorch 2.10


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


@dataclass(frozen=True)
class Sequences:
    """Where the sequences of a packed batch lie.

    Args:
        cu_seqlens: int32 (N + 1,), on the device of the tokens: where each sequence begins, and the last one ends.
        longest: at least the length of the longest.
        reads_on: read the keys of the next sequence too where that is faster; they are hidden, but for being no number.
    """

    cu_seqlens: Tensor
    longest: int
    reads_on: bool = False

    @classmethod
    def of_rectangle(cls, shape: torch.Size, device: torch.device) -> Sequences:
        """All tokens of a batch of that shape (B, L), one row after the other."""
        rows, length = shape
        return cls(torch.arange(0, (rows + 1) * length, length, dtype=torch.int32, device=device), length)

    @property
    def first_tokens(self) -> Tensor:
        """The place (N,) of each sequence's first token."""
        return self.cu_seqlens[:-1]

    @cached_property
    def runs(self) -> list[tuple[int, int, int]]:
        """Neighbours of equal length: how many, how long, and how many keys to read for each. Waits for the device."""
        lengths = self.cu_seqlens.diff().tolist()
        found, begin, total = [], 0, sum(lengths)
        for length, run in groupby(lengths):
            count = len(list(run))
            keys = keys_to_read(length) if self.reads_on else length
            # The windows of the last must not go on behind the last token.
            reading = min(count, (total - begin - keys) // length + 1) if keys > length and begin + keys <= total else 0
            found += [(reading, length, keys)] if reading else []
            found += [(count - reading, length, length)] if reading < count else []
            begin += count * length
        return found

    def split(self, count: int) -> Iterator[tuple[slice, Sequences]]:
        """At most ``count`` parts of about as many tokens: where each lies, and its sequences, all of them whole."""
        ends = self.cu_seqlens.tolist()
        cuts = [bisect_left(ends, ends[-1] * number / count) for number in range(1, count)]
        for start, stop in pairwise(sorted({0, *cuts, len(ends) - 1})):
            part = self.cu_seqlens[start : stop + 1]
            yield slice(ends[start], ends[stop]), replace(self, cu_seqlens=part - part[0])

    def positions(self, count: int) -> Tensor:
        """The place (T,) of each of the ``count`` tokens in its sequence."""
        places_T = torch.arange(count, device=self.cu_seqlens.device)
        return places_T - self.first_tokens.repeat_interleave(self.cu_seqlens.diff(), output_size=count)


@dataclass(frozen=True)
class Packing:
    """The visible tokens of a padded batch end to end, shorter sequences first, and the way back.

    Args:
        sequences: what lies where.
        places: (T,) of each token in the padded batch, its rows one after the other.
        rows: (N,) where each row of the padded batch has gone.
        shape: (B, L).
    """

    sequences: Sequences
    places: Tensor
    rows: Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, visible_BL: Tensor) -> Packing:
        """Pack what is visible. Rows of equal length become neighbours, which attention takes together."""
        lengths_N, order_N = visible_BL.sum(-1).sort(stable=True)
        row_T, column_T = visible_BL[order_N].nonzero(as_tuple=True)
        cu_seqlens = F.pad(lengths_N.cumsum(0), (1, 0)).int()
        rows, length = visible_BL.shape
        return cls(
            Sequences(cu_seqlens, int(lengths_N[-1])),
            order_N[row_T] * length + column_T,
            order_N.argsort(),
            (rows, length),
        )

    def pack(self, values_BL: Tensor) -> Tensor:
        """Values (T, …) of the tokens, from those of a padded batch (B, L, …) or of one row for all (1, L, …)."""
        return values_BL.expand(*self.shape, *values_BL.shape[2:]).flatten(0, 1)[self.places]

    def unpack(self, values_T: Tensor, fill: float = 0.0) -> Tensor:
        """The padded batch (B, L, …) of values (T, …), and ``fill`` where no token is."""
        rows, length = self.shape
        padded = values_T.new_full((rows * length, *values_T.shape[1:]), fill)
        return padded.index_copy(0, self.places, values_T).unflatten(0, (rows, length))

    def unpack_rows(self, values_N: Tensor) -> Tensor:
        """Values of whole sequences (N, …) in the order of the padded batch."""
        return values_N[self.rows]


def keys_to_read(length: int) -> int:
    """With how many keys attention on a CPU is fastest, where only ``length`` of them count."""
    return length + (-length % SCORES if length % SCORES >= FEW else 0)


@cache
def hide_behind(length: int, keys: int, dtype: torch.dtype) -> Tensor:
    """What to add to the scores (1, 1, 1, ``keys``) so that those behind ``length`` do not count."""
    with torch.inference_mode(False):  # it will be used outside as well
        added = torch.zeros(1, 1, 1, keys, dtype=dtype, device="cpu")
        added[..., length:] = -torch.inf
        return added


def packed_attention(
    query_SHK: Tensor,
    key_THK: Tensor,
    value_THK: Tensor,
    sequences: Sequences,
    first_token_only: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """The context (S, H, K) of a packed batch, where every token sees its own sequence.

    S is T, or N with ``first_token_only``, when a single token of each sequence asks. On CPUs more may ask, all of
    them copies of the last that does.
    """
    kernel = varlen_kernel() if can_be_flash(query_SHK) and not dropout else None
    if kernel is not None:
        cu_seqlens_q, longest_q = sequences.cu_seqlens, sequences.longest
        if first_token_only:
            cu_seqlens_q = torch.arange(len(cu_seqlens_q), dtype=torch.int32, device=query_SHK.device)
            longest_q = 1
        both = (cu_seqlens_q, sequences.cu_seqlens, longest_q, sequences.longest)
        return kernel(query_SHK, key_THK, value_THK, *both)
    contexts = []
    query_begin = begin = 0
    for number, (count, length, keys) in enumerate(sequences.runs, 1):
        asking = count if first_token_only else count * length
        if count == 1 and number == len(sequences.runs):  # copies of its last token may ask with it
            asking = len(query_SHK) - query_begin
        query_NHQK = query_SHK[query_begin : query_begin + asking].unflatten(0, (count, -1)).transpose(1, 2)
        parts = (whole[begin : begin + (count - 1) * length + keys] for whole in (key_THK, value_THK))
        if keys > length:  # windows that overlap
            key_NHLK, value_NHLK = (part.unfold(0, keys, length).transpose(2, 3) for part in parts)
            visible = hide_behind(length, keys, query_SHK.dtype)
        else:
            key_NHLK, value_NHLK = (part.unflatten(0, (count, length)).transpose(1, 2) for part in parts)
            visible = None
        context_NHQK = sdpa_attention(query_NHQK, key_NHLK, value_NHLK, visible, dropout)
        contexts.append(context_NHQK.transpose(1, 2).flatten(0, 1))
        query_begin += asking
        begin += count * length
    if missing := len(query_SHK) - query_begin:  # see products.fill_up
        contexts.append(contexts[-1][-1:].expand(missing, -1, -1))
    return contexts[0] if len(contexts) == 1 else torch.cat(contexts)


def fused_attention(
    query_BQHK: Tensor,
    key_BLHK: Tensor,
    value_BLHK: Tensor,
    visible: Tensor | Sequences | None,
    first_token_only: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """The context (B, Q, H, K) of a padded batch and what is visible of it, or of a packed one and its sequences."""
    if isinstance(visible, Sequences):
        return packed_attention(query_BQHK, key_BLHK, value_BLHK, visible, first_token_only, dropout)
    query_BHQK, key_BHLK, value_BHLK = (each.transpose(1, 2) for each in (query_BQHK, key_BLHK, value_BLHK))
    return sdpa_attention(query_BHQK, key_BHLK, value_BHLK, visible, dropout).transpose(1, 2)


def first_tokens(value_BLD: Tensor, visible: Tensor | Sequences | None) -> Tensor:
    """The vectors (B, 1, D) of each text's first token, of a packed batch (N, D)."""
    return value_BLD[visible.first_tokens] if isinstance(visible, Sequences) else value_BLD[:, :1]


def can_be_flash(query: Tensor) -> bool:
    """Whether FlashAttention-2 takes heads of this type and size, here."""
    return (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 256
        and torch.cuda.get_device_properties(query.device).major >= 8
    )


def varlen_kernel() -> Callable[..., Any] | None:
    """FlashAttention over sequences of different length, where this PyTorch has it."""
    if not HAS_VARLEN:
        return None
    from torch.nn.attention.varlen import varlen_attn  # here, as it imports PyTorch's compiler, for seconds

    return varlen_attn
