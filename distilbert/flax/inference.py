"""Numpy in, numpy out: what pipelines ask of a backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distilbert.core.batches import batch_rows, pad, unpad
from distilbert.core.checkpoint import require_head
from distilbert.core.config import Config, read_config
from distilbert.core.errors import InputError
from distilbert.core.inputs import as_array, check_range
from distilbert.core.spec import choose_class
from distilbert.flax import heads
from distilbert.flax.encoder import FlaxBertModel, FlaxDistilBertModel
from distilbert.flax.losses import IGNORED
from distilbert.flax.model import PreTrainedModel

# By the stem of the family and the head.
MODELS: dict[tuple[str, str], type[PreTrainedModel]] = {
    (model.family.stem, model.head): model
    for model in (
        FlaxDistilBertModel,
        heads.FlaxDistilBertForMaskedLM,
        heads.FlaxDistilBertForSequenceClassification,
        heads.FlaxDistilBertForMultipleChoice,
        heads.FlaxDistilBertForTokenClassification,
        heads.FlaxDistilBertForQuestionAnswering,
        FlaxBertModel,
        heads.FlaxBertForPreTraining,
        heads.FlaxBertForMaskedLM,
        heads.FlaxBertForNextSentencePrediction,
        heads.FlaxBertForSequenceClassification,
        heads.FlaxBertForMultipleChoice,
        heads.FlaxBertForTokenClassification,
        heads.FlaxBertForQuestionAnswering,
    )
}

# Lengths that batches are padded to, each a program of its own: steps of an eighth to a quarter waste a tenth.
LENGTHS = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512)
PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
# What fills up rows and lengths, so that it does not count. A position past the end counts as no answer.
FILLERS = {"labels": IGNORED, "start_positions": 1 << 30, "end_positions": 1 << 30}


def pad_to_bucket(
    batch: Mapping[str, Any],
    lengths: Sequence[int] = LENGTHS,
    batch_size: int | None = None,
    pad_token_id: int = 0,
) -> dict[str, np.ndarray]:
    """Pad a batch to one of a few shapes, because JAX compiles a program for each.

    Args:
        batch: arrays or lists by name: ``input_ids`` (B, L) or (B, C, L), or ``inputs_embeds`` with one axis more;
            ``attention_mask``, labels, …; an absent mask is added, what is None left out.
        lengths: what L may become, up to the model's longest; a longer batch keeps its length.
        batch_size: what B becomes; rows are added in which no token counts, nor any label, which must be integers.
        pad_token_id: fills ``input_ids``.

    Returns:
        The arrays. Cut the outputs back to B rows and L tokens. Losses stay what they were, but for question
        answering, whose classes are the places in the padded text.

    Raises:
        InputError: more than ``batch_size`` rows, or fewer with labels that are floats; neither ids nor embeddings.
    """
    arrays = {name: np.asarray(as_array(name, value)) for name, value in batch.items() if value is not None}
    if not arrays.keys() & {"input_ids", "inputs_embeds"}:
        raise InputError(f"the batch has {', '.join(arrays) or 'nothing'}, expected input_ids or inputs_embeds")
    shape = arrays["input_ids"].shape if "input_ids" in arrays else arrays["inputs_embeds"].shape[:-1]
    arrays.setdefault("attention_mask", np.ones(shape, np.int32))
    rows, length = shape[0], shape[-1]
    wanted_length = next((bucket for bucket in sorted(lengths) if bucket >= length), length)
    wanted_rows = rows if batch_size is None else batch_size
    if wanted_rows < rows:
        raise InputError(f"the batch has {rows} rows, expected at most batch_size={batch_size}")
    if wanted_rows > rows and "labels" in arrays and arrays["labels"].dtype.kind == "f":
        raise InputError(
            f"the batch has {rows} rows of labels that are floats, expected batch_size={batch_size}: "
            "no float means that a row does not count"
        )
    for name, array in arrays.items():
        if name == "head_mask":
            continue
        if name in FILLERS and array.dtype.kind in "iu":
            array = array.astype(np.int32)  # smaller types cannot hold the fillers
        missing = [(0, wanted_rows - rows if len(array) == rows else 0)] + [(0, 0)] * (array.ndim - 1)
        labels_tokens = name == "labels" and array.shape == shape and array.dtype.kind in "iu"
        if name in PER_TOKEN or labels_tokens:
            missing[-1] = (0, wanted_length - length)
        elif name == "inputs_embeds":
            missing[-2] = (0, wanted_length - length)
        filler = pad_token_id if name == "input_ids" else FILLERS.get(name, 0)
        if name.endswith("_positions"):
            array = np.where(array < length, array, filler)  # what was past the end still is
        arrays[name] = np.pad(array, missing, constant_values=filler)
    return arrays


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


def fast_dtype(device: jax.Device) -> str:
    """The type that a device computes fastest in, of those that cost next to no accuracy."""
    return "float32" if device.platform == "cpu" else "bfloat16"  # XLA's products on CPUs are slower in bfloat16


class InferenceModel:
    """A trained model that maps arrays to arrays.

    Args:
        model: in the precision that it has.
        params: its values, by default its own.
        device: where they are, if they were put on one.
    """

    def __init__(
        self, model: PreTrainedModel, params: Mapping[str, Any] | None = None, device: jax.Device | None = None
    ) -> None:
        self.head = model.head
        self.config: Config = model.config
        self.params = model.params if params is None else params
        self.device = device  # None: inputs follow the values, which may be on several
        self.platform = next(iter(jax.tree.leaves(self.params)[0].devices())).platform

        def run(params: Any, inputs: dict[str, Any]) -> dict[str, jax.Array]:
            return dict(model(**inputs, params=params, return_dict=True))

        def score_words(params: Any, inputs: dict[str, Any]) -> dict[str, jax.Array]:
            """``logits`` (B, P, V) at ``places`` (B, P) alone: at every token it is a third of the work."""
            places_BP1 = inputs.pop("places")[..., None]
            scorer: Any = model.with_params(params)
            hidden_BLD = scorer.base_model(**inputs, return_dict=True).last_hidden_state
            return {"logits": scorer.score_words(jnp.take_along_axis(hidden_BLD, places_BP1, 1))}

        self.run, self.score_words = jax.jit(run), jax.jit(score_words)

    @classmethod
    def from_pretrained(
        cls, head: str, name_or_path: str | Path, *, dtype: str | None = None, device: str | None = None, **where: Any
    ) -> InferenceModel:
        """Load a checkpoint.

        Args:
            head: the spec's name for what to compute.
            name_or_path: a folder, or a Hub id.
            dtype: ``"float32"``, ``"bfloat16"``, ``"float16"`` or ``"auto"``: what the device is fastest at.
            device: for example ``"cpu"``, ``"gpu:0"`` or ``"auto"``.
            where: ``revision``, ``cache_dir``, ``local_files_only``, ``token``.

        Raises:
            CheckpointError: the checkpoint is absent, damaged, or was not trained with this head.
            InputError: a device that is not there.
        """
        target = parse_device(device)
        dtype = fast_dtype(target) if dtype == "auto" else dtype
        with jax.default_device(target):
            model, params, report = load(
                head, name_or_path, where=where, dtype=dtype or "float32", _do_init=False, output_loading_info=True
            )
        require_head(report, head, name_or_path)
        return cls(model, params, target)

    def batch_rows(self, length: int) -> int:
        """How many sequences of ``length`` tokens to give at a time: a power of two, as ``__call__`` pads to one."""
        padded = next((bucket for bucket in LENGTHS if bucket >= length), length)
        return 1 << batch_rows(padded, self.head, self.platform == "cpu").bit_length() - 1

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
            InputError: an id outside the vocabulary, a sequence too long for the model, or a full device.
        """
        given = pad(sequences, segments, self.head, self.config, places)
        check_range("input_ids", int(given["input_ids"].min()), int(given["input_ids"].max()), self.config.vocab_size)
        lengths = [bucket for bucket in LENGTHS if bucket <= self.config.max_position_embeddings]
        padded = pad_to_bucket(given, lengths, batch_size=1 << (len(sequences) - 1).bit_length())
        try:
            run = self.run if places is None else self.score_words
            output = run(self.params, jax.device_put(padded, self.device))
            arrays = {name: np.asarray(value, np.float32) for name, value in output.items()}
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise InputError(
                f"{self.device or self.platform}: a batch of {' x '.join(map(str, padded['input_ids'].shape))} tokens "
                "does not fit into its memory; try a smaller batch size"
            ) from None
        return unpad(arrays, places or sequences, self.head)


def parse_device(device: str | None) -> jax.Device:
    """The device that ``device`` names.

    Raises:
        InputError: it is not there.
    """
    if device == "auto":
        return jax.devices()[0]
    kind, _, number = (device or "cpu").partition(":")
    try:
        return dict(enumerate(jax.devices(kind)))[int(number or 0)]
    except (RuntimeError, KeyError, ValueError):
        present = ", ".join(dict.fromkeys(found.platform for found in jax.devices()))
        raise InputError(f"device is {device!r}, which JAX cannot use here; it sees {present}") from None
