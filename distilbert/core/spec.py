"""The one table of parameters, and what follows from it for every framework.

Each row names a module of the network: the role it plays in the encoder's code, where Hugging Face's PyTorch
state dict keeps it, its kind, and its dimensions in config terms. Everything else about a parameter (full
name, shape, initial value, name and transposition in another framework, which axes may be sharded) is derived
from its row here, and nowhere else. A head is rows; a family of models is a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import numpy as np

from distilbert.core.config import BertConfig, Config, DistilBertConfig
from distilbert.core.errors import InputError


class Kind(Enum):
    """What a parameter is: decides its initial value, and its name and orientation in each framework."""

    WORD_EMBEDDING = "word embedding"  # apart from the others: TensorFlow names it differently
    EMBEDDING = "embedding"
    SINUSOID = "sinusoidal embedding"  # computed by formula at first, then loaded like any other; never trained
    WEIGHT = "linear weight"
    BIAS = "bias"
    NORM_SCALE = "norm scale"
    NORM_BIAS = "norm bias"


@dataclass(frozen=True)
class Row:
    """One module of the table.

    ``path`` is relative to the section it stands in. ``axes`` are the dimensions of the first parameter in
    the order PyTorch stores them, each a config field, ``"attention_size"`` (what pruning leaves of the
    hidden size) or a fixed number. ``tied_to`` is the role of the module whose weight this one shares, and
    ``bias_path`` where files keep the bias, if that is not in the module.
    """

    role: str
    path: str
    kinds: tuple[Kind, ...]
    axes: tuple[str | int, ...]
    tied_to: str | None = None
    bias_path: str | None = None


def linear(role: str, path: str, size_in: str | int, size_out: str | int, **options: str) -> Row:
    """A row for a dense layer: a weight (out, in) and a bias (out,)."""
    return Row(role, path, (Kind.WEIGHT, Kind.BIAS), (size_out, size_in), **options)


def norm(role: str, path: str) -> Row:
    """A row for a layer norm over the hidden size."""
    return Row(role, path, (Kind.NORM_SCALE, Kind.NORM_BIAS), ("hidden_size",))


@dataclass(frozen=True)
class Head:
    """What a task adds to the encoder: its class is named after the family and ``suffix``.

    KerasHub's class is named after the family and ``keras_hub``, where it has one. ``is_pooled`` says whether the
    encoder below has the family's pooler.
    """

    suffix: str
    rows: tuple[Row, ...]
    keras_hub: str | None = None
    is_pooled: bool = False

    @property
    def is_encoder(self) -> bool:
        """Whether this is the bare encoder."""
        return self.suffix == "Model"


@dataclass(frozen=True)
class Family:
    """One model family: where its encoder's parts stand, and their rows."""

    stem: str
    config: type[Config]
    prefix: str  # the name a head gives its encoder
    embeddings_path: str
    layer_path: str  # {} is the layer's number
    embeddings: tuple[Row, ...]
    layer: tuple[Row, ...]
    heads: dict[str, Head]
    pooler: tuple[Row, ...] = ()
    keras_hub: dict[str, str] = field(default_factory=dict)  # by role, where KerasHub keeps a module in its section

    def encoder(self, is_pooled: bool) -> str:
        """The head that is the bare encoder, with or without a pooler."""
        return next(name for name, head in self.heads.items() if head.is_encoder and head.is_pooled == is_pooled)

    def pooled(self, head: str, add_pooling_layer: bool | None) -> str:
        """``head``, or the bare encoder with or without its pooler where that was asked for.

        Raises:
            InputError: it was asked for of another model.
        """
        if add_pooling_layer is None:
            return head
        if not (self.pooler and self.heads[head].is_encoder):
            raise InputError(f"add_pooling_layer: no argument of {self.class_name(head)}, only of the bare BERT")
        return self.encoder(add_pooling_layer)

    @property
    def has_segments(self) -> bool:
        """Whether ``token_type_ids`` say anything to its models."""
        return any(row.role == "types" for row in self.embeddings)

    def class_name(self, head: str) -> str:
        """What the PyTorch class is called, in ``architectures`` too; the others' names have a prefix."""
        return self.stem + self.heads[head].suffix


_PRE_CLASSIFIER = linear("pre_classifier", "pre_classifier", "hidden_size", "hidden_size")
_CLASSIFIER = linear("classifier", "classifier", "hidden_size", "num_labels")

