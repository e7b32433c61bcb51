"""Time the Flax classifier, or transformers 4's, on the same texts: one figure a run.

    python benchmarks/flax_speed.py {ours,transformers} TEXTS VOCABULARY [--dtype bfloat16] [--train | --compile]

TEXTS has one text a line. The model is distilbert-base with random weights, on which speed does not depend. Inference
takes batches of 32 sorted by length; ours are padded to a bucket (``pad_to_bucket``), those of transformers to
multiples of 32. --train takes one step on 32 x 128 tokens instead, --compile measures the first call. ``transformers``
runs in an environment of its own (transformers 4.57, flax 0.10, jax 0.6). Machines are noisy: alternate the runs and
compare medians.
"""

import argparse
import time

import jax
import numpy as np
from common import BATCH, batches, seconds


def to_multiple(ids, mask):
    missing = [(0, 0), (0, -ids.shape[1] % 32)]
    return np.pad(ids, missing), np.pad(mask, missing)


def make(peer, dtype):
    """The model, and what pads its batches."""
    if peer == "transformers":
        from transformers import DistilBertConfig, FlaxDistilBertForSequenceClassification

        return FlaxDistilBertForSequenceClassification(DistilBertConfig(), dtype=dtype), to_multiple
    from distilbert import DistilBertConfig, FlaxDistilBertForSequenceClassification
    from distilbert.flax import pad_to_bucket

    def to_bucket(ids, mask):
        padded = pad_to_bucket({"input_ids": ids, "attention_mask": mask})
        return padded["input_ids"], padded["attention_mask"]

    return FlaxDistilBertForSequenceClassification(DistilBertConfig(), dtype=dtype), to_bucket


def training_step(model):
    import optax

    optimizer = optax.adam(1e-5)

    @jax.jit
    def step(params, state, ids, mask, labels, key):
        def loss(params):
            logits = model(ids, mask, params=params, dropout_rng=key, train=True).logits
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, value

    params = model.params
    return step, params, optimizer.init(params)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=["ours", "transformers"])
    parser.add_argument("texts")
    parser.add_argument("vocabulary")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    model, pad = make(arguments.peer, jax.numpy.dtype(arguments.dtype))
    name = f"{arguments.peer} {arguments.dtype}"
    ids = np.random.default_rng(0).integers(5, 30000, (BATCH, 128))
    if arguments.train:
        step, params, state = training_step(model)
        given = (ids, np.ones_like(ids), np.arange(BATCH) % 2, jax.random.key(0))
        taken = seconds(lambda: step(params, state, *given)[2].block_until_ready(), arguments.repeats)
        print(f"{name}: {taken:.3f} s a training step of 32 x 128 tokens")
        return
    params = model.params
    call = jax.jit(lambda params, ids, mask: model(ids, mask, params=params).logits)
    if arguments.compile:
        start = time.perf_counter()
        call(params, ids, np.ones_like(ids)).block_until_ready()
        print(f"{name}: {time.perf_counter() - start:.2f} s for the first call")
        return
    work = [pad(ids, mask) for ids, mask in batches(arguments.texts, arguments.vocabulary)]

    def everything():
        for ids, mask in work:
            call(params, ids, mask).block_until_ready()

    taken = seconds(everything, arguments.repeats)
    shapes = len({ids.shape for ids, _ in work})
    print(f"{name}: {sum(len(ids) for ids, _ in work) / taken:.1f} sequences/s, {shapes} programs")


if __name__ == "__main__":
    main()
