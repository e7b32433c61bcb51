"""The checks on a batch that every backend makes, on shapes and on numbers, with one wording."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from distilbert.core.config import Config
from distilbert.core.errors import InputError

Shape = tuple[int | None, ...]  # None while a graph is traced: not known yet


def as_array(name: str, value: Any) -> Any:
    """Nested lists of numbers as an array, anything else as it is.

    Raises:
        InputError: the lists have different lengths.
    """
    if not isinstance(value, (list, tuple)):
        return value
    try:
        return np.asarray(value)
    except ValueError:
        raise InputError(f"{name} has rows of different lengths; pad them (tokenizer: padding=True)") from None


def check_shapes(
    input_ids: Shape | None,
    attention_mask: Shape | None,
    inputs_embeds: Shape | None,
    position_ids: Shape | None,
    token_type_ids: Shape | None = None,
    *,
    config: Config,
) -> None:
    """Check what can be told from shapes alone, so also while a graph is traced.

    Raises:
        InputError: neither or both inputs, wrong rank or width, too long, or a mask that does not fit.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise InputError("expected exactly one of input_ids and inputs_embeds")
    if inputs_embeds is not None:
        if len(inputs_embeds) != 3 or inputs_embeds[2] != config.hidden_size:
            raise InputError(f"inputs_embeds has shape {inputs_embeds}, expected (batch, length, {config.hidden_size})")
        batch = inputs_embeds[:2]
    else:
        assert input_ids is not None
        if len(input_ids) != 2:
            raise InputError(f"input_ids has shape {input_ids}, expected (batch, length)")
        batch = input_ids
    if batch[1] == 0:
        raise InputError(f"the input has shape {batch}, expected at least one token in a row")
    if (batch[1] or 0) > config.max_position_embeddings and position_ids is None:
        raise InputError(too_long_message(batch[1], config.max_position_embeddings))
    if attention_mask is not None and not _may_equal(attention_mask, batch):
        raise InputError(f"attention_mask has shape {attention_mask}, expected {batch} like the input")
    for name, shape in (("position_ids", position_ids), ("token_type_ids", token_type_ids)):
        if shape is not None and not any(_may_equal(shape, (rows, batch[1])) for rows in (1, batch[0])):
            raise InputError(f"{name} has shape {shape}, expected {batch} like the input, or one row")


def too_long_message(length: int | None, limit: int) -> str:
    """What to say of a sequence that is longer than the position table."""
    return (
        f"a sequence of {length} tokens is longer than max_position_embeddings={limit}; truncate it (tokenizer: "
        f"truncation=True, max_length={limit}) or resize_position_embeddings"
    )


def check_packed_shapes(
    input_ids: Shape | None,
    attention_mask: Shape | None,
    inputs_embeds: Shape | None,
    position_ids: Shape | None,
    token_type_ids: Shape | None,
    cu_seqlens: Shape | None,
    *,
    config: Config,
) -> None:
    """Check what can be told from the shapes of a packed batch, whose sequences lie end to end.

    Raises:
        InputError: neither or both inputs, wrong rank or width, or with a mask.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise InputError("expected exactly one of input_ids and inputs_embeds")
    if attention_mask is not None:
        raise InputError("expected one of attention_mask and cu_seqlens: a packed batch has no padding")
    if inputs_embeds is not None and (len(inputs_embeds) != 2 or inputs_embeds[1] != config.hidden_size):
        raise InputError(f"inputs_embeds has shape {inputs_embeds}, expected (tokens, {config.hidden_size})")
    if cu_seqlens is None or len(cu_seqlens) != 1:
        raise InputError(f"cu_seqlens has shape {cu_seqlens}, expected (sequences + 1,)")
    tokens = inputs_embeds[:1] if inputs_embeds is not None else input_ids
    for name, shape in (("input_ids", input_ids), ("position_ids", position_ids), ("token_type_ids", token_type_ids)):
        if shape is not None and (len(shape) != 1 or not _may_equal(shape, tokens or ())):
            raise InputError(f"{name} has shape {shape}, expected (tokens,) in a packed batch")


def check_cu_seqlens(values: list[int], tokens: int, limit: int) -> int:
    """Check where the sequences of a packed batch begin and end, and find the length of the longest.

    Raises:
        InputError: they do not rise from 0 to the number of ``tokens``, or one is longer than ``limit``.
    """
    lengths = [end - begin for begin, end in pairwise(values)]
    if not lengths or values[0] != 0 or values[-1] != tokens or min(lengths) < 1:
        shown = str(values) if len(values) <= 8 else f"[{values[0]}, {values[1]}, …, {values[-1]}]"
        raise InputError(f"cu_seqlens is {shown}, expected to rise from 0 to {tokens}, the number of tokens")
    if max(lengths) > limit:
        raise InputError(too_long_message(max(lengths), limit))
    return max(lengths)


def _may_equal(shape: Shape, other: Shape) -> bool:
    return len(shape) == len(other) and all(a == b or None in (a, b) for a, b in zip(shape, other, strict=True))


def check_integers(name: str, dtype: str) -> None:
    """Check that ids have a type of integers.

    Raises:
        InputError: they have another.
    """
    if dtype not in ("int32", "int64", "int16", "int8", "uint8", "uint16", "uint32"):
        raise InputError(f"{name} has dtype {dtype}, expected int32 or int64")


def range_message(name: str, limit: int, found: int | None = None) -> str:
    """What to say of ids that are not rows of a table of ``limit`` rows, where known with the one ``found``."""
    message = (
        f"{name} has {'a value out of range' if found is None else f'the value {found}'}, expected 0 to {limit - 1}"
    )
    if name == "input_ids":
        return f"{message} (vocab_size={limit}); the tokenizer and the model may not belong together"
    if name == "position_ids":
        return f"{message} (max_position_embeddings={limit}); truncate the text or resize_position_embeddings"
    if name == "token_type_ids":
        return f"{message} (type_vocab_size={limit})"
    return f"{message}, or -100 where none counts"


def check_range(name: str, low: int, high: int, limit: int) -> None:
    """Check that ids, from ``low`` to ``high``, are rows of a table of ``limit`` rows.

    Raises:
        InputError: one of them is not.
    """
    if low < 0 or high >= limit:
        raise InputError(range_message(name, limit, low if low < 0 else high))


def check_head_mask(shape: Shape, config: Config) -> None:
    """Check a head mask that already has a row for each layer.

    Raises:
        InputError: it has another shape.
    """
    expected = (config.num_hidden_layers, config.num_attention_heads)
    is_whole = not config.pruned_heads and None not in shape
    if len(shape) != 2 or shape[0] != expected[0] or (is_whole and shape[1] != expected[1]):
        raise InputError(f"head_mask has shape {shape}, expected {expected[1:]} or {expected}")