DISTILBERT = Family(
    stem="DistilBert",
    config=DistilBertConfig,
    prefix="distilbert",
    embeddings_path="embeddings",
    layer_path="transformer.layer.{}",
    embeddings=(
        Row("words", "word_embeddings", (Kind.WORD_EMBEDDING,), ("vocab_size", "hidden_size")),
        Row("positions", "position_embeddings", (Kind.EMBEDDING,), ("max_position_embeddings", "hidden_size")),
        norm("norm", "LayerNorm"),
    ),
    layer=(
        linear("query", "attention.q_lin", "hidden_size", "attention_size"),
        linear("key", "attention.k_lin", "hidden_size", "attention_size"),
        linear("value", "attention.v_lin", "hidden_size", "attention_size"),
        linear("attention_out", "attention.out_lin", "attention_size", "hidden_size"),
        norm("attention_norm", "sa_layer_norm"),
        linear("feed_forward_in", "ffn.lin1", "hidden_size", "intermediate_size"),
        linear("feed_forward_out", "ffn.lin2", "intermediate_size", "hidden_size"),
        norm("feed_forward_norm", "output_layer_norm"),
    ),
    heads={
        "base": Head("Model", (), keras_hub="Backbone"),
        "masked-lm": Head(
            "ForMaskedLM",
            (
                linear("transform", "vocab_transform", "hidden_size", "hidden_size"),
                norm("transform_norm", "vocab_layer_norm"),
                linear("decoder", "vocab_projector", "hidden_size", "vocab_size", tied_to="words"),
            ),
            keras_hub="MaskedLM",
        ),
        "sequence-classification": Head(
            "ForSequenceClassification",
            (_PRE_CLASSIFIER, _CLASSIFIER),
            keras_hub="TextClassifier",
        ),
        "multiple-choice": Head(
            "ForMultipleChoice", (_PRE_CLASSIFIER, linear("classifier", "classifier", "hidden_size", 1))
        ),
        "token-classification": Head("ForTokenClassification", (_CLASSIFIER,)),
        "question-answering": Head("ForQuestionAnswering", (linear("spans", "qa_outputs", "hidden_size", 2),)),
    },
    keras_hub={
        "words": "token_and_position_embedding/token_embedding",
        "positions": "token_and_position_embedding/position_embedding",
        "norm": "layer_normalization",
        "query": "_self_attention_layer/query_dense",
        "key": "_self_attention_layer/key_dense",
        "value": "_self_attention_layer/value_dense",
        "attention_out": "_self_attention_layer/output_dense",
        "attention_norm": "_self_attention_layer_norm",
        "feed_forward_in": "_feedforward_intermediate_dense",
        "feed_forward_out": "_feedforward_output_dense",
        "feed_forward_norm": "_feedforward_layer_norm",
        "transform": "masked_lm_head/_intermediate_dense",
        "transform_norm": "masked_lm_head/_intermediate_layer_norm",
        "decoder": "masked_lm_head",
        "pre_classifier": "dense",
        "classifier": "dense_1",
    },
)

_PREDICTIONS = (
    linear("transform", "cls.predictions.transform.dense", "hidden_size", "hidden_size"),
    norm("transform_norm", "cls.predictions.transform.LayerNorm"),
    linear(
        *("decoder", "cls.predictions.decoder", "hidden_size", "vocab_size"),
        tied_to="words",
        bias_path="cls.predictions",
    ),
)
_NEXT_SENTENCE = linear("next_sentence", "cls.seq_relationship", "hidden_size", 2)

BERT = Family(
    stem="Bert",
    config=BertConfig,
    prefix="bert",
    embeddings_path="embeddings",
    layer_path="encoder.layer.{}",
    embeddings=(
        Row("words", "word_embeddings", (Kind.WORD_EMBEDDING,), ("vocab_size", "hidden_size")),
        Row("positions", "position_embeddings", (Kind.EMBEDDING,), ("max_position_embeddings", "hidden_size")),
        Row("types", "token_type_embeddings", (Kind.EMBEDDING,), ("type_vocab_size", "hidden_size")),
        norm("norm", "LayerNorm"),
    ),
    layer=(
        linear("query", "attention.self.query", "hidden_size", "attention_size"),
        linear("key", "attention.self.key", "hidden_size", "attention_size"),
        linear("value", "attention.self.value", "hidden_size", "attention_size"),
        linear("attention_out", "attention.output.dense", "attention_size", "hidden_size"),
        norm("attention_norm", "attention.output.LayerNorm"),
        linear("feed_forward_in", "intermediate.dense", "hidden_size", "intermediate_size"),
        linear("feed_forward_out", "output.dense", "intermediate_size", "hidden_size"),
        norm("feed_forward_norm", "output.LayerNorm"),
    ),
    pooler=(linear("pooler", "pooler.dense", "hidden_size", "hidden_size"),),
    heads={
        "base": Head("Model", (), is_pooled=True),
        "unpooled": Head("Model", ()),
        "pretraining": Head("ForPreTraining", (*_PREDICTIONS, _NEXT_SENTENCE), is_pooled=True),
        "masked-lm": Head("ForMaskedLM", _PREDICTIONS),
        "next-sentence": Head("ForNextSentencePrediction", (_NEXT_SENTENCE,), is_pooled=True),
        "sequence-classification": Head("ForSequenceClassification", (_CLASSIFIER,), is_pooled=True),
        "multiple-choice": Head(
            "ForMultipleChoice", (linear("classifier", "classifier", "hidden_size", 1),), is_pooled=True
        ),
        "token-classification": Head("ForTokenClassification", (_CLASSIFIER,)),
        "question-answering": Head("ForQuestionAnswering", (linear("spans", "qa_outputs", "hidden_size", 2),)),
    },
)
FAMILIES = (DISTILBERT, BERT)


