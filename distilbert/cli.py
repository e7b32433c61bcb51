"""The ``distilbert`` command."""

from __future__ import annotations

import codecs
import importlib
import json
import logging
import os
import select
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import IO, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from distilbert import conversion
from distilbert.core.backends import BACKENDS, choose_backend
from distilbert.core.errors import DistilBertError
from distilbert.core.files import replace_file
from distilbert.core.tokenizer import DistilBertTokenizer
from distilbert.pipelines import text_classification

# A window of lines is sorted by length, so a long one fills even batches; a slow writer's lines are answered
# as they come.
WINDOW_BATCHES = 16
PATIENCE_SECONDS = 0.05
INTERRUPTED = 130  # 128 + the signal's number, as shells report it
BROKEN_PIPE = 141

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help=(__doc__ or "").strip()
)
logger = logging.getLogger("distilbert")


class Task(StrEnum):
    """What ``distilbert run`` can do."""

    text_classification = "text-classification"


# From logits to scores.
Function = StrEnum("Function", list(text_classification.FUNCTIONS))  # type: ignore[misc]


# What computes.
Framework = StrEnum("Framework", list(BACKENDS))  # type: ignore[misc]


# What weights are stored in.
FileFormat = StrEnum("FileFormat", list(conversion.NAMES))  # type: ignore[misc]
SourceFormat = Annotated[
    FileFormat | None, typer.Option("--from", help="Which weights to take where SOURCE holds several formats.")
]
SourceHead = Annotated[
    str | None, typer.Option(metavar="HEAD", help="What the weights compute, where that cannot be told from them.")
]
AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]


@app.callback()
def _commands() -> None:
    """Use, train and convert DistilBERT."""


