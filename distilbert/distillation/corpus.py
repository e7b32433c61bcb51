"""Texts as token ids on disk, to be read without copying.

A corpus is a folder. ``tokens-00000.npy`` holds the sequences of a shard one after the other, each with its ``[CLS]``
and ``[SEP]``; ``offsets-00000.npy`` where each begins, and where the last ends; ``counts.npy`` how often each id occurs
in all of them; ``meta.json`` everything else. Only what ``meta.json`` names counts: it is replaced after each shard.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from distilbert.core.errors import CheckpointError, InputError
from distilbert.core.files import flush
from distilbert.core.records import Layout, open_records
from distilbert.core.tokenizer import SPECIAL, DistilBertTokenizer

META_FILE = "meta.json"
COUNTS_FILE = "counts.npy"
FORMAT = 1
UNFINISHED = ".unfinished"

# As in the published run: 12 tokens, of which [CLS] and [SEP] are two, are the fewest to learn from.
MIN_TOKENS = 12
MAX_UNKNOWN = 0.5
MAX_LENGTH = 512
SHARD_TOKENS = 1 << 26  # what a crash costs: a minute of one core

ENDS = 2  # [CLS] and [SEP]
RECORDS = 1024  # read at a time
GROUP_CHARACTERS = 1 << 20  # tokenised at a time: enough for many threads, and no more memory than that takes
# A whole book on one line would take hundreds of bytes a token while it is tokenised.
TEXT_CHARACTERS = GROUP_CHARACTERS
COUNTED_TOKENS = 1 << 22  # at a time, since they become int64


@dataclass
class _State:
    """What ``meta.json`` says."""

    configuration: dict[str, Any]
    format: int = FORMAT
    complete: bool = False
    file: int = 0  # the position: files that are done, and texts of the next
    text: int = 0
    texts: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: {"short": 0, "unknown": 0})
    shards: list[dict[str, int]] = field(default_factory=list)

    @property
    def dtype(self) -> np.dtype:
        """Of the tokens."""
        return np.dtype(np.uint16 if self.configuration["vocabulary_size"] <= 1 << 16 else np.uint32)

    def total(self, name: str) -> int:
        return sum(shard[name] for shard in self.shards)


class Corpus(Sequence[np.ndarray]):
    """The sequences of a folder that ``prepare_corpus`` wrote.

    ``corpus[i]`` is a view (L,) of the mapped file, uint16 or uint32. ``lengths`` (N,) are uint32, ``counts`` (V,)
    uint64. Files of others are not trusted: what is not as ``prepare_corpus`` writes it is refused, but for the ids,
    which are not read yet.

    Args:
        path: the folder.

    Raises:
        CheckpointError: no corpus, one that is not complete, or one whose files do not fit together.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        state = _read_state(self.path)
        if state is None:
            raise CheckpointError(f"{path}: has no {META_FILE}, expected a folder that prepare-corpus wrote")
        if not state.complete:
            raise CheckpointError(
                f"{path}: is not complete, it has {len(state.shards)} shards so far; run the same prepare-corpus again"
            )
        self.configuration = state.configuration
        self.special_ids: list[int] = state.configuration["special_ids"]
        self.counts = _map(self.path / COUNTS_FILE, np.dtype(np.uint64), state.configuration["vocabulary_size"])
        self._tokens: list[np.ndarray] = []
        self._offsets: list[np.ndarray] = []
        lengths = [np.zeros(0, np.uint32)]
        for number, shard in enumerate(state.shards):
            tokens, offsets = _shard_paths(self.path, number)
            self._tokens.append(_map(tokens, state.dtype, shard["tokens"]))
            self._offsets.append(_map(offsets, np.dtype(np.uint64), shard["sequences"] + 1))
            lengths.append(_lengths(offsets, self._offsets[-1], state, shard["tokens"]))
        self.lengths = np.concatenate(lengths)
        self._ends = np.cumsum([len(part) for part in lengths[1:]], dtype=np.int64)

    def __reduce__(self) -> tuple[type[Corpus], tuple[Path]]:
        return Corpus, (self.path,)  # workers of a data loader map the files, too, instead of getting a copy

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        index = range(len(self))[index]
        if isinstance(index, range):
            return [self[number] for number in index]
        shard = int(np.searchsorted(self._ends, index, "right"))
        row = index - (int(self._ends[shard - 1]) if shard else 0)
        start, end = self._offsets[shard][row : row + 2].tolist()
        return self._tokens[shard][start:end]


