"""The task heads on the encoder, each once for all families. Their parameters are the rows of the spec's ``heads``.

First what a head computes, then the models: a head with the arguments of a family, in that family's order.

B batch, L length, D model, C classes or choices, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import keras
from keras import ops
from keras.tree import is_nested

from distilbert.core.config import Config
from distilbert.core.errors import InputError
from distilbert.core.inputs import as_array
from distilbert.core.outputs import HEADS_OF_TEXTS, ModelOutput
from distilbert.core.spec import BERT, DISTILBERT
from distilbert.tf.encoder import Encoder, TFBertModel, TFDistilBertModel, check_values, get_activation
from distilbert.tf.losses import IGNORED, classification_loss, span_loss, token_loss
from distilbert.tf.model import PreTrainedModel, rank

Tensor = Any
Output = ModelOutput | tuple[Tensor, ...]
Inputs = dict[str, Any]  # of the encoder, by name: so that the order in which its family takes them does not matter
INPUTS = (
    *("input_ids", "attention_mask", "token_type_ids", "position_ids", "head_mask", "inputs_embeds"),
    *("output_attentions", "output_hidden_states", "training"),
)


class HeadModel(PreTrainedModel):
    """The encoder with a head on top.

    Every ``call`` takes what the encoder's takes, in its order, with the labels before ``output_attentions``; it
    returns what the encoder returns, but for its vectors. Below, only what a head adds is documented.
    """

    label_names: ClassVar[tuple[str, ...]] = ("labels",)
    prediction_names: ClassVar[tuple[str, ...]] = ("logits",)
    encoder_class: ClassVar[type[Encoder]]
    compute: Callable[..., Output]  # what the head does, from the encoder's inputs by name, and its labels
    dropout_rate: ClassVar[str | None] = None  # the config's field for what goes into the last layer

    def __init__(self, config: Config, **options: Any) -> None:
        super().__init__(config, **options)
        pooler = {"add_pooling_layer": self.family.heads[self.head].is_pooled} if self.family.pooler else {}
        with keras.name_scope(self.name):
            encoder = self.encoder_class(config, name=self.family.prefix, dtype=self.dtype_policy, **pooler)
        encoder.config = self.config
        setattr(self, self.family.prefix, encoder)
        rows = [parameter for parameter in self.parameter_list() if parameter.section == "head"]
        self.add_parts(rows, config, self.word_table)
        rate = getattr(config, self.dropout_rate) if self.dropout_rate else 0.0
        self.dropout = keras.layers.Dropout(rate, name="dropout", dtype=self.dtype_policy)

    def text_vector(self, encoded: ModelOutput) -> Tensor:
        """The vector (B, D) of each whole text, from its first token."""
        raise NotImplementedError

    def answer(self, encoded: ModelOutput, return_dict: bool | None, **values: Tensor | None) -> Output:
        """The head's ``values`` together with what the encoder returned besides its vectors."""
        output = ModelOutput(**values, hidden_states=encoded.hidden_states, attentions=encoded.attentions)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def own_loss(self, output: ModelOutput, sample_weight: Tensor | None = None, **labels: Tensor) -> Tensor:
        """The loss of the head's predictions in ``output``, a scalar in float32."""
        raise NotImplementedError

    def compile(self, optimizer: Any = "adamw", loss: Any = None, **options: Any) -> None:
        """As ``keras.Model.compile``; without a ``loss`` the model trains on its own.

        A loss may be named by the only prediction, and a plain list of metrics is for each of several predictions.
        Where tokens have labels, metrics with an ``ignore_class`` ignore -100 unless they say otherwise.
        """
        if isinstance(loss, Mapping) and len(self.prediction_names) == 1:
            loss = loss.get(self.prediction_names[0], loss)
        for kind in ("metrics", "weighted_metrics"):
            given = options.get(kind)
            if len(self.prediction_names) > 1 and isinstance(given, (list, tuple)) and not any(map(is_nested, given)):
                first, *others = self.prediction_names
                given = {first: list(given)} | {name: [remade(metric) for metric in given] for name in others}
            options[kind] = keras.tree.map_structure(self.ignoring, given)
        super().compile(optimizer, loss, **options)

    def ignoring(self, metric: Any) -> Any:
        """A metric to which a label of -100 is no class, where tokens have labels and Keras's metric can do so."""
        if self.head not in HEADS_OF_TEXTS and getattr(metric, "ignore_class", IGNORED) is None:
            metric.ignore_class = IGNORED
            if "ignore_class" in getattr(metric, "_fn_kwargs", {}):  # what the means of functions compute by
                metric._fn_kwargs["ignore_class"] = IGNORED
        return metric

    def fit(self, x: Any = None, y: Any = None, *arguments: Any, **options: Any) -> keras.callbacks.History:
        """As ``keras.Model.fit``; ``x`` may also be what a tokenizer gives, and hold the labels.

        Lists stand for arrays everywhere, also in ``sample_weight`` and ``validation_data``.
        """
        given = self.arguments_of(super().fit, x, y, *arguments, **options)
        held_out = given.get("validation_data")
        if held_out is not None:
            given["validation_data"] = self.labels_apart(*keras.utils.unpack_x_y_sample_weight(held_out))
        return super().fit(**given)

    def evaluate(self, x: Any = None, y: Any = None, *arguments: Any, **options: Any) -> Any:
        """As ``keras.Model.evaluate``, with inputs, labels and weights as for ``fit``."""
        return super().evaluate(**self.arguments_of(super().evaluate, x, y, *arguments, **options))

    def train_on_batch(self, x: Any, y: Any = None, *arguments: Any, **options: Any) -> Any:
        """As ``keras.Model.train_on_batch``, with inputs, labels and weights as for ``fit``."""
        return super().train_on_batch(**self.arguments_of(super().train_on_batch, x, y, *arguments, **options))

    def test_on_batch(self, x: Any, y: Any = None, *arguments: Any, **options: Any) -> Any:
        """As ``keras.Model.test_on_batch``, with inputs, labels and weights as for ``fit``."""
        return super().test_on_batch(**self.arguments_of(super().test_on_batch, x, y, *arguments, **options))

    def arguments_of(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> dict[str, Any]:
        """The arguments of a method of Keras by name, its data as arrays."""
        given = inspect.signature(method).bind(*arguments, **options).arguments
        given |= given.pop("kwargs", {})
        names = ("x", "y", "sample_weight")
        given |= zip(names, self.labels_apart(*map(given.get, names)), strict=True)
        if given.get("class_weight") is not None:
            self.check_class_weight(given["x"], given["y"])
        return given

    def labels_apart(self, x: Any, y: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
        """Inputs, labels and weights as arrays. Keras drops the weights of labels that are among the inputs."""
        x = self.as_arrays(x)
        if y is None and isinstance(x, dict) and all(name in x for name in self.label_names):
            y = {name: x.pop(name) for name in self.label_names}
        return x, self.as_labels(y), self.as_labels(sample_weight)

    def check_class_weight(self, x: Any, y: Any) -> None:
        """Explain where Keras would weigh something else than the class of a text, or nothing."""
        if self.head not in HEADS_OF_TEXTS:
            raise InputError(
                f"class_weight: {type(self).__name__} has not one class a text; give sample_weight, which has the "
                "shape (batch, length) for labels of tokens"
            )
        batch = x[0] if isinstance(x, keras.utils.PyDataset) else getattr(x, "element_spec", x)
        inputs, labels, _ = keras.utils.unpack_x_y_sample_weight(batch)
        if y is None and labels is None and isinstance(inputs, Mapping) and self.label_names[0] in inputs:
            raise InputError(
                f"class_weight: {self.label_names[0]} among the inputs of a data set, where Keras does not look; let "
                "it give pairs (inputs, labels)"
            )

    def as_labels(self, values: Any) -> Any:
        """Labels, or weights, as arrays: one, or where there are several by name."""
        if isinstance(values, (list, tuple)) and len(values) == 1 == len(self.label_names) and rank(values[0]):
            return self.as_labels(values[0])  # as Keras gives those of one output
        if isinstance(values, (list, tuple)) and (len(self.label_names) == 1 or rank(values) < 2):
            return as_array(self.label_names[0], values)
        if not isinstance(values, (Mapping, list, tuple)):
            return values
        named = {name: as_array(name, value) for name, value in self.by_label(values).items()}
        return named.get(self.label_names[0], named) if len(self.label_names) == 1 else named

    def by_label(self, values: Any) -> dict[str, Tensor]:
        """Values, one a label, by the labels' names: from one, several in order, or a mapping.

        The mapping's names may also be those of the predictions, as Keras has it.
        """
        if isinstance(values, Mapping):
            pairs = zip(self.label_names, self.prediction_names, strict=True)
            return {pair[0]: values[name] for pair in pairs for name in pair if name in values}
        return dict(zip(self.label_names, values if isinstance(values, (list, tuple)) else (values,), strict=False))

    def split_labels(self, x: Any, y: Any) -> dict[str, Tensor]:
        """The labels by name, from ``y`` (one tensor, one a name, or a mapping) or from among the inputs."""
        labels = {name: x[name] for name in self.label_names if isinstance(x, Mapping) and name in x}
        if y is not None:
            if labels:
                raise InputError(f"{', '.join(labels)}: among the inputs and given as y too, expected one of both")
            labels = self.by_label(y)
        if len(labels) < len(self.label_names):
            raise InputError(f"no {' and '.join(self.label_names)} to train on, neither among the inputs nor as y")
        return labels

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Tensor:
        """The compiled loss of the logits, or without one the model's own, plus what layers added."""
        if not isinstance(y_pred, ModelOutput):
            raise InputError("the config says return_dict=False, expected True: training reads the outputs by name")
        labels = self.split_labels(x, y)
        if self.loss is not None:
            return super().compute_loss(x, *self.for_keras(labels, y_pred, sample_weight), training)
        if is_nested(sample_weight):  # Keras gives each of several labels the weight of its text
            sample_weight = keras.tree.flatten(sample_weight)[0]
        loss = self.own_loss(y_pred, sample_weight, **labels)
        for added in self.losses:
            loss += ops.sum(ops.cast(added, loss.dtype))
        return scale_for_replicas(loss)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """The compiled metrics of the logits; those that are means of single values leave labels of -100 out."""
        labels, predictions, sample_weight = self.for_keras(self.split_labels(x, y), y_pred, sample_weight)
        if is_nested(labels):
            predictions = {name: counted([value, labels[name]]) for name, value in predictions.items()}
        else:
            predictions = counted([predictions, labels])
        return super().compute_metrics(x, labels, predictions, sample_weight)

    def for_keras(self, labels: dict[str, Tensor], output: ModelOutput, sample_weight: Any) -> tuple[Any, Any, Any]:
        """Labels, predictions and weights as Keras's losses and metrics take them."""
        predictions = [output[name] for name in self.prediction_names]
        if is_nested(sample_weight):
            sample_weight = self.by_prediction(*self.by_label(sample_weight).values())
        return self.by_prediction(*labels.values()), self.by_prediction(*predictions), sample_weight

    def by_prediction(self, *values: Any) -> Any:
        """One value, or where there are several predictions a mapping by their names."""
        return values[0] if len(self.prediction_names) == 1 else dict(zip(self.prediction_names, values, strict=True))


def remade(metric: Any) -> Any:
    """The same metric with a state of its own; a name or a function has none.

    Raises:
        InputError: its class does not tell how it is made.
    """
    if not isinstance(metric, keras.metrics.Metric):
        return metric
    try:
        return metric.from_config(metric.get_config())
    except (TypeError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        raise InputError(
            f"metrics: {metric.name} cannot be made once more for another output ({reason}); give each output its own, "
            "by name"
        ) from None


class Counted(keras.layers.Layer):
    """Marks the predictions (B, L, C) that count, whose labels (B, L) are not -100, as Keras's metrics look for it."""

    supports_masking = True

    def call(self, inputs: Sequence[Tensor]) -> Tensor:
        """The predictions, unchanged."""
        return ops.stop_gradient(inputs[0])

    def compute_mask(self, inputs: Sequence[Tensor], previous_mask: Any = None) -> Tensor | None:
        """Where labels are not -100, None of other labels."""
        predictions, labels = inputs
        is_per_token = len(labels.shape) == len(predictions.shape) - 1 == 2
        return ops.not_equal(labels, IGNORED) if is_per_token else None


counted = Counted(dtype="float32")


def scale_for_replicas(loss: Tensor) -> Tensor:
    """A replica's share of a loss: under ``tf.distribute`` Keras adds up the replicas' gradients."""
    if keras.backend.backend() != "tensorflow":
        return loss
    import tensorflow as tf

    return loss / tf.distribute.get_strategy().num_replicas_in_sync


class MaskedLM(HeadModel):
    """Predicts the token at every position. The output projection is tied to the word embeddings."""

    head = "masked-lm"

    def __init__(self, config: Config, **options: Any) -> None:
        super().__init__(config, **options)
        self.activation = get_activation(config.hidden_act)

    def compute(self, inputs: Inputs, return_dict: bool | None, labels: Tensor | None) -> Output:
        """``labels`` (B, L), -100 where no prediction counts; returns ``loss`` and ``logits`` (B, L, V)."""
        encoded = self.get_base_model()(**inputs, return_dict=True)
        output = ModelOutput(logits=self.score_words(encoded.last_hidden_state))
        loss = None if labels is None else self.own_loss(output, labels=labels)
        return self.answer(encoded, return_dict, loss=loss, **output)

    def score_words(self, hidden_BLD: Tensor) -> Tensor:
        """The scores (B, L, V) of every word of the vocabulary."""
        batch, length, size = ops.shape(hidden_BLD)
        transformed_ND = self.activation(self.part("transform")(ops.reshape(hidden_BLD, (-1, size))))
        logits_NV = self.part("decoder")(self.part("transform_norm")(transformed_ND))
        return ops.reshape(logits_NV, (batch, length, self.config.vocab_size))

    def own_loss(self, output: ModelOutput, sample_weight: Tensor | None = None, **labels: Tensor) -> Tensor:
        """See ``token_loss``."""
        labels["labels"] = check_values("labels", labels["labels"], self.config.vocab_size, IGNORED)
        return token_loss(output["logits"], labels["labels"], sample_weight)

    def get_output_embeddings(self) -> keras.layers.Layer:
        """The projection from vectors to the vocabulary."""
        return self.part("decoder")


class NextSentencePrediction(HeadModel):
    """Tells whether the second text of a pair follows the first (0) or does not (1)."""

    head = "next-sentence"

    def compute(self, inputs: Inputs, return_dict: bool | None, labels: Tensor | None) -> Output:
        """``labels`` (B,); returns ``loss`` and ``logits`` (B, 2)."""
        encoded = self.get_base_model()(**inputs, return_dict=True, first_token_only=True)
        output = ModelOutput(logits=self.part("next_sentence")(self.text_vector(encoded)))
        loss = None if labels is None else self.own_loss(output, labels=labels)
        return self.answer(encoded, return_dict, loss=loss, **output)

    def own_loss(self, output: ModelOutput, sample_weight: Tensor | None = None, **labels: Tensor) -> Tensor:
        """See ``token_loss``."""
        labels["labels"] = check_values("labels", labels["labels"], 2, IGNORED)
        return token_loss(output["logits"], labels["labels"], sample_weight)


class PreTraining(MaskedLM):
    """Predicts the token at every position, and whether the second text follows the first."""

    head = "pretraining"
    label_names = ("labels", "next_sentence_label")
    prediction_names = ("prediction_logits", "seq_relationship_logits")

    def compute(
        self,
        inputs: Inputs,
        return_dict: bool | None,
        labels: Tensor | None,
        next_sentence_label: Tensor | None = None,
    ) -> Output:
        """``labels`` (B, L) and ``next_sentence_label`` (B,), which both have to be given for a loss.

        Returns ``loss``, ``prediction_logits`` (B, L, V) and ``seq_relationship_logits`` (B, 2).
        """
        encoded = self.get_base_model()(**inputs, return_dict=True)
        output = ModelOutput(
            prediction_logits=self.score_words(encoded.last_hidden_state),
            seq_relationship_logits=self.part("next_sentence")(self.text_vector(encoded)),
        )
        loss = None
        if labels is not None and next_sentence_label is not None:
            loss = self.own_loss(output, labels=labels, next_sentence_label=next_sentence_label)
        return self.answer(encoded, return_dict, loss=loss, **output)

    def own_loss(self, output: ModelOutput, sample_weight: Tensor | None = None, **labels: Tensor) -> Tensor:
        """The sum of both tasks' ``token_loss``."""
        words = check_values("labels", labels["labels"], self.config.vocab_size, IGNORED)
        follows = check_values("next_sentence_label", labels["next_sentence_label"], 2, IGNORED)
        loss = token_loss(output["prediction_logits"], words, sample_weight)
        return loss + token_loss(output["seq_relationship_logits"], follows, sample_weight)


class SequenceClassification(HeadModel):
    """Labels a text, or scores it, from the vector of its first token."""

    head = "sequence-classification"
    dropout_rate = "seq_classif_dropout"

    def compute(self, inputs: Inputs, return_dict: bool | None, labels: Tensor | None) -> Output:
        """``labels`` as ``classification_loss`` takes them; returns ``loss`` and ``logits`` (B, C)."""
        encoded = self.get_base_model()(**inputs, return_dict=True, first_token_only=True)
        pooled_BD = self.dropout(self.text_vector(encoded), training=inputs["training"])
        output = ModelOutput(logits=self.part("classifier")(pooled_BD))
        loss = None if labels is None else self.own_loss(output, labels=labels)
        return self.answer(encoded, return_dict, loss=loss, **output)

    def own_loss(self, output: ModelOutput, sample_weight: Tensor | None = None, **labels: Tensor) -> Tensor:
        """See ``classification_loss``."""
        is_integer = "int" in keras.backend.standardize_dtype(labels["labels"].dtype)
        if (
            is_integer
            and self.config.num_labels > 1
            and self.config.problem_type in (None, "single_label_classification")
        ):
            labels["labels"] = check_values("labels", labels["labels"], self.config.num_labels, IGNORED)
        return classification_loss(output["logits"], labels["labels"], self.config, sample_weight)


class MultipleChoice(HeadModel):
    """Chooses among several texts, from the vectors of their first tokens."""

    head = "multiple-choice"
    dropout_rate = "seq_classif_dropout"
    input_rank = 3

    def compute(self, inputs: Inputs, return_dict: bool | None, labels: Tensor | None) -> Output:
        """Inputs (B, C, L), one row a choice; ``labels`` (B,); returns ``loss`` and ``logits`` (B, C)."""
        given = inputs["input_ids"] if inputs["inputs_embeds"] is None else inputs["inputs_embeds"]
        if given is None or len(given.shape) < 3:
            raise InputError("multiple choice: expected input_ids (batch, choices, length), or inputs_embeds")
        choices = ops.shape(given)[1]
        for name in ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds"):
            inputs[name] = None if inputs[name] is None else flatten_choices(inputs[name])
        encoded = self.get_base_model()(**inputs, return_dict=True, first_token_only=True)
        logits = self.part("classifier")(self.dropout(self.text_vector(encoded), training=inputs["training"]))
        output = ModelOutput(logits=ops.reshape(logits, (-1, choices)))
        loss = None if labels is None else self.own_loss(output, labels=labels)
        return self.answer(encoded, return_dict, loss=loss, **output)

    def own_loss(self, output: ModelOutput, sample_weight: Tensor | None = None, **labels: Tensor) -> Tensor:
        """See ``token_loss``."""
        labels["labels"] = check_values("labels", labels["labels"], ops.shape(output["logits"])[1], IGNORED)
        return token_loss(output["logits"], labels["labels"], sample_weight)


def flatten_choices(value: Tensor) -> Tensor:
    """(B, C, …) to (B * C, …)."""
    return ops.reshape(value, (-1, *ops.shape(value)[2:]))


class TokenClassification(HeadModel):
    """Labels every token."""

    head = "token-classification"
    dropout_rate = "token_classif_dropout"

    def compute(self, inputs: Inputs, return_dict: bool | None, labels: Tensor | None) -> Output:
        """``labels`` (B, L), -100 where none counts; returns ``loss`` and ``logits`` (B, L, C)."""
        encoded = self.get_base_model()(**inputs, return_dict=True)
        hidden_BLD = self.dropout(encoded.last_hidden_state, training=inputs["training"])
        output = ModelOutput(logits=self.part("classifier")(hidden_BLD))
        loss = None if labels is None else self.own_loss(output, labels=labels)
        return self.answer(encoded, return_dict, loss=loss, **output)

    def own_loss(self, output: ModelOutput, sample_weight: Tensor | None = None, **labels: Tensor) -> Tensor:
        """See ``token_loss``."""
        labels["labels"] = check_values("labels", labels["labels"], self.config.num_labels, IGNORED)
        return token_loss(output["logits"], labels["labels"], sample_weight)


class QuestionAnswering(HeadModel):
    """Marks where in a text the answer to a question starts and ends."""

    head = "question-answering"
    dropout_rate = "qa_dropout"
    label_names = ("start_positions", "end_positions")
    prediction_names = ("start_logits", "end_logits")

    def compute(
        self,
        inputs: Inputs,
        return_dict: bool | None,
        start_positions: Tensor | None,
        end_positions: Tensor | None,
    ) -> Output:
        """Positions (B,), see ``span_loss``; returns ``loss``, ``start_logits`` and ``end_logits`` (B, L)."""
        encoded = self.get_base_model()(**inputs, return_dict=True)
        spans_BL2 = self.part("spans")(self.dropout(encoded.last_hidden_state, training=inputs["training"]))
        output = ModelOutput(start_logits=spans_BL2[..., 0], end_logits=spans_BL2[..., 1])
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.own_loss(output, start_positions=start_positions, end_positions=end_positions)
        return self.answer(encoded, return_dict, loss=loss, **output)

    def own_loss(self, output: ModelOutput, sample_weight: Tensor | None = None, **labels: Tensor) -> Tensor:
        """See ``span_loss``."""
        return span_loss(output["start_logits"], output["end_logits"], **labels, sample_weight=sample_weight)


class DistilBertHead(HeadModel):
    """What the heads of DistilBERT have in common: its encoder, its order of arguments, and no pooler."""

    family = DISTILBERT
    encoder_class = TFDistilBertModel

    def text_vector(self, encoded: ModelOutput) -> Tensor:
        """See ``HeadModel``."""
        return ops.relu(self.part("pre_classifier")(encoded.last_hidden_state[:, 0]))

    def call(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Output:
        """See ``compute``."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        values = (*inputs, output_attentions, output_hidden_states, training)
        return self.compute(dict(zip(INPUTS, values, strict=True)), return_dict, labels)


@keras.saving.register_keras_serializable("distilbert")
class TFDistilBertForMaskedLM(DistilBertHead, MaskedLM):
    """DistilBERT that predicts the token at every position; see ``MaskedLM``."""


@keras.saving.register_keras_serializable("distilbert")
class TFDistilBertForSequenceClassification(DistilBertHead, SequenceClassification):
    """DistilBERT that labels a text, or scores it; see ``SequenceClassification``."""


@keras.saving.register_keras_serializable("distilbert")
class TFDistilBertForMultipleChoice(DistilBertHead, MultipleChoice):
    """DistilBERT that chooses among several texts; see ``MultipleChoice``."""


@keras.saving.register_keras_serializable("distilbert")
class TFDistilBertForTokenClassification(DistilBertHead, TokenClassification):
    """DistilBERT that labels every token; see ``TokenClassification``."""


@keras.saving.register_keras_serializable("distilbert")
class TFDistilBertForQuestionAnswering(DistilBertHead, QuestionAnswering):
    """DistilBERT that marks where an answer starts and ends; see ``QuestionAnswering``."""

    def call(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Output:
        """See ``compute``."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        values = (*inputs, output_attentions, output_hidden_states, training)
        return self.compute(dict(zip(INPUTS, values, strict=True)), return_dict, start_positions, end_positions)


class BertHead(HeadModel):
    """What the heads of BERT have in common: its encoder, its order of arguments, and its pooler."""

    family = BERT
    encoder_class = TFBertModel

    def text_vector(self, encoded: ModelOutput) -> Tensor:
        """See ``HeadModel``."""
        return encoded.pooler_output

    def call(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
    ) -> Output:
        """See ``compute``."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        values = (*inputs, output_attentions, output_hidden_states, training)
        return self.compute(dict(zip(INPUTS, values, strict=True)), return_dict, labels)


@keras.saving.register_keras_serializable("distilbert")
class TFBertForPreTraining(BertHead, PreTraining):
    """BERT with both tasks that it was first trained on; see ``PreTraining``."""

    def call(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
    ) -> Output:
        """See ``compute``."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        values = (*inputs, output_attentions, output_hidden_states, training)
        return self.compute(dict(zip(INPUTS, values, strict=True)), return_dict, labels, next_sentence_label)


@keras.saving.register_keras_serializable("distilbert")
class TFBertForMaskedLM(BertHead, MaskedLM):
    """BERT that predicts the token at every position; see ``MaskedLM``."""


@keras.saving.register_keras_serializable("distilbert")
class TFBertForNextSentencePrediction(BertHead, NextSentencePrediction):
    """BERT that tells whether one text follows another; see ``NextSentencePrediction``."""


@keras.saving.register_keras_serializable("distilbert")
class TFBertForSequenceClassification(BertHead, SequenceClassification):
    """BERT that labels a text, or scores it; see ``SequenceClassification``."""


@keras.saving.register_keras_serializable("distilbert")
class TFBertForMultipleChoice(BertHead, MultipleChoice):
    """BERT that chooses among several texts; see ``MultipleChoice``."""


@keras.saving.register_keras_serializable("distilbert")
class TFBertForTokenClassification(BertHead, TokenClassification):
    """BERT that labels every token; see ``TokenClassification``."""


@keras.saving.register_keras_serializable("distilbert")
class TFBertForQuestionAnswering(BertHead, QuestionAnswering):
    """BERT that marks where an answer starts and ends; see ``QuestionAnswering``."""

    def call(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
    ) -> Output:
        """See ``compute``."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        values = (*inputs, output_attentions, output_hidden_states, training)
        return self.compute(dict(zip(INPUTS, values, strict=True)), return_dict, start_positions, end_positions)
