"""For each task: what its files hold, what answers, and what the answers are worth."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, cast

import numpy as np
from tokenizers import Encoding

from distilbert.core.config import Config
from distilbert.core.errors import InputError
from distilbert.evaluation import data, metrics
from distilbert.evaluation.metrics import Measured
from distilbert.pipelines import TASKS, TextClassificationPipeline, TokenClassificationPipeline
from distilbert.pipelines.batching import Arrays
from distilbert.pipelines.pipeline import Pipeline, Sample

logger = logging.getLogger("distilbert")

OUTSIDE = "O"
POSITIONS = ("B", "I", "E", "S", "L", "U", "M")  # what may stand before the kind of an entity

# What becomes of the tokens that a masked language model has to find, in BERT's training and here.
MASKED, KEPT = 0.8, 0.1  # the rest turns into random tokens


class Example(NamedTuple):
    """What to ask, and what is true."""

    item: Any
    truth: Any


class Task(Protocol):
    """What the evaluation of a task consists of."""

    libraries: ClassVar[tuple[str, ...]]

    def read(self, name: str, config: Config) -> list[Example]:
        """The examples in a file.

        Raises:
            InputError: one that the model with this config cannot be asked, or has no such label for.
        """

    def answerer(self, examples: Sequence[Example]) -> tuple[type[Pipeline], dict[str, Any]]:
        """What answers, and with which options."""

    def measure(self, truths: Sequence[Any], answers: Sequence[Any], config: Config) -> Measured:
        """What the answers are worth."""


@dataclass(frozen=True)
class TextClassification:
    """Texts, or pairs, with a label; for a regression a number, and for several labels at a time any number of them.

    Args:
        text_field: the field with the text; see ``data.read_texts``.
        text_pair_field: that with a second text.
        label_field: that with the label.
    """

    text_field: str | None = None
    text_pair_field: str | None = None
    label_field: str | None = None

    libraries: ClassVar = ("sklearn", "scipy")

    def read(self, name: str, config: Config) -> list[Example]:
        """A label is a name or number; several are a list, or parted by commas, or a 0 or 1 for each of the model's."""
        if config.problem_type == "regression" and config.num_labels > 1:
            raise InputError(f"the model gives {config.num_labels} numbers for a text, expected one to evaluate")
        parse = {"regression": _number, "multi_label_classification": _label_numbers}.get(_kind(config), _label_number)
        examples = []
        for read in data.read_texts(name, self.text_field, self.text_pair_field, self.label_field):
            item = {"text": read.text} | ({} if read.text_pair is None else {"text_pair": read.text_pair})
            try:
                examples.append(Example(item, parse(read.label, config)))
            except InputError as error:
                raise InputError(f"{read.where}: {error}") from None
        return examples

    def answerer(self, examples: Sequence[Example]) -> tuple[type[Pipeline], dict[str, Any]]:
        """All labels with their logits."""
        return TextClassificationPipeline, {"top_k": None, "function_to_apply": "none"}

    def measure(self, truths: Sequence[Any], answers: Sequence[Any], config: Config) -> Measured:
        """A label of several is given where its probability is above one half."""
        names = [config.id2label[number] for number in range(config.num_labels)]
        kind = _kind(config)
        if kind == "regression":
            return metrics.regression(truths, [answer[0]["score"] for answer in answers])
        if kind == "multi_label_classification":
            logits = [{one["label"]: one["score"] for one in answer} for answer in answers]
            predicted = np.array([[int(of[name] > 0) for name in names] for of in logits])
            true = np.array([[int(number in truth) for number in range(len(names))] for truth in truths])
            return metrics.multi_label(true, predicted, names)
        numbers = {name: number for number, name in reversed(config.id2label.items())}
        return metrics.classification(truths, [numbers[answer[0]["label"]] for answer in answers], names)


def _kind(config: Config) -> str:
    """The problem that a classifier was trained for, by its config as the losses read it."""
    if config.problem_type is None:
        return "regression" if config.num_labels == 1 else "single_label_classification"
    return config.problem_type


