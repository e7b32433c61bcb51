"""Times of all in turns, round by round: what slows the machine down slows all down."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from distilbert.bench.contenders import Contender, random_ids, timed
from distilbert.core.batches import TOKENS_ON_ACCELERATOR, cached_tokens
from distilbert.core.config import Config
from distilbert.core.spec import parameters

WARM_UP = 2  # rounds that do not count
LIMIT_CALLS = 5  # of each product in a round
CALLS = 20  # in a row that make a round of latencies

Show = Callable[[str], None]


@dataclass(frozen=True)
class Throughput:
    """How long a contender took for all sequences.

    Args:
        name: whose.
        seconds: of each round.
        sequences: how many there are.
        tokens: that they have together.
        flops: that products with all layers' weights take for them.
    """

    name: str
    seconds: list[float]
    sequences: int
    tokens: int
    flops: float

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """How far the slowest and the fastest round are apart, as a share of the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


@dataclass(frozen=True)
class Latency:
    """How long a contender took for one sequence.

    Args:
        name: whose.
        length: of the sequence, in tokens.
        seconds: of each call.
    """

    name: str
    length: int
    seconds: list[float]

    def percentile(self, percent: float) -> float:
        """Seconds."""
        return float(np.percentile(self.seconds, percent))


def throughput(
    contenders: Mapping[str, Contender],
    sequences: Sequence[Sequence[int]],
    config: Config,
    rounds: int,
    show: Show,
    between: Callable[[], None] = lambda: None,
) -> list[Throughput]:
    """Time everyone on the same sequences, after rounds that let them warm up and compile; each begins ``between``."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-WARM_UP, rounds):
        if number >= 0:
            between()
        for name, run in contenders.items():
            show(f"{name}: {'warming up' if number < 0 else f'round {number + 1} of {rounds}'}")
            taken = run(sequences)
            seconds[name] += taken if number >= 0 else []
    tokens = sum(map(len, sequences))
    flops = float(flops_per_token(config) * tokens)
    return [Throughput(name, taken, len(sequences), tokens, flops) for name, taken in seconds.items()]


def latencies(
    contenders: Mapping[str, Contender], lengths: Iterable[int], config: Config, rounds: int, show: Show
) -> list[Latency]:
    """Time everyone on one sequence at a time, ``CALLS`` in a row."""
    found = []
    for length in lengths:
        sequence = [random_ids(length, config, np.random.default_rng(length))]
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(-1, rounds):
            for name, run in contenders.items():
                show(f"{name}: one text of {length} tokens")
                taken = run(sequence, CALLS)
                seconds[name] += taken if number >= 0 else []
        found += [Latency(name, length, taken) for name, taken in seconds.items()]
    return found


def flops_per_token(config: Config) -> int:
    """Operations of products with the weights of all layers.

    Attention's own are not counted, and what is spared of the last layer is not subtracted: it is the same number for
    everyone.
    """
    matrices = (row.shape for row in parameters(config, "base") if row.layer is not None and len(row.shape) == 2)
    return sum(2 * outputs * inputs for outputs, inputs in matrices)


def limits(config: Config, dtypes: Iterable[str], device: str) -> dict[str, float]:
    """What the products of a layer reach alone, in FLOP/s by type, where PyTorch is installed and has the device.

    They have as many rows as suit the device at a time, on CPUs with weights laid out as for inference, if that is
    faster.
    """
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    from distilbert.pt.products import has_layout, product_of

    try:
        is_on_cpu = torch.device(device).type == "cpu"
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        return {}
    shapes = [row.shape for row in parameters(config, "base") if row.layer == 0 and len(row.shape) == 2]
    found = {}
    for dtype in dtypes:
        if dtype == "int8":  # whose products need their factors rounded first
            continue
        seconds, kind = 0.0, {"device": device, "dtype": getattr(torch, dtype)}
        rows = cached_tokens(kind["dtype"].itemsize) if is_on_cpu else TOKENS_ON_ACCELERATOR
        for outputs, inputs in shapes:
            value, linear = torch.randn(rows, inputs, **kind), torch.nn.Linear(inputs, outputs, **kind)
            with torch.inference_mode():
                ways: list[Callable[..., object]] = [linear]
                if device == "cpu" and has_layout(kind["dtype"]):
                    ways.append(product_of([linear]))
                times = [[timed(way, value, device) for _ in range(LIMIT_CALLS)] for way in ways]
            seconds += min(map(statistics.median, times))
        found[dtype] = sum(2 * rows * outputs * inputs for outputs, inputs in shapes) / seconds
    return found
