"""Does the triple loss help, and a beginning with the teacher's layers? Sanh et al. 2019, table 4, at small scale.

    python benchmarks/distillation_ablation.py OUT TEXT… [--size small] [--device auto] [--seeds 3]

The last tenth of the lines is held out. A vocabulary and a teacher, a BERT, are made from the rest; then students of
half its layers, all with as many steps; and a table of their perplexities on what was held out is printed. What OUT
holds already is not made again.

The vocabulary is small and all tokens are masked alike. With thousands of words, or rare ones preferred as in the
published run, so short a run learns how often words occur, and nothing that a student could be taught
(docs/distillation.md).
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np

from distilbert.core.checkpoint import write_checkpoint
from distilbert.core.config import BertConfig
from distilbert.core.spec import initial_value, parameters
from distilbert.core.tokenizer import BertTokenizer
from distilbert.distillation.corpus import prepare_corpus
from distilbert.distillation.student import init_student
from distilbert.training import Recipe, Settings, distill

SIZES = {
    "tiny": {"vocab": 300, "layers": 2, "dim": 32, "heads": 2, "teacher_steps": 20, "steps": 10, "tokens": 1024},
    "small": {"vocab": 1000, "layers": 4, "dim": 128, "heads": 4, "teacher_steps": 8000, "steps": 300, "tokens": 2048},
    "large": {
        "vocab": 8000,
        "layers": 6,
        "dim": 384,
        "heads": 6,
        "teacher_steps": 4000,
        "steps": 1000,
        "tokens": 16384,
    },
}
ALONE = {"distillation_weight": 0.0, "cosine_weight": 0.0}
# By name: whether the student begins with the teacher's layers, and the weights that are not the published ones.
STUDENTS = {
    "triple loss, teacher's layers": (True, {}),
    "triple loss over all tokens": (True, {"masked_only": False}),
    "without the cosine": (True, {"cosine_weight": 0.0}),
    "without the masked LM": (True, {"masked_lm_weight": 0.0}),
    "without the distillation": (True, {"distillation_weight": 0.0}),
    "masked LM alone, teacher's layers": (True, ALONE),
    "triple loss, random beginning": (False, {}),
    "masked LM alone, random beginning": (False, ALONE),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="beginnings of the students' names")
    arguments = parser.parse_args()
    size, out = SIZES[arguments.size], arguments.out
    common = {"backend": arguments.backend, "device": arguments.device}
    options = {"batch_size": None, "max_tokens": size["tokens"], "dtype": arguments.dtype, "log_every": 50}

    lines = [line for path in arguments.texts for line in Path(path).read_text("utf-8").splitlines() if line.strip()]
    cut = len(lines) - len(lines) // 10
    out.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", lines[:cut]), ("dev", lines[cut:])):
        if not (out / f"{name}.txt").exists():
            (out / f"{name}.txt").write_text("\n".join(part) + "\n", encoding="utf-8")
    teacher = out / "teacher"
    if not (out / "random" / "config.json").exists():
        tokenizer = train_tokenizer(lines[:cut], size["vocab"], out / "special")
        make_bert(out / "random", tokenizer, size)
    tokenizer = BertTokenizer.from_pretrained(out / "random")
    for name in ("train", "dev"):
        prepare_corpus([out / f"{name}.txt"], out / f"{name}-corpus", tokenizer, max_length=128)
    settings = Settings(**options, learning_rate=1e-3, max_steps=size["teacher_steps"])
    settings_of_teacher = {"settings": settings, "dev": out / "dev-corpus", **common}
    found = distill(
        *(out / "random", teacher, out / "train-corpus"), recipe=Recipe(smoothing=0.0), **settings_of_teacher
    )
    print(f"teacher: perplexity {found.best:.2f}", flush=True)

    for start, source in (("own", teacher), ("new", out / "random")):
        if not (out / f"start-{start}" / "config.json").exists():
            init_student(source, out / f"start-{start}")
    results = {}
    for name, (from_teacher, weights) in STUDENTS.items():
        if arguments.only and not any(name.startswith(beginning) for beginning in arguments.only):
            continue
        results[name] = []
        for seed in range(arguments.seeds):
            start = out / ("start-own" if from_teacher else "start-new")
            if not from_teacher:  # other random values for each seed
                start = out / f"start-new-{seed}"
                if not (start / "config.json").exists():
                    make_bert(out / f"random-{seed}", tokenizer, size, seed)
                    init_student(out / f"random-{seed}", start)
            found = distill(
                *(start, out / f"{name.replace(' ', '-')}-{seed}", out / "train-corpus"),
                teacher=None if weights is ALONE else teacher,
                dev=out / "dev-corpus",
                recipe=Recipe(smoothing=0.0, **weights),
                settings=Settings(**options, learning_rate=settings.learning_rate, max_steps=size["steps"], seed=seed),
                **common,
            )
            results[name].append(found.best)
        median = statistics.median(results[name])
        print(f"{name}: {median:.2f} of {', '.join(f'{value:.2f}' for value in results[name])}", flush=True)
    (out / "results.json").write_text(json.dumps(results, indent=2))
    print("\n| student | perplexity, each seed | mean |\n|---|---|---|")
    for name, values in results.items():
        print(f"| {name} | {', '.join(f'{value:.2f}' for value in values)} | {statistics.mean(values):.2f} |")


def train_tokenizer(lines, size, folder):
    """A WordPiece vocabulary of some text."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n", encoding="utf-8")
    return BertTokenizer(folder / "vocab.txt").train_new_from_iterator(lines, size)


def make_bert(folder, tokenizer, size, seed=0):
    """A new BERT for a masked LM, without dropout: a short run learns nothing by heart."""
    config = BertConfig(
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        num_hidden_layers=size["layers"],
        hidden_size=size["dim"],
        intermediate_size=4 * size["dim"],
        num_attention_heads=size["heads"],
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    rng = np.random.default_rng(seed)
    tensors = {
        row.name: initial_value(row, config, rng) for row in parameters(config, "masked-lm") if row.tied_to is None
    }
    write_checkpoint(folder, config, tensors, head="masked-lm")
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
