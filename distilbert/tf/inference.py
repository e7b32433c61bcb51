"""Numpy in, numpy out: what pipelines ask of a backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from distilbert.core.backends import has_bfloat16_products
from distilbert.core.batches import batch_rows, pad, unpad
from distilbert.core.checkpoint import require_head
from distilbert.core.config import Config, read_config
from distilbert.core.errors import InputError
from distilbert.core.inputs import check_range
from distilbert.core.spec import choose_class
from distilbert.tf import heads
from distilbert.tf.encoder import TFBertModel, TFDistilBertModel
from distilbert.tf.model import PreTrainedModel

# By the stem of the family and the head.
MODELS: dict[tuple[str, str], type[PreTrainedModel]] = {
    (model.family.stem, model.head): model
    for model in (
        TFDistilBertModel,
        heads.TFDistilBertForMaskedLM,
        heads.TFDistilBertForSequenceClassification,
        heads.TFDistilBertForMultipleChoice,
        heads.TFDistilBertForTokenClassification,
        heads.TFDistilBertForQuestionAnswering,
        TFBertModel,
        heads.TFBertForPreTraining,
        heads.TFBertForMaskedLM,
        heads.TFBertForNextSentencePrediction,
        heads.TFBertForSequenceClassification,
        heads.TFBertForMultipleChoice,
        heads.TFBertForTokenClassification,
        heads.TFBertForQuestionAnswering,
    )
}


def load(head: str, name_or_path: str | Path, *, where: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """What ``from_pretrained`` gives, of the class that the checkpoint's family has for a head.

    Args:
        head: the spec's name for what to compute.
        name_or_path: a folder, or a Hub id.
        where: ``revision``, ``cache_dir``, ``local_files_only``, ``token``.
        options: others of ``from_pretrained``.

    Raises:
        CheckpointError: the checkpoint is absent, damaged, or does not fit the config.
        InputError: the family has no such head.
    """
    where = where or {}
    cls, own = choose_class(MODELS, head, read_config(name_or_path, **where))
    return cls.from_pretrained(name_or_path, **own, **where, **options)


def fast_dtype(device: str) -> str:
    """The type that a device computes fastest in, of those that cost next to no accuracy."""
    if not device.startswith("cpu"):
        return "bfloat16"
    # JAX's products on CPUs are slower in bfloat16, whatever the CPU has.
    return "bfloat16" if keras.backend.backend() == "tensorflow" and has_bfloat16_products() else "float32"


class WordScorer(keras.Model):
    """A masked LM at ``places`` (B, P) alone: at every token it is a third of the work."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.jit_compile = model.jit_compile  # left to Keras, XLA would compile for every length

    def call(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """``logits`` (B, P, V)."""
        given = {name: value for name, value in inputs.items() if name != "places"}
        hidden_BLD = self.model.get_base_model()(**given, return_dict=True).last_hidden_state
        return {"logits": self.model.score_words(gather(hidden_BLD, inputs["places"]))}


def gather(hidden_BLD: Any, places_BP: Any) -> Any:
    """The vectors (B, P, D) at places in each row."""
    return ops.take_along_axis(hidden_BLD, ops.cast(places_BP, "int32")[..., None], axis=1)


class InferenceModel:
    """A trained model that maps arrays to arrays.

    Args:
        model: in the precision that it has.
        device: ``"auto"``, or a device of Keras, for example ``"cpu"`` or ``"gpu:0"``, which it was made on.

    Raises:
        InputError: a device that is not there.
    """

    def __init__(self, model: PreTrainedModel, device: str | None = "auto") -> None:
        self.model = model
        self.head = model.head
        self.device = parse_device(device)

    @classmethod
    def from_pretrained(
        cls, head: str, name_or_path: str | Path, *, dtype: str | None = None, device: str | None = None, **where: Any
    ) -> InferenceModel:
        """Load a checkpoint.

        Args:
            head: the spec's name for what to compute.
            name_or_path: a folder, or a Hub id.
            dtype: a Keras policy such as ``"float32"`` or ``"bfloat16"``, or ``"auto"``: what the device is fastest at.
            device: ``"auto"``, or a device of Keras, for example ``"cpu"`` or ``"gpu:0"``.
            where: ``revision``, ``cache_dir``, ``local_files_only``, ``token``.

        Raises:
            CheckpointError: the checkpoint is absent, damaged, or was not trained with this head.
            InputError: a device that is not there.
        """
        target = parse_device(device)
        dtype = fast_dtype(target) if dtype == "auto" else dtype
        with keras.device(target):
            model, report = load(head, name_or_path, where=where, dtype=dtype, output_loading_info=True)
        require_head(report, head, name_or_path)
        return cls(model, device)

    @cached_property
    def scorer(self) -> WordScorer:
        """Scores words at places alone, for a masked LM."""
        return WordScorer(self.model)

    @property
    def config(self) -> Config:
        """The loaded model's config."""
        return self.model.config

    def batch_rows(self, length: int) -> int:
        """How many sequences of ``length`` tokens to give at a time."""
        return batch_rows(length, self.head, self.device.startswith("cpu"))

    def __call__(
        self,
        sequences: Sequence[Sequence[int]],
        segments: Sequence[Sequence[int]] | None = None,
        places: Sequence[Sequence[int]] | None = None,
    ) -> list[dict[str, np.ndarray]]:
        """Run one batch.

        Args:
            sequences: ids of the tokens of each text; for multiple choice, of each choice.
            segments: of the tokens, by default 0; not of DistilBERT.
            places: in each text, at least one, for a masked LM to score words at; by default it does at all tokens.

        Returns:
            Each text's outputs by name, as float32.

        Raises:
            InputError: an id outside the vocabulary, or a sequence too long for the model.
        """
        given = pad(sequences, segments, self.head, self.config, places)
        check_range("input_ids", int(given["input_ids"].min()), int(given["input_ids"].max()), self.config.vocab_size)
        with keras.device(self.device):
            output = (self.model if places is None else self.scorer).predict_on_batch(given)
        arrays = {name: np.asarray(value, np.float32) for name, value in output.items()}
        return unpad(arrays, places or sequences, self.head)


def parse_device(device: str | None) -> str:
    """The device that ``device`` names, as Keras calls it.

    Raises:
        InputError: it is not there.
    """
    counts = {kind: _count(kind) for kind in ("gpu", "tpu", "cpu")}
    present = [kind for kind, count in counts.items() if count]
    if device == "auto":
        return f"{present[0]}:0"
    kind, _, number = (device or "cpu").replace("cuda", "gpu").partition(":")
    if (number and not number.isdecimal()) or int(number or 0) >= counts.get(kind, 0):
        raise InputError(f"device is {device!r}, which Keras cannot use here; it sees {', '.join(present)}")
    return f"{kind}:{number or 0}"


def _count(kind: str) -> int:
    try:
        return len(keras.distribution.list_devices(kind))
    except RuntimeError:  # JAX, of a kind that it does not see
        return 0
