"""Sequences with tokens to predict: what a masked LM, and its distillation, train on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distilbert.core.errors import InputError
from distilbert.core.tokenizer import SPECIAL, DistilBertTokenizer
from distilbert.distillation.batches import collate, padded_length
from distilbert.distillation.corpus import Corpus, fingerprint
from distilbert.distillation.masking import IGNORED, mask_tokens, token_weights
from distilbert.distillation.recipe import Recipe

NO_PLACE = -1  # fills up ``positions``


class MaskedTexts:
    """A source of batches for ``training``.

    A batch has ``input_ids`` and ``attention_mask`` (B, L), ``positions`` (B, K), the places of which the words are
    scored, -1 where a row has fewer, and ``labels`` (B, K), the tokens hidden there, -100 where none is. All int64.

    Args:
        sequences: token ids.
        lengths: how many of them each has (N,).
        counts: how often each id occurs (V,).
        special_ids: ids that are never hidden.
        pad_token_id: fills up ``input_ids``.
        mask_token_id: stands for hidden tokens.
        recipe: how many are hidden, and how; and where words are scored.

    Attributes:
        buckets: the lengths that batches are padded to.
    """

    def __init__(
        self,
        sequences: Sequence[np.ndarray],
        lengths: np.ndarray,
        counts: np.ndarray,
        special_ids: list[int],
        pad_token_id: int,
        mask_token_id: int,
        recipe: Recipe,
    ) -> None:
        self.sequences, self.lengths, self.recipe = sequences, lengths, recipe
        self.buckets: Sequence[int] = ()
        self.weights = token_weights(counts, special_ids, recipe.smoothing)
        self.pad_token_id, self.mask_token_id = pad_token_id, mask_token_id

    @classmethod
    def of_corpus(cls, corpus: Corpus, recipe: Recipe, tokenizer: DistilBertTokenizer) -> MaskedTexts:
        """Those of a corpus.

        Raises:
            InputError: it was made with another tokenizer, or holds nothing.
        """
        if not len(corpus):
            raise InputError(f"{corpus.path}: holds no sequences; prepare it anew, of longer texts")
        if corpus.configuration["tokenizer"] != fingerprint(tokenizer):
            raise InputError(f"{corpus.path}: was made with another tokenizer than the student's; prepare it anew")
        special = corpus.configuration["special_tokens"]
        ids = special["pad_token"], special["mask_token"]
        return cls(corpus, corpus.lengths, corpus.counts, corpus.special_ids, *ids, recipe)

    @classmethod
    def of_lines(
        cls, lines: Sequence[str], recipe: Recipe, tokenizer: DistilBertTokenizer, max_length: int
    ) -> MaskedTexts:
        """Those of texts that fit into memory; long ones become several sequences."""
        encodings = tokenizer(list(lines), truncation=True, max_length=max_length, verbose=False).encodings or []
        windows = [window for encoding in encodings for window in (encoding, *encoding.overflowing)]
        sequences = [np.array(window.ids, np.int64) for window in windows]
        size = max(tokenizer.get_vocab().values()) + 1
        counts = np.bincount(np.concatenate(sequences), minlength=size) if sequences else np.zeros(size, np.int64)
        special = {name: getattr(tokenizer, f"{name}_id") for name in SPECIAL}
        ids = special["pad_token"], special["mask_token"]
        lengths = np.array([len(sequence) for sequence in sequences])
        return cls(sequences, lengths, counts, sorted(set(tokenizer.all_special_ids)), *ids, recipe)

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The sequences of these numbers, with other tokens hidden each time."""
        width = padded_length(int(self.lengths[indices].max()), self.buckets)
        batch = collate([self.sequences[index] for index in indices], self.pad_token_id, width)
        recipe = self.recipe
        hidden, labels = mask_tokens(
            batch["input_ids"],
            self.weights,
            self.mask_token_id,
            rng=rng,
            mask_probability=recipe.mask_probability,
            mask_share=recipe.mask_share,
            random_share=recipe.random_share,
        )
        is_scored = labels != IGNORED if recipe.masked_only else batch["attention_mask"] != 0
        most = int(is_scored.sum(1).max(initial=1))
        count = next(-(-width // share) for share in (4, 2, 1) if most * share <= width)  # few shapes for each length
        places = np.argsort(~is_scored, axis=1, kind="stable")[:, :count]
        is_place = np.take_along_axis(is_scored, places, 1)
        return {
            "input_ids": hidden,
            "attention_mask": batch["attention_mask"],
            "positions": np.where(is_place, places, NO_PLACE),
            "labels": np.where(is_place, np.take_along_axis(labels, places, 1), IGNORED),
        }

    def terms(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Of each row: words are scored at ``places``, of which some are ``masked``; states compared at ``tokens``."""
        return {
            "places": (batch["positions"] != NO_PLACE).sum(1),
            "masked": (batch["labels"] != IGNORED).sum(1),
            "tokens": batch["attention_mask"].sum(1),
        }