def family_of(config: Config) -> Family:
    """The family that a config belongs to."""
    return next(family for family in FAMILIES if isinstance(config, family.config))


def choose_class(models: Mapping[tuple[str, str], Any], head: str, config: Config) -> tuple[Any, dict[str, Any]]:
    """Which of a backend's classes computes ``head`` for the family of ``config``.

    Args:
        models: by the stem of the family and the head that a class has unless it is made with options.
        head: what to compute.
        config: the model's.

    Returns:
        The class, and the options to make it with.

    Raises:
        InputError: the family has no such head.
    """
    family = family_of(config)
    found = get_head(family, head)
    if found.is_encoder and family.pooler:
        return models[family.stem, family.encoder(is_pooled=True)], {"add_pooling_layer": found.is_pooled}
    return models[family.stem, head], {}


@dataclass(frozen=True)
class Layout:
    """How a framework spells a parameter: path, last name, and which kinds it keeps the other way round.

    ``renamed`` is what it calls some modules, by the beginning of their path.
    """

    separator: str
    layer_number: str
    leaves: dict[Kind, str]
    transposed: frozenset[Kind]
    renamed: dict[str, str] = field(default_factory=dict)

    def name(self, parameter: Parameter) -> str:
        """The full name, for example ``transformer/layer_._0/attention/q_lin/kernel`` in TensorFlow."""
        path = parameter.path if parameter.file_path is None else parameter.file_path
        for usual, own in self.renamed.items():
            if path.startswith(usual):
                path = own + path.removeprefix(usual)
        path = f"{parameter.section_path}.{path}.{self.leaves[parameter.kind]}".strip(".")
        number = self.layer_number.format(parameter.layer)
        return path.replace(".", self.separator).replace(f"{self.separator}{{}}", number)

    def is_transposed(self, parameter: Parameter) -> bool:
        """Whether this framework stores the transpose of what PyTorch stores."""
        return parameter.kind in self.transposed


_EMBEDDINGS = (Kind.WORD_EMBEDDING, Kind.EMBEDDING, Kind.SINUSOID)

TORCH = Layout(
    separator=".",
    layer_number=".{}",
    leaves=dict.fromkeys((*_EMBEDDINGS, Kind.WEIGHT, Kind.NORM_SCALE), "weight")
    | dict.fromkeys((Kind.BIAS, Kind.NORM_BIAS), "bias"),
    transposed=frozenset(),
)
TENSORFLOW = Layout(
    separator="/",
    layer_number="_._{}",
    leaves=dict.fromkeys(_EMBEDDINGS, "embeddings")
    | {
        Kind.WORD_EMBEDDING: "weight",
        Kind.WEIGHT: "kernel",
        Kind.BIAS: "bias",
        Kind.NORM_SCALE: "gamma",
        Kind.NORM_BIAS: "beta",
    },
    transposed=frozenset({Kind.WEIGHT}),
    renamed={"cls.predictions": "mlm___cls.predictions", "cls.seq_relationship": "nsp___cls.seq_relationship"},
)
# What Keras 3's own layers call their variables. Only in transformers' files is one table no Keras embedding.
KERAS = replace(TENSORFLOW, leaves=TENSORFLOW.leaves | {Kind.WORD_EMBEDDING: "embeddings"}, renamed={})
# Keras's own files call a layer by its class, which its first kind decides, or that its weight belongs to another.
KERAS_CLASSES = dict.fromkeys(_EMBEDDINGS, "embedding") | {Kind.WEIGHT: "dense", Kind.NORM_SCALE: "layer_normalization"}
KERAS_TIED_CLASS = "tied_dense"
FLAX = Layout(
    separator="/",
    layer_number="/{}",
    leaves=dict.fromkeys(_EMBEDDINGS, "embedding")
    | {
        Kind.WEIGHT: "kernel",
        Kind.BIAS: "bias",
        Kind.NORM_SCALE: "scale",
        Kind.NORM_BIAS: "bias",
    },
    transposed=frozenset({Kind.WEIGHT}),
)


