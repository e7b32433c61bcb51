"""Flax on a GPU, beside the same encoder in plain jitted JAX: real tokens a second.

    python benchmarks/flax_cuda_speed.py [--rounds 7] [--tokens 65536]

The model is distilbert-base with random weights and two classes, in bfloat16; lengths are those of cuda_speed.py. The
plain encoder takes its weights in bfloat16 and attends over whole padded batches, of --rows sequences as they come or
of about --tokens tokens sorted by length; both padded to a multiple of 32. Every round times each variant once over
the whole set; figures are medians of rounds.
"""

import argparse
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from common import seconds
from cuda_speed import FLOPS_PER_TOKEN, MIXES, lengths_of

from distilbert import DistilBertConfig, FlaxDistilBertForSequenceClassification
from distilbert.flax import pad_to_bucket
from distilbert.flax.inference import LENGTHS, InferenceModel
from distilbert.pipelines.batching import run_by_length

HEADS = 12
MULTIPLES = range(32, 513, 32)


def norm(values, weights):
    wide = values.astype(jnp.float32)
    wide = (wide - wide.mean(-1, keepdims=True)) * jax.lax.rsqrt(wide.var(-1, keepdims=True) + 1e-12)
    return (wide * weights["scale"] + weights["bias"]).astype(values.dtype)


def linear(values, weights):
    return values @ weights["kernel"] + weights["bias"]


@partial(jax.jit, static_argnames="kernel")
def plain(params, ids, mask, kernel=None):
    """What one would write by hand; ``kernel`` names one of JAX's own for attention."""
    body = params["distilbert"]
    embeddings = body["embeddings"]
    hidden = embeddings["word_embeddings"]["embedding"][ids]
    hidden = hidden + embeddings["position_embeddings"]["embedding"][: ids.shape[1]]
    hidden = norm(hidden, embeddings["LayerNorm"])
    rows, length, width = hidden.shape
    for layer in body["transformer"]["layer"].values():
        parts = [linear(hidden, layer["attention"][name]) for name in ("q_lin", "k_lin", "v_lin")]
        query, key, value = (part.reshape(rows, length, HEADS, -1) for part in parts)
        if kernel is None:
            scores = jnp.einsum("bqhk,blhk->bhql", query, key) * query.shape[-1] ** -0.5
            scores = jnp.where(mask[:, None, None, :] != 0, scores.astype(jnp.float32), -1e9)
            context = jnp.einsum("bhql,blhk->bqhk", jax.nn.softmax(scores).astype(hidden.dtype), value)
        else:
            lengths = jnp.maximum(mask.sum(-1), 1).astype(jnp.int32)  # rows that fill up have none
            context = jax.nn.dot_product_attention(
                query, key, value, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation=kernel
            )
        attended = linear(context.reshape(rows, length, width), layer["attention"]["out_lin"])
        hidden = norm(attended + hidden, layer["sa_layer_norm"])
        inner = jax.nn.gelu(linear(hidden, layer["ffn"]["lin1"]), approximate=False)
        hidden = norm(linear(inner, layer["ffn"]["lin2"]) + hidden, layer["output_layer_norm"])
    first = jax.nn.relu(linear(hidden[:, 0], params["pre_classifier"]))
    return linear(first, params["classifier"])


def by_rows(lengths, rows):
    return [lengths[start : start + rows] for start in range(0, len(lengths), rows)]


def by_tokens(lengths, tokens):
    """Longest first, a power of two of rows."""
    lengths, start, parts = np.sort(lengths)[::-1], 0, []
    while start < len(lengths):
        count = 1 << max(1, tokens // int(lengths[start])).bit_length() - 1
        parts.append(lengths[start : start + count])
        start += count
    return parts


def padded(part, lengths):
    """Ids and mask of texts of these lengths, padded to one of ``lengths``, and to a power of two of rows."""
    mask = (np.arange(part.max()) < part[:, None]).astype(np.int32)
    arrays = {"input_ids": mask * 1000, "attention_mask": mask}
    arrays = pad_to_bucket(arrays, lengths, batch_size=1 << (len(part) - 1).bit_length())
    return jax.device_put((arrays["input_ids"], arrays["attention_mask"]))


def peak():
    one, other = (jax.random.normal(jax.random.key(n), (8192, 8192), jnp.bfloat16) for n in range(2))
    product = jax.jit(jnp.matmul)
    return 2 * 8192**3 / seconds(lambda: product(one, other).block_until_ready(), 12)


def timed(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--mixes", nargs="*", default=list(MIXES))
    arguments = parser.parse_args()
    begin = time.perf_counter()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    best = peak()
    model = FlaxDistilBertForSequenceClassification(DistilBertConfig(), dtype=jnp.bfloat16)
    params = jax.device_put(model.params, jax.devices()[0])
    small = jax.tree.map(lambda value: value.astype(jnp.bfloat16), params)
    call = jax.jit(lambda params, ids, mask: model(ids, mask, params=params).logits)
    inference = InferenceModel(model, params, jax.devices()[0])

    ids, mask = padded(np.array([5, 17, 32, 2]), LENGTHS)
    difference = jnp.abs(call(params, ids, mask) - plain(small, ids, mask)).max()
    print(f"logits of ours and of the plain encoder differ by {float(difference):.1e} at most")

    def batched(run, split, pad_lengths):
        def prepare(lengths):
            work = [padded(part, pad_lengths) for part in split(lengths)]
            return lambda: jax.block_until_ready([run(ids, mask) for ids, mask in work])

        return prepare

    def from_arrays(lengths):
        sequences = [[1000] * length for length in lengths]
        return lambda: run_by_length(inference, sequences, lambda number, outputs: outputs["logits"])

    mixed, ordered = partial(by_rows, rows=arguments.rows), partial(by_tokens, tokens=arguments.tokens)
    variants = {
        "plain, as they come": batched(partial(plain, small), mixed, MULTIPLES),
        "plain, sorted": batched(partial(plain, small), ordered, MULTIPLES),
        "plain with cuDNN's attention, sorted": batched(partial(plain, small, kernel="cudnn"), ordered, MULTIPLES),
        "ours, sorted": batched(partial(call, params), ordered, LENGTHS),
        "ours, InferenceModel from lists": from_arrays,
    }
    runs, times = {}, {}
    for name, make in variants.items():
        for mix in arguments.mixes:
            try:
                runs[name, mix] = make(lengths_of(mix))
                for _ in range(2):
                    runs[name, mix]()
            except Exception as error:  # what one variant cannot do is no reason to lose the others' figures
                print(f"{name}: FAILED, {type(error).__name__}: {str(error).splitlines()[0]}")
                runs.pop((name, mix), None)
        print(f"{name}: ready after {time.perf_counter() - begin:.0f} s", flush=True)
    for _ in range(arguments.rounds):
        for key, run in runs.items():
            times.setdefault(key, []).append(timed(run))
    print(f"\n{best / 1e12:.0f} TFLOP/s at best\n")
    print("| | mix | tokens/s | share | spread |\n|---|---|---|---|---|")
    for (name, mix), taken in times.items():
        median = statistics.median(taken)
        rate = int(lengths_of(mix).sum()) / median
        spread = f"{min(taken) / median:.2f} to {max(taken) / median:.2f}"
        print(f"| {name} | {mix} | {rate / 1e6:.3f} M | {rate * FLOPS_PER_TOKEN / best:.0%} | {spread} |")


if __name__ == "__main__":
    main()
