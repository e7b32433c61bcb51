"""The task heads on the encoder, each once for all families. Their parameters are the rows of the spec's ``heads``.

First what a head computes, then the models: a head with the encoder of a family.

B batch, L length, D model, C classes or choices, V vocabulary.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from distilbert.core.errors import InputError
from distilbert.core.outputs import ModelOutput
from distilbert.core.spec import BERT, DISTILBERT
from distilbert.flax.encoder import Encoder, FlaxBertModel, FlaxDistilBertModel, check_values, get_activation
from distilbert.flax.losses import IGNORED, classification_loss, span_loss, token_loss
from distilbert.flax.model import BertModelCall, PreTrainedModel
from distilbert.flax.parameters import TiedLinear

Array = jax.Array


class HeadModel(PreTrainedModel):
    """The encoder with a head on top.

    A call takes what the encoder's takes, and the labels by name; it returns what the encoder returns, but for its
    vectors. Below, only what a head adds is documented. Losses are float32 scalars.
    """

    encoder_class: ClassVar[type[Encoder]]

    label_names: ClassVar[tuple[str, ...]] = ("labels",)
    dropout_rate: ClassVar[str | None] = None  # the config's field for what goes into the last layer

    def add_modules(self) -> None:
        """The encoder and the head's parts."""
        types: dict[str, Any] = {"dtype": self.precision.dtype, "param_dtype": self.precision.param_dtype}
        options = {"add_pooling_layer": self.family.heads[self.head].is_pooled} if self.family.pooler else {}
        encoder = self.encoder_class(self.config, rngs=self.rngs, **types, **options)
        encoder.config = self.config
        setattr(self, self.family.prefix, encoder)
        rows = [parameter for parameter in self.parameter_list() if parameter.section == "head"]
        self.add_parts(rows, self.config, self.precision, self.rngs)
        rate = getattr(self.config, self.dropout_rate) if self.dropout_rate else 0.0
        self.dropout = nnx.Dropout(rate, deterministic=True)

    def drop(self, vectors: Array, rngs: nnx.Rngs | None) -> Array:
        """Dropout, where it is at work."""
        return self.dropout(vectors, deterministic=rngs is None, rngs=rngs)

    def text_vector(self, encoded: ModelOutput) -> Array:
        """The vector (B, D) of each whole text, from its first token."""
        raise NotImplementedError

    def answer(self, encoded: ModelOutput, **values: Array | None) -> ModelOutput:
        """The head's ``values`` together with what the encoder returned besides its vectors."""
        return ModelOutput(**values, hidden_states=encoded.hidden_states, attentions=encoded.attentions)


class MaskedLM(HeadModel):
    """Predicts the token at every position. The output projection is tied to the word embeddings.

    ``labels`` (B, L), -100 where no prediction counts; returns ``loss`` and ``logits`` (B, L, V).
    """

    head = "masked-lm"

    def forward(self, rngs: nnx.Rngs | None, labels: Array | None = None, **inputs: Any) -> ModelOutput:
        """See the class."""
        encoded = self.base_model.forward(rngs=rngs, **inputs)
        logits_BLV = self.score_words(encoded.last_hidden_state)
        loss = None
        if labels is not None:
            loss = token_loss(logits_BLV, check_values("labels", labels, self.config.vocab_size, IGNORED))
        return self.answer(encoded, loss=loss, logits=logits_BLV)

    def score_words(self, hidden_BLD: Array) -> Array:
        """The scores (B, L, V) of every word of the vocabulary."""
        transformed_BLD = get_activation(self.config.hidden_act)(self.part("transform")(hidden_BLD))
        normed_BLD = self.part("transform_norm")(transformed_BLD)
        decoder = self.part("decoder")
        if isinstance(decoder, TiedLinear):
            return decoder(normed_BLD, self.get_input_embeddings().embedding[...])
        return decoder(normed_BLD)

    def get_output_embeddings(self) -> nnx.Module:
        """The projection from vectors to the vocabulary."""
        return self.part("decoder")


