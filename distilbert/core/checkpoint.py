"""Loading and saving a checkpoint as numpy arrays under canonical names, without any framework."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distilbert.core import hub
from distilbert.core.config import CONFIG_FILE, Config
from distilbert.core.errors import CheckpointError, InputError
from distilbert.core.files import current_file, replace_files
from distilbert.core.formats import flax_msgpack, h5, keras, safetensors, torch_bin, torch_bin_writer
from distilbert.core.spec import (
    DISTILBERT,
    FLAX,
    KERAS,
    TENSORFLOW,
    TORCH,
    Family,
    Kind,
    Layout,
    Parameter,
    canonical_name,
    family_of,
    parameters,
)

logger = logging.getLogger("distilbert")

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Owner:
    """What tensors belong to: the layouts of some formats depend on it."""

    family: Family
    head: str
    config: Config
    listed: tuple[Parameter, ...]


def _write_safetensors(path: Path, tensors: Tensors, owner: Owner, is_shard: bool) -> None:
    safetensors.write(path, tensors)


def _write_torch(path: Path, tensors: Tensors, owner: Owner, is_shard: bool) -> None:
    if not is_shard:  # PyTorch's state dict names a tied parameter too
        tied = {parameter.name: parameter.tied_to for parameter in owner.listed if parameter.tied_to is not None}
        tensors = tensors | {name: tensors[shared] for name, shared in tied.items()}
    torch_bin_writer.write(path, tensors)


def _write_h5(path: Path, tensors: Tensors, owner: Owner, is_shard: bool) -> None:
    if is_shard:
        h5.write_shard(path, tensors)
    else:
        h5.write(path, _keras_layers(tensors, owner), _keras_scope(owner))


def _write_msgpack(path: Path, tensors: Tensors, owner: Owner, is_shard: bool) -> None:
    flax_msgpack.write(path, tensors)


def _write_keras(path: Path, tensors: Tensors, owner: Owner, is_shard: bool) -> None:
    keras.write_archive(path, tensors, owner.listed, owner.family, owner.head, owner.config)


def _write_keras_weights(path: Path, tensors: Tensors, owner: Owner, is_shard: bool) -> None:
    keras.write_weights(path, tensors, owner.listed, owner.family)


def _keras_scope(owner: Owner) -> str:
    return h5.scope(f"TF{owner.family.class_name(owner.head)}")


def _keras_layers(tensors: Tensors, owner: Owner) -> dict[str, Tensors]:
    """TensorFlow's tensors by top layer. A layer with a tied parameter repeats the embeddings it is tied to."""
    layers: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        layers.setdefault(name.split("/")[0], {})[name] = tensor
    embeddings = {name: tensor for name, tensor in tensors.items() if f"/{owner.family.embeddings_path}/" in name}
    for parameter in owner.listed:
        if parameter.tied_to is not None and parameter.kind is Kind.WEIGHT:
            layers[TENSORFLOW.name(parameter).split("/")[0]] |= embeddings
    return layers


@dataclass(frozen=True)
class Format:
    """A kind of file that weights are kept in: what it is called, how it is read, and where it is, written."""

    filename: str
    read: Callable[[Path], Tensors]
    write: Callable[[Path, Tensors, Owner, bool], None] | None = None
    layout: Layout = TORCH
    is_always_prefixed: bool = False  # the encoder's names, in a bare encoder too
    from_index: Callable[[str], str] = str  # from a name in the index of a sharded checkpoint to that in the shard
    to_index: Callable[[str, Owner], str] = lambda name, owner: name
    framework: str = "torch"  # whose format it is
    suffix: str = ""  # where users choose the name, what such a file's ends in
    is_one_file: bool = False  # however large

    @property
    def index_file(self) -> str:
        """Where a sharded checkpoint says which file holds what."""
        return f"{self.filename}.index.json"

    def has_name(self, path: Path) -> bool:
        """Whether a file is called as these weights, or their index, are."""
        return path.name in (self.filename, self.index_file)

    def is_in(self, folder: Path) -> bool:
        """Whether a folder holds such weights."""
        return any(current_file(folder, filename).is_file() for filename in (self.filename, self.index_file))

    def shard_file(self, number: int, count: int) -> str:
        """The name of file ``number`` of ``count``."""
        stem, suffix = self.filename.rsplit(".", 1)
        return f"{stem}-{number:05}-of-{count:05}.{suffix}"

    def name(self, parameter: Parameter, family: Family) -> str:
        """What this format calls a parameter."""
        name, prefix = self.layout.name(parameter), family.prefix + self.layout.separator
        if self.is_always_prefixed and parameter.section != "head" and not name.startswith(prefix):
            return prefix + name
        return name

    def arrange(self, tensors: Mapping[str, np.ndarray], owner: Owner) -> Tensors:
        """Tensors under canonical names with the names and the orientation of this format."""
        return {
            self.name(row, owner.family): tensors[row.name].T if self.layout.is_transposed(row) else tensors[row.name]
            for row in owner.listed
            if row.name in tensors
        }


