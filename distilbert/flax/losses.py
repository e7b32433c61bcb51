"""The losses of the heads and of distillation. Labels of -100 do not count; where none is left, the loss is 0.

B batch, L length, C classes or choices, V vocabulary, D model. All are pure functions, and compute in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from distilbert.core.config import Config
from distilbert.core.errors import InputError

Array = jax.Array
IGNORED = -100
SMALLEST_SQUARED_NORM = 1e-16  # as in PyTorch: a vector of zeros has a gradient that is finite


def classification_loss(logits_BC: Array, labels: Array, config: Config) -> Array:
    """The loss of one label, or set of labels, a text.

    By ``config.problem_type``, or where that is None by what the labels look like: one class means regression
    (mean squared error, labels (B,)), integers one label of several (cross entropy, labels (B,)), floats any
    number of labels (binary cross entropy, labels (B, C)).

    Raises:
        InputError: labels of another shape.
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
    try:
        labels_BC = labels.astype(jnp.float32).reshape(logits_BC.shape)
    except TypeError:
        expected = str(logits_BC.shape if config.num_labels > 1 else logits_BC.shape[:1])
        if problem != config.problem_type and config.num_labels > 1:
            expected = f"integers {logits_BC.shape[:1]} for classes or floats {expected} for several labels"
        raise InputError(f"labels are {labels.dtype} {labels.shape}, expected {expected}") from None
    # Of floats each counts: -100 may be what a regression is to find.
    counts_BC = jnp.issubdtype(labels.dtype, jnp.floating) | (labels_BC != IGNORED)
    if problem == "regression":
        return _selected_mean(jnp.square(logits_BC - labels_BC), counts_BC)
    return _selected_mean(optax.sigmoid_binary_cross_entropy(logits_BC, labels_BC), counts_BC)


def token_loss(logits: Array, labels: Array) -> Array:
    """Mean cross entropy of logits (…, C) against the labels (…) that are not -100."""
    try:
        labels = labels.reshape(logits.shape[:-1])
    except TypeError:
        raise InputError(f"labels has shape {labels.shape}, expected {logits.shape[:-1]}") from None
    labels = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))  # in uint8 -100 is a class
    counts = labels != IGNORED
    loss = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), jnp.where(counts, labels, 0))
    return jnp.sum(loss, where=counts) / jnp.maximum(counts.sum(dtype=jnp.float32), 1)


def span_loss(start_BL: Array, end_BL: Array, start_positions: Array, end_positions: Array) -> Array:
    """The mean of the cross entropies of where an answer starts and ends.

    Positions (B,) or (B, 1) past the end of the text, which truncation leaves behind, do not count.
    """

    def loss(logits_BL: Array, positions: Array) -> Array:
        positions_B = jnp.maximum(positions.reshape(-1), 0)
        return token_loss(logits_BL, jnp.where(positions_B < logits_BL.shape[1], positions_B, IGNORED))

    return (loss(start_BL, start_positions) + loss(end_BL, end_positions)) / 2


def distillation_loss(student_logits: Array, teacher_logits: Array, mask: Array, temperature: float) -> Array:
    """T² · KL(teacher‖student) of the distributions that logits (…, C) give at temperature T (Hinton et al. 2015).

    The mean over the positions where ``mask`` (…) is not 0. T² keeps the gradients' size (section 2 there).
    """
    student = jax.nn.log_softmax(student_logits.astype(jnp.float32) / temperature)
    teacher = jax.nn.log_softmax(teacher_logits.astype(jnp.float32) / temperature)
    return temperature**2 * _selected_mean(jnp.sum(jnp.exp(teacher) * (teacher - student), -1), mask)


def cosine_loss(student_hidden: Array, teacher_hidden: Array, mask: Array) -> Array:
    """1 - cos between hidden states (…, D), the mean over the positions where ``mask`` (…) is not 0."""
    student, teacher = student_hidden.astype(jnp.float32), teacher_hidden.astype(jnp.float32)
    squared_norms = jnp.sum(jnp.square(student), -1), jnp.sum(jnp.square(teacher), -1)
    norms = [jnp.sqrt(jnp.maximum(squared, SMALLEST_SQUARED_NORM)) for squared in squared_norms]
    return _selected_mean(1 - jnp.sum(student * teacher, -1) / (norms[0] * norms[1]), mask)


def hidden_state_loss(student_hidden: Array, teacher_hidden: Array, mask: Array) -> Array:
    """The squared difference of hidden states (…, D), the mean over the elements where ``mask`` (…) is not 0."""
    difference = student_hidden.astype(jnp.float32) - teacher_hidden.astype(jnp.float32)
    return _selected_mean(jnp.mean(jnp.square(difference), -1), mask)


def task_distillation_loss(
    student_logits: Sequence[Array],
    teacher_logits: Sequence[Array],
    mask: Array,
    hard_loss: Array,
    temperature: float,
    alpha: float,
) -> Array:
    """``alpha`` · soft + (1 - ``alpha``) · hard.

    Soft is the mean of ``distillation_loss`` over the outputs: one, with logits (B, C) and a mask (B,), or for token
    classification (B, L, C) and (B, L); or the start and end of an answer, (B, L) each, whose classes are the places,
    and a mask (B,). Hard is what the head's own loss says of the labels.
    """
    soft = sum(
        distillation_loss(student, teacher, mask, temperature)
        for student, teacher in zip(student_logits, teacher_logits, strict=True)
    ) / len(student_logits)
    return alpha * soft + (1 - alpha) * hard_loss


def _selected_mean(values: Array, mask: Array) -> Array:
    """The mean of values (…) where the mask is not 0, and 0 where it is nowhere."""
    selected = mask.reshape(values.shape).astype(bool)
    return jnp.sum(values, where=selected) / jnp.maximum(selected.sum(dtype=jnp.float32), 1)
