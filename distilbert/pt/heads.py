"""The task heads on the encoder, each once for all families. Their parameters are the rows of the spec's ``heads``.

First what a head computes, then the models: a head with the arguments of a family, in that family's order.

B batch, L length, D model, C classes or choices, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from distilbert.core.config import Config
from distilbert.core.errors import InputError
from distilbert.core.outputs import ModelOutput, is_per_token
from distilbert.core.spec import BERT, DISTILBERT
from distilbert.pt.attention import Packing
from distilbert.pt.encoder import INPUTS, BertModel, DistilBertModel, Encoder, Inputs, get_activation
from distilbert.pt.losses import classification_loss, span_loss, token_loss
from distilbert.pt.model import PreTrainedModel

Output = ModelOutput | tuple[Tensor, ...]


class HeadModel(PreTrainedModel):
    """The encoder with a head on top.

    Every ``forward`` takes what the encoder's takes, in its order, with the labels before
    ``output_attentions``; it returns what the encoder returns, but for its vectors. Below, only what
    a head adds is documented. What it gives as (B, L, …) is (T, …) for a packed batch, and labels are (T,) too.
    """

    encoder_class: ClassVar[type[Encoder]]
    compute: Callable[..., Output]  # what the head does, from the encoder's inputs by name, and its labels
    dropout_rate: ClassVar[str | None] = None  # the config's field for what goes into the last layer

    def __init__(self, config: Config, *, attn_implementation: str = "sdpa") -> None:
        super().__init__(config, attn_implementation=attn_implementation)
        options: Any = {"add_pooling_layer": self.family.heads[self.head].is_pooled} if self.family.pooler else {}
        encoder = self.encoder_class(config, attn_implementation=attn_implementation, **options)
        encoder.config = self.config
        self.add_module(self.family.prefix, encoder)
        self.add_parts([parameter for parameter in self.parameter_list() if parameter.section == "head"], config)
        self.dropout = nn.Dropout(getattr(config, self.dropout_rate) if self.dropout_rate else 0.0)
        self.tie_weights()

    def text_vector(self, encoded: ModelOutput) -> Tensor:
        """The vector (B, D) of each whole text, from its first token."""
        raise NotImplementedError

    def encode_tokens(self, inputs: Inputs, has_labels: bool) -> tuple[ModelOutput, Packing | None]:
        """What the encoder gives for every token, and how to get back to a padded batch if it is without padding.

        With labels padding stays in, since a loss may count it.
        """
        encoder: Any = self.base_model
        inputs, packing = encoder.prepare(inputs, padding_free=not has_labels)
        return encoder(**inputs, return_dict=True, padding_free=False), packing

    def answer(
        self,
        encoded: ModelOutput,
        return_dict: bool | None,
        packing: Packing | None = None,
        fill: float = 0.0,
        **values: Tensor | None,
    ) -> Output:
        """The head's ``values``, padded again with ``fill``, and what the encoder returned besides its vectors."""
        if packing is not None:
            for name, value in values.items():
                if value is not None:
                    per_token = is_per_token(name, self.head)
                    values[name] = packing.unpack(value, fill) if per_token else packing.unpack_rows(value)
        output = ModelOutput(**values, hidden_states=encoded.hidden_states, attentions=encoded.attentions)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


class MaskedLM(HeadModel):
    """Predicts the token at every position. The output projection is tied to the word embeddings."""

    head = "masked-lm"

    def __init__(self, config: Config, *, attn_implementation: str = "sdpa") -> None:
        super().__init__(config, attn_implementation=attn_implementation)
        self.activation = get_activation(config.hidden_act)

    def compute(self, inputs: Inputs, return_dict: bool | None, labels: Tensor | None) -> Output:
        """``labels`` (B, L), -100 where no prediction counts; returns ``loss`` and ``logits`` (B, L, V)."""
        encoded, packing = self.encode_tokens(inputs, labels is not None)
        logits_BLV = self.score_words(encoded.last_hidden_state)
        loss = None if labels is None else token_loss(logits_BLV, labels)
        return self.answer(encoded, return_dict, packing, loss=loss, logits=logits_BLV)

    def score_words(self, hidden_BLD: Tensor) -> Tensor:
        """The scores (B, L, V) of every word of the vocabulary."""
        transformed_BLD = self.activation(self.part("transform")(hidden_BLD))
        return self.part("decoder")(self.part("transform_norm")(transformed_BLD))

    def get_output_embeddings(self) -> nn.Module:
        """The projection from vectors to the vocabulary."""
        return self.part("decoder")

    def set_output_embeddings(self, projection: nn.Module) -> None:
        """Replace it; where the config ties its weight to the word embeddings, ``tie_weights`` makes them one again."""
        self.set_submodule(self.paths["decoder"], projection)


