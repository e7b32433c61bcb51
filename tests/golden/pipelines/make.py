"""Writes token-classification.json: what transformers 4.57.6's pipeline finds with a golden checkpoint.

python make.py, in an environment with transformers 4.57.6 and PyTorch.
"""

import json
import shutil
import tempfile
from pathlib import Path

GOLDEN = Path(__file__).parents[1]
LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
TEXTS = [
    "the plot is a mess, but the actor was wonderful",
    "A Wonderful film!",
    "nothing here is known: xyz, 日本語 and 🎬 film",
    "the café was loved",
    "seeing worsted slowly",
    "",
    "   ",
    "..!?",
    "the film " * 8,
]
LONG = "the wonderful film is a mess and the actor who played it like a sad child was not good at all times " * 4
WORDS = [["the", "worsts", "film", "is", "U.S.", "made"], ["wonderful!", "slowed"], [""]]


def checkpoint(folder):
    """The golden token classifier with names of entities for labels, and a vocabulary."""
    source = GOLDEN / "distilbert-tokcls"
    shutil.copy(source / "model.safetensors", folder)
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(GOLDEN / "distilbert-seqcls" / name, folder)
    config = json.loads((source / "config.json").read_text())
    config["id2label"] = {str(number): label for number, label in enumerate(LABELS)}
    config["label2id"] = {label: number for number, label in enumerate(LABELS)}
    (Path(folder) / "config.json").write_text(json.dumps(config))


def main():
    """Ask for every strategy, with and without windows and words."""
    from transformers import pipeline

    with tempfile.TemporaryDirectory() as folder:
        checkpoint(folder)
        found = {"transformers": "4.57.6"}
        for strategy in ("none", "simple", "first", "average", "max"):
            options = {"model": folder, "tokenizer": folder, "aggregation_strategy": strategy, "framework": "pt"}
            ask = pipeline("token-classification", **options)
            found[strategy] = {
                "texts": [ask(text) for text in TEXTS],
                "words": [ask(words, is_split_into_words=True) for words in WORDS],
                "everything": ask(TEXTS[0], ignore_labels=[]),
            }
            if strategy != "none":
                found[strategy]["stride"] = pipeline("token-classification", stride=8, **options)(LONG)
    path = Path(__file__).with_name("token-classification.json")
    path.write_text(json.dumps(found, ensure_ascii=False, indent=1, default=lambda value: value.item()) + "\n")


if __name__ == "__main__":
    main()
