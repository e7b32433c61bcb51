"""Hiding tokens for a masked LM, anew for each batch."""

from __future__ import annotations

import numpy as np

from distilbert.core.errors import InputError
from distilbert.distillation.recipe import Recipe

IGNORED = -100


def token_weights(counts: np.ndarray, special_ids: list[int], smoothing: float = Recipe.smoothing) -> np.ndarray:
    """How likely each id is to be chosen, up to a factor: rare ones more often (Conneau and Lample 2019, section 3.1).

    Args:
        counts: how often each id occurs in the corpus (V,); an id that does not counts as one that occurs once.
        special_ids: ids that are never chosen.
        smoothing: a weight is the count to the power of minus this.

    Returns:
        float64 (V,), 0 for special ids.
    """
    weights = np.maximum(counts, 1).astype(np.float64) ** -smoothing
    weights[special_ids] = 0
    return weights


def mask_tokens(
    input_ids: np.ndarray,
    weights: np.ndarray,
    mask_token_id: int,
    *,
    rng: np.random.Generator,
    mask_probability: float = Recipe.mask_probability,
    mask_share: float = Recipe.mask_share,
    random_share: float = Recipe.random_share,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose tokens to predict, and hide most of them (Devlin et al. 2019, section 3.1).

    Of the batch's tokens with a weight, ``mask_probability`` are chosen, rounded up, one after the other in proportion
    to the weights of those that are left. Drawing them all at once gives the same probabilities: those whose
    exponentially distributed waiting times, with the weights as rates, are over first (Efraimidis and Spirakis 2006).

    Args:
        input_ids: a batch (B, L) of signed integers; it is not changed.
        weights: of each id (V,), as ``token_weights`` gives them; ids with 0 are neither chosen nor put in place of
            others.
        mask_token_id: what the model sees in place of hidden tokens.
        rng: decides; the same state gives the same result.
        mask_probability: share of tokens to predict.
        mask_share: of those, how many become ``mask_token_id``.
        random_share: of those, how many become another ordinary token, each equally likely; the rest stay.

    Returns:
        What the model sees, and labels: the chosen tokens as they were, -100 elsewhere. Both like ``input_ids``.

    Raises:
        InputError: an id that has no weight in ``weights``.
    """
    flat = input_ids.reshape(-1)
    if flat.size and not 0 <= flat.min() <= flat.max() < len(weights):
        raise InputError(f"input_ids has the values {flat.min()} to {flat.max()}, expected 0 to {len(weights) - 1}")
    rates = weights[flat]
    candidates = np.flatnonzero(rates)
    count = min(int(np.ceil(mask_probability * len(candidates))), len(candidates))
    waits = rng.standard_exponential(len(candidates)) / rates[candidates]
    chosen = candidates[np.argpartition(waits, count - 1)[:count]] if count else candidates[:0]
    chosen.sort()  # how argpartition orders them is its own affair

    inputs, labels = flat.copy(), np.full_like(flat, IGNORED)
    labels[chosen] = flat[chosen]
    fate = rng.random(count)
    inputs[chosen[fate < mask_share]] = mask_token_id
    replaced = chosen[(mask_share <= fate) & (fate < mask_share + random_share)]
    if len(replaced):
        inputs[replaced] = rng.choice(np.flatnonzero(weights), len(replaced))
    return inputs.reshape(input_ids.shape), labels.reshape(input_ids.shape)
