"""The checks on a batch that every backend makes, on shapes and on numbers, with one wording."""

from __future__ import annotations

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
    if (batch[1] or 0) > config.max_position_embeddings and position_ids is None:
        raise InputError(
            f"a sequence of {batch[1]} tokens is longer than max_position_embeddings="
            f"{config.max_position_embeddings}; truncate it (tokenizer: truncation=True, max_length="
            f"{config.max_position_embeddings}) or resize_position_embeddings"
        )
    if attention_mask is not None and not _may_equal(attention_mask, batch):
        raise InputError(f"attention_mask has shape {attention_mask}, expected {batch} like the input")
    for name, shape in (("position_ids", position_ids), ("token_type_ids", token_type_ids)):
        if shape is not None and not any(_may_equal(shape, (rows, batch[1])) for rows in (1, batch[0])):
            raise InputError(f"{name} has shape {shape}, expected {batch} like the input, or one row")


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
