"""The time and memory of a step of ``distill``, beside a minimal loop and the shape of the original recipe's code.

    python benchmarks/distillation_speed.py [--device cpu] [--dtype bfloat16] [--rows 16] [--length 128] [--repeats 7]

The teacher has bert-base's shape, the student distilbert-base's (``--small``: 4 and 2 layers of 256). One batch of full
rows, the published weights. The three take turns; medians are printed.

- distill: ``Trainer.update`` as it runs.
- minimal: the same modules and losses in a loop written by hand.
- original: vocabulary logits of all tokens, selected afterwards, as the archived training code has it.
"""

import argparse
import resource
import statistics
import tempfile
import time

import numpy as np
import torch
import torch.nn.functional as F

from distilbert import BertConfig, BertForMaskedLM, DistilBertConfig, DistilBertForMaskedLM
from distilbert.distillation.masked_texts import MaskedTexts
from distilbert.distillation.recipe import Recipe
from distilbert.pt.losses import cosine_loss, distillation_loss, token_loss
from distilbert.pt.training import Trainer, encode
from distilbert.training.settings import Settings
from distilbert.training.steps import split

LARGE = {"vocab_size": 30522}, {"vocab_size": 30522}
SMALL = (
    {
        "vocab_size": 30522,
        "num_hidden_layers": 4,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_attention_heads": 4,
    },
    {"vocab_size": 30522, "n_layers": 2, "dim": 256, "hidden_dim": 1024, "n_heads": 4},
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", help="one of the three, to see the process's peak memory")
    arguments = parser.parse_args()
    shapes = SMALL if arguments.small else LARGE
    with tempfile.TemporaryDirectory() as folder:
        BertForMaskedLM(BertConfig(**shapes[0])).save_pretrained(f"{folder}/teacher")
        DistilBertForMaskedLM(DistilBertConfig(**shapes[1])).save_pretrained(f"{folder}/student")
        settings = Settings(batch_size=arguments.rows, dtype=arguments.dtype)
        options = {"teacher": f"{folder}/teacher", "device": arguments.device}
        trainer = Trainer("masked-lm", f"{folder}/student", settings, Recipe(), **options)
    rng = np.random.default_rng(0)
    sequences = [np.array([101, *rng.integers(1000, 30000, arguments.length - 2), 102]) for _ in range(arguments.rows)]
    lengths = np.full(arguments.rows, arguments.length)
    counts = np.ones(30522, np.int64)
    source = MaskedTexts(sequences, lengths, counts, [0, 100, 101, 102, 103], 0, 103, Recipe())

    runs = {"distill": distill, "minimal": minimal, "original": original}
    if arguments.only:
        runs = {arguments.only: runs[arguments.only]}
    times, peaks = {name: [] for name in runs}, dict.fromkeys(runs, 0)
    for repeat in range(arguments.repeats + 1):
        for name, run in runs.items():
            batch = source.batch(np.arange(arguments.rows), np.random.default_rng(repeat))
            synchronize(trainer)
            if trainer.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            for step in range(1 if trainer.device.type == "cpu" else 10):
                run(trainer, batch, source, step)
            synchronize(trainer)
            if repeat:
                times[name].append(time.perf_counter() - start)
            if trainer.device.type == "cuda":
                peaks[name] = torch.cuda.max_memory_allocated()
    for name, found in times.items():
        median = statistics.median(found) / (1 if trainer.device.type == "cpu" else 10)
        tokens = arguments.rows * arguments.length / median
        peak = peaks[name] or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        note = "" if peaks[name] or arguments.only else " (of all)"
        print(f"{name:9} {median * 1000:8.1f} ms {tokens:10,.0f} tokens/s  peak {peak / 2**30:.2f} GiB{note}")
    base = statistics.median(times.get("distill", [1]))
    for name in ("minimal", "original"):
        if name in times and "distill" in times:
            ratios = sorted(other / own for other, own in zip(times[name], times["distill"], strict=True))
            print(f"{name} / distill: {ratios[len(ratios) // 2]:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")
    return base


def synchronize(trainer):
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()


def distill(trainer, batch, source, step):
    losses = trainer.update(step, split(batch, source.terms(batch), 1), 1e-5)
    return float(losses["loss"])


def minimal(trainer, batch, source, step):
    recipe, student = trainer.objective.recipe, trainer.model
    (teacher,) = trainer.objective.teachers
    student.train()
    arrays = {name: torch.from_numpy(value).to(trainer.device) for name, value in batch.items()}
    del arrays["attention_mask"]
    with torch.autocast(trainer.device.type, torch.bfloat16, trainer.settings.dtype == "bfloat16"):
        rows, columns = (arrays["positions"] >= 0).nonzero(as_tuple=True)
        at = rows, arrays["positions"][rows, columns]
        hidden = encode(student, arrays)
        logits = student.score_words(hidden[at])
        with torch.no_grad():
            taught = encode(teacher, arrays)
            answers = teacher.score_words(taught[at])
        everywhere = torch.ones_like(rows)
        loss = (
            recipe.distillation_weight * distillation_loss(logits, answers, everywhere, recipe.temperature)
            + recipe.masked_lm_weight * token_loss(logits, arrays["labels"][rows, columns])
            + recipe.cosine_weight * cosine_loss(hidden, taught, torch.ones_like(arrays["input_ids"]))
        )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return float(loss.detach())


def original(trainer, batch, source, step):
    """Logits (B, L, V) of both models; those of real tokens, and of hidden ones, are picked out of them."""
    recipe, student = trainer.objective.recipe, trainer.model
    (teacher,) = trainer.objective.teachers
    student.train()
    ids, mask = (torch.from_numpy(batch[name]).to(trainer.device) for name in ("input_ids", "attention_mask"))
    labels = np.full(batch["input_ids"].shape, -100)
    rows, columns = (batch["positions"] >= 0).nonzero()
    labels[rows, batch["positions"][rows, columns]] = batch["labels"][rows, columns]
    labels = torch.from_numpy(labels).to(trainer.device)
    with torch.autocast(trainer.device.type, torch.bfloat16, trainer.settings.dtype == "bfloat16"):
        found = student(ids, attention_mask=mask, output_hidden_states=True)
        with torch.no_grad():
            taught = teacher(ids, attention_mask=mask, output_hidden_states=True)
        selected = (mask == 1)[..., None].expand_as(found.logits)
        size = found.logits.shape[-1]
        student_logits = torch.masked_select(found.logits, selected).view(-1, size)
        teacher_logits = torch.masked_select(taught.logits, selected).view(-1, size)
        softened = (
            F.log_softmax(student_logits / recipe.temperature, -1),
            F.softmax(teacher_logits / recipe.temperature, -1),
        )
        divergence = F.kl_div(*softened, reduction="batchmean") * recipe.temperature**2
        words = F.cross_entropy(found.logits.view(-1, size), labels.view(-1), ignore_index=-100)
        hidden, target = found.hidden_states[-1], taught.hidden_states[-1]
        chosen = (mask == 1)[..., None].expand_as(hidden)
        flat = [torch.masked_select(value, chosen).view(-1, hidden.shape[-1]) for value in (hidden, target)]
        cosine = F.cosine_embedding_loss(*flat, flat[0].new_ones(len(flat[0])))
        loss = recipe.distillation_weight * divergence + recipe.masked_lm_weight * words + recipe.cosine_weight * cosine
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return float(loss.detach())


if __name__ == "__main__":
    main()
