"""What the commands share: how they end, and what they print."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column, Table
from rich.text import Text

from distilbert.core.errors import DistilBertError

INTERRUPTED = 130  # 128 + the signal's number, as shells report it
BROKEN_PIPE = 141

# What computes.
Backend = StrEnum("Backend", ["auto", "pt", "torch", "tf", "flax"])

logger = logging.getLogger("distilbert")


@contextmanager
def exit_statuses() -> Iterator[None]:
    """End a command as shells expect: an error is one line on standard error, a signal is its number."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has gone, which is their right. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(BROKEN_PIPE) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except DistilBertError as error:
        logger.error("%s", error)
        raise typer.Exit(1) from None
    except OSError as error:
        logger.error("%s", f"{error.filename}: {error.strerror}" if error.filename else error)
        raise typer.Exit(1) from None


def parse_batch_size(value: str) -> int | str:
    """What ``--batch-size`` says."""
    if value != "auto" and not (value.isdecimal() and int(value)):
        raise typer.BadParameter(f"{value!r} is not auto, nor a number of at least 1")
    return value if value == "auto" else int(value)


def print_json(content: object) -> None:
    """One JSON object on standard output; numbers that JSON lacks, such as an absent bound, are null."""
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    typer.echo(json.dumps(finite(content), ensure_ascii=not is_utf8, default=str, allow_nan=False))


def finite(content: Any) -> Any:
    """The same with None for numbers that JSON lacks."""
    if isinstance(content, dict):
        return {name: finite(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def open_console() -> Console:
    """Standard output, as wide as the terminal, or as its content where there is none."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 240)


def print_table(title: str | None, columns: Iterable[str | Column], rows: Iterable[Iterable[str]]) -> None:
    """A table on standard output."""
    columns = list(columns)
    table = Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=any(columns))
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    open_console().print(table)


def printable(text: str) -> str:
    """A text with pictures in place of control characters, which could make a terminal do anything."""
    return "".join(
        character if character == "\n" or unicodedata.category(character) != "Cc" else _picture(ord(character))
        for character in text
    )


def _picture(code: int) -> str:
    return chr(0x2400 + code) if code < 0x20 else "\ufffd"


def repaired(argument: str) -> str:
    """An argument with U+FFFD for bytes that are not UTF-8, which Python smuggles in as halves of surrogate pairs."""
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@contextmanager
def show_progress(total: int | None, *, hidden: bool = False):  # type: ignore[no-untyped-def]
    """A count of texts, of ``total`` where that is known, on standard error where that is a terminal."""
    console = Console(stderr=True)
    shown = "{task.completed:,} texts" if total is None else "{task.completed:,} of {task.total:,} texts"
    columns = (SpinnerColumn(), TextColumn(shown), TextColumn("{task.fields[rate]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=hidden or not console.is_terminal, transient=True) as progress:
        counter = progress.add_task("", total=total, rate="")

        def advance(count: int) -> None:
            progress.advance(counter, count)
            task = progress.tasks[0]
            if task.elapsed:
                progress.update(counter, rate=f"{task.completed / task.elapsed:,.0f}/s")

        yield advance


@contextmanager
def show_bytes() -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes written, on standard error where that is a terminal; call it with a size and that of all."""
    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("", total=None)

        def advance(size: int, total: int) -> None:
            progress.update(bar, advance=size, total=total)

        yield advance


@contextmanager
def show_tokens() -> Iterator[Callable[[int, int, int], None]]:
    """A bar of bytes read, with the speed in tokens; call it with bytes read, those of all, and tokens so far."""
    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("", total=None, rate="")
        before: list[int] = []  # what an earlier run has done is no speed of this one

        def show(read: int, size: int, tokens: int) -> None:
            before[:] = before or [tokens]
            elapsed = progress.tasks[0].elapsed
            rate = f"{(tokens - before[0]) / elapsed:,.0f} tokens/s" if elapsed else ""
            progress.update(bar, completed=read, total=size, rate=rate)

        yield show
