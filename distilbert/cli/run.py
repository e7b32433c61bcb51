"""``distilbert run``: answers for texts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from enum import StrEnum
from itertools import tee
from typing import Annotated, Any

import typer

from distilbert.cli.answers import FORMATS as OUTPUT_FORMATS
from distilbert.cli.answers import Output
from distilbert.cli.terminal import Backend, exit_statuses, parse_batch_size, repaired, show_progress
from distilbert.core.errors import InputError
from distilbert.core.records import FORMATS as INPUT_FORMATS
from distilbert.core.records import Layout, count_records, open_records
from distilbert.pipelines import ALIASES, TASKS, feature_extraction, pipeline, text_classification, token_classification
from distilbert.pipelines.pipeline import split_names

# Names of what there is, as options show them.
Task = StrEnum("Task", [*TASKS, *ALIASES])  # type: ignore[misc]
Function = StrEnum("Function", list(text_classification.FUNCTIONS))  # type: ignore[misc]
Strategy = StrEnum("Strategy", list(token_classification.STRATEGIES))  # type: ignore[misc]
Pooling = StrEnum("Pooling", list(feature_extraction.POOLINGS))  # type: ignore[misc]
InputFormat = StrEnum("InputFormat", list(INPUT_FORMATS))  # type: ignore[misc]
OutputFormat = StrEnum("OutputFormat", list(OUTPUT_FORMATS))  # type: ignore[misc]

RUN_EPILOG = """
[bold]Examples[/bold]

distilbert run --task text-classification "a wonderful film" "a mess"

distilbert run --task text-classification --model PATH "a wonderful film" "a mess"

distilbert run --task ner --model PATH --aggregation-strategy simple --pretty "Obama flew to New York"

distilbert run --task question-answering --model PATH --question "Who flew?" "Obama flew to New York."

distilbert run --task fill-mask --model PATH "The capital of France is \\[MASK]."

distilbert run --task sentiment-analysis --model PATH --input reviews.csv.gz --column review --output out.csv

distilbert run --task feature-extraction --model PATH --pooling mean --input lines.txt --output vectors.npy

[bold]Input[/bold] is one text a line, or by the name of the file JSONL, CSV or TSV; .gz and .zst behind it are
understood. A JSON object, or a row below a header, is given to the task whole: text and text_pair, question and
context, prompt and choices.

