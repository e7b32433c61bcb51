"""Question answering: where in a context the answer to a question is.

Options, keys and results are those of transformers 4.57's pipeline, but for:

- A question longer than ``max_question_len`` is cut, with a warning, as transformers documents; there, only its slow
  tokenizers do. A stride for which a long question leaves no room becomes half of the room; there, it is an error.
- ``max_seq_len`` is at most what the model reads; there, a larger one given by hand makes the model fail.
- Only spans of the context are answers. There, where fewer than ``top_k`` are possible, others fill the list with a
  score of 0 and an empty text, and the question itself can be the answer if it holds a literal ``[CLS]``.
- ``top_k=1`` gives a mapping and any other a list, one item an answer and a list of one a list of one: the form
  follows from what was asked. There, whatever is alone comes without its list.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import numpy as np
from tokenizers import Encoding

from distilbert.core.errors import InputError
from distilbert.pipelines.batching import Arrays
from distilbert.pipelines.pipeline import Pipeline, Sample, logger, read_text, require_count, require_mapping
from distilbert.pipelines.scores import largest, softmax

DOC_STRIDE = 128


class Answer(TypedDict):
    """A part of the context, ``context[start:end]``."""

    score: float
    start: int
    end: int
    answer: str


@dataclass(frozen=True)
class Options:
    """How to look for answers.

    Args:
        top_k: how many answers to give, best first.
        doc_stride: how many tokens neighbouring windows share; by default 128, or half of ``max_seq_len`` if that is
            less.
        max_answer_len: the longest answer, in tokens.
        max_seq_len: tokens in a window, question and context together; at most what the model reads.
        max_question_len: tokens of the question to read; the rest is cut, with a warning.
        handle_impossible_answer: also give the empty answer, scored by how probable it is that there is none.
        align_to_words: widen answers to whole words.
    """

    top_k: int = 1
    doc_stride: int | None = None
    max_answer_len: int = 15
    max_seq_len: int = 384
    max_question_len: int = 64
    handle_impossible_answer: bool = False
    align_to_words: bool = True

    def __post_init__(self) -> None:
        for name in ("top_k", "max_answer_len", "max_seq_len", "max_question_len"):
            require_count(name, getattr(self, name))
        if self.doc_stride is not None:
            require_count("doc_stride", self.doc_stride, 0)
            if self.doc_stride > self.max_seq_len:
                raise InputError(f"doc_stride is {self.doc_stride}, expected at most max_seq_len={self.max_seq_len}")


class Item(NamedTuple):
    """A question, and where to look for its answer."""

    question: str
    context: str


class Spans(NamedTuple):
    """The best spans of a window, best first."""

    starts: np.ndarray  # (K,) of the first token
    ends: np.ndarray  # (K,) of the last
    scores: np.ndarray  # (K,)
    null_score: float  # of no answer: [CLS]


class QuestionAnsweringPipeline(Pipeline):
    """Finds answers, by ``start_logits`` (B, L) and ``end_logits`` (B, L) of the model.

    An item is a mapping with ``question`` and ``context``. The answer is a mapping with ``score``, ``start``, ``end``
    and ``answer``, or with another ``top_k`` than 1 a list of them: ``context[start:end]`` is the answer. A context
    of any length is read in windows that overlap. Answers that differ in their place or in capitals only are one, with
    the sum of their scores, which can be above 1.
    """

    task = head = "question-answering"
    options_class = Options

    def __call__(
        self,
        inputs: Any = None,
        context: str | Sequence[str] | None = None,
        *,
        question: str | Sequence[str] | None = None,
        batch_size: int | str | None = None,
        **options: Any,
    ) -> Any:
        """Answer one question, or many.

        Args:
            inputs: an item; a list or tuple of them; or any other iterable. With ``context``: a question, or a list of
                them.
            context: of the question; for a list, one for each or one for all.
            question: another name of ``inputs`` with ``context``.
            batch_size: for this call only.
            options: for this call only.

        Returns:
            The answer; a list of answers; or an iterator over them that reads ahead a little.

        Raises:
            InputError: an item or an option that makes no sense, or a question that leaves no room for its context.
        """
        if inputs is not None and question is not None:
            raise InputError("got both inputs and question=, expected one or the other")
        if inputs is None or context is not None:
            inputs = _pair(inputs if question is None else question, context)
        return super().__call__(inputs, batch_size=batch_size, **options)

    @classmethod
    def columns(cls, options: Options) -> tuple[str, ...]:
        """Those of what the answer lists."""
        return ("score", "start", "end", "answer")

    def parse(self, item: Any, options: Options) -> Item:
        """The question and its context."""
        if isinstance(item, Item):
            return item
        require_mapping(item, *Item._fields)
        for name in Item._fields:
            if not read_text(item, name):
                raise InputError(f"{name} is empty")
        return Item(item["question"], item["context"])

    def encode(self, items: Sequence[Item], options: Options) -> list[Sample]:
        """The windows of each context, with the question in each."""
        max_length = min(options.max_seq_len, self.limit)
        stride = min(DOC_STRIDE, max_length // 2) if options.doc_stride is None else options.doc_stride
        questions, cut = self._read_questions(items, options.max_question_len)
        if cut:
            logger.warning("%d questions cut to max_question_len=%d tokens", cut, options.max_question_len)
        by_stride = defaultdict(list)
        for index, (question, length) in enumerate(questions):
            room = max_length - length - self.tokenizer.num_special_tokens_to_add(pair=True)
            if room < 1:
                raise InputError(
                    f"the question {question[:40]!r} has {length} tokens: of the {max_length} of a window it leaves "
                    "none to the context; shorten it, or lower max_question_len"
                )
            by_stride[stride if stride < room else room // 2].append(index)
        samples: dict[int, Sample] = {}
        for stride, indices in by_stride.items():
            encodings = self.tokenize(
                [questions[index][0] for index in indices],
                [items[index].context for index in indices],
                truncation="only_second",
                max_length=max_length,
                stride=stride,
            )
            for index, encoding in zip(indices, encodings, strict=True):
                if 1 not in encoding.sequence_ids:
                    raise InputError(f"the context {items[index].context[:40]!r} holds nothing to read")
                samples[index] = Sample(items[index], [encoding, *encoding.overflowing])
        return [samples[index] for index in range(len(items))]

    def _read_questions(self, items: Sequence[Item], limit: int) -> tuple[list[tuple[str, int]], int]:
        """Each question up to ``limit`` tokens with its number of tokens; and how many were cut."""
        encodings = self.tokenize([item.question for item in items], add_special_tokens=False)
        questions, cut = [], 0
        for item, encoding in zip(items, encodings, strict=True):
            is_cut = len(encoding) > limit
            end = encoding.offsets[limit - 1][1] if is_cut else None
            questions.append((item.question[:end], min(len(encoding), limit)))
            cut += is_cut
        return questions, cut

    def keep(self, sample: Sample, window: Encoding, outputs: Arrays, options: Options) -> Spans:
        """The best spans of a window."""
        first, stop = window.sequence_ids.index(1), len(window) - 1
        readable = [0, *range(first, stop)]  # [CLS] stands for no answer
        start, end = (softmax(outputs[name][readable]) for name in ("start_logits", "end_logits"))
        # Alignment makes one answer of several spans.
        count = 2 * options.top_k + 10 if options.align_to_words else options.top_k
        starts, ends, scores = best_spans(start[1:], end[1:], count, options.max_answer_len)
        return Spans(first + starts, first + ends, scores, float(start[0] * end[0]))

    def answer(self, sample: Sample, kept: list[Spans], options: Options) -> Answer | list[Answer]:
        """The best answers of all windows."""
        context = sample.item.context
        found: dict[str, Answer] = {}
        for window, spans in zip(sample.windows, kept, strict=True):
            for first, last, score in zip(*(column.tolist() for column in spans[:3]), strict=True):
                start = _place(window, first, options.align_to_words)[0]
                end = _place(window, last, options.align_to_words)[1]
                text = context[start:end]
                answer = found.setdefault(text.lower(), {"score": 0.0, "start": start, "end": end, "answer": text})
                answer["score"] += score
        answers = list(found.values())
        if options.handle_impossible_answer:
            score = min(spans.null_score for spans in kept)
            answers.append({"score": score, "start": 0, "end": 0, "answer": ""})
        answers.sort(key=lambda answer: -answer["score"])
        return answers[0] if options.top_k == 1 else answers[: options.top_k]


def best_spans(
    start: np.ndarray, end: np.ndarray, count: int, max_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The most probable spans of at most ``max_length`` tokens.

    Args:
        start: the probability (L,) that the answer begins at each token.
        end: the probability (L,) that it ends there.
        count: how many to give; fewer where there are not so many.
        max_length: in tokens.

    Returns:
        Their first tokens, their last ones, and their probabilities, best first.
    """
    length = len(start)
    # Only the band of spans that are short enough, (L, max_length) by first token and length, not all (L, L).
    ends = np.add.outer(np.arange(length), np.arange(min(max_length, length)))
    scores = np.where(ends < length, start[:, None] * end[np.minimum(ends, length - 1)], -1).ravel()
    best = largest(scores, min(count, int((ends < length).sum())))
    return best // ends.shape[1], ends.ravel()[best], scores[best]


def _place(window: Encoding, token: int, align_to_words: bool) -> tuple[int, int]:
    """Where in the context a token, or its word, begins and ends."""
    word = window.token_to_word(token) if align_to_words else None
    place = None if word is None else window.word_to_chars(word, sequence_index=1)
    return place or window.offsets[token]


def _pair(question: str | Sequence[str] | None, context: str | Sequence[str] | None) -> Any:
    """The items that are given as questions and contexts."""
    if not isinstance(question, (list, tuple)) or not isinstance(context, (str, list, tuple)):
        given = {"question": question, "context": context}
        return {name: value for name, value in given.items() if value is not None}
    contexts = [context] * len(question) if isinstance(context, str) else context
    if len(contexts) != len(question):
        raise InputError(f"context has {len(contexts)} texts, expected {len(question)} like question, or one")
    return [{"question": one, "context": other} for one, other in zip(question, contexts, strict=True)]
