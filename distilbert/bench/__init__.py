"""How fast is it here? Our backends and their peers on the same sequences, taken in turns."""

from distilbert.bench.contenders import MIXES, drawn_lengths, make_contenders, random_model
from distilbert.bench.measuring import Latency, Throughput, latencies, limits, throughput

__all__ = [
    "MIXES",
    "Latency",
    "Throughput",
    "drawn_lengths",
    "latencies",
    "limits",
    "make_contenders",
    "random_model",
    "throughput",
]
