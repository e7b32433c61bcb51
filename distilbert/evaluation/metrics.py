"""What answers are worth: pure functions of what is true and what was answered.

scikit-learn, SciPy and seqeval are imported by the functions that need them: the command line shall start without.
"""

from __future__ import annotations

import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np


class Measured(NamedTuple):
    """The figures of the whole, and for each class."""

    metrics: dict[str, float]
    details: dict[str, Any]


def classification(true: Sequence[int], predicted: Sequence[int], names: Sequence[str]) -> Measured:
    """One class of several.

    Args:
        true: class numbers (N,).
        predicted: class numbers (N,).
        names: of the classes.

    Returns:
        ``accuracy``; with two classes ``f1``, of the second; ``macro_f1``, the mean over the classes that occur on
        either side; ``matthews_correlation``. Details are ``classes`` and ``confusion``: counts (true, predicted).
    """
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, matthews_corrcoef

    numbers = list(range(len(names)))
    metrics = {"accuracy": accuracy_score(true, predicted)}
    if len(names) == 2:
        metrics["f1"] = f1_score(true, predicted, pos_label=1, zero_division=0)
    metrics["macro_f1"] = f1_score(true, predicted, average="macro", zero_division=0)
    metrics["matthews_correlation"] = matthews_corrcoef(true, predicted)
    confusion = confusion_matrix(true, predicted, labels=numbers)
    return Measured(_floats(metrics), {"classes": _classes(true, predicted, names), "confusion": confusion.tolist()})


def multi_label(true: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> Measured:
    """Any number of several labels.

    Args:
        true: 0 or 1 (N, C).
        predicted: 0 or 1 (N, C).
        names: of the labels (C,).

    Returns:
        ``micro_f1``, of all decisions; ``macro_f1``, the mean over labels; ``subset_accuracy``, the share of texts with
        all labels right. Details are ``classes``.
    """
    from sklearn.metrics import accuracy_score, f1_score

    metrics = {
        "micro_f1": f1_score(true, predicted, average="micro", zero_division=0),
        "macro_f1": f1_score(true, predicted, average="macro", zero_division=0),
        "subset_accuracy": accuracy_score(true, predicted),
    }
    return Measured(_floats(metrics), {"classes": _classes(true, predicted, names)})


def regression(true: Sequence[float], predicted: Sequence[float]) -> Measured:
    """A number.

    Args:
        true: (N,).
        predicted: (N,).

    Returns:
        ``pearson``, ``spearman`` (NaN where one side is constant) and ``mean_squared_error``.
    """
    from scipy import stats
    from sklearn.metrics import mean_squared_error

    metrics = {"pearson": float("nan"), "spearman": float("nan")}
    if len(true) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.ConstantInputWarning)  # NaN says it
            metrics["pearson"] = stats.pearsonr(true, predicted).statistic
            metrics["spearman"] = stats.spearmanr(true, predicted).statistic
    metrics["mean_squared_error"] = mean_squared_error(true, predicted)
    return Measured(_floats(metrics), {})


