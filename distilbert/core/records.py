"""Reading texts and what comes with them: lines, JSON lines, CSV and TSV, plain or compressed, from a file or pipe."""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import logging
import os
import select
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, BinaryIO

from distilbert.core.errors import InputError

PATIENCE_SECONDS = 0.05  # a slow writer's lines are answered as they come
CHUNK_BYTES = 1 << 16
FIELD_BYTES = 1 << 30  # the csv module refuses longer ones

FORMATS = ("text", "jsonl", "csv", "tsv")
SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}
COMPRESSED = (".gz", ".zst")

logger = logging.getLogger("distilbert")


@dataclass(frozen=True)
class Layout:
    """What a file holds.

    Args:
        format: one of ``FORMATS``; by default the file's name says it, or an option that only one of them has.
        text_field: of JSON objects, the field that is the text.
        column: of CSV and TSV, the column that is the text: a name, or a number from 1.
        header: whether CSV and TSV begin with names; by default unless ``column`` is a number.
    """

    format: str | None = None
    text_field: str | None = None
    column: str | None = None
    header: bool | None = None

    def of(self, name: str) -> str:
        """The format of a file.

        Raises:
            InputError: options of another format.
        """
        path = Path(name)
        named = SUFFIXES.get(path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix)
        implied = "jsonl" if self.text_field is not None else "csv" if self.column is not None else "text"
        found = self.format or named or implied
        if self.text_field is not None and found != "jsonl":
            raise InputError(f"{name}: a text field belongs to jsonl, the format is {found}")
        if (self.column is not None or self.header is not None) and found not in ("csv", "tsv"):
            raise InputError(f"{name}: a column or header belongs to csv and tsv, the format is {found}")
        return found


@contextmanager
def open_records(
    name: str, size: int, layout: Layout | None = None, progress: Callable[[int], None] | None = None
) -> Iterator[Iterator[list[Any]]]:
    """A file's records in groups of up to ``size``, fewer where a pipe pauses.

    Args:
        name: of a file, or ``-`` for standard input.
        size: of a group.
        layout: what the file holds.
        progress: is told how many bytes of the file, as it is stored, have been read so far.

    Yields:
        Groups of texts; of JSON lines what is on each, or the field that is asked for; of tables a mapping for each
        row, or the column that is asked for.

    Raises:
        InputError: while reading: a line that cannot be read, or a field that is not there.
    """
    layout = layout or Layout()
    kind = layout.of(name)
    with _open(name, progress or (lambda position: None)) as (read, wait):
        windows = _decode(_read_lines(read, wait, size), name)
        if kind == "jsonl":
            windows = _read_json(windows, name, layout.text_field)
        elif kind != "text":
            rows = _read_table((line + "\n" for window in windows for line in window), name, kind, layout)
            windows = iter(lambda: list(islice(rows, size)), [])
        yield windows


def count_records(name: str, layout: Layout | None = None) -> int | None:
    """How many records a file holds; None for what can be read only once, or not at all."""
    if not Path(name).is_file():
        return None
    logger.disabled = True  # the reading that counts will say it again
    try:
        with open_records(name, 4096, layout) as windows:
            return sum(map(len, windows))
    except InputError:
        return None
    finally:
        logger.disabled = False


@contextmanager
def _open(name: str, progress: Callable[[int], None]) -> Iterator[tuple[Callable[[], bytes], Callable[[], bool]]]:
    """How to read the next bytes, and how to wait a moment for them, which tells whether there are some."""
    if name == "-":
        descriptor = sys.stdin.fileno()
        yield lambda: os.read(descriptor, CHUNK_BYTES), lambda: _is_ready(descriptor)
        return
    with Path(name).open("rb", buffering=0) as file:

        def read() -> bytes:
            chunk = _inflate(content, name) if is_compressed else file.read(CHUNK_BYTES) or b""
            if is_seekable:
                progress(file.tell())
            return chunk

        is_seekable = file.seekable()
        is_compressed = name.endswith(COMPRESSED)
        content: IO[bytes] = _decompress(name, file) if is_compressed else file
        yield read, lambda: is_compressed or _is_ready(file.fileno())


