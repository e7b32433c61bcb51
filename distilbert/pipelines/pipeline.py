"""What every task's pipeline is made from: items in, in any number; answers out, in their order."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Any, ClassVar

from tokenizers import Encoding

from distilbert.core.errors import InputError
from distilbert.core.spec import family_of
from distilbert.core.tokenizer import DistilBertTokenizer
from distilbert.pipelines.batching import Arrays, Model, run_by_length

logger = logging.getLogger("distilbert")

# Items to look ahead, to sort them by length: at least so many, or enough for so many batches.
LOOK_AHEAD = 1024
LOOK_AHEAD_BATCHES = 16
FIRST_LOOK_AHEAD = 64  # doubles from there: who reads the first answers shall not wait for the thousandth item

# What calls of transformers' pipelines have, and what no answer depends on here.
WITHOUT_EFFECT = ("padding", "num_workers")

Answer = Any


@dataclass(frozen=True)
class Sample:
    """An item on its way: the sequences that the model reads for it."""

    item: Any
    windows: list[Encoding]
    is_cut: bool = False  # the text goes on behind the last of them


class Pipeline:
    """From items to answers. A task says what an item is, how to encode some, and how to answer for one.

    Args:
        model: arrays to arrays; each task says which outputs it reads.
        tokenizer: the model's.
        batch_size: sequences that the model sees at a time; ``"auto"`` fills batches by their number of tokens.
        options: those of the task, for every call.

    Raises:
        InputError: an option that the task does not have, or out of range.
    """

    task: ClassVar[str]
    head: ClassVar[str]  # the spec's name
    options_class: ClassVar[type]  # a frozen dataclass

    def __init__(
        self, model: Model, tokenizer: DistilBertTokenizer, *, batch_size: int | str = "auto", **options: Any
    ) -> None:
        self.model = model
        self.config = model.config
        self.tokenizer = tokenizer
        self.batch_size = _check_batch_size(batch_size)
        self.options = self.change_options(self.options_class(), options)

    def __call__(self, inputs: Any, *, batch_size: int | str | None = None, **options: Any) -> Any:
        """Answer for one item, or for many.

        Args:
            inputs: an item; a list or tuple of them; or any other iterable, of any length, or a data set of PyTorch's.
            batch_size: for this call only.
            options: for this call only; ``padding`` and ``num_workers`` are taken and change nothing.

        Returns:
            The answer; a list of answers; or an iterator over them that reads ahead, by 64 items at first and then by
            more. The form of an answer depends on the options alone.

        Raises:
            InputError: an item or an option that makes no sense, or a text too long for the model.
        """
        chosen = self.change_options(self.options, options)
        size = self.batch_size if batch_size is None else _check_batch_size(batch_size)
        if self.is_item(inputs, chosen):
            return next(self._stream([inputs], size, chosen))
        if isinstance(inputs, (list, tuple)):
            return list(self._stream(inputs, size, chosen))
        if isinstance(inputs, Iterable) and not isinstance(inputs, (bytes, bytearray)):
            return self._stream(inputs, size, chosen, FIRST_LOOK_AHEAD)
        if hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__") and not isinstance(inputs, (bytes, bytearray)):
            return self._stream((inputs[n] for n in range(len(inputs))), size, chosen, FIRST_LOOK_AHEAD)
        raise InputError(f"the input is of type {type(inputs).__name__}, expected a text, or many")

    def answer_windows(self, windows: Iterable[Sequence[Any]], *, done: int = 0) -> Iterator[list[Answer]]:
        """Answer group by group: within each, items are batched by length. One warning counts all that were cut.

        ``done`` items came before, and count where an error names one by its number.
        """
        return self._answer_windows(windows, self.batch_size, self.options, done)

    @property
    def look_ahead(self) -> int:
        """How many items to group."""
        return self._look_ahead(self.batch_size)

    def _look_ahead(self, batch_size: int | None) -> int:
        return max(LOOK_AHEAD, LOOK_AHEAD_BATCHES * (batch_size or self.model.batch_rows(self.limit)))

    def _stream(
        self, items: Iterable[Any], batch_size: int | None, options: Any, first: int | None = None
    ) -> Iterator[Answer]:
        iterator = iter(items)
        most = self._look_ahead(batch_size)

        def windows() -> Iterator[list[Any]]:
            size = first or most
            while True:
                window: list[Any] = []
                try:
                    window.extend(islice(iterator, size))
                except Exception:  # what came before it is answered first
                    yield window
                    raise
                if not window:
                    return
                yield window
                size = min(2 * size, most)

        for answers in self._answer_windows(windows(), batch_size, options, 0):
            yield from answers

    def _answer_windows(
        self, windows: Iterable[Sequence[Any]], batch_size: int | None, options: Any, done: int
    ) -> Iterator[list[Answer]]:
        total = cut = 0
        try:
            for window in windows:
                samples = self._samples(window, done + total, options)
                total += len(samples)
                cut += sum(sample.is_cut for sample in samples)
                yield self._answer_samples(samples, batch_size, options)
        finally:
            if cut:
                logger.warning("%d of %d texts cut to the model's %d tokens%s", cut, total, self.limit, self.cut_advice)

    def _answer_samples(self, samples: Sequence[Sample], batch_size: int | None, options: Any) -> list[Answer]:
        owners = [sample for sample in samples for _ in sample.windows]
        windows = [window for sample in samples for window in sample.windows]
        kept = iter(
            run_by_length(
                self.model,
                [window.ids for window in windows],
                lambda number, outputs: self.keep(owners[number], windows[number], outputs, options),
                segments=[window.type_ids for window in windows] if family_of(self.config).has_segments else None,
                places=[self.places(window) for window in windows] if self.head == "masked-lm" else None,
                batch_size=batch_size,
            )
        )
        return [self.answer(sample, list(islice(kept, len(sample.windows))), options) for sample in samples]

    def _samples(self, window: Sequence[Any], done: int, options: Any) -> list[Sample]:
        try:
            return self.encode([self.parse(item, options) for item in window], options)
        except InputError:
            for number, item in enumerate(window, done + 1):  # which one?
                try:
                    self.encode([self.parse(item, options)], options)
                except InputError as error:
                    raise InputError(f"input {number}: {error}") from None
            raise

    # What a task says about itself.

    cut_advice: ClassVar[str] = ""  # how not to lose the end of a text

    @classmethod
    def columns(cls, options: Any) -> tuple[str, ...]:
        """The keys of an answer, or of each part of one; none where it is an array."""
        raise NotImplementedError

    def is_item(self, inputs: Any, options: Any) -> bool:
        """Whether ``inputs`` is one item."""
        return isinstance(inputs, (str, Mapping))

    def parse(self, item: Any, options: Any) -> Any:
        """Check an item and bring it into the one form that the other methods know.

        Raises:
            InputError: it is none.
        """
        return read_text(item)

    def encode(self, items: Sequence[Any], options: Any) -> list[Sample]:
        """A sample of each item."""
        raise NotImplementedError

    def places(self, window: Any) -> Sequence[int]:
        """At which tokens a masked LM has to score words, one or more."""
        raise NotImplementedError

    def keep(self, sample: Sample, window: Encoding, outputs: Arrays, options: Any) -> Any:
        """What the answer needs of the outputs for a window."""
        return outputs

    def answer(self, sample: Sample, kept: list[Any], options: Any) -> Answer:
        """The answer, by what was kept of each window."""
        raise NotImplementedError

    # What tasks use.

    @property
    def limit(self) -> int:
        """The longest sequence in tokens that the model can read."""
        return min(self.tokenizer.model_max_length, self.config.max_position_embeddings)

    def tokenize(self, texts: Sequence[Any], pairs: Sequence[Any] | None = None, **options: Any) -> list[Encoding]:
        """The encodings of some texts, or pairs; what was cut off is in their ``overflowing``."""
        if not texts:
            return []
        return self.tokenizer(list(texts), pairs, verbose=False, **options).encodings or []

    def encode_whole(self, items: Sequence[Any], truncation: bool, max_length: int | None = None) -> list[Sample]:
        """One window for each text, cut at the model's limit where that is allowed, or at ``max_length``."""
        return self.encode_several(items, [[item] for item in items], truncation, max_length)

    def encode_several(
        self,
        items: Sequence[Any],
        texts: Sequence[Sequence[Any]],
        truncation: bool | str,
        max_length: int | None = None,
    ) -> list[Sample]:
        """A window for each of the texts, or pairs, that an item is asked with; ``truncation`` as in the tokenizer."""
        limit = min(self.limit, max_length or self.limit)
        options: dict[str, Any] = {"truncation": truncation, "max_length": limit} if truncation else {}
        encodings = iter(self.tokenize([text for of_item in texts for text in of_item], **options))
        samples = []
        for item, of_item in zip(items, texts, strict=True):
            windows = list(islice(encodings, len(of_item)))
            is_cut = limit == self.limit and any(window.overflowing for window in windows)
            samples.append(Sample(item, windows, is_cut))
        self.check_lengths(samples)
        return samples

    def check_lengths(self, samples: Iterable[Sample]) -> None:
        """Check that the model can read them.

        Raises:
            InputError: one is too long.
        """
        for sample in samples:
            if (longest := max((len(window) for window in sample.windows), default=0)) > self.limit:
                raise InputError(
                    f"a text of {longest} tokens, which begins {str(sample.item)[:40]!r}: the model reads at most "
                    f"{self.limit} (max_position_embeddings={self.config.max_position_embeddings}); shorten it"
                    + (", or allow truncation" if hasattr(self.options, "truncation") else "")
                )

    @classmethod
    def change_options(cls, options: Any, changes: Mapping[str, Any]) -> Any:
        """A task's options with some changed.

        Raises:
            InputError: no such option, or out of range.
        """
        names = [field.name for field in fields(cls.options_class)]
        changes = {name: value for name, value in changes.items() if name not in WITHOUT_EFFECT}
        for name in changes:
            if name not in names:
                expected = ", ".join(names) or "none"
                raise InputError(f"{cls.task} has no option {name!r}; its options are: {expected}")
        return replace(options, **changes)


