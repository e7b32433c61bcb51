"""Numpy in, numpy out: what pipelines ask of a backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distilbert.core.backends import has_bfloat16_products
from distilbert.core.batches import batch_rows
from distilbert.core.checkpoint import require_head
from distilbert.core.config import Config, read_config
from distilbert.core.errors import InputError
from distilbert.core.inputs import check_range
from distilbert.core.outputs import ModelOutput, is_per_token
from distilbert.core.spec import choose_class
from distilbert.pt import heads
from distilbert.pt.encoder import BertModel, DistilBertModel
from distilbert.pt.loading import parse_device, to_array
from distilbert.pt.model import PreTrainedModel
from distilbert.pt.products import Int8Linear, has_layout, quantize

# Parts of a batch for each core, since one that is done first waits for the others at the end of a batch only; fewer
# where these are more than so many in all, as their vectors lie in memory together, but one at least.
PARTS, MOST_PARTS = 4, 64

# By the stem of the family and the head.
MODELS: dict[tuple[str, str], type[PreTrainedModel]] = {
    (model.family.stem, model.head): model
    for model in (
        DistilBertModel,
        heads.DistilBertForMaskedLM,
        heads.DistilBertForSequenceClassification,
        heads.DistilBertForMultipleChoice,
        heads.DistilBertForTokenClassification,
        heads.DistilBertForQuestionAnswering,
        BertModel,
        heads.BertForPreTraining,
        heads.BertForMaskedLM,
        heads.BertForNextSentencePrediction,
        heads.BertForSequenceClassification,
        heads.BertForMultipleChoice,
        heads.BertForTokenClassification,
        heads.BertForQuestionAnswering,
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


def fast_dtype(device: torch.device) -> str:
    """The type that a device computes fastest in, of those that cost next to no accuracy."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if device.type == "cpu" and has_bfloat16_products() else "float32"


class InferenceModel:
    """A trained model that maps arrays to arrays.

    Args:
        model: in evaluation mode from here on; where and in the precision that it is.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        self.head = model.head
        self.is_int8 = any(type(module) is Int8Linear for module in model.modules())

    @classmethod
    def from_pretrained(
        cls, head: str, name_or_path: str | Path, *, dtype: str | None = None, device: str | None = None, **where: Any
    ) -> InferenceModel:
        """Load a checkpoint.

        Args:
            head: the spec's name for what to compute.
            name_or_path: a folder, or a Hub id.
            dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, ``"int8"`` (see ``quantize``) or ``"auto"``: what the
                device is fastest at, less int8.
            device: for example ``"cpu"``, ``"cuda:0"`` or ``"auto"``.
            where: ``revision``, ``cache_dir``, ``local_files_only``, ``token``.

        Raises:
            CheckpointError: the checkpoint is absent, damaged, or was not trained with this head.
            InputError: a device that is not there, or has no int8.
        """
        target = parse_device(device)
        if dtype == "int8" and target.type != "cpu":
            raise InputError(f"dtype is int8, which is for CPUs, not {target}; take bfloat16")
        dtype = fast_dtype(target) if dtype == "auto" else dtype
        options = {"dtype": "float32" if dtype == "int8" else dtype, "device": target, "output_loading_info": True}
        model, report = load(head, name_or_path, where=where, **options)
        require_head(report, head, name_or_path)
        return cls(quantize(model) if dtype == "int8" else model)

    @property
    def config(self) -> Config:
        """The loaded model's config."""
        return self.model.config

    def batch_rows(self, length: int) -> int:
        """How many sequences of ``length`` tokens to give at a time."""
        is_on_cpu, cores = self.model.device.type == "cpu", torch.get_num_threads()
        dtype = self.model.dtype  # asks the parameters
        is_laid_out = has_layout(torch.int8 if self.is_int8 else dtype)
        parts = max(1, min(PARTS, MOST_PARTS // cores)) if cores > 1 and is_laid_out else 1
        return batch_rows(length, self.head, is_on_cpu, dtype.itemsize, cores * parts)

    @torch.inference_mode()
    def __call__(
        self,
        sequences: Sequence[Sequence[int]],
        segments: Sequence[Sequence[int]] | None = None,
        places: Sequence[Sequence[int]] | None = None,
    ) -> list[dict[str, np.ndarray]]:
        """Run one batch, packed unless all are of one length.

        Args:
            sequences: ids of the tokens of each text; for multiple choice, of each choice.
            segments: of the tokens, by default 0; not of DistilBERT.
            places: in each text, at least one, for a masked LM to score words at; by default it does at all tokens.

        Returns:
            Each text's outputs by name, as float32.

        Raises:
            InputError: an id outside the vocabulary, a sequence too long for the model, or a full device.
        """
        given = {"input_ids": np.concatenate(sequences)}
        if segments is not None:
            given["token_type_ids"] = np.concatenate(segments)
        check_range("input_ids", int(given["input_ids"].min()), int(given["input_ids"].max()), self.config.vocab_size)
        cu_seqlens = np.cumsum([0, *map(len, sequences)])
        tensors = {name: torch.from_numpy(array).to(self.model.device) for name, array in given.items()}
        is_rectangle = len(set(map(len, sequences))) == 1
        if is_rectangle:
            shape = (len(sequences), 1, -1) if self.head == "multiple-choice" else (len(sequences), -1)
            tensors = {name: value.view(shape) for name, value in tensors.items()}
        else:
            tensors["cu_seqlens"] = torch.from_numpy(cu_seqlens)
        ends = cu_seqlens
        try:
            if places is None:
                output: ModelOutput = self.model(**tensors, return_dict=True)
            else:
                starts = zip(cu_seqlens[:-1], places, strict=True)
                at = np.concatenate([start + np.asarray(of_text) for start, of_text in starts])
                output = self.score_words(tensors, torch.from_numpy(at).to(self.model.device))
                ends = np.cumsum([0, *map(len, places)])
            arrays = {name: to_array(value.float()) for name, value in output.items()}
        except torch.OutOfMemoryError:
            raise InputError(
                f"{self.model.device}: a batch of {len(given['input_ids'])} tokens does not fit into its memory; "
                "try a smaller batch size"
            ) from None
        is_flat = places is not None or not is_rectangle
        parts = {
            name: np.split(array, ends[1:-1]) if is_flat and is_per_token(name, self.head) else array
            for name, array in arrays.items()
        }
        return [{name: values[number] for name, values in parts.items()} for number in range(len(sequences))]

    def score_words(self, inputs: Mapping[str, torch.Tensor], places_P: torch.Tensor) -> ModelOutput:
        """``logits`` (P, V) at places alone, counted through all texts: at every token it is a third of the work."""
        hidden_TD = self.model.base_model(**inputs, return_dict=True).last_hidden_state.flatten(0, -2)
        return ModelOutput(logits=self.model.score_words(hidden_TD[places_P]))  # type: ignore[operator]
