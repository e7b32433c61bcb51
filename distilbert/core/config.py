"""The model's hyperparameters, with the names and defaults of the Hugging Face config. Imports no framework."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from distilbert.core import hub
from distilbert.core.errors import CheckpointError, ConfigError
from distilbert.core.files import replace_files

CONFIG_FILE = "config.json"
ACTIVATIONS = ("gelu", "relu", "silu", "gelu_new")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
# A config may come from anywhere: beyond these, listing the parameters or the labels alone would fill the memory.
MAX_LAYERS = 10_000
MAX_LABELS = MAX_POSITIONS = 1_000_000
MAX_SIZE = 100_000_000


@dataclass(init=False, eq=False)
class Config:
    """What the configs of all families have in common; each family's class adds its own fields.

    Any field can be given by name; the first ones also by position, as in transformers. A key that is not
    a field is kept in ``extra``, readable as an attribute and written back by ``save_pretrained``; so is an attribute
    that is set later.

    Raises:
        ConfigError: a value that contradicts another one or is out of range. The message names the field.
    """

    model_type: ClassVar[str]
    # Names that other models use for the same thing: accepted on the way in, readable, never written.
    aliases: ClassVar[dict[str, str]] = {"torch_dtype": "dtype"}
    sizes: ClassVar[tuple[str, ...]]  # fields that are lengths of axes
    rates: ClassVar[tuple[str, ...]]  # fields that are dropout rates

    architectures: list[str] | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    dtype: str | None = None
    id2label: dict[int, str] = field(default_factory=lambda: numbered_labels(2))
    label2id: dict[str, int] = field(default_factory=lambda: {"LABEL_0": 0, "LABEL_1": 1})
    problem_type: str | None = None
    pruned_heads: dict[int, list[int]] = field(default_factory=dict)
    tie_word_embeddings: bool = True
    output_attentions: bool = False
    output_hidden_states: bool = False
    return_dict: bool = True
    extra: dict[str, Any] = field(default_factory=dict)

    def __init__(self, *values: Any, **named: Any) -> None:
        common = {entry.name for entry in fields(Config)}
        names = sorted(self.field_names(), key=lambda name: name in common)  # a family's own ones come first
        if len(values) > len(names):
            raise ConfigError(f"{type(self).__name__} takes {len(names)} positional values, got {len(values)}")
        early = self.__dict__.get("extra", {})  # what a subclass has set before
        for entry in fields(self):
            default = entry.default_factory() if callable(entry.default_factory) else entry.default
            object.__setattr__(self, entry.name, default)
        self.extra.update(early)
        self.update(dict(zip(names, values, strict=False)) | named)

    @classmethod
    def field_names(cls) -> list[str]:
        """Every field that can be set, by its own name."""
        return [entry.name for entry in fields(cls)]

    def update(self, values: Mapping[str, Any]) -> None:
        """Set several fields at once (aliases, ``num_labels`` and unknown keys too), then validate.

        Raises:
            ConfigError: the resulting config is not one a model can be built from.
        """
        values = dict(values)
        if "id2label" in values and "label2id" not in values and isinstance(values["id2label"], Mapping):
            values["label2id"] = {str(label): index for index, label in values["id2label"].items()}
        own = set(self.field_names())
        # num_labels first: names given beside it are the better ones
        for name in sorted(values, key=lambda key: key != "num_labels"):
            value = values[name]
            if name == "num_labels":
                if value is not None and value != self.num_labels:
                    self.num_labels = value
            elif name == "model_type":
                if value != self.model_type:
                    raise ConfigError(
                        f'config: model_type is "{value}", expected "{self.model_type}": '
                        f"the checkpoint is not for {type(self).__name__}"
                    )
            elif self.aliases.get(name, name) in own and name != "extra":
                setattr(self, name, value)
            else:
                self.extra[name] = value
        if "num_labels" in values and values["num_labels"] not in (None, len(self.id2label)):
            raise ConfigError(
                f"config: num_labels is {values['num_labels']} but id2label names {len(self.id2label)} labels"
            )
        self.validate()

    def __setattr__(self, name: str, value: Any) -> None:
        name = self.aliases.get(name, name)
        if name == "id2label":
            value = _integer_keys(name, value)
            value = {index: str(label) if type(label) in (int, float) else label for index, label in value.items()}
        elif name == "pruned_heads":
            value = _integer_keys(name, value or {})
        elif name == "label2id" and isinstance(value, Mapping):
            value = {label: int(index) if str(index).isdecimal() else index for label, index in value.items()}
        elif name == "dtype" and value is not None:
            value = str(value).removeprefix("torch.")
        if name in self.field_names() or hasattr(type(self), name) or name.startswith("_"):
            object.__setattr__(self, name, value)
        else:
            self.__dict__.setdefault("extra", {})[name] = value

    def __delattr__(self, name: str) -> None:
        if name in self.extra:
            del self.extra[name]
        else:
            object.__delattr__(self, name)

    def __copy__(self) -> Self:
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__, extra=dict(self.extra))
        return new

    def __getattr__(self, name: str) -> Any:  # only called for what is not a field
        if name in self.aliases:
            return getattr(self, self.aliases[name])
        if "extra" in self.__dict__ and name in self.extra:
            return self.extra[name]
        raise AttributeError(f"{type(self).__name__} has no field {name!r}")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:  # by value, as comparison is: JAX compiles anew for another config
        return hash(repr(self))

    @property
    def num_labels(self) -> int:
        """How many labels the classification heads know; setting it renames them ``LABEL_0`` onwards."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ConfigError(f"config: num_labels is {count!r}, expected an integer of at least 1")
        if count > MAX_LABELS:
            raise ConfigError(f"config: num_labels is {count}, expected at most {MAX_LABELS}")
        self.id2label = numbered_labels(count)
        self.label2id = {label: index for index, label in self.id2label.items()}

    def attention_heads(self, layer: int) -> int:
        """How many attention heads layer number ``layer`` still has after pruning."""
        return self.num_attention_heads - len(self.pruned_heads.get(layer, ()))

    def validate(self) -> None:
        """Check every field against its range and against the others.

        Raises:
            ConfigError: the first field found wrong, with what was expected.
        """
        for name in self.sizes:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"config: {name} is {value!r}, expected an integer of at least 1")
            most = MAX_POSITIONS if name == "max_position_embeddings" else MAX_SIZE
            if value > most:
                raise ConfigError(f"config: {name} is {value}, expected at most {most}")
        layers, heads, size, activation = map(
            self.spelling, ("num_hidden_layers", "num_attention_heads", "hidden_size", "hidden_act")
        )
        if self.num_hidden_layers > MAX_LAYERS:
            raise ConfigError(f"config: {layers} is {self.num_hidden_layers}, expected at most {MAX_LAYERS}")
        for name in self.rates:
            _require_probability(name, getattr(self, name))
        if not isinstance(self.initializer_range, (int, float)) or not 0 <= self.initializer_range < float("inf"):
            raise ConfigError(f"config: initializer_range is {self.initializer_range!r}, expected a number >= 0")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"config: {size} is {self.hidden_size} and {heads} is {self.num_attention_heads}, "
                f"expected {size} divisible by {heads}"
            )
        if not callable(self.hidden_act) and self.hidden_act not in ACTIVATIONS:
            raise ConfigError(
                f"config: {activation} is {self.hidden_act!r}, expected one of {', '.join(ACTIVATIONS)} or a callable"
            )
        pad = self.pad_token_id
        if pad is not None and not (isinstance(pad, int) and 0 <= pad < self.vocab_size):
            raise ConfigError(f"config: pad_token_id is {pad!r}, expected 0 to {self.vocab_size - 1}")
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ConfigError(
                f"config: problem_type is {self.problem_type!r}, expected one of {', '.join(PROBLEM_TYPES)}"
            )
        if sorted(self.id2label) != list(range(len(self.id2label))) or not self.id2label:
            raise ConfigError(f"config: id2label has keys {sorted(self.id2label)}, expected 0, 1, 2, …")
        for index, label in self.id2label.items():
            if not isinstance(label, str):
                raise ConfigError(f"config: id2label of {index} is {label!r:.40}, expected a name")
        if not isinstance(self.label2id, Mapping):
            raise ConfigError(f"config: label2id is {self.label2id!r}, expected a mapping of label to number")
        last_layer, count = self.num_hidden_layers - 1, self.num_attention_heads
        for layer, pruned in self.pruned_heads.items():
            if not 0 <= layer <= last_layer or not isinstance(pruned, (list, tuple, set)):
                raise ConfigError(f"config: pruned_heads names layer {layer}, expected 0 to {last_layer}")
            if not all(type(head) is int and 0 <= head < count for head in pruned) or len(set(pruned)) == count:
                raise ConfigError(
                    f"config: pruned_heads of layer {layer} is {list(pruned)!r:.40}, expected some, not all, of the "
                    f"heads 0 to {count - 1}"
                )

    def spelling(self, name: str) -> str:
        """What the family calls a field that others know by ``name``."""
        return self.aliases.get(name, name)

    def to_dict(self) -> dict[str, Any]:
        """Every field and every extra key, as plain values for JSON (a callable activation stays callable)."""
        values = {name: copy.deepcopy(getattr(self, name)) for name in self.field_names()}
        extra = values.pop("extra")
        values["pruned_heads"] = {layer: sorted(heads) for layer, heads in self.pruned_heads.items()}
        return dict(sorted((extra | values | {"model_type": self.model_type}).items()))

    def to_json_string(self) -> str:
        """The text of ``config.json``.

        Raises:
            ConfigError: a value, such as a callable activation, that JSON cannot hold.
        """
        try:
            text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"
            text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"config: cannot be written as UTF-8: {error}") from None
        except TypeError as error:
            raise ConfigError(
                f"config: cannot be written as JSON: {error}; name a callable activation instead"
            ) from None
        return text

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> Self:
        """Build a config from a mapping such as ``to_dict`` gives; ``overrides`` win.

        Raises:
            ConfigError: see the class.
        """
        values = dict(values)
        if "num_labels" in overrides:  # the stored names belong to the stored number of labels
            if overrides["num_labels"] != len(values.get("id2label", (0, 1))):
                values.pop("id2label", None)
                values.pop("label2id", None)
            values.pop("num_labels", None)
        elif "id2label" in overrides:
            values.pop("label2id", None)
            values.pop("num_labels", None)
        elif "id2label" in values:  # old files store both, and the names decide
            values.pop("num_labels", None)
        return cls(**(values | overrides))

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **overrides: Any,
    ) -> Self:
        """Read ``config.json`` from a folder or a Hub repository; ``overrides`` replace its fields.

        Raises:
            CheckpointError: the folder or repository has no readable ``config.json``.
            ConfigError: its contents are not of this family, or an override is not a field.
        """
        where = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        for name in overrides:
            if cls.aliases.get(name, name) not in (*cls.field_names(), "num_labels"):
                raise ConfigError(f"{name!r} is neither an argument of from_pretrained nor a config field")
        return cls.from_dict(_stored(name_or_path, **where), **overrides)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` into ``folder`` (made if absent), whole or not at all.

        Raises:
            ConfigError: see ``to_json_string``.
            CheckpointError: the folder cannot be written.
        """
        text = self.to_json_string()
        with replace_files(folder) as stage:
            (stage / CONFIG_FILE).write_text(text, encoding="utf-8")


@dataclass(init=False, eq=False)
class DistilBertConfig(Config):
    """Everything that decides a DistilBERT's shape and behaviour; see ``Config``."""

    model_type: ClassVar[str] = "distilbert"
    aliases: ClassVar[dict[str, str]] = Config.aliases | {
        "hidden_size": "dim",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
    }
    sizes: ClassVar[tuple[str, ...]] = (
        *("vocab_size", "max_position_embeddings", "n_layers", "n_heads", "dim", "hidden_dim"),
    )
    rates: ClassVar[tuple[str, ...]] = ("dropout", "attention_dropout", "qa_dropout", "seq_classif_dropout")
    # Not configurable in DistilBERT: every published checkpoint was trained with it.
    layer_norm_eps: ClassVar[float] = 1e-12
    attention_output_dropout: ClassVar[float] = 0.0

    vocab_size: int = 30522
    max_position_embeddings: int = 512
    sinusoidal_pos_embds: bool = False
    n_layers: int = 6
    n_heads: int = 12
    dim: int = 768
    hidden_dim: int = 3072
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation: str | Callable[..., Any] = "gelu"
    initializer_range: float = 0.02
    qa_dropout: float = 0.1
    seq_classif_dropout: float = 0.2
    pad_token_id: int | None = 0

    # Encoders and heads are written in BERT's vocabulary, so that a second family needs no second copy of them.
    @property
    def intermediate_size(self) -> int:
        """Width of the feed-forward layer (``hidden_dim``)."""
        return self.hidden_dim

    @property
    def hidden_act(self) -> str | Callable[..., Any]:
        """The feed-forward layer's activation (``activation``)."""
        return self.activation

    @property
    def hidden_dropout_prob(self) -> float:
        """Dropout after the embeddings and the feed-forward layer (``dropout``)."""
        return self.dropout

    @property
    def attention_probs_dropout_prob(self) -> float:
        """Dropout of the attention probabilities (``attention_dropout``)."""
        return self.attention_dropout

    @property
    def token_classif_dropout(self) -> float:
        """Dropout before the classifier of tokens (``dropout``)."""
        return self.dropout

    def validate(self) -> None:
        """See ``Config.validate``."""
        super().validate()
        if self.sinusoidal_pos_embds and self.dim % 2:
            raise ConfigError(f"config: dim is {self.dim}, expected an even number for sinusoidal positions")

    def spelling(self, name: str) -> str:
        """See ``Config.spelling``."""
        return "activation" if name == "hidden_act" else super().spelling(name)


@dataclass(init=False, eq=False)
class BertConfig(Config):
    """Everything that decides a BERT's shape and behaviour; see ``Config``."""

    model_type: ClassVar[str] = "bert"
    sizes: ClassVar[tuple[str, ...]] = (
        *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
        *("max_position_embeddings", "type_vocab_size"),
    )
    rates: ClassVar[tuple[str, ...]] = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    sinusoidal_pos_embds: ClassVar[bool] = False
    qa_dropout: ClassVar[float] = 0.0

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str | Callable[..., Any] = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    position_embedding_type: str = "absolute"
    use_cache: bool = True  # means nothing to an encoder; transformers has it by position
    classifier_dropout: float | None = None

    @property
    def seq_classif_dropout(self) -> float:
        """Dropout before the classifier (``classifier_dropout``, by default as everywhere else)."""
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout

    @property
    def token_classif_dropout(self) -> float:
        """The same, before the classifier of tokens."""
        return self.seq_classif_dropout

    @property
    def attention_output_dropout(self) -> float:
        """Dropout after the attention's output projection, which DistilBERT lacks."""
        return self.hidden_dropout_prob

    def validate(self) -> None:
        """See ``Config.validate``."""
        super().validate()
        if self.classifier_dropout is not None:
            _require_probability("classifier_dropout", self.classifier_dropout)
        if not isinstance(self.layer_norm_eps, (int, float)) or not 0 < self.layer_norm_eps < 1:
            raise ConfigError(f"config: layer_norm_eps is {self.layer_norm_eps!r}, expected a small number above 0")
        if self.position_embedding_type != "absolute":
            raise ConfigError(
                f'config: position_embedding_type is {self.position_embedding_type!r}, expected "absolute"; '
                "relative positions are not supported"
            )
        for name in ("is_decoder", "add_cross_attention"):
            if self.extra.get(name):
                raise ConfigError(f"config: {name} is set, expected an encoder; BERT as a decoder is not supported")


# By model_type.
CONFIGS: dict[str, type[Config]] = {cls.model_type: cls for cls in (DistilBertConfig, BertConfig)}


def read_config(name_or_path: str | Path, **where: Any) -> Config:
    """Read ``config.json`` as the config of whichever family it names.

    Args:
        name_or_path: a folder, or a Hub id.
        where: ``revision``, ``cache_dir``, ``local_files_only``, ``token``: see ``hub.find_file``.

    Raises:
        CheckpointError: no readable ``config.json`` there.
        ConfigError: an unknown family, or contents that are not that family's.
    """
    return config_from_dict(_stored(name_or_path, **where))


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """A config of the family that ``model_type`` in ``values`` names.

    Raises:
        ConfigError: an unknown family, or values that are not that family's.
    """
    # Configs of 2019 do not name it; only BERT's have segments.
    family = values.get("model_type") or ("bert" if "type_vocab_size" in values else "distilbert")
    if not isinstance(family, str) or family not in CONFIGS:
        raise ConfigError(f"config: model_type is {family!r:.80}, expected one of {', '.join(CONFIGS)}")
    return CONFIGS[family].from_dict(values)


def _stored(name_or_path: str | Path, **where: Any) -> dict[str, Any]:
    """What is in ``config.json``."""
    path = hub.find_file(name_or_path, CONFIG_FILE, **where)
    if path is None:
        raise CheckpointError(f"{name_or_path}: no {CONFIG_FILE} there; expected a folder with a saved model")
    values = hub.read_json(path)
    if "registered_name" in values:  # Keras's own: another kind of config of the same name
        raise ConfigError(
            f"{path}: is a config of Keras's {values['registered_name']!r:.80}, expected one of {', '.join(CONFIGS)}; "
            "turn a KerasHub preset into a checkpoint with `distilbert convert`"
        )
    return values


def numbered_labels(count: int) -> dict[int, str]:
    """Names for labels that have none: ``{0: "LABEL_0", 1: "LABEL_1", …}``."""
    return {index: f"LABEL_{index}" for index in range(count)}


def _require_probability(name: str, value: Any) -> None:
    """Refuse a dropout rate that is none."""
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ConfigError(f"config: {name} is {value!r}, expected a probability from 0 to 1")


def _integer_keys(name: str, value: Any) -> dict[int, Any]:
    """JSON has only strings as keys, so a stored mapping by number comes back with strings."""
    try:
        return {int(key): entry for key, entry in value.items()}
    except (AttributeError, TypeError, ValueError):
        raise ConfigError(f"config: {name} is {value!r}, expected a mapping whose keys are numbers") from None
