"""The losses of the heads and of distillation. Labels of -100 do not count; where none is left, the loss is 0.

B batch, L length, C classes or choices, V vocabulary, D model. All compute in float32. ``sample_weight`` (B,) scales
what each example adds; as in Keras, the mean is still over the number of examples or tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import keras
from keras import ops

from distilbert.core.config import Config
from distilbert.core.errors import InputError

Tensor = Any
IGNORED = -100
SMALLEST_SQUARED_NORM = 1e-16  # as in PyTorch: a vector of zeros has a gradient that is finite


def classification_loss(
    logits_BC: Tensor, labels: Tensor, config: Config, sample_weight: Tensor | None = None
) -> Tensor:
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
        problem = "multi_label_classification" if "float" in str(labels.dtype) else "single_label_classification"
    shape = tuple(logits_BC.shape)
    expected = shape[:1] if problem == "single_label_classification" else shape
    is_open = config.problem_type is None and config.num_labels > 1
    either = f"integers {shape[:1]}, or floats {shape} for several labels a text"
    check_labels(labels, expected, either if is_open else f"{expected} for {problem}")
    if problem == "single_label_classification":
        return token_loss(logits_BC, labels, sample_weight)
    logits_BC = ops.cast(logits_BC, "float32")
    labels_BC = ops.reshape(ops.cast(labels, "float32"), ops.shape(logits_BC))
    if problem == "regression":
        loss_BC = ops.square(logits_BC - labels_BC)
    else:
        loss_BC = ops.binary_crossentropy(labels_BC, logits_BC, from_logits=True)
    # Of floats each counts: -100 may be what a regression is to find.
    counts_BC = ops.logical_or("float" in str(labels.dtype), ops.not_equal(labels_BC, IGNORED))
    loss = ops.sum(weigh(ops.where(counts_BC, loss_BC, 0.0), sample_weight))
    # Of several devices, one may have no row of a batch.
    return loss / ops.maximum(ops.sum(ops.cast(counts_BC, "float32")), 1.0)


def token_loss(logits: Tensor, labels: Tensor, sample_weight: Tensor | None = None) -> Tensor:
    """Mean cross entropy of logits (…, C) against the labels (…) that are not -100; NaN where one is no class.

    Raises:
        InputError: labels of another shape.
    """
    expected = tuple(logits.shape[:-1])
    check_labels(labels, expected, f"integers {expected}")
    labels = ops.reshape(ops.cast(labels, "int32"), ops.shape(logits)[:-1])  # in uint8 -100 is a class
    counts = ops.not_equal(labels, IGNORED)
    loss = ops.sparse_categorical_crossentropy(
        ops.where(counts, labels, 0), ops.cast(logits, "float32"), from_logits=True
    )
    # Where JAX compiles, nothing can be raised, and what is no class would cost nothing.
    is_class = ops.logical_and(labels >= 0, labels < ops.shape(logits)[-1])
    loss = ops.where(counts, ops.where(is_class, loss, float("nan")), 0.0)
    loss = weigh(loss, sample_weight)
    return ops.sum(loss) / ops.maximum(ops.sum(ops.cast(counts, "float32")), 1.0)


def check_labels(labels: Tensor, expected: tuple[int | None, ...], told: str) -> None:
    """Check that labels have the shape ``expected``, but for axes of 1 at its end; None is not known yet.

    Raises:
        InputError: they have another; ``told`` is what to say of what is expected.
    """
    if getattr(labels.shape, "rank", 0) is None:  # a graph of TensorFlow, traced for several ranks
        return
    shape = tuple(labels.shape)
    pairs = zip_longest(shape, expected, fillvalue=1)
    if any(found != wanted and None not in (found, wanted) for found, wanted in pairs):
        dtype = keras.backend.standardize_dtype(labels.dtype)
        raise InputError(f"labels are {dtype} {shape}, expected {told}")


def span_loss(
    start_BL: Tensor,
    end_BL: Tensor,
    start_positions: Tensor,
    end_positions: Tensor,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """The mean of the cross entropies of where an answer starts and ends.

    Positions (B,) or (B, 1) past the end of the text, which truncation leaves behind, do not count.
    """

    def loss(logits_BL: Tensor, positions: Tensor) -> Tensor:
        positions_B = ops.reshape(positions, (-1,))
        positions_B = ops.maximum(positions_B, 0)
        within = positions_B < ops.cast(ops.shape(logits_BL)[1], positions_B.dtype)
        return token_loss(logits_BL, ops.where(within, positions_B, IGNORED), sample_weight)

    return (loss(start_BL, start_positions) + loss(end_BL, end_positions)) / 2


def weigh(loss: Tensor, sample_weight: Tensor | None) -> Tensor:
    """Losses (B, …) times a weight for each example, (B,) or of the losses' own shape."""
    if sample_weight is None:
        return loss
    weight = ops.cast(sample_weight, loss.dtype)
    for _ in range(len(loss.shape) - len(weight.shape)):
        weight = weight[..., None]
    return loss * weight


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """T² · KL(teacher‖student) of the distributions that logits (…, C) give at temperature T (Hinton et al. 2015).

    The mean over the positions where ``mask`` (…) is not 0. T² keeps the gradients' size (section 2 there).
    """
    student = ops.log_softmax(ops.cast(student_logits, "float32") / temperature)
    teacher = ops.log_softmax(ops.cast(teacher_logits, "float32") / temperature)
    return temperature**2 * _selected_mean(ops.sum(ops.exp(teacher) * (teacher - student), -1), mask)


def cosine_loss(student_hidden: Tensor, teacher_hidden: Tensor, mask: Tensor) -> Tensor:
    """1 - cos between hidden states (…, D), the mean over the positions where ``mask`` (…) is not 0."""
    student, teacher = ops.cast(student_hidden, "float32"), ops.cast(teacher_hidden, "float32")
    squared_norms = ops.sum(ops.square(student), -1), ops.sum(ops.square(teacher), -1)
    norms = [ops.sqrt(ops.maximum(squared, SMALLEST_SQUARED_NORM)) for squared in squared_norms]
    return _selected_mean(1 - ops.sum(student * teacher, -1) / (norms[0] * norms[1]), mask)


def hidden_state_loss(student_hidden: Tensor, teacher_hidden: Tensor, mask: Tensor) -> Tensor:
    """The squared difference of hidden states (…, D), the mean over the elements where ``mask`` (…) is not 0."""
    difference = ops.cast(student_hidden, "float32") - ops.cast(teacher_hidden, "float32")
    return _selected_mean(ops.mean(ops.square(difference), -1), mask)


def task_distillation_loss(
    student_logits: Sequence[Tensor],
    teacher_logits: Sequence[Tensor],
    mask: Tensor,
    hard_loss: Tensor,
    temperature: float,
    alpha: float,
) -> Tensor:
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


def _selected_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of values (…) where the mask is not 0, and 0 where it is nowhere."""
    selected = ops.not_equal(ops.reshape(mask, ops.shape(values)), 0)
    count = ops.sum(ops.cast(selected, "float32"))
    return ops.sum(ops.where(selected, values, 0.0)) / ops.maximum(count, 1.0)
