"""What every task's pipeline is made from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distilbert.core.config import DistilBertConfig
from distilbert.core.errors import InputError
from distilbert.core.tokenizer import DistilBertTokenizer
from distilbert.pipelines.batching import Model, run_by_length


class Pipeline:
    """From texts to answers.

    Args:
        model: arrays to arrays; each task says which outputs it reads.
        config: the model's; it names the labels.
        tokenizer: the model's.
    """

    def __init__(self, model: Model, config: DistilBertConfig, tokenizer: DistilBertTokenizer) -> None:
        self.model = model
        self.config = config
        self.tokenizer = tokenizer

    def run(self, sequences: Sequence[Sequence[int]], batch_size: int) -> list[dict[str, np.ndarray]]:
        """The model's outputs for each sequence of ids, see ``run_by_length``.

        Raises:
            InputError: a batch of nothing.
        """
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}, expected at least 1")
        pad_token_id = self.config.pad_token_id or 0
        return run_by_length(self.model, sequences, batch_size=batch_size, pad_token_id=pad_token_id)
