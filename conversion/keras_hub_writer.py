"""Writing KerasHub's presets; see ``distilbert.conversion.keras_hub``."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distilbert.conversion.keras_hub import (
    CONFIG_FILE,
    FIELDS,
    FIXED,
    METADATA_FILE,
    OURS,
    PACKAGES,
    PREPROCESSOR_FILE,
    SPECIAL_TOKENS,
    TASK_FILE,
    TASK_WEIGHTS_FILE,
    TOKENIZER,
    TOKENIZER_FILE,
    VOCABULARY_FILE,
    WEIGHTS_FILE,
    places,
    shape,
    task_classes,
)
from distilbert.core.config import Config, DistilBertConfig
from distilbert.core.errors import InputError
from distilbert.core.formats import h5, keras
from distilbert.core.spec import KERAS, Family, get_head, parameters
from distilbert.core.tokenizer import DistilBertTokenizer

logger = logging.getLogger("distilbert")

VERSION = "0.32.0"  # of KerasHub, whose layout this is
# How KerasHub hides words to be predicted, unless told otherwise.
MASKING = {
    "mask_selection_rate": 0.15,
    "mask_selection_length": 96,
    "mask_token_rate": 0.8,
    "random_token_rate": 0.1,
}


@dataclass(frozen=True)
class Preset:
    """A preset about to be written: its texts, and which file gets which variables."""

    texts: dict[str, str]
    weights: dict[str, list[tuple[str, None, np.ndarray]]]

    @classmethod
    def prepare(
        cls,
        config: Config,
        tensors: Mapping[str, np.ndarray],
        *,
        head: str,
        family: Family,
        tokenizer: DistilBertTokenizer | None,
    ) -> Preset:
        """Arrange tensors under canonical names.

        Raises:
            ConfigError: the config cannot be written as JSON.
            InputError: the model or the tokenizer is one that KerasHub's classes cannot be.
        """
        if not isinstance(config, DistilBertConfig):
            raise InputError(f"presets of KerasHub are DistilBERT's only, this is a {family.stem}; use another format")
        _check_model(config, head, family)
        if any(row.tied_to for row in get_head(family, head).rows):
            logger.warning(
                "KerasHub's %s has the epsilon 1e-5 in its head's norm, %s 1e-12: its logits will differ by about 1e-4",
                get_head(family, head).keras_hub,
                family.stem,
            )
        if tokenizer is not None:
            _check_tokenizer(tokenizer, config)
        weights: dict[str, list[tuple[str, None, np.ndarray]]] = {}
        size = 0
        for row, file, place in places(parameters(config, head, family), family):
            tensor = tensors[row.name].T if KERAS.is_transposed(row) else tensors[row.name]
            weights.setdefault(file, []).append((place, None, tensor.reshape(shape(row, config))))
            size += tensor.size if file == WEIGHTS_FILE else 0
        backbone = _backbone(config, keras.policy(tensor.dtype for tensor in tensors.values()), family)
        described: dict[str, Any] = {
            CONFIG_FILE: backbone | {OURS: json.loads(config.to_json_string())},
            METADATA_FILE: {
                "keras_version": keras.KERAS_VERSION,
                "keras_hub_version": VERSION,
                "parameter_count": size,
                "tasks": sorted(name.removeprefix(family.stem) for name in task_classes(family)),
            },
        }
        task = get_head(family, head).keras_hub if TASK_WEIGHTS_FILE in weights else None
        if tokenizer is not None:
            described[TOKENIZER_FILE] = _tokenizer(tokenizer, family)
            if task is not None:
                described[PREPROCESSOR_FILE] = _preprocessor(tokenizer, config, task, family)
        if task is not None:
            described[TASK_FILE] = _task(backbone, described.get(PREPROCESSOR_FILE), config, task, family)
        texts = {name: json.dumps(content, indent=4) + "\n" for name, content in described.items()}
        if tokenizer is not None:
            texts[VOCABULARY_FILE] = "".join(f"{token}\n" for token in _vocabulary(tokenizer))
        return cls(texts, weights)

    @property
    def written(self) -> list[str]:
        """What is written, by path in the folder."""
        return [*self.texts, *self.weights]

    def write(self, folder: Path) -> None:
        """Write everything into an empty folder, one tensor at a time."""
        for name, text in self.texts.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        for name, variables in self.weights.items():
            keras.write_variables(folder / name, variables)


def _check_model(config: DistilBertConfig, head: str, family: Family) -> None:
    """Refuse what KerasHub's classes do not compute."""
    if get_head(family, head).keras_hub is None:
        available = ", ".join(name for name, entry in family.heads.items() if entry.keras_hub)
        raise InputError(
            f"KerasHub has no {head} model of {family.stem}, expected one of {available}; use another format"
        )
    expected = FIXED | (
        {"tie_word_embeddings": True} if any(row.tied_to for row in get_head(family, head).rows) else {}
    )
    for name, value in expected.items():
        if getattr(config, name) != value:
            raise InputError(
                f"{name} is {getattr(config, name)!r:.80}, expected {value!r}: KerasHub's {family.stem} has no other; "
                "use another format"
            )


