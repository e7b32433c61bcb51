"""What ``distilbert finetune`` and ``distilbert distill`` do: from files to a trained checkpoint."""

from __future__ import annotations

import hashlib
import importlib
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from distilbert.conversion.source import head_of
from distilbert.core.backends import choose_backend, require_backend
from distilbert.core.config import Config, read_config
from distilbert.core.errors import CheckpointError, ConfigError, InputError
from distilbert.core.spec import family_of
from distilbert.core.tokenizer import DistilBertTokenizer
from distilbert.distillation.corpus import Corpus, fingerprint
from distilbert.distillation.masked_texts import MaskedTexts
from distilbert.distillation.masking import IGNORED
from distilbert.distillation.recipe import Recipe, TaskRecipe
from distilbert.evaluation import data as files
from distilbert.evaluation import evaluate
from distilbert.evaluation.tasks import EVALUATIONS, Example
from distilbert.pipelines import ALIASES, TASKS
from distilbert.training.examples import LABELLED, NUMBER, Labelled, make_examples, make_pipeline
from distilbert.training.run import Evaluation, Position, Progress, Run, Trainer, begin
from distilbert.training.settings import Settings
from distilbert.training.steps import Source, Steps

# What decides which model is the best: the first of these that is measured.
DECISIVE = {
    "text-classification": ("pearson", "micro_f1", "accuracy"),
    "token-classification": ("f1", "accuracy"),  # of entities; of words where labels are of none
    "question-answering": ("f1",),
    "multiple-choice": ("accuracy",),
}
LINES = Recipe(masked_lm_weight=1.0, smoothing=0.0)  # all tokens alike, as ``evaluate`` hides them
HELD_OUT = Settings(batch_size=None, max_tokens=8192, epochs=1, seed=0)  # how held-out text is read

Show = Callable[[Progress], None]

logger = logging.getLogger("distilbert")

SHOWN = 10  # labels in a warning


