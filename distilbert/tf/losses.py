"""The losses of the heads. Labels of -100 do not count; where none is left, the loss is 0.

B batch, L length, C classes or choices, V vocabulary. All compute in float32. ``sample_weight`` (B,) scales what
each example adds; as in Keras, the mean is still over the number of examples or tokens.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from distilbert.core.config import Config

Tensor = Any
IGNORED = -100


def classification_loss(
    logits_BC: Tensor, labels: Tensor, config: Config, sample_weight: Tensor | None = None
) -> Tensor:
    """The loss of one label, or set of labels, a text.

    By ``config.problem_type``, or where that is None by what the labels look like: one class means regression
    (mean squared error, labels (B,)), integers one label of several (cross entropy, labels (B,)), floats any
    number of labels (binary cross entropy, labels (B, C)).
    """
    problem = config.problem_type
    if problem is None and config.num_labels == 1:
        problem = "regression"
    if problem is None:
        problem = "multi_label_classification" if "float" in str(labels.dtype) else "single_label_classification"
    if problem == "single_label_classification":
        return token_loss(logits_BC, labels, sample_weight)
    logits_BC = ops.cast(logits_BC, "float32")
    labels_BC = ops.reshape(ops.cast(labels, "float32"), ops.shape(logits_BC))
    if problem == "regression":
        loss_BC = ops.square(logits_BC - labels_BC)
    else:
        loss_BC = ops.binary_crossentropy(labels_BC, logits_BC, from_logits=True)
    return ops.mean(weigh(loss_BC, sample_weight))


def token_loss(logits: Tensor, labels: Tensor, sample_weight: Tensor | None = None) -> Tensor:
    """Mean cross entropy of logits (…, C) against the labels (…) that are not -100."""
    labels = ops.reshape(labels, ops.shape(logits)[:-1])
    counts = ops.not_equal(labels, IGNORED)
    loss = ops.sparse_categorical_crossentropy(
        ops.where(counts, labels, 0), ops.cast(logits, "float32"), from_logits=True
    )
    loss = weigh(ops.where(counts, loss, 0.0), sample_weight)
    return ops.sum(loss) / ops.maximum(ops.sum(ops.cast(counts, "float32")), 1.0)


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
