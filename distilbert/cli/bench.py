"""``distilbert bench``: how fast is it on this machine, and beside what else is installed?"""

from __future__ import annotations

import statistics
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from distilbert.bench import MIXES, drawn_lengths, latencies, limits, make_contenders, random_model, throughput
from distilbert.bench.reporting import Report, chart, latency_table, page, throughput_table
from distilbert.cli.conversion import AsJson
from distilbert.cli.terminal import exit_statuses, print_json, print_table
from distilbert.core.backends import BACKENDS, installed, require_backend
from distilbert.core.config import read_config
from distilbert.core.environment import environment
from distilbert.core.errors import InputError
from distilbert.core.files import replace_files

LENGTHS = (8, 32, 128, 384)  # of single texts
DTYPES = ("float32", "bfloat16", "float16", "int8")

BENCH_EPILOG = """
[bold]Examples[/bold]

distilbert bench

distilbert bench --backends torch --dtypes float32,int8 --peers --report bench.html

distilbert bench PATH --device cuda --dtypes bfloat16 --mixes long --no-latency --json
"""


def bench(
    path: Annotated[
        str | None,
        typer.Argument(metavar="[PATH]", help="A text classifier; by default distilbert-base with random weights."),
    ] = None,
    backends: Annotated[
        str | None, typer.Option(help="Of torch, tf and flax; by default all that are installed.")
    ] = None,
    dtypes: Annotated[str, typer.Option(help="Of float32, bfloat16, float16 and int8 (PyTorch on CPUs).")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
    mixes: Annotated[
        str, typer.Option(help="Lengths of texts: short, like SST-2; long, like wikitext.")
    ] = "short,long",
    share: Annotated[float, typer.Option(min=0, max=1, help="How much of the 512 short and 128 long texts.")] = 1.0,
    rounds: Annotated[int, typer.Option(min=1, help="How often everyone takes its turn.")] = 5,
    latency: Annotated[bool, typer.Option(help="Also one text at a time.")] = True,
    peers: Annotated[
        bool, typer.Option("--peers", help="Also transformers, ONNX Runtime, OpenVINO, CTranslate2, if installed.")
    ] = False,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a page, .html, or a .png.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure texts a second and the time for one text: everyone in turns on the same random texts, medians."""
    with exit_statuses(), ExitStack() as stack:
        if report is not None:
            require_backend("matplotlib", "parity")
            if report.suffix not in (".html", ".png") or report.is_dir() or not report.parent.is_dir():
                raise InputError(f"{report}: expected the name of a .html or .png in a folder that is there")
        chosen = _some(backends, "backends", BACKENDS) if backends else installed()
        types = _some(dtypes, "dtypes", DTYPES)
        chosen_mixes = _some(mixes, "mixes", MIXES)
        model = path or str(stack.enter_context(random_model()))
        config = read_config(model)
        skipped: dict[str, str] = {}
        status = stack.enter_context(Console(stderr=True).status("loading"))
        made = make_contenders(model, chosen, types, device, peers=peers, skip=skipped.__setitem__)
        found = stack.enter_context(made)
        show = status.update
        measured = Report(path or "distilbert-base", environment(device), {}, skipped=skipped)

        reached: dict[str, list[float]] = {}

        def measure_limits() -> None:
            show("products alone")
            for dtype, limit in limits(config, types, device).items():
                reached.setdefault(dtype, []).append(limit)

        for mix in chosen_mixes:
            sequences = drawn_lengths(mix, config, share)
            measured.mixes[mix] = throughput(found, sequences, config, rounds, show, measure_limits)
        measured.limits |= {dtype: statistics.median(each) for dtype, each in reached.items()}
        if latency:
            lengths = [length for length in LENGTHS if length <= config.max_position_embeddings]
            measured.latencies = latencies(found, lengths, config, rounds, show)
        status.stop()
        if as_json:
            print_json(measured.to_dict())
        else:
            _print(measured)
        if report is not None:
            content = page(measured).encode() if report.suffix == ".html" else chart(measured, "png")
            with replace_files(report.parent) as stage:
                (stage / report.name).write_bytes(content)


def _print(report: Report) -> None:
    for mix, measured in report.mixes.items():
        title = f"{report.model}, {measured[0].sequences} {mix} texts, {measured[0].tokens:,} tokens"
        print_table(title, *throughput_table(measured, report.limits))
    if report.latencies:
        print_table("one text at a time", *latency_table(report.latencies))
    limit = ", ".join(f"{value / 1e9:,.0f} GFLOP/s in {dtype}" for dtype, value in report.limits.items())
    typer.echo(f"{report.environment['processor']}; products alone: {limit or 'not measured without PyTorch'}")
    for name, why in report.skipped.items():
        typer.echo(f"not measured: {name}: {why}")


def _some(given: str, option: str, known: Collection[str]) -> list[str]:
    """What a list with commas names.

    Raises:
        InputError: something unknown.
    """
    names = [{"pt": "torch"}.get(name.strip(), name.strip()) for name in given.split(",")]
    for name in names:
        if name not in known:
            raise InputError(f"--{option} names {name!r}, expected some of {', '.join(known)}")
    return list(dict.fromkeys(names))
