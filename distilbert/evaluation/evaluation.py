"""One pass of a model over labelled data."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from distilbert.core.backends import choose_backend, require_backend
from distilbert.core.config import Config, read_config
from distilbert.core.errors import InputError
from distilbert.evaluation.tasks import EVALUATIONS, Task
from distilbert.pipelines import ALIASES, pipeline
from distilbert.pipelines.pipeline import Pipeline

Progress = Callable[[int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class Report:
    """What came of it.

    Args:
        task: what was asked.
        model: who was asked: a path, a Hub id, or the class of a pipeline.
        data: about what.
        count: examples.
        seconds: from the first text to the last answer; loading is not in it, compiling (in JAX) is.
        metrics: the figures: fractions, but for SQuAD's, which are in percent as where they are published.
        details: by task: ``classes``, ``confusion``, counts.
    """

    task: str
    model: str
    data: str
    count: int
    seconds: float
    metrics: dict[str, float]
    details: dict[str, Any]

    @property
    def per_second(self) -> float:
        """Examples answered in a second."""
        return self.count / self.seconds


def evaluate(
    task: str,
    model: str | Path | Pipeline,
    data: str | Path,
    *,
    backend: str = "auto",
    dtype: str | None = None,
    device: str | None = None,
    batch_size: int | str = "auto",
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Answer for every example in a file, and compare with what the file says.

    The file is read whole and checked before a framework is loaded.

    Args:
        task: one of ``tasks.EVALUATIONS``, or of ``pipelines.ALIASES``.
        model: a folder, a Hub id, or a pipeline, of which the model serves.
        data: the file, or ``-`` for standard input; ``data`` says what is read, ``tasks`` what is made of it.
        backend: as for ``distilbert.pipeline``, like the next three.
        dtype: of the computation.
        device: where to compute.
        batch_size: sequences that the model sees at a time; a pipeline brings its own.
        progress: makes, of the number of examples, a context that is told how many more were answered.
        options: those of the task, such as ``label_field``.

    Raises:
        CheckpointError: the checkpoint is absent, damaged, or was not trained for the task.
        InputError: an example that cannot be read, named by its line; no such task, option or device.
        MissingBackendError: a framework, or a library for the metrics, is not installed.
        OSError: the file cannot be opened.
    """
    task = ALIASES.get(task, task)
    evaluation = _choose(task, options)
    for library in evaluation.libraries:
        require_backend(library, "evaluate")
    config: Config = model.config if isinstance(model, Pipeline) else read_config(model)
    if not isinstance(model, Pipeline):
        choose_backend(backend)  # which complains before much is read
    examples = evaluation.read(str(data), config)
    if not examples:
        raise InputError(f"{data}: holds no examples")
    cls, chosen = evaluation.answerer(examples)
    if isinstance(model, Pipeline):
        if model.head != cls.head:
            raise InputError(f"the pipeline is for {model.task}, expected one for {task}")
        answerer = cls(model.model, model.tokenizer, batch_size=model.batch_size or "auto", **chosen)
    else:
        answerer = pipeline(cls, model, backend=backend, dtype=dtype, device=device, batch_size=batch_size, **chosen)
    size = answerer.look_ahead
    groups = ([item for item, _ in examples[start : start + size]] for start in range(0, len(examples), size))
    answers: list[Any] = []
    with progress(len(examples)) if progress else nullcontext(lambda count: None) as advance:
        started = time.perf_counter()
        for found in answerer.answer_windows(groups):
            answers += found
            advance(len(found))
        seconds = time.perf_counter() - started
    measured = evaluation.measure([truth for _, truth in examples], answers, config)
    name = type(model).__name__ if isinstance(model, Pipeline) else str(model)
    return Report(task, name, str(data), len(examples), seconds, *measured)


def _choose(task: str, options: dict[str, Any]) -> Task:
    """The evaluation of a task, with its options."""
    if task not in EVALUATIONS:
        raise InputError(f"task is {task!r}, expected one of {', '.join(EVALUATIONS)}")
    names = [field.name for field in fields(EVALUATIONS[task])]
    for name in options:
        if name not in names:
            raise InputError(f"{task} has no option {name!r}; its options are: {', '.join(names) or 'none'}")
    return EVALUATIONS[task](**options)
