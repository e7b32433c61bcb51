"""How PyTorch's speed on a CPU grows: time against tokens, and throughput against batch, length and threads.

    python benchmarks/growth.py TEXTS PNG [--model MODEL] [--most 10000000] [--repeats 5]

Time against tokens is that of the pipeline, from texts to labels, on the embedded checkpoint: TEXTS, one a line, over
and over. Throughput is that of a model of distilbert-base's size, or of MODEL, on sequences of one length. Medians.
"""

import argparse
import itertools
import statistics
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from common import read_texts

import distilbert
from distilbert.pt.inference import InferenceModel

matplotlib.use("Agg")
from matplotlib import pyplot as plt

BATCHES = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (8, 16, 32, 64, 128, 256, 512)
LENGTH_OF_BATCHES = 32
TOKENS_OF_LENGTHS = 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts")
    parser.add_argument("png", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--most", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    lines = read_texts(arguments.texts)
    figure, (growth, batches, lengths) = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")

    taken = dict(grow(lines, arguments.most))
    counts, seconds = np.array(list(taken)), np.array(list(taken.values()))
    slope = seconds[-1] / counts[-1]
    growth.loglog(counts, seconds, "o-", label="measured")
    growth.loglog(counts, counts * slope, "k:", label=f"{1 / slope:,.0f} tokens/s")
    growth.set(title="From texts to labels, embedded checkpoint", xlabel="tokens", ylabel="seconds")
    growth.legend()

    model = (
        InferenceModel.from_pretrained("sequence-classification", arguments.model)
        if arguments.model
        else InferenceModel(distilbert.DistilBertForSequenceClassification(distilbert.DistilBertConfig()))
    )
    shapes = [(rows, LENGTH_OF_BATCHES) for rows in BATCHES]
    shapes += [(TOKENS_OF_LENGTHS // length, length) for length in LENGTHS]
    found = throughput(model, shapes, arguments.repeats)
    for threads in (1, 2):
        rates = [found[threads, shape] for shape in shapes]
        batches.plot(BATCHES, rates[: len(BATCHES)], "o-", label=f"threads: {threads}")
        lengths.plot(LENGTHS, rates[len(BATCHES) :], "o-", label=f"threads: {threads}")
    batches.set(title=f"Texts of {LENGTH_OF_BATCHES} tokens", xlabel="texts in a batch", ylabel="tokens/s")
    lengths.set(title=f"Batches of {TOKENS_OF_LENGTHS:,} tokens", xlabel="tokens in a text", ylabel="tokens/s")
    for axes, ticks in ((batches, BATCHES), (lengths, LENGTHS)):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, ticks)
        axes.set_ylim(bottom=0)
        axes.legend()
    figure.savefig(arguments.png, dpi=110)


def grow(lines, most):
    """Tokens and seconds, for ten times as many texts again and again."""
    ask = distilbert.pipeline("text-classification", backend="pt", device="cpu", truncation=True)
    lengths = [len(ids) for ids in ask.tokenizer(lines)["input_ids"]]
    ask(lines[:64])
    wanted = 1000
    while wanted <= most:
        texts, tokens = [], 0
        for line, length in itertools.cycle(zip(lines, lengths, strict=True)):
            if tokens >= wanted:
                break
            texts.append(line)
            tokens += length
        start = time.perf_counter()
        for _ in ask(iter(texts)):
            pass
        taken = time.perf_counter() - start
        print(f"{tokens:12,} tokens {taken:9.3f} s {tokens / taken:10,.0f} tokens/s", flush=True)
        yield tokens, taken
        wanted *= 10


def throughput(model, shapes, repeats):
    """Tokens a second, by threads and by texts and their length: medians of runs in turns."""
    times = {(threads, shape): [] for threads in (1, 2) for shape in shapes}
    random = np.random.default_rng(0)
    for number in range(repeats + 1):
        for (threads, (rows, length)), measured in times.items():
            torch.set_num_threads(threads)
            sequences = random.integers(1000, model.config.vocab_size, (rows, length)).tolist()
            start = time.perf_counter()
            model(sequences)
            if number:  # the first does not count
                measured.append(time.perf_counter() - start)
    found = {key: key[1][0] * key[1][1] / statistics.median(measured) for key, measured in times.items()}
    for (threads, (rows, length)), rate in found.items():
        print(f"threads {threads}  {rows:4} x {length:3}  {rate:8,.0f} tokens/s")
    return found


if __name__ == "__main__":
    main()
