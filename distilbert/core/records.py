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
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from distilbert.core.errors import InputError

PATIENCE_SECONDS = 0.05  # a slow writer's lines are answered as they come
CHUNK_BYTES = 1 << 16
ZSTD_BYTES = 1 << 10  # a few bytes of it can stand for 128 KiB
LINE_BYTES = 1 << 28  # a small file may unfold to more than the memory holds

FORMATS = ("text", "jsonl", "csv", "tsv")
SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}
COMPRESSED = (".gz", ".zst")
UNKNOWN = (".bz2", ".xz", ".lzma", ".zip", ".tar", ".tgz", ".7z", ".parquet", ".arrow", ".xls", ".xlsx")

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
        path = Path(name.lower())
        suffix = path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix
        if suffix in UNKNOWN:
            raise InputError(f"{name}: is not read here; expected text, jsonl, csv or tsv, also with .gz or .zst")
        named = "jsonl" if suffix == ".json" else SUFFIXES.get(suffix)
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
        windows = _decode(_read_lines(read, wait, size, name), name)
        if kind == "jsonl":
            windows = _read_json(windows, name, layout.text_field)
        elif kind != "text":
            windows = _read_table(windows, name, kind, layout)
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
        if sys.stdin is None:
            raise InputError("standard input is closed; name a file")
        descriptor = sys.stdin.fileno()
        yield lambda: os.read(descriptor, CHUNK_BYTES), lambda: _is_ready(descriptor)
        return
    try:
        file = Path(name).open("rb", buffering=0)  # noqa: SIM115 - what goes wrong later is another error
        file.read(0)
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from None
    with file:
        is_seekable = file.seekable()
        is_compressed = name.lower().endswith(COMPRESSED)
        chunks = _inflate(file, name) if is_compressed else iter(lambda: file.read(CHUNK_BYTES) or b"", b"")

        def read() -> bytes:
            chunk = next(chunks, b"")
            if is_seekable:
                progress(file.tell())
            return chunk

        yield read, lambda: is_compressed or _is_ready(file.fileno())


def _inflate(file: IO[bytes], name: str) -> Iterator[bytes]:
    """What a compressed file unfolds to, never much of it at a time.

    Raises:
        InputError: it is damaged, or ends too early.
    """
    import zstandard

    try:
        if name.lower().endswith(".gz"):
            unpacked = gzip.GzipFile(fileobj=file)
            while chunk := unpacked.read(CHUNK_BYTES):
                yield chunk
            return
        frame = None
        while rest := file.read(ZSTD_BYTES):
            while rest:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                if chunk := frame.decompress(rest):
                    yield chunk
                rest = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
        if frame is not None:
            raise EOFError("it ends within a frame")
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise InputError(f"{name}: is not complete, or damaged: {error}") from None


def _is_ready(descriptor: int) -> bool:
    if os.name == "nt":
        return True
    poll = select.poll()  # unlike select.select(), which knows no descriptor above 1023
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(1000 * PATIENCE_SECONDS))


def _read_lines(read: Callable[[], bytes], wait: Callable[[], bool], size: int, name: str) -> Iterator[list[bytes]]:
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
        if len(unfinished) > LINE_BYTES:
            raise InputError(f"{name}: has a line of more than {LINE_BYTES >> 20} MiB, which is no text to answer for")
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
                if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise InputError(f"{name}: is UTF-16, expected UTF-8: save it so")
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                texts.append(line.decode("utf-8"))
            except UnicodeDecodeError:
                texts.append(line.decode("utf-8", "replace"))
                if not warned:
                    logger.warning("%s:%d: is not valid UTF-8; such bytes are read as U+FFFD", name, number)
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


class _Lines:
    """The lines of windows one by one; ``waiting`` are those of the window that were not taken yet."""

    def __init__(self, windows: Iterable[list[str]]) -> None:
        self.windows = iter(windows)
        self.waiting: deque[str] = deque()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while not self.waiting:
            self.waiting.extend(next(self.windows))
        return self.waiting.popleft() + "\n"


def _read_table(windows: Iterable[list[str]], name: str, kind: str, layout: Layout) -> Iterator[list[Any]]:
    """The rows of CSV, or of TSV, where quotes are quotes."""
    csv.field_size_limit(LINE_BYTES)
    lines = _Lines(windows)
    options: Any = {"dialect": "excel-tab", "quoting": csv.QUOTE_NONE} if kind == "tsv" else {"strict": True}
    reader = csv.reader(lines, **options)
    column = layout.column
    number = int(column) if column is not None and column.isdecimal() and len(column) < 10 else None
    has_header = layout.header if layout.header is not None else number is None
    begun = 1  # the line on which a row begins: a quote may never be closed
    names: list[str] | None = None
    records: list[Any] = []
    try:
        for row in reader:
            place = f"{name}:{begun}"
            begun = reader.line_num + 1
            if has_header and names is None and row:
                names = row
                if repeated := [cell for cell in names if names.count(cell) > 1]:
                    raise InputError(f"{place}: two columns are called {repeated[0]!r}; take one by its number")
            elif number is not None and row:
                if not 0 < number <= len(row):
                    raise InputError(f"{place}: has {len(row)} columns, expected a column {number}")
                records.append(row[number - 1])
            elif row:
                if names is None:
                    raise InputError(f"{name}: has no header; name the column by its number, from 1")
                if len(row) != len(names):
                    raise InputError(f"{place}: has {len(row)} columns, expected {len(names)} as in the header")
                record = dict(zip(names, row, strict=True))
                records.append(record if column is None else _field(record, column, place))
            if not lines.waiting:
                yield records
                records = []
    except csv.Error as error:
        raise InputError(f"{name}:{begun}: is not valid {kind}: {error}") from None
    yield records


def _field(record: Any, field: str, place: str) -> Any:
    if not isinstance(record, dict) or field not in record:
        found = ", ".join(record) if isinstance(record, dict) else f"a JSON {type(record).__name__}"
        raise InputError(f"{place}: has no field {field!r}, only {found}")
    return record[field]