def _number(label: Any, config: Config) -> float:
    try:
        number = float(label)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"label is {label!r:.40}, expected a number: the model is a regression")
    return number


def _label_number(label: Any, config: Config) -> int:
    """The number of a class, from its name or its number."""
    names = {name: number for number, name in reversed(config.id2label.items())}
    name = str(int(label)) if isinstance(label, float) and label.is_integer() else str(label).strip()
    if name in names:
        return names[name]
    folded = [number for other, number in names.items() if other.casefold() == name.casefold()]
    if len(folded) == 1:
        return folded[0]
    # Where numbers are names, a number that is none would mean another class than its neighbours.
    are_numbers = any(other.isdecimal() for other in names)
    if not are_numbers and name.isascii() and name.isdecimal() and len(name) < 10 and int(name) < config.num_labels:
        return int(name)
    shown = ", ".join(list(config.id2label.values())[:20]) + (", …" if len(names) > 20 else "")
    numbers = "" if are_numbers else f" or 0 to {config.num_labels - 1}"
    raise InputError(f"label is {name[:40]!r}, expected one of the model's: {shown}{numbers}")


def _label_numbers(label: Any, config: Config) -> set[int]:
    """The numbers of the labels of a text."""
    if isinstance(label, str):
        label = [name for name in label.split(",") if name.strip()]
    if not isinstance(label, list):
        label = [label]
    if len(label) == config.num_labels and all(not isinstance(one, str) and one in (0, 1) for one in label):
        return {number for number, one in enumerate(label) if one}
    return {_label_number(one, config) for one in label}


class WordLabels(TokenClassificationPipeline):
    """The label of each word, which its first token has, and how many words lie behind the model's limit.

    An item is a list of words. Those without a token, such as a control character, and those behind the limit are
    ``O``.
    """

    def encode(self, items: Sequence[Any], options: Any) -> list[Sample]:
        """One window each. Words are counted, not texts, so the warning about cut texts shall not come."""
        return [Sample(sample.item, sample.windows) for sample in super().encode(items, options)]

    def keep(self, sample: Sample, window: Encoding, outputs: Arrays, options: Any) -> np.ndarray:
        """The best label of each token (L,)."""
        return outputs["logits"].argmax(-1)

    def answer(self, sample: Sample, kept: list[Any], options: Any) -> Any:
        """Labels, and a count."""
        (window,), (numbers,) = sample.windows, kept
        labels = [OUTSIDE] * len(sample.item.words)
        seen = set()
        for word, number in zip(window.word_ids, numbers, strict=True):
            if word is not None and word not in seen:
                labels[word] = self.config.id2label[int(number)]
                seen.add(word)
        behind = {word for rest in window.overflowing for word in rest.word_ids if word is not None}
        return labels, len(behind - seen)


@dataclass(frozen=True)
class TokenClassification:
    """Words with labels, in files of the CoNLL kind."""

    libraries: ClassVar = ("sklearn", "seqeval")

    def read(self, name: str, config: Config) -> list[Example]:
        """Kinds of entities have to be the model's, but a label that begins one, or goes on, may be unknown to it."""
        known = {_entity(label) for label in config.id2label.values()} | {OUTSIDE}
        examples = []
        for sentence in data.read_sentences(name):
            for line, label in enumerate(sentence.labels, sentence.line):
                if _entity(label) not in known:
                    expected = ", ".join(config.id2label.values())
                    raise InputError(f"{name}:{line}: label is {label[:40]!r}, expected one of the model's: {expected}")
            examples.append(Example(sentence.words, sentence.labels))
        return examples

    def answerer(self, examples: Sequence[Example]) -> tuple[type[Pipeline], dict[str, Any]]:
        """Labels of words."""
        return WordLabels, {"is_split_into_words": True}

    def measure(self, truths: Sequence[Any], answers: Sequence[Any], config: Config) -> Measured:
        """Entities, where labels are of entities; words otherwise, as for parts of speech."""
        predicted = [labels for labels, _ in answers]
        words = sum(map(len, truths))
        behind = sum(count for _, count in answers)
        if behind:
            sentences = sum(count > 0 for _, count in answers)
            logger.warning(
                "%d of %d words, in %d sentences, lie behind what the model can read; they count as %s",
                *(behind, words, sentences, OUTSIDE),
            )
        if all(_is_tag(label) for label in config.id2label.values()):
            measured = metrics.entities(truths, predicted)
        else:
            flat = [[label for labels in many for label in labels] for many in (truths, predicted)]
            own = dict.fromkeys((*config.id2label.values(), *flat[0], *flat[1]))
            names = sorted(own, key=lambda label: label != OUTSIDE)  # the F1 of two is that of what is not outside
            numbers = {name: number for number, name in enumerate(names)}
            true, found = ([numbers[name] for name in labels] for labels in flat)
            measured = metrics.classification(true, found, names)
        return Measured(measured.metrics, {"words": words, "words_behind_limit": behind, **measured.details})


