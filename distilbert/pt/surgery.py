"""Changing the size of a trained model. The axes of the spec say which parameters a change touches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from distilbert.core.config import DistilBertConfig
from distilbert.core.errors import InputError
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
    count = model.config.vocab_size if new_num_tokens is None else new_num_tokens
    if pad_to_multiple_of is not None:
        if pad_to_multiple_of < 1:
            raise InputError(f"pad_to_multiple_of is {pad_to_multiple_of}, expected at least 1")
        count = -(-count // pad_to_multiple_of) * pad_to_multiple_of
    _resize(model, "vocab_size", count)
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
    before = model.config.pruned_heads
    after = {layer: sorted({*before.get(layer, ()), *heads}) for layer, heads in heads_to_prune.items()}
    changed = DistilBertConfig.from_dict(model.config.to_dict(), pruned_heads=before | after)
    head_size = model.config.hidden_size // model.config.num_attention_heads
    for parameter in parameters(model.config, model.head, model.family):
        if "attention_size" not in parameter.axes or parameter.layer not in after:
            continue
        old = model.get_parameter(parameter.name)
        present = [h for h in range(model.config.num_attention_heads) if h not in before.get(parameter.layer, ())]
        kept = [place for place, head in enumerate(present) if head not in after[parameter.layer]]
        rows = torch.tensor(kept, device=old.device)[:, None] * head_size + torch.arange(head_size, device=old.device)
        axis = parameter.axes.index("attention_size")
        replace_value(model, parameter.name, old.detach().index_select(axis, rows.flatten()))
    model.config.pruned_heads = changed.pruned_heads


def _resize(model: PreTrainedModel, axis: str, size: int) -> None:
    """Give every parameter that has ``axis`` another length of it, and keep the values there is room for."""
    if not isinstance(size, int) or size < 1:
        raise InputError(f"{axis} cannot become {size!r}, expected an integer of at least 1")
    changed = DistilBertConfig.from_dict(model.config.to_dict(), **{axis: size})
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
