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

from distilbert.cli.terminal import print_table
from distilbert.core.errors import CheckpointError, InputError

FORMATS = ("jsonl", "csv", "npy", "npz")
PARTIAL = ".partial"
CSV_NUMBER = "input"
EXCERPT = 40  # characters
NPY_HEADER = 128  # bytes, which numpy pads short headers to

logger = logging.getLogger("distilbert")


class JsonLines:
    """One line of JSON for each input."""

    def __init__(self, file: IO[bytes], done: int = 0) -> None:
        self.file = file
        self.done = done

    @classmethod
    def resume(cls, file: IO[bytes]) -> JsonLines:
        """Go on behind the last whole line."""
        done = end = 0
        for line in file:
            if line.endswith(b"\n"):
                done, end = done + 1, end + len(line)
        file.seek(end)
        file.truncate()
        return cls(file, done)

    def write(self, items: Sequence[Any], answers: Sequence[Any]) -> None:
        """Write some more."""
        lines = (json.dumps(answer, ensure_ascii=False, default=_plain) + "\n" for answer in answers)
        self.file.write("".join(lines).encode())
        self.file.flush()

    def close(self) -> None:
        """Nothing more follows."""


class Csv:
    """A row for each label, entity or span, with the number of the input, from 1."""

    def __init__(self, file: IO[bytes], done: int = 0, names: list[str] | None = None) -> None:
        self.file = file
        self.done = done
        self.names = names
        self.number = done

    @classmethod
    def resume(cls, file: IO[bytes]) -> Csv:
        """Go on with the last input, of which rows may be missing."""
        ends: dict[int, int] = {}  # of the rows before each input
        names: list[str] | None = None
        row = b""
        end = 0
        for line in file:
            row += line
            if not line.endswith(b"\n") or row.count(b'"') % 2:  # a quoted field goes on
                continue
            cells = next(csv.reader(io.StringIO(row.decode(), newline="")))
            if names is None:
                names = cells
            else:
                ends.setdefault(int(cells[0]), end)
            end, row = end + len(row), b""
        last = max(ends, default=1)
        file.seek(ends.get(last, end))
        file.truncate()
        return cls(file, last - 1, names)

    def write(self, items: Sequence[Any], answers: Sequence[Any]) -> None:
        """Write some more."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        for answer in answers:
            self.number += 1
            for entry in _entries(answer):
                if self.names is None:
                    self.names = [CSV_NUMBER, *entry]
                    writer.writerow(self.names)
                writer.writerow([self.number, *entry.values()])
        self.file.write(text.getvalue().encode())
        self.file.flush()

    def close(self) -> None:
        """Nothing more follows."""


class Npy:
    """One array, a row for each input. The header, which says how many, is written last."""

    def __init__(self, file: IO[bytes], done: int = 0, width: int | None = None) -> None:
        self.file = file
        self.done = self.rows = done
        self.width = width

    @classmethod
    def resume(cls, file: IO[bytes]) -> Npy:
        """Go on behind the last whole row."""
        try:
            np.lib.format.read_magic(file)
            shape, _, _ = np.lib.format.read_array_header_1_0(file)
            width = int(shape[1])
        except (ValueError, IndexError):
            file.seek(0)
            file.truncate()
            return cls(file)
        size = file.seek(0, os.SEEK_END) - NPY_HEADER
        done = max(size, 0) // (4 * width)
        file.seek(NPY_HEADER + done * 4 * width)
        file.truncate()
        return cls(file, done, width)

    def write(self, items: Sequence[Any], answers: Sequence[Any]) -> None:
        """Write some more."""
        for vector in answers:
            if np.ndim(vector) != 1:
                raise InputError("npy: expected a vector for each text; choose a pooling, or npz")
            if self.width is None:
                self.width = len(vector)
                self._write_header()
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

    def __init__(self, file: IO[bytes]) -> None:
        self.archive = zipfile.ZipFile(file, "w")
        self.done = self.number = 0

    @classmethod
    def resume(cls, file: IO[bytes]) -> Npz:
        """Not possible: an archive has its table of contents at the end.

        Raises:
            InputError: always.
        """
        raise InputError("npz cannot be resumed; write jsonl, or npy with a pooling")

    def write(self, items: Sequence[Any], answers: Sequence[Any]) -> None:
        """Write some more."""
        for array in answers:
            with self.archive.open(f"{self.number}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
            self.number += 1

    def close(self) -> None:
        """Write the table of contents."""
        self.archive.close()


class Pretty:
    """Tables to read."""

    def __init__(self) -> None:
        self.done = self.number = 0

    def write(self, items: Sequence[Any], answers: Sequence[Any]) -> None:
        """Print some more."""
        rows: list[tuple[str, str, Mapping[str, Any]]] = []
        for item, answer in zip(items, answers, strict=True):
            self.number += 1
            first, *others = _entries(answer) or [{}]
            rows += [(str(self.number), _excerpt(item), first), *(("", "", entry) for entry in others)]
        names = list(dict.fromkeys(name for *_, entry in rows for name in entry))
        print_table(
            "",
            ["", "input", *names],
            [[*start, *(_cell(entry.get(name, "")) for name in names)] for *start, entry in rows],
        )

    def close(self) -> None:
        """Nothing more follows."""


WRITERS: dict[str, Any] = {"jsonl": JsonLines, "csv": Csv, "npy": Npy, "npz": Npz}


@contextmanager
def open_answers(name: str, kind: str | None, *, pretty: bool = False, resume: bool = False) -> Iterator[Any]:
    """What writes answers: ``write`` takes some items with theirs, ``done`` says how many inputs were answered before.

    A file gets its name only once it is complete. Until then, and after a crash, what there is has ``.partial`` behind
    its name, and ``resume`` goes on with it, or with a file of that name itself.

    Args:
        name: of a file, or ``-`` for standard output.
        kind: one of ``FORMATS``; by default the file's name says it, and otherwise it is JSON lines.
        pretty: print tables instead.
        resume: go on.

    Raises:
        CheckpointError: the system refuses to write there.
        InputError: the options make no sense together.
    """
    suffix = Path(name).suffix.removeprefix(".")
    kind = kind or (suffix if suffix in FORMATS else "jsonl")
    if name == "-" and resume:
        raise InputError("resume needs an output file to go on with")
    if name == "-" and (pretty or kind in ("npy", "npz")):
        if not pretty:
            raise InputError(f"{kind} needs an output file")
        yield Pretty()
    elif name == "-":
        yield WRITERS[kind](sys.stdout.buffer)
    elif Path(name).exists() and not Path(name).is_file() and not Path(name).is_dir():
        with Path(name).open("wb") as device:  # a device or pipe cannot be replaced
            yield WRITERS[kind](device)
    else:
        with _open_partial(Path(name), resume) as file:
            writer = WRITERS[kind].resume(file) if resume else WRITERS[kind](file)
            yield writer
            writer.close()


@contextmanager
def _open_partial(path: Path, resume: bool) -> Iterator[IO[bytes]]:
    partial = path.with_name(path.name + PARTIAL)
    try:
        if path.is_dir():
            raise CheckpointError(f"{path}: is a folder, expected a file name")
        if resume and path.exists() and not partial.exists():
            path.rename(partial)
        with partial.open("r+b" if resume and partial.exists() else "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        if partial.is_file() and not partial.stat().st_size:
            partial.unlink()
        elif partial.is_file():
            logger.warning("%s has the answers so far; --resume goes on", partial)
        if isinstance(error, OSError) and not isinstance(error, CheckpointError):
            raise CheckpointError(f"{path}: cannot write: {error.strerror or error}") from error
        raise


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
    if isinstance(answer, list):
        return [
            entry if isinstance(part, Mapping) else {"mask": number, **entry}
            for number, part in enumerate(answer)
            for entry in _entries(part)
        ]
    raise InputError("features make no table; write npy, npz or jsonl")


def _excerpt(item: Any) -> str:
    """The beginning of what was asked."""
    text = item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    return value.tolist()
