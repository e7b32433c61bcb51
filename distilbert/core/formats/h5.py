"""``tf_model.h5``: weights as Keras 2 wrote them for transformers 4. Neither Keras nor TensorFlow is needed.

A whole checkpoint keeps each weight at ``<layer>/<scope>/<name>``, and each layer lists its ``weight_names``; a
shard of a larger one keeps it at ``<name>`` and has no such lists. The scope repeats the model's class, sometimes
with a number, and says nothing. A file may hold a tied weight once under each layer that uses it.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from distilbert.core.errors import CheckpointError
from distilbert.core.formats import finish, hdf5, in_order, map_file, same_bits

# HDF5 keeps an attribute in the object's header, which ends here; Keras splits longer lists over several.
MAX_ATTRIBUTE = 64000


def read(path: Path) -> dict[str, np.ndarray]:
    """The weights by name, without layer, scope and ``:0``: for example ``classifier/kernel``.

    Raises:
        CheckpointError: damaged, unsafe, no Keras weights, or one name with two different values.
    """
    data = map_file(path)
    try:
        return _read(hdf5.File(data))
    except ValueError as error:
        raise CheckpointError(f"{path}: not a tf_model.h5 that can be read: {error}") from None


def _read(file: hdf5.File) -> dict[str, np.ndarray]:
    layers: dict[str, hdf5.Group] = {}
    tensors: dict[str, np.ndarray] = {}
    for full, item in file.items():
        if isinstance(item, hdf5.Group):
            layers[full] = item
            if not full and not _has_list(item, b"layer_names"):
                raise ValueError("it has no layer_names; is it of Keras 3? Then its name ends in .weights.h5")
            continue
        layer, _, below = full.partition("/")
        is_listed = layer in layers and _has_list(layers[layer], b"weight_names")
        name = plain_name(below) if is_listed else full.removesuffix(":0")
        if not name:
            raise ValueError(f"{full:.80} has no scope before its name")
        if name in tensors and not same_bits(tensors[name], item):
            raise ValueError(f"it holds {name:.80} more than once, with different values")
        tensors.setdefault(name, item)
    return tensors


def plain_name(name: str) -> str:
    """A weight's name without its scope and ``:0``."""
    return name.partition("/")[2].removesuffix(":0")


def scoped_name(name: str, scope: str) -> str:
    """The reverse of ``plain_name``."""
    return f"{scope}/{name}:0"


def scope(class_name: str) -> str:
    """The scope of a class's weights: its name in snake case, as Keras 2 names a model."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", class_name).lower()


def _has_list(group: hdf5.Group, attribute: bytes) -> bool:
    """Whether there is a list of names. It is not read: the names are in the file anyway, the list may be damaged."""
    return attribute in group.attributes or attribute + b"0" in group.attributes


@contextmanager
def created(path: Path) -> Iterator[h5py.File]:
    """A new file, in the layout that ``hdf5`` reads.

    Raises:
        OSError: it cannot be written; HDF5 says so in its own words, and as other errors too.
    """
    try:
        with h5py.File(path, "w", libver="earliest") as file:
            yield file
    except (OSError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        found = re.search(r"errno = (\d+)", str(error))
        code = int(found[1]) if found else getattr(error, "errno", None) or errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from error


def write(path: Path, layers: Mapping[str, Mapping[str, np.ndarray]], scope: str) -> None:
    """Write a file that transformers 4 loads with its TensorFlow classes.

    Args:
        path: the file.
        layers: by name of the layer, its weights by name. An array that stands in two layers is stored once.
        scope: what the names begin with, by transformers' habit the class in snake case.

    Raises:
        CheckpointError: a dtype that HDF5 lacks, such as bfloat16.
    """
    for tensors in layers.values():
        _check_storable(path, tensors)
    with created(path) as file:
        file.attrs["backend"] = "tensorflow"
        file.attrs["keras_version"] = "2.19.0"  # whose layout this is
        _put_texts(file, "layer_names", list(layers))
        stored: dict[int, h5py.Dataset] = {}
        for layer, tensors in layers.items():
            group = file.create_group(layer)
            _put_texts(group, "weight_names", [scoped_name(name, scope) for name in tensors])
            for name, tensor in tensors.items():
                if id(tensor) in stored:
                    group[scoped_name(name, scope)] = stored[id(tensor)]
                else:
                    stored[id(tensor)] = group.create_dataset(scoped_name(name, scope), data=in_order(tensor))
                    finish(tensor)


def write_shard(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a part of a checkpoint that is split over several files.

    Raises:
        CheckpointError: a dtype that HDF5 lacks, such as bfloat16.
    """
    _check_storable(path, tensors)
    with created(path) as file:
        _put_texts(file, "layer_names", [f"{name}:0" for name in tensors])
        for name, tensor in tensors.items():
            file.create_dataset(f"{name}:0", data=in_order(tensor))
            finish(tensor)


def _check_storable(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Keras 2 knew numpy's types only."""
    for tensor in tensors.values():
        if tensor.dtype.kind not in "fiub":
            raise CheckpointError(
                f"{path.name}: HDF5 has no {tensor.dtype}; save as safetensors, or load as float32 before saving"
            )


def _put_texts(group: h5py.Group, attribute: str, texts: list[str]) -> None:
    """Store a list of texts, in several attributes where it is too long for one."""
    values = np.array([text.encode("utf-8") for text in texts])
    pieces = max(1, -(-values.nbytes // MAX_ATTRIBUTE))
    for number, piece in enumerate(np.array_split(values, pieces)):
        group.attrs[attribute if pieces == 1 else f"{attribute}{number}"] = piece
