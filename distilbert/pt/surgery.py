"""Changing the size of a trained model. The axes of the spec say which parameters a change touches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from distilbert.core import surgery
from distilbert.core.spec import parameters
from distilbert.pt.parameters import initialize, replace_value

if TYPE_CHECKING:
    from distilbert.pt.model import PreTrainedModel


def resize_token_embeddings(
    model: PreTrainedModel, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
) -> nn.Embedding:
    """Change the vocabulary's size: known rows stay, new ones are initialised, a masked LM's output follows.

    Args:
        model: changed in place; its config too. Optimisers made before hold the old parameters.
        new_num_tokens: rows wanted, by default as many as there are.
        pad_to_multiple_of: round up to a multiple, for the matrix units of GPUs.

    Returns:
        The word embeddings.

    Raises:
        InputError: a size below 1. ConfigError: one that cuts off the padding token.
    """
    _resize(model, "vocab_size", surgery.token_count(model.config, new_num_tokens, pad_to_multiple_of))
    return model.get_input_embeddings()


def resize_position_embeddings(model: PreTrainedModel, new_num_position_embeddings: int) -> nn.Embedding:
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
    for parameter in parameters(model.config, model.head, model.family):
        if "attention_size" not in parameter.axes or parameter.layer not in heads_to_prune:
            continue
        old = model.get_parameter(parameter.name)
        rows = torch.from_numpy(surgery.kept_rows(parameter, model.config, changed)).to(old.device)
        axis = parameter.axes.index("attention_size")
        replace_value(model, parameter.name, old.detach().index_select(axis, rows))
    model.config.pruned_heads = changed.pruned_heads


def _resize(model: PreTrainedModel, axis: str, size: int) -> None:
    """Give every parameter that has ``axis`` another length of it, and keep the values there is room for."""
    changed = surgery.resized(model.config, axis, size)
    for parameter in parameters(changed, model.head, model.family):
        if axis not in parameter.axes or parameter.tied_to is not None:
            continue
        old = model.get_parameter(parameter.name).detach()
        new = old.new_empty(parameter.shape)
        initialize(new, parameter, changed)
        kept = tuple(slice(min(pair)) for pair in zip(old.shape, new.shape, strict=True))
        new[kept] = old[kept]
        replace_value(model, parameter.name, new)
    setattr(model.config, axis, size)
    model.tie_weights()
