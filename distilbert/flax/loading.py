"""Between numpy arrays under canonical names and the parameters of a Flax model, as variables or as nested mappings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from distilbert.core.errors import InputError
from distilbert.core.spec import FLAX, Parameter
from distilbert.flax.parameters import initializer

if TYPE_CHECKING:
    from distilbert.flax.model import PreTrainedModel

DTYPES = ("float32", "float16", "bfloat16", "float64")


def fill(model: PreTrainedModel, tensors: Mapping[str, np.ndarray]) -> None:
    """Give a model made without initial values its values: the checkpoint's, or initial ones where it has none."""
    for parameter, value in model.variable_list():
        if parameter.name in tensors:
            array = tensors[parameter.name]
            value.set_value(jnp.asarray(array.T if FLAX.is_transposed(parameter) else array, value.dtype))
        else:
            value.set_value(initializer(parameter, model.config)(model.rngs.params(), value.shape, value.dtype))


def to_arrays(listed: Iterable[Parameter], params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Values by canonical name, in PyTorch's orientation; tied ones once."""
    flat = flatten(params)
    arrays = {p.name: (p, np.asarray(flat[FLAX.name(p)])) for p in listed if p.tied_to is None}
    return {name: array.T if FLAX.is_transposed(p) else array for name, (p, array) in arrays.items()}


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with ``/`` between the names."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        flat |= flatten(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of ``flatten``."""
    params: dict[str, Any] = {}
    for name, value in flat.items():
        *way, leaf = name.split("/")
        node = params
        for part in way:
            node = node.setdefault(part, {})
        node[leaf] = value
    return params


def check_params(listed: Iterable[Parameter], params: Mapping[str, Any]) -> dict[str, Any]:
    """The values of nested ``params`` by their full names, once they are those of the parameters ``listed``.

    Raises:
        InputError: leaves are missing, unknown, or of another shape; all are named.
    """
    if not isinstance(params, Mapping):
        raise InputError(f"params is a {type(params).__name__}, expected nested mappings as model.params gives them")
    flat = flatten(params)
    expected = {FLAX.name(p): p.shape[::-1] if FLAX.is_transposed(p) else p.shape for p in listed if not p.tied_to}
    problems = [f"{name} is missing" for name in expected if name not in flat]
    problems += [f"{name} is not part of this model" for name in flat if name not in expected]
    for name in expected.keys() & flat.keys():
        if np.shape(flat[name]) != expected[name]:
            problems.append(f"{name} has shape {np.shape(flat[name])}, expected {expected[name]}")
    if problems:
        more = f" and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise InputError(f"params: {'; '.join(problems[:20])}{more}")
    return flat


def parse_dtype(dtype: Any, tensors: Mapping[str, np.ndarray] | None = None) -> Any:
    """The type that ``dtype`` names; ``"auto"`` is the one that the checkpoint stores.

    Raises:
        InputError: not one of the types a model can have.
    """
    if dtype == "auto" and tensors is not None:
        dtype = next((array.dtype.name for array in tensors.values()), "float32")
    try:
        parsed = jnp.dtype(dtype)
    except TypeError:
        parsed = None
    if parsed is None or parsed.name not in DTYPES:
        raise InputError(f"dtype is {dtype!r}, expected auto or one of {', '.join(DTYPES)}")
    return parsed
