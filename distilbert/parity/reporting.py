"""A comparison as a table, and as one page of HTML that needs nothing beside it."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from math import inf, nan
from pathlib import Path

from distilbert.core.backends import require_backend
from distilbert.core.environment import environment
from distilbert.core.pages import render
from distilbert.parity.comparison import BACKENDS, REFERENCE, Comparison, Difference, is_worse, layer_of
from distilbert.parity.inputs import Batch

MARKERS = dict(zip(BACKENDS, "oDs^", strict=True))
# Colours that the page replaces by its own, which are others by day and by night.
INK, BOUND = "#000001", "#000002"
SERIES = {backend: f"#00001{number}" for number, backend in enumerate(MARKERS)}
VARIABLES = {INK: "ink", BOUND: "bound"} | {colour: f"series-{n}" for n, colour in enumerate(SERIES.values())}

Rows = dict[str, dict[tuple[str, str], Difference]]  # by label and by who is compared with whom


def rows(comparison: Comparison) -> Rows:
    """The worst of what belongs together: each layer, all attentions, each output, all gradients."""
    layers = [f"layer {number + 1}" for number in range(comparison.config.num_hidden_layers)]
    found: Rows = {label: {} for label in ("embeddings", *layers, "attentions")}
    for difference in comparison.differences:
        pair = difference.backend, difference.other
        of = found.setdefault(_label(difference.quantity), {})
        of[pair] = _worse(of.get(pair), difference)
    return found


def _worse(known: Difference | None, difference: Difference) -> Difference:
    return difference if known is None or is_worse(difference.measured, known.measured) else known


def _limit(of: Mapping[tuple[str, str], Difference]) -> float:
    """The bound on what a row compares with the reference; infinite where there is none."""
    return max((difference.bound for (_, other), difference in of.items() if other == REFERENCE), default=inf)


def _label(quantity: str) -> str:
    kind = quantity.removeprefix("plain ").partition("/")[0]
    return layer_of(quantity) if kind == "hidden_states" else kind.replace("_", " ")


def named(quantity: str) -> str:
    """A quantity in words."""
    kind, _, name = quantity.partition("/")
    if kind == "attentions":
        return f"the attentions of {layer_of(quantity)}"
    return f"the gradient of {name}" if kind == "gradients" else _label(quantity)


def table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """The columns' names and the rows of a table of errors against the reference."""
    columns = ["", *comparison.backends, "bound"]
    lines = []
    for label, found in rows(comparison).items():
        cells = [_cell(found.get((backend, REFERENCE))) for backend in comparison.backends]
        lines.append([label, *cells, _bound(_limit(found))])
    return columns, lines


def _cell(difference: Difference | None) -> str:
    if difference is None:  # fused attention gives no probabilities
        return ""
    return number(difference.measured) + ("" if difference.is_within else " (!)")


def _bound(value: float) -> str:
    return number(value) if value < inf else "none"


def number(value: float) -> str:
    """An error for people to read."""
    return f"{value:.1e}"


def verdict(comparison: Comparison) -> str:
    """One sentence: all is well, or who is off and where first."""
    if not comparison.is_judged:
        return "nothing was judged: lower precision is measured by other frameworks, on at least 200 numbers"
    off = [difference for difference in comparison.outside if difference.other == REFERENCE]
    first = next(iter(off or comparison.outside), None)
    if first is None:
        worst = max(comparison.differences, key=lambda entry: entry.measured / entry.bound)
        return (
            f"{', '.join(comparison.backends)}: within the bounds; nearest to one is {_where(worst)}, "
            f"{number(worst.measured)} of {number(worst.bound)}"
        )
    names = list(dict.fromkeys(difference.backend for difference in off))
    who = f"{', '.join(names)} off" if off else "two backends apart, though each is near float64"
    return f"{who}; first in {_where(first)}: {number(first.measured)}, expected at most {number(first.bound)}"


def _where(difference: Difference) -> str:
    pair = f"{difference.backend} against {difference.other}"
    return f"{named(difference.quantity)}, {pair}, batch {difference.error.batch!r}"


def page(comparison: Comparison, path: str, batches: Mapping[str, Batch]) -> str:
    """The whole comparison as a page of HTML.

    Raises:
        MissingBackendError: matplotlib is missing.
    """
    require_backend("matplotlib", "parity")
    columns, lines = table(comparison)
    return render(
        "distilbert.parity",
        "report.html",
        name=Path(path).resolve().name if Path(path).exists() else path,
        comparison=comparison,
        verdict=verdict(comparison),
        chart=chart(comparison),
        columns=columns,
        lines=lines,
        pairs=list(_pairs(comparison)),
        batches={name: _shape(batch) for name, batch in batches.items()},
        environment=environment(comparison.device),
        measured="largest" if comparison.dtype == "float32" else "typical (root mean square)",
    )


def _shape(batch: Batch) -> str:
    ids = batch["input_ids"] if "input_ids" in batch else batch["inputs_embeds"][..., 0]
    return " x ".join(map(str, ids.shape))


def _pairs(comparison: Comparison) -> Iterator[tuple[str, str, str]]:
    """The largest difference between any two backends, and where it is."""
    worst: dict[tuple[str, str], Difference] = {}
    for difference in comparison.differences:
        pair = difference.backend, difference.other
        if difference.other != REFERENCE:
            worst[pair] = _worse(worst.get(pair), difference)
    for (one, other), difference in worst.items():
        yield f"{one} and {other}", number(difference.measured), named(difference.quantity)


def chart(comparison: Comparison) -> str:
    """The errors of each backend from the embeddings to the gradients, as SVG whose colours are the page's."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    found = rows(comparison)
    # Text stays text and the bytes the same each time.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "distilbert", "font.size": 11}):
        figure = Figure(figsize=(8.6, 3.9))
        axes = figure.subplots()
        depth = (
            comparison.config.num_hidden_layers + 1
        )  # embeddings and layers: what follows is no further along a line
        for backend in comparison.backends:
            errors = {
                place: max(of[backend, REFERENCE].measured, 1e-12)  # none at all has no place on a log scale
                for place, of in enumerate(found.values())
                if (backend, REFERENCE) in of
            }
            for part, line in ((range(depth), "-"), (range(depth, len(found)), "none")):
                shown = {place: errors[place] for place in part if place in errors}
                axes.plot(
                    list(shown),
                    list(shown.values()),
                    label=backend if line == "-" else None,
                    color=SERIES[backend],
                    marker=MARKERS[backend],
                    markersize=9 if backend == "torch" else 6,  # seen under another one at the same place
                    linestyle=line,
                    linewidth=1.8,
                )
        limits = [_limit(of) if _limit(of) < inf else nan for of in found.values()]
        axes.plot(range(len(found)), limits, color=BOUND, linestyle=(0, (5, 3)), linewidth=1.5, label="bound")
        axes.set_yscale("log")
        axes.set_xticks(range(len(found)), list(found), rotation=35, ha="right", rotation_mode="anchor")
        axes.set_ylabel("error against float64")
        axes.grid(axis="y", color=INK, alpha=0.12)
        axes.legend(frameon=False, ncols=len(comparison.backends) + 1, loc="lower left", bbox_to_anchor=(0, 1.0))
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.tick_params(which="both", color=INK)
        for side in ("bottom", "left"):
            axes.spines[side].set_color(INK)
        drawn = io.StringIO()
        figure.savefig(
            drawn,
            format="svg",
            transparent=True,
            bbox_inches="tight",
            metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
        )
    text = drawn.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return text
