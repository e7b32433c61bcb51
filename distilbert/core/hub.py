"""Finding a checkpoint's files, in a folder or on the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from distilbert.core.errors import CheckpointError
from distilbert.core.files import current_file

CHUNK_BYTES = 1 << 20


def find_file(
    name_or_path: str | Path,
    filename: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path | None:
    """The local path of one file of a checkpoint, fetched from the Hub where need be.

    Args:
        name_or_path: a folder, or a Hub id such as ``distilbert/distilbert-base-uncased``.
        filename: a plain file name.
        revision: a branch, tag or commit of the Hub repository.
        cache_dir: where the Hub's files are kept, by default where ``huggingface_hub`` keeps them.
        local_files_only: never ask the network.
        token: a Hub token, or False to send none.

    Returns:
        The path, or None if the folder or repository is there and lacks the file.

    Raises:
        CheckpointError: the folder does not exist, or the repository cannot be reached and is not cached.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        path = current_file(folder, filename)
        return path if path.is_file() else None
    name = str(name_or_path)
    if folder.exists():
        raise CheckpointError(f"{name}: is a file; expected the folder that holds it and its config.json")
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or not name:
        raise CheckpointError(f"{name!r}: no such folder")

    # Imported here because it takes longer to import than everything else in core together.
    import huggingface_hub
    from huggingface_hub import errors

    try:
        before = huggingface_hub.try_to_load_from_cache(name, filename, cache_dir, revision)
        found = huggingface_hub.hf_hub_download(
            name,
            filename,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
        )
    except errors.LocalEntryNotFoundError:
        # Offline. The repository may be cached without this file, which another of its formats replaces.
        if _is_cached(name, revision, cache_dir):
            return None
        raise CheckpointError(
            f"{name}: no such folder, and not in the local Hub cache, and the Hub cannot be reached "
            "(or is switched off); check the name or the connection"
        ) from None
    except errors.EntryNotFoundError:
        return None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{name}: the Hub repository has no revision {revision!r}") from None
    except errors.GatedRepoError:
        raise CheckpointError(f"{name}: access needs its owner's consent on the Hub and a token=") from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"{name}: no such folder, and no such repository on the Hub (a private one needs token=)"
        ) from None
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        raise CheckpointError(f"{name}: the Hub answered: {str(error).splitlines()[0]}") from None
    except Exception as error:  # of the HTTP library, which is another with other versions of the Hub's
        raise CheckpointError(f"{name}: the download of {filename} broke off: {error}; try again") from None
    if found != before:
        _verify(Path(found), name)
    return Path(found)


def _verify(path: Path, name: str) -> None:
    """Check a file just downloaded: the Hub's cache names it by the hash that the server gave before.

    That is the SHA-256 of large files and Git's SHA-1 of small ones.

    Raises:
        CheckpointError: it has another; it is deleted, so that it is not taken from the cache the next time.
    """
    blob = path.resolve()
    size = len(blob.name)
    if size not in (40, 64) or not set(blob.name) <= set("0123456789abcdef"):
        return  # where the system has no links, or for a server that is not the Hub
    hashed = hashlib.sha256() if size == 64 else hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
    with blob.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            hashed.update(chunk)
    if hashed.hexdigest() != blob.name:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise CheckpointError(f"{name}: {path.name} arrived damaged (its hash is not {blob.name}); try again")


def _is_cached(name: str, revision: str | None, cache_dir: str | Path | None) -> bool:
    import huggingface_hub

    return any(
        isinstance(huggingface_hub.try_to_load_from_cache(name, filename, cache_dir, revision), str)
        for filename in ("config.json", "tokenizer_config.json", "vocab.txt", "tokenizer.json")
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that must hold one object.

    Raises:
        CheckpointError: it does not, or is not readable at all.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON: {str(error).splitlines()[0]}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(value).__name__}, expected an object")
    return value
