"""The safetensors container: a JSON header that says where each tensor lies, then the bytes.

Format: https://huggingface.co/docs/safetensors. The ``safetensors`` package is the reference, and the tests
hold this module to it, but its numpy side does not do what is needed here (seen in 0.8): it copies every
tensor, float8 ends in an AttributeError, a name given twice goes unnoticed, and an array that is not
contiguous, such as a transposed weight, is stored as wrong numbers without a word.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distilbert.core.errors import CheckpointError
from distilbert.core.formats import DTYPES, finish, map_file, pieces

MAX_HEADER = 100_000_000  # bytes; the reference reader's limit
METADATA = "__metadata__"

DTYPE_NAMES = {
    **{"BOOL": "bool", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"},
    **{"U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64"},
    **{"F16": "float16", "F32": "float32", "F64": "float64", "BF16": "bfloat16", "C64": "complex64"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E8M0": "float8_e8m0fnu"},
    **{"F8_E5M2": "float8_e5m2", "F8_E5M2FNUZ": "float8_e5m2fnuz"},
}
NAMES_BY_DTYPE = {DTYPES[dtype]: name for name, dtype in DTYPE_NAMES.items()}


def read(path: Path) -> dict[str, np.ndarray]:
    """Read a safetensors file; see ``distilbert.core.formats``."""
    data = map_file(path)
    try:
        return _read(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected a safetensors file, but {error!s:.300}; download it again") from error


def _read(data: np.ndarray) -> dict[str, np.ndarray]:
    length = int.from_bytes(data[:8].tobytes(), "little")
    if len(data) < 8 or length > min(len(data) - 8, MAX_HEADER):
        raise ValueError(f"its header would be {length} bytes long in a file of {len(data)}")
    header = json.loads(data[8 : 8 + length].tobytes().decode(), object_pairs_hook=_without_duplicates)
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    header.pop(METADATA, None)

    content = data[8 + length :]
    spans = [(*_span(name, entry), name) for name, entry in header.items()]
    tensors = {}
    position = 0
    for start, end, name in sorted(spans, key=lambda span: span[:2]):
        if end > len(content):
            raise ValueError(f"tensor {name!r:.80} is said to end at byte {end}, but only {len(content)} are there")
        if start != position:
            raise ValueError(f"tensor {name!r:.80} is said to begin at byte {start}, where {position} would follow")
        position = end
        dtype = DTYPES[DTYPE_NAMES[header[name]["dtype"]]]
        tensors[name] = content[start:end].view(dtype).reshape(header[name]["shape"])
    if position != len(content):
        raise ValueError(f"its tensors end at byte {position} of {len(content)}")
    return tensors


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("its header has a name twice")
    return fields


def _span(name: str, entry: object) -> tuple[int, int]:
    """Where an entry of the header says its bytes lie, once the entry agrees with itself."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(end)]}:
            if dtype not in DTYPE_NAMES:
                raise ValueError(f"tensor {name!r:.80} has the unknown dtype {dtype!r:.80}")
            # numpy's own limits: 64 dimensions, and a size that fits even with the empty dimensions left out
            if len(shape) <= 64 and all(type(size) is int and size >= 0 for size in shape):
                itemsize = DTYPES[DTYPE_NAMES[dtype]].itemsize
                fits = math.prod(size for size in shape if size) * itemsize <= sys.maxsize
                if fits and 0 <= start <= end and end - start == math.prod(shape) * itemsize:
                    return start, end
    raise ValueError(f"tensor {name!r:.80} has the contradictory entry {entry!r:.200}")


def write(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, one tensor after the other: no second copy of the model in memory.

    Args:
        path: where to; an existing file is replaced.
        tensors: in any layout and byte order.
        metadata: texts for the header; ``{"format": "pt"}`` unless given, which transformers insists on.

    Raises:
        CheckpointError: a dtype or a name that the format does not have.
    """
    # Widest first, so that each tensor is aligned: readers that map the file need that.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    header: dict[str, Any] = {METADATA: dict(metadata or {"format": "pt"})}
    end = 0
    for name, tensor in ordered:
        dtype = NAMES_BY_DTYPE.get(tensor.dtype.newbyteorder("<"))
        if dtype is None or name == METADATA:
            raise CheckpointError(f"{path}: safetensors cannot store {name!r} of dtype {tensor.dtype}; convert it")
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    path.unlink(missing_ok=True)  # the tensors may be views of the file that was there
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            file.writelines(pieces(tensor))
            finish(tensor)
