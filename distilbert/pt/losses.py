"""The losses of the heads. Labels of -100 do not count.

B batch, L length, C classes or choices, V vocabulary.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from distilbert.core.config import Config


def classification_loss(logits_BC: Tensor, labels: Tensor, config: Config) -> Tensor:
    """The loss of one label, or set of labels, a text.

    By ``config.problem_type``, or where that is None by what the labels look like: one class means regression
    (mean squared error, labels (B,)), integers one label of several (cross entropy, labels (B,)), floats any
    number of labels (binary cross entropy, labels (B, C)).
    """
    problem = config.problem_type
    if problem is None and config.num_labels == 1:
        problem = "regression"
    if problem is None:
        problem = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
    if problem == "regression":
        if config.num_labels == 1:
            return F.mse_loss(logits_BC.squeeze(), labels.squeeze().to(logits_BC.dtype))
        return F.mse_loss(logits_BC, labels.to(logits_BC.dtype))
    if problem == "single_label_classification":
        return token_loss(logits_BC, labels)
    return F.binary_cross_entropy_with_logits(logits_BC, labels.to(logits_BC.dtype))


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of logits (…, C) against the labels (…) that are not -100."""
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))


def span_loss(start_BL: Tensor, end_BL: Tensor, start_positions: Tensor, end_positions: Tensor) -> Tensor:
    """The mean of the cross entropies of where an answer starts and ends.

    Positions (B,) or (B, 1) past the end of the text, which truncation leaves behind, do not count.
    """
    length = start_BL.shape[1]

    def loss(logits_BL: Tensor, positions: Tensor) -> Tensor:
        return F.cross_entropy(logits_BL, positions.reshape(-1).clamp(0, length), ignore_index=length)

    return (loss(start_BL, start_positions) + loss(end_BL, end_positions)) / 2