def entities(true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> Measured:
    """Entities, each right if its kind and both ends are, as CoNLL's ``conlleval`` counts.

    Args:
        true: a label for each word of each sentence, such as ``B-person``, ``I-person`` and ``O``.
        predicted: likewise.

    Returns:
        ``precision``, ``recall`` and ``f1`` over all entities; ``accuracy`` over words. Details are ``classes``: the
        kinds.
    """
    from seqeval.metrics import accuracy_score, classification_report

    true, predicted = ([[_iobes(label) for label in labels] for labels in many] for many in (true, predicted))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # means of nothing, where there are no entities at all
        report = classification_report(true, predicted, output_dict=True, zero_division=0)
    totals = report["micro avg"]
    metrics = {
        "precision": totals["precision"],
        "recall": totals["recall"],
        "f1": totals["f1-score"],
        "accuracy": accuracy_score(true, predicted),
    }
    kinds = [name for name in report if not name.endswith(" avg")]
    classes = [
        {
            "label": kind,
            **_floats({"precision": report[kind]["precision"], "recall": report[kind]["recall"]}),
            **_floats({"f1": report[kind]["f1-score"]}),
            "support": int(report[kind]["support"]),
        }
        for kind in kinds
    ]
    return Measured(_floats(metrics), {"classes": classes})


def _iobes(label: str) -> str:
    """A label of BILOU or BMES by the letters that seqeval knows."""
    position, dash, kind = label.partition("-")
    return {"U": "S", "L": "E", "M": "I"}.get(position, position) + dash + kind if dash else label


def choices(true: Sequence[int], chosen: Sequence[int]) -> Measured:
    """One choice of several, which mean something else for every text.

    Args:
        true: the number of the right one (N,).
        chosen: likewise (N,).

    Returns:
        ``accuracy``.
    """
    return Measured({"accuracy": fmean(one == other for one, other in zip(true, chosen, strict=True))}, {})


def perplexity(log_probabilities: Sequence[float]) -> Measured:
    """How surprised a language model is.

    Args:
        log_probabilities: natural, of each token that had to be found (N,).

    Returns:
        ``cross_entropy``, the mean of what is missing to 0; ``perplexity``, its exponential.
    """
    cross_entropy = -fmean(log_probabilities)
    with np.errstate(over="ignore"):
        return Measured({"perplexity": float(np.exp(cross_entropy)), "cross_entropy": cross_entropy}, {})


def squad(predicted: Sequence[str], answers: Sequence[Sequence[str]], *, may_be_unanswerable: bool) -> Measured:
    """Answers to questions, in percent, by the definitions of SQuAD's evaluation scripts, version 1.1 and 2.0.

    Both take for each question the right answer that comes closest. They differ on answers that are empty once
    normalised: 1.1 counts them as they are, and the F1 with one is 0; 2.0 leaves them out, takes a question without
    others for unanswerable, and the F1 with nothing is 1 for nothing.

    Args:
        predicted: an answer for each question (N,), empty for none.
        answers: those that are right; none where there is no answer.
        may_be_unanswerable: count as 2.0 does.

    Returns:
        ``exact_match`` and ``f1``; with ``may_be_unanswerable`` also ``has_answer_…`` and ``no_answer_…`` of both,
        where there are such questions. Details are their counts.
    """
    overlap = _overlap if may_be_unanswerable else _overlap_of_words
    scores: list[tuple[float, float, bool]] = []  # exact match, F1, has an answer
    for prediction, right in zip(predicted, answers, strict=True):
        golds = [answer for answer in right if normalize(answer)] or [""] if may_be_unanswerable else right
        scores.append((_best(_is_same, prediction, golds), _best(overlap, prediction, golds), bool(right)))
    metrics, details = _means("", scores), {}
    if may_be_unanswerable:
        for prefix, kind in (("has_answer", True), ("no_answer", False)):
            chosen = [score for score in scores if score[2] is kind]
            details[f"{prefix}_count"] = len(chosen)
            if chosen:
                metrics |= _means(f"{prefix}_", chosen)
    return Measured(metrics, details)


def normalize(answer: str) -> str:
    """Lower case, without ASCII punctuation, without the words a, an and the, with single spaces."""
    bare = "".join(character for character in answer.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _means(prefix: str, scores: Sequence[tuple[float, float, bool]]) -> dict[str, float]:
    return {
        f"{prefix}exact_match": 100 * fmean(exact for exact, _, _ in scores),
        f"{prefix}f1": 100 * fmean(overlap for _, overlap, _ in scores),
    }


def _best(score: Callable[[str, str], float], prediction: str, golds: Sequence[str]) -> float:
    return max((score(prediction, gold) for gold in golds), default=0.0)


def _is_same(prediction: str, gold: str) -> float:
    return float(normalize(prediction) == normalize(gold))


def _overlap(prediction: str, gold: str) -> float:
    """The F1 of words, or whether both have none."""
    if not normalize(prediction) or not normalize(gold):
        return _is_same(prediction, gold)
    return _overlap_of_words(prediction, gold)


def _overlap_of_words(prediction: str, gold: str) -> float:
    """The F1 of words, each as often as it occurs."""
    found, wanted = normalize(prediction).split(), normalize(gold).split()
    common = (Counter(found) & Counter(wanted)).total()
    return 2 * common / (len(found) + len(wanted)) if common else 0.0


def _classes(true: Any, predicted: Any, names: Sequence[str]) -> list[dict[str, Any]]:
    """Precision, recall, F1 and support of each class."""
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(true, predicted, labels=list(range(len(names))), zero_division=0)
    return [
        {
            "label": name,
            **_floats(dict(zip(("precision", "recall", "f1"), row[:3], strict=True))),
            "support": int(row[3]),
        }
        for name, *row in zip(names, *columns, strict=True)
    ]


def _floats(values: dict[str, Any]) -> dict[str, float]:
    """Without the types of NumPy, which JSON does not know."""
    return {name: float(value) for name, value in values.items()}
