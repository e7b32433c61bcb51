"""The five task heads on the encoder. Their parameters are the rows of the spec's ``heads``.

B batch, L length, D model, C classes or choices, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import keras
from keras import ops

from distilbert.core.config import Config
from distilbert.core.errors import InputError
from distilbert.core.outputs import ModelOutput
from distilbert.tf.encoder import TFDistilBertModel, check_values, get_activation
from distilbert.tf.losses import IGNORED, classification_loss, span_loss, token_loss
from distilbert.tf.model import PreTrainedModel

Tensor = Any
Output = ModelOutput | tuple[Tensor, ...]


class HeadModel(PreTrainedModel):
    """The encoder with a head on top.

    Every ``call`` takes what the encoder's takes, in its order, with the labels before ``output_attentions``; it
    returns what the encoder returns, but for ``last_hidden_state``. Below, only what a head adds is documented.
    """

    label_names: ClassVar[tuple[str, ...]] = ("labels",)
    prediction_names: ClassVar[tuple[str, ...]] = ("logits",)

    def __init__(self, config: Config, **options: Any) -> None:
        super().__init__(config, **options)
        with keras.name_scope(self.name):
            encoder = TFDistilBertModel(config, name=self.family.prefix, dtype=self.dtype_policy)
        setattr(self, self.family.prefix, encoder)
        rows = [parameter for parameter in self.parameter_list() if parameter.section == "head"]
        self.add_parts(rows, config, self.word_table)

    def answer(self, encoded: ModelOutput, return_dict: bool | None, **values: Tensor | None) -> Output:
        """The head's ``values`` together with what the encoder returned besides its vectors."""
        output = ModelOutput(**values, hidden_states=encoded.hidden_states, attentions=encoded.attentions)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def own_loss(self, output: ModelOutput, sample_weight: Tensor | None = None, **labels: Tensor) -> Tensor:
        """The loss of the head's predictions in ``output``, a scalar in float32."""
        raise NotImplementedError

    def split_labels(self, x: Any, y: Any) -> dict[str, Tensor]:
        """The labels by name, from ``y`` (one tensor, one a name, or a mapping) or from among the inputs."""
        labels = {name: x[name] for name in self.label_names if isinstance(x, Mapping) and name in x}
        if y is not None:
            if labels:
                raise InputError(f"{', '.join(labels)}: among the inputs and given as y too, expected one of both")
            if not isinstance(y, Mapping):
                values = y if isinstance(y, (list, tuple)) else (y,)
                y = dict(zip(self.label_names, values, strict=False))
            labels = {name: y[name] for name in self.label_names if name in y}
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
            labels, predictions = self.for_keras(labels, y_pred)
            return super().compute_loss(x, labels, predictions, sample_weight, training)
        loss = self.own_loss(y_pred, sample_weight, **labels)
        for added in self.losses:
            loss += ops.sum(ops.cast(added, loss.dtype))
        return scale_for_replicas(loss)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """The compiled metrics of the logits."""
        labels, predictions = self.for_keras(self.split_labels(x, y), y_pred)
        return super().compute_metrics(x, labels, predictions, sample_weight)

    def for_keras(self, labels: dict[str, Tensor], output: ModelOutput) -> tuple[Any, Any]:
        """Labels and predictions as Keras's losses and metrics take them: a tensor each, or a mapping of several."""
        if len(self.prediction_names) == 1:
            return labels[self.label_names[0]], output[self.prediction_names[0]]
        named = zip(self.prediction_names, labels.values(), strict=True)
        return dict(named), {name: output[name] for name in self.prediction_names}


def scale_for_replicas(loss: Tensor) -> Tensor:
    """A replica's share of a loss: under ``tf.distribute`` Keras adds up the replicas' gradients."""
    if keras.backend.backend() != "tensorflow":
        return loss
    import tensorflow as tf

    return loss / tf.distribute.get_strategy().num_replicas_in_sync


@keras.saving.register_keras_serializable("distilbert")
class TFDistilBertForMaskedLM(HeadModel):
    """Predicts the token at every position. The output projection is tied to the word embeddings."""

    head = "masked-lm"

    def __init__(self, config: Config, **options: Any) -> None:
        super().__init__(config, **options)
        self.activation = get_activation(config.hidden_act)

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
        """``labels`` (B, L), -100 where no prediction counts; returns ``loss`` and ``logits`` (B, L, V)."""
        inputs = (input_ids, attention_mask, head_mask, inputs_embeds, position_ids)
        encoded = self.get_base_model()(
            *inputs, output_attentions, output_hidden_states, True, training, token_type_ids
        )
        batch, length, size = ops.shape(encoded.last_hidden_state)
        hidden_ND = ops.reshape(encoded.last_hidden_state, (-1, size))
        transformed_ND = self.activation(self.part("transform")(hidden_ND))
        logits_NV = self.part("decoder")(self.part("transform_norm")(transformed_ND))
        output = ModelOutput(logits=ops.reshape(logits_NV, (batch, length, self.config.vocab_size)))
        loss = None if labels is None else self.own_loss(output, labels=labels)
        return self.answer(encoded, return_dict, loss=loss, **output)

    def own_loss(self, output: ModelOutput, sample_weight: Tensor | None = None, **labels: Tensor) -> Tensor:
        """See ``token_loss``."""
        labels["labels"] = check_values("labels", labels["labels"], self.config.vocab_size, IGNORED)
        return token_loss(output["logits"], labels["labels"], sample_weight)

    def get_output_embeddings(self) -> keras.layers.Layer:
        """The projection from vectors to the vocabulary."""
        return self.part("decoder")


