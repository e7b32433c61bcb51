"""A trained DistilBERT made smaller in every direction: a student to begin with, which has to be trained on.

What is kept of the hidden states are the directions in which they vary most over some texts; of the layers some,
evenly spread; of each layer's heads the first ones, and of its neurons those with the largest weights; of the
vocabulary what the texts need most. Which axis of a parameter is which of these, the table in ``core/spec.py`` says.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distilbert.conversion.source import open_source
from distilbert.core.backends import choose_backend
from distilbert.core.checkpoint import match, write_checkpoint
from distilbert.core.config import DistilBertConfig
from distilbert.core.errors import CheckpointError, InputError
from distilbert.core.spec import DISTILBERT, Kind, Parameter, parameters
from distilbert.core.tokenizer import SPECIAL, VOCAB_FILE, DistilBertTokenizer

SAMPLE = 256  # texts whose hidden states are looked at
SAMPLE_LENGTH = 64  # tokens of them


def reduce_model(
    teacher: str | Path,
    folder: str | Path,
    texts: Sequence[str],
    *,
    n_layers: int,
    dim: int,
    hidden_dim: int,
    vocab_size: int,
    dropout: float = 0.0,
    backend: str = "auto",
) -> list[Path]:
    """Write a smaller DistilBERT with what it can take of a trained one, its head and a smaller vocabulary.

    Args:
        teacher: a folder with a DistilBERT and its tokenizer.
        folder: where to.
        texts: what it shall be good at.
        n_layers: how many layers, at least 1.
        dim: of the hidden states, a multiple of the size of the teacher's heads, which stays.
        hidden_dim: of the feed-forward networks.
        vocab_size: words, at most.
        dropout: of all kinds; by default none, as a student this small learns by heart less than it forgets.
        backend: what computes the hidden states.

    Returns:
        The files written.

    Raises:
        CheckpointError: the teacher is absent, damaged or no DistilBERT, or the student cannot be written.
        InputError: a size that the teacher has not.
    """
    source = open_source(teacher)
    config = source.config
    if not isinstance(config, DistilBertConfig):
        raise CheckpointError(f"{teacher}: is a {config.model_type}, expected a DistilBERT; see init-student")
    head_size = config.dim // config.n_heads
    if dim % head_size:
        raise InputError(f"dim is {dim}, expected a multiple of {head_size}, the size of the teacher's heads")
    sizes = {"n_layers": n_layers, "dim": dim, "hidden_dim": hidden_dim}
    for name, value in sizes.items():
        if not 0 < value <= getattr(config, name):
            raise InputError(f"{name} is {value}, expected 1 to {getattr(config, name)}, which the teacher has")
    tokenizer = DistilBertTokenizer.from_pretrained(teacher)
    ids = tokenizer(list(texts), truncation=True, max_length=config.max_position_embeddings, verbose=False)["input_ids"]
    words = reduced_vocabulary(tokenizer, ids, vocab_size)
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / VOCAB_FILE).write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    small = DistilBertTokenizer(Path(folder) / VOCAB_FILE, do_lower_case=tokenizer.do_lower_case)

    rates = {"dropout": dropout, "attention_dropout": dropout, "seq_classif_dropout": dropout}
    own = {"n_heads": dim // head_size, "vocab_size": len(words), **rates}
    student = config.from_dict(config.to_dict(), **sizes, **own)
    listed = parameters(config, source.head)
    stored, _ = match(source.tensors, listed, source=str(source.path), ignore_mismatched_sizes=False)
    wide = {name: value.astype(np.float64) for name, value in stored.items()}
    probe = importlib.import_module(f"{choose_backend(backend)}.probe").Probe(source.head, teacher)
    states = hidden_states(probe, ids[:SAMPLE], config)
    rows = [tokenizer.get_vocab()[word] for word in words]
    tensors = project(wide, listed, parameters(student, source.head), states, rows, student)
    written = write_checkpoint(folder, student, tensors, head=source.head, family=DISTILBERT)
    return written + small.save_pretrained(folder)


def reduced_vocabulary(tokenizer: DistilBertTokenizer, ids: Sequence[Sequence[int]], size: int) -> list[str]:
    """The special tokens, every single ASCII character, and the tokens that occur most, in the tokenizer's order.

    Args:
        tokenizer: whose vocabulary it is.
        ids: of some texts.
        size: how many to keep, at most.

    Raises:
        InputError: a size too small for the characters.
    """
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    counts = np.bincount(np.concatenate([np.asarray(row) for row in ids]), minlength=max(names) + 1)
    special = {getattr(tokenizer, f"{name}_id") for name in SPECIAL}
    single = {number for number, name in names.items() if len(name.removeprefix("##")) == 1 and name.isascii()}
    kept = special | single
    if len(kept) > size:
        raise InputError(f"vocab_size is {size}, expected at least {len(kept)}, for special tokens and characters")
    for number in np.argsort(-counts, kind="stable").tolist():
        if len(kept) == size or not counts[number]:
            break
        kept.add(number)
    return [names[number] for number in [*sorted(special), *sorted(kept - special)]]


def hidden_states(probe: Any, ids: Sequence[Sequence[int]], config: DistilBertConfig) -> list[np.ndarray]:
    """What goes into the first layer, and what comes out of each, for all tokens of some texts: float64 (N, D)."""
    cut = [row[:SAMPLE_LENGTH] for row in ids]
    width = max(map(len, cut))
    mask = np.array([[number < len(row) for number in range(width)] for row in cut])
    input_ids = np.zeros(mask.shape, np.int64)
    input_ids[mask] = np.concatenate(cut)
    found = probe.outputs({"input_ids": input_ids, "attention_mask": mask.astype(np.int64)})
    return [found[f"hidden_states/{number}"][mask].astype(np.float64) for number in range(config.n_layers + 1)]


def project(
    teacher: Mapping[str, np.ndarray],
    teacher_rows: Sequence[Parameter],
    student_rows: Sequence[Parameter],
    states: Sequence[np.ndarray],
    words: Sequence[int],
    config: DistilBertConfig,
) -> dict[str, np.ndarray]:
    """The student's values by canonical name, float32.

    Args:
        teacher: its values by canonical name.
        teacher_rows: its parameters.
        student_rows: the student's.
        states: the teacher's, as ``hidden_states`` gives them.
        words: the teacher's that the student has.
        config: the student's.
    """
    values = {(row.layer, row.role, row.kind): teacher[row.name] for row in teacher_rows if row.tied_to is None}
    count = len(states) - 1
    layers = [round(number * (count - 1) / max(1, config.n_layers - 1)) for number in range(config.n_layers)]
    roles = {row.role for row in student_rows}
    moments = np.sum([state.T @ state / len(state) for state in states], 0)
    basis_DE = np.linalg.eigh(moments).eigenvectors[:, -config.dim :]
    tensors = {}
    for row in student_rows:
        if row.tied_to is not None:
            continue
        layer = None if row.layer is None else layers[row.layer]
        value = values[layer, row.role, row.kind]
        if row.kind is Kind.NORM_SCALE:
            # A norm after the projection: it gives what comes out the spread that the projected states have.
            shift = values[layer, row.role, Kind.NORM_BIAS] @ basis_DE
            after = states[0 if layer is None else layer + 1] @ basis_DE
            tensors[row.name] = np.sqrt(np.square(after - shift).mean(0)).astype(np.float32)
            continue
        for number, axis in enumerate(row.axes):
            if axis == "hidden_size" and not is_inside(row, number, roles):
                value = np.moveaxis(np.tensordot(value, basis_DE, (number, 0)), -1, number)
            elif axis == "vocab_size":
                value = value.take(words, number)
            elif axis == "intermediate_size":
                value = value.take(
                    largest(values, layer, "feed_forward_in", "feed_forward_out", row.shape[number]), number
                )
            elif is_inside(row, number, roles):
                value = value.take(largest(values, layer, "pre_classifier", "classifier", row.shape[number]), number)
            else:  # heads, positions, labels: the first ones
                value = value.take(range(row.shape[number]), number)
        tensors[row.name] = value.astype(np.float32)
    return tensors


def is_inside(row: Parameter, axis: int, roles: Iterable[str]) -> bool:
    """Whether an axis counts the neurons between the two layers of a classifier, not a hidden state's dimensions."""
    of_second = row.role == "classifier" and row.axes[axis] == "hidden_size" and "pre_classifier" in roles
    return (row.role == "pre_classifier" and axis == 0) or of_second


def largest(values: Mapping[Any, np.ndarray], layer: int | None, before: str, after: str, count: int) -> np.ndarray:
    """The neurons between two layers that have the largest weights, by number."""
    norms = np.linalg.norm(values[layer, before, Kind.WEIGHT], axis=1)
    norms = norms * np.linalg.norm(values[layer, after, Kind.WEIGHT], axis=0)
    return np.sort(np.argsort(-norms, kind="stable")[:count])