def _entity(label: str) -> str:
    return label.split("-", 1)[-1] if _is_tag(label) else label


def _is_tag(label: str) -> bool:
    return label == OUTSIDE or (label.split("-", 1)[0] in POSITIONS and "-" in label)


@dataclass(frozen=True)
class QuestionAnswering:
    """Questions on contexts, in SQuAD's files.

    Where the file says that questions may have no answer, the model may say so too.

    Args:
        max_answer_len: the longest answer to give, in tokens; 30, as where figures on SQuAD are published.
    """

    max_answer_len: int = 30

    libraries: ClassVar = ()

    def read(self, name: str, config: Config) -> list[Example]:
        """The truth is the question as read."""
        return [
            Example({"question": question.question, "context": question.context}, question)
            for question in data.read_questions(name)
        ]

    def answerer(self, examples: Sequence[Example]) -> tuple[type[Pipeline], dict[str, Any]]:
        """The best answer, which may be empty."""
        may_be_impossible = any(truth.may_be_unanswerable for _, truth in examples)
        options = {"max_answer_len": self.max_answer_len, "handle_impossible_answer": may_be_impossible}
        return TASKS["question-answering"], options

    def measure(self, truths: Sequence[Any], answers: Sequence[Any], config: Config) -> Measured:
        """As SQuAD 1.1 counts; as 2.0 where questions may have no answer."""
        return metrics.squad(
            [answer["answer"] for answer in answers],
            [truth.answers for truth in truths],
            may_be_unanswerable=any(truth.may_be_unanswerable for truth in truths),
        )


@dataclass(frozen=True)
class MultipleChoice:
    """Texts with several choices of what follows, in lines of JSON."""

    libraries: ClassVar = ()

    def read(self, name: str, config: Config) -> list[Example]:
        """The truth is the number of the right choice."""
        return [Example({"prompt": one.prompt, "choices": one.choices}, one.label) for one in data.read_choices(name)]

    def answerer(self, examples: Sequence[Example]) -> tuple[type[Pipeline], dict[str, Any]]:
        """All choices with their probabilities."""
        return TASKS["multiple-choice"], {}

    def measure(self, truths: Sequence[Any], answers: Sequence[Any], config: Config) -> Measured:
        """The first of the most probable is chosen."""
        scores = [[choice["score"] for choice in answer] for answer in answers]
        return metrics.choices(truths, [of.index(max(of)) for of in scores])


class Masked(NamedTuple):
    """A window of a text with some tokens hidden."""

    ids: list[int]  # as the model reads them
    places: np.ndarray  # where tokens have to be found
    hidden: np.ndarray  # which those are

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class MaskingOptions:
    """Which tokens to hide.

    Args:
        mask_probability: of each token.
        seed: of the choice.
    """

    mask_probability: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.mask_probability <= 1:
            raise InputError(f"mask_probability is {self.mask_probability}, expected above 0 and at most 1")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}, expected at least 0")


