"""The losses of the heads, as pure functions. Labels of -100 do not count; where none is left, the loss is 0.

B batch, L length, C classes or choices, V vocabulary. All compute in float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from distilbert.core.config import Config
from distilbert.core.errors import InputError

Array = jax.Array
IGNORED = -100


def classification_loss(logits_BC: Array, labels: Array, config: Config) -> Array:
    """The loss of one label, or set of labels, a text.

    By ``config.problem_type``, or where that is None by what the labels look like: one class means regression
    (mean squared error, labels (B,)), integers one label of several (cross entropy, labels (B,)), floats any
    number of labels (binary cross entropy, labels (B, C)).
    """
    problem = config.problem_type
    if problem is None and config.num_labels == 1:
        problem = "regression"
    if problem is None:
        is_float = jnp.issubdtype(labels.dtype, jnp.floating)
        problem = "multi_label_classification" if is_float else "single_label_classification"
    if problem == "single_label_classification":
        return token_loss(logits_BC, labels)
    logits_BC = logits_BC.astype(jnp.float32)
    labels_BC = labels.astype(jnp.float32).reshape(logits_BC.shape)
    if problem == "regression":
        return jnp.mean(jnp.square(logits_BC - labels_BC))
    return optax.sigmoid_binary_cross_entropy(logits_BC, labels_BC).mean()


def token_loss(logits: Array, labels: Array) -> Array:
    """Mean cross entropy of logits (…, C) against the labels (…) that are not -100."""
    try:
        labels = labels.reshape(logits.shape[:-1])
    except TypeError:
        raise InputError(f"labels has shape {labels.shape}, expected {logits.shape[:-1]}") from None
    counts = labels != IGNORED
    loss = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), jnp.where(counts, labels, 0))
    return jnp.sum(loss, where=counts) / jnp.maximum(counts.sum(), 1)


def span_loss(start_BL: Array, end_BL: Array, start_positions: Array, end_positions: Array) -> Array:
    """The mean of the cross entropies of where an answer starts and ends.

    Positions (B,) or (B, 1) past the end of the text, which truncation leaves behind, do not count.
    """

    def loss(logits_BL: Array, positions: Array) -> Array:
        positions_B = jnp.maximum(positions.reshape(-1), 0)
        return token_loss(logits_BL, jnp.where(positions_B < logits_BL.shape[1], positions_B, IGNORED))

    return (loss(start_BL, start_positions) + loss(end_BL, end_positions)) / 2
