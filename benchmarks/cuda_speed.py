"""On a GPU: do packed and padded batches agree for every head, and how fast are both, beside transformers 5?

    python benchmarks/cuda_speed.py [--variants NAME ...] [--no-check] [--rounds 7] [--seconds 140]

The model is distilbert-base with random weights and two classes, in bfloat16; speed does not depend on weights. Lengths
are drawn from gamma distributions like those of SST-2 (short: mean 23 tokens) and of wikitext's paragraphs (long: mean
145, at most 512). The padded variants take batches of --rows sequences, as they come ("mixed") or sorted by length; the
packed ones --tokens tokens. Every round times each variant once over the whole set; figures are medians of rounds.
Exits with 1 where packed and padded outputs disagree. After --seconds nothing more is compiled.
"""

import argparse
import atexit
import shutil
import statistics
import sys
import tempfile
import time
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from distilbert import DistilBertConfig, DistilBertForSequenceClassification
from distilbert.core.outputs import is_per_token
from distilbert.parity.bounds import float32_bound, low_precision_bound
from distilbert.pt import attention
from distilbert.pt.inference import MODELS, InferenceModel

START = time.perf_counter()
MIXES = {"short": (4.6, 5.0, 8192), "long": (1.5, 97.0, 1024)}  # shape and scale of the gamma distribution, texts
LONGEST = 512
COARSE = 0.1  # of the largest output: what packed and padded bfloat16 may never differ by
# Products that an answer needs for each token: five layers, and of the last one the keys and values.
FLOPS_PER_TOKEN = 2 * (5 * 12 + 2) * 768**2


def lengths_of(mix):
    shape, scale, count = MIXES[mix]
    return np.clip(np.random.default_rng(0).gamma(shape, scale, count).astype(int), 3, LONGEST)


# Correctness


def ragged_batch(head, config, generator):
    """Ids, mask and segments: right and left padding, a hole, one token, no token, and a full row."""
    length = 24
    mask = np.ones((6, length), np.int64)
    mask[0, 17:] = 0
    mask[1, 1:] = 0
    mask[2, 5:9] = 0
    mask[3] = 0
    if head not in ("sequence-classification", "multiple-choice", "next-sentence"):
        mask[4, :7] = 0
    ids = generator.integers(5, config.vocab_size, mask.shape)
    types = generator.integers(0, 2, mask.shape)
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    if config.model_type == "distilbert":
        del arrays["token_type_ids"]
    if head == "multiple-choice":
        arrays = {name: array.reshape(3, 2, length) for name, array in arrays.items()}
    return {name: torch.from_numpy(array).cuda() for name, array in arrays.items()}


def real(output, head, mask):
    """The outputs at tokens, as float64, one after the other."""
    mask = mask.flatten(0, -2).bool()
    seen = mask | ~mask.any(-1, keepdim=True)
    kept = [value[seen] if is_per_token(name, head) else value.flatten() for name, value in output.items()]
    return torch.cat([value.flatten() for value in kept]).double()


def check():
    """Compare, for every head, type and kind of attention; returns whether all agree."""
    agree = True
    generator = np.random.default_rng(1)
    kernels = {"varlen": attention.varlen_kernel(), "grouped": None}
    for (_, head), cls in MODELS.items():
        sizes = {"vocab_size": 1000, "num_hidden_layers": 2}
        config = cls.family.config(**sizes)
        torch.manual_seed(0)
        model = cls(config).cuda().eval()
        batch = ragged_batch(head, config, generator)
        mask = batch["attention_mask"]
        exact = cls(config).cuda().double().eval()
        exact.load_state_dict(model.state_dict())
        exact.is_padding_free = False
        with torch.no_grad():
            wanted = real(exact(**batch), head, mask)
        unit = max(1.0, float(wanted.abs().max()))
        for dtype, (name, kernel) in product(("float32", "bfloat16", "float16"), kernels.items()):
            model = model.to(getattr(torch, dtype))
            with torch.no_grad(), mock.patch.object(attention, "varlen_kernel", lambda kernel=kernel: kernel):
                model.is_padding_free = True
                packed = real(model(**batch), head, mask)
                model.is_padding_free = False
                padded = real(model(**batch), head, mask)
            packed_error, padded_error = ((found - wanted).square().mean().sqrt() for found in (packed, padded))
            largest = float((packed - padded).abs().max()) / unit
            if dtype == "float32":
                fits = largest < float32_bound("cuda")
            else:  # the bound is on typical errors, which few numbers do not have
                limit = low_precision_bound([float(padded_error)], len(wanted))
                fits = largest < COARSE and float(packed_error) < limit
            if not fits or not bool(packed.isfinite().all()):
                agree = False
                print(f"DISAGREE {cls.__name__} {dtype} {name}: {largest:.1e}, {packed_error:.1e}, {padded_error:.1e}")
            model = model.float()
            model.load_state_dict(exact.state_dict())
    print(f"check: {len(MODELS)} heads {'agree' if agree else 'DISAGREE'}, after {elapsed()}")
    return agree


