"""``distilbert evaluate``: how good a model is on labelled data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich import box
from rich.style import Style
from rich.table import Column, Table
from rich.text import Text

from distilbert import evaluation
from distilbert.cli.conversion import AsJson
from distilbert.cli.terminal import (
    Backend,
    exit_statuses,
    open_console,
    parse_batch_size,
    print_json,
    print_table,
    printable,
    show_progress,
)
from distilbert.evaluation.tasks import EVALUATIONS
from distilbert.pipelines import ALIASES

# What can be evaluated, and what each has many of.
Task = StrEnum("Task", [*EVALUATIONS, *ALIASES])  # type: ignore[misc]
EXAMPLES = {
    "text-classification": "texts",
    "token-classification": "sentences",
    "question-answering": "questions",
    "multiple-choice": "questions",
    "fill-mask": "lines",
}

NAMES = {
    "f1": "F1",
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
    "matthews_correlation": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "has_answer_exact_match": "exact match, has an answer",
    "has_answer_f1": "F1, has an answer",
    "no_answer_exact_match": "exact match, has none",
    "no_answer_f1": "F1, has none",
}

COUNTS = ("words", "words_behind_limit", "hidden_tokens")  # to tell with the number of examples
CONFUSIONS = 10  # are listed where a matrix is too wide for the terminal
SHORTEST_NAME, LONGEST_NAME = 12, 24
# Cells fill up with colour, from the first of these to the second for what is right, to the third for what is wrong.
EMPTY, RIGHT, WRONG = (48, 52, 60), (25, 125, 195), (200, 50, 45)


EVALUATE_EPILOG = """
[bold]Examples[/bold]

distilbert evaluate --task text-classification --model PATH --data dev.tsv

distilbert evaluate --task token-classification --model PATH --data dev.conll --json

distilbert evaluate --task question-answering --model PATH --data dev-v2.0.json

distilbert evaluate --task multiple-choice --model PATH --data dev.jsonl