class NextSentencePrediction(HeadModel):
    """Tells whether the second text of a pair follows the first (0) or does not (1).

    ``labels`` (B,); returns ``loss`` and ``logits`` (B, 2).
    """

    head = "next-sentence"

    def forward(self, rngs: nnx.Rngs | None, labels: Array | None = None, **inputs: Any) -> ModelOutput:
        """See the class."""
        encoded = self.base_model.forward(rngs=rngs, **inputs, first_token_only=True)
        logits_B2 = self.part("next_sentence")(self.text_vector(encoded))
        loss = None if labels is None else token_loss(logits_B2, check_values("labels", labels, 2, IGNORED))
        return self.answer(encoded, loss=loss, logits=logits_B2)


class PreTraining(MaskedLM):
    """Predicts the token at every position, and whether the second text follows the first.

    ``labels`` (B, L) and ``next_sentence_label`` (B,), which both have to be given for a loss; returns ``loss``,
    ``prediction_logits`` (B, L, V) and ``seq_relationship_logits`` (B, 2).
    """

    head = "pretraining"
    label_names = ("labels", "next_sentence_label")

    def forward(
        self,
        rngs: nnx.Rngs | None,
        labels: Array | None = None,
        next_sentence_label: Array | None = None,
        **inputs: Any,
    ) -> ModelOutput:
        """See the class."""
        encoded = self.base_model.forward(rngs=rngs, **inputs)
        logits_BLV = self.score_words(encoded.last_hidden_state)
        logits_B2 = self.part("next_sentence")(self.text_vector(encoded))
        loss = None
        if labels is not None and next_sentence_label is not None:
            labels = check_values("labels", labels, self.config.vocab_size, IGNORED)
            follows = check_values("next_sentence_label", next_sentence_label, 2, IGNORED)
            loss = token_loss(logits_BLV, labels) + token_loss(logits_B2, follows)
        return self.answer(encoded, loss=loss, prediction_logits=logits_BLV, seq_relationship_logits=logits_B2)


class SequenceClassification(HeadModel):
    """Labels a text, or scores it, from the vector of its first token.

    ``labels`` as ``classification_loss`` takes them; returns ``loss`` and ``logits`` (B, C).
    """

    head = "sequence-classification"
    dropout_rate = "seq_classif_dropout"

    def forward(self, rngs: nnx.Rngs | None, labels: Array | None = None, **inputs: Any) -> ModelOutput:
        """See the class."""
        encoded = self.base_model.forward(rngs=rngs, **inputs, first_token_only=True)
        logits_BC = self.part("classifier")(self.drop(self.text_vector(encoded), rngs))
        loss = None
        if labels is not None:
            is_class = jnp.issubdtype(labels.dtype, jnp.integer) and self.config.num_labels > 1
            if is_class and self.config.problem_type in (None, "single_label_classification"):
                labels = check_values("labels", labels, self.config.num_labels, IGNORED)
            loss = classification_loss(logits_BC, jnp.asarray(labels), self.config)
        return self.answer(encoded, loss=loss, logits=logits_BC)


class MultipleChoice(HeadModel):
    """Chooses among several texts, from the vectors of their first tokens.

    Inputs (B, C, L), one row a choice; ``labels`` (B,); returns ``loss`` and ``logits`` (B, C).
    """

    head = "multiple-choice"
    dropout_rate = "seq_classif_dropout"

    def forward(self, rngs: nnx.Rngs | None, labels: Array | None = None, **inputs: Any) -> ModelOutput:
        """See the class."""
        given = inputs["input_ids"] if inputs["inputs_embeds"] is None else inputs["inputs_embeds"]
        if given is None or given.ndim < 3:
            raise InputError("multiple choice: expected input_ids (batch, choices, length), or inputs_embeds")
        for name in ("input_ids", "attention_mask", "inputs_embeds", "position_ids", "token_type_ids"):
            if inputs[name] is not None:
                inputs[name] = inputs[name].reshape(-1, *inputs[name].shape[2:])
        encoded = self.base_model.forward(rngs=rngs, **inputs, first_token_only=True)
        logits = self.part("classifier")(self.drop(self.text_vector(encoded), rngs))
        logits_BC = logits.reshape(given.shape[:2])
        loss = None
        if labels is not None:
            loss = token_loss(logits_BC, check_values("labels", labels, logits_BC.shape[1], IGNORED))
        return self.answer(encoded, loss=loss, logits=logits_BC)


