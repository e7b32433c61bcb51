"""Finding the arrays of an HDF5 file without the HDF5 library, which a damaged file can crash or hang.

What HDF5 writes by default, and Keras with it, is a small part of the format: groups listed in version 1 B-trees,
version 1 object headers, arrays in one piece. That part is read here, and all else is refused. Format:
https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html; Roman numerals below are its sections.

Every address in the file is checked before it is followed. Parts of a good file do not overlap, so all that is read
together may not be longer than the file: that bounds the work a file can cause, circles included.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from distilbert.core.formats import DTYPES

SIGNATURE = b"\x89HDF\r\n\x1a\n"
ABSENT = (1 << 64) - 1  # an address of nothing
MAX_DEPTH = 32
MAX_NAME = 256  # of one link or text, bytes

# Types of message in an object header (IV.A.2)
SPACE, LINK_INFO, TYPE, LINK, OTHER_FILES, LAYOUT, FILTERS, ATTRIBUTE, MORE, GROUP = 1, 2, 3, 6, 7, 8, 11, 12, 16, 17
READ = (SPACE, LINK_INFO, TYPE, LINK, OTHER_FILES, LAYOUT, FILTERS, GROUP)


def _encoded(dtype: np.dtype) -> bytes:
    """How a type of numbers is stored (IV.A.2.d), but for padding."""
    order, bits = int(dtype.byteorder == ">"), 8 * dtype.itemsize
    if dtype.kind in "iu":
        return struct.pack("<BBHIHH", 0x10, order | (dtype.kind == "i") << 3, 0, dtype.itemsize, 0, bits)
    form = np.finfo(dtype)
    places = (form.nmant, form.nexp, 0, form.nmant)  # where exponent and mantissa begin, and their lengths
    bias = (1 << (form.nexp - 1)) - 1
    return struct.pack("<BBHIHH4BI", 0x11, order | 0x20, bits - 1, dtype.itemsize, 0, bits, *places, bias)


TYPES = {
    _encoded(dtype): dtype
    for name in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
    for dtype in (np.dtype(f"<{name}"), np.dtype(f">{name}"))
}


# Classes of types (IV.A.2.d), and which kind of variable length is a text
TEXT, OPAQUE, VARIABLE, IS_TEXT = 3, 5, 9, 1


@dataclass
class Group:
    """What a file says of one group, besides what is in it."""

    attributes: dict[bytes, bytes]  # as stored: see ``File.text``


@dataclass
class _Object:
    messages: dict[int, bytes] = field(default_factory=dict)
    attributes: dict[bytes, bytes] = field(default_factory=dict)
    array: np.ndarray | None = None


class File:
    """An HDF5 file as bytes.

    Args:
        data: the whole file, uint8.

    Raises:
        ValueError: no HDF5, or of another layout. So does everything below, with half a sentence on the file.
    """

    def __init__(self, data: np.ndarray) -> None:
        self.data = memoryview(data)  # type: ignore[arg-type]
        self.allowance = len(data)
        self.visited: set[int] = set()
        self.heaps: dict[int, dict[int, tuple[int, int]]] = {}
        if self.part(0, 8) != SIGNATURE:
            raise ValueError("it does not begin as one")
        if len(data) < 96 or data[8] or data[13] != 8 or data[14] != 8:  # superblock (II.A): version, two sizes
            raise ValueError("its layout is not the one that Keras and h5py write by default")
        base, _, end, driver = self.unpack("<4Q", 24)
        if base or driver != ABSENT:
            raise ValueError("its layout is not the one that Keras and h5py write by default")
        if end > len(data):
            raise ValueError(f"it should be {end} bytes long and is {len(data)}; download it again")
        (self.root,) = self.unpack("<Q", 64)

    def items(self) -> Iterator[tuple[str, Group | np.ndarray]]:
        """Every group, before what is in it, and every array, with their full names; the root's is empty.

        An array is a read-only view, and the same object under each of its names.
        """
        known: dict[int, _Object] = {}
        pending = [("", self.root, 0)]
        while pending:
            name, address, depth = pending.pop()
            if address not in known:
                known[address] = self.header(address)
            found = known[address]
            if GROUP in found.messages:
                self.once(address, f"group {name!r:.80}")
                if depth > MAX_DEPTH:
                    raise ValueError(f"its groups are nested deeper than {MAX_DEPTH}")
                yield name, Group(found.attributes)
                below = [(f"{name}/{key}".lstrip("/"), at, depth + 1) for key, at in self.links(found.messages[GROUP])]
                pending += reversed(below)
            else:
                if found.array is None:
                    found.array = self.array(found, name)
                    self.spend(found.array.nbytes)
                yield name, found.array

    def unpack(self, form: str, address: int) -> tuple[Any, ...]:
        """Numbers at an address."""
        return struct.unpack(form, self.part(address, struct.calcsize(form)))

    def part(self, address: int, size: int) -> bytes:
        """A copy of some bytes."""
        if address + size > len(self.data):
            raise ValueError("a part of it lies past its end; download it again")
        return bytes(self.data[address : address + size])

    def spend(self, size: int) -> None:
        """Count what is read."""
        self.allowance -= size
        if self.allowance < 0:
            raise ValueError("its parts overlap, or lead in a circle")

    def once(self, address: int, what: str) -> None:
        """Remember what was visited."""
        if address in self.visited:
            raise ValueError(f"{what} is reached by two ways, or in a circle")
        self.visited.add(address)

    def header(self, address: int) -> _Object:
        """The header of a group or an array (IV.A.1.a)."""
        version, size = self.unpack("<B7xI4x", address)
        if version != 1:
            raise ValueError("an object's header is damaged, or newer than Keras writes")
        found = _Object()
        blocks = [(address + 16, size)]
        while blocks:
            position, size = blocks.pop()
            self.spend(max(size, 16))
            end = position + size
            while position + 8 <= end:
                kind, size, flags = self.unpack("<HHB", position)
                content = self.part(position + 8, size)
                position += 8 + size
                if kind == MORE and size >= 16:
                    blocks.append(struct.unpack_from("<2Q", content))
                elif kind == ATTRIBUTE and size >= 9:
                    start = 9 if content[0] == 3 else 8  # version 3 has one byte more
                    found.attributes[content[start : start + MAX_NAME].partition(b"\0")[0]] = content
                elif kind in READ:
                    found.messages[kind] = b"" if flags & 2 else content  # 2: kept elsewhere, as named types are
        return found

    def links(self, message: bytes) -> Iterator[tuple[str, int]]:
        """What a group holds: names and addresses (III.A.1, III.B, III.C, III.D)."""
        if len(message) < 16:
            raise ValueError("a group is damaged")
        tree, heap = struct.unpack_from("<2Q", message)
        self.once(heap, "a list of names")
        signature, size, start = self.unpack("<4s4xQ8xQ", heap)
        if signature != b"HEAP" or start + size > len(self.data):
            raise ValueError("a list of names is damaged")
        pending = [tree]
        while pending:
            node = pending.pop()
            self.once(node, "a list of a group")
            signature, kind, _, count = self.unpack("<4sBBH", node)
            if signature == b"TREE" and kind == 0:
                self.spend(24 + 16 * count)
                pending += [self.unpack("<Q", node + 32 + 16 * number)[0] for number in reversed(range(count))]
            elif signature == b"SNOD":
                self.spend(8 + 40 * count)
                for number in range(count):
                    place, address, cached = self.unpack("<QQI", node + 8 + 40 * number)
                    name = self.name(start, size, place)
                    if cached == 2:
                        raise ValueError(f"{name} is a link to another name, expected the weights themselves")
                    yield name, address
            else:
                raise ValueError("a list of a group is damaged")

    def name(self, start: int, size: int, place: int) -> str:
        """The name at a place in a list of names."""
        if place >= size:
            raise ValueError("a name lies outside of the list of names")
        name, end, _ = self.part(start + place, min(size - place, MAX_NAME)).partition(b"\0")
        text = name.decode("utf-8", errors="replace")
        if not end or not text.isprintable() or "/" in text or text in ("", ".", ".."):
            raise ValueError(f"it holds the name {text!r:.80}, expected a plain and short one")
        return text

    def text(self, attributes: dict[bytes, bytes], name: bytes) -> str | None:
        """The one text that an attribute holds (IV.A.2.m); None where there is no such attribute."""
        message = attributes.get(name)
        if message is None:
            return None
        version, flags, *sizes = struct.unpack_from("<BB3H", message)
        if version not in (1, 2, 3) or (version > 1 and flags):  # flags: its type or shape is kept elsewhere
            raise ValueError(f"its attribute {name!r:.80} is damaged, or newer than Keras writes")
        parts, position = [], 9 if version == 3 else 8
        for size in sizes:  # the name, the type and the shape, which version 1 pads
            parts.append(message[position : position + size])
            position += size + (-size % 8 if version == 1 else 0)
        _, kind, space = parts
        if len(kind) < 8 or len(space) < 2 or space[1]:
            raise ValueError(f"its attribute {name!r:.80} is not one text")
        (size,) = struct.unpack_from("<I", kind, 4)
        value = message[position : position + size]
        if len(value) == size and kind[0] & 15 == TEXT:
            return value[:MAX_NAME].rstrip(b"\0 ").decode("utf-8", errors="replace")
        if len(value) == size == 16 and kind[0] & 15 == VARIABLE and kind[1] & 15 == IS_TEXT:
            length, heap, number = struct.unpack("<IQI", value)
            start, available = self.heap(heap).get(number, (0, 0)) if length else (0, 0)
            if length > min(available, MAX_NAME):
                raise ValueError(f"its attribute {name!r:.80} is damaged, or longer than {MAX_NAME} bytes")
            return self.part(start, length).rstrip(b"\0").decode("utf-8", errors="replace")
        raise ValueError(f"its attribute {name!r:.80} is not one text")

    def heap(self, address: int) -> dict[int, tuple[int, int]]:
        """Where the texts of a list of them lie, by number, and how long they are (III.E)."""
        if address not in self.heaps:
            signature, version, size = self.unpack("<4sB3xQ", address)
            if signature != b"GCOL" or version != 1 or address + size > len(self.data):
                raise ValueError("a list of texts is damaged")
            self.spend(max(size, 16))
            self.heaps[address] = {}
            position, end = address + 16, address + size
            while position + 16 <= end:
                number, length = self.unpack("<H6xQ", position)
                if not number or position + 16 + length > end:  # 0: what is left is free
                    break
                self.heaps[address].setdefault(number, (position + 16, length))
                position += 16 + length + -length % 8
        return self.heaps[address]

    def array(self, found: _Object, name: str) -> np.ndarray:
        """The values of an array: a view of the file (IV.A.2.b, d and i)."""
        messages = found.messages
        if not messages.keys() >= {SPACE, TYPE, LAYOUT}:
            if LINK_INFO in messages or LINK in messages:
                raise ValueError(f"{name:.80} is a link, maybe to another file, or a group newer than Keras writes")
            raise ValueError(f"{name:.80} is neither a group nor an array")
        space, layout = messages[SPACE], messages[LAYOUT]
        kind = messages[TYPE]
        dtype = next((known for code, known in TYPES.items() if kind.startswith(code)), None)
        if len(kind) >= 8 and kind[0] & 15 == OPAQUE and self.text(found.attributes, b"dtype") == "bfloat16":
            dtype = DTYPES["bfloat16"] if kind[4:8] == b"\2\0\0\0" else None  # HDF5 has no such type, Keras says it
        if dtype is None:
            raise ValueError(f"{name:.80} has a type that weights do not have, expected integers or floats")
        start = {1: 8, 2: 4}.get(space[0] if len(space) >= 4 else 0, 0)
        rank = space[1] if start else 0
        if not start or len(space) < start + 8 * rank or (start == 4 and space[3] > 1):
            raise ValueError(f"{name:.80} has no shape, or no values")
        shape = struct.unpack_from(f"<{rank}Q", space, start)
        if OTHER_FILES in messages or FILTERS in messages or layout[:2] != b"\x03\x01" or len(layout) < 18:
            raise ValueError(f"{name:.80} is compressed, chunked, or in another file, expected it in one piece here")
        address, size = struct.unpack_from("<2Q", layout, 2)
        expected = prod(shape) * dtype.itemsize
        if not expected:
            return np.zeros(shape, dtype)
        if size != expected or address + size > len(self.data):
            raise ValueError(f"{name:.80} lies past its end; download it again")
        return np.frombuffer(self.data[address : address + size], dtype).reshape(shape)
