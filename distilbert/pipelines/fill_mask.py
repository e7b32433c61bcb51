"""Fill mask: which words may stand where a text has ``[MASK]``.

Options, keys and results are those of transformers 4.57's pipeline, but that a ``top_k`` above the size of the
vocabulary gives all of it; there, it is an error. A list of one text gives a list with
its answer; there, the answer alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypedDict

import numpy as np
from tokenizers import Encoding

from distilbert.core.errors import InputError
from distilbert.pipelines.batching import Arrays
from distilbert.pipelines.pipeline import Pipeline, Sample, logger, read_text, require_count
from distilbert.pipelines.scores import largest, softmax


class Filling(TypedDict):
    """One token in the place of a mask, and the text with it."""

    score: float
    token: int
    token_str: str
    sequence: str


@dataclass(frozen=True)
class Options:
    """How to fill masks.

    Args:
        top_k: how many tokens to give for each mask, best first.
        targets: the only words to consider. Of one that is not in the vocabulary, its first piece, with a warning.
    """

    top_k: int = 5
    targets: str | Collection[str] | None = None

    def __post_init__(self) -> None:
        require_count("top_k", self.top_k)
        if not isinstance(self.targets, Collection | None):
            raise InputError(f"targets is {self.targets!r}, expected a list of words, or None")
        for target in self.target_words or ():
            read_text(target, "a target")

    @property
    def target_words(self) -> tuple[str, ...] | None:
        """The targets, also where it is only one."""
        if self.targets is None:
            return None
        return (self.targets,) if isinstance(self.targets, str) else tuple(self.targets)


class Best(NamedTuple):
    """The tokens for one mask, best first."""

    place: int  # of the mask in the window
    tokens: list[int]
    scores: list[float]


class FillMaskPipeline(Pipeline):
    """Fills masks, by the model's ``logits`` (P, V) for them.

    An item is a text with one mask or several. The answer is a list of mappings with ``score``, ``token``,
    ``token_str`` and ``sequence``, best first; for several masks a list of such lists, each as if it were the only
    one, with the other masks left in ``sequence``. A text too long for the model is an error: a mask could be lost.
    """

    task = "fill-mask"
    head = "masked-lm"
    options_class = Options

    @classmethod
    def columns(cls, options: Options) -> tuple[str, ...]:
        """Those of a filling, with the number of its mask where there are several."""
        return ("mask", "score", "token", "token_str", "sequence")

    def parse(self, item: Any, options: Options) -> str:
        """The text."""
        text = read_text(item)
        if self.tokenizer.mask_token not in text:
            raise InputError(f"has no {self.tokenizer.mask_token} to fill")
        return text

    def encode(self, items: Sequence[str], options: Options) -> list[Sample]:
        """One window each."""
        return self.encode_whole(items, truncation=False)

    def places(self, window: Encoding) -> list[int]:
        """Those of the masks."""
        return np.flatnonzero(np.equal(window.ids, self.tokenizer.mask_token_id)).tolist()

    def keep(self, sample: Sample, window: Encoding, outputs: Arrays, options: Options) -> list[Best]:
        """The best tokens for each mask."""
        targets = options.target_words
        candidates = None if targets is None else self._find_targets(targets)
        found = []
        for place, logits in zip(self.places(window), outputs["logits"], strict=True):
            scores = softmax(logits)
            if candidates is None:
                tokens = largest(scores, options.top_k)
            else:
                tokens = candidates[largest(scores[candidates], options.top_k)]
            found.append(Best(place, tokens.tolist(), scores[tokens].tolist()))
        return found

    def answer(self, sample: Sample, kept: list[list[Best]], options: Options) -> list[Filling] | list[list[Filling]]:
        """What fills the mask, or each."""
        ids = sample.windows[0].ids
        is_only = len(kept[0]) == 1
        fillings = [
            [self._filling(ids, best.place, *filling, is_only) for filling in zip(*best[1:], strict=True)]
            for best in kept[0]
        ]
        return fillings[0] if is_only else fillings

    def _filling(self, ids: list[int], place: int, token: int, score: float, is_only: bool) -> Filling:
        filled = [token if index == place else other for index, other in enumerate(ids)]
        # Special tokens only get in a reader's way, but for the masks that are left.
        text = self.tokenizer.decode(
            [one for one in filled if one != self.tokenizer.pad_token_id], skip_special_tokens=is_only
        )
        return {"score": score, "token": token, "token_str": self.tokenizer.decode([token]), "sequence": text}

    @cached_property
    def _target_ids(self) -> dict[tuple[str, ...], np.ndarray]:
        return {}  # by words, so that each warning comes once

    def _find_targets(self, targets: tuple[str, ...]) -> np.ndarray:
        """The ids of target words."""
        if targets not in self._target_ids:
            found = {target: self._find_target(target) for target in targets}
            ids = {number for number in found.values() if number is not None}
            if not ids:
                raise InputError(f"targets is {list(targets)!r}, expected at least one word with a token")
            self._target_ids[targets] = np.array(sorted(ids))
        return self._target_ids[targets]

    def _find_target(self, target: str) -> int | None:
        number = self.tokenizer.backend_tokenizer.token_to_id(target)
        if number is not None:
            return number
        pieces = self.tokenize([target], add_special_tokens=False)[0]
        if not len(pieces):
            logger.warning("the target %r has no token, and is left out", target)
            return None
        logger.warning("the target %r is not in the vocabulary; its first piece %r is", target, pieces.tokens[0])
        return pieces.ids[0]
