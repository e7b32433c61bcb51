"""A model's answer for one text, what each token adds to it, and the attention of every head.

C classes, H heads, L length, D model, R rows of a batch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding

from distilbert.conversion.source import head_of
from distilbert.core.backends import BACKENDS, choose_backend
from distilbert.core.checkpoint import load, require_head
from distilbert.core.config import Config, read_config
from distilbert.core.errors import InputError
from distilbert.core.files import replace_file
from distilbert.core.spec import family_of, parameters
from distilbert.core.tokenizer import DistilBertTokenizer
from distilbert.explanation.attribution import integrated_gradients
from distilbert.pipelines import ALIASES
from distilbert.pipelines.question_answering import QuestionAnsweringPipeline
from distilbert.pipelines.text_classification import FUNCTIONS, default_function
from distilbert.pipelines.token_classification import TokenClassificationPipeline

# By what users call a task, the head that it needs.
TASKS = {
    "text-classification": "sequence-classification",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
}
# How many gradients are taken where the user does not say: more until the contributions add up to within GAP.
STEPS = (32, 64, 128, 256)
GAP = 0.01
MOST_STEPS = 2048  # finding the places of more takes longer than the gradients
# Tokens of a batch: more takes memory (attention of 500 tokens: 12 MB a layer and step) and saves no time.
BATCH_TOKENS = 1024
# Entities whose contributions are computed, the most certain ones; each takes as long as a text's label.
MOST_ENTITIES = 8

Factors = Mapping[str, np.ndarray]  # by the name of an output, one for each of its numbers, without the batch


@dataclass(frozen=True)
class Token:
    """A token of what the model read."""

    text: str  # as in the vocabulary
    sequence: int | None  # which of ``Explanation.texts`` it is from; None for special tokens
    word: int | None  # its number in that text
    start: int  # in that text
    end: int


@dataclass(frozen=True)
class Answer:
    """What the model says of a text, or of the characters ``start`` to ``end`` of the last of ``Explanation.texts``."""

    label: str
    probability: float | None  # None where the model gives no probabilities, as for regression
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True)
class Target:
    """A number that speaks for an answer, and what each token adds to it."""

    answer: Answer
    name: str  # of the number
    value: float  # for the text
    baseline_value: float  # for the text that says nothing
    contributions: np.ndarray  # float64 (L,), one for each of ``Explanation.tokens``
    steps: int  # how many gradients were taken

    @property
    def gap(self) -> float:
        """By how much the contributions miss ``value - baseline_value``, which they should add up to."""
        return float(self.contributions.sum() - (self.value - self.baseline_value))


@dataclass(frozen=True)
class Explanation:
    """All there is to show about one text."""

    model: str
    framework: str
    task: str
    texts: tuple[str, ...]  # the text, or question and context
    tokens: tuple[Token, ...]
    answers: tuple[Answer, ...]  # the labels, the entities in order, or the answer
    targets: tuple[Target, ...]  # of the best label, of the most certain entities, or of the answer
    baseline: str  # the token that stands for no word
    attentions: tuple[np.ndarray, ...]  # for each layer (H, L, L): probabilities, each row a token that looks

    def to_html(self) -> str:
        """The page, which needs nothing beside it."""
        from distilbert.explanation.page import page  # jinja2 is slow to import

        return page(self)

    def write(self, path: str | Path) -> None:
        """Write the page to a file, whole or not at all.

        Raises:
            CheckpointError: the system refuses to write there.
        """
        with replace_file(path) as file:
            file.write(self.to_html())


def explain(
    model: str | Path,
    text: str,
    *,
    task: str | None = None,
    question: str | None = None,
    backend: str = "auto",
    steps: int | None = None,
) -> Explanation:
    """Answer for a text, and explain the answer by integrated gradients and by the attention.

    Args:
        model: a folder, or a Hub id.
        text: what to read; for question answering, where to find the answer.
        task: one of ``TASKS``, or of ``pipelines.ALIASES``; by default what the checkpoint's head is for.
        question: for question answering.
        backend: ``"pt"``, ``"tf"``, ``"flax"``, or ``"auto"``: the first that is installed.
        steps: how many gradients to take for each answer; by default so many, up to 256, that contributions add up
            to what they should within 1 %.

    Raises:
        InputError: a text without tokens or too long for the model, a question missing or too much, an option out
            of range, or a checkpoint of another task.
        CheckpointError: the checkpoint is absent, damaged, or lacks the task's head.
        MissingBackendError: the framework is not installed.
    """
    if steps is not None and not 1 <= steps <= MOST_STEPS:
        raise InputError(f"steps is {steps}, expected 1 to {MOST_STEPS}")
    package = choose_backend(backend)
    task = ALIASES.get(task, task) if task else _detect_task(model)
    if task not in TASKS:
        raise InputError(f"task is {task!r}, expected one of {', '.join(TASKS)}")
    if (question is None) == (task == "question-answering"):
        given = "no question" if question is None else "a question"
        raise InputError(f"the task is {task}, and {given} is given; only question-answering takes one, and needs it")
    texts = (text,) if question is None else (question, text)
    options: dict[str, Any] = {"config": None, "overrides": {}, "ignore_mismatched_sizes": False}
    config, tensors, report = load(model, TASKS[task], family=family_of(read_config(model)), **options)
    require_head(report, TASKS[task], model)
    tokenizer = DistilBertTokenizer.from_pretrained(model)
    encoding, tokens = _read(texts, tokenizer, config)
    ids_L = np.array(encoding.ids)
    segments_L = np.array(encoding.type_ids) if family_of(config).has_segments else None
    probe = importlib.import_module(f"{package}.probe").Probe(TASKS[task], model)

    # An untrained vector or zeros would be no word at all to the model: [MASK] is the one that pretraining taught to
    # stand for a word that is not known. Positions, [CLS] and [SEP] stay, so that only the words make a difference.
    is_special_L = np.array([token.sequence is None for token in tokens])
    baseline_L = np.where(is_special_L, ids_L, tokenizer.mask_token_id)
    found = probe.outputs(_inputs(segments_L, input_ids=np.stack([ids_L, baseline_L])))
    outputs = {name: value[0] for name, value in found.items()}
    chosen = ANSWERS[task](outputs, texts, tokens, config, tokenizer)

    words = next(row.name for row in parameters(config, TASKS[task]) if row.role == "words")
    vectors_LD, baseline_LD = (tensors[words][ids].astype(np.float32) for ids in (ids_L, baseline_L))
    targets = []
    for answer, name, factors in chosen.explained:
        value, baseline_value = (
            sum(float((found[output][row].astype(np.float64) * factor).sum()) for output, factor in factors.items())
            for row in (0, 1)
        )
        tried: list[Target] = []
        for count in STEPS if steps is None else (steps,):
            contributions_L = _contributions(probe, vectors_LD, baseline_LD, segments_L, factors, count)
            tried.append(Target(answer, name, value, baseline_value, contributions_L, count))
            if abs(tried[-1].gap) <= GAP * abs(value - baseline_value):
                break
        targets.append(min(tried, key=lambda target: abs(target.gap)))
    return Explanation(
        model=Path(model).resolve().name if Path(model).exists() else str(model),
        framework=next(name for name, (_, of) in BACKENDS.items() if of == package),
        task=task,
        texts=texts,
        tokens=tokens,
        answers=chosen.answers,
        targets=tuple(targets),
        baseline=tokenizer.mask_token,
        attentions=tuple(outputs[f"attentions/{layer}"] for layer in range(config.n_layers)),
    )


def _detect_task(model: str | Path) -> str:
    """The task that a checkpoint's head is for.

    Raises:
        InputError: none that can be explained.
    """
    head = head_of(model, read_config(model))
    for task, of in TASKS.items():
        if of == head:
            return task
    raise InputError(f"{model}: its head is {head}, expected one of {', '.join(TASKS.values())}")


def _read(texts: tuple[str, ...], tokenizer: DistilBertTokenizer, config: Config) -> tuple[Encoding, tuple[Token, ...]]:
    """A text or a pair as the model reads it, and where its tokens come from.

    Raises:
        InputError: a text without tokens, or too many.
    """
    encodings = tokenizer(*([text] for text in texts), verbose=False).encodings or []
    encoding = encodings[0]
    columns = zip(encoding.tokens, encoding.sequence_ids, encoding.word_ids, encoding.offsets, strict=True)
    tokens = tuple(Token(text, sequence, word, *place) for text, sequence, word, place in columns)
    for number, text in enumerate(texts):
        if all(token.sequence != number for token in tokens):
            raise InputError(f"the text {text!r:.80} has no tokens, expected words")
    limit = min(tokenizer.model_max_length, config.max_position_embeddings)
    if len(tokens) > limit:
        raise InputError(f"the text has {len(tokens)} tokens, expected at most the model's {limit}; shorten it")
    return encoding, tokens


def _inputs(segments_L: np.ndarray | None, **given: np.ndarray) -> dict[str, np.ndarray]:
    """What a model takes, with a mask that leaves nothing out."""
    (first,) = given.values()
    inputs = {**given, "attention_mask": np.ones(first.shape[:2], np.int64)}
    return inputs if segments_L is None else inputs | {"token_type_ids": np.tile(segments_L, (len(first), 1))}


def _contributions(
    probe: Any,
    vectors_LD: np.ndarray,
    baseline_LD: np.ndarray,
    segments_L: np.ndarray | None,
    factors: Factors,
    steps: int,
) -> np.ndarray:
    """What each token adds to the sum of outputs times ``factors``."""
    rows = min(steps, max(1, BATCH_TOKENS // len(vectors_LD)))
    repeated = {name: np.repeat(factor[None], rows, 0) for name, factor in factors.items()}
    return integrated_gradients(
        lambda points_RLD: probe.pull_back(_inputs(segments_L, inputs_embeds=points_RLD), repeated),
        vectors_LD,
        baseline_LD,
        steps=steps,
        rows=rows,
    )


@dataclass(frozen=True)
class _Known:
    """A model that gives what is known already, so that pipelines can answer."""

    config: Config
    outputs: Factors

    def batch_rows(self, length: int) -> int:
        """One."""
        return 1

    def __call__(self, *given: Any, **more: Any) -> list[dict[str, np.ndarray]]:
        """The outputs, of a batch of one."""
        return [dict(self.outputs)]


@dataclass(frozen=True)
class _Chosen:
    """A task's answers, and those to explain, each with the name of the number that speaks for it and its factors."""

    answers: tuple[Answer, ...]
    explained: tuple[tuple[Answer, str, Factors], ...]