# From any layout's last name to PyTorch's, and whether the tensor is the transpose of PyTorch's.
_LEAVES = {
    leaf: (TORCH.leaves[kind], kind in layout.transposed)
    for layout in (TORCH, TENSORFLOW, FLAX)
    for kind, leaf in layout.leaves.items()
}


def canonical_name(name: str) -> tuple[str, bool]:
    """A name of any layout as PyTorch's, and whether the tensor it stands for has to be transposed.

    ``transformer/layer_._0/attention/q_lin/kernel`` becomes ``("transformer.layer.0.attention.q_lin.weight",
    True)``. Names that no layout has keep their words.
    """
    name = name.replace("/", ".").replace("_._", ".")
    for usual, own in TENSORFLOW.renamed.items():
        name = name.replace(own, usual)
    path, separator, leaf = name.rpartition(".")
    leaf, is_transposed = _LEAVES.get(leaf, (leaf, False))
    return path + separator + leaf, is_transposed


@dataclass(frozen=True)
class Parameter:
    """One parameter of one model.

    ``section`` is ``"embeddings"``, ``"layer"``, ``"pooler"`` or ``"head"``; ``shape`` and ``axes`` are in PyTorch's
    order; ``tied_to`` is the canonical name of the parameter that this one is, where it has no values of its own;
    ``file_path`` stands for ``path`` in names, where the two differ.
    """

    role: str
    section: str
    section_path: str
    path: str  # of the module, from the section's
    layer: int | None
    kind: Kind
    axes: tuple[str | int, ...]
    shape: tuple[int, ...]
    tied_to: str | None = None
    file_path: str | None = None

    @property
    def layer_name(self) -> str:
        """What our Keras classes call the module: the end of its path, or all of it where the end says nothing."""
        end = self.path.rpartition(".")[2]
        return self.path.replace(".", "_") if end in ("dense", "LayerNorm") else end

    @property
    def name(self) -> str:
        """The canonical name: the key of Hugging Face's PyTorch state dict."""
        return TORCH.name(self)


def get_head(family: Family, head: str) -> Head:
    """Look a head up by name.

    Raises:
        InputError: the family has no head of that name.
    """
    if head not in family.heads:
        raise InputError(f"no head {head!r}; expected one of {', '.join(family.heads)}")
    return family.heads[head]


def parameters(config: Config, head: str, family: Family | None = None) -> tuple[Parameter, ...]:
    """Every parameter of the model that ``config`` and ``head`` describe, in the state dict's order.

    ``family`` is by default the config's.

    Raises:
        InputError: the family has no head of that name.
    """
    family = family or family_of(config)
    prefix = "" if get_head(family, head).is_encoder else family.prefix + "."
    sections: list[tuple[str, str, int | None, tuple[Row, ...]]] = [
        ("embeddings", prefix + family.embeddings_path, None, family.embeddings)
    ]
    for number in range(config.num_hidden_layers):
        sections.append(("layer", prefix + family.layer_path, number, family.layer))
    if get_head(family, head).is_pooled:
        sections.append(("pooler", prefix.removesuffix("."), None, family.pooler))
    sections.append(("head", "", None, get_head(family, head).rows))
    listed: list[Parameter] = []
    for section, path, layer, rows in sections:
        for row in rows:
            listed.extend(_expand(row, section, path, layer, config))
    names = {parameter.role: parameter.name for parameter in listed if parameter.section == "embeddings"}
    return tuple(_tie(parameter, names) for parameter in listed)


