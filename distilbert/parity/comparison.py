"""Differences between what several backends and the reference compute for the same batches."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from distilbert.core.backends import choose_backend
from distilbert.core.checkpoint import load, require_head
from distilbert.core.config import Config, read_config
from distilbert.core.errors import InputError
from distilbert.core.formats import DTYPES as STORED
from distilbert.core.outputs import is_per_token
from distilbert.core.spec import family_of
from distilbert.parity.bounds import float32_bound, low_precision_bound
from distilbert.parity.inputs import Batch
from distilbert.parity.reference import Reference

BACKENDS = ("torch", "torch:sdpa", "tf", "flax")  # see ``make_probe``
REFERENCE = "float64"
DTYPES = {name: STORED[name] for name in ("float32", "bfloat16", "float16")}
Arrays = Mapping[str, np.ndarray]


def is_worse(error: float, other: float) -> bool:
    """Whether one error is larger than another; a NaN is larger than any number."""
    return error > other or (error != error and other == other)


@dataclass
class Error:
    """How far apart two are in one quantity, over all batches.

    In units of the quantity's largest value where that is more than 1; of gradients, in that of the largest of all,
    because some are zero but for rounding.
    """

    largest: float = 0.0
    batch: str = ""  # in which that was found
    squares: float = 0.0
    count: int = 0

    @property
    def typical(self) -> float:
        """The root of the mean square."""
        return (self.squares / max(self.count, 1)) ** 0.5

    def add(self, differences: np.ndarray, batch: str) -> None:
        """Count the differences found in another batch."""
        largest = float(differences.max(initial=0))
        if is_worse(largest, self.largest):
            self.largest, self.batch = largest, batch
        self.squares += float((differences**2).sum())
        self.count += differences.size


@dataclass(frozen=True)
class Difference:
    """How far a backend is from another or from the reference, and how far it may be."""

    quantity: str  # "hidden_states/2", "logits", "gradients/…"; "plain logits" where nothing else was asked for
    backend: str
    other: str
    error: Error
    measured: float  # of the error what the bound is on: the largest in float32, the typical in lower precision
    bound: float

    @property
    def is_within(self) -> bool:
        """Whether the bound holds; it does not for a NaN."""
        return self.measured <= self.bound


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` found, in the order of the computation."""

    config: Config
    head: str
    dtype: str
    device: str
    backends: tuple[str, ...]
    differences: tuple[Difference, ...]

    @property
    def is_judged(self) -> bool:
        """Whether there was a bound on anything."""
        return any(difference.bound < inf for difference in self.differences)

    @property
    def outside(self) -> list[Difference]:
        """Where a bound does not hold."""
        return [difference for difference in self.differences if not difference.is_within]


def framework_of(backend: str) -> str:
    """The framework of a backend: ``"torch"`` of ``"torch:sdpa"``."""
    return backend.partition(":")[0]


def make_probe(backend: str, head: str, path: str | Path, **options: Any) -> Any:
    """The probe of a backend.

    Args:
        backend: ``"torch"``, ``"tf"`` or ``"flax"``; where it has several kinds of attention with one of them behind a
            colon: ``"torch:sdpa"``.
        head: the spec's name for what to compute.
        path: a folder, or a Hub id.
        options: of the probe.

    Raises:
        MissingBackendError: the framework is not installed.
    """
    attention = backend.partition(":")[2]
    module = importlib.import_module(f"{choose_backend(framework_of(backend))}.probe")
    return module.Probe(head, path, attention=attention or module.ATTENTIONS[0], **options)