def finetune(
    model: str | Path,
    folder: str | Path,
    task: str,
    data: str | Path,
    *,
    dev: str | Path | None = None,
    teacher: str | Path | None = None,
    unlabelled: Sequence[str | Path] = (),
    settings: Settings | None = None,
    recipe: TaskRecipe | None = None,
    backend: str = "auto",
    device: str = "auto",
    overwrite: bool = False,
    progress: Show | None = None,
    **options: Any,
) -> Position:
    """Train a head on labelled data, alone or also on what a teacher answers.

    The teacher is asked once, before. It may have another vocabulary where a whole text has one answer.

    Args:
        model: what to begin with: a folder, or a Hub id. A head that it lacks, or that has no such labels as the file
            or too few, is new, and a warning says so of one that was trained; others keep values, names and kind.
        folder: where to. After a crash the same call goes on there.
        task: one of ``examples.LABELLED``; or ``"fill-mask"``, of lines of text without labels.
        data: the file to train on, as ``evaluate`` reads it; for multiple choice lines of JSON with ``prompt``,
            ``choices`` and ``label``.
        dev: another, which decides which model is kept; by default the last one is.
        teacher: a model of the same task.
        unlabelled: files of texts, one a line, of which only the teacher says what they are; for text classification.
        settings: how to train.
        recipe: how the teacher's answers count.
        backend: ``"pt"``, ``"tf"`` or ``"flax"``; ``"auto"`` takes the first that is installed.
        device: where to compute; ``"auto"`` takes a GPU where there is one.
        overwrite: begin anew where ``folder`` holds another run, or a checkpoint.
        progress: is told after each step.
        options: of the files: ``text_field``, ``text_pair_field``, ``label_field`` for text classification.

    Returns:
        How many steps were taken, and what was measured at the best one.

    Raises:
        CheckpointError: the model or the teacher is absent or damaged; ``folder`` holds something else, or is full.
        ConfigError: settings that contradict each other.
        InputError: data that cannot be read, or a loss that is not finite.
        MissingBackendError: the framework, or a library for logs and metrics, is not installed.
    """
    settings, recipe = settings or Settings(), recipe or TaskRecipe()
    _check_dev(settings, dev)
    task = ALIASES.get(task, task)
    if task not in (*LABELLED, "fill-mask"):
        raise InputError(f"task is {task!r}, expected one of {', '.join((*LABELLED, 'fill-mask'))}")
    if unlabelled and (teacher is None or task != "text-classification"):
        raise InputError("unlabelled texts need a teacher, and text classification as the task")
    if task == "fill-mask" and teacher is not None:
        raise InputError("a masked LM learns from a teacher on a corpus: see distill")
    files_read = {"data": str(data), "dev": dev and str(dev), "unlabelled": list(map(str, unlabelled))}
    identity = {
        "command": "finetune",
        "model": str(model),
        "task": task,
        "backend": choose_backend(backend),
        "teacher": teacher and str(teacher),
        "recipe": asdict(LINES if task == "fill-mask" else recipe),
        "options": options,
        **files_read,
        "contents": {file: _content(file) for file in map(str, (data, *([dev] if dev else []), *unlabelled))},
    }
    _check(folder, settings, identity, overwrite)
    tokenizer = DistilBertTokenizer.from_pretrained(model)
    if task == "fill-mask":
        return _train_masked_lm(
            *(model, folder, LINES, tokenizer, settings, identity, backend, device, overwrite),
            source=_masked_lines(data, model, tokenizer),
            dev=None if dev is None else _masked_lines(dev, model, tokenizer),
            progress=progress,
        )
    kind = LABELLED[task]
    labels = _labels(kind, model, teacher, str(data), options)
    trainer = _trainer(backend)(TASKS[task].head, model, settings, recipe, device=device, **labels)
    asked = make_pipeline(kind, trainer.inference(), tokenizer)
    is_of_classes = asked.config.num_labels > 1 and asked.config.problem_type != "multi_label_classification"
    if teacher is not None and task == "text-classification" and not is_of_classes:
        raise InputError(
            f"{teacher}: gives numbers or several labels at a time, expected one of several classes to teach"
        )
    examples = kind.read(str(data), asked.config, options)
    if not examples:
        raise InputError(f"{data}: holds no examples")
    for file in unlabelled:
        examples += [Example({"text": line}, IGNORED) for line in _lines(file)]
    # What ``evaluate`` will read, found out before hours of training. It takes more than can be trained on.
    if dev and not EVALUATIONS[task](**options).read(str(dev), asked.config):
        raise InputError(f"{dev}: holds no examples")
    source = make_examples(kind, examples, asked, _teacher(kind, teacher, tokenizer, backend, device))

    def measure() -> Evaluation:
        asked = make_pipeline(kind, trainer.inference(), tokenizer)
        metrics = evaluate(task, asked, str(dev), **options).metrics
        return Evaluation(metrics, next(name for name in DECISIVE[task] if name in metrics), is_loss=False)

    return _run(folder, trainer, source, tokenizer, settings, identity, measure if dev else None, progress, overwrite)


def distill(
    student: str | Path,
    folder: str | Path,
    corpus: str | Path,
    *,
    teacher: str | Path | None = None,
    dev: str | Path | None = None,
    settings: Settings | None = None,
    recipe: Recipe | None = None,
    backend: str = "auto",
    device: str = "auto",
    overwrite: bool = False,
    progress: Show | None = None,
) -> Position:
    """Train a masked LM on a corpus, beside a teacher (Sanh et al. 2019, section 3) or alone.

    Args:
        student: what to begin with, such as ``init_student`` makes: a folder, or a Hub id.
        folder: where to. After a crash the same call goes on there.
        corpus: a folder that ``prepare_corpus`` wrote with the student's tokenizer.
        teacher: a masked LM, or a BERT for pretraining, with the same vocabulary; None to learn from text alone.
        dev: another corpus, whose perplexity decides which model is kept; by default the last one is.
        settings: how to train.
        recipe: how the losses are weighed and tokens are hidden; by default as in the published run.
        backend: as for ``finetune``, like all that follow.
        device: where to compute.
        overwrite: begin anew.
        progress: is told after each step.

    Returns:
        How many steps were taken, and what was measured at the best one.

    Raises:
        CheckpointError: the student, teacher or corpus is absent or damaged; ``folder`` holds something else, or is
            full.
        ConfigError: settings that contradict each other.
        InputError: a teacher or corpus that does not fit the student, a teacher without a masked LM's head, or a loss
            that is not finite.
        MissingBackendError: the framework, or a library for logs, is not installed.
    """
    settings = settings or Settings()
    _check_dev(settings, dev)
    recipe = recipe or (Recipe() if teacher else Recipe(masked_lm_weight=1.0))
    identity = {
        "command": "distill",
        "model": str(student),
        "corpus": str(corpus),
        "dev": dev and str(dev),
        "backend": choose_backend(backend),
        "teacher": teacher and str(teacher),
        "recipe": asdict(recipe),
    }
    _check(folder, settings, identity, overwrite)
    tokenizer = DistilBertTokenizer.from_pretrained(student)
    if teacher is not None:
        config = read_config(teacher)
        if (head := head_of(teacher, config)) not in ("masked-lm", "pretraining"):
            raise InputError(
                f"{teacher}: has the head {head}, expected a masked LM's: what it teaches is words' scores"
            )
        _check_teacher(read_config(student), config, recipe)
        with suppress(CheckpointError):  # it may come without a tokenizer
            if DistilBertTokenizer.from_pretrained(teacher).get_vocab() != tokenizer.get_vocab():
                raise InputError(f"{teacher}: has other words than the student, whose scores it is to teach")
    return _train_masked_lm(
        *(student, folder, recipe, tokenizer, settings, identity, backend, device, overwrite),
        source=MaskedTexts.of_corpus(Corpus(corpus), recipe, tokenizer),
        dev=None if dev is None else MaskedTexts.of_corpus(Corpus(dev), recipe, tokenizer),
        teacher=teacher,
        progress=progress,
    )


