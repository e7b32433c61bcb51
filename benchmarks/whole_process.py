"""Whole processes, from a file of texts to a file of labels: ``distilbert run`` beside transformers' pipeline.

    python benchmarks/whole_process.py MODEL TEXTS [--lines 20000] [--rounds 5] [--dtype float32] [--python PYTHON]

TEXTS has one text a line (a tab and what follows is left out); too few are taken over again. Both run
with their defaults, but for the type where it is not float32. PYTHON is of transformers' environment.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import read_texts

THEIRS = """
import json, sys
from transformers import pipeline
model, texts, out, dtype = sys.argv[1:]
ask = pipeline("text-classification", model, device="cpu", **({} if dtype == "float32" else {"dtype": dtype}))
with open(texts) as lines, open(out, "w") as file:
    for answer in ask([line.rstrip("\\n") for line in lines]):
        file.write(json.dumps(answer) + "\\n")
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("texts")
    parser.add_argument("--lines", type=int, default=20000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--python", default=sys.executable)
    arguments = parser.parse_args()
    chosen = list(itertools.islice(itertools.cycle(read_texts(arguments.texts)), arguments.lines))
    with tempfile.TemporaryDirectory() as folder:
        texts, outs = Path(folder, "texts"), {"ours": Path(folder, "ours"), "theirs": Path(folder, "theirs")}
        texts.write_text("\n".join(chosen) + "\n", encoding="utf-8")
        ours = [sys.executable, "-m", "distilbert", "run", "--task", "text-classification", "--model", arguments.model]
        ours += ["--input", texts, "--output", outs["ours"], "--dtype", arguments.dtype]
        theirs = [arguments.python, "-c", THEIRS, arguments.model, texts, outs["theirs"], arguments.dtype]
        taken = {"ours": [], "theirs": []}
        for _ in range(arguments.rounds):
            for name, command in (("ours", ours), ("theirs", theirs)):
                outs[name].unlink(missing_ok=True)
                start = time.perf_counter()
                environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
                subprocess.run(list(map(str, command)), check=True, capture_output=True, env=environment)
                taken[name].append(time.perf_counter() - start)
                written = sum(1 for _ in outs[name].open())
                print(f"{name:6} {taken[name][-1]:7.1f} s, {written} answers", flush=True)
    ratios = [theirs / ours for ours, theirs in zip(*taken.values(), strict=True)]
    medians = ", ".join(f"{name} {statistics.median(times):.1f} s" for name, times in taken.items())
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"{arguments.dtype}: {medians}; {statistics.median(ratios):.2f} times ({spread})")


if __name__ == "__main__":
    main()
