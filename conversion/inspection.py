"""What a checkpoint is, without loading it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distilbert.conversion.source import open_source
from distilbert.core.checkpoint import pair
from distilbert.core.spec import parameters

OWN_FIELDS = ("architectures", "dtype", "extra")  # of a file rather than of a model


@dataclass(frozen=True)
class Inspection:
    """What ``inspect`` found."""

    path: Path  # the file of weights, or their index
    file_format: str
    family: str
    head: str
    parameters: int  # numbers, tied ones once
    dtypes: dict[str, int]  # how many tensors have each
    size: int  # of the tensors, bytes
    tied: dict[str, str]  # canonical names, and what they are tied to
    missing: tuple[str, ...]  # canonical names
    unused: tuple[str, ...]  # stored names
    config: dict[str, Any]  # where it differs from the default


def inspect(path: str | Path, *, file_format: str | None = None, head: str | None = None) -> Inspection:
    """Look at a checkpoint.

    Args:
        path: a folder, or the file of weights in it.
        file_format: which weights to look at where the folder holds several.
        head: what they compute, where their names leave that open.

    Raises:
        CheckpointError: nothing there, several formats, a damaged file, or a head that cannot be told.
        InputError: an unknown format or head.
    """
    source = open_source(path, file_format=file_format, head=head)
    listed = parameters(source.config, source.head, source.family)
    pairing = pair(source.tensors, listed, source=str(source.path), family=source.family)
    own = [source.tensors[name] for name in pairing.stored.values()]
    default, config = type(source.config)().to_dict(), source.config.to_dict()
    return Inspection(
        path=source.path,
        file_format=source.file_format,
        family=source.family.stem,
        head=source.head,
        parameters=sum(tensor.size for tensor in own),
        dtypes=dict(Counter(tensor.dtype.name for tensor in own)),
        size=sum(tensor.nbytes for tensor in own),
        tied={row.name: row.tied_to for row in listed if row.tied_to is not None},
        missing=tuple(row.name for row in listed if row.tied_to is None and row.name not in pairing.stored),
        unused=tuple(pairing.unused),
        config={name: value for name, value in config.items() if default.get(name) != value and name not in OWN_FIELDS},
    )
