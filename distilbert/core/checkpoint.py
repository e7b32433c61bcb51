"""Loading and saving a checkpoint as numpy arrays under canonical names, without any framework."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distilbert.core import hub
from distilbert.core.config import CONFIG_FILE, DistilBertConfig
from distilbert.core.errors import CheckpointError, InputError
from distilbert.core.files import replace_files
from distilbert.core.formats import safetensors, torch_bin
from distilbert.core.spec import DISTILBERT, Family, Parameter

logger = logging.getLogger("distilbert")

Tensors = dict[str, np.ndarray]

# Every file name a checkpoint may have, in the order of preference, with its reader.
SAFETENSORS_FILE = "model.safetensors"
READERS: dict[str, Callable[[Path], Tensors]] = {
    SAFETENSORS_FILE: safetensors.read,
    "pytorch_model.bin": torch_bin.read,
}
INDEX_SUFFIX = ".index.json"

# Names that old checkpoints use, and wrappers that training scripts leave behind.
OLD_NAMES = (
    (re.compile(r"\.gamma$"), ".weight"),
    (re.compile(r"\.beta$"), ".bias"),
    (re.compile(r"^(module\.|_orig_mod\.)+"), ""),
)
# Counters that old versions stored beside the parameters. They hold nothing that was learned.
NOT_PARAMETERS = re.compile(r"\.position_ids$")


@dataclass
class LoadReport:
    """How a checkpoint's tensors compare with what the model has; each entry is a canonical name."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)  # found, expected


def read_checkpoint(name_or_path: str | Path, **where: Any) -> tuple[Tensors, Path]:
    """Open a checkpoint's weights, whichever of the known formats it is stored in.

    Args:
        name_or_path: a folder or a Hub id.
        where: ``revision``, ``cache_dir``, ``local_files_only``, ``token``: see ``hub.find_file``.

    Returns:
        The tensors under the names in the file (read-only views of the mapped file: nothing is read until it
        is touched), and the path of the file, or of the index where the weights are sharded.

    Raises:
        CheckpointError: no weights there, or a file that is damaged or unsafe to read.
    """
    for filename, read in READERS.items():
        path = hub.find_file(name_or_path, filename, **where)
        if path is not None:
            return read(path), path
        index = hub.find_file(name_or_path, filename + INDEX_SUFFIX, **where)
        if index is not None:
            return _read_shards(name_or_path, index, read, where), index
    raise CheckpointError(f"{name_or_path}: no weights there; expected {' or '.join(READERS)}")


def _read_shards(
    name_or_path: str | Path, index: Path, read: Callable[[Path], Tensors], where: Mapping[str, Any]
) -> Tensors:
    weight_map = hub.read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index}: has no weight_map of tensor names to file names")
    tensors: Tensors = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or "\\" in shard:  # an index may not point outside its folder
            raise CheckpointError(f"{index}: names the shard {shard!r}, expected a plain file name")
        path = hub.find_file(name_or_path, shard, **where)
        if path is None:
            raise CheckpointError(f"{index}: names the shard {shard}, which is not there")
        for name, tensor in read(path).items():
            if weight_map.get(name) == shard:
                tensors[name] = tensor
    absent = sorted(weight_map.keys() - tensors.keys())
    if absent:
        raise CheckpointError(f"{index}: promises {_listed(absent)}, which the shards do not hold")
    return tensors


def match(
    tensors: Mapping[str, np.ndarray],
    expected: Iterable[Parameter],
    *,
    source: str,
    ignore_mismatched_sizes: bool = False,
    family: Family = DISTILBERT,
) -> tuple[Tensors, LoadReport]:
    """Find each parameter's tensor in a checkpoint, by rules that also know the old names.

    A head's checkpoint loads into the bare encoder and the reverse: the family's prefix does not matter.

    Args:
        tensors: as stored, in PyTorch's orientation.
        expected: the model's parameters.
        source: the checkpoint, as messages call it.
        ignore_mismatched_sizes: take a tensor of the wrong shape for missing instead of failing.
        family: whose prefix to look through.

    Returns:
        The tensors by canonical name (none for missing and tied parameters), and the report.

    Raises:
        CheckpointError: encoder weights are missing, or shapes contradict the config; all are named.
    """
    expected = tuple(expected)
    stored: dict[str, str] = {}  # bare name: name in the file
    clashes: Counter[str] = Counter()
    for name in tensors:
        bare = _bare(name, family)
        if not NOT_PARAMETERS.search(bare):
            clashes[bare] += bare in stored
            stored[bare] = name
    doubled = [bare for bare, count in clashes.items() if count]
    if doubled:
        raise CheckpointError(f"{source}: holds {_listed(doubled)} more than once, under different prefixes")

    for parameter in expected:  # some files hold a tied parameter twice, or only under its other name
        if parameter.tied_to is not None and (bare := _bare(parameter.name, family)) in stored:
            stored.setdefault(_bare(parameter.tied_to, family), stored.pop(bare))

    found: Tensors = {}
    report = LoadReport()
    for parameter in expected:
        if parameter.tied_to is not None:
            continue
        name = stored.pop(_bare(parameter.name, family), "")
        if not name:
            report.missing.append(parameter.name)
        elif tensors[name].shape != parameter.shape:
            report.mismatched[parameter.name] = (tensors[name].shape, parameter.shape)
        else:
            found[parameter.name] = tensors[name]
    report.unexpected = list(stored.values())
    _judge(report, expected, source, ignore_mismatched_sizes)
    return found, report