# In the order of preference, where a folder holds several.
FORMATS = {
    "safetensors": Format("model.safetensors", safetensors.read, _write_safetensors),
    "torch": Format("pytorch_model.bin", torch_bin.read, _write_torch),
    "h5": Format(
        "tf_model.h5",
        h5.read,
        _write_h5,
        TENSORFLOW,
        is_always_prefixed=True,
        framework="tf",
        from_index=h5.plain_name,
        to_index=lambda name, owner: h5.scoped_name(name, _keras_scope(owner)),
    ),
    "msgpack": Format("flax_model.msgpack", flax_msgpack.read, _write_msgpack, FLAX, framework="flax"),
    "keras": Format(
        *("model.keras", keras.read_archive, _write_keras, KERAS),
        framework="tf",
        suffix=keras.SUFFIX,
        is_one_file=True,
    ),
    "keras-weights": Format(
        *("model.weights.h5", keras.read_weights, _write_keras_weights, KERAS),
        framework="tf",
        suffix=".weights.h5",
        is_one_file=True,
    ),
}

# Wrappers that training scripts leave behind.
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")
# Counters that old versions stored beside the parameters, and in Keras's files the state of training. They hold nothing
# that the model computes with.
NOT_PARAMETERS = re.compile(r"\.position_ids$|\b(optimizer|seed_generator)\.(\w+\.)*vars\.\d+$")


