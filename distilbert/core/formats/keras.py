"""``.weights.h5`` and ``.keras`` of our Keras classes, as Keras 3 saves them. Neither Keras nor TensorFlow is needed.

Keras walks through a model and numbers what it meets by class: the output projection of the second layer is
``distilbert/layers/layer_1/parts/dense_3``, with the kernel at ``vars/0`` and the bias at ``vars/1``. Those numbers
follow from the order of the spec's rows. They do not say which head's layer ``layers/dense`` is, but Keras keeps the
layer's own name in an attribute, and that decides on reading.

A ``.keras`` is a zip file of such weights and of a JSON config. Nothing of that config is run or built: only the
model's hyperparameters are taken from it.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from distilbert.core.config import Config
from distilbert.core.errors import CheckpointError
from distilbert.core.formats import DTYPES, finish, h5, hdf5, in_order, map_file, stored_zip
from distilbert.core.spec import FAMILIES, KERAS, KERAS_CLASSES, KERAS_TIED_CLASS, Family, Parameter, parameters

WEIGHTS_FILE, CONFIG_FILE, METADATA_FILE = "model.weights.h5", "config.json", "metadata.json"  # of a .keras
SUFFIX = ".keras"
MAX_CONFIG = 10_000_000  # bytes
PACKAGE = "distilbert"  # under which our classes are registered with Keras
KERAS_VERSION = "3.15.1"  # whose layout this is
FLOATS = ("float32", "float16", "bfloat16", "float64")  # what variables of our classes can be
BFLOAT16 = DTYPES["bfloat16"]


def places(listed: Iterable[Parameter], family: Family) -> Iterator[tuple[Parameter, str, str]]:
    """Each parameter with values of its own, the place of its variable in Keras's file, and the name of its layer."""
    for _, section in groupby(listed, key=lambda row: (row.section, row.layer)):
        counts: Counter[str] = Counter()
        for _, group in groupby(section, key=lambda row: row.path):
            rows = tuple(group)
            kind = KERAS_CLASSES[rows[0].kind] if rows[0].tied_to is None else KERAS_TIED_CLASS
            layer = f"{_container(rows[0], family)}/{numbered(kind, counts[kind])}"
            counts[kind] += 1
            for index, row in enumerate(row for row in rows if row.tied_to is None):
                yield row, f"{layer}/vars/{index}", row.layer_name


def _container(row: Parameter, family: Family) -> str:
    """What holds the layers of a section: the attributes by which Keras comes to them in ``distilbert.tf``."""
    if row.section == "head":
        return "layers"
    prefix = f"{family.prefix}/" if row.section_path.split(".")[0] == family.prefix else ""
    if row.section == "pooler":
        return f"{prefix}layers"
    inner = family.embeddings_path if row.layer is None else f"layers/{numbered('layer', row.layer)}"
    return f"{prefix}{inner}/parts"


def numbered(kind: str, number: int) -> str:
    """How Keras tells layers of one class apart: ``dense``, ``dense_1``, ``dense_2``."""
    return f"{kind}_{number}" if number else kind


def _unnumbered(place: str) -> str:
    return re.sub(r"_\d+(?=/)", "", place)


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """The weights of a ``.weights.h5`` by name, for example ``distilbert/transformer/layer_._0/ffn/lin1/kernel``.

    What is no part of a model, such as the optimizer's state, keeps the name that it has in the file.

    Raises:
        CheckpointError: damaged, or not of our Keras classes.
    """
    data = map_file(path)
    try:
        return _read(data)
    except ValueError as error:
        raise CheckpointError(f"{path}: not a .weights.h5 that can be read: {error}") from None


def read_archive(path: Path) -> dict[str, np.ndarray]:
    """The weights of a ``.keras``; see ``read_weights``."""
    data = map_file(path)
    try:
        return _read(_entry(path, data, WEIGHTS_FILE))
    except ValueError as error:
        raise CheckpointError(f"{path}: not a .keras that can be read: {error}") from None


def read_config(path: Path) -> dict[str, Any]:
    """The hyperparameters in a ``.keras``, as in ``config.json``; ``architectures`` is the class that was saved.

    Raises:
        CheckpointError: damaged, or not of our Keras classes.
    """
    data = map_file(path)
    try:
        text = _entry(path, data, CONFIG_FILE)
        if len(text) > MAX_CONFIG:
            raise ValueError(f"its {CONFIG_FILE} is larger than {MAX_CONFIG} bytes")
        match json.loads(text.tobytes()):
            case {"registered_name": str(name), "config": {"config": dict(values)}}:
                classes = {
                    f"{PACKAGE}>{_class_name(family, head)}": family.class_name(head)
                    for family in FAMILIES
                    for head in family.heads
                }
                if name in classes:
                    return values | {"architectures": [classes[name]]}
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a .keras that can be read: {error!s:.200}") from None
    raise CheckpointError(f"{path}: holds another model than those of {PACKAGE}.tf, expected one of those classes")


def _entry(path: Path, data: np.ndarray, name: str) -> np.ndarray:
    entries = stored_zip.entries(path, data)
    if name not in entries:
        raise ValueError(f"it has no {name}")
    return entries[name]