class HiddenTokens(Pipeline):
    """The log-probabilities of hidden tokens, by the model's ``logits`` (P, V) for them.

    Each token but special ones is chosen with the same probability, anew for every text, and by the seed and the text
    alone. As in BERT's training, of those chosen 80 % become ``[MASK]``, 10 % a random token, and 10 % stay.
    A text of any length is read, in windows.
    """

    task = "fill-mask"
    head = "masked-lm"
    options_class = MaskingOptions

    def encode(self, items: Sequence[Any], options: MaskingOptions) -> list[Sample]:
        """The windows in which something is hidden."""
        encodings = self.tokenize(items, truncation=True, max_length=self.limit)
        windows = ([self._hide(part, options) for part in (one, *one.overflowing)] for one in encodings)
        kept = ([window for window in of_text if len(window.places)] for of_text in windows)
        return [Sample(text, cast("list[Encoding]", of)) for text, of in zip(items, kept, strict=True)]

    def places(self, window: Any) -> list[int]:
        """Those of the hidden tokens."""
        return window.places.tolist()

    def keep(self, sample: Sample, window: Any, outputs: Arrays, options: MaskingOptions) -> list[float]:
        """Of the logits only what the hidden tokens have."""
        logits = outputs["logits"].astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        of_hidden = logits[np.arange(len(logits)), window.hidden]
        return (of_hidden - np.log(np.exp(logits).sum(-1))).tolist()

    def answer(self, sample: Sample, kept: list[Any], options: MaskingOptions) -> list[float]:
        """Those of all windows."""
        return [value for of_window in kept for value in of_window]

    def _hide(self, encoding: Encoding, options: MaskingOptions) -> Masked:
        if self.tokenizer.mask_token_id is None:
            raise InputError("the tokenizer has no mask_token, which a masked language model needs")
        random = np.random.default_rng([options.seed, *encoding.ids])
        ids = np.array(encoding.ids)
        is_chosen = random.random(len(ids)) < options.mask_probability
        places = np.flatnonzero(is_chosen & (np.array(encoding.special_tokens_mask) == 0))
        hidden = ids[places]
        fate = random.random(len(places))
        ids[places[fate >= KEPT]] = self.tokenizer.mask_token_id
        is_random = fate >= KEPT + MASKED
        ids[places[is_random]] = random.integers(len(self.tokenizer), size=is_random.sum())
        return Masked(ids.tolist(), places, hidden)


@dataclass(frozen=True)
class FillMask:
    """Lines of text; see ``HiddenTokens`` for what is asked of the model.

    The perplexity is that of training's evaluation: of hidden tokens, many in a text at a time. It is not the
    pseudo-perplexity that hides every token in turn, nor to be compared with that of a model that reads left to right.

    Args:
        mask_probability: that a token has to be found.
        seed: of the choice.
    """

    mask_probability: float = MaskingOptions.mask_probability
    seed: int = MaskingOptions.seed

    libraries: ClassVar = ()

    def read(self, name: str, config: Config) -> list[Example]:
        """Lines that are not blank; they are their own truth."""
        return [Example(line, None) for _, line in data.read_lines(name) if line.strip()]

    def answerer(self, examples: Sequence[Example]) -> tuple[type[Pipeline], dict[str, Any]]:
        """Log-probabilities."""
        return HiddenTokens, {"mask_probability": self.mask_probability, "seed": self.seed}

    def measure(self, truths: Sequence[Any], answers: Sequence[Any], config: Config) -> Measured:
        """The perplexity."""
        found = [value for answer in answers for value in answer]
        if not found:
            raise InputError(f"no token was chosen by mask_probability={self.mask_probability}; give more text")
        measured = metrics.perplexity(found)
        return Measured(
            measured.metrics,
            {"hidden_tokens": len(found), "mask_probability": self.mask_probability, "seed": self.seed},
        )


EVALUATIONS: dict[str, type[Any]] = {
    "text-classification": TextClassification,
    "token-classification": TokenClassification,
    "question-answering": QuestionAnswering,
    "multiple-choice": MultipleChoice,
    "fill-mask": FillMask,
}
