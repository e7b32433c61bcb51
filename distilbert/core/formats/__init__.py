"""The containers that weights are stored in, one module each.

A format is a module with

- ``read(path) -> dict[str, numpy.ndarray]``: name -> array, in the order of the file. The arrays are
  read-only views of the mapped file: nothing is read from disk until an array is touched, so loading a huge
  file tensor by tensor stays cheap. They share memory where the stored tensors do, may lie unaligned, and
  need the file to stay as it is: replace a file that is in use, never write into it.
- ``write(path, tensors, metadata)``, in the formats that this library also writes.

Files are untrusted input. A file that is damaged, of another kind, or unsafe ends in a ``CheckpointError``;
one that is absent or closed to us in the system's own ``FileNotFoundError`` or ``PermissionError``.
"""

from __future__ import annotations

import mmap
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from distilbert.core.errors import CheckpointError

# Every dtype that a checkpoint may hold, by the name that numpy, torch and jax agree on. All little-endian,
# as the formats are. What numpy lacks comes from ml_dtypes.
DTYPES: dict[str, np.dtype] = {
    np.dtype(scalar).name: np.dtype(scalar).newbyteorder("<")
    for scalar in (
        *(np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64),
        *(np.float16, np.float32, np.float64, np.complex64, np.complex128, ml_dtypes.bfloat16),
        *(
            ml_dtypes.float8_e4m3fn,
            ml_dtypes.float8_e4m3fnuz,
            ml_dtypes.float8_e5m2,
            ml_dtypes.float8_e5m2fnuz,
        ),
        ml_dtypes.float8_e8m0fnu,
    )
}

TILE = 64  # rows and columns

# What often lies there instead of weights, by the bytes it begins with.
IMPOSTORS = {
    b"version https://git-lfs": "a git-lfs pointer, not the weights; run `git lfs pull` in its folder",
    b"<!doctype": "a web page, not weights; download the file itself",
    b"<html": "a web page, not weights; download the file itself",
    b"<?xml": "a server's error message, not weights; download the file again",
}


def map_file(path: Path) -> np.ndarray:
    """Map a file into memory, as read-only bytes.

    Raises:
        CheckpointError: a folder or a device, an empty file, or evidently no weights.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait forever
        raise CheckpointError(f"{path}: expected a file with weights, found a folder or a device")
    if status.st_size == 0:
        raise CheckpointError(f"{path}: expected weights, found an empty file; download it again")
    with path.open("rb") as file:
        data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    start = data[:64].tobytes().lstrip().lower()
    for beginning, found in IMPOSTORS.items():
        if start.startswith(beginning):
            raise CheckpointError(f"{path}: this is {found}")
    return data


def in_order(tensor: np.ndarray) -> np.ndarray:
    """A tensor little-endian and in the order of its rows, copied where it is not.

    Transposed matrices are copied in tiles that fit the caches: 2 to 3 times as fast as numpy does it.
    """
    dtype = tensor.dtype.newbyteorder("<")
    if tensor.ndim != 2 or tensor.flags.c_contiguous:
        return np.ascontiguousarray(tensor, dtype)
    copied = np.empty(tensor.shape, dtype)
    for row in range(0, tensor.shape[0], TILE):
        for column in range(0, tensor.shape[1], TILE):
            tile = np.s_[row : row + TILE, column : column + TILE]
            copied[tile] = tensor[tile]
    return copied


def pieces(tensor: np.ndarray) -> Iterator[memoryview]:
    """A tensor's bytes as files hold them: at once, or where they have to be copied some rows at a time."""
    is_copied = tensor.ndim == 2 and not tensor.flags.c_contiguous
    parts = (tensor[row : row + TILE] for row in range(0, len(tensor), TILE)) if is_copied else (tensor,)
    for part in parts:
        yield in_order(part).reshape(-1).view(np.uint8).data  # as bytes, because bfloat16 has no buffer


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two tensors agree in shape, type and every bit."""
    if one is other:
        return True
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    first, second = (in_order(tensor).reshape(-1).view(np.uint8) for tensor in (one, other))
    return np.array_equal(first, second)


_advance: ContextVar[Callable[[int], None]] = ContextVar("advance", default=lambda size: None)


@contextmanager
def counted(advance: Callable[[int], None]) -> Iterator[None]:
    """Within, ``advance`` is called with the size in bytes of each tensor that has been written."""
    token = _advance.set(advance)
    try:
        yield
    finally:
        _advance.reset(token)


def finish(tensor: np.ndarray) -> None:
    """What a writer does after each tensor: it is counted, and its memory given back."""
    _advance.get()(tensor.nbytes)
    forget(tensor)


def forget(tensor: np.ndarray) -> None:
    """Let the system have back the memory that reading a tensor of a mapped file took.

    The tensor stays valid: what is touched again is read again. Without this, a file larger than the memory would
    crowd out everything else while it is copied. Tensors that are not mapped are left alone.
    """
    owner: Any = tensor
    while isinstance(owner, (np.ndarray, memoryview)):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    if isinstance(owner, mmap.mmap) and hasattr(owner, "madvise"):
        whole = np.frombuffer(owner, np.uint8)
        low, high = np.lib.array_utils.byte_bounds(tensor)
        start = low - whole.__array_interface__["data"][0]
        start -= start % mmap.PAGESIZE
        owner.madvise(mmap.MADV_DONTNEED, start, high - whole.__array_interface__["data"][0] - start)