def compare(
    path: str | Path,
    head: str,
    batches: Mapping[str, Batch],
    *,
    backends: Iterable[str],
    dtype: str = "float32",
    device: str = "cpu",
) -> Comparison:
    """Run a checkpoint in several backends and in the reference.

    Gradients are compared in float32 only: lower precision trains with float32 weights beside.

    Args:
        path: a folder, or a Hub id.
        head: the spec's name for what to compute.
        batches: by name, as ``inputs.batches`` makes them.
        backends: as ``make_probe`` takes them.
        dtype: what to compute in. The reference starts from the weights rounded to it.
        device: ``"cpu"``, ``"cuda"``, …

    Raises:
        CheckpointError: the checkpoint is absent, damaged, or does not fit the head.
        MissingBackendError: a framework is not installed.
        InputError: the device is not there.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    options: dict[str, Any] = {"config": None, "overrides": {}, "ignore_mismatched_sizes": False}
    config, tensors, report = load(path, head, family=family_of(read_config(path)), **options)
    require_head(report, head, path)
    probes = {backend: make_probe(backend, head, path, dtype=dtype, device=device) for backend in backends}
    is_float32 = dtype == "float32"
    reference = Reference(config, head, {name: value.astype(DTYPES[dtype]) for name, value in tensors.items()})
    errors: dict[tuple[str, str], dict[str, Error]] = {}
    for name, batch in batches.items():
        expected = reference(batch, with_gradients=is_float32)
        expected |= {f"plain {quantity}": value for quantity, value in expected.items() if "/" not in quantity}
        found = {backend: everything(probe, batch, is_float32) for backend, probe in probes.items()}
        measure = units(expected)
        for one, other in combinations([*found, REFERENCE], 2):
            others = expected if other == REFERENCE else found[other]
            between = errors.setdefault((one, other), {})
            for quantity, unit in measure.items():
                if quantity.startswith("attentions/") and not (has_attentions(one) and has_attentions(other)):
                    continue
                difference = np.array(inf)  # of what a backend does not give
                if quantity in found[one] and quantity in others:
                    difference = np.abs(found[one][quantity].astype(np.float64) - others[quantity]) / unit
                    if quantity.startswith("plain ") and is_per_token(quantity.removeprefix("plain "), head):
                        # Padding means nothing, and PyTorch does not compute it when it need not.
                        difference = difference[batch["attention_mask"] == 1]
                between.setdefault(quantity, Error()).add(difference, name)
    return Comparison(config, head, dtype, device, tuple(probes), tuple(_judged(errors, dtype, device)))


def has_attentions(backend: str) -> bool:
    """Whether a backend, or the reference, gives attention probabilities; fused kernels do not."""
    return backend.partition(":")[2] in ("", "eager")


def layer_of(quantity: str) -> str:
    """Where a quantity is computed: "embeddings", "layer 1", …, or "head"."""
    kind, _, number = quantity.partition("/")
    if kind == "attentions":
        return f"layer {int(number) + 1}"
    if kind == "hidden_states":
        return f"layer {number}" if number != "0" else "embeddings"
    return "head"


def everything(probe: Any, batch: Batch, with_gradients: bool) -> dict[str, np.ndarray]:
    """All that a probe computes for a batch."""
    arrays = probe.outputs(batch)
    # The way most calls go; a classifier's last layer then computes the first token only.
    arrays |= {f"plain {name}": value for name, value in probe.outputs(batch, details=False).items()}
    if "loss" in arrays and with_gradients:
        arrays |= {f"gradients/{name}": value for name, value in probe.gradients(batch).items()}
    return arrays


def units(expected: Arrays) -> dict[str, float]:
    """What differences in each quantity are measured in, see ``Error``."""
    largest = {name: float(np.abs(value).max(initial=0)) for name, value in expected.items()}
    steepest = max((value for name, value in largest.items() if name.startswith("gradients/")), default=0.0)
    return {name: max(steepest if name.startswith("gradients/") else value, 1.0) for name, value in largest.items()}


def _judged(errors: Mapping[tuple[str, str], Mapping[str, Error]], dtype: str, device: str) -> Iterator[Difference]:
    """Every error beside its bound."""
    for quantity in sorted({quantity for found in errors.values() for quantity in found}, key=_place):
        pairs = {pair: found[quantity] for pair, found in errors.items() if quantity in found}
        typical = {one: error.typical for (one, other), error in pairs.items() if other == REFERENCE}
        for (one, other), error in pairs.items():
            if dtype == "float32":
                yield Difference(quantity, one, other, error, error.largest, float32_bound(device))
                continue
            is_bounded = other == REFERENCE and "loss" not in quantity
            others = [value for backend, value in typical.items() if framework_of(backend) != framework_of(one)]
            limit = low_precision_bound(others, error.count)
            yield Difference(quantity, one, other, error, error.typical, limit if is_bounded else inf)


def _place(quantity: str) -> tuple[int, int]:
    """Where in the computation a quantity comes."""
    kind, _, number = quantity.partition("/")
    if kind in ("hidden_states", "attentions"):
        return 0, 2 * int(number) + (kind == "attentions")
    return {"loss": 2, "plain loss": 2, "gradients": 3}.get(kind, 1), 0