def check_gradients():
    """Compare the gradients of a classifier's logits; returns whether they agree."""
    torch.manual_seed(0)
    model = DistilBertForSequenceClassification(DistilBertConfig(vocab_size=1000, n_layers=2)).cuda().eval()
    batch = ragged_batch(model.head, model.config, np.random.default_rng(2))
    found = []
    for is_padding_free in (True, False):
        model.is_padding_free = is_padding_free
        model.zero_grad()
        model(**batch).logits.square().sum().backward()
        found.append(torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None]))
    difference = float((found[0] - found[1]).abs().max() / found[1].abs().max())
    print(f"check: gradients differ by {difference:.1e} of the largest")
    return difference < 1e-4


# Speed


def padded_batches(lengths, rows):
    for start in range(0, len(lengths), rows):
        part = lengths[start : start + rows]
        mask = torch.from_numpy((np.arange(part.max()) < part[:, None]).astype(np.int64)).cuda()
        yield {"input_ids": mask * 1000, "attention_mask": mask}


def packed_batches(lengths, tokens):
    """Longest first, as the pipelines do it."""
    lengths = np.sort(lengths)[::-1]
    start = 0
    while start < len(lengths):
        part = lengths[start : start + max(1, tokens // lengths[start])]
        ids = torch.full((part.sum(),), 1000).cuda()
        # On the host as pipelines have it; torch.compile wants it where the tokens are.
        yield ids, torch.from_numpy(np.concatenate([[0], part.cumsum()]))
        start += len(part)


def peak():
    """The best rate of bfloat16 products in FLOP/s: a large square, and the model's own shapes over many tokens."""
    best = 0.0
    for rows, size_in, size_out in ((8192, 8192, 8192), (65536, 768, 2304), (65536, 768, 3072), (65536, 3072, 768)):
        one, other = (
            torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in ((rows, size_in), (size_in, size_out))
        )
        times = [timed(lambda one=one, other=other: one @ other) for _ in range(15)]
        rate = 2 * rows * size_in * size_out / statistics.median(times[3:])
        print(f"products of {rows} x {size_in} x {size_out}: {rate / 1e12:.0f} TFLOP/s")
        best = max(best, rate)
    return best


def timed(run):
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def elapsed():
    return f"{time.perf_counter() - START:.0f} s"


FLASH_ATTN = """
import torch
from torch.nn.attention.varlen import varlen_attn

def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False
):
    assert not dropout_p and not causal and softmax_scale in (None, q.shape[-1] ** -0.5)
    return varlen_attn(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)

def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False):
    assert not dropout_p and not causal and softmax_scale in (None, q.shape[-1] ** -0.5)
    ends = torch.arange(0, q.shape[0] + 1, dtype=torch.int32, device=q.device) * q.shape[1]
    packed = varlen_attn(*(each.flatten(0, 1) for each in (q, k, v)), ends, ends, q.shape[1], q.shape[1])
    return packed.unflatten(0, q.shape[:2])

flash_attn_with_kvcache = None
"""
BERT_PADDING = """
from transformers.modeling_flash_attention_utils import _pad_input as pad_input, _unpad_input as unpad_input
"""


def lend_flash_attention():
    """Let transformers find a package flash_attn: without one, PyTorch's own copy of the same kernels.

    Theirs has no wheels, and takes an hour to build.
    """
    if find_spec("flash_attn") is not None or attention.varlen_kernel() is None:
        return
    folder = Path(tempfile.mkdtemp(prefix="flash-attn-"))
    atexit.register(shutil.rmtree, folder)
    (folder / "flash_attn").mkdir()
    (folder / "flash_attn" / "__init__.py").write_text(FLASH_ATTN)
    (folder / "flash_attn" / "bert_padding.py").write_text(BERT_PADDING)
    (folder / "flash_attn-2.8.3.dist-info").mkdir()
    (folder / "flash_attn-2.8.3.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: flash-attn\nVersion: 2.8.3\n"
    )
    (folder / "flash_attn-2.8.3.dist-info" / "top_level.txt").write_text("flash_attn\n")
    sys.path.insert(0, str(folder))
    print("transformers' flash attention: over PyTorch's own kernels, as flash_attn is not installed")


def make_variants(arguments):
    """A function by name that makes, for some lengths, a function to time; those that compile last."""
    ours = DistilBertForSequenceClassification(DistilBertConfig()).cuda().bfloat16().eval()
    compiled = torch.compile(ours, dynamic=True)
    inference = InferenceModel(ours)

    def padded(model, order, is_padding_free=True):
        def prepare(lengths):
            work = list(padded_batches(order(lengths), arguments.rows))

            def run():
                ours.is_padding_free = is_padding_free
                for batch in work:
                    model(**batch)

            return run

        return prepare

    def packed(model, kernel=attention.varlen_kernel, on_device=False):
        def prepare(lengths):
            work = list(packed_batches(lengths, arguments.tokens))
            if on_device:
                work = [(ids, cu_seqlens.int().cuda()) for ids, cu_seqlens in work]

            def run():
                with mock.patch.object(attention, "varlen_kernel", kernel):
                    for ids, cu_seqlens in work:
                        model(input_ids=ids, cu_seqlens=cu_seqlens)

            return run

        return prepare

    def from_arrays(lengths):
        sequences = [[1000] * length for length in sorted(lengths.tolist(), reverse=True)]
        batches, start = [], 0
        while start < len(sequences):
            count = max(1, arguments.tokens // len(sequences[start]))
            batches.append(sequences[start : start + count])
            start += count
        return lambda: [inference(batch) for batch in batches]

    variants = {
        "ours padded, mixed": padded(ours, np.asarray, is_padding_free=False),
        "ours masked, mixed": padded(ours, np.asarray),
        "ours masked, sorted": padded(ours, np.sort),
        "ours packed": packed(ours),
        "ours packed, grouped": packed(ours, lambda: None),
        "ours InferenceModel": from_arrays,
    }
    lend_flash_attention()
    try:
        import transformers
    except ImportError:
        print("transformers is not installed: no peers")
        hf = {}
    else:
        print(f"transformers {transformers.__version__}")
        hf = {}
        for implementation in ("sdpa", "flash_attention_2"):
            try:
                model = transformers.DistilBertForSequenceClassification._from_config(
                    transformers.DistilBertConfig(), attn_implementation=implementation, dtype=torch.bfloat16
                )
            except (ImportError, ValueError) as error:
                print(f"transformers {implementation}: not available, {str(error).splitlines()[0]}")
                continue
            hf[implementation] = model.cuda().eval()
            variants[f"hf {implementation}, mixed"] = padded(hf[implementation], np.asarray)
            variants[f"hf {implementation}, sorted"] = padded(hf[implementation], np.sort)
    variants["ours packed, compiled"] = packed(compiled, on_device=True)
    if "sdpa" in hf:
        hf_compiled = torch.compile(hf["sdpa"], dynamic=True)
        variants["hf sdpa compiled, mixed"] = padded(hf_compiled, np.asarray)
        variants["hf sdpa compiled, sorted"] = padded(hf_compiled, np.sort)
    return variants


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="*", help="parts of the names of those to run; by default all")
    parser.add_argument("--no-check", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=512, help="sequences of a padded batch")
    parser.add_argument("--tokens", type=int, default=65536, help="tokens of a packed batch")
    parser.add_argument("--seconds", type=float, default=100, help="after which nothing more is compiled")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: nothing measured")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {torch.backends.cuda.matmul.allow_tf32=}")
    agree = True
    if not arguments.no_check:
        agree = check()
        agree = check_gradients() and agree
    best = peak()
    with torch.inference_mode():
        measure(arguments, best)
    print(f"done after {elapsed()}")
    sys.exit(not agree)


def measure(arguments, best):
    """Time every variant on both mixes, and print a table."""
    variants = make_variants(arguments)
    wanted = arguments.variants or [""]
    chosen = {name: make for name, make in variants.items() if any(part in name for part in wanted)}
    runs = {}
    for name, make in chosen.items():
        if "compiled" in name and time.perf_counter() - START > arguments.seconds:
            print(f"{name}: left out, {elapsed()} have passed")
            continue
        try:
            for mix in MIXES:
                runs[name, mix] = make(lengths_of(mix))
                for _ in range(2):
                    runs[name, mix]()
        except Exception as error:  # what one variant cannot do is no reason to lose the others' figures
            print(f"{name}: FAILED, {type(error).__name__}: {str(error).splitlines()[0]}")
            runs = {key: run for key, run in runs.items() if key[0] != name}
        print(f"{name}: ready after {elapsed()}")
    times = {key: [] for key in runs}
    for _ in range(arguments.rounds):
        for key, run in runs.items():
            times[key].append(timed(run))
    print(
        f"\n| {best / 1e12:.0f} TFLOP/s at best | "
        + " | ".join(f"{mix} tokens/s | share | spread" for mix in MIXES)
        + " |"
    )
    print("|---" * (1 + 3 * len(MIXES)) + "|")
    for name in dict.fromkeys(name for name, _ in runs):
        cells = []
        for mix in MIXES:
            median = statistics.median(times[name, mix])
            rate = int(lengths_of(mix).sum()) / median
            spread = f"{min(times[name, mix]) / median:.2f} to {max(times[name, mix]) / median:.2f}"
            cells += [f"{rate / 1e6:.3f} M", f"{rate * FLOPS_PER_TOKEN / best:.0%}", spread]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
