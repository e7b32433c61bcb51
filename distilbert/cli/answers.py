"""Writing answers: lines of JSON, CSV, arrays or a table; a file of them is usable after a crash."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from distilbert.cli.terminal import finite, print_table
from distilbert.core.errors import CheckpointError, InputError
from distilbert.core.files import hold

PARTIAL = ".partial"
COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".zip")
NUMBER = "input"  # the column with the number of the input, from 1
MASK = "mask"  # that with the number of the mask in it, where answers are lists of lists
EXCERPT = 40  # characters
NPY_HEADER = 128  # bytes, which numpy pads short headers to

logger = logging.getLogger("distilbert")


class JsonLines:
    """One line of JSON for each input."""

    def __init__(self, file: IO[bytes], columns: Sequence[str]) -> None:
        self.file = file
        self.done = 0

    def resume(self) -> int:
        """Find what is written: how many inputs are answered, and where the last whole line ends.

        Raises:
            InputError: it is something else.
        """
        end = 0
        for line in self.file:
            if line[:1] not in (b"{", b"["):
                raise InputError(f"has {line[:20]!r} as line {self.done + 1}, expected JSON to go on with")
            if line.endswith(b"\n"):
                self.done, end = self.done + 1, end + len(line)
        return end

    def write(self, items: Sequence[Any], answers: Sequence[Any]) -> None:
        """Write some more."""
        lines = (json.dumps(finite(_plain(answer)), ensure_ascii=False) + "\n" for answer in answers)
        self.file.write("".join(lines).encode())
        self.file.flush()

    def close(self) -> None:
        """Nothing more follows."""


class Csv:
    """A row for each label, entity or span, with the number of the input, from 1."""

    def __init__(self, file: IO[bytes], columns: Sequence[str]) -> None:
        self.file = file
        self.names = [NUMBER, *columns]
        self.done = self.number = 0
        self.has_header = False

    def resume(self) -> int:
        """Find what is written, without the last input, of which rows may be missing."""
        begins: dict[int, int] = {}  # where the first row of each input is
        row, end = b"", 0
        for line in self.file:
            row += line
            if not line.endswith(b"\n") or row.count(b'"') % 2:  # a quoted field goes on
                continue
            cells = next(csv.reader(io.StringIO(row.decode("utf-8", "replace"), newline="")), [])
            if not self.has_header:
                if cells != self.names:
                    raise InputError(f"begins with {row[:40]!r}, expected {','.join(self.names)} to go on with")
                self.has_header = True
            elif len(cells) != len(self.names) or not cells[0].isdecimal():
                raise InputError(f"has the row {row[:40]!r}, expected one of {','.join(self.names)} to go on with")
            else:
                begins.setdefault(int(cells[0]), end)
            end, row = end + len(row), b""
        last = max(begins, default=1)
        self.done = self.number = last - 1
        return begins.get(last, end)

    def write(self, items: Sequence[Any], answers: Sequence[Any]) -> None:
        """Write some more."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.names, restval=0, lineterminator="\n")
        if not self.has_header:
            writer.writeheader()
            self.has_header = True
        for answer in answers:
            self.number += 1
            writer.writerows({NUMBER: self.number, **entry} for entry in _entries(answer))
        self.file.write(text.getvalue().encode())
        self.file.flush()

    def close(self) -> None:
        """Write the header at least."""
        self.write([], [])


