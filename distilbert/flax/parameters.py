"""Native modules and initial values for the rows of the spec."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from distilbert.core.config import Config
from distilbert.core.errors import InputError
from distilbert.core.spec import FLAX, Kind, Parameter, constant, padding_row, sinusoidal_positions, standard_deviation

Array = jax.Array

_skip_initial_values = ContextVar("skip_initial_values", default=False)


@contextmanager
def no_initial_values() -> Iterator[None]:
    """Within, new models hold shapes only: their values are about to be loaded."""
    token = _skip_initial_values.set(True)
    try:
        yield
    finally:
        _skip_initial_values.reset(token)


@dataclass(frozen=True)
class Precision:
    """The type that a model computes in, and that of its parameters."""

    dtype: Any
    param_dtype: Any


class Fixed(nnx.Variable):
    """A parameter that is never trained: no ``nnx.Param``, so optimisers leave it alone."""


class FromSpec(nnx.Module):
    """A module whose parts are made from rows of the spec, and are called by their role.

    The parts hang at the paths of the spec, in mappings, so the module's state has the layout of transformers' Flax
    checkpoints.
    """

    def __init__(self) -> None:
        self.paths: tuple[tuple[str, str], ...] = ()  # by role; a tuple, because NNX compares what is static

    def add_parts(self, listed: Iterable[Parameter], config: Config, precision: Precision, rngs: nnx.Rngs) -> None:
        """Make the modules of the rows ``listed``, with initial values."""
        for path, group in groupby(listed, key=lambda parameter: parameter.path):
            rows = tuple(group)
            self.paths += ((rows[0].role, path),)
            attach_part(self, rows, make_part(rows, config, precision, rngs))

    def part(self, role: str) -> Any:
        """The module that plays ``role``, for example ``"query"``."""
        return find(self, dict(self.paths)[role])


# The modules and variables that models consist of; none changes when it computes, but for random keys that are drawn.
PURE = {nnx.Dict, nnx.Linear, nnx.LayerNorm, nnx.Embed, nnx.Dropout, nnx.Param, Fixed}
PURE |= {nnx.Rngs, nnx.RngStream, nnx.RngKey, nnx.RngCount}


def is_pure(structure: nnx.GraphDef[Any]) -> bool:
    """Whether a module, told by its ``nnx.graphdef``, consists of nothing but ``PURE`` and classes of this library.

    A copy may then compute in its place. Users' own modules may count, sow or draw at each call: that would be lost.
    """
    types = {node.type for node in structure.nodes if hasattr(node, "type")} - PURE  # second mentions have none
    changing = (each for each in types if issubclass(each, (nnx.Pytree, nnx.Variable)))
    return all(each.__module__.partition(".")[0] == "distilbert" for each in changing)


def find(root: nnx.Module, path: str) -> Any:
    """What hangs at a dotted path below ``root``.

    Raises:
        InputError: nothing does; another module may have been put in the place of one on the way.
    """
    node: Any = root
    way = path.split(".")
    for number, name in enumerate(way):
        try:
            node = getattr(node, name)
        except AttributeError:
            place, found = ".".join(way[:number]) or "the model", type(node).__name__
            raise InputError(f"{place} is a {found}, expected a module that has {name}; put one there") from None
    return node


def attach(root: nnx.Module, path: str, module: nnx.Module | nnx.Variable) -> None:
    """Hang ``module`` at a dotted path below ``root``; what is missing on the way is made."""
    node: Any = root
    *way, last = path.split(".")
    for name in way:
        if not hasattr(node, name):
            setattr(node, name, nnx.Dict())
        node = getattr(node, name)
    setattr(node, last, module)


def attach_part(root: nnx.Module, rows: tuple[Parameter, ...], part: nnx.Module) -> None:
    """Hang the part of some rows below ``root``, and what files keep elsewhere there as well: the same variable."""
    attach(root, rows[0].path, part)
    for row in rows:
        if row.file_path is not None:
            attach(root, f"{row.file_path}.{FLAX.leaves[row.kind]}", variable(part, row))


class TiedLinear(nnx.Module):
    """A dense layer whose kernel is the transpose of an embedding table, which belongs to another module."""

    def __init__(self, size: int, precision: Precision) -> None:
        self.dtype = precision.dtype
        self.bias = nnx.Param(jnp.zeros(size, precision.param_dtype))

    def __call__(self, inputs: Array, table: Array) -> Array:
        """Vectors (…, D) and a table (size, D) to (…, size)."""
        return inputs.astype(self.dtype) @ table.astype(self.dtype).T + self.bias[...].astype(self.dtype)


def make_part(rows: tuple[Parameter, ...], config: Config, precision: Precision, rngs: nnx.Rngs) -> nnx.Module:
    """NNX's own module for one row's parameters, with its initial values."""
    first = rows[0]
    initial = initializer(first, config)

    def make(rngs: nnx.Rngs) -> nnx.Module:
        if first.tied_to is not None:
            return TiedLinear(first.shape[0], precision)
        types = {"dtype": precision.dtype, "param_dtype": precision.param_dtype}
        if first.kind is Kind.WEIGHT:
            size_out, size_in = first.shape
            return nnx.Linear(size_in, size_out, kernel_init=initial, rngs=rngs, **types)
        if first.kind is Kind.NORM_SCALE:
            options: dict[str, Any] = {"epsilon": config.layer_norm_eps, "use_fast_variance": False}
            return nnx.LayerNorm(first.shape[0], rngs=rngs, **options, **types)
        types["dtype"] = precision.param_dtype  # else the whole table would be cast at every call
        return nnx.Embed(*first.shape, embedding_init=initial, rngs=rngs, **types)

    if first.kind is Kind.SINUSOID:
        part: Any = make(rngs)
        part.embedding = Fixed(part.embedding.get_value())
        return part
    # Within eval_shape random keys cannot be taken from outside.
    return nnx.eval_shape(lambda: make(nnx.Rngs(0))) if _skip_initial_values.get() else make(rngs)


def initializer(parameter: Parameter, config: Config) -> Callable[[Array, tuple[int, ...], Any], Array]:
    """What gives a new ``parameter`` the values of the spec, in Flax's orientation."""

    def values(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        if parameter.kind is Kind.SINUSOID:
            return jnp.asarray(sinusoidal_positions(*shape), dtype)
        spread = standard_deviation(parameter, config)
        new = (
            constant(parameter) + spread * jax.random.normal(key, shape, dtype)
            if spread
            else jnp.full(shape, constant(parameter), dtype)
        )
        row = padding_row(parameter, config)
        return new if row is None else new.at[row].set(0)

    return values


def variable(part: nnx.Module, parameter: Parameter) -> nnx.Variable:
    """The variable of a part that holds ``parameter``."""
    return getattr(part, FLAX.leaves[parameter.kind])
