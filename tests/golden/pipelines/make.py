"""Writes a JSON file for each task: what transformers 4.57.6's pipelines find with golden checkpoints.

python make.py, in an environment with transformers 4.57.6 and PyTorch. transformers has no pipeline for multiple
choice: there the file holds what its model gives.
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


NLI = ["contradiction", "neutral", "entailment"]
# By the task: the golden checkpoint, and the names of its labels.
CHECKPOINTS = {
    "text-classification": ("seqcls", ["NEGATIVE", "NEUTRAL", "POSITIVE"]),
    "token-classification": ("tokcls", LABELS),
    "question-answering": ("qa", None),
    "fill-mask": ("mlm", None),
    "feature-extraction": ("base", None),
    "multiple-choice": ("choice", None),
    "zero-shot-classification": ("seqcls", NLI),
}
QUESTIONS = [
    {"question": "who played it?", "context": LONG},
    {"question": "What was the plot like?", "context": "the plot is a mess, but the actor was wonderful"},
    {"question": "is the café good?", "context": "the worsted Actor, 日本語 and 🎬 film; the actor was LOVED"},
]
ANSWERING = [
    {},
    {"top_k": 4},
    {"top_k": 3, "handle_impossible_answer": True},
    {"top_k": 3, "align_to_words": False, "max_answer_len": 3},
    {"max_seq_len": 24, "doc_stride": 4, "top_k": 3},
]
MASKED = ["the [MASK] was wonderful", "A [MASK], [MASK] film!", "[MASK]"]
FILLING = [{}, {"top_k": 2}, {"targets": ["film", "Good", "##s", "slowing"]}]
CHOOSING = [
    {"prompt": "the film was", "choices": ["good", "a mess and slow, like a child at night"]},
    {"prompt": "who played?", "choices": ["the actor", "a man", "they do not know"]},
]
CLASSIFYING = [
    {"candidate_labels": ["funny", "a sad film", "slow"]},
    {"candidate_labels": "good, bad ,", "multi_label": True, "hypothesis_template": "It is {}!"},
    {"candidate_labels": ["good"]},
]
# Items, and options to ask for all of them with.
ASKED = {
    "question-answering": (QUESTIONS, ANSWERING),
    "fill-mask": (MASKED, FILLING),
    "feature-extraction": (TEXTS[1:2] + TEXTS[5:6], [{}]),
    "zero-shot-classification": (TEXTS[:4], CLASSIFYING),
}


def checkpoint(folder, task="token-classification"):
    """The golden checkpoint for a task with names for its labels, and a vocabulary."""
    case, labels = CHECKPOINTS[task]
    source = GOLDEN / f"distilbert-{case}"
    shutil.copy(source / "model.safetensors", folder)
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(GOLDEN / "distilbert-seqcls" / name, folder)
    config = json.loads((source / "config.json").read_text())
    if labels:
        config["id2label"] = {str(number): label for number, label in enumerate(labels)}
        config["label2id"] = {label: number for number, label in enumerate(labels)}
    (Path(folder) / "config.json").write_text(json.dumps(config))


def token_classification(folder):
    """Every strategy, with and without windows and words."""
    from transformers import pipeline

    found = {}
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
    return found


def multiple_choice(folder):
    """The probabilities of the choices of each item."""
    from transformers import AutoModelForMultipleChoice, AutoTokenizer

    model, tokenizer = AutoModelForMultipleChoice.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    for item in CHOOSING:
        prompts = [item["prompt"]] * len(item["choices"])
        inputs = tokenizer(prompts, item["choices"], padding=True, return_tensors="pt")
        logits = model(**{name: value[None] for name, value in inputs.items()}).logits
        found.append(logits[0].softmax(-1).tolist())
    return {"answers": found}


def ask(task, folder):
    """The answers to a task's items, one at a time, for each of its options."""
    from transformers import pipeline

    answer = pipeline(task, folder, framework="pt")
    items, every_option = ASKED[task]
    return {"answers": [[answer(item, **options) for item in items] for options in every_option]}


ASK = {"token-classification": token_classification, "multiple-choice": multiple_choice}


def main():
    """Write the files."""
    for task in (*ASK, *ASKED):
        with tempfile.TemporaryDirectory() as folder:
            checkpoint(folder, task)
            found = {"transformers": "4.57.6", **(ASK[task](folder) if task in ASK else ask(task, folder))}
        text = json.dumps(found, ensure_ascii=False, indent=1, default=lambda value: value.item())
        Path(__file__).with_name(f"{task}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
