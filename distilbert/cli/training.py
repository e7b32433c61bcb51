"""``distilbert finetune`` and ``distilbert distill``: training on any backend."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, get_args, get_type_hints

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from distilbert import training
from distilbert.cli.terminal import Backend, exit_statuses
from distilbert.core.errors import ConfigError
from distilbert.distillation.recipe import Recipe, TaskRecipe
from distilbert.pipelines import ALIASES
from distilbert.training.examples import LABELLED
from distilbert.training.log import CURVES_FILE, METRICS_FILE
from distilbert.training.run import FOLDER, Position, Progress
from distilbert.training.settings import Settings

FINETUNE_EPILOG = """
[bold]Examples[/bold]

distilbert finetune MODEL OUT --task text-classification --data train.tsv --dev dev.tsv

distilbert finetune MODEL OUT --task token-classification --data train.conll --dev dev.conll --epochs 5

distilbert finetune STUDENT OUT --task text-classification --data train.tsv --teacher TEACHER --unlabelled more.txt

distilbert finetune MODEL OUT --config run.yaml --learning-rate 3e-5

torchrun --nproc-per-node 8 -m distilbert finetune MODEL OUT --config run.yaml

[bold]After a crash[/bold] or an interruption the same command goes on from the last state in OUT.
"""

DISTILL_EPILOG = """
[bold]Examples[/bold]

distilbert prepare-corpus wiki.txt corpus --tokenizer TEACHER

distilbert init-student TEACHER student

distilbert distill student OUT --teacher TEACHER --corpus corpus --max-tokens 4096 --max-steps 100000

torchrun --nproc-per-node 8 -m distilbert distill student OUT --config run.yaml --sharded