distilbert evaluate --task fill-mask --model PATH --data lines.txt.gz
"""


def evaluate(
    task: Annotated[Task, typer.Option(help="What to evaluate.")],
    model: Annotated[str, typer.Option(help="A folder with a saved model, or a Hub id.")],
    data: Annotated[str, typer.Option(metavar="FILE", help="What to read; - is standard input.")],
    backend: Annotated[
        Backend, typer.Option("--backend", "--framework", help="What computes; auto: what is installed.")
    ] = Backend.auto,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, int8; auto: fast here.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …, or auto: a GPU where there is one.")] = "auto",
    batch_size: Annotated[
        Any, typer.Option(parser=parse_batch_size, metavar="N", help="Sequences the model sees at a time.")
    ] = "auto",
    text_field: Annotated[
        str | None,
        typer.Option(
            "--text-field",
            "--column",
            metavar="NAME",
            help="Text classification: the field with the text, or the number of its column.",
        ),
    ] = None,
    text_pair_field: Annotated[
        str | None, typer.Option(metavar="NAME", help="Text classification: that of a second text.")
    ] = None,
    label_field: Annotated[
        str | None, typer.Option(metavar="NAME", help="Text classification: that of the label.")
    ] = None,
    max_answer_len: Annotated[
        int | None, typer.Option(min=1, help="Question answering: the longest answer, in tokens; by default 30.")
    ] = None,
    mask_probability: Annotated[
        float | None, typer.Option(help="Fill-mask: how many of the tokens to ask for; by default 0.15.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Fill-mask: of the choice; by default 0.")] = None,
    as_json: AsJson = False,
) -> None:
    """Answer for every example in a file, and compare with what the file says.

    text-classification: .tsv, .csv or .jsonl with a text, perhaps a second one, and a label (a name or a number).
    Accuracy, F1, Matthews correlation and the confusion matrix; for several labels at a time F1 and the share of
    texts with all of them right; for a regression correlations and the mean squared error.

    token-classification: a word and its label a line, a blank line between sentences. Precision, recall and F1 of
    whole entities. The first token of a word decides.

    question-answering: SQuAD's .json, 1.1 or 2.0, or .jsonl. Exact match and F1.

    multiple-choice: .jsonl with prompt, choices and label, the number of the right one from 0. Accuracy.

    fill-mask: a text a line. Perplexity of tokens hidden as in training, many at a time.
    """
    given = {
        "text_field": text_field,
        "text_pair_field": text_pair_field,
        "label_field": label_field,
        "max_answer_len": max_answer_len,
        "mask_probability": mask_probability,
        "seed": seed,
    }
    options = {name: value for name, value in given.items() if value is not None}
    chosen = ALIASES.get(task, str(task))
    owners = {field.name: of for of, cls in EVALUATIONS.items() for field in fields(cls)}
    for name in options:
        if owners[name] != chosen:
            raise typer.BadParameter(f"--{name.replace('_', '-')} belongs to {owners[name]}, the task is {task}")
    with exit_statuses():
        report = evaluation.evaluate(
            task,
            model,
            data,
            backend=backend,
            dtype=dtype,
            device=device,
            batch_size=batch_size,
            progress=show_progress,
            **options,
        )
        if as_json:
            print_json(asdict(report) | {"per_second": report.per_second})
        else:
            _show(report)


def _show(report: evaluation.Report) -> None:
    typer.echo(f"{report.task}: {report.model} on {report.data}")
    classes = report.details.get("classes", [])
    in_percent = report.task == "question-answering"
    values = [f"{value:.2f} %" if in_percent else f"{value:.4f}" for value in report.metrics.values()]
    width = max(map(len, values))
    names = [NAMES.get(name, name.replace("_", " ")) for name in report.metrics]
    if "confusion" in report.details:
        names = [f"F1 of {classes[1]['label']}" if name == "F1" else name for name in names]
    print_table(None, ("", ""), ((name, value.rjust(width)) for name, value in zip(names, values, strict=True)))
    if classes:
        _show_classes(classes)
    if confusion := report.details.get("confusion"):
        _show_confusion([one["label"] for one in classes], confusion)
    what = EXAMPLES[report.task]
    counts = [f"{report.details[name]:,} {name.replace('_', ' ')}" for name in COUNTS if report.details.get(name)]
    speed = f"{report.seconds:,.1f} s, {report.per_second:,.0f} {what} a second"
    typer.echo(f"{', '.join((f'{report.count:,} {what}', *counts))}; {speed}")


def _show_classes(classes: Sequence[dict[str, Any]]) -> None:
    figures = ("precision", "recall", "f1")
    rows = ((one["label"], *(f"{one[name]:.4f}" for name in figures), f"{one['support']:,}") for one in classes)
    print_table(
        None, ("label", *(Column(NAMES.get(name, name), justify="right") for name in (*figures, "support"))), rows
    )


def _show_confusion(names: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
    """The matrix, as it fits: with names or numbers above, in counts or in percent; or what is confused most."""
    console = open_console()
    numbers = [str(number) for number in range(len(names))]
    numbered = [f"{number} {name}" for number, name in enumerate(names)]
    shares = [[count / (sum(row) or 1) for count in row] for row in counts]
    as_counts = [[str(count) for count in row] for row in counts]
    as_percent = [[f"{100 * share:.0f}" for share in row] for row in shares]
    digits = max(len(cell) for row in as_counts for cell in row)
    for rows, above, cells, width, unit in (
        (names, names, as_counts, max(digits, *map(len, names)) + 2, ""),
        (numbered, numbers, as_counts, max(digits, len(numbers[-1])) + 2, ""),
        (numbered, numbers, as_percent, 3, ", in % of the row"),
    ):
        room = console.width - len(names) * width - 3
        if room < min(SHORTEST_NAME, max(map(len, rows))):
            continue
        first = Column("", no_wrap=True, overflow="ellipsis", max_width=min(room, LONGEST_NAME))
        table = Table(first, box=box.SIMPLE_HEAD, padding=0)
        for name in above:
            table.add_column(Text(_pad(printable(name), width)), justify="right", no_wrap=True)
        for number, (name, row) in enumerate(zip(rows, cells, strict=True)):
            filled = zip(row, shares[number], strict=True)
            table.add_row(
                Text(printable(name)),
                *(_cell(_pad(text, width), share, column == number) for column, (text, share) in enumerate(filled)),
            )
        typer.echo(f"  true labels in rows, predicted ones in columns{unit}")
        console.print(table)
        return
    pairs = [
        (count, shares[true][found], names[true], names[found])
        for true, row in enumerate(counts)
        for found, count in enumerate(row)
        if true != found and count
    ]
    largest = sorted(pairs, key=lambda pair: -pair[0])[:CONFUSIONS]
    listed = ((true, found, f"{count:,}", f"{100 * share:.0f} %") for count, share, true, found in largest)
    right = (Column(name, justify="right") for name in ("times", "of the true"))
    print_table("  confused most", ("true", "predicted", *right), listed)


def _pad(text: str, width: int) -> str:
    """At the right, with a space behind where there is room."""
    return f"{text} ".rjust(width) if width > 3 else text.rjust(width)


def _cell(text: str, share: float, is_right: bool) -> Text:
    """A number on a ground that shows its share of the row."""
    if not share:
        return Text(text.replace("0", "·"), style="dim")
    full = RIGHT if is_right else WRONG
    # The root, because confusions are rare and have to be seen.
    ground = (round(empty + (one - empty) * share**0.5) for empty, one in zip(EMPTY, full, strict=True))
    return Text(text, Style(color="white", bgcolor="#{:02x}{:02x}{:02x}".format(*ground), bold=is_right))
