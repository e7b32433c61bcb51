"""Time text classification from texts to labels, ours or transformers', on the same texts: one figure a run.

    python benchmarks/pipeline_speed.py {pt,tf,flax,transformers} MODEL TEXTS [--dtype bfloat16] [--limit 512]

TEXTS has one text a line (a tab and what follows is left out). Ours runs with default settings; transformers' with
batch_size=32 and truncation, in an environment of its own. Machines are noisy: alternate the runs, compare medians.
"""

import argparse

from common import read_texts, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=["pt", "tf", "flax", "transformers"])
    parser.add_argument("model")
    parser.add_argument("texts")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--limit", type=int, default=512)
    parser.add_argument("--shortest", type=int, default=1, help="characters")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    texts = [text for text in read_texts(arguments.texts) if len(text) >= arguments.shortest][: arguments.limit]
    if arguments.peer == "transformers":
        from transformers import pipeline

        ask = pipeline("text-classification", arguments.model, dtype=arguments.dtype, device="cpu")
        options = {"batch_size": 32, "truncation": True}
    else:
        from distilbert import pipeline

        ask = pipeline("text-classification", arguments.model, backend=arguments.peer, dtype=arguments.dtype)
        options = {}
    taken = seconds(lambda: ask(texts, **options), arguments.repeats)
    print(f"{arguments.peer} {arguments.dtype}: {len(texts) / taken:.1f} texts/s")


if __name__ == "__main__":
    main()
