"""Everything that a model computes, as arrays: what comparisons ask of a backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distilbert.core.outputs import flatten
from distilbert.pt.inference import load
from distilbert.pt.loading import to_array
from distilbert.pt.model import PreTrainedModel

ATTENTIONS = ("eager", "sdpa")


class Probe:
    """A model to look into.

    Args:
        head: the spec's name for what to compute.
        name_or_path: a folder, or a Hub id.
        dtype: of parameters and computation.
        device: for example ``"cpu"`` or ``"cuda:0"``.
        attention: one of ``ATTENTIONS``. Only the first gives attentions.
        overrides: config fields.
    """

    def __init__(
        self,
        head: str,
        name_or_path: str | Path,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        attention: str = ATTENTIONS[0],
        **overrides: Any,
    ) -> None:
        self.model: PreTrainedModel = load(
            head, name_or_path, dtype=dtype, device=device, attn_implementation=attention, **overrides
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """The parameters by canonical name, in PyTorch's orientation, as float32; tied ones once."""
        listed = [row for row in self.model.parameter_list() if row.tied_to is None]
        return {row.name: to_array(self.model.get_parameter(row.name).float()) for row in listed}

    @torch.inference_mode()
    def outputs(self, inputs: Mapping[str, np.ndarray], *, details: bool = True) -> dict[str, np.ndarray]:
        """The outputs by name as float32; with ``details`` also ``hidden_states/0``, … and ``attentions/0``, …"""
        has_attentions = details and self.model.attn_implementation == ATTENTIONS[0]
        output = self.model(
            **self.tensors(inputs), output_hidden_states=details, output_attentions=has_attentions, return_dict=True
        )
        return {name: to_array(value.float()) for name, value in flatten(output).items()}

    def gradients(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The gradient of the loss by canonical name of each trained parameter, as float32."""
        self.model.zero_grad()
        self.model(**self.tensors(inputs)).loss.backward()
        named = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        found = {name: torch.zeros_like(value) if value.grad is None else value.grad for name, value in named.items()}
        return {name: to_array(value.float()) for name, value in found.items()}

    def pull_back(self, inputs: Mapping[str, np.ndarray], cotangents: Mapping[str, np.ndarray]) -> np.ndarray:
        """The gradient with respect to ``inputs_embeds`` (B, L, D) of the sum of outputs times cotangents, as float32.

        Args:
            inputs: as for ``outputs``, with ``inputs_embeds`` in place of ``input_ids``.
            cotangents: by the name of an output, each of its shape.
        """
        tensors = self.tensors(inputs)
        vectors_BLD = tensors["inputs_embeds"].requires_grad_()
        output = self.model(**tensors, return_dict=True)
        wanted = [output[name] for name in cotangents]
        factors = [factor.to(self.model.dtype) for factor in self.tensors(cotangents).values()]
        (found_BLD,) = torch.autograd.grad(wanted, vectors_BLD, factors)
        return to_array(found_BLD.float())

    def train(
        self, batches: Sequence[Mapping[str, np.ndarray]], *, learning_rate: float, weight_decay: float, epsilon: float
    ) -> list[float]:
        """A step of AdamW for each batch, without dropout; returns the losses before each."""
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=learning_rate, weight_decay=weight_decay, eps=epsilon)
        losses = []
        for batch in batches:
            optimizer.zero_grad()
            loss = self.model(**self.tensors(batch)).loss
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    def save(self, folder: Path) -> None:
        """Write the model as the framework's users would."""
        self.model.save_pretrained(folder)

    def tensors(self, inputs: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """The inputs where the model is."""
        return {
            name: torch.from_numpy(np.ascontiguousarray(value)).to(self.model.device) for name, value in inputs.items()
        }
