"""From texts to answers, on any backend: text → ids → arrays → backend → arrays → answer.

A task is a module here with a class that is made from a model and a tokenizer, and called with texts. It
knows no framework (the model takes and gives arrays) and nothing of the command line.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from distilbert.core.backends import BACKENDS, choose_backend
from distilbert.core.config import Config, read_config
from distilbert.core.errors import CheckpointError, InputError
from distilbert.core.spec import family_of
from distilbert.core.tokenizer import DistilBertTokenizer
from distilbert.pipelines.feature_extraction import FeatureExtractionPipeline
from distilbert.pipelines.fill_mask import FillMaskPipeline
from distilbert.pipelines.multiple_choice import MultipleChoicePipeline
from distilbert.pipelines.pipeline import Pipeline
from distilbert.pipelines.question_answering import QuestionAnsweringPipeline
from distilbert.pipelines.text_classification import TextClassificationPipeline
from distilbert.pipelines.token_classification import TokenClassificationPipeline
from distilbert.pipelines.zero_shot_classification import ZeroShotClassificationPipeline

TASKS: dict[str, type[Pipeline]] = {
    cls.task: cls
    for cls in (
        FeatureExtractionPipeline,
        FillMaskPipeline,
        MultipleChoicePipeline,
        QuestionAnsweringPipeline,
        TextClassificationPipeline,
        TokenClassificationPipeline,
        ZeroShotClassificationPipeline,
    )
}
# The models that come with the library.
DEFAULTS = {"text-classification": Path(__file__).parents[1] / "default"}
ALIASES = {"ner": "token-classification", "sentiment-analysis": "text-classification"}


def pipeline(
    task: str | type[Pipeline],
    model: Any = None,
    *,
    tokenizer: DistilBertTokenizer | str | Path | None = None,
    backend: str = "auto",
    dtype: Any = None,
    device: Any = None,
    batch_size: int | str = "auto",
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    **options: Any,
) -> Pipeline:
    """Make what answers for texts.

    Args:
        task: one of ``TASKS``, or ``"ner"`` or ``"sentiment-analysis"``; or a class of one's own.
        model: a folder, or a Hub id; or a model of any of the frameworks, which stays where it is, one of PyTorch's in
            evaluation mode. By default, for text classification, a small one that comes with the library and tells
            praise from blame.
        tokenizer: the model's, or where it is; by default where the model is.
        backend: ``"pt"``, ``"tf"`` or ``"flax"``; ``"auto"`` takes the first that is installed.
        dtype: ``"float32"`` (the default), ``"bfloat16"``, ``"float16"``; on PyTorch and CPUs ``"int8"``; or
            ``"auto"``: what the device is fastest at, less int8. ``torch_dtype`` is understood too.
        device: for example ``"cpu"`` or ``"cuda:0"``; by default a GPU where there is one. As in transformers
            -1 is the CPU, and other numbers are GPUs.
        batch_size: sequences that the model sees at a time; ``"auto"`` fills batches by their number of tokens.
        revision: a branch, tag or commit on the Hub.
        cache_dir: where the Hub's files are kept.
        local_files_only: never ask the network.
        token: a Hub token.
        options: those of the task.

    Raises:
        CheckpointError: the checkpoint is absent, damaged, or was not trained for the task.
        InputError: no such task, option or device.
        MissingBackendError: the framework, or any, is not installed.
    """
    dtype = options.pop("torch_dtype", dtype)
    if isinstance(device, int):
        device = "cpu" if device < 0 else f"cuda:{device}"
    cls = TASKS.get(ALIASES.get(task, task)) if isinstance(task, str) else task
    if not (isinstance(cls, type) and issubclass(cls, Pipeline)):
        raise InputError(f"task is {task!r}, expected one of {', '.join((*TASKS, *ALIASES))}")
    if model is None and cls.task not in DEFAULTS:
        raise InputError(f"no model comes with the library for {cls.task}; pass model=, a folder or a Hub id")
    model = DEFAULTS[cls.task] if model is None else model
    cls.change_options(cls.options_class(), options)  # a wrong one is reported before a framework is loaded
    is_loaded = not isinstance(model, (str, Path))
    package = _package_of(model, cls.head) if is_loaded else choose_backend(backend)
    if is_loaded and tokenizer is None:
        raise InputError("a model that is loaded already needs a tokenizer=")
    inference = importlib.import_module(f"{package}.inference")
    where: dict[str, Any] = {
        "revision": revision,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
        "token": token,
    }
    if not isinstance(tokenizer, DistilBertTokenizer):
        tokenizer = DistilBertTokenizer.from_pretrained(model if tokenizer is None else tokenizer, **where)
    if is_loaded:
        network = inference.InferenceModel(model)
    else:
        _check_architecture(read_config(model, **where), cls.head, model)
        network = inference.InferenceModel.from_pretrained(
            cls.head, model, dtype=dtype, device=device or "auto", **where
        )
    return cls(network, tokenizer, batch_size=batch_size, **options)


def _check_architecture(config: Config, head: str, model: str | Path) -> None:
    """Two heads can have weights of the same names; the config says which one was trained."""
    family = family_of(config)
    if head == "base" or head not in family.heads:
        return
    classes = {name: family.class_name(name) for name in family.heads}
    named = [cls for cls in classes.values() if any(of.endswith(cls) for of in config.architectures or ())]
    holds_it = (
        [classes[head], family.class_name("pretraining")]
        if head == "masked-lm" and "pretraining" in classes
        else [classes[head]]
    )
    if named and not set(named) & set(holds_it):
        raise CheckpointError(f"{model}: is a {named[0]}, expected a {classes[head]}")


def _package_of(model: Any, head: str) -> str:
    """The backend that a loaded model belongs to."""
    modules = [cls.__module__ for cls in type(model).__mro__]
    is_encoder = hasattr(model, "family") and model.family.heads[model.head].is_encoder
    if getattr(model, "head", None) == head or (head == "base" and is_encoder):
        for _, package in BACKENDS.values():
            if any(module.startswith(f"{package}.") for module in modules):
                return package
    raise InputError(f"model is of type {type(model).__name__}, expected one of ours for {head}, or where it is")
