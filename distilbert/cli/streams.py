"""Texts in, line by line, and answers out."""

from __future__ import annotations

import codecs
import logging
import os
import select
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from distilbert.core.files import replace_file

PATIENCE_SECONDS = 0.05  # a slow writer's lines are answered as they come

logger = logging.getLogger("distilbert")


@contextmanager
def open_output(name: str) -> Iterator[IO[str]]:
    """Standard output, or a file that gets its name only once it is complete."""
    if name == "-":
        yield codecs.getwriter("utf-8")(sys.stdout.buffer)  # type: ignore[misc]
    elif Path(name).exists() and not Path(name).is_file() and not Path(name).is_dir():
        with open(name, "w", encoding="utf-8") as device:  # noqa: PTH123 - a device or pipe cannot be replaced
            yield device
    else:
        with replace_file(name) as file:
            yield file


@contextmanager
def open_windows(texts: list[str] | None, name: str, size: int) -> Iterator[tuple[Iterable[list[str]], int | None]]:
    """The texts in groups of up to ``size``, from the arguments, from standard input or from a file.

    With them comes how many they are, or None for what can be read only once: standard input, a pipe, a device.
    """
    if texts:
        # The system may hand over bytes that are not UTF-8, which Python smuggles in as surrogates.
        whole = [text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for text in texts]
        yield [whole[start : start + size] for start in range(0, len(whole), size)], len(whole)
    elif name == "-":
        yield decode(read_lines(sys.stdin.fileno(), size)), None
    else:
        total = None
        if Path(name).is_file():
            with Path(name).open("rb") as file:
                total = sum(1 for _ in file)
        with Path(name).open("rb") as file:
            yield decode(read_lines(file.fileno(), size)), total


def read_lines(descriptor: int, size: int) -> Iterator[list[bytes]]:
    """Windows of up to ``size`` lines; fewer when the writer pauses, so that a slow one is not kept waiting."""
    lines: list[bytes] = []
    unfinished = bytearray()
    while True:
        if lines and os.name != "nt" and not select.select([descriptor], [], [], PATIENCE_SECONDS)[0]:
            yield lines
            lines = []
        chunk = os.read(descriptor, 1 << 16)
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


def decode(windows: Iterable[list[bytes]]) -> Iterator[list[str]]:
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