@keras.saving.register_keras_serializable("distilbert")
class TFDistilBertForSequenceClassification(HeadModel):
    """Labels a text, or scores it, from the vector of its first token."""

    head = "sequence-classification"

    def __init__(self, config: Config, **options: Any) -> None:
        super().__init__(config, **options)
        self.dropout = keras.layers.Dropout(config.seq_classif_dropout, name="dropout", dtype=self.dtype_policy)

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
        """``labels`` as ``classification_loss`` takes them; returns ``loss`` and ``logits`` (B, C)."""
        inputs = (input_ids, attention_mask, head_mask, inputs_embeds, position_ids)
        outputs = (output_attentions, output_hidden_states, True, training, token_type_ids)
        encoded = self.get_base_model()(*inputs, *outputs, first_token_only=True)
        pooled_BD = ops.relu(self.part("pre_classifier")(encoded.last_hidden_state[:, 0]))
        output = ModelOutput(logits=self.part("classifier")(self.dropout(pooled_BD, training=training)))
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


@keras.saving.register_keras_serializable("distilbert")
class TFDistilBertForMultipleChoice(HeadModel):
    """Chooses among several texts, from the vectors of their first tokens."""

    head = "multiple-choice"
    input_rank = 3

    def __init__(self, config: Config, **options: Any) -> None:
        super().__init__(config, **options)
        self.dropout = keras.layers.Dropout(config.seq_classif_dropout, name="dropout", dtype=self.dtype_policy)

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
        """Inputs (B, C, L), one row a choice; ``labels`` (B,); returns ``loss`` and ``logits`` (B, C)."""
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is None or len(given.shape) < 3:
            raise InputError("multiple choice: expected input_ids (batch, choices, length), or inputs_embeds")
        choices = ops.shape(given)[1]
        rows = (input_ids, attention_mask, inputs_embeds, position_ids, token_type_ids)
        ids, mask, embeds, positions, types = (None if row is None else flatten_choices(row) for row in rows)
        inputs = (ids, mask, head_mask, embeds, positions)
        outputs = (output_attentions, output_hidden_states, True, training, types)
        encoded = self.get_base_model()(*inputs, *outputs, first_token_only=True)
        pooled = ops.relu(self.part("pre_classifier")(encoded.last_hidden_state[:, 0]))
        logits = self.part("classifier")(self.dropout(pooled, training=training))
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


@keras.saving.register_keras_serializable("distilbert")
class TFDistilBertForTokenClassification(HeadModel):
    """Labels every token."""

    head = "token-classification"

    def __init__(self, config: Config, **options: Any) -> None:
        super().__init__(config, **options)
        self.dropout = keras.layers.Dropout(config.hidden_dropout_prob, name="dropout", dtype=self.dtype_policy)

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
        """``labels`` (B, L), -100 where none counts; returns ``loss`` and ``logits`` (B, L, C)."""
        inputs = (input_ids, attention_mask, head_mask, inputs_embeds, position_ids)
        encoded = self.get_base_model()(
            *inputs, output_attentions, output_hidden_states, True, training, token_type_ids
        )
        output = ModelOutput(logits=self.part("classifier")(self.dropout(encoded.last_hidden_state, training=training)))
        loss = None if labels is None else self.own_loss(output, labels=labels)
        return self.answer(encoded, return_dict, loss=loss, **output)

    def own_loss(self, output: ModelOutput, sample_weight: Tensor | None = None, **labels: Tensor) -> Tensor:
        """See ``token_loss``."""
        labels["labels"] = check_values("labels", labels["labels"], self.config.num_labels, IGNORED)
        return token_loss(output["logits"], labels["labels"], sample_weight)


@keras.saving.register_keras_serializable("distilbert")
class TFDistilBertForQuestionAnswering(HeadModel):
    """Marks where in a text the answer to a question starts and ends."""

    head = "question-answering"
    label_names = ("start_positions", "end_positions")
    prediction_names = ("start_logits", "end_logits")

    def __init__(self, config: Config, **options: Any) -> None:
        super().__init__(config, **options)
        self.dropout = keras.layers.Dropout(config.qa_dropout, name="dropout", dtype=self.dtype_policy)

    def call(
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
        """Positions (B,), see ``span_loss``; returns ``loss``, ``start_logits`` and ``end_logits`` (B, L)."""
        inputs = (input_ids, attention_mask, head_mask, inputs_embeds, position_ids)
        encoded = self.get_base_model()(
            *inputs, output_attentions, output_hidden_states, True, training, token_type_ids
        )
        spans_BL2 = self.part("spans")(self.dropout(encoded.last_hidden_state, training=training))
        output = ModelOutput(start_logits=spans_BL2[..., 0], end_logits=spans_BL2[..., 1])
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.own_loss(output, start_positions=start_positions, end_positions=end_positions)
        return self.answer(encoded, return_dict, loss=loss, **output)

    def own_loss(self, output: ModelOutput, sample_weight: Tensor | None = None, **labels: Tensor) -> Tensor:
        """See ``span_loss``."""
        return span_loss(output["start_logits"], output["end_logits"], **labels, sample_weight=sample_weight)