@dataclass
class LoadReport:
    """How a checkpoint's tensors compare with what the model has; each entry is a canonical name."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)  # found, expected


def require_head(report: LoadReport, head: str, source: str | Path) -> None:
    """Refuse to answer with a head that was never trained.

    Raises:
        CheckpointError: the checkpoint lacks weights of the head.
    """
    if report.missing:
        raise CheckpointError(
            f"{source}: holds no trained {head} head (it lacks {', '.join(report.missing)}); "
            "train one first, or pick another task"
        )


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
    for form in FORMATS.values():
        found = read_format(name_or_path, form, **where)
        if found is not None:
            return found
    filenames = " or ".join(form.filename for form in FORMATS.values())
    raise CheckpointError(f"{name_or_path}: no weights there; expected {filenames}")


def read_format(name_or_path: str | Path, form: Format, **where: Any) -> tuple[Tensors, Path] | None:
    """As ``read_checkpoint``, of one format; None where the checkpoint has none of it."""
    path = hub.find_file(name_or_path, form.filename, **where)
    if path is not None:
        return form.read(path), path
    index = hub.find_file(name_or_path, form.index_file, **where)
    return None if index is None else (_read_shards(name_or_path, index, form, where), index)


def _read_shards(name_or_path: str | Path, index: Path, form: Format, where: Mapping[str, Any]) -> Tensors:
    weight_map = hub.read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index}: has no weight_map of tensor names to file names")
    weight_map = {form.from_index(name): shard for name, shard in weight_map.items()}
    tensors: Tensors = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or "\\" in shard:  # an index may not point outside its folder
            raise CheckpointError(f"{index}: names the shard {shard!r}, expected a plain file name")
        path = hub.find_file(name_or_path, shard, **where)
        if path is None:
            raise CheckpointError(f"{index}: names the shard {shard}, which is not there")
        for name, tensor in form.read(path).items():
            if weight_map.get(name) == shard:
                tensors[name] = tensor
    absent = sorted(weight_map.keys() - tensors.keys())
    if absent:
        raise CheckpointError(f"{index}: promises {_listed(absent)}, which the shards do not hold")
    return tensors


def load_config(
    name_or_path: str | Path,
    config: Config | str | Path | None,
    overrides: Mapping[str, Any],
    family: Family,
    **where: Any,
) -> Config:
    """The stored config; or the given one, or that of another folder; with some fields replaced.

    Raises:
        CheckpointError: there is none.
        ConfigError: it is not valid, or an override is not a config field.
    """
    if config is None or isinstance(config, (str, Path)):
        return family.config.from_pretrained(name_or_path if config is None else config, **where, **overrides)
    return config.from_dict(config.to_dict(), **overrides) if overrides else config


def load(
    name_or_path: str | Path,
    head: str,
    *,
    config: Config | str | Path | None,
    overrides: Mapping[str, Any],
    ignore_mismatched_sizes: bool,
    family: Family,
    extras: Mapping[str, tuple[int, ...]] | None = None,
    **where: Any,
) -> tuple[Config, Tensors, LoadReport]:
    """What every backend's ``from_pretrained`` begins with: the config, and the tensors as ``match`` gives them.

    Raises:
        CheckpointError: the checkpoint is absent, damaged or unsafe, or does not fit the config.
        ConfigError: the config is not valid, or an override is not a config field.
    """
    config = load_config(name_or_path, config, overrides, family, **where)
    stored, path = read_checkpoint(name_or_path, **where)
    listed = parameters(config, head, family)
    tensors, report = match(
        stored,
        listed,
        source=str(path),
        ignore_mismatched_sizes=ignore_mismatched_sizes,
        family=family,
        extras=extras or {},
    )
    return config, tensors, report


def match(
    tensors: Mapping[str, np.ndarray],
    expected: Iterable[Parameter],
    *,
    source: str,
    ignore_mismatched_sizes: bool = False,
    family: Family = DISTILBERT,
    extras: Mapping[str, tuple[int, ...]] | None = None,
) -> tuple[Tensors, LoadReport]:
    """Find each parameter's tensor in a checkpoint, by name, whichever framework's names and old names it uses.

    A head's checkpoint loads into the bare encoder and the reverse: the family's prefix does not matter.

    Args:
        tensors: as stored.
        expected: the model's parameters.
        source: the checkpoint, as messages call it.
        ignore_mismatched_sizes: take a tensor of the wrong shape for missing instead of failing.
        family: whose prefix to look through.
        extras: names and shapes of what the user's own subclass has besides; taken as stored.

    Returns:
        The tensors by canonical name, in PyTorch's orientation (none for missing and tied parameters, nor for a
        sinusoidal table that is not stored), and the report.

    Raises:
        CheckpointError: encoder weights are missing, or shapes contradict the config; all are named.
    """
    expected = tuple(expected)
    pairing = pair(tensors, expected, source=source, family=family)
    found: Tensors = {}
    report = LoadReport(unexpected=list(pairing.unused))
    for parameter in expected:
        if parameter.tied_to is not None:
            continue
        if parameter.name not in pairing.stored:
            if parameter.kind is not Kind.SINUSOID:  # transformers' Flax never stored these: the formula is enough
                report.missing.append(parameter.name)
            continue
        tensor = oriented(tensors, pairing.stored[parameter.name])
        if tensor.shape != parameter.shape:
            report.mismatched[parameter.name] = (tensor.shape, parameter.shape)
        else:
            found[parameter.name] = tensor
    for name, shape in (extras or {}).items():
        if name not in pairing.unused:
            report.missing.append(name)
            continue
        report.unexpected.remove(name)
        if tensors[name].shape != shape:
            report.mismatched[name] = (tensors[name].shape, shape)
        else:
            found[name] = tensors[name]
    _judge(report, expected, source, ignore_mismatched_sizes)
    return found, report


@dataclass(frozen=True)
class Pairing:
    """Which stored name stands for which parameter."""

    stored: dict[str, str]  # by canonical name
    repeated: dict[str, str]  # stored names of tied parameters, with the canonical name of what they repeat
    counters: list[str]  # stored names of what was never a parameter
    unused: list[str]  # stored names that are not part of the model


def pair(tensors: Iterable[str], expected: Iterable[Parameter], *, source: str, family: Family = DISTILBERT) -> Pairing:
    """Pair stored names with parameters; see ``match``.

    Raises:
        CheckpointError: two names for one parameter.
    """
    expected = tuple(expected)
    counters: list[str] = []
    stored: dict[str, str] = {}  # bare name: name in the file
    doubled: list[str] = []
    for name in tensors:
        bare = _bare(name, family)
        if NOT_PARAMETERS.search(bare):
            counters.append(name)
            continue
        if bare in stored:
            doubled.append(bare)
        stored[bare] = name
    if doubled:
        raise CheckpointError(f"{source}: holds {_listed(doubled)} more than once, under different prefixes")

    repeated: dict[str, str] = {}
    for parameter in expected:  # some files hold a tied parameter twice, or only under its other name
        if parameter.tied_to is not None and (bare := _bare(parameter.name, family)) in stored:
            name = stored.pop(bare)
            if stored.setdefault(_bare(parameter.tied_to, family), name) != name:
                repeated[name] = parameter.tied_to
    own = [(parameter.name, _bare(parameter.name, family)) for parameter in expected if parameter.tied_to is None]
    paired = {name: stored.pop(bare) for name, bare in own if bare in stored}
    return Pairing(paired, repeated, counters, list(stored.values()))


def oriented(tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """A stored tensor in PyTorch's orientation."""
    return tensors[name].T if canonical_name(name)[1] else tensors[name]


