"""``distilbert explain``: a page that shows why a model answers as it does."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from distilbert.cli.terminal import Backend, exit_statuses, printable, repaired
from distilbert.core.errors import InputError
from distilbert.explanation import TASKS
from distilbert.explanation import explain as explained
from distilbert.pipelines import ALIASES

# What can be explained.
Task = StrEnum("Task", [*TASKS, *ALIASES])  # type: ignore[misc]

EXPLAIN_EPILOG = """
[bold]Examples[/bold]

distilbert explain --model PATH "a wonderful film"

distilbert explain --model PATH --output entities.html "Obama flew to New York"

distilbert explain --model PATH --question "Who flew?" "Obama flew to New York."
"""


def explain(
    text: Annotated[str, typer.Argument(help="What the model is to read.")],
    model: Annotated[str, typer.Option(help="A folder with a saved model, or a Hub id.")],
    task: Annotated[Task | None, typer.Option(help="What to compute; by default what the head is for.")] = None,
    backend: Annotated[
        Backend, typer.Option("--backend", "--framework", help="What computes; auto: what is installed.")
    ] = Backend.auto,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Gradients for each answer; by default until contributions add up within 1 %."),
    ] = None,
    question: Annotated[str | None, typer.Option(help="Question answering: what to answer from TEXT.")] = None,
    output: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")] = Path("explain.html"),
) -> None:
    """Write a page of HTML: the answer for TEXT, what each token adds to it, and where each head looks."""
    with exit_statuses():
        if output.is_dir() or not output.parent.is_dir():
            raise InputError(f"{output}: expected the name of a file in a folder that is there")
        asked = None if question is None else repaired(question)
        found = explained(model, repaired(text), task=task, question=asked, backend=backend, steps=steps)
        found.write(output)
        for target in found.targets:
            answer = target.answer
            said = "" if answer.start is None else f"{found.texts[-1][answer.start : answer.end]}: "
            certainty = "" if answer.probability is None else f", probability {answer.probability:.4f}"
            typer.echo(printable(f"{said}{answer.label}{certainty}").replace("\n", " "))
        typer.echo(f"{output}: written")