def prepare_corpus(
    files: Iterable[str | Path],
    out: str | Path,
    tokenizer: DistilBertTokenizer,
    *,
    layout: Layout | None = None,
    max_length: int = MAX_LENGTH,
    min_tokens: int = MIN_TOKENS,
    max_unknown: float = MAX_UNKNOWN,
    shard_tokens: int = SHARD_TOKENS,
    overwrite: bool = False,
    progress: Callable[[int, int, int], None] | None = None,
) -> dict[str, Any]:
    """Tokenise files into a corpus, with all cores (or ``RAYON_NUM_THREADS`` of them).

    After a crash, also of the machine, the same call goes on behind the last whole shard, and ends with the same bytes.

    Args:
        files: what ``open_records`` reads; each record is a text, of which long ones become several sequences.
        out: the folder.
        tokenizer: text to ids.
        layout: what the files hold.
        max_length: most tokens of a sequence, ``[CLS]`` and ``[SEP]`` among them.
        min_tokens: shorter sequences are dropped.
        max_unknown: sequences with this share of ``[UNK]``, or more, are dropped.
        shard_tokens: a shard ends with the group of texts that reaches this many.
        overwrite: begin anew where ``out`` holds another corpus.
        progress: is told bytes of the files read, those of all, and tokens written so far.

    Returns:
        A summary: texts, sequences, tokens, shards, and dropped sequences by reason.

    Raises:
        InputError: a file that cannot be read again or holds no texts, limits that contradict each other, or ``out``
            holds something else than the beginning of this corpus.
        CheckpointError: the system refuses to write; whole shards stay, and the same call goes on behind them.
    """
    out, names = Path(out), [str(name) for name in files]
    if max_length <= ENDS or max_length < min_tokens:
        raise InputError(f"max_length is {max_length}, expected more than {ENDS} and at least min_tokens={min_tokens}")
    configuration = {
        "tokenizer": fingerprint(tokenizer),
        "vocabulary_size": max(tokenizer.get_vocab().values()) + 1,
        "special_ids": sorted(set(tokenizer.all_special_ids)),
        "special_tokens": {name: getattr(tokenizer, f"{name}_id") for name in SPECIAL},
        "max_length": max_length,
        "min_tokens": min_tokens,
        "max_unknown": max_unknown,
        "shard_tokens": shard_tokens,
        "layout": asdict(layout or Layout()),
        "files": [_identity(name) for name in names],
    }
    state = _begin(out, configuration, overwrite)
    if not state.complete:
        _write_shards(out, state, names, tokenizer, layout, progress or (lambda read, size, tokens: None))
        _write_array(out / COUNTS_FILE, [_count(out, state)])
        state.complete = True
        _write_state(out, state)
    return {
        "texts": state.texts,
        "sequences": state.total("sequences"),
        "tokens": state.total("tokens"),
        "shards": len(state.shards),
        "dropped": state.dropped,
    }


def fingerprint(tokenizer: DistilBertTokenizer) -> str:
    """A hash of all that decides which ids a text becomes."""
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    for name in ("truncation", "padding"):  # of the latest call
        del stored[name]
    return hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()


def _identity(name: str) -> dict[str, Any]:
    path = Path(name)
    if not path.is_file():
        found = "is not a plain file" if path.exists() or name == "-" else "no such file"
        raise InputError(f"{name}: {found}; expected one that can be read again after a crash")
    return {"name": name, "size": path.stat().st_size, "modified_ns": path.stat().st_mtime_ns}


def _begin(out: Path, configuration: dict[str, Any], overwrite: bool) -> _State:
    """The state to go on from, written to ``out``, which holds nothing else."""
    state = None if overwrite else _read_state(out)
    if state is None:
        if out.exists() and not out.is_dir():
            raise InputError(f"{out}: is a file, expected a folder to write")
        out.mkdir(parents=True, exist_ok=True)
        if not (out / META_FILE).is_file() and any(not _is_unfinished(path) for path in out.iterdir()):
            raise InputError(f"{out}: holds something else than a corpus, expected a new or empty folder")
        state = _State(configuration)
        _write_state(out, state)
    for name, value in configuration.items():
        if state.configuration.get(name) != value:
            raise InputError(f"{out}: holds a corpus made with other {name}; name another folder, or overwrite it")
    kept = {path for number in range(len(state.shards)) for path in _shard_paths(out, number)}
    for path in out.iterdir():
        is_stale = path.match("tokens-*.npy") or path.match("offsets-*.npy") or _is_unfinished(path)
        if is_stale and path not in kept:
            path.unlink(missing_ok=True)
    return state