class Npy:
    """One array, a row for each input. The header, which says how many, is written last."""

    def __init__(self, file: IO[bytes], columns: Sequence[str]) -> None:
        if not file.seekable():
            raise InputError("npy needs a file, because its header is written last; write npz or jsonl")
        self.file = file
        self.done = self.rows = 0
        self.width: int | None = None

    def resume(self) -> int:
        """Find what is written."""
        if self.file.seek(0, os.SEEK_END) < NPY_HEADER:
            return 0
        self.file.seek(0)
        try:
            version = np.lib.format.read_magic(self.file)
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(self.file)
        except ValueError:
            raise InputError("is no npy file to go on with") from None
        if version != (1, 0) or is_fortran or dtype != np.dtype("<f4") or len(shape) != 2:
            raise InputError(f"is an array {shape} of {dtype}, expected rows of float32 to go on with")
        if not shape[1]:
            return 0
        self.width = int(shape[1])
        size = self.file.seek(0, os.SEEK_END) - NPY_HEADER
        self.done = self.rows = size // (4 * self.width)
        return NPY_HEADER + self.done * 4 * self.width

    def write(self, items: Sequence[Any], answers: Sequence[Any]) -> None:
        """Write some more."""
        for vector in answers:
            if np.ndim(vector) != 1:
                raise InputError("npy: expected a vector for each text; choose a pooling, or npz")
            if self.width is None:
                self.width = len(vector)
                self._write_header()
            if len(vector) != self.width:
                raise InputError(f"npy: the rows there have {self.width} numbers, those of this model {len(vector)}")
            self.file.write(np.ascontiguousarray(vector, "<f4").tobytes())
            self.rows += 1
        self.file.flush()

    def close(self) -> None:
        """Write how many there are."""
        self.file.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        header = io.BytesIO()
        described = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, self.width or 0)}
        np.lib.format.write_array_header_1_0(header, described)
        self.file.write(header.getvalue().ljust(NPY_HEADER))


