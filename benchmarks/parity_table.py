"""The tables of docs/parity.md: every head in every framework against float64, on the golden checkpoints.

python benchmarks/parity_table.py [cpu|cuda] [CHECKPOINT ...]
"""

import os
import sys
from pathlib import Path

from distilbert import DistilBertConfig
from distilbert.conversion.source import head_of
from distilbert.core.backends import installed
from distilbert.parity.comparison import BACKENDS, REFERENCE, compare, framework_of, is_worse
from distilbert.parity.inputs import for_dtype
from distilbert.parity.reporting import environment, number

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
CASES = [GOLDEN / f"distilbert-{case}" for case in ("base", "mlm", "seqcls", "choice", "tokcls", "qa")]
PRESENT = tuple(backend for backend in BACKENDS if framework_of(backend) in installed())
COLUMNS = ("hidden states", "attentions", "outputs", "loss", "gradients")


def kind(quantity):
    """Which column a quantity belongs to."""
    name = quantity.removeprefix("plain ").split("/")[0]
    return {"hidden_states": "hidden states", "last_hidden_state": "outputs"}.get(
        name, name if name in ("attentions", "loss", "gradients") else "outputs"
    )


def main(device="cpu", *paths):
    """Print a table for each type."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for dtype in ("float32", "bfloat16", "float16"):
        measured = "largest" if dtype == "float32" else "typical (root mean square)"
        print(f"\n### {dtype}: {measured} error against float64\n")
        print(
            "| checkpoint | framework | hidden states | attentions | outputs | loss | gradients | all within bounds |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for path in map(Path, paths or CASES):
            config = DistilBertConfig.from_pretrained(path)
            head = head_of(path, config)
            found = compare(path, head, for_dtype(config, head, dtype), backends=PRESENT, dtype=dtype, device=device)
            for backend in PRESENT:
                own = [d for d in found.differences if (d.backend, d.other) == (backend, REFERENCE)]
                worst = {}
                for difference in own:
                    name = kind(difference.quantity)
                    if is_worse(difference.measured, worst.get(name, 0)):
                        worst[name] = difference.measured
                cells = [number(worst[name]) if name in worst else "" for name in COLUMNS]
                is_within = all(d.is_within for d in found.differences if backend in (d.backend, d.other))
                print(f"| {path.name} ({head}) | {backend} | {' | '.join(cells)} | {'yes' if is_within else 'NO'} |")
    print(f"\n{', '.join(f'{key} {value}' for key, value in environment(found).items())}")


if __name__ == "__main__":
    main(*sys.argv[1:])
