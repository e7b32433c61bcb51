"""KerasHub's presets of DistilBERT: folders as keras-hub 0.32 saves and loads them. KerasHub is not needed.

A preset is the encoder (``config.json``, ``model.weights.h5``), maybe a task on it (``task.json``,
``task.weights.h5``), and maybe a tokenizer (``tokenizer.json``, ``assets``). The arrays are ours but for attention's,
whose axis of heads times head size is two axes there: the bits are the same.

KerasHub's config lacks many fields of ours. They are kept beside it, under ``distilbert``, which KerasHub passes over.

The numbers differ in one place: the norm in KerasHub's masked LM head has the epsilon 1e-5, DistilBERT's 1e-12.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from distilbert.core import hub
from distilbert.core.checkpoint import Format
from distilbert.core.config import DistilBertConfig
from distilbert.core.errors import CheckpointError
from distilbert.core.files import current_file
from distilbert.core.formats import keras, map_file
from distilbert.core.spec import KERAS, Family, Parameter, dimension, parameters
from distilbert.core.tokenizer import CONFIG_FILE as TOKENIZER_CONFIG_FILE
from distilbert.core.tokenizer import VOCAB_FILE, DistilBertTokenizer

NAME = "keras-hub"  # of the format
CONFIG_FILE, WEIGHTS_FILE, METADATA_FILE = "config.json", "model.weights.h5", "metadata.json"
SHARDS_FILE = "model.weights.json"  # what KerasHub has in place of weights above 10 GB
TASK_FILE, TASK_WEIGHTS_FILE = "task.json", "task.weights.h5"
TOKENIZER_FILE, PREPROCESSOR_FILE = "tokenizer.json", "preprocessor.json"
VOCABULARY_FILE = "assets/tokenizer/vocabulary.txt"
FORMAT = Format(WEIGHTS_FILE, keras.read_weights, layout=KERAS, framework="tf")  # as far as it is one of single files
FILES = (
    *(CONFIG_FILE, WEIGHTS_FILE, SHARDS_FILE, METADATA_FILE, TASK_FILE, TASK_WEIGHTS_FILE),
    *(TOKENIZER_FILE, PREPROCESSOR_FILE, VOCABULARY_FILE),
)
OURS = "distilbert"  # where our config is kept in theirs
PACKAGES = ("keras_hub", "keras_nlp")  # under which its classes are registered, the second before they were renamed

# Their names of what both configs have.
FIELDS = {
    "vocabulary_size": "vocab_size",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "hidden_dim": "dim",
    "intermediate_dim": "hidden_dim",
    "dropout": "dropout",
    "max_sequence_length": "max_position_embeddings",
}
# What KerasHub's classes always compute.
FIXED: dict[str, Any] = {"activation": "gelu", "sinusoidal_pos_embds": False, "pruned_heads": {}}
# How KerasHub's tokenizer has to split for ours to do the same.
TOKENIZER: dict[str, Any] = {"split": True, "suffix_indicator": "##", "oov_token": "[UNK]"}
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # the only ones KerasHub's tokenizer knows


def is_preset(folder: Path, family: Family) -> bool:
    """Whether a folder holds a preset of this family."""
    path = current_file(folder, CONFIG_FILE)
    try:
        return path.is_file() and _is_of(hub.read_json(path), family, "Backbone")
    except CheckpointError:  # damaged, whatever it is
        return False


def _is_of(described: Mapping[str, Any], family: Family, kind: str) -> bool:
    return described.get("registered_name") in [f"{package}>{family.stem}{kind}" for package in PACKAGES]


def places(listed: Iterable[Parameter], family: Family) -> Iterator[tuple[Parameter, str, str]]:
    """Each parameter with values of its own, the file it is in, and its variable's place there."""
    for _, group in groupby(listed, key=lambda row: (row.section, row.layer, row.path)):
        own = [row for row in group if row.tied_to is None]
        for index, row in enumerate(own):
            section = "layers" if row.layer is None else f"layers/{keras.numbered('transformer_encoder', row.layer)}"
            file = TASK_WEIGHTS_FILE if row.section == "head" else WEIGHTS_FILE
            yield row, file, f"{section}/{family.keras_hub[row.role]}/vars/{index}"


