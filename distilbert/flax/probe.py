"""Everything that a model computes, as arrays: what comparisons ask of a backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from distilbert.core.outputs import flatten
from distilbert.flax.inference import load, parse_device
from distilbert.flax.loading import to_arrays
from distilbert.flax.model import PreTrainedModel

ATTENTIONS = ("eager",)


class Probe:
    """A model to look into; everything is compiled.

    Args:
        head: the spec's name for what to compute.
        name_or_path: a folder, or a Hub id.
        dtype: of parameters and computation.
        device: for example ``"cpu"`` or ``"gpu:0"``.
        attention: one of ``ATTENTIONS``.
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
        self.device = parse_device(device)
        with jax.default_device(self.device):
            self.model: PreTrainedModel = load(head, name_or_path, dtype=dtype, param_dtype=dtype, **overrides)
        self.params = self.model.params
        self.compiled = jax.jit(self.compute, static_argnames="details")
        self.differentiated = jax.jit(jax.grad(lambda params, inputs: self.compute(params, inputs)["loss"]))
        self.pulled_back = jax.jit(self.compute_back)

    def compute(self, params: Any, inputs: Mapping[str, Any], details: bool = False) -> dict[str, Any]:
        """The outputs, as a function of the parameters."""
        # Accelerators otherwise round what goes into float32 products to fewer bits.
        with jax.default_matmul_precision("highest"):
            output = self.model(
                **inputs, params=params, output_hidden_states=details, output_attentions=details, return_dict=True
            )
        return dict(output)

    def compute_back(self, params: Any, inputs: Mapping[str, Any], cotangents: Mapping[str, Any]) -> Any:
        """The gradient with respect to ``inputs_embeds``, as a function of the parameters."""

        def outputs(vectors_BLD: Any) -> dict[str, Any]:
            output = self.compute(params, {**inputs, "inputs_embeds": vectors_BLD})
            return {name: output[name] for name in cotangents}

        values, pull = jax.vjp(outputs, inputs["inputs_embeds"])
        return pull({name: factor.astype(values[name].dtype) for name, factor in cotangents.items()})[0]

    def arrays(self) -> dict[str, np.ndarray]:
        """The parameters by canonical name, in PyTorch's orientation, as float32; tied ones once."""
        return {name: np.asarray(value, np.float32) for name, value in to_arrays(self.model, self.params).items()}

    def outputs(self, inputs: Mapping[str, np.ndarray], *, details: bool = True) -> dict[str, np.ndarray]:
        """The outputs by name as float32; with ``details`` also ``hidden_states/0``, … and ``attentions/0``, …"""
        output = self.compiled(self.params, jax.device_put(dict(inputs), self.device), details=details)
        return {name: np.asarray(value, np.float32) for name, value in flatten(output).items()}

    def gradients(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The gradient of the loss by canonical name of each trained parameter, as float32."""
        found = to_arrays(self.model, self.differentiated(self.params, jax.device_put(dict(inputs), self.device)))
        trained = {row.name for row, _ in self.model.trained_list()}
        return {name: np.asarray(value, np.float32) for name, value in found.items() if name in trained}

    def pull_back(self, inputs: Mapping[str, np.ndarray], cotangents: Mapping[str, np.ndarray]) -> np.ndarray:
        """The gradient with respect to ``inputs_embeds`` (B, L, D) of the sum of outputs times cotangents, as float32.

        Args:
            inputs: as for ``outputs``, with ``inputs_embeds`` in place of ``input_ids``.
            cotangents: by the name of an output, each of its shape.
        """
        arrays = jax.device_put((dict(inputs), dict(cotangents)), self.device)
        return np.asarray(self.pulled_back(self.params, *arrays), np.float32)

    def train(
        self, batches: Sequence[Mapping[str, np.ndarray]], *, learning_rate: float, weight_decay: float, epsilon: float
    ) -> list[float]:
        """A step of AdamW for each batch, without dropout; returns the losses before each."""
        optimizer = optax.adamw(learning_rate, weight_decay=weight_decay, eps=epsilon)
        state = optimizer.init(self.params)

        @partial(jax.jit, donate_argnums=1)
        def step(params: Any, state: Any, batch: Mapping[str, Any]) -> tuple[Any, Any, Any]:
            loss, gradients = jax.value_and_grad(lambda params: self.compute(params, batch)["loss"])(params)
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state, loss

        losses = []
        for batch in batches:
            self.params, state, loss = step(self.params, state, jax.device_put(dict(batch), self.device))
            losses.append(float(loss))
        return losses

    def save(self, folder: Path) -> None:
        """Write the model as the framework's users would."""
        self.model.save_pretrained(folder, params=self.params, format="msgpack")