def _labels(outputs: Factors, texts: Any, tokens: Any, config: Config, tokenizer: Any) -> _Chosen:
    """The labels of a text, the best first, which is explained."""
    logits_C = outputs["logits"]
    scores_C = FUNCTIONS[default_function(config)](logits_C)
    has_probabilities = config.num_labels > 1 and config.problem_type != "regression"
    best = np.argsort(-logits_C, kind="stable")
    answers = tuple(
        Answer(config.id2label[c], float(scores_C[c]) if has_probabilities else None) for c in best.tolist()
    )
    name = f"the logit of {answers[0].label}{_less(config)}"
    return _Chosen(answers, ((answers[0], name, {"logits": _margin(best[0], config)}),))


def _margin(chosen: int, config: Config) -> np.ndarray:
    """Factors (C,) of the logits. What raises all of them changes no probability, where they are shares of 1."""
    count = config.num_labels
    factors_C = np.zeros(count, np.float32)
    if _less(config):
        factors_C[:] = -1 / (count - 1)
    factors_C[chosen] = 1
    return factors_C


def _less(config: Config) -> str:
    return " less the mean of the others" if default_function(config) == "softmax" else ""


def _entities(
    outputs: Factors,
    texts: tuple[str, ...],
    tokens: tuple[Token, ...],
    config: Config,
    tokenizer: DistilBertTokenizer,
) -> _Chosen:
    """The entities in a text; the most certain are explained."""
    pipeline = TokenClassificationPipeline(_Known(config, outputs), tokenizer)
    answers = tuple(
        Answer(entity["entity_group"], entity["score"], entity["start"], entity["end"])
        for entity in pipeline([texts[0]], aggregation_strategy="first")[0]
    )
    explained = sorted(answers, key=lambda answer: -(answer.probability or 0))[:MOST_ENTITIES]
    return _Chosen(
        answers,
        tuple(
            (answer, f"the logits of {answer.label}{_less(config)}, summed over the words", {"logits": factors_LC})
            for answer in answers
            if answer in explained
            for factors_LC in [_entity_factors(answer, outputs["logits"], tokens, config)]
        ),
    )


