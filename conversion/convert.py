"""From one format to another: first the whole plan, then the writing. No value passes through arithmetic."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distilbert.conversion import keras_hub, keras_hub_writer
from distilbert.conversion.source import EVERY_FORMAT, NAMES, Source, open_source
from distilbert.conversion.verification import Verification, VerificationError, compare, require_frameworks
from distilbert.core.checkpoint import FORMATS, Save, oriented, pair, shown
from distilbert.core.errors import CheckpointError, InputError
from distilbert.core.files import flush, replace_files
from distilbert.core.formats import DTYPES, TILE, counted, forget, same_bits
from distilbert.core.spec import (
    Family,
    Kind,
    canonical_name,
    initial_value,
    parameters,
)
from distilbert.core.tokenizer import FILES as TOKENIZER_FILES
from distilbert.core.tokenizer import TOKENIZER_FILE, VOCAB_FILE, DistilBertTokenizer

ATOL = 1e-5
CASTS = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class Entry:
    """What becomes of one tensor.

    ``source`` and ``target`` are its names in the files, None where it has none there; Keras's and KerasHub's files
    number their parts, and for them it is what our Keras classes call it. ``shape`` is the target's, or the source's
    where it is dropped. ``note`` is empty, or one of "tied", "dropped", "initialised".
    """

    source: str | None
    target: str | None
    shape: tuple[int, ...]
    dtype: str
    is_transposed: bool = False
    note: str = ""


@dataclass(frozen=True)
class Report:
    """What a conversion did, or with ``dry_run`` would do."""

    source: Path  # the file of weights, or their index
    target: Path
    source_format: str
    target_format: str
    head: str
    entries: tuple[Entry, ...]
    files: tuple[str, ...]  # in the target's folder
    verification: Verification | None = None


def convert(
    source: str | Path,
    target: str | Path,
    to: str,
    *,
    source_format: str | None = None,
    head: str | None = None,
    dtype: str | None = None,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
    allow_unused: Collection[str] = (),
    allow_missing: Collection[str] = (),
    dry_run: bool = False,
    verify: bool = False,
    atol: float = ATOL,
    progress: Callable[[int, int], None] = lambda size, total: None,
) -> Report:
    """Convert a checkpoint's weights; its config and its tokenizer go along.

    Args:
        source: a folder with a checkpoint, or the file of weights in it.
        target: the folder to write, all of it or nothing.
        to: ``"safetensors"``, ``"torch"`` (``pytorch_model.bin``), ``"h5"`` or ``"msgpack"`` as transformers has them;
            ``"keras"`` (``model.keras``) or ``"keras-weights"`` (``model.weights.h5``) for our Keras classes;
            ``"keras-hub"``, a preset of KerasHub's.
        source_format: which weights to take where the folder holds several.
        head: what the weights compute, where their names leave that open.
        dtype: cast floats to ``"float32"``, ``"float16"``, ``"bfloat16"`` or ``"float64"``; by default they stay.
        max_shard_size: bytes or a text such as ``"500MB"``; larger weights are split, with an index,
            but for Keras's and KerasHub's formats.
        overwrite: replace the checkpoint that ``target`` holds; other files in it stay.
        allow_unused: source names to leave behind.
        allow_missing: canonical names (PyTorch's) to initialise where the source lacks them.
        dry_run: plan only, write nothing.
        verify: compare what source and target compute before the target gets its name, see ``verification.compare``.
        atol: the largest difference that ``verify`` allows in any number, in units of the largest where that is more
            than 1. A cast by ``dtype`` counts as a difference.
        progress: called for each tensor written with its size and that of all, in bytes.

    Raises:
        CheckpointError: the source is absent, ambiguous or damaged; tensors would be left over, are missing or
            misshapen (all are named); the target is there already, or cannot be written.
        InputError: an unknown format, head, dtype or size, or a model that KerasHub's classes cannot be.
        MissingBackendError: ``verify`` needs a framework that is not installed.
        VerificationError: source and target differ; it has the differences, and nothing was written.
    """
    opened = open_source(source, file_format=source_format, head=head)
    if dtype is not None and dtype not in CASTS:
        raise InputError(f"dtype is {dtype!r}, expected one of {', '.join(CASTS)}")
    if to not in NAMES:
        raise InputError(f"the format is {to!r}, expected one of {', '.join(NAMES)}")
    if verify:
        if allow_missing:
            raise InputError("verify and allow_missing: a source that lacks weights computes nothing to compare with")
        if dry_run:
            raise InputError("verify and dry_run: a dry run writes nothing that could be verified")
        require_frameworks(opened.file_format, to)
    planned, entries = _plan(opened, to, dtype, allow_unused, allow_missing)
    target = Path(target)
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not overwrite)):
        raise CheckpointError(f"{target}: is there already; choose another place, or overwrite it (--overwrite)")
    same = target.exists() and target.samefile(opened.folder)
    if same and keras_hub.NAME in (to, opened.file_format) and to != opened.file_format:
        raise CheckpointError(f"{target}: holds the source, whose config.json is of another kind; choose another place")
    found = None
    with _cast(planned, dtype, target, dry_run) as tensors:
        save = _prepared(opened, tensors, to, max_shard_size)
        travelling = _tokenizer_files(opened) if to != keras_hub.NAME else {}
        files = (*save.written, *travelling)
        if not dry_run:
            older = _older(target, to, opened.family, same, bool(travelling)).difference(files)
            total = sum(tensor.nbytes for tensor in tensors.values())
            with _written(target, tuple(older)) as stage:
                with counted(lambda size: progress(size, total)):
                    save.write(stage)
                for name, content in () if same else travelling.items():
                    (stage / name).write_bytes(content)
                if verify:
                    found = compare(opened, stage, to, atol)
                    if found.first_outside is not None:
                        raise VerificationError(found, target)
    return Report(opened.path, target, opened.file_format, to, opened.head, tuple(entries), files, found)


def _prepared(
    source: Source, tensors: dict[str, np.ndarray], to: str, max_shard_size: int | str
) -> Save | keras_hub_writer.Preset:
    """All that is to be written, but for the tokenizer of a checkpoint."""
    config = source.config.from_dict(
        source.config.to_dict(),
        dtype=next(iter(tensors.values())).dtype.name,
        architectures=[source.family.class_name(source.head)],
    )
    if to == keras_hub.NAME:
        return keras_hub_writer.Preset.prepare(
            config, tensors, head=source.head, family=source.family, tokenizer=_tokenizer(source)
        )
    return Save.prepare(
        config, tensors, head=source.head, file_format=to, max_shard_size=max_shard_size, family=source.family
    )


@contextmanager
def _cast(
    tensors: dict[str, np.ndarray], dtype: str | None, target: Path, dry_run: bool
) -> Iterator[dict[str, np.ndarray]]:
    """The tensors with floats as ``dtype``: in a file without a name beside the target, as memory may not hold them."""
    floats = {name: tensor for name, tensor in tensors.items() if _is_float(tensor) and tensor.dtype.name != dtype}
    if dtype is None or not floats:
        yield tensors
        return
    wanted = DTYPES[dtype]
    if dry_run:  # which asks for sizes only
        yield tensors | {name: np.broadcast_to(np.empty((), wanted), tensor.shape) for name, tensor in floats.items()}
        return
    folder = next(place for place in (target.resolve(), *target.resolve().parents) if place.exists())
    cast: dict[str, np.ndarray] = {}
    with _explained(folder), tempfile.TemporaryFile(dir=folder) as file:
        for name, tensor in floats.items():
            start, size = file.seek(0, os.SEEK_END), tensor.size * wanted.itemsize
            if hasattr(os, "posix_fallocate"):  # a disk that is full says so here, and only stops us below
                os.posix_fallocate(file.fileno(), start, size)
            else:
                file.truncate(start + size)
            cast[name] = np.memmap(file, wanted, "r+", start, tensor.shape)
            for row in range(0, len(tensor), TILE):
                rows = np.s_[row : row + TILE]
                with np.errstate(over="ignore"):
                    cast[name][rows] = tensor[rows]
                if np.isfinite(cast[name][rows]).sum() < np.isfinite(tensor[rows]).sum():
                    raise InputError(f"{name} has values too large for {dtype}; choose bfloat16, or leave the type")
                forget(cast[name][rows])
                if tensor.flags.c_contiguous:
                    forget(tensor[rows])
            forget(tensor)
        yield tensors | cast


@contextmanager
def _explained(place: Path) -> Iterator[None]:
    """What the system refuses, as one line."""
    try:
        yield
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{place}: cannot write: {error.strerror or error}; nothing was changed") from error


def _tokenizer_files(source: Source) -> dict[str, bytes]:
    """What is in the files of the source's tokenizer, by name."""
    if source.file_format == keras_hub.NAME:
        return keras_hub.tokenizer_files(source.folder, source.config)
    present = [name for name in TOKENIZER_FILES if (source.folder / name).is_file()]
    return {name: (source.folder / name).read_bytes() for name in present}


def _tokenizer(source: Source) -> DistilBertTokenizer | None:
    """The source's tokenizer, where it has one."""
    if source.file_format == keras_hub.NAME:
        return keras_hub.read_tokenizer(source.folder, source.config)
    is_there = any((source.folder / name).is_file() for name in (TOKENIZER_FILE, VOCAB_FILE))
    return DistilBertTokenizer.from_pretrained(source.folder) if is_there else None


def _older(target: Path, to: str, family: Family, same: bool, has_tokenizer: bool) -> set[str]:
    """Names of files in the target that would be read instead of the new ones, or with them.

    ``same`` says that the target is where the source lies, ``has_tokenizer`` that a tokenizer comes along.
    """
    # Weights in other formats would be read instead of the new ones, but in place they are where these came from.
    forms = [FORMATS[to]] if same and to in FORMATS else FORMATS.values()
    older = {name for form in forms for name in (form.filename, form.index_file)}
    if to == keras_hub.NAME or keras_hub.is_preset(target, family):
        older |= set(keras_hub.FILES)
    if has_tokenizer and not same:  # a tokenizer.json would be read instead of a new vocab.txt
        older |= set(TOKENIZER_FILES)
    return older


def _plan(
    source: Source, to: str, dtype: str | None, allow_unused: Collection[str], allow_missing: Collection[str]
) -> tuple[dict[str, np.ndarray], list[Entry]]:
    """The target's tensors under canonical names, and what becomes of each."""
    form = EVERY_FORMAT[to]
    listed = parameters(source.config, source.head, source.family)
    pairing = pair(source.tensors, listed, source=str(source.path), family=source.family)
    tensors: dict[str, np.ndarray] = {}
    entries: list[Entry] = []
    problems: list[str] = []
    for row in listed:
        if row.tied_to is not None:
            continue
        name = pairing.stored.get(row.name)
        if name is not None:
            value = oriented(source.tensors, name)
            if value.shape != row.shape:
                problems.append(f"{shown(name)} is {source.tensors[name].shape}, which contradicts the config")
                continue
        elif row.kind is Kind.SINUSOID or row.name in allow_missing:
            value = initial_value(row, source.config, np.random.default_rng(0))
        else:
            problems.append(f"{row.name} is missing")
            continue
        tensors[row.name] = value
        turned = form.layout.is_transposed(row)
        entries.append(
            Entry(
                source=name,
                target=form.name(row, source.family),
                shape=row.shape[::-1] if turned else row.shape,
                dtype=dtype if dtype is not None and _is_float(value) else value.dtype.name,
                is_transposed=name is not None and canonical_name(name)[1] != turned,
                note="" if name is not None else "initialised",
            )
        )
    for name, shared in pairing.repeated.items():
        own = pairing.stored.get(shared)
        if own is not None and not same_bits(oriented(source.tensors, name), oriented(source.tensors, own)):
            problems.append(f"{shown(name)} differs from {shared}, to which tie_word_embeddings in the config ties it")
        entries.append(Entry(name, None, source.tensors[name].shape, source.tensors[name].dtype.name, note="tied"))
    for name in (*pairing.counters, *pairing.unused):
        if name in pairing.unused and name not in allow_unused:
            problems.append(f"{shown(name)} would be left over")
        entries.append(Entry(name, None, source.tensors[name].shape, source.tensors[name].dtype.name, note="dropped"))
    if problems:
        raise CheckpointError(f"{source.path}, as {source.head}: {'; '.join(problems)}")
    return tensors, entries


def _is_float(tensor: np.ndarray) -> bool:
    return tensor.dtype.kind in "fV"  # V: what numpy lacks and ml_dtypes has


@contextmanager
def _written(target: Path, superseded: tuple[str, ...]) -> Iterator[Path]:
    """An empty folder to write into, which becomes ``target`` by one rename, or its files those of ``target``."""
    if target.exists():
        with replace_files(target, superseded) as stage:
            yield stage
        return
    target = target.resolve()
    unfinished = target.with_name(f".{target.name}.unfinished-{uuid.uuid4().hex[:8]}")
    try:
        with _explained(target):
            unfinished.mkdir(parents=True)
            yield unfinished
            for path in (*unfinished.rglob("*"), unfinished):
                flush(path)
            unfinished.replace(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