class TokenClassification(HeadModel):
    """Labels every token.

    ``labels`` (B, L), -100 where none counts; returns ``loss`` and ``logits`` (B, L, C).
    """

    head = "token-classification"
    dropout_rate = "token_classif_dropout"

    def forward(self, rngs: nnx.Rngs | None, labels: Array | None = None, **inputs: Any) -> ModelOutput:
        """See the class."""
        encoded = self.base_model.forward(rngs=rngs, **inputs)
        logits_BLC = self.part("classifier")(self.drop(encoded.last_hidden_state, rngs))
        loss = None
        if labels is not None:
            loss = token_loss(logits_BLC, check_values("labels", labels, self.config.num_labels, IGNORED))
        return self.answer(encoded, loss=loss, logits=logits_BLC)


class QuestionAnswering(HeadModel):
    """Marks where in a text the answer to a question starts and ends.

    ``start_positions`` and ``end_positions`` (B,), see ``span_loss``; returns ``loss``, ``start_logits`` and
    ``end_logits`` (B, L).
    """

    head = "question-answering"
    label_names = ("start_positions", "end_positions")
    dropout_rate = "qa_dropout"

    def forward(
        self,
        rngs: nnx.Rngs | None,
        start_positions: Array | None = None,
        end_positions: Array | None = None,
        **inputs: Any,
    ) -> ModelOutput:
        """See the class."""
        encoded = self.base_model.forward(rngs=rngs, **inputs)
        spans_BL2 = self.part("spans")(self.drop(encoded.last_hidden_state, rngs))
        start_BL, end_BL = spans_BL2[..., 0], spans_BL2[..., 1]
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = span_loss(start_BL, end_BL, jnp.asarray(start_positions), jnp.asarray(end_positions))
        return self.answer(encoded, loss=loss, start_logits=start_BL, end_logits=end_BL)


class DistilBertHead(HeadModel):
    """What the heads of DistilBERT have in common: its encoder, and no pooler."""

    family = DISTILBERT
    encoder_class = FlaxDistilBertModel

    def text_vector(self, encoded: ModelOutput) -> Array:
        """See ``HeadModel``."""
        return jax.nn.relu(self.part("pre_classifier")(encoded.last_hidden_state[:, 0]))


class FlaxDistilBertForMaskedLM(DistilBertHead, MaskedLM):
    """DistilBERT that predicts the token at every position; see ``MaskedLM``."""


class FlaxDistilBertForSequenceClassification(DistilBertHead, SequenceClassification):
    """DistilBERT that labels a text, or scores it; see ``SequenceClassification``."""


class FlaxDistilBertForMultipleChoice(DistilBertHead, MultipleChoice):
    """DistilBERT that chooses among several texts; see ``MultipleChoice``."""


class FlaxDistilBertForTokenClassification(DistilBertHead, TokenClassification):
    """DistilBERT that labels every token; see ``TokenClassification``."""


class FlaxDistilBertForQuestionAnswering(DistilBertHead, QuestionAnswering):
    """DistilBERT that marks where an answer starts and ends; see ``QuestionAnswering``."""


class BertHead(BertModelCall, HeadModel):
    """What the heads of BERT have in common: its encoder, its order of arguments, and its pooler."""

    family = BERT
    encoder_class = FlaxBertModel

    def text_vector(self, encoded: ModelOutput) -> Array:
        """See ``HeadModel``."""
        return encoded.pooler_output


class FlaxBertForPreTraining(BertHead, PreTraining):
    """BERT with both tasks that it was first trained on; see ``PreTraining``."""


class FlaxBertForMaskedLM(BertHead, MaskedLM):
    """BERT that predicts the token at every position; see ``MaskedLM``."""


class FlaxBertForNextSentencePrediction(BertHead, NextSentencePrediction):
    """BERT that tells whether one text follows another; see ``NextSentencePrediction``."""


class FlaxBertForSequenceClassification(BertHead, SequenceClassification):
    """BERT that labels a text, or scores it; see ``SequenceClassification``."""


class FlaxBertForMultipleChoice(BertHead, MultipleChoice):
    """BERT that chooses among several texts; see ``MultipleChoice``."""


class FlaxBertForTokenClassification(BertHead, TokenClassification):
    """BERT that labels every token; see ``TokenClassification``."""


class FlaxBertForQuestionAnswering(BertHead, QuestionAnswering):
    """BERT that marks where an answer starts and ends; see ``QuestionAnswering``."""