def shape(row: Parameter, config: DistilBertConfig) -> tuple[int, ...]:
    """The shape of a parameter there: Keras's, with attention's size as heads and the size of a head."""
    sizes: list[int] = []
    for axis in reversed(row.axes) if KERAS.is_transposed(row) else row.axes:
        size = dimension(axis, config, row.layer)
        heads = config.num_attention_heads
        sizes += [heads, size // heads] if axis == "attention_size" else [size]
    return tuple(sizes)


@dataclass(frozen=True)
class Opened:
    """What a preset holds; the tensors are named as Keras names ours."""

    path: Path
    config: DistilBertConfig
    head: str
    tensors: dict[str, np.ndarray]


def read(folder: Path, family: Family) -> Opened:
    """Open a preset. Nothing of its tensors is read until they are touched.

    Raises:
        CheckpointError: damaged, or a model that ours cannot be.
        ConfigError: a value in its config that no model can have.
    """
    config_path, task_path = current_file(folder, CONFIG_FILE), current_file(folder, TASK_FILE)
    described = hub.read_json(config_path)
    theirs = _config_of(described, config_path)
    head, task = "base", {}
    if task_path.is_file():
        described_task = hub.read_json(task_path)
        head, task = _task_head(described_task, task_path, family), _config_of(described_task, task_path)
    _check_task(task, theirs, task_path)
    config = _config(described.get(OURS) or {}, theirs, task, folder)
    config = DistilBertConfig.from_dict(config.to_dict(), architectures=[family.class_name(head)])
    path, files = _weights(folder)
    task_weights = current_file(folder, TASK_WEIGHTS_FILE)
    if task_weights.is_file():
        files.append(task_weights)
    return Opened(path, config, head, _tensors(files, config, head, family))


def _tensors(files: list[Path], config: DistilBertConfig, head: str, family: Family) -> dict[str, np.ndarray]:
    """What the files hold: parameters in the shape and under the name that Keras has for ours, the rest as it is."""
    listed = parameters(config, head, family)
    known = {(file == TASK_WEIGHTS_FILE, _public(place)): row for row, file, place in places(listed, family)}
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        try:
            for place, _, values in keras.variables(map_file(file)):
                row = known.get((file.name == TASK_WEIGHTS_FILE, _public(place)))
                if row is not None and values.shape == shape(row, config):
                    values = values.reshape(row.shape[::-1] if KERAS.is_transposed(row) else row.shape)
                name = f"{file.name}/{place}" if row is None else KERAS.name(row)
                if name in tensors:
                    raise ValueError(f"it holds {name:.80} more than once")
                tensors[name] = values
        except ValueError as error:
            raise CheckpointError(f"{file}: not a .weights.h5 that can be read: {error}") from None
    return tensors


def _task_head(described: Mapping[str, Any], path: Path, family: Family) -> str:
    for name, head in family.heads.items():
        if head.rows and head.keras_hub and _is_of(described, family, head.keras_hub):
            return name
    found = described.get("registered_name")
    raise CheckpointError(f"{path}: is a {found!r:.80}, expected {' or '.join(task_classes(family))}")


def _public(place: str) -> str:
    """A place without the underscores that some versions of Keras put before attributes."""
    return "/".join(part.lstrip("_") for part in place.split("/"))


def task_classes(family: Family) -> list[str]:
    """KerasHub's classes of this family that have a head."""
    return [f"{family.stem}{head.keras_hub}" for head in family.heads.values() if head.rows and head.keras_hub]


def _config_of(described: Mapping[str, Any], path: Path) -> dict[str, Any]:
    config = described.get("config")
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: has no config, expected the arguments of a class of KerasHub's")
    return config


def _check_task(task: Mapping[str, Any], theirs: Mapping[str, Any], path: Path) -> None:
    """Refuse what our classes do not compute."""
    if task.get("activation") not in (None, "linear"):
        raise CheckpointError(
            f"{path}: its activation is {task['activation']!r:.80}, expected linear, as ours gives logits; "
            'say "linear" there to convert a classifier without its last function'
        )
    size = task.get("hidden_dim")
    if size not in (None, theirs.get("hidden_dim")):
        raise CheckpointError(
            f"{path}: its hidden_dim is {size!r:.80}, expected the backbone's {theirs.get('hidden_dim')!r:.80}: "
            "DistilBERT's classifier has no other size"
        )


def _config(ours: Any, theirs: Mapping[str, Any], task: Mapping[str, Any], folder: Path) -> DistilBertConfig:
    """Our config from theirs, and from what was kept of ours where that does not contradict it."""
    path = folder / CONFIG_FILE
    absent = sorted(FIELDS.keys() - theirs.keys())
    if absent or not isinstance(ours, dict):
        lacking = ", ".join(absent) or f"a mapping under {OURS}"
        raise CheckpointError(f"{path}: lacks {lacking}, expected a config as KerasHub saves it")
    values = {"attention_dropout": theirs["dropout"], "pad_token_id": _pad_token(folder)} | ours | FIXED
    values |= {name: theirs[field] for field, name in FIELDS.items()} | {"tie_word_embeddings": True}
    if "dropout" in task:
        values["seq_classif_dropout"] = task["dropout"]
    config = DistilBertConfig.from_dict(values)
    if "num_classes" in task and task["num_classes"] != config.num_labels:  # then our names are of other labels
        return DistilBertConfig.from_dict(config.to_dict(), num_labels=task["num_classes"])
    return config


def _pad_token(folder: Path) -> int:
    """The id of padding: KerasHub's tokenizer says, not its model."""
    path = current_file(folder, VOCABULARY_FILE)
    tokens = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return tokens.index(SPECIAL_TOKENS[0]) if SPECIAL_TOKENS[0] in tokens else DistilBertConfig.pad_token_id or 0


def _weights(folder: Path) -> tuple[Path, list[Path]]:
    """The backbone's file of weights, or the list of its parts, and the files themselves."""
    path = current_file(folder, WEIGHTS_FILE)
    if path.is_file():
        return path, [path]
    path = current_file(folder, SHARDS_FILE)
    if not path.is_file():
        raise CheckpointError(f"{folder}: no weights there; expected {WEIGHTS_FILE} or {SHARDS_FILE}")
    weight_map = hub.read_json(path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{path}: has no weight_map of variables to file names")
    names: dict[str, None] = {}
    for entry in weight_map.values():
        for name in entry if isinstance(entry, list) else [entry]:
            if not isinstance(name, str) or Path(name).name != name or "\\" in name:
                raise CheckpointError(f"{path}: names the shard {name!r:.80}, expected a plain file name")
            names[name] = None
    files = [current_file(folder, name) for name in names]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{path}: names the shard {file.name}, which is not there")
    return path, files


def _tokenizer_options(folder: Path, config: DistilBertConfig) -> dict[str, Any] | None:
    """Options of our tokenizer that give what theirs gives; None where the preset has no tokenizer."""
    path, vocabulary = current_file(folder, TOKENIZER_FILE), current_file(folder, VOCABULARY_FILE)
    if not path.is_file() or not vocabulary.is_file():
        return None
    theirs = _config_of(hub.read_json(path), path)
    for name, value in TOKENIZER.items():
        if theirs.get(name, value) != value:
            raise CheckpointError(f"{path}: its {name} is {theirs[name]!r:.80}, expected {value!r}: ours has no other")
    preprocessor = current_file(folder, PREPROCESSOR_FILE)
    limit = None
    if preprocessor.is_file():
        limit = _config_of(hub.read_json(preprocessor), preprocessor).get("sequence_length")
        if limit is not None and (type(limit) is not int or limit < 1):
            raise CheckpointError(f"{preprocessor}: its sequence_length is {limit!r:.80}, expected an integer above 0")
    return {
        "do_lower_case": bool(theirs.get("lowercase")),
        "strip_accents": bool(theirs.get("strip_accents")),
        "model_max_length": limit or config.max_position_embeddings,
    }


def read_tokenizer(folder: Path, config: DistilBertConfig) -> DistilBertTokenizer | None:
    """A preset's tokenizer as ours."""
    options = _tokenizer_options(folder, config)
    return None if options is None else DistilBertTokenizer(current_file(folder, VOCABULARY_FILE), **options)


def tokenizer_files(folder: Path, config: DistilBertConfig) -> dict[str, bytes]:
    """A preset's tokenizer as files of ours: what is in them, by name."""
    options = _tokenizer_options(folder, config)
    if options is None:
        return {}
    text = json.dumps(options | {"tokenizer_class": "DistilBertTokenizer"}, indent=2) + "\n"
    return {VOCAB_FILE: current_file(folder, VOCABULARY_FILE).read_bytes(), TOKENIZER_CONFIG_FILE: text.encode()}
