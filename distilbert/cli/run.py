"""``distilbert run``: answers for texts."""

from __future__ import annotations

import importlib
import json
from enum import StrEnum
from typing import Annotated, Any

import typer

from distilbert.cli.streams import open_output, open_windows
from distilbert.cli.terminal import exit_statuses, show_progress
from distilbert.core.backends import BACKENDS, choose_backend
from distilbert.core.tokenizer import DistilBertTokenizer
from distilbert.pipelines import text_classification, token_classification

# A window of lines is sorted by length, so a long one fills even batches.
WINDOW_BATCHES = 16


class Task(StrEnum):
    """What ``distilbert run`` can do."""

    text_classification = "text-classification"
    token_classification = "token-classification"


PIPELINES: dict[Task, tuple[str, Any]] = {  # the head, and what answers with it
    Task.text_classification: (text_classification.HEAD, text_classification.TextClassificationPipeline),
    Task.token_classification: (token_classification.HEAD, token_classification.TokenClassificationPipeline),
}


# From logits to scores.
Function = StrEnum("Function", list(text_classification.FUNCTIONS))  # type: ignore[misc]


# How tokens become entities.
Strategy = StrEnum("Strategy", list(token_classification.STRATEGIES))  # type: ignore[misc]


# What computes.
Framework = StrEnum("Framework", list(BACKENDS))  # type: ignore[misc]


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
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Text classification: give a list of the best K labels.")
    ] = None,
    function_to_apply: Annotated[
        Function | None,
        typer.Option(help="Text classification: from logits to scores; by default what the model was trained for."),
    ] = None,
    truncation: Annotated[
        bool | None,
        typer.Option(help="Text classification: cut texts that are too long, with a warning, or refuse them."),
    ] = None,
    aggregation_strategy: Annotated[
        Strategy | None, typer.Option(help="Token classification: how tokens become entities; by default not at all.")
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(min=0, help="Token classification: read long texts in windows that share so many tokens."),
    ] = None,
) -> None:
    """Answer for each text with one line of JSON, in the order of the texts."""
    every: dict[Task, dict[str, Any]] = {
        Task.text_classification: {"top_k": top_k, "function_to_apply": function_to_apply, "truncation": truncation},
        Task.token_classification: {"aggregation_strategy": aggregation_strategy, "stride": stride},
    }
    given = {of: {name: value for name, value in named.items() if value is not None} for of, named in every.items()}
    for other, options in given.items():
        if options and other != task:
            name = next(iter(options)).replace("_", "-")
            raise typer.BadParameter(f"--{name} belongs to {other}, the task is {task}")
    if texts and input != "-":
        raise typer.BadParameter("both TEXT and --input are given, expected one of them")
    with (
        exit_statuses(),
        open_output(output) as answers,
        open_windows(texts, input, batch_size * WINDOW_BATCHES) as (windows, total),
    ):
        # Imported only now: a wrong argument is reported before a framework spends seconds on loading.
        inference = importlib.import_module(f"{choose_backend(framework)}.inference")
        tokenizer = DistilBertTokenizer.from_pretrained(model)
        head, make_pipeline = PIPELINES[task]
        network = inference.InferenceModel(head, model, dtype=dtype, device=device)
        pipeline = make_pipeline(network, network.config, tokenizer)
        with show_progress(total) as advance:
            for window in windows:
                results = pipeline(window, batch_size=batch_size, **given[task])
                for result in results:
                    answers.write(json.dumps(result, ensure_ascii=False) + "\n")
                answers.flush()
                advance(len(window))
