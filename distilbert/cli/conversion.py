"""``distilbert convert`` and ``distilbert inspect``."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from distilbert import conversion
from distilbert.cli.student import init_student
from distilbert.cli.terminal import exit_statuses, print_json, print_table, show_bytes
from distilbert.conversion.convert import ATOL

# What weights are stored in.
FileFormat = StrEnum("FileFormat", list(conversion.NAMES))  # type: ignore[misc]
SourceFormat = Annotated[
    FileFormat | None, typer.Option("--from", help="Which weights to take where SOURCE holds several formats.")
]
SourceHead = Annotated[
    str | None, typer.Option(metavar="HEAD", help="What the weights compute, where that cannot be told from them.")
]
AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]
TargetFamily = StrEnum("TargetFamily", ["distilbert"])  # what --to-family can be

CONVERT_EPILOG = """
[bold]Examples[/bold]

distilbert convert old/tf_model.h5 new --to safetensors

distilbert convert PATH TARGET --to msgpack --dry-run

distilbert convert PATH TARGET --to torch --dtype float16 --verify --atol 1e-2

distilbert convert PATH preset --to keras-hub --head masked-lm

distilbert convert FOLDER_WITH_A_BERT exact --to safetensors --to-family distilbert
"""

INSPECT_EPILOG = """
[bold]Examples[/bold]

distilbert inspect FOLDER

distilbert inspect old/tf_model.h5 --json
"""


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A folder with a checkpoint or a KerasHub preset, or its weights.")
    ],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The folder to write, all of it or nothing.")],
    to: Annotated[FileFormat, typer.Option(help="The format to write.")],
    source_format: SourceFormat = None,
    head: SourceHead = None,
    dtype: Annotated[str | None, typer.Option(help="Cast floats: float32, float16, bfloat16, float64.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="Larger weights are split, but for Keras.")] = "5GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the checkpoint in TARGET.")] = False,
    allow_unused: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A tensor to leave behind; may be repeated.")
    ] = None,
    allow_missing: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A parameter to initialise; may be repeated.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, write nothing.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare what source and target compute, each in its own framework.")
    ] = False,
    atol: Annotated[
        float, typer.Option(min=0, help="The largest difference that --verify allows; a cast by --dtype is one.")
    ] = ATOL,
    to_family: Annotated[
        TargetFamily | None,
        typer.Option(help="Make a DistilBERT of all layers of a BERT, which computes the same for single texts."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Convert weights between formats, Keras's and KerasHub's too, bit for bit; config and tokenizer go along."""
    if to_family is not None:
        others = {
            **{"--from": source_format, "--head": head, "--dtype": dtype, "--json": as_json},
            **{"--allow-unused": allow_unused, "--allow-missing": allow_missing},
            **{"--dry-run": dry_run, "--verify": verify, "--atol": atol != ATOL},
            **{"--max-shard-size": max_shard_size != "5GB", "--to keras-hub": to == "keras-hub"},
        }
        for name, value in others.items():
            if value:
                raise typer.BadParameter(f"{name} does not go with --to-family; convert what it writes")
        init_student(str(source), str(target), layers="all", to=to, overwrite=overwrite)
        return
    with exit_statuses():
        try:
            with show_bytes() as progress:
                report = conversion.convert(
                    source,
                    target,
                    to,
                    source_format=source_format,
                    head=head,
                    dtype=dtype,
                    max_shard_size=max_shard_size,
                    overwrite=overwrite,
                    allow_unused=allow_unused or (),
                    allow_missing=allow_missing or (),
                    dry_run=dry_run,
                    verify=verify,
                    atol=atol,
                    progress=progress,
                )
        except conversion.VerificationError as error:
            if as_json:
                print_json({"verification": asdict(error.verification)})
            else:
                _print_verification(error.verification)
            raise
        if as_json:
            print_json(asdict(report))
            return
        notes = Counter(entry.note for entry in report.entries)
        if dry_run:
            columns = ("from", "to", "shape", "dtype", "")
            rows = [
                (
                    entry.source or "",
                    entry.target or "",
                    " x ".join(map(str, entry.shape)),
                    entry.dtype,
                    entry.note or ("transposed" if entry.is_transposed else ""),
                )
                for entry in report.entries
            ]
            print_table(f"{report.source} as {report.head}", columns, rows)
        if report.verification is not None:
            _print_verification(report.verification)
        counted = [f"{count} {note or 'tensors'}" for note, count in sorted(notes.items())]
        done = "would be written" if dry_run else "written"
        typer.echo(f"{', '.join(counted)}; {', '.join(report.files)} {done} to {report.target}")


def _print_verification(found: conversion.Verification) -> None:
    rows = [(layer.name, f"{layer.converted:.1e}", f"{layer.reloaded:.1e}") for layer in found.layers]
    title = f"largest differences, {found.source_framework} against {found.target_framework}; allowed {found.atol:.1e}"
    print_table(title, ("", "converted", "saved again"), rows)


def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder with a checkpoint, or its weights.")],
    source_format: SourceFormat = None,
    head: SourceHead = None,
    as_json: AsJson = False,
) -> None:
    """Say what a checkpoint is: format, head, size, types, ties, config."""
    with exit_statuses():
        found = conversion.inspect(path, file_format=source_format, head=head)
        if as_json:
            print_json(asdict(found))
            return
        config = [f"{name} {value}" for name, value in found.config.items()]
        rows = [
            ("format", found.file_format),
            ("model", f"{found.family}, {found.head}"),
            ("parameters", f"{found.parameters:,}"),
            ("size", f"{found.size / 1e6:,.1f} MB"),
            ("types", ", ".join(f"{name} ({count} tensors)" for name, count in found.dtypes.items())),
            ("tied", "\n".join(f"{name} to {shared}" for name, shared in found.tied.items()) or "none"),
            ("missing", "\n".join(found.missing) or "none"),
            ("not used", "\n".join(found.unused) or "none"),
            ("config, where not the default", "\n".join(config) or "all default"),
        ]
        print_table(str(found.path), ("", ""), rows)
