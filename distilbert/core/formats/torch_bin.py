"""``pytorch_model.bin``, without PyTorch and without running what is in it.

Such a file is a pickle that describes the tensors, and beside it their storages, the raw numbers: as entries
of a zip file since PyTorch 1.6, before that one after the other in the file itself.

A pickle is a program that ``pickle.Unpickler`` runs. Even restricted by ``find_class`` it allocates whatever
a memo index says, sets attributes on anything it was given (``BUILD``), and crashes the process on a key made
of deeply nested tuples. So ``_unpickle`` interprets the two dozen opcodes that a state dict consists of, on
inert values: globals are only names, and there is nothing to call.
"""

from __future__ import annotations

import io
import math
import pickletools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distilbert.core.errors import CheckpointError
from distilbert.core.formats import DTYPES, map_file, stored_zip

# A pickle takes about 150 bytes per tensor. The limit bounds the time and memory that a hostile one can cost.
MAX_PICKLE = 1_000_000
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001

STORAGES = {
    **{"torch.BoolStorage": "bool", "torch.ByteStorage": "uint8", "torch.CharStorage": "int8"},
    **{"torch.ShortStorage": "int16", "torch.IntStorage": "int32", "torch.LongStorage": "int64"},
    **{"torch.HalfStorage": "float16", "torch.BFloat16Storage": "bfloat16", "torch.FloatStorage": "float32"},
    **{"torch.DoubleStorage": "float64", "torch.ComplexFloatStorage": "complex64"},
    **{"torch.ComplexDoubleStorage": "complex128", "torch.storage.UntypedStorage": "uint8"},
}
GLOBALS = {
    *STORAGES,
    *(f"torch.{dtype}" for dtype in DTYPES),
    *("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3", "torch.Size"),
    *("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"),
    "collections.OrderedDict",
}

# Opcodes whose value is what pickletools has decoded.
LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "TUPLE": None}


class _RefusedError(Exception):
    """The pickle wants to run something."""


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    count: int


@dataclass(frozen=True)
class _Tensor:
    """What the pickle says of a tensor; not yet checked."""

    storage: _Storage
    dtype: np.dtype
    offset: Any
    shape: Any
    strides: Any


def read(path: Path) -> dict[str, np.ndarray]:
    """Read a state dict as ``torch.save`` wrote it, bare or under ``"state_dict"``."""
    data = map_file(path)
    try:
        zipped = data[:4].tobytes() == stored_zip.HEADER
        content, storages = _read_zip(path, data) if zipped else _read_legacy(data)
        return _read_tensors(content, storages)
    except _RefusedError as error:
        raise CheckpointError(
            f"{path}: expected a pickle of tensors, but it asks for {error}: refused, nothing in it ran; "
            "use a safetensors file, or convert this one where it can do no harm"
        ) from None
    except (LookupError, TypeError, ValueError) as error:
        reason = error if isinstance(error, ValueError) else "its pickle is malformed"
        raise CheckpointError(
            f"{path}: expected a state dict saved by PyTorch, but {reason!s:.300}; "
            "download it again, or save model.state_dict()"
        ) from error