def _decompress(name: str, file: BinaryIO) -> IO[bytes]:
    if name.endswith(".gz"):
        return gzip.open(file)  # type: ignore[return-value]
    import zstandard

    return zstandard.open(file)


def _inflate(file: IO[bytes], name: str) -> bytes:
    import zstandard

    try:
        return file.read(CHUNK_BYTES)
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise InputError(f"{name}: is not complete, or damaged: {error}") from None


def _is_ready(descriptor: int) -> bool:
    return os.name == "nt" or bool(select.select([descriptor], [], [], PATIENCE_SECONDS)[0])


def _read_lines(read: Callable[[], bytes], wait: Callable[[], bool], size: int) -> Iterator[list[bytes]]:
    """Windows of up to ``size`` lines; fewer when the writer pauses, so that a slow one is not kept waiting."""
    lines: list[bytes] = []
    unfinished = bytearray()
    while True:
        if lines and not wait():
            yield lines
            lines = []
        chunk = read()
        first, *rest = chunk.split(b"\n")
        unfinished += first
        if rest:
            lines += [bytes(unfinished), *rest[:-1]]
            unfinished = bytearray(rest[-1])
        if not chunk and unfinished:
            lines.append(bytes(unfinished))
        while len(lines) >= size:
            yield lines[:size]
            lines = lines[size:]
        if not chunk:
            break
    if lines:
        yield lines


def _decode(windows: Iterable[list[bytes]], name: str) -> Iterator[list[str]]:
    """Lines as text. Bytes that are not UTF-8 become U+FFFD, with one warning that names the first line."""
    number = 0
    warned = False
    for window in windows:
        texts = []
        for line in window:
            number += 1
            line = line.removesuffix(b"\r")
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                texts.append(line.decode("utf-8"))
            except UnicodeDecodeError:
                texts.append(line.decode("utf-8", "replace"))
                if not warned:
                    logger.warning("line %d is not valid UTF-8; such bytes are read as U+FFFD", number)
                    warned = True
        yield texts


def _read_json(windows: Iterable[list[str]], name: str, field: str | None) -> Iterator[list[Any]]:
    """What the lines say; empty ones say nothing."""
    number = 0
    for window in windows:
        records = []
        for line in window:
            number += 1
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{name}:{number}: is not valid JSON: {error}") from None
            records.append(record if field is None else _field(record, field, f"{name}:{number}"))
        yield records


def _read_table(lines: Iterator[str], name: str, kind: str, layout: Layout) -> Iterator[Any]:
    """The rows of CSV, or of TSV, where quotes are quotes."""
    csv.field_size_limit(FIELD_BYTES)
    reader = csv.reader(lines, "excel-tab", quoting=csv.QUOTE_NONE) if kind == "tsv" else csv.reader(lines)
    column = layout.column
    number = int(column) if column is not None and column.isdecimal() else None
    has_header = layout.header if layout.header is not None else number is None
    try:
        names = next(reader, []) if has_header else None
        for row in reader:
            if not row:
                continue
            place = f"{name}:{reader.line_num}"
            if number is not None:
                if not 0 < number <= len(row):
                    raise InputError(f"{place}: has {len(row)} columns, expected a column {number}")
                yield row[number - 1]
                continue
            if names is None:
                raise InputError(f"{name}: has no header; name the column by its number, from 1")
            if len(row) != len(names):
                raise InputError(f"{place}: has {len(row)} columns, expected {len(names)} as in the header")
            record = dict(zip(names, row, strict=True))
            yield record if column is None else _field(record, column, place)
    except csv.Error as error:
        raise InputError(f"{name}:{reader.line_num}: is not valid {kind}: {error}") from None


def _field(record: Any, field: str, place: str) -> Any:
    if not isinstance(record, dict) or field not in record:
        found = ", ".join(record) if isinstance(record, dict) else f"a JSON {type(record).__name__}"
        raise InputError(f"{place}: has no field {field!r}, only {found}")
    return record[field]
