"""What resizing and pruning mean, before any framework does it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from distilbert.core.config import Config
from distilbert.core.errors import InputError
from distilbert.core.spec import Layout, Parameter


def token_count(config: Config, new_num_tokens: int | None, pad_to_multiple_of: int | None) -> int:
    """The size that a vocabulary is to get: by default its own, rounded up where asked.

    Raises:
        InputError: a multiple below 1.
    """
    count = config.vocab_size if new_num_tokens is None else new_num_tokens
    if pad_to_multiple_of is None:
        return count
    if pad_to_multiple_of < 1:
        raise InputError(f"pad_to_multiple_of is {pad_to_multiple_of}, expected at least 1")
    return -(-count // pad_to_multiple_of) * pad_to_multiple_of


def resized(config: Config, axis: str, size: int) -> Config:
    """The config with another length of ``axis``.

    Raises:
        InputError: a size below 1. ConfigError: one that cuts off the padding token.
    """
    if not isinstance(size, int) or size < 1:
        raise InputError(f"{axis} cannot become {size!r}, expected an integer of at least 1")
    return config.from_dict(config.to_dict(), **{axis: size})


def pruned(config: Config, heads_to_prune: Mapping[int, list[int]]) -> Config:
    """The config without the heads named, counted as before any pruning, and without those pruned earlier.

    Raises:
        ConfigError: a layer or head that does not exist, or all heads of a layer.
    """
    before = config.pruned_heads
    after = {layer: sorted({*before.get(layer, ()), *heads}) for layer, heads in heads_to_prune.items()}
    return config.from_dict(config.to_dict(), pruned_heads=before | after)


def kept_rows(parameter: Parameter, before: Config, after: Config) -> np.ndarray:
    """Which places along the ``attention_size`` axis of a layer's ``parameter`` outlive the pruning."""
    assert parameter.layer is not None
    head_size = before.hidden_size // before.num_attention_heads
    gone = after.pruned_heads.get(parameter.layer, ())
    present = [h for h in range(before.num_attention_heads) if h not in before.pruned_heads.get(parameter.layer, ())]
    kept = [place for place, head in enumerate(present) if head not in gone]
    return (np.asarray(kept)[:, None] * head_size + np.arange(head_size)).ravel()


def pruned_values(parameter: Parameter, old: np.ndarray, layout: Layout, before: Config, after: Config) -> np.ndarray:
    """What pruning leaves of a parameter's values, which lie as ``layout`` says."""
    if "attention_size" not in parameter.axes:
        return old
    axes = parameter.axes[::-1] if layout.is_transposed(parameter) else parameter.axes
    return np.take(old, kept_rows(parameter, before, after), axes.index("attention_size"))


def resized_values(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """The initial values ``new`` with those of ``old`` that there is room for."""
    kept = tuple(slice(min(pair)) for pair in zip(old.shape, new.shape, strict=True))
    result = np.array(new)
    result[kept] = old[kept]
    return result