def _entity_factors(answer: Answer, logits_LC: np.ndarray, tokens: tuple[Token, ...], config: Config) -> np.ndarray:
    """Factors (L, C) of what made words part of an entity: of the first token, for the label, beginning or inside."""
    factors_LC = np.zeros_like(logits_LC)
    kinds = [index for index, label in config.id2label.items() if label.split("-", 1)[-1] == answer.label]
    previous = None
    for place, token in enumerate(tokens):
        is_inside = token.sequence == 0 and answer.start <= token.start and token.end <= answer.end  # type: ignore[operator]
        if is_inside and token.word != previous:
            factors_LC[place] = _margin(max(kinds, key=lambda kind: logits_LC[place, kind]), config)
        previous = token.word
    return factors_LC


def _span(
    outputs: Factors,
    texts: tuple[str, ...],
    tokens: tuple[Token, ...],
    config: Config,
    tokenizer: DistilBertTokenizer,
) -> _Chosen:
    """The most probable answer to a question."""
    pipeline = QuestionAnsweringPipeline(_Known(config, outputs), tokenizer)
    found = pipeline(question=texts[0], context=texts[1], max_seq_len=len(tokens), max_question_len=len(tokens))
    answer = Answer("answer", found["score"], found["start"], found["end"])
    inside = [
        place
        for place, token in enumerate(tokens)
        if token.sequence == 1 and found["start"] <= token.start and token.end <= found["end"]
    ]
    factors = {name: np.zeros_like(outputs[name]) for name in ("start_logits", "end_logits")}
    factors["start_logits"][inside[0]] = factors["end_logits"][inside[-1]] = 1
    return _Chosen((answer,), ((answer, "the logits of its start and of its end, summed", factors),))


ANSWERS = {"text-classification": _labels, "token-classification": _entities, "question-answering": _span}