def _check_tokenizer(tokenizer: DistilBertTokenizer, config: DistilBertConfig) -> None:
    """Refuse what KerasHub's tokenizer does not do."""
    vocabulary = _vocabulary(tokenizer)
    problems = [
        f"its special tokens are {' '.join(tokenizer.all_special_tokens)}, expected {' '.join(SPECIAL_TOKENS)}"
        if sorted(tokenizer.all_special_tokens) != sorted(SPECIAL_TOKENS)
        else "",
        "it has added tokens" if len(tokenizer) > len(vocabulary) or tokenizer.never_split else "",
        "it splits at white space only" if not tokenizer.do_basic_tokenize else "",
        "it keeps CJK characters together" if not tokenizer.tokenize_chinese_chars else "",
        f"its pieces begin with {tokenizer.wordpieces_prefix}" if tokenizer.wordpieces_prefix != "##" else "",
        f"it has {len(vocabulary)} pieces, the model {config.vocab_size}"
        if len(vocabulary) > config.vocab_size
        else "",
    ]
    if any(problems):
        raise InputError(
            f"KerasHub cannot have this tokenizer: {'; '.join(filter(None, problems))}; "
            "convert from a folder without the tokenizer's files"
        )


def _vocabulary(tokenizer: DistilBertTokenizer) -> list[str]:
    pieces = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    return sorted(pieces, key=pieces.__getitem__)


def _object(class_name: str, config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """How Keras describes an object of KerasHub's."""
    return {
        "module": f"keras_hub.src.models.{h5.scope(family.stem)}.{h5.scope(class_name)}",
        "class_name": class_name,
        "config": {"name": h5.scope(class_name), **config},
        "registered_name": f"{PACKAGES[0]}>{class_name}",
    }


def _backbone(config: DistilBertConfig, policy: dict[str, Any], family: Family) -> dict[str, Any]:
    fields = {field: getattr(config, name) for field, name in FIELDS.items()}
    return _object(f"{family.stem}Backbone", {"trainable": True, "dtype": policy, **fields}, family)


def _task(
    backbone: dict[str, Any], preprocessor: dict[str, Any] | None, config: DistilBertConfig, task: str, family: Family
) -> dict[str, Any]:
    fields: dict[str, Any] = {"backbone": backbone, "preprocessor": preprocessor}
    if task == "TextClassifier":
        fields |= {
            "num_classes": config.num_labels,
            "activation": "linear",
            "hidden_dim": config.dim,
            "dropout": config.seq_classif_dropout,
        }
    return _object(f"{family.stem}{task}", fields, family)


def _tokenizer(tokenizer: DistilBertTokenizer, family: Family) -> dict[str, Any]:
    strips = tokenizer.do_lower_case if tokenizer.strip_accents is None else tokenizer.strip_accents
    fields = {
        "trainable": True,
        "dtype": keras.policy([np.dtype(np.int32)]),
        "config_file": TOKENIZER_FILE,
        "vocabulary": None,
        "sequence_length": None,
        "lowercase": tokenizer.do_lower_case,
        "strip_accents": strips,
        **TOKENIZER,
        "special_tokens": None,
        "special_tokens_in_strings": False,
    }
    return _object(f"{family.stem}Tokenizer", fields, family)


def _preprocessor(
    tokenizer: DistilBertTokenizer, config: DistilBertConfig, task: str, family: Family
) -> dict[str, Any]:
    fields = {
        "trainable": True,
        "dtype": keras.policy([np.dtype(np.float32)]),
        "tokenizer": _tokenizer(tokenizer, family),
        "config_file": PREPROCESSOR_FILE,
        "sequence_length": min(tokenizer.model_max_length, config.max_position_embeddings),
        "truncate": "round_robin",
    }
    return _object(f"{family.stem}{task}Preprocessor", fields | (MASKING if task == "MaskedLM" else {}), family)
