"""The batches on which backends are compared, for any config and head: every kind of input that a model takes.

B batch, C choices, L length, H heads, D model.
"""

from __future__ import annotations

import numpy as np

from distilbert.core.config import Config
from distilbert.core.spec import family_of, get_head
from distilbert.core.tokenizer import DistilBertTokenizer

Batch = dict[str, np.ndarray]
LENGTH = 12  # of all but the shortest and the longest
CHOICES = 3
TEXTS = 8  # of a user's, in a batch


def batches(config: Config, head: str, seed: int = 0) -> dict[str, Batch]:
    """Random batches by what is special about them; all have labels but those of the bare encoder."""
    generator = np.random.default_rng(seed)
    length = min(LENGTH, config.max_position_embeddings)
    ragged = batch(config, head, 3, length, generator)
    shape = ragged["input_ids"].shape
    padded = ragged["attention_mask"].copy()
    padded[-1] = 0
    vectors = generator.normal(0, config.initializer_range, (*shape, config.hidden_size)).astype(np.float32)
    heads = (config.num_hidden_layers, config.num_attention_heads)
    head_mask = generator.choice([0.0, 0.5, 1.0], heads).astype(np.float32)
    head_mask[:, 0] = 1  # something is left to see of each layer
    positions = generator.integers(0, config.max_position_embeddings, shape)
    return {
        "ragged": ragged,
        "a row of padding": ragged | {"attention_mask": padded},
        "one token": batch(config, head, 2, 1, generator),
        "longest": batch(config, head, 2, config.max_position_embeddings, generator),
        "inputs_embeds": {"inputs_embeds": vectors} | {name: ragged[name] for name in ragged if name != "input_ids"},
        "head_mask and position_ids": ragged | {"head_mask": head_mask, "position_ids": positions},
    }


def for_dtype(config: Config, head: str, dtype: str) -> dict[str, Batch]:
    """The random batches that a type is judged by."""
    return (batches if dtype == "float32" else many_rows)(config, head)


def many_rows(config: Config, head: str, seed: int = 0) -> dict[str, Batch]:
    """Batches with enough numbers for typical errors to be typical, as lower precision needs; one has padded rows."""
    generator = np.random.default_rng(seed)
    length = min(LENGTH, config.max_position_embeddings)
    made = {f"batch {number}": batch(config, head, 24, length, generator) for number in range(1, 5)}
    made["batch 4"]["attention_mask"][-4:] = 0
    return made


def batch(config: Config, head: str, rows: int, length: int, generator: np.random.Generator) -> Batch:
    """Random ids, a mask with padding on the right, on the left and with a hole, and labels."""
    shape = (rows, CHOICES, length) if head == "multiple-choice" else (rows, length)
    mask = np.ones(shape, np.int64)
    texts = mask.reshape(-1, length)
    texts[1::3, length - length // 3 :] = 0
    texts[2::3, : length // 4] = 0
    texts[2::3, length // 2 : length // 2 + length // 6] = 0
    ids = generator.integers(0, config.vocab_size, shape)
    made = {"input_ids": ids, "attention_mask": mask} | labels(config, head, mask, generator)
    if family_of(config).has_segments:
        made["token_type_ids"] = generator.integers(0, config.type_vocab_size, shape)
    return made


def from_texts(
    every: list[str], tokenizer: DistilBertTokenizer, config: Config, head: str, seed: int = 0
) -> dict[str, Batch]:
    """Batches of a few texts each, with random labels. For multiple choice they are one text's choices."""
    generator = np.random.default_rng(seed)
    made: dict[str, Batch] = {}
    for start in range(0, len(every), TEXTS):
        texts = every[start : start + TEXTS]
        encoded = tokenizer(texts, padding=True, truncation=True, max_length=config.max_position_embeddings)
        ids, mask = (np.asarray(encoded[name], np.int64) for name in ("input_ids", "attention_mask"))
        if head == "multiple-choice":
            ids, mask = ids[None], mask[None]
        made[f"texts {start + 1} to {start + len(texts)}"] = {"input_ids": ids, "attention_mask": mask} | labels(
            config, head, mask, generator
        )
    return made


def labels(config: Config, head: str, mask: np.ndarray, generator: np.random.Generator) -> Batch:
    """Random labels for a batch with that mask; tokens that do not count have -100."""
    rows, length = mask.shape[0], mask.shape[-1]
    if get_head(family_of(config), head).is_encoder:
        return {}
    if head == "question-answering":
        spans = np.sort(generator.integers(0, length, (2, rows)), 0)
        return {"start_positions": spans[0], "end_positions": spans[1]}
    if head == "next-sentence":
        return {"labels": np.asarray(generator.integers(0, 2, rows))}
    if head == "pretraining":
        follows = labels(config, "next-sentence", mask, generator)["labels"]
        return labels(config, "masked-lm", mask, generator) | {"next_sentence_label": follows}
    if head == "multiple-choice":
        return {"labels": np.asarray(generator.integers(0, mask.shape[1], rows))}
    if head == "sequence-classification":
        if config.problem_type == "multi_label_classification":
            return {"labels": generator.integers(0, 2, (rows, config.num_labels)).astype(np.float32)}
        if config.problem_type == "regression" or config.num_labels == 1:
            targets = generator.normal(0, 1, (rows, config.num_labels)).astype(np.float32)
            return {"labels": targets[:, 0] if config.num_labels == 1 else targets}
        return {"labels": np.asarray(generator.integers(0, config.num_labels, rows))}
    classes = config.vocab_size if head == "masked-lm" else config.num_labels
    return {"labels": np.where(mask == 1, generator.integers(0, classes, mask.shape), -100)}