def read_text(item: Any, name: str = "text") -> str:
    """The text that an item is, or has under ``name``.

    Raises:
        InputError: there is none, or no text that UTF-8 can write.
    """
    if isinstance(item, Mapping):
        if name not in item:
            raise InputError(f"has no {name!r}, only {', '.join(map(str, item)) or 'nothing'}")
        item = item[name]
    if not isinstance(item, str):
        raise InputError(f"{name} is of type {type(item).__name__}, expected str")
    try:
        item.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name} has half a surrogate pair at {error.start}, which is no character") from None
    return item


def require_mapping(item: Any, *names: str) -> None:
    """Check that an item has several parts.

    Raises:
        InputError: it is no mapping.
    """
    if not isinstance(item, Mapping):
        raise InputError(f"is of type {type(item).__name__}, expected a mapping with {' and '.join(names)}")


def require_count(name: str, value: Any, least: int = 1) -> None:
    """Check an option that counts something.

    Raises:
        InputError: it is no integer, or smaller.
    """
    if not isinstance(value, int) or value < least:
        raise InputError(f"{name} is {value!r}, expected an integer of at least {least}")


def _check_batch_size(batch_size: int | str) -> int | None:
    """How many, or None for ``"auto"``."""
    if batch_size == "auto":
        return None
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f'batch_size is {batch_size!r}, expected "auto" or at least 1')
    return batch_size


def split_names(text: str) -> list[str]:
    """What stands between commas."""
    return [stripped for name in text.split(",") if (stripped := name.strip())]
