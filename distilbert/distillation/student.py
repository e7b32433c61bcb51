"""A DistilBERT of layers of a BERT, without training: where distillation begins (Sanh et al. 2019, section 3)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from distilbert.conversion.source import open_source
from distilbert.core.checkpoint import match, write_checkpoint
from distilbert.core.config import BertConfig, DistilBertConfig
from distilbert.core.errors import CheckpointError, InputError
from distilbert.core.files import current_file
from distilbert.core.spec import BERT, DISTILBERT, Parameter, parameters
from distilbert.core.tokenizer import FILES, DistilBertTokenizer

logger = logging.getLogger("distilbert")

# The student's head for each of the teacher's, where there is one that computes the same: BERT's classifiers of texts
# read the pooler's tanh, DistilBERT's a ReLU.
HEADS = {
    "pretraining": "masked-lm",
    "masked-lm": "masked-lm",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
}
# What the two configs call the same thing.
CONFIG_FIELDS = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
    "n_heads": "num_attention_heads",
    "dim": "hidden_size",
    "hidden_dim": "intermediate_size",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "seq_classif_dropout": "seq_classif_dropout",
    "initializer_range": "initializer_range",
    "pad_token_id": "pad_token_id",
    "tie_word_embeddings": "tie_word_embeddings",
    "id2label": "id2label",
    "label2id": "label2id",
    "problem_type": "problem_type",
}


def init_student(
    teacher: str | Path,
    folder: str | Path,
    *,
    layers: Sequence[int] | str | None = None,
    head: str | None = None,
    file_format: str = "safetensors",
    overwrite: bool = False,
) -> list[Path]:
    """Write a DistilBERT with the embeddings, some layers and the head of a BERT, and its tokenizer.

    BERT adds a segment's vector to every token's; DistilBERT has none. That of the first segment goes into the
    positions, so that with all layers the student computes what the teacher does for single texts.

    Args:
        teacher: a folder with a BERT, in any format.
        folder: where to.
        layers: which to take, from 0, in order; by default half of them, from the first to the last: of twelve 0, 2, 4,
            7, 9, 11, as the published DistilBERT has them; or ``"all"``.
        head: the student's; by default the teacher's where DistilBERT has the same, otherwise none (``"base"``).
        file_format: ``"safetensors"``, ``"torch"``, ``"h5"``, ``"msgpack"``, ``"keras"`` or ``"keras-weights"``.
        overwrite: the folder may have a checkpoint already.

    Returns:
        The files written.

    Raises:
        CheckpointError: the teacher is absent, damaged or no BERT, or the student cannot be written.
        InputError: layers that the teacher has not, or a head that does not come from the teacher's.
    """
    source = open_source(teacher)
    config = source.config
    if not isinstance(config, BertConfig):
        raise CheckpointError(f"{teacher}: is a {config.model_type}, expected a BERT")
    own = HEADS.get(source.head, "base")
    head = own if head is None else head
    if head not in (own, "base"):
        raise InputError(f"{teacher}: is a BERT for {source.head}, of which a student can have the head {own} or base")
    count = config.num_hidden_layers
    chosen = evenly(count) if layers is None else list(range(count) if layers == "all" else map(int, layers))
    for layer in chosen:
        if not 0 <= layer < count:
            raise InputError(f"layers: {layer} is none of the teacher's, expected 0 to {count - 1}")
    if not chosen:
        raise InputError("layers: none is chosen, expected at least one")
    if not overwrite and (Path(folder) / "config.json").exists():
        raise CheckpointError(f"{folder}: has a checkpoint already; choose another folder, or overwrite it")
    if config.layer_norm_eps != DistilBertConfig.layer_norm_eps:
        logger.warning(
            "the teacher's layer_norm_eps is %g, a DistilBERT's always %g: outputs differ a little",
            *(config.layer_norm_eps, DistilBertConfig.layer_norm_eps),
        )
    student = student_config(config, chosen)
    listed = parameters(config, source.head, BERT)
    stored, _ = match(source.tensors, listed, source=str(source.path), ignore_mismatched_sizes=False, family=BERT)
    tensors = student_tensors(stored, listed, parameters(student, head, DISTILBERT), chosen)
    written = write_checkpoint(folder, student, tensors, head=head, file_format=file_format, family=DISTILBERT)
    if any(current_file(source.folder, name).is_file() for name in FILES):
        written += DistilBertTokenizer.from_pretrained(source.folder).save_pretrained(folder)
    return written


def evenly(count: int) -> list[int]:
    """Half of the layers, from the first to the last, as evenly as they come."""
    half = max(1, count // 2)
    return [round(number * (count - 1) / (half - 1)) for number in range(half)] if half > 1 else [0]


def student_config(teacher: BertConfig, layers: Sequence[int]) -> DistilBertConfig:
    """The config of a DistilBERT with these layers of a BERT."""
    values = {name: getattr(teacher, other) for name, other in CONFIG_FIELDS.items()}
    pruned = {new: teacher.pruned_heads[old] for new, old in enumerate(layers) if old in teacher.pruned_heads}
    return DistilBertConfig(**teacher.extra, **values, n_layers=len(layers), pruned_heads=pruned)


def student_tensors(
    teacher: Mapping[str, np.ndarray],
    teacher_rows: Iterable[Parameter],
    student_rows: Iterable[Parameter],
    layers: Sequence[int],
) -> dict[str, np.ndarray]:
    """The student's values by canonical name, in the types they are stored in.

    Args:
        teacher: the teacher's, likewise.
        teacher_rows: its parameters.
        student_rows: the student's.
        layers: the teacher's that the student has.
    """
    names = {(row.layer, row.role, row.kind): row.name for row in teacher_rows if row.tied_to is None}
    types = next(teacher[name] for (_, role, _), name in names.items() if role == "types")
    tensors = {}
    for row in student_rows:
        if row.tied_to is None:
            layer = None if row.layer is None else layers[row.layer]
            value = teacher[names[layer, row.role, row.kind]]
            if row.role == "positions":
                value = (value.astype(np.float64) + types[0].astype(np.float64)).astype(value.dtype)
            tensors[row.name] = value
    return tensors
