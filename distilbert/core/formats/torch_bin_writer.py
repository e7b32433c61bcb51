"""Writing ``pytorch_model.bin`` without PyTorch: what ``torch.save`` makes of a state dict.

A zip archive, uncompressed: a pickle of the names, shapes and strides, and one file of bytes a storage. The pickle is
spelt out here, opcode by opcode, as it has a fixed form (protocol 2; the opcodes are those of ``pickletools``).
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from distilbert.core.errors import CheckpointError
from distilbert.core.formats import finish, pieces
from distilbert.core.formats.stored_zip import FIRST_TIME
from distilbert.core.formats.torch_bin import STORAGES

NAMES_BY_DTYPE = {dtype: name for name, dtype in STORAGES.items() if name != "torch.storage.UntypedStorage"}
FOLDER = "pytorch_model"
EMPTY_DICT = b"ccollections\nOrderedDict\n)R"


def write(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a file that ``torch.load`` reads, one tensor in memory at a time.

    Args:
        path: where to.
        tensors: in any layout. One array under two names is stored once, and PyTorch shares it.

    Raises:
        CheckpointError: a dtype that PyTorch's files lack.
    """
    for name, tensor in tensors.items():
        if tensor.dtype.name not in NAMES_BY_DTYPE:
            raise CheckpointError(f"{path}: PyTorch's files cannot store {name!r} of dtype {tensor.dtype}; convert it")
    numbers: dict[int, str] = {}
    for tensor in tensors.values():
        numbers.setdefault(id(tensor), str(len(numbers)))
    entries = b"".join(_text(name) + _tensor(tensor, numbers[id(tensor)]) for name, tensor in tensors.items())
    pickled = b"\x80\x02" + EMPTY_DICT + b"(" + entries + b"u."
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (("data.pkl", pickled), ("byteorder", b"little")):
            archive.writestr(zipfile.ZipInfo(f"{FOLDER}/{name}", FIRST_TIME), content)
        written = set()
        for tensor in tensors.values():
            number = numbers[id(tensor)]
            if number not in written:
                written.add(number)
                entry = zipfile.ZipInfo(f"{FOLDER}/data/{number}", FIRST_TIME)
                with archive.open(entry, "w", force_zip64=tensor.nbytes >= 1 << 31) as file:
                    file.writelines(pieces(tensor))
                finish(tensor)
        archive.writestr(zipfile.ZipInfo(f"{FOLDER}/version", FIRST_TIME), b"3\n")


def _tensor(tensor: np.ndarray, number: str) -> bytes:
    """``torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)``."""
    module, _, kind = NAMES_BY_DTYPE[tensor.dtype.name].rpartition(".")
    strides = [math.prod(tensor.shape[axis + 1 :]) for axis in range(tensor.ndim)]
    storage = (
        b"(" + _text("storage") + f"c{module}\n{kind}\n".encode() + _text(number) + _text("cpu") + _int(tensor.size)
    )
    arguments = storage + b"tQ" + _int(0) + _ints(tensor.shape) + _ints(strides) + b"\x89" + EMPTY_DICT
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def _text(text: str) -> bytes:
    encoded = text.encode("utf-8")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _int(number: int) -> bytes:
    if number < 1 << 31:
        return b"J" + struct.pack("<i", number)
    return b"\x8a\x08" + struct.pack("<q", number)


def _ints(numbers: tuple[int, ...] | list[int]) -> bytes:
    return b"(" + b"".join(map(_int, numbers)) + b"t"