class NextSentencePrediction(HeadModel):
    """Tells whether the second text of a pair follows the first (0) or does not (1)."""

    head = "next-sentence"

    def compute(self, inputs: Inputs, return_dict: bool | None, labels: Tensor | None) -> Output:
        """``labels`` (B,); returns ``loss`` and ``logits`` (B, 2)."""
        encoded = self.base_model(**inputs, return_dict=True, first_token_only=True)
        logits_B2 = self.part("next_sentence")(self.text_vector(encoded))
        loss = None if labels is None else token_loss(logits_B2, labels)
        return self.answer(encoded, return_dict, loss=loss, logits=logits_B2)


class PreTraining(MaskedLM):
    """Predicts the token at every position, and whether the second text follows the first."""

    head = "pretraining"

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
        encoded, packing = self.encode_tokens(inputs, labels is not None)
        logits_BLV = self.score_words(encoded.last_hidden_state)
        logits_B2 = self.part("next_sentence")(self.text_vector(encoded))
        loss = None
        if labels is not None and next_sentence_label is not None:
            loss = token_loss(logits_BLV, labels) + token_loss(logits_B2, next_sentence_label)
        values = {"prediction_logits": logits_BLV, "seq_relationship_logits": logits_B2}
        return self.answer(encoded, return_dict, packing, loss=loss, **values)


class SequenceClassification(HeadModel):
    """Labels a text, or scores it, from the vector of its first token."""

    head = "sequence-classification"
    dropout_rate = "seq_classif_dropout"

    def compute(self, inputs: Inputs, return_dict: bool | None, labels: Tensor | None) -> Output:
        """``labels`` as ``classification_loss`` takes them; returns ``loss`` and ``logits`` (B, C)."""
        encoded = self.base_model(**inputs, return_dict=True, first_token_only=True)
        logits_BC = self.part("classifier")(self.dropout(self.text_vector(encoded)))
        loss = None if labels is None else classification_loss(logits_BC, labels, self.config)
        return self.answer(encoded, return_dict, loss=loss, logits=logits_BC)


class MultipleChoice(HeadModel):
    """Chooses among several texts, from the vectors of their first tokens."""

    head = "multiple-choice"
    dropout_rate = "seq_classif_dropout"

    def compute(self, inputs: Inputs, return_dict: bool | None, labels: Tensor | None) -> Output:
        """Inputs (B, C, L), one row a choice; ``labels`` (B,); returns ``loss`` and ``logits`` (B, C).

        In a packed batch each sequence is the only choice of its row: ``logits`` are (N, 1).
        """
        shape: tuple[int, ...] = (-1, 1)
        if inputs["cu_seqlens"] is None:
            choices = inputs["input_ids"] if inputs["inputs_embeds"] is None else inputs["inputs_embeds"]
            if choices is None or choices.dim() < 3:
                raise InputError("multiple choice: expected input_ids (batch, choices, length), or inputs_embeds")
            shape = choices.shape[:2]
            for name in ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds"):
                inputs[name] = None if inputs[name] is None else inputs[name].flatten(0, 1)
        encoded = self.base_model(**inputs, return_dict=True, first_token_only=True)
        logits_BC = self.part("classifier")(self.dropout(self.text_vector(encoded))).view(shape)
        loss = None if labels is None else token_loss(logits_BC, labels)
        return self.answer(encoded, return_dict, loss=loss, logits=logits_BC)


class TokenClassification(HeadModel):
    """Labels every token."""

    head = "token-classification"
    dropout_rate = "token_classif_dropout"

    def compute(self, inputs: Inputs, return_dict: bool | None, labels: Tensor | None) -> Output:
        """``labels`` (B, L), -100 where none counts; returns ``loss`` and ``logits`` (B, L, C)."""
        encoded, packing = self.encode_tokens(inputs, labels is not None)
        logits_BLC = self.part("classifier")(self.dropout(encoded.last_hidden_state))
        loss = None if labels is None else token_loss(logits_BLC, labels)
        return self.answer(encoded, return_dict, packing, loss=loss, logits=logits_BLC)