def _expand(row: Row, section: str, path: str, layer: int | None, config: Config) -> Iterator[Parameter]:
    for kind in row.kinds:
        axes = row.axes[:1] if kind in (Kind.BIAS, Kind.NORM_BIAS) else row.axes
        if row.role == "positions" and config.sinusoidal_pos_embds:
            kind = Kind.SINUSOID
        parameter = Parameter(
            role=row.role,
            section=section,
            section_path=path,
            path=row.path,
            layer=layer,
            kind=kind,
            axes=axes,
            shape=tuple(dimension(axis, config, layer) for axis in axes),
            tied_to=row.tied_to if kind is Kind.WEIGHT and config.tie_word_embeddings else None,
        )
        if kind is Kind.BIAS and row.bias_path is not None:
            kept = replace(parameter, file_path=row.bias_path)
            yield kept
            yield replace(parameter, tied_to=kept.name)  # PyTorch's files have it in the module as well
        else:
            yield parameter


def _tie(parameter: Parameter, names: dict[str, str]) -> Parameter:
    """Turn the role that a row is tied to into that parameter's canonical name."""
    if parameter.tied_to not in names:
        return parameter
    return replace(parameter, tied_to=names[parameter.tied_to])


def dimension(axis: str | int, config: Config, layer: int | None = None) -> int:
    """The length of an axis of the table, for this config and layer."""
    if isinstance(axis, int):
        return axis
    if axis == "attention_size":
        assert layer is not None
        return config.hidden_size // config.num_attention_heads * config.attention_heads(layer)
    return getattr(config, axis)


# What tensor parallelism splits (Megatron-LM, https://arxiv.org/abs/1909.08053), by the axis of the table: whole
# attention heads, the inside of the feed-forward network, and the vocabulary. The products that share such an axis
# then need one sum over the devices a block.
#
#   parameter (PyTorch's axes)                    split over the mesh axis "model"
#   query, key, value         (attention, D)      by heads
#   attention output          (D, attention)      by heads
#   feed-forward in           (F, D)              by rows
#   feed-forward out          (D, F)              by columns
#   word embeddings           (V, D)              by words
#   masked LM's output        (V, D)              by words (tied: as the embeddings)
#   biases                                        as the rows of their weight
#   positions, segments, norms, pooler, classifiers   whole on every device
SPLIT_AXES = ("attention_size", "intermediate_size", "vocab_size")


def partition(parameter: Parameter, config: Config, count: int) -> tuple[str | None, ...]:
    """Which mesh axis splits each axis of ``parameter`` (in PyTorch's order) over ``count`` devices: "model" or None.

    An axis that does not come out even stays whole.
    """

    def split(axis: str | int) -> str | None:
        if axis not in SPLIT_AXES or count < 2:
            return None
        whole = axis == "attention_size"
        pieces = config.attention_heads(parameter.layer or 0) if whole else dimension(axis, config, parameter.layer)
        return None if pieces % count else "model"

    return tuple(split(axis) for axis in parameter.axes)


def standard_deviation(parameter: Parameter, config: Config) -> float:
    """The spread of a new parameter's normally distributed values; 0 for those that start as constants."""
    return config.initializer_range if parameter.kind in (Kind.WORD_EMBEDDING, Kind.EMBEDDING, Kind.WEIGHT) else 0.0


def constant(parameter: Parameter) -> float:
    """The mean of a new parameter's values: 1 for norm scales, 0 for all others."""
    return 1.0 if parameter.kind is Kind.NORM_SCALE else 0.0


def padding_row(parameter: Parameter, config: Config) -> int | None:
    """The row of the padding token, where ``parameter`` has one: 0 in a new model, and never trained."""
    return config.pad_token_id if parameter.kind is Kind.WORD_EMBEDDING else None


def initial_value(parameter: Parameter, config: Config, generator: np.random.Generator) -> np.ndarray:
    """The values of a new parameter, float32, where no framework draws them."""
    if parameter.kind is Kind.SINUSOID:
        return sinusoidal_positions(*parameter.shape)
    spread = standard_deviation(parameter, config)
    value = generator.normal(constant(parameter), spread, parameter.shape).astype(np.float32)
    if (row := padding_row(parameter, config)) is not None:
        value[row] = 0
    return value


def is_decayed(parameter: Parameter) -> bool:
    """Whether weight decay pulls the parameter towards 0: weights and embeddings, no bias and no norm."""
    return parameter.kind in (Kind.WORD_EMBEDDING, Kind.EMBEDDING, Kind.WEIGHT)


def sinusoidal_positions(count: int, size: int) -> np.ndarray:
    """The fixed position table of "Attention Is All You Need", section 3.5, as DistilBERT interleaves it.

    Returns:
        float32 (count, size): sines in the even columns, cosines in the odd ones.
    """
    column = np.arange(size)
    angle = np.arange(count)[:, None] / np.power(10000.0, 2 * (column // 2) / size)
    return np.where(column % 2, np.cos(angle), np.sin(angle)).astype(np.float32)
