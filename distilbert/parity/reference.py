"""The model once more, in NumPy and float64: short and slow, and what every backend is measured against.

It is written from the spec and the papers, not from a backend, and reads forwards; the way back, for gradients, is
remembered step by step (reverse-mode differentiation). Dropout is off.

B batch, L length, D model, H heads, K size of a head, C classes or choices, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from math import erf, pi, sqrt
from typing import Any

import numpy as np

from distilbert.core.config import Config
from distilbert.core.errors import InputError
from distilbert.core.spec import Kind, family_of, get_head, padding_row, parameters, sinusoidal_positions

Array = np.ndarray
IGNORED = -100

_numbers = count()


class Value:
    """An array of the computation, and how a gradient gets from it to what it was made from."""

    def __init__(self, array: Array, *sources: tuple[Value, Callable[[Array], Array]]) -> None:
        self.number = next(_numbers)  # what is made later may depend on what was made before
        self.array = array
        self.sources = sources
        self.gradient: Array | None = None

    def differentiate(self) -> None:
        """Give everything that this number was made from its gradient."""
        found = {self.number: self}
        pending = [self]
        while pending:
            for source, _ in pending.pop().sources:
                if source.number not in found:
                    found[source.number] = source
                    pending.append(source)
        self.gradient = np.ones_like(self.array)
        for number in sorted(found, reverse=True):
            value = found[number]
            assert value.gradient is not None
            for source, way_back in value.sources:
                part = way_back(value.gradient)
                source.gradient = part if source.gradient is None else source.gradient + part


def add(one: Value, other: Value) -> Value:
    """A sum; ``other`` may have one row for all of the batch."""

    def way_back(gradient: Array) -> Array:
        return gradient if other.array.shape == gradient.shape else gradient.sum(0, keepdims=True)

    return Value(one.array + other.array, (one, lambda gradient: gradient), (other, way_back))


def look_up(table: Value, ids: Array, fixed: int | None = None) -> Value:
    """Rows of a table (N, D) for ids of any shape; no gradient gets to the row ``fixed``."""

    def way_back(gradient: Array) -> Array:
        whole = np.zeros_like(table.array)
        np.add.at(whole, ids, gradient * (ids != fixed)[..., None])
        return whole

    return Value(table.array[ids], (table, way_back))


def linear(value: Value, weight: Value, bias: Value) -> Value:
    """Vectors (…, in) to (…, out), by a weight (out, in)."""

    def rows(array: Array) -> Array:
        return array.reshape(-1, array.shape[-1])

    return Value(
        value.array @ weight.array.T + bias.array,
        (value, lambda gradient: gradient @ weight.array),
        (weight, lambda gradient: rows(gradient).T @ rows(value.array)),
        (bias, lambda gradient: rows(gradient).sum(0)),
    )


def norm(value: Value, scale: Value, bias: Value, epsilon: float) -> Value:
    """Layer norm over the last axis (Ba et al. 2016, https://arxiv.org/abs/1607.06450)."""
    centred = value.array - value.array.mean(-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    normal = centred / spread

    def way_back(gradient: Array) -> Array:
        inner = gradient * scale.array
        along = (inner * normal).mean(-1, keepdims=True)
        return (inner - inner.mean(-1, keepdims=True) - normal * along) / spread

    return Value(
        normal * scale.array + bias.array,
        (value, way_back),
        (scale, lambda gradient: (gradient * normal).reshape(-1, normal.shape[-1]).sum(0)),
        (bias, lambda gradient: gradient.reshape(-1, normal.shape[-1]).sum(0)),
    )


def _erf(array: Array) -> Array:
    return np.frompyfunc(erf, 1, 1)(array).astype(np.float64)


def _sigmoid(array: Array) -> Array:
    return 0.5 * (1 + np.tanh(array / 2))  # overflows nowhere


def _tanh_of_gelu(array: Array) -> Array:
    return np.tanh(sqrt(2 / pi) * (array + 0.044715 * array**3))


def _gelu_new_slope(array: Array) -> Array:
    tanh = _tanh_of_gelu(array)
    inner = sqrt(2 / pi) * (1 + 3 * 0.044715 * array**2)
    return (1 + tanh) / 2 + array / 2 * (1 - tanh**2) * inner


# Functions and their derivatives. GELU: Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415.
ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "gelu": (
        lambda x: x / 2 * (1 + _erf(x / sqrt(2))),
        lambda x: (1 + _erf(x / sqrt(2))) / 2 + x * np.exp(-(x**2) / 2) / sqrt(2 * pi),
    ),
    "gelu_new": (lambda x: x / 2 * (1 + _tanh_of_gelu(x)), _gelu_new_slope),
    "relu": (lambda x: np.maximum(x, 0), lambda x: (x > 0).astype(np.float64)),
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "silu": (lambda x: x * _sigmoid(x), lambda x: _sigmoid(x) * (1 + x * (1 - _sigmoid(x)))),
}


def activate(value: Value, name: str | Callable[..., Any]) -> Value:
    """An activation function, by its name in a config.

    Raises:
        InputError: a function of one's own, which has no name.
    """
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise InputError(f"the reference knows no activation {name!r}, expected one of {', '.join(ACTIVATIONS)}")
    function, slope = ACTIVATIONS[name]
    return Value(function(value.array), (value, lambda gradient: gradient * slope(value.array)))


def attend(query: Value, key: Value, value: Value, visible: Array, head_mask: Array) -> tuple[Value, Array]:
    """Attention of projected vectors (B, L, H * K): the context, of that shape, and the probabilities (B, H, L, L).

    ``visible`` is (B, L), ``head_mask`` (H,).
    """

    def split(array: Array) -> Array:
        return array.reshape(*array.shape[:2], len(head_mask), -1).swapaxes(1, 2)

    def join(array: Array) -> Array:
        return array.swapaxes(1, 2).reshape(array.shape[0], array.shape[2], -1)

    query_BHLK, key_BHLK, value_BHLK = split(query.array), split(key.array), split(value.array)
    factor = query_BHLK.shape[-1] ** -0.5
    score_BHLL = np.where(visible[:, None, None], factor * query_BHLK @ key_BHLK.swapaxes(2, 3), -np.inf)
    exponential = np.exp(score_BHLL - score_BHLL.max(-1, keepdims=True))
    softmax_BHLL = exponential / exponential.sum(-1, keepdims=True)
    probability_BHLL = softmax_BHLL * head_mask[:, None, None]

    def score_gradient(gradient: Array) -> Array:
        inner = split(gradient) @ value_BHLK.swapaxes(2, 3) * head_mask[:, None, None]
        return factor * softmax_BHLL * (inner - (inner * softmax_BHLL).sum(-1, keepdims=True))

    context = Value(
        join(probability_BHLL @ value_BHLK),
        (query, lambda gradient: join(score_gradient(gradient) @ key_BHLK)),
        (key, lambda gradient: join(score_gradient(gradient).swapaxes(2, 3) @ query_BHLK)),
        (value, lambda gradient: join(probability_BHLL.swapaxes(2, 3) @ split(gradient))),
    )
    return context, probability_BHLL


def first_tokens(value: Value) -> Value:
    """(B, L, D) to (B, D)."""

    def way_back(gradient: Array) -> Array:
        whole = np.zeros_like(value.array)
        whole[:, 0] = gradient
        return whole

    return Value(value.array[:, 0], (value, way_back))


def cross_entropy(logits: Value, labels: Array) -> Value:
    """The mean over the labels (…) that are not -100, of logits (…, C)."""
    counted = labels != IGNORED
    shifted = logits.array - logits.array.max(-1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    target = np.eye(logits.array.shape[-1])[np.where(counted, labels, 0)] * counted[..., None]
    loss = -(log_probability * target).sum() / counted.sum()
    slope = (np.exp(log_probability) * counted[..., None] - target) / counted.sum()
    return Value(np.asarray(loss), (logits, lambda gradient: gradient * slope))


def mean_squared_error(logits: Value, labels: Array) -> Value:
    """The mean over all numbers."""
    difference = logits.array - labels.reshape(logits.array.shape)
    slope = 2 * difference / difference.size
    return Value(np.asarray((difference**2).mean()), (logits, lambda gradient: gradient * slope))


def binary_cross_entropy(logits: Value, labels: Array) -> Value:
    """The mean over all numbers, each a probability's logit."""
    loss = np.logaddexp(0, logits.array) - labels * logits.array
    slope = (_sigmoid(logits.array) - labels) / labels.size
    return Value(np.asarray(loss.mean()), (logits, lambda gradient: gradient * slope))


def classification_loss(logits: Value, labels: Array, config: Config) -> Value:
    """By ``config.problem_type``, or where that is None by the number of labels and their type."""
    several = "multi_label_classification" if labels.dtype.kind == "f" else "single_label_classification"
    problem = config.problem_type or ("regression" if config.num_labels == 1 else several)
    if problem == "regression":
        return mean_squared_error(logits, labels)
    return (cross_entropy if problem == "single_label_classification" else binary_cross_entropy)(logits, labels)


def span_loss(start: Value, end: Value, inputs: Mapping[str, Array]) -> Value:
    """The mean of two cross entropies. Positions past the end of the text do not count."""
    length = start.array.shape[1]
    losses = [
        cross_entropy(logits, np.where(inputs[name] < length, inputs[name], IGNORED))
        for logits, name in ((start, "start_positions"), (end, "end_positions"))
    ]
    half = [(loss, lambda gradient: gradient / 2) for loss in losses]
    return Value((losses[0].array + losses[1].array) / 2, *half)


class Reference:
    """A model in float64.

    Args:
        config: shapes; its dropout rates do not matter.
        head: the spec's name for what is computed.
        tensors: by canonical name, in PyTorch's orientation.
    """

    def __init__(self, config: Config, head: str, tensors: Mapping[str, Array]) -> None:
        self.config, self.head = config, head
        self.is_encoder = get_head(family_of(config), head).is_encoder
        self.trained: dict[str, Value] = {}  # by canonical name
        self.parts: dict[tuple[int | None, str], tuple[Value, ...]] = {}  # by layer and role: weight, then bias
        self.padding_row: int | None = None
        for row in parameters(config, head):
            if (padding := padding_row(row, config)) is not None:
                self.padding_row = padding
            if row.tied_to is not None and row.kind is Kind.BIAS:  # another name of the one before
                continue
            if row.tied_to is not None:
                value = self.trained[row.tied_to]
            elif row.kind is Kind.SINUSOID:
                value = Value(np.asarray(tensors.get(row.name, sinusoidal_positions(*row.shape)), np.float64))
            else:
                value = self.trained[row.name] = Value(np.asarray(tensors[row.name], np.float64))
            self.parts[row.layer, row.role] = (*self.parts.get((row.layer, row.role), ()), value)

    def __call__(self, inputs: Mapping[str, Array], *, with_gradients: bool = False) -> dict[str, Array]:
        """Compute everything.

        Args:
            inputs: what the backends' models take, as arrays; masks, positions and labels may be absent.
            with_gradients: also of the loss with respect to every parameter.

        Returns:
            ``hidden_states/0`` (the embeddings) and so on, ``attentions/0``, …, the head's outputs, ``loss`` where
            labels are given, and ``gradients/…`` by canonical name.
        """
        shape = (inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"][..., 0]).shape
        flat = {
            name: value.reshape(-1, *value.shape[2:])
            if self.head == "multiple-choice"
            and name in ("input_ids", "attention_mask", "inputs_embeds", "position_ids", "token_type_ids")
            else value
            for name, value in inputs.items()
        }
        hidden, output = self.encode(flat)
        logits = self.answer(hidden)
        if self.head == "multiple-choice":
            (scores,) = logits.values()
            logits = {"logits": Value(scores.array.reshape(shape[:2]), (scores, lambda g: g.reshape(-1, 1)))}
        output |= {name: value.array for name, value in logits.items()}
        loss = self.loss(logits, inputs)
        if loss is not None:
            output["loss"] = loss.array
        if loss is not None and with_gradients:
            for value in self.trained.values():
                value.gradient = None
            loss.differentiate()
            for name, value in self.trained.items():
                output[f"gradients/{name}"] = np.zeros_like(value.array) if value.gradient is None else value.gradient
        return output

    def encode(self, inputs: Mapping[str, Array]) -> tuple[Value, dict[str, Array]]:
        """The last vectors, and all hidden states and attentions."""
        config = self.config
        (words,), (positions,) = self.parts[None, "words"], self.parts[None, "positions"]
        if "inputs_embeds" in inputs:
            given = Value(np.asarray(inputs["inputs_embeds"], np.float64))
        else:
            given = look_up(words, inputs["input_ids"], fixed=self.padding_row)
        batch, length = given.array.shape[:2]
        position_ids = inputs.get("position_ids", np.arange(length)[None])
        if (None, "types") in self.parts:
            (types,) = self.parts[None, "types"]
            given = add(given, look_up(types, inputs.get("token_type_ids", np.zeros((1, length), np.int64))))
        hidden = self.norm(add(given, look_up(positions, position_ids)), "norm")
        visible = inputs.get("attention_mask", np.ones((batch, length))) != 0
        visible |= ~visible.any(-1, keepdims=True)  # a row of padding only sees everything, as in every backend
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        head_masks = np.broadcast_to(inputs.get("head_mask", 1.0), (layers, heads))
        output = {"hidden_states/0": hidden.array}
        for layer in range(layers):
            query, key, value = (self.linear(hidden, role, layer) for role in ("query", "key", "value"))
            kept = [number for number in range(heads) if number not in config.pruned_heads.get(layer, ())]
            context, probability = attend(query, key, value, visible, head_masks[layer, kept])
            attended = add(self.linear(context, "attention_out", layer), hidden)
            attended = self.norm(attended, "attention_norm", layer)
            inner = self.activate(self.linear(attended, "feed_forward_in", layer))
            outer = add(self.linear(inner, "feed_forward_out", layer), attended)
            hidden = self.norm(outer, "feed_forward_norm", layer)
            output[f"hidden_states/{layer + 1}"] = hidden.array
            output[f"attentions/{layer}"] = probability
        return hidden, output

    def linear(self, value: Value, role: str, layer: int | None = None) -> Value:
        """``value`` through the dense layer with that role."""
        weight, bias = self.parts[layer, role]
        return linear(value, weight, bias)

    def norm(self, value: Value, role: str, layer: int | None = None) -> Value:
        """``value`` through the norm with that role."""
        scale, bias = self.parts[layer, role]
        return norm(value, scale, bias, self.config.layer_norm_eps)

    def activate(self, value: Value) -> Value:
        """``value`` through the config's activation."""
        return activate(value, self.config.hidden_act)

    def answer(self, hidden: Value) -> dict[str, Value]:
        """The head's outputs, from the last vectors (B, L, D)."""
        if self.is_encoder:
            vectors = {"last_hidden_state": hidden}
            return vectors | {"pooler_output": self.text_vector(hidden)} if (None, "pooler") in self.parts else vectors
        if self.head == "masked-lm":
            return {"logits": self.score_words(hidden)}
        if self.head == "pretraining":
            follows = self.linear(self.text_vector(hidden), "next_sentence")
            return {"prediction_logits": self.score_words(hidden), "seq_relationship_logits": follows}
        if self.head == "next-sentence":
            return {"logits": self.linear(self.text_vector(hidden), "next_sentence")}
        if self.head == "question-answering":
            spans = self.linear(hidden, "spans")

            def column(number: int) -> Value:
                chosen = np.eye(2)[number]
                return Value(spans.array[..., number], (spans, lambda gradient: gradient[..., None] * chosen))

            return {"start_logits": column(0), "end_logits": column(1)}
        if self.head in ("sequence-classification", "multiple-choice"):
            hidden = self.text_vector(hidden)
        return {"logits": self.linear(hidden, "classifier")}

    def score_words(self, hidden: Value) -> Value:
        """The scores of all words for each token."""
        inner = self.norm(self.activate(self.linear(hidden, "transform")), "transform_norm")
        return self.linear(inner, "decoder")

    def text_vector(self, hidden: Value) -> Value:
        """The vectors (B, D) of whole texts, from those of their first tokens."""
        if (None, "pooler") in self.parts:
            return activate(self.linear(first_tokens(hidden), "pooler"), "tanh")
        return activate(self.linear(first_tokens(hidden), "pre_classifier"), "relu")

    def loss(self, logits: Mapping[str, Value], inputs: Mapping[str, Array]) -> Value | None:
        """The head's loss, where its labels are given."""
        if "start_positions" in inputs:
            return span_loss(logits["start_logits"], logits["end_logits"], inputs)
        if "labels" not in inputs:
            return None
        if self.head == "pretraining":
            losses = [
                cross_entropy(logits["prediction_logits"], inputs["labels"]),
                cross_entropy(logits["seq_relationship_logits"], inputs["next_sentence_label"]),
            ]
            return Value(losses[0].array + losses[1].array, *((loss, lambda gradient: gradient) for loss in losses))
        if self.head == "sequence-classification":
            return classification_loss(logits["logits"], inputs["labels"], self.config)
        return cross_entropy(logits["logits"], inputs["labels"])
