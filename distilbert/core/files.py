"""Writing several files of a folder as one step: a crash leaves all of the old ones or all of the new ones."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from distilbert.core.errors import CheckpointError, DistilBertError

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

# A folder inside the target that holds files of a finished save which are not yet in their final place.
# It appears by one rename, which is the moment the save takes effect: readers look here first.
COMMITTED = ".committed-save"
# In there, an empty file with this suffix says that the file of that name is to go.
SUPERSEDED = ".superseded"


def current_file(folder: Path, filename: str) -> Path:
    """Where ``filename``, a path in ``folder``, is to be read: in place, or in a save that a crash cut short."""
    committed = folder / COMMITTED / filename
    if committed.is_file() or (folder / COMMITTED / f"{filename}{SUPERSEDED}").is_file():
        return committed
    return folder / filename


@contextmanager
def replace_files(folder: str | Path, superseded: tuple[str, ...] = ()) -> Iterator[Path]:
    """Give an empty folder to write into; on success its files take their place in ``folder`` all at once.

    On any error, a full disk or Ctrl-C included, ``folder`` is as it was before. ``superseded`` names files
    that would be read instead of the new ones, and go away with the same step.

    Raises:
        CheckpointError: ``folder`` is a file, or the system refuses to write there.
    """
    folder = Path(folder)
    stage: Path | None = None
    made: list[Path] = []
    try:
        for parent in (folder, *folder.parents):
            if parent.exists():
                break
            made.append(parent)
        folder.mkdir(parents=True, exist_ok=True)
        _finish(folder)
        stage = Path(tempfile.mkdtemp(prefix=".unfinished-save-", dir=folder))
        yield stage
        for path in stage.rglob("*"):
            flush(path)
        for filename in superseded:
            marker = stage / f"{filename}{SUPERSEDED}"
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
        flush(stage)
        _destinations(folder, stage)
        stage.rename(folder / COMMITTED)
        flush(folder)
        _finish(folder)
    except BaseException as error:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
        if not (folder / COMMITTED).exists():
            for parent in made:
                if parent.is_dir() and not any(parent.iterdir()):
                    parent.rmdir()
        if isinstance(error, OSError) and not isinstance(error, CheckpointError):
            reason = error.strerror or str(error)
            raise CheckpointError(f"{folder}: cannot save: {reason}; nothing there was changed") from error
        raise


def _finish(folder: Path) -> None:
    """Move the files of a committed save into place. Safe to repeat after a crash at any point."""
    committed = folder / COMMITTED
    if not committed.is_dir():
        return
    for path, final in _destinations(folder, committed):
        if path.name.endswith(SUPERSEDED):
            final.with_name(path.name.removesuffix(SUPERSEDED)).unlink(missing_ok=True)
            path.unlink()
        else:
            final.parent.mkdir(parents=True, exist_ok=True)
            path.replace(final)
    shutil.rmtree(committed)  # what folders it had are empty
    flush(folder)


def _destinations(folder: Path, stage: Path) -> list[tuple[Path, Path]]:
    """Each file below ``stage``, and where in ``folder`` it goes.

    Raises:
        CheckpointError: a symbolic link leads out of the folder. Whoever made the folder may have put it there, and a
            save that seems to be unfinished, too.
    """
    found = []
    for path in [path for path in stage.rglob("*") if path.is_symlink() or not path.is_dir()]:
        final = folder / path.relative_to(stage)
        if stage.is_symlink() or path.is_symlink() or not final.parent.resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(f"{final}: a symbolic link leads out of {folder}, expected a folder of plain files")
        found.append((path, final))
    return found


def hold(descriptor: int) -> bool:
    """Hold an open file or folder against other processes until it is closed; False where another one holds it.

    True also where the system has no such locks.
    """
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def flush(path: Path) -> None:
    """Ask the system to have ``path`` on disk before what follows."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder, and orders these itself
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replace_file(path: str | Path) -> Iterator[IO[str]]:
    """Open a text file for writing that takes its place at ``path`` only when all went well; a device is written to.

    Raises:
        CheckpointError: the system refuses to write there; what was there is unchanged.
    """
    path = Path(path)
    unfinished: Path | None = None
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder, expected a file name")
        if path.exists() and not path.is_file():
            with path.open("w", encoding="utf-8") as file:
                yield file
            return
        path = Path(os.path.realpath(path))  # what a link leads to; resolve() fails on one that leads in circles
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
        with unfinished.open("x", encoding="utf-8") as file:
            yield file
        unfinished.replace(path)
    except BaseException as error:
        if unfinished is not None:
            unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, (DistilBertError, BrokenPipeError)):
            raise CheckpointError(f"{path}: cannot write: {error.strerror or error}") from error
        raise
