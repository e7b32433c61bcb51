"""Zero-shot classification: which of some labels, named when asking, fits a text.

Needs a model trained to tell whether one text entails another. Options, keys and results are those of transformers
4.57's pipeline, but for:

- An item can be a mapping with labels of its own.
- Labels that leave no room for the text are one clear error; there, they make the model fail.
- The empty text is a text, as in other tasks; there, it is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from string import Formatter
from typing import Any, NamedTuple, TypedDict

import numpy as np
from tokenizers import Encoding

from distilbert.core.errors import InputError
from distilbert.pipelines.batching import Arrays
from distilbert.pipelines.pipeline import Pipeline, Sample, logger, read_text, split_names
from distilbert.pipelines.scores import softmax


class Ranking(TypedDict):
    """The labels of a text, best first."""

    sequence: str
    labels: list[str]
    scores: list[float]


@dataclass(frozen=True)
class Options:
    """How to classify.

    Args:
        candidate_labels: a list, or one str with commas between them.
        hypothesis_template: makes of a label, in the place of ``{}``, a sentence that the text may entail.
        multi_label: whether several labels can be true: the score of each is then its own, between 0 and 1, and not
            a share of 1.
    """

    candidate_labels: str | Sequence[str] | None = None
    hypothesis_template: str = "This example is {}."
    multi_label: bool = False

    def __post_init__(self) -> None:
        if self.candidate_labels is not None:
            read_labels(self.candidate_labels)
        try:
            fields = {field for _, field, _, _ in Formatter().parse(self.hypothesis_template) if field is not None}
            is_filled = fields in ({""}, {"0"})
        except (TypeError, ValueError):
            is_filled = False
        if not is_filled:
            raise InputError(
                f"hypothesis_template is {self.hypothesis_template!r}, expected a text with {{}} where the label goes"
            )


class Item(NamedTuple):
    """A text, and what it may be about."""

    text: str
    labels: list[str]


class ZeroShotClassificationPipeline(Pipeline):
    """Classifies texts by labels of one's own, by ``logits`` (B, C) of the model, of text and hypothesis.

    An item is a text, or a mapping with ``text`` and perhaps ``candidate_labels``. The answer is a mapping with
    ``sequence``, the text, ``labels``, best first, and their ``scores``. Texts too long for the model are cut, with a
    warning; labels are not.
    """

    task = "zero-shot-classification"
    head = "sequence-classification"
    options_class = Options

    def __call__(
        self,
        inputs: Any = None,
        candidate_labels: str | Sequence[str] | None = None,
        *,
        sequences: Any = None,
        batch_size: int | str | None = None,
        **options: Any,
    ) -> Any:
        """Classify one text, or many; ``sequences`` is another name of ``inputs``. See ``Pipeline``."""
        if (inputs is None) == (sequences is None):
            raise InputError("expected either inputs or sequences")
        if candidate_labels is not None:
            options["candidate_labels"] = candidate_labels
        return super().__call__(sequences if inputs is None else inputs, batch_size=batch_size, **options)

    @cached_property
    def entailment_id(self) -> int:
        """Which logit says that the text entails the hypothesis."""
        for label, index in self.config.label2id.items():
            if label.lower().startswith("entail"):
                return index
        labels = ", ".join(self.config.label2id)
        logger.warning("none of the model's labels %s begins with entail; the last is taken for it", labels)
        return -1

    @classmethod
    def columns(cls, options: Options) -> tuple[str, ...]:
        """Those of a label, with the text."""
        return ("sequence", "label", "score")

    def parse(self, item: Any, options: Options) -> Item:
        """The text and the labels."""
        own = item.get("candidate_labels") if isinstance(item, Mapping) else None
        labels = options.candidate_labels if own is None else own
        if labels is None:
            raise InputError("has no candidate_labels; give them to the call, or with the text")
        return Item(read_text(item), read_labels(labels))

    def encode(self, items: Sequence[Item], options: Options) -> list[Sample]:
        """A window for each label."""
        make = options.hypothesis_template.format
        pairs = [[(item.text, make(label)) for label in item.labels] for item in items]
        try:
            return self.encode_several(items, pairs, "only_first")
        except InputError:  # the tokenizer's: it cannot cut as much of a text as would have to go
            longest = max((hypothesis for of_item in pairs for _, hypothesis in of_item), key=len)
            raise InputError(
                f"a label leaves no room for its text: the model reads {self.limit} tokens together; shorten it, of "
                f"all hypotheses the longest is {longest[:40]!r}"
            ) from None

    def keep(self, sample: Sample, window: Encoding, outputs: Arrays, options: Options) -> np.ndarray:
        """The logits (C,) of a label."""
        return outputs["logits"]

    def answer(self, sample: Sample, kept: list[np.ndarray], options: Options) -> Ranking:
        """The labels, best first."""
        logits = np.stack(kept)
        if options.multi_label or len(kept) == 1:
            contradiction_id = -1 if self.entailment_id == 0 else 0
            scores = softmax(logits[:, [contradiction_id, self.entailment_id]])[:, 1]
        else:
            scores = softmax(logits[:, self.entailment_id])
        best = np.argsort(-scores, kind="stable")
        return {
            "sequence": sample.item.text,
            "labels": [sample.item.labels[index] for index in best],
            "scores": scores[best].tolist(),
        }


def read_labels(labels: Any) -> list[str]:
    """The labels, of a list or of one text with commas.

    Raises:
        InputError: there are none.
    """
    if isinstance(labels, str):
        labels = split_names(labels)
    if not isinstance(labels, (list, tuple)) or not labels:
        raise InputError(f"candidate_labels is {labels!r:.40}, expected at least one str")
    return [read_text(label, "a label") for label in labels]
