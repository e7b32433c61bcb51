"""The losses of the heads and of distillation. Labels of -100 do not count; where none is left, the loss is 0.

B batch, L length, C classes or choices, V vocabulary, D model. Cross entropies and distillation compute in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from distilbert.core.config import Config
from distilbert.core.inputs import check_range
from distilbert.pt.products import is_traced

IGNORED = -100


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
    if problem == "single_label_classification":
        return token_loss(logits_BC, labels)
    # Of floats each counts: -100 may be what a regression is to find.
    counts = None if labels.is_floating_point() else labels != IGNORED
    logits_BC, labels = logits_BC.float(), labels.float()
    if problem != "regression":
        loss = F.binary_cross_entropy_with_logits(logits_BC, labels, reduction="none")
    elif config.num_labels == 1:
        loss = F.mse_loss(logits_BC.squeeze(), labels.squeeze(), reduction="none")
    else:
        loss = F.mse_loss(logits_BC, labels, reduction="none")
    return loss.mean() if counts is None else _selected_mean(loss, counts)


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of logits (…, C) against the labels (…) that are not -100."""
    labels = labels.reshape(-1).long()  # in uint8 -100 is a class
    if labels.device.type == "cpu" and not is_traced():
        judged = labels[labels != IGNORED]
        if len(judged):
            check_range("labels", int(judged.min()), int(judged.max()), logits.shape[-1])
    loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), labels, ignore_index=IGNORED, reduction="sum")
    return loss / (labels != IGNORED).sum().clamp(min=1)


def span_loss(start_BL: Tensor, end_BL: Tensor, start_positions: Tensor, end_positions: Tensor) -> Tensor:
    """The mean of the cross entropies of where an answer starts and ends.

    Positions (B,) or (B, 1) past the end of the text, which truncation leaves behind, do not count.
    """

    def loss(logits_BL: Tensor, positions: Tensor) -> Tensor:
        positions_B = positions.reshape(-1).clamp(min=0)
        return token_loss(logits_BL, positions_B.masked_fill(positions_B >= logits_BL.shape[1], IGNORED))

    return (loss(start_BL, start_positions) + loss(end_BL, end_positions)) / 2


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """T² · KL(teacher‖student) of the distributions that logits (…, C) give at temperature T (Hinton et al. 2015).

    The mean over the positions where ``mask`` (…) is not 0. T² keeps the gradients' size (section 2 there).
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    return temperature**2 * _selected_mean(divergence, mask)


def cosine_loss(student_hidden: Tensor, teacher_hidden: Tensor, mask: Tensor) -> Tensor:
    """1 - cos between hidden states (…, D), the mean over the positions where ``mask`` (…) is not 0."""
    student, teacher = student_hidden.float(), teacher_hidden.float()
    return _selected_mean(1 - F.cosine_similarity(student, teacher, dim=-1), mask)


def hidden_state_loss(student_hidden: Tensor, teacher_hidden: Tensor, mask: Tensor) -> Tensor:
    """The squared difference of hidden states (…, D), the mean over the elements where ``mask`` (…) is not 0."""
    return _selected_mean((student_hidden.float() - teacher_hidden.float()).square().mean(-1), mask)


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
    selected = mask.reshape(values.shape) != 0
    return values.where(selected, 0).sum() / selected.sum().clamp(min=1)
