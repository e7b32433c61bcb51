"""``distilbert init-student``: a DistilBERT from layers of a BERT."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from distilbert.cli.terminal import exit_statuses
from distilbert.distillation.student import HEADS
from distilbert.distillation.student import init_student as make_student

INIT_STUDENT_EPILOG = """
[bold]Examples[/bold]

distilbert init-student teacher student

distilbert init-student teacher student --layers 0,2,4,7,9,11

distilbert init-student teacher exact --layers all --to msgpack
"""

# What a student may be.
Head = StrEnum("Head", ["base", *dict.fromkeys(HEADS.values())])  # type: ignore[misc]


def _layers(value: str) -> Any:
    """Numbers, or all of them."""
    if value == "all":
        return value
    try:
        return [int(number) for number in value.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{value!r} is not all, nor numbers with commas between them") from None


def init_student(
    teacher: Annotated[str, typer.Argument(metavar="TEACHER", help="A folder with a BERT, in any format.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="The folder to write.")],
    layers: Annotated[
        Any, typer.Option(parser=_layers, metavar="0,2,…", help="The teacher's layers to take; by default half.")
    ] = None,
    head: Annotated[Head | None, typer.Option(help="By default the teacher's, where DistilBERT has it.")] = None,
    to: Annotated[str, typer.Option(help="The format to write.")] = "safetensors",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="OUT may have a checkpoint already.")] = False,
) -> None:
    """Make a DistilBERT of layers of a BERT, for distillation; of all layers, one that computes the same."""
    with exit_statuses():
        written = make_student(teacher, out, layers=layers, head=head, file_format=to, overwrite=overwrite)
        typer.echo(f"{', '.join(path.name for path in written)} written to {out}")
