"""``distilbert prepare-corpus``: texts to token ids on disk, for training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from distilbert.cli.conversion import AsJson
from distilbert.cli.run import InputFormat
from distilbert.cli.terminal import exit_statuses, print_json, print_table, show_tokens
from distilbert.core.records import Layout
from distilbert.core.tokenizer import DistilBertTokenizer
from distilbert.distillation.corpus import MAX_LENGTH, MAX_UNKNOWN, MIN_TOKENS, SHARD_TOKENS
from distilbert.distillation.corpus import prepare_corpus as prepare

PREPARE_CORPUS_EPILOG = """
[bold]Examples[/bold]

distilbert prepare-corpus wiki.txt.zst books.txt corpus --tokenizer PATH

distilbert prepare-corpus reviews.jsonl.gz corpus --text-field review --tokenizer PATH --max-length 128

[bold]Input[/bold] is one text a line, or by the name of the file JSONL, CSV or TSV; .gz and .zst behind it are
understood.

[bold]After a crash[/bold] or an interruption, the same command goes on behind the last whole shard.

[bold]Exit status[/bold]: 0 OUT is complete; 1 an error, one line on standard error; 2 wrong usage; 130 interrupted.
"""


def prepare_corpus(
    files: Annotated[list[str], typer.Argument(metavar="FILES...", help="Texts.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    tokenizer: Annotated[str, typer.Option(metavar="PATH", help="A folder with a tokenizer, or a Hub id.")],
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit on the Hub.")] = None,
    input_format: Annotated[InputFormat | None, typer.Option(help="By default each file's name says it.")] = None,
    text_field: Annotated[str | None, typer.Option(metavar="NAME", help="The field of JSONL that is the text.")] = None,
    column: Annotated[
        str | None, typer.Option(metavar="NAME", help="The column of CSV or TSV that is the text, or its number.")
    ] = None,
    header: Annotated[
        bool | None,
        typer.Option(help="Whether CSV or TSV begins with names; by default unless --column is a number."),
    ] = None,
    max_length: Annotated[
        int, typer.Option(min=3, help="Tokens of a sequence; longer texts become several.")
    ] = MAX_LENGTH,
    min_tokens: Annotated[int, typer.Option(min=0, help="Shorter sequences are dropped.")] = MIN_TOKENS,
    max_unknown: Annotated[
        float, typer.Option(min=0, help="Sequences with this share of unknown tokens are dropped.")
    ] = MAX_UNKNOWN,
    shard_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a shard, about.")] = SHARD_TOKENS,
    threads: Annotated[int | None, typer.Option(min=1, help="By default as many as there are cores.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew, in place of the corpus in OUT.")] = False,
    as_json: AsJson = False,
) -> None:
    """Tokenise texts into files that training maps into memory; after a crash, go on where it came."""
    if threads is not None:
        os.environ["RAYON_NUM_THREADS"] = str(threads)  # the tokenizers library reads it at its first use
    with exit_statuses():
        loaded = DistilBertTokenizer.from_pretrained(tokenizer, revision=revision)
        with show_tokens() as progress:
            summary = prepare(
                files,
                out,
                loaded,
                layout=Layout(input_format, text_field, column, header),
                max_length=max_length,
                min_tokens=min_tokens,
                max_unknown=max_unknown,
                shard_tokens=shard_tokens,
                overwrite=overwrite,
                progress=progress,
            )
        if as_json:
            print_json(summary)
        else:
            rows = [(name, f"{summary[name]:,}") for name in ("texts", "sequences", "tokens", "shards")]
            rows += [(f"dropped: {reason}", f"{count:,}") for reason, count in summary["dropped"].items()]
            print_table(str(out), ("", ""), rows)