class QuestionAnswering(HeadModel):
    """Marks where in a text the answer to a question starts and ends."""

    head = "question-answering"
    dropout_rate = "qa_dropout"

    def compute(
        self,
        inputs: Inputs,
        return_dict: bool | None,
        start_positions: Tensor | None,
        end_positions: Tensor | None,
    ) -> Output:
        """Positions (B,), see ``span_loss``; returns ``loss``, ``start_logits`` and ``end_logits`` (B, L)."""
        if inputs["cu_seqlens"] is not None and start_positions is not None:
            raise InputError("start_positions: the places of a packed batch have no loss; pad the batch")
        encoded, packing = self.encode_tokens(inputs, start_positions is not None)
        spans_BL2 = self.part("spans")(self.dropout(encoded.last_hidden_state))
        start_BL, end_BL = (logits.contiguous() for logits in spans_BL2.unbind(-1))
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = span_loss(start_BL, end_BL, start_positions, end_positions)
        lowest = torch.finfo(spans_BL2.dtype).min
        return self.answer(encoded, return_dict, packing, lowest, loss=loss, start_logits=start_BL, end_logits=end_BL)


class DistilBertHead(HeadModel):
    """What the heads of DistilBERT have in common: its encoder, its order of arguments, and no pooler."""

    family = DISTILBERT
    encoder_class = DistilBertModel

    def text_vector(self, encoded: ModelOutput) -> Tensor:
        """See ``HeadModel``."""
        return self.part("pre_classifier")(encoded.last_hidden_state[:, 0]).relu()

    def forward(
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
        token_type_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Output:
        """See ``compute``."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        values = (*inputs, output_attentions, output_hidden_states, cu_seqlens)
        return self.compute(dict(zip(INPUTS, values, strict=True)), return_dict, labels)


class DistilBertForMaskedLM(DistilBertHead, MaskedLM):
    """DistilBERT that predicts the token at every position; see ``MaskedLM``."""


class DistilBertForSequenceClassification(DistilBertHead, SequenceClassification):
    """DistilBERT that labels a text, or scores it; see ``SequenceClassification``."""


class DistilBertForMultipleChoice(DistilBertHead, MultipleChoice):
    """DistilBERT that chooses among several texts; see ``MultipleChoice``."""


class DistilBertForTokenClassification(DistilBertHead, TokenClassification):
    """DistilBERT that labels every token; see ``TokenClassification``."""


class DistilBertForQuestionAnswering(DistilBertHead, QuestionAnswering):
    """DistilBERT that marks where an answer starts and ends; see ``QuestionAnswering``."""

    def forward(  # type: ignore[override]
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
        token_type_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Output:
        """See ``compute``."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        values = (*inputs, output_attentions, output_hidden_states, cu_seqlens)
        return self.compute(dict(zip(INPUTS, values, strict=True)), return_dict, start_positions, end_positions)


class BertHead(HeadModel):
    """What the heads of BERT have in common: its encoder, its order of arguments, and its pooler."""

    family = BERT
    encoder_class = BertModel

    def text_vector(self, encoded: ModelOutput) -> Tensor:
        """See ``HeadModel``."""
        return encoded.pooler_output

    def forward(
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
        cu_seqlens: Tensor | None = None,
    ) -> Output:
        """See ``compute``."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        values = (*inputs, output_attentions, output_hidden_states, cu_seqlens)
        return self.compute(dict(zip(INPUTS, values, strict=True)), return_dict, labels)


class BertForPreTraining(BertHead, PreTraining):
    """BERT with both tasks that it was first trained on; see ``PreTraining``."""

    def forward(  # type: ignore[override]
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
        cu_seqlens: Tensor | None = None,
    ) -> Output:
        """See ``compute``."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        values = (*inputs, output_attentions, output_hidden_states, cu_seqlens)
        return self.compute(dict(zip(INPUTS, values, strict=True)), return_dict, labels, next_sentence_label)


class BertForMaskedLM(BertHead, MaskedLM):
    """BERT that predicts the token at every position; see ``MaskedLM``."""


class BertForNextSentencePrediction(BertHead, NextSentencePrediction):
    """BERT that tells whether one text follows another; see ``NextSentencePrediction``."""


class BertForSequenceClassification(BertHead, SequenceClassification):
    """BERT that labels a text, or scores it; see ``SequenceClassification``."""


class BertForMultipleChoice(BertHead, MultipleChoice):
    """BERT that chooses among several texts; see ``MultipleChoice``."""


class BertForTokenClassification(BertHead, TokenClassification):
    """BERT that labels every token; see ``TokenClassification``."""


class BertForQuestionAnswering(BertHead, QuestionAnswering):
    """BERT that marks where an answer starts and ends; see ``QuestionAnswering``."""

    def forward(  # type: ignore[override]
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
        cu_seqlens: Tensor | None = None,
    ) -> Output:
        """See ``compute``."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        values = (*inputs, output_attentions, output_hidden_states, cu_seqlens)
        return self.compute(dict(zip(INPUTS, values, strict=True)), return_dict, start_positions, end_positions)
