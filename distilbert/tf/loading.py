"""Between numpy arrays under canonical names and the variables of a Keras model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from distilbert.core.errors import InputError
from distilbert.core.formats import forget
from distilbert.core.spec import KERAS
from distilbert.tf.parameters import initializer

if TYPE_CHECKING:
    from distilbert.tf.model import PreTrainedModel

DTYPES = ("float32", "float16", "bfloat16", "float64", "mixed_float16", "mixed_bfloat16")


def fill(model: PreTrainedModel, tensors: Mapping[str, np.ndarray]) -> None:
    """Give a model made without initial values its values: the checkpoint's, or initial ones where it has none."""
    for parameter, value in model.variable_list():
        if parameter.name in tensors:
            array = tensors[parameter.name]
            value.assign(array.T if KERAS.is_transposed(parameter) else array)
            forget(array)
        else:
            value.assign(initializer(parameter, model.config)(value.shape, value.dtype))


def to_arrays(model: PreTrainedModel) -> dict[str, np.ndarray]:
    """A model's values by canonical name, in PyTorch's orientation; tied ones once."""
    arrays = {parameter.name: (parameter, to_array(value)) for parameter, value in model.variable_list()}
    return {name: array.T if KERAS.is_transposed(parameter) else array for name, (parameter, array) in arrays.items()}


def to_array(value: Any) -> np.ndarray:
    """A tensor's or a variable's values as an array of the same type."""
    return ops.convert_to_numpy(value)


def parse_dtype(dtype: Any, tensors: Mapping[str, np.ndarray]) -> keras.DTypePolicy:
    """The policy to compute in: Keras's global one unless asked; ``"auto"`` is the type the checkpoint stores.

    Raises:
        InputError: not one of the types a model can have.
    """
    if dtype is None or isinstance(dtype, keras.DTypePolicy):
        return dtype or keras.config.dtype_policy()
    if dtype == "auto":
        dtype = next((array.dtype.name for array in tensors.values()), "float32")
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}, expected auto or one of {', '.join(DTYPES)}")
    return keras.DTypePolicy(dtype)
