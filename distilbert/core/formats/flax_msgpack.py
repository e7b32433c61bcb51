"""``flax_model.msgpack``: weights as Flax serialises them. Neither Flax nor JAX is needed.

The file is a mapping of names to mappings, down to arrays. An array is MessagePack's extension type 1: again
MessagePack, of its shape, the name of its dtype, and its bytes. Above 1 GiB it is a mapping of pieces. Source: the
format of ``flax.serialization``, as transformers 4 wrote it.

Unlike the other readers this one copies the file into memory: the library that reads MessagePack does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np

from distilbert.core.errors import CheckpointError
from distilbert.core.formats import DTYPES, finish, map_file, pieces

ARRAY = 1  # the extension type
MAX_RANK = 32
MAX_DEPTH = 32
MAX_PIECE = 1 << 30  # bytes; MessagePack cannot hold 4 GiB in one piece, and Flax splits above 1
PIECES = "__msgpack_chunked_array__"


def read(path: Path) -> dict[str, np.ndarray]:
    """The weights by name, for example ``classifier/kernel``; read-only.

    Raises:
        CheckpointError: damaged, or no weights.
    """
    data = map_file(path)
    try:
        # The library makes room for as many entries as a list claims: no list of a checkpoint is longer than this.
        content = msgpack.unpackb(memoryview(data), ext_hook=_array, max_array_len=MAX_RANK)  # type: ignore[arg-type]
        if not isinstance(content, dict):
            raise ValueError("it holds no mapping of names to weights")
        tensors = {}
        for name, tensor in _leaves(content):
            if name in tensors:
                raise ValueError(f"it holds {name!r:.80} more than once")
            tensors[name] = tensor
        return tensors
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path}: not a flax_model.msgpack that can be read: {reason:.200}") from None


def _array(code: int, data: bytes) -> np.ndarray:
    """The array that an extension holds."""
    if code != ARRAY:
        raise ValueError(f"it holds data of type {code}, expected arrays (type {ARRAY})")
    content = msgpack.unpackb(data, max_array_len=MAX_RANK, max_map_len=0, max_ext_len=0)
    if not isinstance(content, list) or len(content) != 3:
        raise ValueError("an array of it lacks shape, dtype or values")
    shape, dtype, values = content
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"an array of it has dtype {dtype!r:.40}, expected one of {', '.join(DTYPES)}")
    if not isinstance(values, bytes) or not _is_shape(shape):
        raise ValueError(f"an array of it has the shape {shape!r:.40}")
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if len(values) != expected:
        raise ValueError(f"an array of it, {shape}, needs {expected} bytes and has {len(values)}")
    return np.frombuffer(values, DTYPES[dtype]).reshape(shape)


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, list) and all(type(size) is int and 0 <= size < 1 << 40 for size in shape)


def _leaves(content: Mapping[Any, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """Every array with its full name."""
    if depth > MAX_DEPTH:
        raise ValueError(f"its mappings are nested deeper than {MAX_DEPTH}")
    for key, value in content.items():
        if not isinstance(key, str) or not key or "/" in key or not key.isprintable():
            raise ValueError(f"it holds the name {key!r:.80}, expected a plain text")
        if isinstance(value, np.ndarray):
            yield prefix + key, value
        elif not isinstance(value, dict):
            raise ValueError(f"{prefix + key:.80} is a {type(value).__name__}, expected an array")
        elif PIECES in value:
            yield prefix + key, _joined(value, prefix + key)
        else:
            yield from _leaves(value, f"{prefix}{key}/", depth + 1)


def _joined(value: Mapping[str, Any], name: str) -> np.ndarray:
    """An array that was split into pieces. Its ``shape`` and ``chunks`` are mappings of "0", "1", … to entries."""
    parts = {}
    for field in ("shape", "chunks"):
        numbered = value.get(field)
        if not isinstance(numbered, dict) or set(numbered) != set(map(str, range(len(numbered)))):
            raise ValueError(f"{name:.80} lacks its {field}")
        parts[field] = [numbered[str(index)] for index in range(len(numbered))]
    shape, pieces = parts["shape"], parts["chunks"]
    if not _is_shape(shape) or not pieces or not all(isinstance(piece, np.ndarray) for piece in pieces):
        raise ValueError(f"{name:.80} is damaged")
    if len({piece.dtype for piece in pieces}) > 1 or sum(piece.size for piece in pieces) != math.prod(shape):
        raise ValueError(f"{name:.80} has pieces that do not make {shape}")
    joined = np.concatenate([piece.reshape(-1) for piece in pieces]).reshape(shape)
    joined.flags.writeable = False
    return joined


def write(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a file that Flax and transformers 4 load, one tensor in memory at a time.

    Args:
        path: the file.
        tensors: by name, with ``/`` between its parts.
    """
    with path.open("wb") as file:
        _put(file, msgpack.Packer(), unflatten(tensors))


def _header(code: int, length: int, kind: int | None = None) -> bytes:
    """MessagePack's header of ``length`` bytes: of binary data (0xC4), or (0xC7) of an extension of some ``kind``."""
    if kind is not None and length in (1, 2, 4, 8, 16):
        return bytes((0xD4 + length.bit_length() - 1, kind))
    width = 0 if length < 1 << 8 else 1 if length < 1 << 16 else 2
    return bytes((code + width,)) + length.to_bytes(1 << width, "big") + (b"" if kind is None else bytes((kind,)))


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings of what has ``/`` between its names."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *way, leaf = name.split("/")
        node = tree
        for part in way:
            node = node.setdefault(part, {})
        node[leaf] = value
    return tree


def _put(file: BinaryIO, packer: msgpack.Packer, content: Any) -> None:
    if isinstance(content, dict):
        file.write(packer.pack_map_header(len(content)))
        for key, value in content.items():
            file.write(packer.pack(key))
            _put(file, packer, value)
    elif isinstance(content, np.ndarray) and content.nbytes <= MAX_PIECE:
        # The library would copy the bytes three times: headers only are packed, of an array of three entries.
        start = b"\x93" + msgpack.packb(content.shape) + msgpack.packb(content.dtype.name)
        start += _header(0xC4, content.nbytes)
        file.write(_header(0xC7, len(start) + content.nbytes, ARRAY) + start)
        file.writelines(pieces(content))
        finish(content)
    elif isinstance(content, np.ndarray):
        flat, step = content.reshape(-1), MAX_PIECE // content.itemsize
        chunks = [flat[start : start + step] for start in range(0, content.size, step)]
        fields = {"shape": list(content.shape), "chunks": chunks}
        numbered = {name: {str(index): entry for index, entry in enumerate(value)} for name, value in fields.items()}
        _put(file, packer, {PIECES: True} | numbered)
    else:
        file.write(packer.pack(content))
