"""Opening a checkpoint to look at or to convert: which format it is in, and which head its weights are of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distilbert.conversion import keras_hub
from distilbert.core.checkpoint import FORMATS, pair, read_checkpoint, read_format
from distilbert.core.config import Config, config_from_dict, read_config
from distilbert.core.errors import CheckpointError, InputError
from distilbert.core.formats import keras
from distilbert.core.spec import DISTILBERT, Family, get_head, parameters

# What a checkpoint may be in, and what it may be converted to.
EVERY_FORMAT = FORMATS | {keras_hub.NAME: keras_hub.FORMAT}
NAMES = tuple(EVERY_FORMAT)


@dataclass(frozen=True)
class Source:
    """An opened checkpoint. Nothing of its tensors is read until they are touched, but for msgpack."""

    folder: Path
    path: Path  # of the weights, or of their index
    file_format: str
    config: Config
    tensors: dict[str, np.ndarray]  # as stored
    head: str
    family: Family


def open_source(
    path: str | Path, *, file_format: str | None = None, head: str | None = None, family: Family = DISTILBERT
) -> Source:
    """Open a folder with a checkpoint, or the file of weights in it; a KerasHub preset too.

    Args:
        path: the folder or the file. Files of Keras 3 may have any name that ends as theirs do, and a ``.keras`` needs
            no config beside it.
        file_format: which weights to take where the folder holds several.
        head: what they compute, where their names leave that open.
        family: what they belong to.

    Raises:
        CheckpointError: nothing there, several formats, a damaged file, or a head that cannot be told.
        InputError: an unknown format or head.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if file_format is not None and file_format not in NAMES:
        raise InputError(f"the format is {file_format!r}, expected one of {', '.join(NAMES)}")
    if path.exists() and path.suffix != keras.SUFFIX and keras_hub.is_preset(folder, family):
        return _open_preset(folder, file_format, head, family)
    present = [name for name, form in FORMATS.items() if form.is_in(folder)]
    if path.is_file():
        named = [name for name, form in FORMATS.items() if form.has_name(path)]
        named = named or [name for name, form in FORMATS.items() if form.suffix and path.name.endswith(form.suffix)]
        if not named:
            expected = ", ".join(f"*{form.suffix}" if form.suffix else form.filename for form in FORMATS.values())
            raise CheckpointError(f"{path}: not a name that weights have, expected one of {expected}")
        present = named
    elif not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    if file_format is not None:
        present = [file_format] if file_format in present else []
    if not present:
        wanted = [file_format] if file_format else FORMATS
        expected = " or ".join(FORMATS[name].filename if name in FORMATS else "a KerasHub preset" for name in wanted)
        raise CheckpointError(f"{path}: no weights there; expected {expected}")
    if len(present) > 1:
        names = ", ".join(f"{name} ({FORMATS[name].filename})" for name in present)
        raise CheckpointError(f"{path}: holds weights in several formats, name the one to take: {names}")
    form = FORMATS[present[0]]
    if path.is_file() and path.suffix == keras.SUFFIX:  # which brings its own
        config = config_from_dict(keras.read_config(path))
    else:
        config = read_config(folder)
    found = (form.read(path), path) if path.is_file() and form.suffix else read_format(folder, form)
    assert found is not None
    tensors, weights = found
    if head is None:
        head = detect_head(tensors, config, str(weights), family)
    get_head(family, head)
    return Source(folder, weights, present[0], config, tensors, head, family)


def _open_preset(folder: Path, file_format: str | None, head: str | None, family: Family) -> Source:
    if file_format not in (None, keras_hub.NAME):
        raise CheckpointError(f"{folder}: is a KerasHub preset, expected {FORMATS[str(file_format)].filename}")
    opened = keras_hub.read(folder, family)
    get_head(family, head or opened.head)
    return Source(folder, opened.path, keras_hub.NAME, opened.config, opened.tensors, head or opened.head, family)


def head_of(path: str | Path, config: Config, family: Family = DISTILBERT) -> str:
    """The head of the weights that ``from_pretrained`` takes from a folder or from the Hub; see ``detect_head``."""
    tensors, weights = read_checkpoint(path)
    return detect_head(tensors, config, str(weights), family)


def detect_head(tensors: Mapping[str, np.ndarray], config: Config, source: str, family: Family) -> str:
    """The head that weights are of: the one with the most parameters of which none is missing or misshapen.

    Raises:
        CheckpointError: several fit, and the config's ``architectures`` do not say which.
    """
    fitting: dict[str, int] = {}
    for head in family.heads:
        every = parameters(config, head, family)
        listed = [row for row in every if row.section in ("pooler", "head") and row.tied_to is None]
        stored = pair(tensors, every, source=source, family=family).stored
        shapes = {row.name: sorted(tensors[stored[row.name]].shape) for row in listed if row.name in stored}
        if all(shapes.get(row.name) == sorted(row.shape) for row in listed):
            fitting[head] = len(listed)
    best = [head for head, count in fitting.items() if count == max(fitting.values())]
    if len(best) == 1:
        return best[0]
    named = [
        head for head in best if any(name.endswith(family.class_name(head)) for name in config.architectures or ())
    ]
    if len(named) == 1:
        return named[0]
    raise CheckpointError(f"{source}: fits several heads, name the one it is: {', '.join(best)}")
