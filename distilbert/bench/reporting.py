"""Measurements as tables, as a chart, and as one page of HTML that needs nothing beside it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from distilbert.bench.measuring import Latency, Throughput
from distilbert.core.backends import require_backend
from distilbert.core.pages import render

OURS, PEERS = "#c8571b", "#8b857c"


@dataclass
class Report:
    """All that was measured.

    Args:
        model: its name.
        environment: date, hardware, versions.
        limits: of products alone, in FLOP/s by type.
        mixes: throughputs by mix.
        latencies: of single texts.
        skipped: why who took no part.
    """

    model: str
    environment: dict[str, str]
    limits: dict[str, float]
    mixes: dict[str, list[Throughput]] = field(default_factory=dict)
    latencies: list[Latency] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def is_ours(name: str) -> bool:
    """Whether a contender is a backend of this library."""
    return name.partition(" ")[0] in ("torch", "tf", "flax")


def throughput_table(measured: Sequence[Throughput], limits: Mapping[str, float]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows, the fastest first."""
    ordered = sorted(measured, key=lambda one: one.median)
    columns = ["", "texts/s", "tokens/s", "spread", "GFLOP/s", "of the limit", "of the fastest"]
    return columns, [
        [
            one.name,
            f"{one.sequences / one.median:,.1f}",
            f"{one.tokens / one.median:,.0f}",
            f"{one.spread:.0%}",
            f"{one.flops / one.median / 1e9:,.0f}",
            share(one, limits),
            f"{ordered[0].median / one.median:.2f}",
        ]
        for one in ordered
    ]


def share(one: Throughput, limits: Mapping[str, float]) -> str:
    """How much of what products of its type reach alone."""
    limit = limits.get(one.name.rpartition(" ")[2])
    return "" if limit is None else f"{one.flops / one.median / limit:.0%}"


def latency_table(measured: Sequence[Latency]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: the median, and what 99 of 100 calls stay below, in milliseconds, by length."""
    lengths = list(dict.fromkeys(one.length for one in measured))
    by_name: dict[str, dict[int, Latency]] = {}
    for one in measured:
        by_name.setdefault(one.name, {})[one.length] = one
    rows = [
        [
            name,
            *(f"{of[length].percentile(50) * 1e3:.2f} / {of[length].percentile(99) * 1e3:.2f}" for length in lengths),
        ]
        for name, of in by_name.items()
    ]
    return ["p50 / p99, ms", *(f"{length} tokens" for length in lengths)], rows


def chart(report: Report, kind: str) -> bytes:
    """A picture of the throughputs, and of the latencies by length if there are any.

    Args:
        report: what was measured.
        kind: ``"png"`` or ``"svg"``.

    Raises:
        MissingBackendError: matplotlib is missing.
    """
    require_backend("matplotlib", "parity")
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter, ScalarFormatter

    panels = len(report.mixes) + bool(report.latencies)
    most = max([len(measured) for measured in report.mixes.values()], default=4)
    figure = Figure(figsize=(4.6 * panels, 2.4 + 0.3 * most), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for axis, (mix, measured) in zip(axes, report.mixes.items(), strict=False):
        ordered = sorted(measured, key=lambda one: -one.median)
        rates = [one.sequences / one.median for one in ordered]
        names = [one.name for one in ordered]
        bars = axis.barh(names, rates, color=[OURS if is_ours(name) else PEERS for name in names])
        axis.bar_label(bars, [f"{rate:,.1f}" for rate in rates], padding=3, fontsize=8)
        axis.margins(x=0.18)
        tokens, texts = measured[0].tokens, measured[0].sequences
        axis.set_title(f"{mix}: {texts} texts of {tokens / texts:.0f} tokens in the mean", fontsize=9)
        axis.set_xlabel("texts/s", fontsize=8)
    if report.latencies:
        axis = axes[-1]
        for name in dict.fromkeys(one.name for one in report.latencies):
            line = [(one.length, one.percentile(50) * 1e3) for one in report.latencies if one.name == name]
            style = "-o" if is_ours(name) else "--s"
            axis.plot(*zip(*line, strict=True), style, label=name, markersize=3.5, linewidth=1.3)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(sorted({one.length for one in report.latencies}))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        for formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        axis.set_title("one text at a time", fontsize=9)
        axis.set_xlabel("tokens", fontsize=8)
        axis.set_ylabel("ms, median", fontsize=8)
        axis.legend(fontsize=7, frameon=False)
    for axis in axes:
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format=kind, dpi=160)
    return file.getvalue()


def page(report: Report) -> str:
    """All of it as a page of HTML.

    Raises:
        MissingBackendError: matplotlib is missing.
    """
    picture = chart(report, "svg").decode()
    tables = [(f"{mix} texts", *throughput_table(measured, report.limits)) for mix, measured in report.mixes.items()]
    if report.latencies:
        tables.append(("One text at a time", *latency_table(report.latencies)))
    values = {"report": report, "chart": picture[picture.index("<svg") :], "tables": tables, "is_ours": is_ours}
    return render("distilbert.bench", "report.html", **values)
