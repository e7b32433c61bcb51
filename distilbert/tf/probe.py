"""Everything that a model computes, as arrays: what comparisons ask of a backend."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from distilbert.core.errors import InputError
from distilbert.core.outputs import flatten
from distilbert.core.spec import KERAS
from distilbert.tf.inference import load, parse_device
from distilbert.tf.loading import to_array, to_arrays
from distilbert.tf.model import PreTrainedModel

ATTENTIONS = ("eager",)


class Probe:
    """A model to look into.

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
        _compute_exactly()
        warnings.filterwarnings("ignore", "You are using a softmax over axis")  # Keras, of texts of one token
        with keras.device(self.device):
            self.model: PreTrainedModel = load(head, name_or_path, dtype=dtype, **overrides)

    def arrays(self) -> dict[str, np.ndarray]:
        """The parameters by canonical name, in PyTorch's orientation, as float32; tied ones once."""
        return {name: value.astype(np.float32) for name, value in to_arrays(self.model).items()}

    def outputs(self, inputs: Mapping[str, np.ndarray], *, details: bool = True) -> dict[str, np.ndarray]:
        """The outputs by name as float32; with ``details`` also ``hidden_states/0``, … and ``attentions/0``, …"""
        with keras.device(self.device):
            output = self.model(**inputs, output_hidden_states=details, output_attentions=details, return_dict=True)
        return {name: to_array(value).astype(np.float32) for name, value in flatten(output).items()}

    def gradients(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The gradient of the loss by canonical name of each trained parameter, as float32.

        Raises:
            InputError: Keras runs on a framework for which this is not written.
        """
        rows = {row: variable for row, variable in self.model.variable_list() if variable.trainable}
        with keras.device(self.device):
            found = zip(rows, _gradients(self.model, inputs, list(rows.values())), strict=True)
        arrays = {
            row: np.zeros(rows[row].shape, np.float32) if gradient is None else to_array(gradient).astype(np.float32)
            for row, gradient in found
        }
        return {row.name: array.T if KERAS.is_transposed(row) else array for row, array in arrays.items()}

    def pull_back(self, inputs: Mapping[str, np.ndarray], cotangents: Mapping[str, np.ndarray]) -> np.ndarray:
        """The gradient with respect to ``inputs_embeds`` (B, L, D) of the sum of outputs times cotangents, as float32.

        Args:
            inputs: as for ``outputs``, with ``inputs_embeds`` in place of ``input_ids``.
            cotangents: by the name of an output, each of its shape.

        Raises:
            InputError: Keras runs on a framework for which this is not written.
        """
        with keras.device(self.device):
            return to_array(_pull_back(self.model, inputs, cotangents)).astype(np.float32)

    def train(
        self, batches: Sequence[Mapping[str, np.ndarray]], *, learning_rate: float, weight_decay: float, epsilon: float
    ) -> list[float]:
        """A step of AdamW for each batch; returns the losses before each. Dropout has to be off in the config."""
        with keras.device(self.device):
            self.model.compile(keras.optimizers.AdamW(learning_rate, weight_decay=weight_decay, epsilon=epsilon))
            losses = []
            for batch in batches:
                self.model.reset_metrics()  # Keras reports a mean over the batches since
                losses.append(float(self.model.train_on_batch(dict(batch))))
            return losses

    def save(self, folder: Path) -> None:
        """Write the model as the framework's users would."""
        self.model.save_pretrained(folder, format="h5" if self.model.variable_dtype != "bfloat16" else "safetensors")


def _compute_exactly() -> None:
    """Keep accelerators from rounding what goes into float32 products to fewer bits."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_tensor_float_32_execution(False)
    elif keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_default_matmul_precision", "highest")


def _gradients(model: PreTrainedModel, inputs: Mapping[str, np.ndarray], variables: list[keras.Variable]) -> list[Any]:
    """As the framework below Keras computes them; Keras itself has no function for it."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = model(**inputs).loss
        # The table's gradient comes as the rows that were looked up.
        return [
            None if found is None else tf.convert_to_tensor(found)
            for found in tape.gradient(loss, [v.value for v in variables])
        ]
    if keras.backend.backend() == "jax":
        import jax

        fixed = [variable.value for variable in model.non_trainable_variables]
        places = {id(variable): number for number, variable in enumerate(model.trainable_variables)}

        def loss(values: list[Any]) -> Any:
            return model.stateless_call(values, fixed, dict(inputs))[0]["loss"]

        found = jax.jit(jax.grad(loss))([variable.value for variable in model.trainable_variables])
        return [found[places[id(variable)]] for variable in variables]
    raise InputError(f"gradients of Keras on {keras.backend.backend()} are not compared, only on tensorflow and jax")


def _pull_back(model: PreTrainedModel, inputs: Mapping[str, np.ndarray], cotangents: Mapping[str, np.ndarray]) -> Any:
    """As the framework below Keras computes it."""
    vectors_BLD = keras.ops.convert_to_tensor(inputs["inputs_embeds"])
    factors = {name: keras.ops.cast(factor, model.compute_dtype) for name, factor in cotangents.items()}
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(vectors_BLD)
            output = model(**{**inputs, "inputs_embeds": vectors_BLD})
        return tape.gradient([output[name] for name in factors], vectors_BLD, list(factors.values()))
    if keras.backend.backend() == "jax":
        import jax

        variables = [
            [variable.value for variable in kind] for kind in (model.trainable_variables, model.non_trainable_variables)
        ]

        def compute(vectors_BLD: Any) -> dict[str, Any]:
            output = model.stateless_call(*variables, {**inputs, "inputs_embeds": vectors_BLD})[0]
            return {name: output[name] for name in factors}

        return jax.vjp(compute, vectors_BLD)[1](factors)[0]
    raise InputError(f"gradients of Keras on {keras.backend.backend()} are not written, only on tensorflow and jax")