def _train_masked_lm(
    model: str | Path,
    folder: str | Path,
    recipe: Recipe,
    tokenizer: DistilBertTokenizer,
    settings: Settings,
    identity: dict[str, Any],
    backend: str,
    device: str,
    overwrite: bool,
    *,
    source: MaskedTexts,
    dev: MaskedTexts | None,
    teacher: str | Path | None = None,
    progress: Show | None,
) -> Position:
    trainer = _trainer(backend)("masked-lm", model, settings, recipe, teacher=teacher, device=device)

    def measure() -> Evaluation:
        """Always of the same hidden tokens, as the seed is."""
        totals: Counter[str] = Counter()
        terms: Counter[str] = Counter()
        for step in Steps(cast("Source", dev), HELD_OUT, trainer.parts, trainer.buckets).starting(0):
            for name, value in trainer.evaluate(step.parts).items():
                count = step.terms[TERM_OF.get(name, "tokens")]
                totals[name] += value * count
                terms[name] += count
        metrics = {name: total / terms[name] for name, total in totals.items()}
        metrics["perplexity"] = math.exp(min(metrics["masked_lm"], 700))
        return Evaluation(metrics, "perplexity", is_loss=True)

    return _run(folder, trainer, source, tokenizer, settings, identity, measure if dev else None, progress, overwrite)


# What each loss is a mean over; the others over tokens.
TERM_OF = {"masked_lm": "masked", "distillation": "places"}


def _run(
    folder: str | Path,
    trainer: Trainer,
    source: Source,
    tokenizer: DistilBertTokenizer,
    settings: Settings,
    identity: dict[str, Any],
    measure: Callable[[], Evaluation] | None,
    progress: Show | None,
    overwrite: bool,
) -> Position:
    steps = Steps(source, settings, trainer.parts, trainer.buckets)
    run = Run(
        *(folder, trainer, steps, settings, identity),
        tokenizer=tokenizer,
        evaluate=measure,
        progress=progress,
        overwrite=overwrite,
    )
    position = run()
    if trainer.is_primary:  # also where an earlier version has trained, which wrote it at the end
        tokenizer.save_pretrained(folder)
    return position


def _check(folder: str | Path, settings: Settings, identity: dict[str, Any], overwrite: bool) -> None:
    """Find out what is wrong before anything is loaded."""
    for library in ("tensorboardX", "matplotlib", "sklearn"):
        require_backend(library, "train")
    begin(Path(folder), {"settings": asdict(settings), **identity}, overwrite)


def _check_dev(settings: Settings, dev: str | Path | None) -> None:
    """Refuse to wait for what is not measured."""
    if settings.patience is not None and dev is None:
        raise ConfigError(f"patience is {settings.patience}, but nothing is measured; name a file with dev")


def _trainer(backend: str) -> Any:
    """The class of a backend."""
    return importlib.import_module(f"{choose_backend(backend)}.training").Trainer