def _bare(name: str, family: Family) -> str:
    return WRAPPERS.sub("", canonical_name(name)[0]).removeprefix(family.prefix + ".")


def _judge(report: LoadReport, expected: tuple[Parameter, ...], source: str, ignore_mismatched_sizes: bool) -> None:
    """Raise for what makes the model wrong, warn of what the user should know; one message for each."""
    encoder = {parameter.name for parameter in expected if parameter.section in ("embeddings", "layer")}
    missing_encoder = [name for name in report.missing if name in encoder]
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


def shown(name: str) -> str:
    """A name out of a file as messages have it: on one line, and not endless."""
    return (name if name.isprintable() else repr(name))[:200]


def _listed(names: Iterable[str]) -> str:
    """All of a short list, the beginning of a long one."""
    names = list(map(shown, names))
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


@dataclass(frozen=True)
class Save:
    """A checkpoint about to be written: its config's text, and which file gets which tensors, in the format's layout.

    Raises:
        ConfigError: the config cannot be written as JSON.
        InputError: ``max_shard_size`` is not a size, ``file_format`` not a format that is written.
    """

    form: Format
    owner: Owner
    config_text: str
    files: dict[str, Tensors]

    @classmethod
    def prepare(
        cls,
        config: Config,
        tensors: Mapping[str, np.ndarray],
        *,
        head: str,
        file_format: str,
        max_shard_size: int | str,
        family: Family,
        extras: Mapping[str, np.ndarray] | None = None,
    ) -> Save:
        """Arrange tensors under canonical names; see ``write_checkpoint``."""
        form = FORMATS.get(file_format)
        if form is None or form.write is None:
            writable = [name for name, entry in FORMATS.items() if entry.write is not None]
            raise InputError(f"the format is {file_format!r}, expected one of {', '.join(writable)}")
        owner = Owner(family, head, config, parameters(config, head, family))
        limit = _bytes(max_shard_size)
        arranged = form.arrange(tensors, owner) | dict(extras or {})
        shards = [arranged] if form.is_one_file else _split(arranged, limit)
        filenames = [form.shard_file(number, len(shards)) for number in range(1, len(shards) + 1)]
        if len(shards) == 1:
            filenames = [form.filename]
        return cls(form, owner, config.to_json_string(), dict(zip(filenames, shards, strict=True)))

    @property
    def is_sharded(self) -> bool:
        """Whether there are several files and an index."""
        return len(self.files) > 1

    @property
    def written(self) -> list[str]:
        """What is written, by name."""
        return [CONFIG_FILE, *self.files, *([self.form.index_file] if self.is_sharded else [])]

    def write(self, folder: Path) -> None:
        """Write everything into an empty folder, one tensor at a time."""
        assert self.form.write is not None
        (folder / CONFIG_FILE).write_text(self.config_text, encoding="utf-8")
        for filename, shard in self.files.items():
            self.form.write(folder / filename, shard, self.owner, self.is_sharded)
        if self.is_sharded:
            weight_map = {
                self.form.to_index(name, self.owner): filename
                for filename, shard in self.files.items()
                for name in shard
            }
            size = sum(tensor.nbytes for shard in self.files.values() for tensor in shard.values())
            index = {"metadata": {"total_size": size}, "weight_map": weight_map}
            (folder / self.form.index_file).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_checkpoint(
    folder: str | Path,
    config: Config,
    tensors: Mapping[str, np.ndarray],
    *,
    head: str,
    file_format: str = "safetensors",
    max_shard_size: int | str = "5GB",
    family: Family | None = None,
    extras: Mapping[str, np.ndarray] | None = None,
) -> list[Path]:
    """Save a config and its weights, all of it or nothing.

    Args:
        folder: where to; made if absent. Other files in it stay.
        config: written as ``config.json``.
        tensors: by canonical name, in PyTorch's orientation; tied parameters left out.
        head: the spec's name for what the model computes.
        file_format: ``"safetensors"``, or as transformers 4 wrote it ``"h5"`` for TensorFlow, ``"msgpack"`` for Flax;
            ``"keras"`` and ``"keras-weights"`` as Keras 3 does for our classes.
        max_shard_size: bytes, or a text such as ``"500MB"``. Weights above it are split into several files
            with an index; a tensor larger than that has a file of its own. Keras 3's are always one file.
        family: what the parameters belong to, by default the config's.
        extras: what a user's own subclass has besides, written as it is; in safetensors.

    Returns:
        The files written.

    Raises:
        CheckpointError: the folder cannot be written, the disk is full, or the folder has weights in a format
            that would be read instead of the new ones. What was there is unchanged.
        ConfigError: the config cannot be written as JSON.
        InputError: ``max_shard_size`` is not a size, ``file_format`` not a format that is written, or a tensor is
            of integers, as quantised ones are, or has another shape than the config says.
    """
    family = family or family_of(config)
    shapes = {row.name: row.shape for row in parameters(config, head, family)}
    for name, value in tensors.items():
        if np.issubdtype(value.dtype, np.integer):
            raise InputError(
                f"{name} is {value.dtype}, expected floats: a quantised model is no checkpoint; save it before that"
            )
        if value.shape != shapes.get(name, value.shape):
            raise InputError(
                f"{name} is {value.shape}, expected {shapes[name]} as the config says: no checkpoint, as it could not "
                "be loaded; resize or prune the whole model, not a part of it"
            )
    save = Save.prepare(
        config,
        tensors,
        head=head,
        file_format=file_format,
        max_shard_size=max_shard_size,
        family=family,
        extras=extras,
    )
    form = save.form
    for other in list(FORMATS.values())[: list(FORMATS).index(file_format)]:
        if other.is_in(Path(folder)):
            raise CheckpointError(
                f"{folder}: holds {other.filename}, which would be read instead; remove it or save elsewhere"
            )
    with replace_files(folder, (form.filename if save.is_sharded else form.index_file,)) as stage:
        save.write(stage)
        written = [Path(folder) / path.name for path in sorted(stage.iterdir())]
    stem, suffix = form.filename.rsplit(".", 1)
    for path in Path(folder).glob(f"{stem}-[0-9]*-of-[0-9]*.{suffix}"):  # shards of the checkpoint replaced
        if path.name not in save.files:
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