[bold]Exit status[/bold]: 0 all is answered; 1 an error, one line on standard error; 2 wrong usage; 130 interrupted; 141
the reader of the output has gone. After 1 and 130, what was answered is in OUTPUT.partial, and --resume goes on with
it.
"""

# The groups of options in the help.
MODEL, STREAMS, CLASSIFYING, TOKENS, ANSWERING, OTHERS = (
    {"rich_help_panel": panel}
    for panel in (
        "The model",
        "Input and output",
        "Text and zero-shot classification",
        "Token classification",
        "Question answering and multiple choice",
        "Masked words and features",
    )
)


def _names(value: str) -> list[str]:
    return split_names(repaired(value))


def run(
    context: typer.Context,
    task: Annotated[Task, typer.Option(help="What to compute.", **MODEL)],
    model: Annotated[
        str | None,
        typer.Option(help="A folder, or a Hub id; by default one for sentiment that comes along.", **MODEL),
    ] = None,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; without any, --input is read.")] = None,
    backend: Annotated[
        Backend, typer.Option("--backend", "--framework", help="What computes; auto: what is installed.", **MODEL)
    ] = Backend.auto,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, int8; auto: fast here.", **MODEL)] = "float32",
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1, …, or auto: a GPU where there is one.", **MODEL)
    ] = "auto",
    batch_size: Annotated[
        Any, typer.Option(parser=parse_batch_size, metavar="N", help="Sequences the model sees at a time.", **MODEL)
    ] = "auto",
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit on the Hub.", **MODEL)] = None,
    input: Annotated[str, typer.Option(metavar="FILE", help="What to read; - is standard input.", **STREAMS)] = "-",
    input_format: Annotated[
        InputFormat | None, typer.Option(help="By default the file's name says it.", **STREAMS)
    ] = None,
    text_field: Annotated[
        str | None, typer.Option(metavar="NAME", help="The field of JSONL that is the text.", **STREAMS)
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The column of CSV or TSV that is the text, or its number.", **STREAMS),
    ] = None,
    header: Annotated[
        bool | None,
        typer.Option(help="Whether CSV or TSV begins with names; by default unless --column is a number.", **STREAMS),
    ] = None,
    output: Annotated[
        str, typer.Option(metavar="FILE", help="Where answers go; - is standard output.", **STREAMS)
    ] = "-",
    output_format: Annotated[
        OutputFormat | None, typer.Option(help="By default the file's name says it.", **STREAMS)
    ] = None,
    pretty: Annotated[bool, typer.Option("--pretty", help="Print a table to read.", **STREAMS)] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an output file that is not complete.", **STREAMS)
    ] = False,
    question: Annotated[
        str | None, typer.Option(help="Question answering: what to ask of each text.", **ANSWERING)
    ] = None,
    choices: Annotated[
        Any,
        typer.Option(parser=_names, metavar="A,B,…", help="Multiple choice: the choices for each text.", **ANSWERING),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=0, help="Answers for each text, best first; 0 for all labels.", **STREAMS)
    ] = None,
    function_to_apply: Annotated[
        Function | None,
        typer.Option(help="From logits to scores; by default what the model was trained for.", **CLASSIFYING),
    ] = None,
    truncation: Annotated[
        bool | None, typer.Option(help="Cut texts that are too long, with a warning, or refuse them.", **STREAMS)
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens to cut texts to; by default what the model reads.", **STREAMS)
    ] = None,
    aggregation_strategy: Annotated[
        Strategy | None, typer.Option(help="How tokens become entities; by default not at all.", **TOKENS)
    ] = None,
    ignore_labels: Annotated[
        Any, typer.Option(parser=_names, metavar="A,B,…", help="Labels to leave out; by default O.", **TOKENS)
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=0, help="Read long texts in windows that share so many tokens.", **TOKENS)
    ] = None,
    is_split_into_words: Annotated[
        bool | None,
        typer.Option("--is-split-into-words", help="Each line of JSON is a list of words, or has words.", **TOKENS),
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="What stood between the words, for start and end; by default a blank.", **TOKENS)
    ] = None,
    doc_stride: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens that windows of a long context share, by default 128.", **ANSWERING),
    ] = None,
    max_answer_len: Annotated[
        int | None, typer.Option(min=1, help="Tokens of an answer, by default 15.", **ANSWERING)
    ] = None,
    max_seq_len: Annotated[
        int | None, typer.Option(min=1, help="Tokens of question and window, by default 384.", **ANSWERING)
    ] = None,
    max_question_len: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a question, by default 64.", **ANSWERING)
    ] = None,
    handle_impossible_answer: Annotated[
        bool | None, typer.Option("--handle-impossible-answer", help="Let no answer be an answer.", **ANSWERING)
    ] = None,
    align_to_words: Annotated[
        bool | None, typer.Option(help="Let answers begin and end with words.", **ANSWERING)
    ] = None,
    targets: Annotated[
        Any, typer.Option(parser=_names, metavar="A,B,…", help="Words to score in place of the mask.", **OTHERS)
    ] = None,
    pooling: Annotated[
        Pooling | None,
        typer.Option(help="How the tokens' features become the text's; by default not at all.", **OTHERS),
    ] = None,
    normalize: Annotated[
        bool | None, typer.Option(help="Give pooled features the length 1, the default.", **OTHERS)
    ] = None,
    candidate_labels: Annotated[
        Any, typer.Option(parser=_names, metavar="A,B,…", help="Zero-shot classification: the labels.", **CLASSIFYING)
    ] = None,
    hypothesis_template: Annotated[
        str | None, typer.Option(help="Makes a sentence of a label: This example is {}.", **CLASSIFYING)
    ] = None,
    multi_label: Annotated[
        bool | None, typer.Option("--multi-label", help="Score each label by itself.", **CLASSIFYING)
    ] = None,
) -> None:
    """Answer for each text, in the order of the texts: with one line of JSON, or as the output's name says."""
    name = ALIASES.get(task, str(task))
    texts, question = [repaired(text) for text in texts or ()], None if question is None else repaired(question)
    options = _options(context, name)
    if texts and input != "-":
        raise typer.BadParameter("both TEXT and --input are given, expected one of them")
    for option, given, of in (("question", question, "question-answering"), ("choices", choices, "multiple-choice")):
        if given is not None and name != of:
            raise typer.BadParameter(f"--{option} belongs to {of}, the task is {name}")
    layout = Layout(input_format, text_field, column, header)
    with exit_statuses():
        # All that can be wrong is said before a framework spends seconds on loading.
        cls = TASKS[name]
        columns = cls.columns(cls.change_options(cls.options_class(), options))
        place = Output(output, output_format, columns, pretty=pretty, resume=resume, source=input)
        answerer = pipeline(
            name,
            model,
            backend=backend,
            dtype=dtype,
            device=device,
            batch_size=batch_size,
            revision=revision,
            **options,
        )
        with (
            _open_windows(texts, input, answerer.look_ahead, layout) as windows,
            place.open() as answers,
            show_progress(_total(texts, input, layout), hidden=place.is_on_terminal) as advance,
        ):
            advance(answers.done)
            asked, remaining = tee(_items(window, question, choices) for window in _skip(windows, answers.done, output))
            for results in answerer.answer_windows(remaining, done=answers.done):
                answers.write(next(asked), results)
                advance(len(results))