def _lines(file: str | Path) -> list[str]:
    """The lines of a file that hold text, at least one."""
    lines = [line for _, line in files.read_lines(str(file)) if line.strip()]
    if not lines:
        raise InputError(f"{file}: holds no text")
    return lines


def _masked_lines(file: str | Path, model: str | Path, tokenizer: DistilBertTokenizer) -> MaskedTexts:
    """The lines of a file, to fill masks in."""
    limit = min(tokenizer.model_max_length, read_config(model).max_position_embeddings)
    return MaskedTexts.of_lines(_lines(file), LINES, tokenizer, limit)


def _labels(
    kind: Labelled, model: str | Path, teacher: str | Path | None, file: str, options: dict[str, Any]
) -> dict[str, Any]:
    """The config fields of the labels: the teacher's; or the model's, if it was trained for these; or the file's."""
    if kind.name in ("question-answering", "multiple-choice"):
        return {}
    known = read_config(model if teacher is None else teacher)
    if teacher is None:
        cls = family_of(known).class_name(TASKS[kind.name].head)
        is_trained = any(name.endswith(cls) for name in known.architectures or ())
        if is_trained and known.problem_type == "multi_label_classification":
            return {"problem_type": known.problem_type}
        found = kind.labels(file, options)
        names = {name.casefold() for name in found["id2label"].values()} if "id2label" in found else set()
        own = {name.casefold() for name in known.id2label.values()}
        if known.num_labels == 1:  # a regression: any numbers will do
            fits, new = all(map(NUMBER.fullmatch, names)), set()
        else:
            fits = found.get("problem_type") != "regression" and found["num_labels"] <= known.num_labels
            # By number, none of them the first?
            are_classes = not any(name.isdecimal() for name in own) and all(
                name.isdecimal() and int(name) < known.num_labels for name in names
            )
            new = set() if are_classes else names - own
        if is_trained and (new or not fits):
            logger.warning(
                "%s: its labels are %s; %s was trained for %s, which its head will be for no longer",
                file,
                _listed(found["id2label"].values()) if names else "numbers",
                model,
                _listed(known.id2label.values()),
            )
        if not is_trained or not fits or new:
            return {"problem_type": None, **found}
    return {
        "num_labels": known.num_labels,
        "id2label": known.id2label,
        "label2id": known.label2id,
        "problem_type": known.problem_type,
    }


def _content(file: str) -> str:
    """A hash of a file, empty where it cannot be read; who reads it says why."""
    with suppress(OSError), Path(file).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
    return ""


def _listed(labels: Iterable[str]) -> str:
    """Some labels, for people."""
    several = list(labels)
    return ", ".join(several[:SHOWN]) + (f" and {len(several) - SHOWN} more" if len(several) > SHOWN else "")


def _teacher(
    kind: Labelled, teacher: str | Path | None, tokenizer: DistilBertTokenizer, backend: str, device: str
) -> Any:
    """The pipeline to ask.

    Raises:
        InputError: its tokens are not the student's, where answers are about tokens.
    """
    if teacher is None:
        return None
    own = DistilBertTokenizer.from_pretrained(teacher)
    if kind.per_token and fingerprint(own) != fingerprint(tokenizer):
        raise InputError(f"{teacher}: has other tokens than the student, which {kind.name} is about; use its tokenizer")
    inference = importlib.import_module(f"{choose_backend(backend)}.inference")
    model = inference.InferenceModel.from_pretrained(TASKS[kind.name].head, teacher, device=device)
    return make_pipeline(kind, model, own)


def _check_teacher(student: Config, teacher: Config, recipe: Recipe) -> None:
    """Check that a student can learn from a teacher word by word.

    Raises:
        InputError: it cannot.
    """
    if student.vocab_size != teacher.vocab_size:
        raise InputError(
            f"the teacher's vocabulary has {teacher.vocab_size} words, the student's {student.vocab_size}; expected "
            "the same"
        )
    compares = recipe.cosine_weight or recipe.hidden_state_weight
    if compares and student.hidden_size != teacher.hidden_size:
        raise InputError(
            f"the teacher's hidden states have {teacher.hidden_size} dimensions, the student's {student.hidden_size}: "
            "they cannot be compared; set cosine_weight and hidden_state_weight to 0"
        )
