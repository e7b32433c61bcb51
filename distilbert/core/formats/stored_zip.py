"""Zip files whose entries are stored as they are: PyTorch's and Keras's. The entries are mapped, never unpacked."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

# Of the table of contents, bytes: bounds the time and memory that a hostile one can cost.
MAX_CONTENTS = 1_000_000
FIRST_TIME = (1980, 1, 1, 0, 0, 0)  # for the entries of new files, so that equal weights make equal files
ENCRYPTED = 0x1  # flag of an entry
HEADER = b"PK\x03\x04"  # what an entry begins with


class _SmallReads(io.FileIO):
    """Keeps ``zipfile`` from parsing gigabytes of table of contents."""

    def read(self, size: int | None = -1, /) -> Any:
        if size is not None and size > MAX_CONTENTS:
            raise zipfile.BadZipFile(f"a table of contents of {size} bytes")
        return super().read(size)


def entries(path: Path, data: np.ndarray) -> dict[str, np.ndarray]:
    """The bytes of every entry by name, as views.

    Args:
        path: the file.
        data: the same file, mapped.

    Raises:
        ValueError: damaged, or an entry is compressed, encrypted, there twice, or lies within another one.
    """
    try:
        with _SmallReads(path) as file, zipfile.ZipFile(file) as archive:
            listed = archive.infolist()
    except Exception as error:  # zipfile meets damage with half a dozen types of exception
        raise ValueError(f"the file is incomplete or damaged ({error})") from error

    found: dict[str, np.ndarray] = {}
    previous = 0
    for entry in sorted(listed, key=lambda entry: entry.header_offset):
        name = entry.filename
        if entry.flag_bits & ENCRYPTED or entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"its entry {name!r:.80} is compressed or encrypted, expected it stored as it is")
        # zipfile would copy the entry; for a view, skip the local header and what varies in length after it
        if entry.header_offset < previous:
            raise ValueError(f"its entry {name!r:.80} is damaged, or lies within another one")
        header = data[entry.header_offset :][:30].tobytes()
        varying = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:], "little")
        start = entry.header_offset + 30 + varying
        previous = start + entry.compress_size
        damaged = header[:4] != HEADER or previous > len(data) or entry.file_size != entry.compress_size
        if damaged or name in found:
            raise ValueError(f"its entry {name!r:.80} is damaged, or there twice")
        found[name] = data[start:previous]
    return {entry.filename: found[entry.filename] for entry in listed}
