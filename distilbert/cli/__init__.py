"""The ``distilbert`` command."""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
from collections.abc import Iterable

import typer

from distilbert.cli.terminal import printable

# Each command, and the module here that has it. RUN_EPILOG there, say, is how the help of run ends.
COMMANDS = {
    "run": "run",
    "evaluate": "evaluate",
    "explain": "explain",
    "convert": "conversion",
    "inspect": "conversion",
    "parity": "parity",
    "bench": "bench",
    "finetune": "training",
    "distill": "training",
    "init-student": "student",
    "prepare-corpus": "corpus",
}

EPILOG = """
[bold]Examples[/bold] stand below each command's own help: distilbert run --help

[bold]Exit status[/bold]: 0 all is well; 1 an error, one line on standard error; 2 wrong usage; 130 interrupted; 141 the
reader of the output has gone.
"""


def make_app(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """The application, with the commands of these names."""
    app = typer.Typer(
        pretty_exceptions_enable=False, no_args_is_help=True, rich_markup_mode="rich", epilog=_paragraphs(EPILOG)
    )
    app.callback()(_commands)
    for name in names:
        module = importlib.import_module(f"{__name__}.{COMMANDS[name]}")
        function = name.replace("-", "_")
        epilog = _paragraphs(getattr(module, f"{function.upper()}_EPILOG", ""))
        app.command(name, epilog=epilog)(getattr(module, function))
    return app


def _paragraphs(text: str) -> str:
    """A text with each paragraph on a line, as Typer wants it."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _commands() -> None:
    """Use, train, evaluate, explain, convert, compare and time DistilBERT."""


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"distilbert: {record.levelname.lower()}: " + " ".join(printable(record.getMessage()).split())


def main() -> None:
    """Run the command line, with the library's warnings on standard error, one line each."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow tells much about itself
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine())
    logger = logging.getLogger("distilbert")
    logger.addHandler(handler)
    logger.propagate = False
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its retries would bury our one line
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what is no UTF-8 lacks much of what tables are made of
    # Other commands need modules that this one should not wait for.
    called = sys.argv[1:2]
    make_app(called if called and called[0] in COMMANDS else COMMANDS)()
