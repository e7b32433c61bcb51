"""Changing the size of a trained model. The axes of the spec say which parameters a change touches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from flax import nnx

from distilbert.core import surgery
from distilbert.core.config import Config
from distilbert.core.spec import FLAX, Parameter
from distilbert.flax.parameters import attach_part, make_part, variable

if TYPE_CHECKING:
    from distilbert.flax.model import PreTrainedModel


def resize_token_embeddings(
    model: PreTrainedModel, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
) -> nnx.Embed:
    """Change the vocabulary's size: known rows stay, new ones are initialised, a masked LM's output follows.

    Args:
        model: changed in place; its config too. Optimisers made before hold the old parameters; shard it again.
        new_num_tokens: rows wanted, by default as many as there are.
        pad_to_multiple_of: round up to a multiple, for the matrix units of GPUs, or to split the table evenly.

    Returns:
        The word embeddings.

    Raises:
        InputError: a size below 1. ConfigError: one that cuts off the padding token.
    """
    _resize(model, "vocab_size", surgery.token_count(model.config, new_num_tokens, pad_to_multiple_of))
    return model.get_input_embeddings()


def resize_position_embeddings(model: PreTrainedModel, new_num_position_embeddings: int) -> nnx.Embed:
    """Change the longest sequence: known rows stay; new ones are initialised, or sinusoidal by formula.

    Returns:
        The position embeddings.

    Raises:
        InputError: a size below 1.
    """
    _resize(model, "max_position_embeddings", new_num_position_embeddings)
    return model.get_position_embeddings()


def prune_heads(model: PreTrainedModel, heads_to_prune: Mapping[int, list[int]]) -> None:
    """Remove attention heads for good (Michel et al. 2019, https://arxiv.org/abs/1905.10650).

    Args:
        model: changed in place; the config's ``pruned_heads`` says so, and a saved model loads pruned.
        heads_to_prune: layer number to head numbers, counted as before any pruning.

    Raises:
        ConfigError: a layer or head that does not exist, or all heads of a layer.
    """
    changed = surgery.pruned(model.config, heads_to_prune)

    def keep(parameter: Parameter, old: np.ndarray, new: np.ndarray) -> np.ndarray:
        return surgery.pruned_values(parameter, old, FLAX, model.config, changed)

    _rebuild(model, "attention_size", changed, keep)
    model.config.pruned_heads = changed.pruned_heads


def _resize(model: PreTrainedModel, axis: str, size: int) -> None:
    """Give every parameter that has ``axis`` another length of it, and keep the values there is room for."""

    def keep(parameter: Parameter, old: np.ndarray, new: np.ndarray) -> np.ndarray:
        return surgery.resized_values(old, new)

    _rebuild(model, axis, surgery.resized(model.config, axis, size), keep)
    setattr(model.config, axis, size)


def _rebuild(
    model: PreTrainedModel,
    axis: str,
    changed: Config,
    keep: Callable[[Parameter, np.ndarray, np.ndarray], np.ndarray],
) -> None:
    """Make the parts that have ``axis`` anew; ``keep`` makes their values from the old and the initial ones."""
    model.check_has_values()
    for section, rows in model.part_list(changed):
        if not any(axis in row.axes for row in rows):
            continue
        old = section.part(rows[0].role)
        new = make_part(rows, changed, model.precision, model.rngs)
        for row in rows:
            if row.tied_to is None:
                values = keep(row, np.asarray(variable(old, row)[...]), np.asarray(variable(new, row)[...]))
                variable(new, row).set_value(jnp.asarray(values))
        attach_part(section, rows, new)
