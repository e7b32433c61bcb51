"""``tf_model.h5``: weights as Keras 2 wrote them for transformers 4. Neither Keras nor TensorFlow is needed.

A whole checkpoint keeps each weight at ``<layer>/<scope>/<name>``, and each layer lists its ``weight_names``; a
shard of a larger one keeps it at ``<name>`` and has no such lists. The scope repeats the model's class, sometimes
with a number, and says nothing. A file may hold a tied weight once under each layer that uses it.

HDF5 can also point at other files, at itself, and at sizes that are not there; what a Keras file never does is
refused here before the HDF5 library follows it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np

from distilbert.core.errors import CheckpointError
from distilbert.core.formats import DTYPES, map_file

MAX_DEPTH = 32
OLDEST_LAYOUT = b"\x89HDF\r\n\x1a\n\x00"  # the signature and superblock version 0
# HDF5 keeps an attribute in the object's header, which ends here; Keras splits longer lists over several.
MAX_ATTRIBUTE = 64000


def read(path: Path) -> dict[str, np.ndarray]:
    """The weights by name, without layer, scope and ``:0``: for example ``classifier/kernel``.

    Raises:
        CheckpointError: damaged, unsafe, no Keras weights, or one name with two different values.
    """
    data = map_file(path)
    if data[:9].tobytes() != OLDEST_LAYOUT:
        raise CheckpointError(f"{path}: is no HDF5 file of the layout that Keras 2 and h5py write by default")
    try:
        with h5py.File(path, "r") as file:
            if not _has_list(file, "layer_names"):
                raise CheckpointError(
                    f"{path}: has no layer_names, expected a tf_model.h5 as transformers writes it; "
                    "a .weights.h5 of Keras 3 is loaded with model.load_weights"
                )
            tensors: dict[str, np.ndarray] = {}
            for full, dataset in _datasets(file["/"], path):
                layer, _, below = full.partition("/")
                name = plain_name(below) if _has_list(file[layer], "weight_names") else full.removesuffix(":0")
                tensor = _array(dataset, data, path)
                if name in tensors and not _same(tensors[name], tensor):
                    raise CheckpointError(f"{path}: holds {name} more than once, with different values")
                tensors.setdefault(name, tensor)
    except CheckpointError:
        raise
    except Exception as error:  # HDF5 and h5py have many ways to stumble over a damaged file
        raise CheckpointError(f"{path}: not a readable HDF5 file ({' '.join(str(error).split())})") from None
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


def _has_list(item: h5py.HLObject, attribute: str) -> bool:
    """Whether there is a list of names. It is not read: the names are in the file anyway, the list may be damaged."""
    return attribute in item.attrs or f"{attribute}0" in item.attrs


def _datasets(root: h5py.Group, path: Path) -> Iterator[tuple[str, h5py.Dataset]]:
    """Every dataset with its full name. Links to other files and loops are refused."""
    pending = [("", root, 0)]
    seen: set[int] = set()
    while pending:
        prefix, group, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise CheckpointError(f"{path}: its groups are nested deeper than {MAX_DEPTH}, or in a circle")
        address = h5py.h5o.get_info(group.id).addr
        if address in seen:
            raise CheckpointError(f"{path}: reaches a group by two ways, or in a circle")
        seen.add(address)
        for key in group:
            if key in ("", ".", "..") or "/" in key or not key.isprintable():
                raise CheckpointError(f"{path}: holds the name {key!r:.80}, expected plain ones")
            name = posixpath.join(prefix, key)
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise CheckpointError(
                    f"{path}: {name} is a link, maybe to another file, expected the weights themselves"
                )
            item = group[key]
            if isinstance(item, h5py.Group):
                pending.append((name, item, depth + 1))
            elif isinstance(item, h5py.Dataset):
                yield name, item
            else:
                raise CheckpointError(f"{path}: {name} is neither a group nor a dataset")


def _array(dataset: h5py.Dataset, data: np.ndarray, path: Path) -> np.ndarray:
    """A dataset's values: a view of the mapped file where they lie there in one piece, as Keras writes them."""
    if dataset.is_virtual or dataset.external is not None:
        raise CheckpointError(f"{path}: {dataset.name} is kept in another file, expected it in this one")
    if dataset.dtype.newbyteorder("<") not in DTYPES.values():
        raise CheckpointError(f"{path}: {dataset.name} has dtype {dataset.dtype}, expected one of {', '.join(DTYPES)}")
    shape = dataset.shape
    if shape is None:
        raise CheckpointError(f"{path}: {dataset.name} is empty, expected values")
    size = int(np.prod(shape, dtype=object)) * dataset.dtype.itemsize
    offset = dataset.id.get_offset()
    if offset is not None:
        if offset + size > len(data) or dataset.id.get_storage_size() != size:
            raise CheckpointError(f"{path}: {dataset.name} ends after the file does; download it again")
        return data[offset : offset + size].view(dataset.dtype).reshape(shape)
    if size:
        raise CheckpointError(f"{path}: {dataset.name} is chunked, compressed or not there, expected it in one piece")
    return np.zeros(shape, dataset.dtype)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays agree bit for bit."""
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


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
    with h5py.File(path, "w") as file:
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
                    stored[id(tensor)] = group.create_dataset(scoped_name(name, scope), data=tensor)


def write_shard(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a part of a checkpoint that is split over several files.

    Raises:
        CheckpointError: a dtype that HDF5 lacks, such as bfloat16.
    """
    _check_storable(path, tensors)
    with h5py.File(path, "w") as file:
        _put_texts(file, "layer_names", [f"{name}:0" for name in tensors])
        for name, tensor in tensors.items():
            file.create_dataset(f"{name}:0", data=tensor)


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