def variables(data: np.ndarray) -> Iterator[tuple[str, str | None, np.ndarray]]:
    """Every variable in a file of Keras's: its place, what its layer is called where the file says so, its values.

    Raises:
        ValueError: damaged.
    """
    file = hdf5.File(data)
    groups: dict[str, hdf5.Group] = {}
    for place, item in file.items():
        if isinstance(item, hdf5.Group):
            groups[place] = item
        else:
            holder = groups.get(place.rpartition("/")[0])
            yield place, file.text(holder.attributes, b"name") if holder else None, item


def _read(data: np.ndarray) -> dict[str, np.ndarray]:
    # Which layers there are does not depend on the sizes: the table for one layer serves for each.
    known = {
        (_unnumbered(place), layer): row
        for family in FAMILIES
        for is_tied in (True, False)
        for head in family.heads
        for row, place, layer in places(
            parameters(family.config(num_hidden_layers=1, tie_word_embeddings=is_tied), head), family
        )
    }
    named = {place for place, _ in known}
    found = 0
    tensors: dict[str, np.ndarray] = {}
    for place, layer, values in variables(data):
        name = place
        row = known.get((_unnumbered(place), layer or ""))
        if row is not None:
            found += 1
            number = re.search(r"(?:^|/)layers/layer_(\d+)/", place)
            name = KERAS.name(row if row.layer is None or number is None else replace(row, layer=int(number[1])))
        elif layer is None and _unnumbered(place) in named:
            raise ValueError(f"it does not say what {place:.80} is called; save it again with Keras 3.8 or later")
        if name in tensors:
            raise ValueError(f"it holds {name:.80} more than once")
        tensors[name] = values
    if not found:
        raise ValueError(f"it holds no layers of {PACKAGE}.tf (of a KerasHub preset, name the folder)")
    return tensors


def write_weights(path: Path, tensors: Mapping[str, np.ndarray], listed: Iterable[Parameter], family: Family) -> None:
    """Write a ``.weights.h5`` that Keras loads into our class, one tensor in memory at a time.

    Args:
        path: where to.
        tensors: in Keras's layout.
        listed: the model's parameters.
        family: what they belong to.

    Raises:
        CheckpointError: a dtype that variables of our classes do not have.
    """
    write_variables(path, ((place, layer, tensors[KERAS.name(row)]) for row, place, layer in places(listed, family)))


def write_variables(path: Path, written: Iterable[tuple[str, str | None, np.ndarray]]) -> None:
    """Write variables as Keras stores them: the reverse of ``variables``.

    Raises:
        CheckpointError: a dtype that variables of our classes do not have.
    """
    with h5.created(path) as file:
        for place, layer, tensor in written:
            if tensor.dtype.name not in FLOATS:
                raise CheckpointError(
                    f"{path.name}: Keras's files cannot store {place} of dtype {tensor.dtype}; convert it"
                )
            group = file.require_group(place.rpartition("/")[0])
            if layer is not None and "name" not in group.attrs:
                group.attrs["name"] = layer
            values = in_order(tensor)
            if values.dtype == BFLOAT16:  # HDF5 lacks it
                file.create_dataset(place, data=values.view("V2")).attrs["dtype"] = BFLOAT16.name
            else:
                file.create_dataset(place, data=values)
            finish(tensor)


def write_archive(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    listed: Iterable[Parameter],
    family: Family,
    head: str,
    config: Config,
) -> None:
    """Write a ``.keras`` that Keras loads as our class; see ``write_weights``.

    The weights are written beside it first, because HDF5 is not written in one go: that takes their size on disk twice.
    """
    class_name = _class_name(family, head)
    described = {
        "module": f"{PACKAGE}.tf",
        "class_name": class_name,
        "config": {
            "config": config.to_dict(),
            "name": h5.scope(class_name),
            "dtype": policy(tensor.dtype for tensor in tensors.values()),
            "trainable": True,
        },
        "registered_name": f"{PACKAGE}>{class_name}",
        "compile_config": {},
    }
    unpacked = path.with_name(f"{path.name}.{WEIGHTS_FILE}")
    try:
        write_weights(unpacked, tensors, listed, family)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name, content in ((METADATA_FILE, {"keras_version": KERAS_VERSION}), (CONFIG_FILE, described)):
                archive.writestr(zipfile.ZipInfo(name, stored_zip.FIRST_TIME), json.dumps(content))
            entry = zipfile.ZipInfo(WEIGHTS_FILE, stored_zip.FIRST_TIME)
            is_large = unpacked.stat().st_size >= 1 << 31
            with unpacked.open("rb") as weights, archive.open(entry, "w", force_zip64=is_large) as file:
                shutil.copyfileobj(weights, file, 1 << 20)
    finally:
        unpacked.unlink(missing_ok=True)


def policy(dtypes: Iterable[np.dtype]) -> dict[str, Any]:
    """Keras's dtype policy under which variables keep the bits of these types: where they differ, the wider one's."""
    name = np.result_type(*set(dtypes)).name
    return {"module": "keras", "class_name": "DTypePolicy", "config": {"name": name}, "registered_name": None}


def _class_name(family: Family, head: str) -> str:
    return f"TF{family.class_name(head)}"
