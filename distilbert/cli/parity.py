"""``distilbert parity``: do all frameworks compute the same, on one's own checkpoint and texts?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from distilbert.cli.conversion import AsJson, SourceHead
from distilbert.cli.terminal import exit_statuses, print_json, print_table
from distilbert.conversion.source import head_of
from distilbert.core.backends import installed, require_backend
from distilbert.core.config import read_config
from distilbert.core.environment import environment
from distilbert.core.errors import InputError
from distilbert.core.files import replace_file
from distilbert.core.records import open_records
from distilbert.core.tokenizer import DistilBertTokenizer
from distilbert.parity import reporting
from distilbert.parity.comparison import BACKENDS, compare, framework_of
from distilbert.parity.inputs import for_dtype, from_texts

TEXTS = 64  # read at a time

PARITY_EPILOG = """
[bold]Examples[/bold]

distilbert parity PATH

distilbert parity PATH --backends torch,flax --text "a wonderful film" --text "a mess" --report report.html

distilbert parity PATH --input texts.txt --dtype bfloat16 --json
"""


def parity(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A folder with a checkpoint, or a Hub id.")],
    backends: Annotated[
        str | None,
        typer.Option(help="Of torch, torch:sdpa, tf and flax those to compare; by default all that are installed."),
    ] = None,
    head: SourceHead = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    text: Annotated[list[str] | None, typer.Option(help="A text to compare on; may be repeated.")] = None,
    input: Annotated[str | None, typer.Option(metavar="FILE", help="One text a line; - is standard input.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a page of HTML.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare what the frameworks compute with each other and with float64; fail where a bound does not hold.

    Without texts, random ids serve: ragged, one token, the longest, word vectors, head masks, positions.
    """
    if text and input:
        raise typer.BadParameter("both --text and --input are given, expected one of them")
    with exit_statuses():
        if report is not None:
            require_backend("matplotlib", "parity")
            if report.is_dir() or not report.parent.is_dir():
                raise InputError(f"{report}: expected the name of a file in a folder that is there")
        chosen = _chosen(backends)
        config = read_config(path)
        head = head or head_of(path, config)
        if text or input:
            tokenizer = DistilBertTokenizer.from_pretrained(path)
            texts = text
            if not texts:
                with open_records(input or "-", TEXTS) as windows:
                    texts = [line for window in windows for line in window]
            made = from_texts(texts, tokenizer, config, head)
            if not made:
                raise InputError(f"{input}: expected texts, one a line, found none")
        else:
            made = for_dtype(config, head, dtype)
        found = compare(path, head, made, backends=chosen, dtype=dtype, device=device)
        if as_json:
            print_json(asdict(found) | {"environment": environment(device)})
        else:
            print_table(f"{path}, {head}, {dtype} on {device}: largest errors", *reporting.table(found))
            typer.echo(reporting.verdict(found))
        if report is not None:
            with replace_file(str(report)) as file:
                file.write(reporting.page(found, path, made))
    if found.outside:
        raise typer.Exit(1)


def _chosen(backends: str | None) -> list[str]:
    """The backends to compare.

    Raises:
        InputError: one that does not exist.
    """
    if backends is None:
        return [name for name in BACKENDS if framework_of(name) in installed()]
    chosen = [{"pt": "torch"}.get(name.strip(), name.strip()) for name in backends.split(",")]
    for name in chosen:
        if name not in BACKENDS:
            raise InputError(f"the backend is {name!r}, expected some of {', '.join(BACKENDS)}")
    return list(dict.fromkeys(chosen))
