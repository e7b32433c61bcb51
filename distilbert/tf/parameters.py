"""Native layers and initial values for the rows of the spec."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import groupby
from typing import Any

import keras
import numpy as np
from keras import ops

from distilbert.core.config import Config
from distilbert.core.spec import KERAS, Kind, Parameter, constant, padding_row, sinusoidal_positions, standard_deviation

Tensor = Any

_skip_initial_values = ContextVar("skip_initial_values", default=False)


@contextmanager
def no_initial_values() -> Iterator[None]:
    """Within, new models hold anything: their values are about to be loaded."""
    token = _skip_initial_values.set(True)
    try:
        yield
    finally:
        _skip_initial_values.reset(token)


class FromSpec(keras.layers.Layer):
    """A layer whose parts are made from rows of the spec, and are called by their role."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.parts: dict[str, keras.layers.Layer] = {}  # by the spec's path
        self.paths: dict[str, str] = {}
        self.built = True  # the parts are, as soon as they are made

    def add_parts(
        self, listed: Iterable[Parameter], config: Config, tied_table: Callable[[], Any] | None = None
    ) -> None:
        """Make the layers of the rows ``listed``, with initial values."""
        for path, group in groupby(listed, key=lambda parameter: parameter.path):
            rows = tuple(group)
            self.paths[rows[0].role] = path
            with keras.name_scope(self.name):  # gives every variable a path of its own
                self.parts[path] = make_part(rows, config, self.dtype_policy, tied_table)

    def part(self, role: str) -> keras.layers.Layer:
        """The layer that plays ``role``, for example ``"query"``."""
        return self.parts[self.paths[role]]


class Embedding(keras.layers.Embedding):
    """Keras's, with a gradient for the whole table.

    On TensorFlow the gradient is otherwise a list of the rows looked up. Keras 3's Adam takes a row that is twice in
    the list for two, whose squares it adds up where it should square their sum, and leaves the moments of all other
    rows as they were: not what it computes on JAX, nor what PyTorch and Optax do.
    """

    def call(self, inputs: Tensor) -> Tensor:
        """Ids of any shape to vectors (…, D)."""
        table = self.embeddings
        if keras.backend.backend() == "tensorflow":
            table = _with_whole_gradient(table)
        return ops.cast(ops.take(table, inputs, axis=0), self.compute_dtype)


class FixedEmbedding(Embedding):
    """A table that is never trained, whoever unfreezes what it belongs to."""

    def add_weight(self, *arguments: Any, **options: Any) -> keras.Variable:
        """As every layer's, for a variable that no optimiser is given."""
        return super().add_weight(*arguments, **{**options, "trainable": False})


def _with_whole_gradient(table: Tensor) -> Tensor:
    import tensorflow as tf

    same = tf.custom_gradient(lambda value: (tf.identity(value), tf.convert_to_tensor))
    return same(tf.convert_to_tensor(table))


@keras.saving.register_keras_serializable("distilbert")
class TiedDense(keras.layers.Layer):
    """A dense layer whose kernel is the transpose of an embedding table that belongs to another layer.

    Args:
        units: rows of the table.
        table: gives the table (units, D), anew at each call, as it may have been replaced.
    """

    def __init__(self, units: int, table: Callable[[], Any], **options: Any) -> None:
        super().__init__(**options)
        self.table = table
        self.bias = self.add_weight(shape=(units,), initializer="zeros", name="bias")
        self.built = True

    def call(self, inputs: Tensor) -> Tensor:
        """Vectors (N, D) to (N, units)."""
        return ops.matmul(inputs, ops.transpose(self.table())) + self.bias


def make_part(
    rows: tuple[Parameter, ...], config: Config, dtype: Any, tied_table: Callable[[], Any] | None = None
) -> keras.layers.Layer:
    """Keras's own layer for one row's parameters, with its initial values."""
    first = rows[0]
    options = {"name": first.layer_name, "dtype": dtype}
    initial = {row.kind: initializer(row, config) for row in rows}
    if first.tied_to is not None:
        assert tied_table is not None
        return TiedDense(first.shape[0], tied_table, **options)
    part: keras.layers.Layer
    if first.kind is Kind.WEIGHT:
        part = keras.layers.Dense(first.shape[0], kernel_initializer=initial[Kind.WEIGHT], **options)
        part.build((None, first.shape[1]))
    elif first.kind is Kind.NORM_SCALE:
        part = keras.layers.LayerNormalization(epsilon=config.layer_norm_eps, **options)
        part.build((None, *first.shape))
    else:
        table = FixedEmbedding if first.kind is Kind.SINUSOID else Embedding
        part = table(*first.shape, embeddings_initializer=initial[first.kind], **options)
        part.build((None, None))
    return part


def initializer(parameter: Parameter, config: Config) -> Callable[..., Any]:
    """What gives a new ``parameter`` the values of the spec, in Keras's orientation."""
    if _skip_initial_values.get():
        return _unset
    if parameter.kind is Kind.SINUSOID:
        return lambda shape, dtype: ops.convert_to_tensor(sinusoidal_positions(*shape), dtype)
    normal = keras.initializers.RandomNormal(constant(parameter), standard_deviation(parameter, config))
    if (row := padding_row(parameter, config)) is not None:
        keep = np.ones((parameter.shape[0], 1), bool)
        keep[row] = False
        return lambda shape, dtype: ops.where(keep, normal(shape, dtype), ops.zeros((), dtype))
    return normal


def _unset(shape: tuple[int, ...], dtype: Any) -> Tensor:
    """Memory that is not written to, and so not taken from the system, until it is loaded."""
    if keras.backend.backend() != "tensorflow":
        return ops.zeros(shape, dtype)
    import tensorflow as tf

    return tf.raw_ops.Empty(shape=shape, dtype=dtype)


def variable(part: keras.layers.Layer, parameter: Parameter) -> keras.Variable:
    """The variable of a part that holds ``parameter``."""
    return getattr(part, KERAS.leaves[parameter.kind])


def replace_part(section: FromSpec, path: str, part: keras.layers.Layer) -> None:
    """Put ``part`` in the place of the one at ``path``. The order stays: Keras's files rely on it."""
    parts = {**section.parts, path: part}
    section.parts.clear()
    section.parts.update(parts)