def _options(context: typer.Context, task: str) -> dict[str, Any]:
    """The task's options among those given.

    Raises:
        typer.BadParameter: one belongs to other tasks only.
    """
    owners: dict[str, list[str]] = {}
    for name, cls in TASKS.items():
        for field in fields(cls.options_class):
            owners.setdefault(field.name, []).append(name)
    given = {name: value for name, value in context.params.items() if name in owners and value is not None}
    for name in given:
        if task not in owners[name]:
            option = name.replace("_", "-")
            raise typer.BadParameter(f"--{option} belongs to {' and '.join(owners[name])}, the task is {task}")
    return given | ({"top_k": None} if given.get("top_k") == 0 and task == "text-classification" else {})


@contextmanager
def _open_windows(texts: list[str] | None, name: str, size: int, layout: Layout) -> Iterator[Iterator[list[Any]]]:
    if texts:
        yield (texts[start : start + size] for start in range(0, len(texts), size))
    else:
        with open_records(name, size, layout) as windows:
            yield windows


def _total(texts: list[str] | None, name: str, layout: Layout) -> int | None:
    """How many texts there are, where somebody watches."""
    if texts:
        return len(texts)
    return count_records(name, layout) if sys.stderr.isatty() else None


def _skip(windows: Iterable[list[Any]], count: int, output: str) -> Iterator[list[Any]]:
    """All but the first ``count``, which are answered."""
    left = count
    for window in windows:
        if rest := window[left:]:
            yield rest
        left = max(0, left - len(window))
    if left:
        raise InputError(f"{output}: has answers for {count} inputs, of which only {count - left} are there")


def _items(window: list[Any], question: str | None, choices: list[str] | None) -> list[Any]:
    """What the task is asked."""
    added = {"question": question} if question is not None else {"choices": choices} if choices is not None else None
    if added is None:
        return window
    text = "context" if question is not None else "prompt"
    return [(item if isinstance(item, dict) else {text: item}) | added for item in window]
