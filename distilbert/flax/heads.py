"""The five task heads on the encoder. Their parameters are the rows of the spec's ``heads``.

B batch, L length, D model, C classes or choices, V vocabulary.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from distilbert.core.errors import InputError
from distilbert.core.outputs import ModelOutput
from distilbert.flax.encoder import FlaxDistilBertModel, check_values, get_activation
from distilbert.flax.losses import IGNORED, classification_loss, span_loss, token_loss
from distilbert.flax.model import PreTrainedModel
from distilbert.flax.parameters import TiedLinear

Array = jax.Array


class HeadModel(PreTrainedModel):
    """The encoder with a head on top.

    A call takes what the encoder's takes, and the labels by name; it returns what the encoder returns, but for
    ``last_hidden_state``. Below, only what a head adds is documented. Losses are float32 scalars.
    """

    label_names: ClassVar[tuple[str, ...]] = ("labels",)
    dropout_rate: ClassVar[str] = "hidden_dropout_prob"  # the config's field for what goes into the last layer

    def add_modules(self) -> None:
        """The encoder and the head's parts."""
        encoder = FlaxDistilBertModel(
            self.config, dtype=self.precision.dtype, rngs=self.rngs, param_dtype=self.precision.param_dtype
        )
        setattr(self, self.family.prefix, encoder)
        rows = [parameter for parameter in self.parameter_list() if parameter.section == "head"]
        self.add_parts(rows, self.config, self.precision, self.rngs)
        self.dropout = nnx.Dropout(getattr(self.config, self.dropout_rate))

    def drop(self, vectors: Array, rngs: nnx.Rngs | None) -> Array:
        """Dropout, where it is at work."""
        return self.dropout(vectors, deterministic=rngs is None, rngs=rngs)

    def classify(self, vectors: Array, rngs: nnx.Rngs | None) -> Array:
        """Scores (N, C) of whole texts, from the vectors (N, D) of their first tokens."""
        return self.part("classifier")(self.drop(jax.nn.relu(self.part("pre_classifier")(vectors)), rngs))

    def answer(self, encoded: ModelOutput, **values: Array | None) -> ModelOutput:
        """The head's ``values`` together with what the encoder returned besides its vectors."""
        return ModelOutput(**values, hidden_states=encoded.hidden_states, attentions=encoded.attentions)


class FlaxDistilBertForMaskedLM(HeadModel):
    """Predicts the token at every position. The output projection is tied to the word embeddings.

    ``labels`` (B, L), -100 where no prediction counts; returns ``loss`` and ``logits`` (B, L, V).
    """

    head = "masked-lm"

    def forward(self, rngs: nnx.Rngs | None, labels: Array | None = None, **inputs: Any) -> ModelOutput:
        """See the class."""
        encoded = self.base_model.forward(rngs=rngs, **inputs)
        transformed_BLD = get_activation(self.config.hidden_act)(self.part("transform")(encoded.last_hidden_state))
        normed_BLD = self.part("transform_norm")(transformed_BLD)
        decoder = self.part("decoder")
        if isinstance(decoder, TiedLinear):
            logits_BLV = decoder(normed_BLD, self.get_input_embeddings().embedding[...])
        else:
            logits_BLV = decoder(normed_BLD)
        loss = None
        if labels is not None:
            loss = token_loss(logits_BLV, check_values("labels", labels, self.config.vocab_size, IGNORED))
        return self.answer(encoded, loss=loss, logits=logits_BLV)

    def get_output_embeddings(self) -> nnx.Module:
        """The projection from vectors to the vocabulary."""
        return self.part("decoder")


class FlaxDistilBertForSequenceClassification(HeadModel):
    """Labels a text, or scores it, from the vector of its first token.

    ``labels`` as ``classification_loss`` takes them; returns ``loss`` and ``logits`` (B, C).
    """

    head = "sequence-classification"
    dropout_rate = "seq_classif_dropout"

    def forward(self, rngs: nnx.Rngs | None, labels: Array | None = None, **inputs: Any) -> ModelOutput:
        """See the class."""
        encoded = self.base_model.forward(rngs=rngs, **inputs, first_token_only=True)
        logits_BC = self.classify(encoded.last_hidden_state[:, 0], rngs)
        loss = None
        if labels is not None:
            is_class = jnp.issubdtype(labels.dtype, jnp.integer) and self.config.num_labels > 1
            if is_class and self.config.problem_type in (None, "single_label_classification"):
                labels = check_values("labels", labels, self.config.num_labels, IGNORED)
            loss = classification_loss(logits_BC, jnp.asarray(labels), self.config)
        return self.answer(encoded, loss=loss, logits=logits_BC)


class FlaxDistilBertForMultipleChoice(HeadModel):
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
        logits_BC = self.classify(encoded.last_hidden_state[:, 0], rngs).reshape(given.shape[:2])
        loss = None
        if labels is not None:
            loss = token_loss(logits_BC, check_values("labels", labels, logits_BC.shape[1], IGNORED))
        return self.answer(encoded, loss=loss, logits=logits_BC)


class FlaxDistilBertForTokenClassification(HeadModel):
    """Labels every token.

    ``labels`` (B, L), -100 where none counts; returns ``loss`` and ``logits`` (B, L, C).
    """

    head = "token-classification"

    def forward(self, rngs: nnx.Rngs | None, labels: Array | None = None, **inputs: Any) -> ModelOutput:
        """See the class."""
        encoded = self.base_model.forward(rngs=rngs, **inputs)
        logits_BLC = self.part("classifier")(self.drop(encoded.last_hidden_state, rngs))
        loss = None
        if labels is not None:
            loss = token_loss(logits_BLC, check_values("labels", labels, self.config.num_labels, IGNORED))
        return self.answer(encoded, loss=loss, logits=logits_BLC)


class FlaxDistilBertForQuestionAnswering(HeadModel):
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