def _is_unfinished(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(UNFINISHED)


def _write_shards(
    out: Path,
    state: _State,
    names: list[str],
    tokenizer: DistilBertTokenizer,
    layout: Layout | None,
    progress: Callable[[int, int, int], None],
) -> None:
    """All shards that the state lacks."""
    sizes = [identity["size"] for identity in state.configuration["files"]]
    ids: list[np.ndarray] = []
    lengths: list[np.ndarray] = []
    tokens = written = state.total("tokens")

    def advance(position: int) -> None:
        progress(sum(sizes[: state.file]) + position, sum(sizes), tokens)

    for file in range(state.file, len(names)):
        for group in _groups(names[file], layout, state.text, advance):
            state.text += len(group)
            state.texts += len(group)
            group_ids, group_lengths = _tokenize(group, tokenizer, state)
            ids.append(group_ids)
            lengths.append(group_lengths)
            tokens += len(group_ids)
            if tokens - written >= state.configuration["shard_tokens"]:
                _write_shard(out, state, ids, lengths)
                ids, lengths, written = [], [], tokens
        state.file, state.text = file + 1, 0
    if tokens > written:
        _write_shard(out, state, ids, lengths)


def _groups(name: str, layout: Layout | None, skip: int, progress: Callable[[int], None]) -> Iterator[list[str]]:
    """A file's texts but for the first, in groups that do not depend on how many were skipped at the end of one."""
    group: list[str] = []
    characters = 0
    with open_records(name, RECORDS, layout, progress) as windows:
        for number, record in enumerate(chain.from_iterable(windows), 1):
            if not isinstance(record, str):
                raise InputError(
                    f"{name}: record {number} is a {type(record).__name__}, expected a text; name its field or column"
                )
            for text in _cut(record):
                if skip:
                    skip -= 1
                    continue
                group.append(text)
                characters += len(text)
                if characters >= GROUP_CHARACTERS:
                    yield group
                    group, characters = [], 0
    if group:
        yield group


def _cut(text: str) -> Iterator[str]:
    """A text, or where it is very long several, cut at blanks."""
    start = 0
    while len(text) - start > TEXT_CHARACTERS:
        blank = text.rfind(" ", start + 1, start + TEXT_CHARACTERS)
        end = blank if blank > 0 else start + TEXT_CHARACTERS
        yield text[start:end]
        start = end
    yield text[start:] if start else text


def _tokenize(texts: list[str], tokenizer: DistilBertTokenizer, state: _State) -> tuple[np.ndarray, np.ndarray]:
    """The ids of all sequences that are kept, one after the other, and the length of each."""
    configuration = state.configuration
    rows = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    row_lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    ids = np.fromiter(chain.from_iterable(rows), state.dtype, row_lengths.sum())

    room = configuration["max_length"] - ENDS
    pieces = np.maximum(-(-row_lengths // room), 1)
    lengths = np.full(pieces.sum(), room)
    lengths[np.cumsum(pieces) - 1] = row_lengths - (pieces - 1) * room  # what is left for the last of each text
    ends = np.cumsum(lengths)
    unknown = np.concatenate([[0], np.cumsum(ids == tokenizer.unk_token_id)])
    unknown = unknown[ends] - unknown[ends - lengths]

    is_short = lengths + ENDS < configuration["min_tokens"]
    is_unknown = ~is_short & (unknown >= configuration["max_unknown"] * (lengths + ENDS))
    state.dropped["short"] += int(is_short.sum())
    state.dropped["unknown"] += int(is_unknown.sum())

    kept = ~is_short & ~is_unknown
    ids = ids[np.repeat(kept, lengths)]
    lengths = lengths[kept]
    whole = np.empty(len(ids) + ENDS * len(lengths), state.dtype)
    ends = np.cumsum(lengths + ENDS)
    whole[ends - lengths - ENDS] = tokenizer.cls_token_id
    whole[ends - 1] = tokenizer.sep_token_id
    whole[np.arange(len(ids)) + np.repeat(ENDS * np.arange(len(lengths)) + 1, lengths)] = ids
    return whole, lengths + ENDS


def _write_shard(out: Path, state: _State, ids: list[np.ndarray], lengths: list[np.ndarray]) -> None:
    """Write a shard, and then that it is there."""
    tokens, offsets = _shard_paths(out, len(state.shards))
    ends = np.cumsum(np.concatenate([[0], *lengths]), dtype=np.uint64)
    _write_array(tokens, ids)
    _write_array(offsets, [ends])
    state.shards.append({"sequences": len(ends) - 1, "tokens": int(ends[-1])})
    _write_state(out, state)


def _shard_paths(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / f"tokens-{number:05}.npy", folder / f"offsets-{number:05}.npy"


def _write_array(path: Path, parts: list[np.ndarray]) -> None:
    """The parts as one array."""
    _write(path, [_header(parts[0].dtype, sum(map(len, parts))), *(part.data for part in parts)])


def _header(dtype: np.dtype, size: int) -> bytes:
    """How ``numpy.save`` begins the file of a one-dimensional array (numpy.lib.format, version 1.0)."""
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({size},), }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def _write_state(out: Path, state: _State) -> None:
    _write(out / META_FILE, [json.dumps(asdict(state), indent=2).encode() + b"\n"])


def _write(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """A file that is there whole or not at all, also after a crash of the machine."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        with unfinished.open("wb") as file:
            for part in parts:
                file.write(part)
        flush(unfinished)
        unfinished.replace(path)
        flush(path.parent)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(
            f"{path}: cannot write: {reason}; the same command goes on after the last shard"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _count(out: Path, state: _State) -> np.ndarray:
    """How often each id occurs, uint64 (V,)."""
    counts = np.zeros(state.configuration["vocabulary_size"], np.uint64)
    for number, shard in enumerate(state.shards):
        tokens = _map(_shard_paths(out, number)[0], state.dtype, shard["tokens"])
        for start in range(0, len(tokens), COUNTED_TOKENS):
            part = tokens[start : start + COUNTED_TOKENS]
            counts += np.bincount(part, minlength=len(counts)).astype(np.uint64)
    return counts


def _read_state(folder: Path) -> _State | None:
    """What ``meta.json`` says, None where there is none.

    Raises:
        CheckpointError: it is not what this module writes.
    """
    path = folder / META_FILE
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        state = _State(**stored)
        _require(state.format == FORMAT, f"has the format {state.format!r}, expected {FORMAT}")
        configuration = state.configuration
        numbers = [configuration[name] for name in ("vocabulary_size", "max_length", "min_tokens", "shard_tokens")]
        in_shards = [number for shard in state.shards for number in (shard["sequences"], shard["tokens"])]
        numbers += [state.file, state.text, state.texts, *state.dropped.values()]
        ids = [*configuration["special_ids"], *configuration["special_tokens"].values()]
        _require(
            all(type(number) is int and number >= 0 for number in [*numbers, *in_shards, *ids]),
            "has a negative or fractional number",
        )
        _require(max(ids) < configuration["vocabulary_size"] <= 1 << 32, "has ids out of range")
        _require(0 not in in_shards, "has an empty shard")
        _require(type(state.complete) is bool, "does not say whether it is complete")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: is not a corpus's: {error}") from None
    return state


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _map(path: Path, dtype: np.dtype, size: int) -> np.ndarray:
    """A one-dimensional array of a file, mapped.

    Raises:
        CheckpointError: the file is not there, or holds something else.
    """
    header = _header(dtype, size)  # compared, not read: numpy would evaluate what others wrote
    try:
        with path.open("rb") as file:
            found = file.read(len(header)), path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if found != (header, len(header) + size * dtype.itemsize):
        raise CheckpointError(f"{path}: is damaged, or of another corpus; expected {dtype} ({size},)")
    return np.memmap(path, dtype, "r", len(header), (size,)).view(np.ndarray)  # whose slices cost less


def _lengths(path: Path, offsets: np.ndarray, state: _State, tokens: int) -> np.ndarray:
    """How long sequences are that begin and end so."""
    longest = state.configuration["max_length"]
    rises = (offsets[1:] > offsets[:-1]).all() and offsets[0] == 0 and offsets[-1] == tokens
    lengths = np.diff(offsets)
    if not rises or (lengths > longest).any():
        raise CheckpointError(f"{path}: expected offsets that rise from 0 to {tokens} by at most {longest}")
    return lengths.astype(np.uint32)