@app.command()
def run(
    task: Annotated[Task, typer.Option(help="What to compute.")],
    model: Annotated[str, typer.Option(help="A folder with a saved model, or a Hub id.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; without any, --input is read.")] = None,
    framework: Annotated[
        Framework | None, typer.Option(help="What computes; by default torch, or what is installed.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto: as stored.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …, or auto.")] = "cpu",
    batch_size: Annotated[int, typer.Option(min=1, help="Texts the model sees at a time.")] = 32,
    input: Annotated[str, typer.Option(metavar="FILE", help="One text a line; - is standard input.")] = "-",
    output: Annotated[str, typer.Option(metavar="FILE", help="Where answers go; - is standard output.")] = "-",
    top_k: Annotated[int | None, typer.Option(min=1, help="Give a list of the best K labels.")] = None,
    function_to_apply: Annotated[
        Function | None,
        typer.Option(help="From logits to scores; by default what the model was trained for."),
    ] = None,
    truncation: Annotated[bool, typer.Option(help="Cut texts that are too long for the model, with a warning.")] = True,
) -> None:
    """Answer for each text with one line of JSON, in the order of the texts."""
    if texts and input != "-":
        raise typer.BadParameter("both TEXT and --input are given, expected one of them")
    with (
        exit_statuses(),
        open_output(output) as answers,
        open_windows(texts, input, batch_size * WINDOW_BATCHES) as (windows, total),
    ):
        # Imported only now: a wrong argument is reported before a framework spends seconds on loading.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow tells much about itself
        inference = importlib.import_module(f"{choose_backend(framework)}.inference")
        tokenizer = DistilBertTokenizer.from_pretrained(model)
        network = inference.InferenceModel(text_classification.HEAD, model, dtype=dtype, device=device)
        pipeline = text_classification.TextClassificationPipeline(network, network.config, tokenizer)
        with show_progress(total) as advance:
            for window in windows:
                results = pipeline(
                    window,
                    top_k=top_k,
                    function_to_apply=function_to_apply,
                    batch_size=batch_size,
                    truncation=truncation,
                )
                for result in results:
                    answers.write(json.dumps(result, ensure_ascii=False) + "\n")
                answers.flush()
                advance(len(window))


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A folder with a checkpoint or a KerasHub preset, or its weights.")
    ],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The folder to write, all of it or nothing.")],
    to: Annotated[FileFormat, typer.Option(help="The format to write.")],
    source_format: SourceFormat = None,
    head: SourceHead = None,
    dtype: Annotated[str | None, typer.Option(help="Cast floats: float32, float16, bfloat16, float64.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="Larger weights are split, but for Keras.")] = "5GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the checkpoint in TARGET.")] = False,
    allow_unused: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A tensor to leave behind; may be repeated.")
    ] = None,
    allow_missing: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A parameter to initialise; may be repeated.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Convert weights between formats, Keras's and KerasHub's too, bit for bit; config and tokenizer go along."""
    with exit_statuses():
        report = conversion.convert(
            source,
            target,
            to,
            source_format=source_format,
            head=head,
            dtype=dtype,
            max_shard_size=max_shard_size,
            overwrite=overwrite,
            allow_unused=allow_unused or (),
            allow_missing=allow_missing or (),
            dry_run=dry_run,
        )
        if as_json:
            print_json(asdict(report))
            return
        notes = Counter(entry.note for entry in report.entries)
        if dry_run:
            columns = ("from", "to", "shape", "dtype", "")
            rows = [
                (
                    entry.source or "",
                    entry.target or "",
                    " x ".join(map(str, entry.shape)),
                    entry.dtype,
                    entry.note or ("transposed" if entry.is_transposed else ""),
                )
                for entry in report.entries
            ]
            print_table(f"{report.source} as {report.head}", columns, rows)
        counted = [f"{count} {note or 'tensors'}" for note, count in sorted(notes.items())]
        done = "would be written" if dry_run else "written"
        typer.echo(f"{', '.join(counted)}; {', '.join(report.files)} {done} to {report.target}")


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder with a checkpoint, or its weights.")],
    source_format: SourceFormat = None,
    head: SourceHead = None,
    as_json: AsJson = False,
) -> None:
    """Say what a checkpoint is: format, head, size, types, ties, config."""
    with exit_statuses():
        found = conversion.inspect(path, file_format=source_format, head=head)
        if as_json:
            print_json(asdict(found))
            return
        config = [f"{name} {value}" for name, value in found.config.items()]
        rows = [
            ("format", found.file_format),
            ("model", f"{found.family}, {found.head}"),
            ("parameters", f"{found.parameters:,}"),
            ("size", f"{found.size / 1e6:,.1f} MB"),
            ("types", ", ".join(f"{name} ({count} tensors)" for name, count in found.dtypes.items())),
            ("tied", "\n".join(f"{name} to {shared}" for name, shared in found.tied.items()) or "none"),
            ("missing", "\n".join(found.missing) or "none"),
            ("not used", "\n".join(found.unused) or "none"),
            ("config, where not the default", "\n".join(config) or "all default"),
        ]
        print_table(str(found.path), ("", ""), rows)


def print_json(content: object) -> None:
    """One JSON object on standard output."""
    typer.echo(json.dumps(content, ensure_ascii=False, default=str))


def print_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """A table on standard output, as wide as the terminal, or as its content where there is none."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 240)
    table = Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=any(columns))
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)


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
    except (DistilBertError, OSError) as error:
        logger.error("%s", error)
        raise typer.Exit(1) from None


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


@contextmanager
def show_progress(total: int | None):  # type: ignore[no-untyped-def]
    """A count of texts, of ``total`` where that is known, on standard error where that is a terminal."""
    console = Console(stderr=True)
    shown = "{task.completed:,} texts" if total is None else "{task.completed:,} of {task.total:,} texts"
    columns = (SpinnerColumn(), TextColumn(shown), TextColumn("{task.fields[rate]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        counter = progress.add_task("", total=total, rate="")

        def advance(count: int) -> None:
            progress.advance(counter, count)
            task = progress.tasks[0]
            if task.elapsed:
                progress.update(counter, rate=f"{task.completed / task.elapsed:,.0f}/s")

        yield advance


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"distilbert: {record.levelname.lower()}: " + " ".join(record.getMessage().split())


def main() -> None:
    """Run the command line, with the library's warnings on standard error, one line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine())
    logger.addHandler(handler)
    logger.propagate = False
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries would bury our one line
    app()
