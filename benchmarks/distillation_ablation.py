"""Does the triple loss help, and a beginning with the teacher's layers? Sanh et al. 2019, table 4, at small scale.

    python benchmarks/distillation_ablation.py OUT TEXT… [--bert FOLDER] [--size small] [--device auto] [--seeds 3]

The last tenth of the lines is held out. A teacher, a BERT, is trained on the rest: a new one with its own vocabulary,
or one that begins with the layers of --bert and with the words of its vocabulary that the texts need. Then students of
half its layers, all with as many steps; and a table of their perplexities on what was held out is printed. What OUT
holds already is not made again. All tokens are masked alike: were rare ones preferred, as in the published run, so few
steps would teach a model nothing that its perplexity shows (docs/distillation.md).
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np

from distilbert.conversion.source import open_source
from distilbert.core.checkpoint import match, write_checkpoint
from distilbert.core.config import BertConfig
from distilbert.core.spec import constant, parameters, standard_deviation
from distilbert.core.tokenizer import BertTokenizer
from distilbert.distillation.corpus import prepare_corpus
from distilbert.distillation.reduction import reduced_vocabulary
from distilbert.distillation.student import init_student
from distilbert.training import Recipe, Settings, distill

SIZES = {
    "tiny": {"vocab": 300, "layers": 2, "dim": 32, "heads": 2, "teacher_steps": 20, "steps": 10, "tokens": 1024},
    "small": {"vocab": 4000, "layers": 4, "dim": 128, "heads": 4, "teacher_steps": 2000, "steps": 400, "tokens": 2048},
    "large": {
        "vocab": 8000,
        "layers": 6,
        "dim": 384,
        "heads": 6,
        "teacher_steps": 4000,
        "steps": 1000,
        "tokens": 16384,
    },
    "bert": {"vocab": 8000, "teacher_steps": 1000, "steps": 300, "tokens": 1024},  # with --bert, whose shape it has
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
    parser.add_argument("--bert", type=Path, help="for --size bert: what the teacher begins with")
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
        if arguments.bert:
            cut_vocabulary(arguments.bert, out / "random", lines[:cut], size["vocab"])
        else:
            make_bert(out / "random", train_tokenizer(lines[:cut], size["vocab"], out / "special"), config_of(size))
    tokenizer = BertTokenizer.from_pretrained(out / "random")
    for name in ("train", "dev"):
        prepare_corpus([out / f"{name}.txt"], out / f"{name}-corpus", tokenizer, max_length=128)
    rate = 3e-4 if arguments.bert else 1e-3
    settings = Settings(**options, learning_rate=rate, max_steps=size["teacher_steps"])
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
                    config = BertConfig.from_pretrained(out / "random")
                    make_bert(out / f"random-{seed}", tokenizer, config, seed=seed)
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


def config_of(size):
    """Of a new BERT of some size, less its vocabulary's."""
    return BertConfig(
        num_hidden_layers=size["layers"],
        hidden_size=size["dim"],
        intermediate_size=4 * size["dim"],
        num_attention_heads=size["heads"],
        max_position_embeddings=128,
    )


def cut_vocabulary(bert, folder, lines, count):
    """A BERT for a masked LM with what a trained encoder has of it, and as many of its words as the texts need most."""
    source, tokenizer = open_source(bert), BertTokenizer.from_pretrained(bert)
    words = reduced_vocabulary(tokenizer, tokenizer(lines, verbose=False)["input_ids"], count)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    stored, _ = match(
        source.tensors,
        parameters(source.config, source.head),
        source=str(source.path),
        ignore_mismatched_sizes=False,
    )
    rows = {row.name: row for row in parameters(source.config, source.head)}
    kept = [tokenizer.get_vocab()[word] for word in words]
    trained = {
        name: value.take(kept, rows[name].axes.index("vocab_size")) if "vocab_size" in rows[name].axes else value
        for name, value in stored.items()
    }
    make_bert(folder, BertTokenizer(folder / "vocab.txt"), source.config, trained)


def make_bert(folder, tokenizer, config, trained=None, seed=0):
    """A BERT for a masked LM, new but for what is given of it."""
    vocab_size = max(tokenizer.get_vocab().values()) + 1
    config = BertConfig.from_dict(config.to_dict(), vocab_size=vocab_size)
    rng = np.random.default_rng(seed)
    tensors = {
        row.name: rng.normal(constant(row), standard_deviation(row, config), row.shape).astype(np.float32)
        for row in parameters(config, "masked-lm")
        if row.tied_to is None
    }
    given = {name: value for name, value in (trained or {}).items() if name in tensors}
    write_checkpoint(folder, config, tensors | given, head="masked-lm")
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
