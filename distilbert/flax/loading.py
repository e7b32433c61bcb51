"""Between numpy arrays under canonical names and the parameters of a Flax model, as variables or as nested mappings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from distilbert.core.errors import InputError
from distilbert.core.formats import forget
from distilbert.core.spec import FLAX, Kind, Parameter
from distilbert.flax.parameters import initializer

if TYPE_CHECKING:
    from distilbert.flax.model import PreTrainedModel

DTYPES = ("float32", "float16", "bfloat16", "float64")


def fill(model: PreTrainedModel, tensors: Mapping[str, np.ndarray]) -> None:
    """Give a model made without initial values its values: the checkpoint's, or initial ones where it has none."""
    for parameter, value in model.variable_list():
        if parameter.name in tensors:
            array = tensors[parameter.name]
            copied = jnp.asarray(array.T if FLAX.is_transposed(parameter) else array, value.dtype)
            value.set_value(copied.block_until_ready())  # else the pages of all would be there at once
            forget(array)
        else:
            value.set_value(initializer(parameter, model.config)(model.rngs.params(), value.shape, value.dtype))


def to_arrays(model: PreTrainedModel, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Values by canonical name, in PyTorch's orientation; tied ones once. What ``params`` lacks is the model's own."""
    flat = flatten(params)
    arrays: dict[str, np.ndarray] = {}
    for parameter, value in model.variable_list():
        name = FLAX.name(parameter)
        array = np.asarray(flat[name] if name in flat else value.get_value())
        arrays[parameter.name] = array.T if FLAX.is_transposed(parameter) else array
    return arrays


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with ``/`` between the names."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        flat |= flatten(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def check_params(listed: Iterable[Parameter], params: Mapping[str, Any]) -> dict[str, Any]:
    """The values of nested ``params`` by their full names, once they are those of the parameters ``listed``.

    Sinusoidal positions may be absent: transformers has none among its own, and no optimiser trains them.

    Raises:
        InputError: leaves are missing, unknown, or of another shape; all are named.
    """
    if not isinstance(params, Mapping):
        raise InputError(f"params is a {type(params).__name__}, expected nested mappings as model.params gives them")
    flat = flatten(params)
    listed = tuple(listed)
    expected = {FLAX.name(p): p.shape[::-1] if FLAX.is_transposed(p) else p.shape for p in listed if not p.tied_to}
    fixed = {FLAX.name(p) for p in listed if p.kind is Kind.SINUSOID}
    problems = [f"{name} is missing" for name in expected if name not in flat and name not in fixed]
    problems += [f"{name} is not part of this model" for name in flat if name not in expected]
    for name in expected.keys() & flat.keys():
        if np.shape(flat[name]) != expected[name]:
            problems.append(f"{name} has shape {np.shape(flat[name])}, expected {expected[name]}")
    if problems:
        more = f" and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise InputError(f"params: {'; '.join(problems[:20])}{more}")
    return flat


def parse_dtype(dtype: Any, tensors: Mapping[str, np.ndarray] | None = None) -> Any:
    """The type that ``dtype`` names, float32 for None; ``"auto"`` is the one that the checkpoint stores.

    Raises:
        InputError: not one of the types a model can have.
    """
    if dtype == "auto" and tensors is not None:
        dtype = next((array.dtype.name for array in tensors.values()), "float32")
    try:
        parsed = jnp.dtype("float32" if dtype is None else dtype)
    except TypeError:
        parsed = None
    if parsed is None or parsed.name not in DTYPES:
        raise InputError(f"dtype is {dtype!r}, expected {'auto or ' if tensors else ''}one of {', '.join(DTYPES)}")
    return parsed