def _read_zip(path: Path, data: np.ndarray) -> tuple[object, dict[str, np.ndarray]]:
    files = stored_zip.entries(path, data)
    roots = [name.removesuffix("data.pkl") for name in files if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ValueError(f"it is a zip file with {len(roots)} files called data.pkl")
    root = roots[0]
    if files.get(root + "byteorder", data[:0])[:8].tobytes() not in (b"", b"little"):
        raise ValueError("it was saved on a big-endian machine, which is not supported")
    if files[root + "data.pkl"].size > MAX_PICKLE:
        raise ValueError(f"its data.pkl is larger than {MAX_PICKLE} bytes")
    content, _ = _unpickle(io.BytesIO(files[root + "data.pkl"].tobytes()))
    return content, {name.removeprefix(root + "data/"): file for name, file in files.items()}


def _read_legacy(data: np.ndarray) -> tuple[object, dict[str, np.ndarray]]:
    stream = io.BytesIO(data[:MAX_PICKLE].tobytes())
    if _unpickle(stream)[0] != LEGACY_MAGIC or _unpickle(stream)[0] != LEGACY_PROTOCOL:
        raise ValueError("it is another kind of pickle")
    if not _expect(_unpickle(stream)[0], dict).get("little_endian"):
        raise ValueError("it was saved on a big-endian machine, which is not supported")
    content, described = _unpickle(stream)
    keys = _expect(_unpickle(stream)[0], list)
    storages = {}
    position = stream.tell()
    for key in keys:  # for each a count of numbers, in 8 bytes, and the numbers
        storage = described[_expect(key, str)]  # anything else might crash in being hashed
        count = int.from_bytes(data[position : position + 8].tobytes(), "little")
        start, position = position + 8, position + 8 + storage.count * storage.dtype.itemsize
        if count != storage.count or position > len(data):
            raise ValueError(f"its storage {key!r:.80} of {storage.count} numbers is incomplete")
        storages[key] = data[start:position]
    return content, storages


def _read_tensors(content: object, storages: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    match content:
        case {"state_dict": dict(wrapped)}:  # a training script's checkpoint
            content = wrapped
    tensors = {}
    for name, value in _expect(content, dict).items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise ValueError(f"its entry {name!r:.80} is no tensor but of type {_kind(value)}")
        if value.storage.key not in storages:
            raise ValueError(f"the storage of tensor {name!r:.80} is absent")
        try:
            tensors[name] = _view(value, storages[value.storage.key])
        except ValueError as error:
            raise ValueError(f"tensor {name!r:.80} {error}") from None
    return tensors


def _view(tensor: _Tensor, storage: np.ndarray) -> np.ndarray:
    shape, strides, itemsize = tensor.shape, tensor.strides, tensor.dtype.itemsize
    if not isinstance(shape, tuple) or not isinstance(strides, tuple) or not len(shape) == len(strides) <= 64:
        raise ValueError("has no proper shape and strides")
    if not all(_is_size(number) for number in (tensor.offset, *shape, *strides)):
        raise ValueError("has an offset, a shape or strides that are negative or no integers")
    if len(storage) != tensor.storage.count * tensor.storage.dtype.itemsize:
        raise ValueError(f"has a storage of {len(storage)} bytes instead of {tensor.storage.count} numbers")
    if math.prod(size for size in shape if size) * itemsize > sys.maxsize:
        raise ValueError(f"has the impossible shape {shape}")
    if 0 in shape:
        return storage[:0].view(tensor.dtype).reshape(shape)
    # numpy's own check overflows: it lets a stride of 2**62 out of the buffer
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if (last + 1) * itemsize > len(storage):
        raise ValueError(f"reaches past its storage, to number {last} of {len(storage) // itemsize}")
    steps = [stride * itemsize if size > 1 else 0 for size, stride in zip(shape, strides, strict=True)]
    return np.ndarray(shape, tensor.dtype, storage, tensor.offset * itemsize, steps)


def _is_size(number: object) -> bool:
    return type(number) is int and 0 <= number <= sys.maxsize


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"it has the type {_kind(value)} where {kind.__name__} belongs")
    return value


def _kind(value: object) -> str:
    return type(value).__name__.lstrip("_").lower()


def _unpickle(stream: io.BytesIO) -> tuple[Any, dict[str, _Storage]]:
    """Interpret one pickle: what it holds, and the storages it mentions.

    Raises:
        _RefusedError: it asks for something that is no part of a state dict.
        LookupError, TypeError, ValueError: it is malformed.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    storages: dict[str, _Storage] = {}

    def pop(count: int | None) -> list[Any]:
        """The topmost values; without a count, those since the last mark."""
        first = marks.pop() if count is None else len(stack) - count
        if not 0 <= first <= len(stack):
            raise ValueError("its pickle takes more than it has put there")
        values = stack[first:]
        del stack[first:]
        return values

    argument: Any
    for opcode, argument, _ in pickletools.genops(stream):
        name = opcode.name
        if name in LITERALS:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in TUPLES:
            stack.append(tuple(pop(TUPLES[name])))
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("APPEND", "APPENDS"):
            values = pop(1 if name == "APPEND" else None)
            _expect(stack[-1], list).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = pop(2 if name == "SETITEM" else None)
            for key, value in zip(values[::2], values[1::2], strict=True):
                # hashing a deep tuple would overflow the C stack, hashing a huge number takes long
                if not isinstance(key, str) and not _is_size(key):
                    raise ValueError(f"it has a key of type {_kind(key)}")
                _expect(stack[-1], dict)[key] = value
        elif name == "BUILD":  # attributes; those of a state dict are versions of modules, of no use here
            pop(1)
            _expect(stack[-1], dict)
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            wanted = ".".join(argument.split(" ", 1) if name == "GLOBAL" else pop(2))
            if wanted not in GLOBALS:
                raise _RefusedError(f"{wanted!r:.80}")
            stack.append(_Global(wanted))
        elif name == "REDUCE":
            stack.append(_call(*pop(2)))
        elif name == "BINPERSID":
            storage = _persistent(*pop(1))
            if storages.setdefault(storage.key, storage) != storage:
                raise ValueError(f"it describes its storage {storage.key!r:.80} in two ways")
            stack.append(storage)
        elif name == "STOP":
            break
        elif name not in ("PROTO", "FRAME"):
            raise _RefusedError(f"the opcode {name} ({argument!r:.80})")
    return stack.pop(), storages


def _arguments(value: object) -> tuple[Any, ...]:
    """At most as many as PyTorch ever gives: a long tuple in the memo may be used a million times."""
    return _expect(value, tuple)[:9]


def _persistent(identifier: object) -> _Storage:
    match _arguments(identifier):
        case "storage", _Global(kind), str(key), _, int(count), *view if not any(view) and _is_size(count):
            return _Storage(key, DTYPES[STORAGES[kind]], count)
    raise ValueError("its pickle has a storage of an unknown kind")


def _call(function: object, arguments: object) -> object:
    """What the result would be, of the functions that pickled tensors consist of."""
    match function, _arguments(arguments):
        case _Global("collections.OrderedDict"), ():
            return {}
        case _Global("torch.Size"), (tuple(shape),):
            return shape
        case (
            _Global("torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state"),
            (_Tensor() as tensor, *_),
        ):
            return tensor
        case (
            _Global("torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor_v3"),
            (_Storage() as storage, offset, shape, strides, _, _, *rest),
        ):
            dtype = storage.dtype
            match rest:
                case _Global(name), *rest:  # v3 says it here, since the storage is untyped
                    dtype = DTYPES[name.removeprefix("torch.")]
            if not any(rest):  # else the numbers are still to be conjugated or negated
                return _Tensor(storage, dtype, offset, shape, strides)
    raise ValueError("its pickle calls a function as PyTorch does not")
