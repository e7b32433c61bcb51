"""Token classification: the entities in each text, and where in it they are.

Options, keys and results are those of transformers 4.57's pipeline, but that a token continues a word where the
tokenizer says so (``##``), not where it is shorter or longer than its text: an accent written as a character of its
own, which the tokenizer strips, does not glue a word to the one before it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Encoding

from distilbert.core.errors import InputError
from distilbert.pipelines.batching import Arrays
from distilbert.pipelines.pipeline import Pipeline, Sample, read_text, require_count
from distilbert.pipelines.scores import softmax

Entity = dict[str, Any]


@dataclass(frozen=True)
class Token:
    """A token, or a word made of several, with the probability of each label."""

    text: str
    start: int  # in the text
    end: int
    index: int  # in the window
    continues: bool  # the word that the token before it belongs to
    scores: np.ndarray


# How the tokens of a word agree on its probabilities.
WORD_SCORES: dict[str, Callable[[list[Token]], np.ndarray]] = {
    "first": lambda word: word[0].scores,
    "average": lambda word: np.mean([token.scores for token in word], 0),
    "max": lambda word: max((token.scores for token in word), key=np.max),
}
STRATEGIES = ("none", "simple", *WORD_SCORES)


@dataclass(frozen=True)
class Options:
    """How to find entities.

    Args:
        aggregation_strategy: ``"none"`` gives every token; ``"simple"`` joins neighbours of one label; ``"first"``,
            ``"average"`` and ``"max"`` let the tokens of a word agree on a label before.
        ignore_labels: labels to leave out.
        stride: read texts longer than the model in windows that share so many tokens; needs a strategy. By default
            they are cut, with a warning.
        is_split_into_words: the texts are lists of words.
        delimiter: what stood between the words, for ``start`` and ``end``.
    """

    aggregation_strategy: str = "none"
    ignore_labels: Collection[str] = ("O",)
    stride: int | None = None
    is_split_into_words: bool = False
    delimiter: str = " "

    def __post_init__(self) -> None:
        if self.aggregation_strategy not in STRATEGIES:
            raise InputError(
                f"aggregation_strategy is {self.aggregation_strategy!r}, expected one of {', '.join(STRATEGIES)}"
            )
        if isinstance(self.ignore_labels, str) or not isinstance(self.ignore_labels, Collection):
            raise InputError(f"ignore_labels is {self.ignore_labels!r}, expected a list of labels")
        if not isinstance(self.delimiter, str):
            raise InputError(f"delimiter is {self.delimiter!r}, expected str")
        if self.stride is not None:
            require_count("stride", self.stride, 0)
        if self.stride is not None and self.aggregation_strategy == "none":
            raise InputError("stride needs an aggregation_strategy, such as simple: tokens would be there twice")


class Text(NamedTuple):
    """A text, with the place where each word begins if it came as words."""

    whole: str
    words: Sequence[str] | None = None
    starts: Sequence[int] | None = None


class TokenClassificationPipeline(Pipeline):
    """Finds entities, by ``logits`` (B, L, C) of the model.

    An item is a text, or a list of words with ``is_split_into_words``. The answer is a list of mappings with ``entity``
    (or ``entity_group``), ``score``, ``index`` (with ``"none"``), ``word``, ``start`` and ``end``: places in the text,
    so that ``text[start:end]`` is the entity.
    """

    task = head = "token-classification"
    options_class = Options
    cut_advice = "; stride reads them whole"

    @classmethod
    def columns(cls, options: Options) -> tuple[str, ...]:
        """Those of what the answer lists."""
        if options.aggregation_strategy == "none":
            return ("entity", "score", "index", "word", "start", "end")
        return ("entity_group", "score", "word", "start", "end")

    def is_item(self, inputs: Any, options: Options) -> bool:
        """A text, or one list of words."""
        if options.is_split_into_words and isinstance(inputs, (list, tuple)):
            return bool(inputs) and all(isinstance(word, str) for word in inputs)
        return super().is_item(inputs, options)

    def parse(self, item: Any, options: Options) -> Text:
        """The text, and its words."""
        if not options.is_split_into_words:
            return Text(read_text(item))
        words = item.get("words") if isinstance(item, Mapping) else item
        if not isinstance(words, (list, tuple)):
            raise InputError(f"words is of type {type(words).__name__}, expected a list of str")
        words = [read_text(word, "word") for word in words]
        lengths = [len(word) + len(options.delimiter) for word in words]
        return Text(options.delimiter.join(words), words, [0, *np.cumsum(lengths).tolist()])

    def encode(self, items: Sequence[Text], options: Options) -> list[Sample]:
        """The windows of each text: one, or several with ``stride``."""
        is_split = options.is_split_into_words
        encodings = self.tokenize(
            [text.words if is_split else text.whole for text in items],
            truncation=True,
            max_length=self.limit,
            stride=options.stride or 0,
            is_split_into_words=is_split,
        )
        if options.stride is None:
            return [Sample(text, [one], bool(one.overflowing)) for text, one in zip(items, encodings, strict=True)]
        return [Sample(text, [one, *one.overflowing]) for text, one in zip(items, encodings, strict=True)]

    def keep(self, sample: Sample, window: Encoding, outputs: Arrays, options: Options) -> np.ndarray:
        """The probabilities of the labels of each token (L, C)."""
        return softmax(outputs["logits"])

    def answer(self, sample: Sample, kept: list[np.ndarray], options: Options) -> list[Entity]:
        """The entities of all windows."""
        found: list[Entity] = []
        for window, scores in zip(sample.windows, kept, strict=True):
            tokens = self._tokens(sample.item.whole, window, scores, sample.item.starts)
            entities = self._entities(tokens, options.aggregation_strategy)
            found += [entity for entity in entities if _label(entity) not in options.ignore_labels]
        return _without_overlaps(found) if len(sample.windows) > 1 else found

    def _tokens(self, text: str, window: Encoding, scores: np.ndarray, starts: Sequence[int] | None) -> list[Token]:
        """The tokens of a window that are not special. ``starts`` is where in the text each word begins."""
        tokens = []
        columns = zip(
            window.ids, window.tokens, window.offsets, window.word_ids, window.special_tokens_mask, strict=True
        )
        for index, (number, word, (start, end), word_id, is_special) in enumerate(columns):
            if is_special:
                continue
            if starts is not None and word_id is not None:
                start, end = start + starts[word_id], end + starts[word_id]
            continues = word.startswith(self.tokenizer.wordpieces_prefix)
            if number == self.tokenizer.unk_token_id:
                word, continues = text[start:end], False
            tokens.append(Token(word, start, end, index, continues, scores[index]))
        return tokens

    def _entities(self, tokens: list[Token], strategy: str) -> list[Entity]:
        """What a window holds, every label included."""
        if strategy == "none":
            return [
                {
                    "entity": self._best(token),
                    "score": float(token.scores.max()),
                    "index": token.index,
                    "word": token.text,
                    "start": token.start,
                    "end": token.end,
                }
                for token in tokens
            ]
        parts = tokens if strategy == "simple" else [self._word(word, strategy) for word in _words(tokens)]
        return [self._group(group) for group in _runs(parts, self._joins)]

    def _word(self, tokens: list[Token], strategy: str) -> Token:
        """The tokens of a word as one."""
        text = self.tokenizer.convert_tokens_to_string([token.text for token in tokens])
        scores = WORD_SCORES[strategy](tokens)
        return Token(text, tokens[0].start, tokens[-1].end, tokens[0].index, False, scores)

    def _best(self, token: Token) -> str:
        return self.config.id2label[int(token.scores.argmax())]

    def _joins(self, one: Token, other: Token) -> bool:
        """Whether a token goes on with the entity of the one before it: the same label, but for another beginning."""
        label = self._best(other)
        return _kind(label) == _kind(self._best(one)) and not label.startswith("B-")

    def _group(self, parts: list[Token]) -> Entity:
        return {
            "entity_group": self._best(parts[0]).split("-", 1)[-1],
            "score": float(np.mean([part.scores.max() for part in parts])),
            "word": self.tokenizer.convert_tokens_to_string([part.text for part in parts]),
            "start": parts[0].start,
            "end": parts[-1].end,
        }


def _kind(label: str) -> str:
    """A label without the ``B-`` or ``I-`` that says whether an entity begins or goes on."""
    return label[2:] if label.startswith(("B-", "I-")) else label


def _label(entity: Entity) -> str:
    return entity["entity"] if "entity" in entity else entity["entity_group"]


def _words(tokens: list[Token]) -> Iterable[list[Token]]:
    return _runs(tokens, lambda one, other: other.continues)


def _runs(tokens: list[Token], joins: Callable[[Token, Token], bool]) -> Iterable[list[Token]]:
    """Neighbours that join, together."""
    run = tokens[:1]
    for one, other in pairwise(tokens):
        if not joins(one, other):
            yield run
            run = []
        run.append(other)
    if run:
        yield run


def _without_overlaps(entities: list[Entity]) -> list[Entity]:
    """Of those that windows found at the same place the longest, and of equal ones the most probable."""
    kept: list[Entity] = []
    for entity in sorted(entities, key=lambda entity: entity["start"]):
        if not kept or not kept[-1]["start"] <= entity["start"] < kept[-1]["end"]:
            kept.append(entity)
        elif (_length(entity), entity["score"]) > (_length(kept[-1]), kept[-1]["score"]):
            kept[-1] = entity
    return kept


def _length(entity: Entity) -> int:
    return entity["end"] - entity["start"]
