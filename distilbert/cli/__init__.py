"""The ``distilbert`` command."""

from __future__ import annotations

import logging
import os
import sys

import typer

from distilbert.cli.conversion import convert, inspect
from distilbert.cli.evaluate import evaluate
from distilbert.cli.parity import parity
from distilbert.cli.run import EXAMPLES, run

app = typer.Typer(
    pretty_exceptions_enable=False, no_args_is_help=True, rich_markup_mode="rich", help=(__doc__ or "").strip()
)
app.command(epilog="\n\n".join(" ".join(part.split()) for part in EXAMPLES.split("\n\n")))(run)
for command in (evaluate, convert, inspect, parity):
    app.command()(command)


@app.callback()
def _commands() -> None:
    """Use, train, evaluate, convert and compare DistilBERT."""


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"distilbert: {record.levelname.lower()}: " + " ".join(record.getMessage().split())


def main() -> None:
    """Run the command line, with the library's warnings on standard error, one line each."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow tells much about itself
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine())
    logger = logging.getLogger("distilbert")
    logger.addHandler(handler)
    logger.propagate = False
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries would bury our one line
    app()