def _bare(name: str, family: Family) -> str:
    for pattern, replacement in OLD_NAMES:
        name = pattern.sub(replacement, name)
    return name.removeprefix(family.prefix + ".")


def _judge(report: LoadReport, expected: tuple[Parameter, ...], source: str, ignore_mismatched_sizes: bool) -> None:
    """Raise for what makes the model wrong, warn of what the user should know; one message for each."""
    head = {parameter.name for parameter in expected if parameter.section == "head"}
    missing_encoder = [name for name in report.missing if name not in head]
    problems = []
    if missing_encoder:
        problems.append(f"encoder weights are missing: {_listed(missing_encoder)}")
    if report.mismatched and not ignore_mismatched_sizes:
        shapes = [f"{name} is {found}, expected {wanted}" for name, (found, wanted) in report.mismatched.items()]
        problems.append(f"shapes contradict the config: {_listed(shapes)} (ignore_mismatched_sizes=True skips them)")
    if problems and report.unexpected:
        problems.append(f"not part of this model: {_listed(report.unexpected)}")
    if problems:
        raise CheckpointError(f"{source}: {'; '.join(problems)}")
    fresh = report.missing + list(report.mismatched)
    if fresh:
        logger.warning(
            "%s: newly initialised because the checkpoint has no such weights of that shape: %s; "
            "train the model before using it",
            source,
            _listed(fresh),
        )
    if report.unexpected:
        logger.warning("%s: not used by this model: %s", source, _listed(report.unexpected))


def _listed(names: Iterable[str]) -> str:
    """All of a short list, the beginning of a long one."""
    names = list(names)
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def write_checkpoint(
    folder: str | Path,
    config: DistilBertConfig,
    tensors: Mapping[str, np.ndarray],
    *,
    max_shard_size: int | str = "5GB",
) -> list[Path]:
    """Save a config and its weights as safetensors, all of it or nothing.

    Args:
        folder: where to; made if absent. Other files in it stay.
        config: written as ``config.json``.
        tensors: by canonical name; tied parameters left out.
        max_shard_size: bytes, or a text such as ``"500MB"``. Weights above it are split into several files
            with an index; a tensor larger than that has a file of its own.

    Returns:
        The files written.

    Raises:
        CheckpointError: the folder cannot be written, or the disk is full. What was there is unchanged.
        ConfigError: the config cannot be written as JSON.
        InputError: ``max_shard_size`` is not a size.
    """
    text = config.to_json_string()
    shards = _split(tensors, _bytes(max_shard_size))
    index_file = SAFETENSORS_FILE + INDEX_SUFFIX
    stem = SAFETENSORS_FILE.removesuffix(".safetensors")
    if len(shards) == 1:
        filenames, superseded = [SAFETENSORS_FILE], (index_file,)
    else:
        filenames = [f"{stem}-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
        superseded = (SAFETENSORS_FILE,)
    with replace_files(folder, superseded) as stage:
        (stage / CONFIG_FILE).write_text(text, encoding="utf-8")
        for filename, shard in zip(filenames, shards, strict=True):
            safetensors.write(stage / filename, shard)
        if len(shards) > 1:
            index = {
                "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
                "weight_map": {
                    name: filename for filename, shard in zip(filenames, shards, strict=True) for name in shard
                },
            }
            (stage / index_file).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        written = [Path(folder) / path.name for path in sorted(stage.iterdir())]
    for path in Path(folder).glob(f"{stem}-[0-9]*-of-[0-9]*.safetensors"):  # shards of the checkpoint replaced
        if path.name not in filenames:
            path.unlink()
    return written


def _split(tensors: Mapping[str, np.ndarray], limit: int) -> list[Tensors]:
    shards: list[Tensors] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def _bytes(size: int | str) -> int:
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    parsed = re.fullmatch(r"\s*(\d+)\s*([A-Z]*)\s*", str(size).upper())
    if not parsed or parsed[2] not in units or int(parsed[1]) < 1:
        raise InputError(f'max_shard_size is {size!r}, expected bytes or a text such as "5GB" or "200MB"')
    return int(parsed[1]) * units[parsed[2]]