class Npz:
    """An array for each input, named by its number from 0."""

    def __init__(self, file: IO[bytes], columns: Sequence[str]) -> None:
        self.file = file
        self.archive: zipfile.ZipFile | None = None
        self.done = self.number = 0

    def resume(self) -> int:
        """Not possible.

        Raises:
            InputError: always.
        """
        raise InputError("is an archive, which ends in its table of contents; only jsonl, csv and npy can be resumed")

    def write(self, items: Sequence[Any], answers: Sequence[Any]) -> None:
        """Write some more."""
        self.archive = self.archive or zipfile.ZipFile(self.file, "w")
        for array in answers:
            with self.archive.open(f"{self.number}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
            self.number += 1

    def close(self) -> None:
        """Write the table of contents."""
        (self.archive or zipfile.ZipFile(self.file, "w")).close()


class Pretty:
    """Tables to read."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.names = columns
        self.done = self.number = 0

    def write(self, items: Sequence[Any], answers: Sequence[Any]) -> None:
        """Print some more."""
        rows: list[list[str]] = []
        for item, answer in zip(items, answers, strict=True):
            self.number += 1
            start = [str(self.number), _excerpt(item)]
            for entry in _entries(answer) or [{}]:
                rows.append([*start, *(_cell(entry.get(name, "")) for name in self.names)])
                start = ["", ""]
        print_table("", ["", NUMBER, *self.names], rows)

    def close(self) -> None:
        """Nothing more follows."""


WRITERS: dict[str, Any] = {"jsonl": JsonLines, "csv": Csv, "npy": Npy, "npz": Npz}
FORMATS = tuple(WRITERS)


class Output:
    """Where answers go, which is checked before any is computed.

    A file gets its name only once it is complete. Until then, and after a crash, what there is has ``.partial`` behind
    its name, and ``resume`` goes on with it, or with a file of that name itself.

    Args:
        name: of a file, or ``-`` for standard output.
        kind: one of ``FORMATS``; by default the file's name says it, and otherwise it is JSON lines.
        columns: of an answer as a row; none for features.
        pretty: print tables instead.
        resume: go on.
        source: the input's name, which must be another.

    Raises:
        InputError: the options make no sense together, or there is something that would be lost.
    """

    def __init__(
        self,
        name: str,
        kind: str | None = None,
        columns: Sequence[str] = (),
        *,
        pretty: bool = False,
        resume: bool = False,
        source: str = "-",
    ) -> None:
        self.columns = columns
        self.is_pretty = pretty
        self.is_resumed = resume
        self.path = None if name in ("-", "/dev/stdout") else Path(name).resolve()
        suffix = Path(name.lower()).suffix
        self.kind = kind or (suffix[1:] if suffix[1:] in FORMATS else "jsonl")
        if pretty and (kind or self.path is not None):
            raise InputError("pretty prints tables on standard output; leave away the output's name and format")
        if columns and self.kind in ("npy", "npz"):
            raise InputError(f"{self.kind} is for features; write jsonl or csv")
        if not columns and (pretty or self.kind == "csv"):
            raise InputError("features make no table; write npy, npz or jsonl")
        if self.path is None:
            if resume:
                raise InputError("resume needs an output file to go on with")
            if sys.stdout is None:
                raise InputError("standard output is closed; name a file")
            if self.kind in ("npy", "npz"):
                raise InputError(f"{self.kind} needs an output file")
            return
        if not name or self.path.is_dir() or not self.path.parent.is_dir():
            raise InputError(f"{name!r}: cannot write: expected the name of a file in a folder that is there")
        if suffix in COMPRESSED:
            raise InputError(f"{name}: answers are not compressed; leave {suffix} away")
        if self.path.exists() and os.path.exists(source) and self.path.samefile(source):  # noqa: PTH110
            raise InputError(f"{name}: is the input, and would be overwritten")
        if self.partial.exists() and not resume and not self.is_device:
            raise InputError(
                f"{self.partial} is there, of a run that did not finish: go on with --resume, or delete it"
            )

    @property
    def partial(self) -> Path:
        """What the file is called until it is complete."""
        assert self.path is not None
        return self.path.with_name(self.path.name + PARTIAL)

    @property
    def is_on_terminal(self) -> bool:
        """Whether answers go to a terminal, where a bar would stand among them."""
        return self.path is None and sys.stdout.isatty()

    @property
    def is_device(self) -> bool:
        """Whether it is a pipe or device, which cannot be replaced."""
        return self.path is not None and self.path.exists() and not self.path.is_file()

    @contextmanager
    def open(self) -> Iterator[Any]:
        """What writes: ``write`` takes items and their answers, ``done`` says how many were answered before.

        Raises:
            CheckpointError: the system refuses to write there.
            InputError: what is there cannot be gone on with.
        """
        if self.is_pretty:
            yield Pretty(self.columns)
        elif self.path is None:
            yield WRITERS[self.kind](sys.stdout.buffer, self.columns)
        elif self.is_device:
            with self.path.open("wb") as device:
                writer = WRITERS[self.kind](device, self.columns)
                yield writer
                writer.close()
        else:
            with self._open_partial() as writer:
                yield writer

    @contextmanager
    def _open_partial(self) -> Iterator[Any]:
        assert self.path is not None
        partial = self.partial
        earlier = partial if partial.exists() else self.path
        is_resumed = self.is_resumed and earlier.exists()
        present = earlier if is_resumed else partial
        file: IO[bytes] | None = None
        is_begun = not is_resumed
        try:
            try:
                file = present.open("r+b" if is_resumed else "x+b")
            except FileExistsError:  # since it was looked for: of another run
                raise InputError(f"{partial} is there by now, of another run; wait for it") from None
            if not hold(file.fileno()):
                raise InputError(f"{present}: another run writes there; wait for it")
            writer = WRITERS[self.kind](file, self.columns)
            if is_resumed:
                try:
                    end = writer.resume()
                except InputError as error:
                    raise InputError(f"{present}: {error}") from None
                file.seek(end)
                file.truncate()
                present.rename(partial)
                is_begun = True
            yield writer
            writer.close()
            file.flush()
            os.fsync(file.fileno())
            partial.replace(self.path)
        except OSError as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{self.path}: cannot write: {error.strerror or error}") from error
        finally:
            if file is not None:
                file.close()
            is_left = file is not None and is_begun and partial.is_file()
            if is_left and (not partial.stat().st_size or self.kind == "npz"):
                partial.unlink()
            elif is_left:
                logger.warning("%s has the answers so far; --resume goes on", partial)


def _entries(answer: Any) -> list[Mapping[str, Any]]:
    """An answer as rows: the mapping itself, those in a list, or those that lists in a mapping make together."""
    if isinstance(answer, Mapping):
        lists = {name: value for name, value in answer.items() if isinstance(value, list)}
        if not lists:
            return [answer]
        rest = {name: value for name, value in answer.items() if name not in lists}
        # "labels" and "scores" in parallel
        return [
            rest | dict(zip((name.removesuffix("s") for name in lists), values, strict=True))
            for values in zip(*lists.values(), strict=True)
        ]
    return [
        entry if isinstance(part, Mapping) else {MASK: number, **entry}
        for number, part in enumerate(answer)
        for entry in _entries(part)
    ]


def _excerpt(item: Any) -> str:
    """The beginning of what was asked."""
    text = item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _plain(answer: Any) -> Any:
    return answer.tolist() if isinstance(answer, np.ndarray) else answer