[bold]After a crash[/bold] or an interruption the same command goes on from the last state in OUT.
"""

# Options that are texts even where YAML takes them for numbers, such as that of a column.
TEXTS = ("text_field", "text_pair_field", "label_field", "data", "dev", "teacher", "corpus")

Task = StrEnum("Task", [*LABELLED, "fill-mask", *ALIASES])  # type: ignore[misc]
MODEL = typer.Argument(metavar="MODEL", help="What to begin with: a folder with a saved model, or a Hub id.")
STUDENT = typer.Argument(metavar="STUDENT", help="What to begin with, such as init-student makes.")
OUT = typer.Argument(metavar="OUT", help="The folder to write: the best model, and in training the log.")
CONFIG = typer.Option(metavar="FILE", help="YAML with any of these options by name; those given here come first.")
TEACHER = typer.Option(metavar="PATH", help="A model to learn from: a folder, or a Hub id.")
BACKEND = typer.Option("--backend", "--framework", help="What computes; auto: what is installed.")
DEVICE = typer.Option(help="cpu, cuda, …; by default a GPU where there is one.")
OVERWRITE = typer.Option("--overwrite", help="OUT may hold another run, or a checkpoint.")


def with_options_of(*classes: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each field of dataclasses, with the help that their docstrings have."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        listed = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        for cls in classes:
            helps = _argument_helps(cls)
            hints = get_type_hints(cls)
            for field in fields(cls):
                kind = hints[field.name]
                kind = list[str] if kind == tuple[str, ...] else kind
                default = "" if field.default in (None, ()) else f" [dim]\\[default: {field.default}][/dim]"
                option = typer.Option(f"--{field.name.replace('_', '-')}", help=helps[field.name] + default)
                if kind is bool:
                    option = typer.Option(help=helps[field.name])
                optional = kind if isinstance(kind, UnionType) else kind | None
                listed.append(
                    inspect.Parameter(
                        field.name,
                        inspect.Parameter.KEYWORD_ONLY,
                        default=None,
                        annotation=Annotated[optional, option],
                    )
                )
        command.__signature__ = own.replace(parameters=listed)  # type: ignore[attr-defined]
        return command

    return decorate


def _argument_helps(cls: type) -> dict[str, str]:
    """What the docstring of a class says of each of its arguments, in a line."""
    section = inspect.getdoc(cls).split("Args:\n")[1].split("\n\n")[0]  # type: ignore[union-attr]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {
        name: (" ".join(text.split())[:1].upper() + " ".join(text.split())[1:]).replace("``", "")
        for name, text in found
    }


@with_options_of(Settings, TaskRecipe)
def finetune(
    model: Annotated[str, MODEL],
    out: Annotated[Path, OUT],
    task: Annotated[Task | None, typer.Option(help="What the head is for.")] = None,
    data: Annotated[str | None, typer.Option(metavar="FILE", help="What to train on.")] = None,
    dev: Annotated[str | None, typer.Option(metavar="FILE", help="What decides which model is kept.")] = None,
    teacher: Annotated[str | None, TEACHER] = None,
    unlabelled: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Texts, one a line, that only the teacher speaks about.")
    ] = None,
    text_field: Annotated[
        str | None, typer.Option(metavar="NAME", help="The field with the text, or its column.")
    ] = None,
    text_pair_field: Annotated[str | None, typer.Option(metavar="NAME", help="That with a second text.")] = None,
    label_field: Annotated[str | None, typer.Option(metavar="NAME", help="That with the label.")] = None,
    config: Annotated[Path | None, CONFIG] = None,
    backend: Annotated[Backend | None, BACKEND] = None,
    device: Annotated[str | None, DEVICE] = None,
    overwrite: Annotated[bool, OVERWRITE] = False,
    **more: Any,
) -> None:
    """Train a head on labelled data, alone or beside a teacher.

    text-classification: .tsv, .csv or .jsonl with a text, perhaps a second one, and a label: a name or a whole number;
    numbers with a decimal point make it a regression.
    token-classification: a word and its label a line, a blank line between sentences.
    question-answering: SQuAD's .json, or .jsonl.
    multiple-choice: .jsonl with prompt, choices and label.
    fill-mask: a text a line.
    """
    given = {
        **{"task": task, "data": data, "dev": dev, "teacher": teacher, "unlabelled": unlabelled},
        **{"text_field": text_field, "text_pair_field": text_pair_field, "label_field": label_field},
        **{"backend": backend, "device": device},
        **more,
    }
    with exit_statuses():
        options = _merged(config, given, finetune)
        for name in ("task", "data"):
            if name not in options:
                raise ConfigError(f"{name}: is not given; name it with --{name}, or in --config")
        settings, recipe = _taken(Settings, options), _taken(TaskRecipe, options)
        with show_training() as progress:
            position = training.finetune(
                *(model, out, str(options.pop("task")), options.pop("data")),
                settings=settings,
                recipe=recipe,
                overwrite=overwrite,
                progress=progress,
                **options,
            )
        _summarise(out, position)


@with_options_of(Settings, Recipe)
def distill(
    student: Annotated[str, STUDENT],
    out: Annotated[Path, OUT],
    corpus: Annotated[str | None, typer.Option(metavar="FOLDER", help="What prepare-corpus wrote.")] = None,
    teacher: Annotated[str | None, TEACHER] = None,
    dev: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Another corpus, which decides which model is kept.")
    ] = None,
    config: Annotated[Path | None, CONFIG] = None,
    backend: Annotated[Backend | None, BACKEND] = None,
    device: Annotated[str | None, DEVICE] = None,
    overwrite: Annotated[bool, OVERWRITE] = False,
    **more: Any,
) -> None:
    """Train a masked LM on a corpus, beside a teacher or alone."""
    given = {"corpus": corpus, "teacher": teacher, "dev": dev, "backend": backend, "device": device, **more}
    with exit_statuses():
        options = _merged(config, given, distill)
        if "corpus" not in options:
            raise ConfigError("corpus: is not given; name it with --corpus, or in --config")
        settings = _taken(Settings, options)
        alone = {} if options.get("teacher") else {"masked_lm_weight": 1.0}
        options = alone | options
        recipe = _taken(Recipe, options)
        with show_training() as progress:
            position = training.distill(
                *(student, out, options.pop("corpus")),
                settings=settings,
                recipe=recipe,
                overwrite=overwrite,
                progress=progress,
                **options,
            )
        _summarise(out, position)


def _merged(path: Path | None, given: Mapping[str, Any], command: Callable[..., None]) -> dict[str, Any]:
    """What a YAML file says, and before it what was given.

    Raises:
        ConfigError: the file is not YAML, or has an option that the command has not.
    """
    stored: Any = {}
    if path is not None:
        import yaml

        try:
            stored = yaml.safe_load(path.read_text("utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(stored, dict):
            raise ConfigError(f"{path}: holds a {type(stored).__name__}, expected options by name")
        stored = {str(name).replace("-", "_"): value for name, value in stored.items()}
        if isinstance(stored.get("unlabelled"), str):
            stored["unlabelled"] = [stored["unlabelled"]]
        for name in TEXTS:
            value = stored.get(name)
            if type(value) is int:
                stored[name] = str(value)
            elif not isinstance(value, (str, NoneType)):
                raise ConfigError(f"{path}: {name} is {value!r:.40}, expected one text")
        if unknown := stored.keys() - given.keys():
            known = ", ".join(sorted(given))
            raise ConfigError(f"{path}: no option {', '.join(sorted(unknown))}; the options are: {known}")
    return stored | {name: value for name, value in given.items() if value is not None}


def _taken(cls: type, options: dict[str, Any]) -> Any:
    """An instance of a dataclass from those options that are its fields, which are taken out.

    Raises:
        ConfigError: a value of another type.
    """
    hints = get_type_hints(cls)
    values = {}
    for field in fields(cls):
        if field.name not in options:
            continue
        value, kind = options.pop(field.name), hints[field.name]
        kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
        if kind == tuple[str, ...]:
            value = tuple([value] if isinstance(value, (str, int)) else value)
        elif float in kinds and type(value) in (int, str):
            try:
                value = float(value)  # YAML takes 5e-5 for a text
            except ValueError:
                raise ConfigError(f"{field.name} is {value!r}, expected a number") from None
        elif type(value) not in kinds:
            raise ConfigError(f"{field.name} is {value!r}, expected {' or '.join(k.__name__ for k in kinds)}")
        values[field.name] = value
    if values.get("max_tokens") is not None and cls is Settings:
        values.setdefault("batch_size", None)
    return cls(**values)


@contextmanager
def show_training() -> Iterator[Callable[[Progress], None]]:
    """A bar of steps, with the loss and the speed, on standard error where that is a terminal."""
    console = Console(stderr=True)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[shown]}"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
    )
    with Bar(
        *columns, console=console, disable=not (console.is_terminal and is_first_process()), transient=True
    ) as bar:
        task = bar.add_task("", total=None, shown="")

        def show(progress: Progress) -> None:
            shown = f"loss {progress.values['loss']:.4f}  {progress.tokens_per_second:,.0f} tokens/s"
            bar.update(task, completed=progress.step, total=progress.steps, shown=shown)

        yield show


def is_first_process() -> bool:
    """Whether this one speaks: of several that torchrun has started, one."""
    return os.environ.get("RANK", "0") == "0"


def _summarise(out: Path, position: Position) -> None:
    if not is_first_process():
        return
    best = "" if position.best is None else f", the best at step {position.best_step:,} ({position.best:.4f})"
    typer.echo(
        f"{position.step:,} steps{best}; the model is in {out}, {METRICS_FILE} and {CURVES_FILE} in {out / FOLDER}"
    )
