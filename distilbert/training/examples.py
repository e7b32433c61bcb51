"""Labelled examples as arrays: what heads are fine-tuned on.

Files are read as ``evaluate`` reads them, and texts become tokens as the pipelines make them, so that a model is
trained on what it will be asked.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from tokenizers import Encoding

from distilbert.core.config import Config
from distilbert.core.errors import InputError
from distilbert.core.spec import family_of
from distilbert.distillation.batches import padded_length
from distilbert.distillation.masking import IGNORED
from distilbert.distillation.recipe import TEACHER
from distilbert.evaluation import data
from distilbert.evaluation.tasks import EVALUATIONS, OUTSIDE, Example
from distilbert.pipelines import TASKS, Pipeline
from distilbert.pipelines.batching import Arrays, run_by_length
from distilbert.pipelines.pipeline import Sample

logger = logging.getLogger("distilbert")

FEW = 20  # texts of which each may have a label of its own
TOGETHER = 16384  # examples to encode at a time: a tokenizer's encodings take a hundred times the memory of the ids
UNLIKELY = -1e4  # fills up a teacher's logits of places: none of its probability is there

MOST_CLASSES = 10_000  # that numbers without names are taken for
NOT_FINITE = re.compile(r"[-+]?(nan|inf|infinity)", re.IGNORECASE)
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids")
Row = dict[str, np.ndarray]


class Examples:
    """A source of batches for ``training``, of rows that fit into memory together.

    A batch has ``input_ids``, ``attention_mask`` and, for BERT, ``token_type_ids``, (B, L) or for multiple choice
    (B, C, L); the labels that the head's loss takes; and where a teacher has answered its logits, their names behind
    ``teacher/``, and ``soft_mask``, 1 where they count, (B,) or for labels of tokens (B, L).

    Args:
        rows: arrays by name, without the B.
        pad_token_id: fills up ``input_ids``.
        per_token: the names of what has an axis of tokens, before all others, besides ``input_ids`` and the like, where
            it is the last.

    Attributes:
        buckets: the lengths that batches are padded to.
    """

    def __init__(self, rows: Sequence[Row], pad_token_id: int, per_token: Sequence[str]) -> None:
        self.buckets: Sequence[int] = ()
        self.per_token = (*PER_TOKEN, *per_token)
        self.fillers = {"input_ids": pad_token_id, "labels": IGNORED}
        self.lengths = np.array([row["input_ids"].shape[-1] for row in rows])
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.columns = {}
        for name in rows[0]:
            values = [row[name] for row in rows]
            # With the axis of tokens first, those of all rows are one array.
            self.columns[name] = (
                np.concatenate([value.T for value in values] if name in PER_TOKEN else values)
                if name in self.per_token
                else np.stack(values)
            )

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The rows of these numbers, padded; nothing about them is random."""
        width = padded_length(int(self.lengths[indices].max()), self.buckets)
        is_token_BL = np.arange(width) < self.lengths[indices, None]
        at = (self.starts[indices, None] + np.arange(width))[is_token_BL]
        batch = {}
        for name, column in self.columns.items():
            if name not in self.per_token:
                batch[name] = column[indices]
                continue
            filler = UNLIKELY if name.endswith("_logits") else self.fillers.get(name, 0)
            padded = np.full((*is_token_BL.shape, *column.shape[1:]), filler, column.dtype)
            padded[is_token_BL] = column[at]
            batch[name] = np.moveaxis(padded, 1, -1) if name in PER_TOKEN else padded
        return batch

    def terms(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """How many labels of each row count (``hard``), and how many answers of a teacher (``soft``)."""
        rows = len(batch["input_ids"])
        labels, mask = batch.get("labels"), batch.get("soft_mask")
        hard = np.ones(rows, np.int64)
        if labels is not None and labels.dtype.kind == "i":
            hard = (labels != IGNORED).reshape(rows, -1).sum(1)
        return {"hard": hard, "soft": hard if mask is None else mask.reshape(rows, -1).sum(1)}


class TextClassification:
    """Labels of texts: one of several, any of several, or a number."""

    name = "text-classification"
    per_token = ()

    def labels(self, file: str, options: dict[str, Any]) -> dict[str, Any]:
        """The config fields that the labels of a file ask for.

        Whole numbers from 0 on are those of classes, as many as the largest says; others, such as 1 to 5 stars or -1
        and 1, are names.
        """
        labels = []
        for read in data.read_texts(file, **options):
            if read.label is None or not str(read.label).strip():
                raise InputError(f"{read.where}: has no label")
            labels.append(read.label)
        if any(isinstance(label, list) for label in labels):
            raise InputError(
                f"{file}: has several labels for a text; begin with a classifier whose config names them and has the "
                'problem_type "multi_label_classification"'
            )
        found = [str(label).strip() for label in labels]
        different = set(found)
        if len(found) > 2 and not NUMBER.fullmatch(found[0]) and all(map(NUMBER.fullmatch, found[1:])):
            raise InputError(
                f"{file}: the first label is {found[0][:40]!r}, and all others are numbers: is the first line a "
                "header? Then name the columns with --text-field and --label-field"
            )
        others = {label for label in different if not NOT_FINITE.fullmatch(label)}
        if others != different and others and all(map(NUMBER.fullmatch, others)):
            odd = min(different - others)
            raise InputError(f"{file}: a label is {odd}, and the others are numbers: leave such texts out")
        are_classes = all(re.fullmatch(r"[-+]?\d{1,18}", label) for label in different)
        if not are_classes and all(map(NUMBER.fullmatch, different)):
            return {"num_labels": 1, "problem_type": "regression"}
        if len(different) == 1:
            raise InputError(f"{file}: all labels are {found[0][:40]!r}, expected two classes at least")
        if len(found) > FEW and len(different) > len(found) / 2:
            raise InputError(
                f"{file}: has {len(different)} different labels for {len(found)} texts, one of them {found[0][:40]!r}: "
                "name the field of the labels with --label-field"
                + ("; numbers for a regression have a decimal point" if are_classes else "")
            )
        numbers = sorted(map(int, different)) if are_classes else []
        if are_classes and (not numbers or (numbers[0] == 0 and numbers[-1] < MOST_CLASSES)):
            return {"num_labels": max(numbers, default=0) + 1}
        return named(sorted(different, key=lambda label: (int(label) if are_classes else 0, label)))

    def read(self, file: str, config: Config, options: dict[str, Any]) -> list[Example]:
        """See ``evaluation.tasks``."""
        return EVALUATIONS[self.name](**options).read(file, config)

    def rows(self, sample: Sample, truth: Any, config: Config) -> list[Row]:
        """One."""
        if isinstance(truth, set):
            labels = np.isin(np.arange(config.num_labels), list(truth)).astype(np.float32)
        else:
            labels = np.array(truth, np.float32 if isinstance(truth, float) else np.int64)
        return [{**inputs(sample.windows[0], config), "labels": labels}]

    def answers(self, outputs: Sequence[Arrays], windows: Sequence[Encoding]) -> list[Row]:
        """The logits (C,)."""
        return [{"logits": outputs[0]["logits"], "soft_mask": np.array(1)}]


class TokenClassification:
    """Labels of words; the first token of each has its label, and the others none."""

    name = "token-classification"
    per_token = ("labels", "soft_mask", f"{TEACHER}logits")

    def labels(self, file: str, options: dict[str, Any]) -> dict[str, Any]:
        """All that occur, sorted, but ``O`` first."""
        sentences = list(data.read_sentences(file))
        found = {label for sentence in sentences for label in sentence.labels}
        if not found:
            raise InputError(f"{file}: holds no examples")
        words = [word for sentence in sentences for word in sentence.words]
        if sum(" " in word for word in words) > len(words) / 2:
            raise InputError(f"{file}: most words are several, such as {words[0][:40]!r}, expected one on each line")
        return named(sorted(found, key=lambda label: (label != OUTSIDE, label)))

    def read(self, file: str, config: Config, options: dict[str, Any]) -> list[Example]:
        """Each label has to be one of the model's."""
        numbers = {name: number for number, name in config.id2label.items()}
        examples = []
        for sentence in data.read_sentences(file):
            for line, label in enumerate(sentence.labels, sentence.line):
                if label not in numbers:
                    expected = ", ".join(numbers)
                    raise InputError(f"{file}:{line}: label is {label[:40]!r}, expected one of the model's: {expected}")
            examples.append(Example(sentence.words, [numbers[label] for label in sentence.labels]))
        return examples

    def rows(self, sample: Sample, truth: Any, config: Config) -> list[Row]:
        """One."""
        window = sample.windows[0]
        labels = np.full(len(window), IGNORED)
        seen = set()
        for place, word in enumerate(window.word_ids):
            if word is not None and word not in seen:
                labels[place] = truth[word]
                seen.add(word)
        return [{**inputs(window, config), "labels": labels}]

    def answers(self, outputs: Sequence[Arrays], windows: Sequence[Encoding]) -> list[Row]:
        """The logits (L, C)."""
        counted = np.array([word is not None for word in windows[0].word_ids]).astype(np.int64)
        return [{"logits": outputs[0]["logits"][: len(windows[0])], "soft_mask": counted}]


class QuestionAnswering:
    """Questions, and where the first of their answers stands; [CLS] in windows without it."""

    name = "question-answering"
    per_token = (f"{TEACHER}start_logits", f"{TEACHER}end_logits")

    def labels(self, file: str, options: dict[str, Any]) -> dict[str, Any]:
        """None."""
        return {}

    def read(self, file: str, config: Config, options: dict[str, Any]) -> list[Example]:
        """An answer has to stand in its context."""
        examples = []
        for question in data.read_questions(file):
            place = None
            if question.answers:
                answer, stated = question.answers[0], question.starts[0]
                start = question.context.find(answer) if stated is None else stated
                place = start, start + len(answer)
                if not answer.strip() or question.context[start : place[1]] != answer:
                    raise InputError(
                        f"{file}: the answer {answer[:40]!r} to {question.question[:40]!r} does not stand "
                        "in its context where the file says"
                    )
                first = place[0] + len(answer) - len(answer.lstrip())  # blanks at its ends belong to no token
                place = first, first + len(answer.strip())
            examples.append(Example({"question": question.question, "context": question.context}, place))
        return examples

    def rows(self, sample: Sample, truth: Any, config: Config) -> list[Row]:
        """One for each window of the context."""
        rows = []
        for window in sample.windows:
            first = last = None
            if truth is not None:
                first, last = window.char_to_token(truth[0], 1), window.char_to_token(truth[1] - 1, 1)
            if first is None or last is None:
                first = last = 0
            places = {"start_positions": np.array(first), "end_positions": np.array(last)}
            rows.append({**inputs(window, config), **places})
        return rows

    def answers(self, outputs: Sequence[Arrays], windows: Sequence[Encoding]) -> list[Row]:
        """The logits (L,) of where an answer starts and ends."""
        names = ("start_logits", "end_logits")
        return [
            {**{name: output[name][: len(window)] for name in names}, "soft_mask": np.array(1)}
            for output, window in zip(outputs, windows, strict=True)
        ]


class MultipleChoice:
    """Texts with several choices of what follows, and the number of the right one."""

    name = "multiple-choice"
    per_token = ()

    def labels(self, file: str, options: dict[str, Any]) -> dict[str, Any]:
        """None."""
        return {}

    def read(self, file: str, config: Config, options: dict[str, Any]) -> list[Example]:
        """As many choices in all of them, for they become one array."""
        examples: list[Example] = []
        for one in data.read_choices(file):
            if examples and len(one.choices) != (expected := len(examples[0].item["choices"])):
                raise InputError(f"{one.where}: has {len(one.choices)} choices, expected {expected} as before")
            examples.append(Example({"prompt": one.prompt, "choices": one.choices}, one.label))
        return examples

    def rows(self, sample: Sample, truth: Any, config: Config) -> list[Row]:
        """One, of all choices: arrays (C, L)."""
        each = [inputs(window, config) for window in sample.windows]
        width = max(len(window) for window in sample.windows)
        fillers = {"input_ids": config.pad_token_id or 0}
        stacked = {
            name: np.stack(
                [np.pad(row[name], (0, width - len(row[name])), constant_values=fillers.get(name, 0)) for row in each]
            )
            for name in each[0]
        }
        return [{**stacked, "labels": np.array(truth)}]

    def answers(self, outputs: Sequence[Arrays], windows: Sequence[Encoding]) -> list[Row]:
        """The logits (C,)."""
        return [{"logits": np.concatenate([output["logits"] for output in outputs]), "soft_mask": np.array(1)}]


LABELLED = {
    task.name: task for task in (TextClassification(), TokenClassification(), QuestionAnswering(), MultipleChoice())
}
Labelled = TextClassification | TokenClassification | QuestionAnswering | MultipleChoice


def make_pipeline(task: Labelled, model: Any, tokenizer: Any) -> Pipeline:
    """What makes tokens of a task's items."""
    options: dict[str, Any] = {"is_split_into_words": True} if task.name == "token-classification" else {}
    return TASKS[task.name](model, tokenizer, **options)


def make_examples(
    task: Labelled, examples: Sequence[Example], pipeline: Pipeline, teacher: Pipeline | None = None
) -> Examples:
    """Rows of examples, and with a teacher its answers, computed here once and for all.

    Raises:
        InputError: an example that cannot be encoded, or none at all.
    """
    rows: list[Row] = []
    cut = 0
    for start in range(0, len(examples), TOGETHER):
        some = examples[start : start + TOGETHER]
        samples = encode(pipeline, some)
        cut += sum(sample.is_cut for sample in samples)
        made = [
            row
            for sample, one in zip(samples, some, strict=True)
            for row in task.rows(sample, one.truth, pipeline.config)
        ]
        if teacher is not None:
            # Where answers are about tokens, the teacher has the student's, and reads them in the same windows.
            asked = samples if task.per_token else encode(teacher, some)
            for row, answer in zip(made, teach(task, asked, teacher), strict=True):
                mask = answer.pop("soft_mask")
                row |= {f"{TEACHER}{name}": value.astype(np.float32) for name, value in answer.items()}
                row["soft_mask"] = mask
        rows += made
    if cut:
        logger.warning("%d of %d texts cut to the model's %d tokens", cut, len(examples), pipeline.limit)
    return Examples(rows, pipeline.config.pad_token_id or 0, task.per_token)


def encode(pipeline: Pipeline, examples: Sequence[Example]) -> list[Sample]:
    """The windows of each example."""
    return pipeline.encode([pipeline.parse(one.item, pipeline.options) for one in examples], pipeline.options)


def teach(task: Labelled, samples: Sequence[Sample], teacher: Pipeline) -> Iterable[Row]:
    """The teacher's answers, for each row.

    Raises:
        InputError: it cannot read as much as the student.
    """
    teacher.check_lengths(samples)
    windows = [window for sample in samples for window in sample.windows]
    has_segments = family_of(teacher.config).has_segments
    outputs = iter(
        run_by_length(
            teacher.model,
            [window.ids for window in windows],
            lambda number, arrays: {name: value.copy() for name, value in arrays.items()},
            segments=[window.type_ids for window in windows] if has_segments else None,
        )
    )
    for sample in samples:
        yield from task.answers([next(outputs) for _ in sample.windows], sample.windows)


def inputs(window: Encoding, config: Config) -> Row:
    """What the model reads of a window, without the padding."""
    arrays = {"input_ids": np.array(window.ids), "attention_mask": np.ones(len(window), np.int64)}
    if family_of(config).has_segments:
        arrays["token_type_ids"] = np.array(window.type_ids)
    return arrays


def named(labels: Sequence[str]) -> dict[str, Any]:
    """The config fields of labels with names."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }
