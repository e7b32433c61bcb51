"""The five task heads on the encoder. Their parameters are the rows of the spec's ``heads``.

B batch, L length, D model, C classes or choices, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor, nn

from distilbert.core.config import Config
from distilbert.core.errors import InputError
from distilbert.core.outputs import ModelOutput
from distilbert.pt.encoder import DistilBertModel, get_activation
from distilbert.pt.losses import classification_loss, span_loss, token_loss
from distilbert.pt.model import PreTrainedModel

Output = ModelOutput | tuple[Tensor, ...]


class HeadModel(PreTrainedModel):
    """The encoder with a head on top.

    Every ``forward`` takes what the encoder's takes, in its order, with the labels before
    ``output_attentions``; it returns what the encoder returns, but for ``last_hidden_state``. Below, only what
    a head adds is documented.
    """

    def __init__(self, config: Config, *, attn_implementation: str = "sdpa") -> None:
        super().__init__(config, attn_implementation=attn_implementation)
        self.add_module(self.family.prefix, DistilBertModel(config, attn_implementation=attn_implementation))
        self.add_parts([parameter for parameter in self.parameter_list() if parameter.section == "head"], config)
        self.tie_weights()

    def answer(self, encoded: ModelOutput, return_dict: bool | None, **values: Tensor | None) -> Output:
        """The head's ``values`` together with what the encoder returned besides its vectors."""
        output = ModelOutput(**values, hidden_states=encoded.hidden_states, attentions=encoded.attentions)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


class DistilBertForMaskedLM(HeadModel):
    """Predicts the token at every position. The output projection is tied to the word embeddings."""

    head = "masked-lm"

    def __init__(self, config: Config, *, attn_implementation: str = "sdpa") -> None:
        super().__init__(config, attn_implementation=attn_implementation)
        self.activation = get_activation(config.hidden_act)

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
    ) -> Output:
        """``labels`` (B, L), -100 where no prediction counts; returns ``loss`` and ``logits`` (B, L, V)."""
        inputs = (input_ids, attention_mask, head_mask, inputs_embeds, position_ids)
        encoded = self.base_model(*inputs, output_attentions, output_hidden_states, True, token_type_ids)
        transformed_BLD = self.activation(self.part("transform")(encoded.last_hidden_state))
        logits_BLV = self.part("decoder")(self.part("transform_norm")(transformed_BLD))
        loss = None if labels is None else token_loss(logits_BLV, labels)
        return self.answer(encoded, return_dict, loss=loss, logits=logits_BLV)

    def get_output_embeddings(self) -> nn.Module:
        """The projection from vectors to the vocabulary."""
        return self.part("decoder")


class DistilBertForSequenceClassification(HeadModel):
    """Labels a text, or scores it, from the vector of its first token."""

    head = "sequence-classification"

    def __init__(self, config: Config, *, attn_implementation: str = "sdpa") -> None:
        super().__init__(config, attn_implementation=attn_implementation)
        self.dropout = nn.Dropout(config.seq_classif_dropout)

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
    ) -> Output:
        """``labels`` as ``classification_loss`` takes them; returns ``loss`` and ``logits`` (B, C)."""
        inputs = (input_ids, attention_mask, head_mask, inputs_embeds, position_ids)
        outputs = (output_attentions, output_hidden_states, True, token_type_ids)
        encoded = self.base_model(*inputs, *outputs, first_token_only=True)
        pooled_BD = self.part("pre_classifier")(encoded.last_hidden_state[:, 0]).relu()
        logits_BC = self.part("classifier")(self.dropout(pooled_BD))
        loss = None if labels is None else classification_loss(logits_BC, labels, self.config)
        return self.answer(encoded, return_dict, loss=loss, logits=logits_BC)


class DistilBertForMultipleChoice(HeadModel):
    """Chooses among several texts, from the vectors of their first tokens."""

    head = "multiple-choice"

    def __init__(self, config: Config, *, attn_implementation: str = "sdpa") -> None:
        super().__init__(config, attn_implementation=attn_implementation)
        self.dropout = nn.Dropout(config.seq_classif_dropout)

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
    ) -> Output:
        """Inputs (B, C, L), one row a choice; ``labels`` (B,); returns ``loss`` and ``logits`` (B, C)."""
        choices = input_ids if inputs_embeds is None else inputs_embeds
        if choices is None or choices.dim() < 3:
            raise InputError("multiple choice: expected input_ids (batch, choices, length), or inputs_embeds")
        rows = (input_ids, attention_mask, inputs_embeds, position_ids, token_type_ids)
        ids, mask, embeds, positions, types = (None if row is None else row.flatten(0, 1) for row in rows)
        inputs = (ids, mask, head_mask, embeds, positions)
        outputs = (output_attentions, output_hidden_states, True, types)
        encoded = self.base_model(*inputs, *outputs, first_token_only=True)
        pooled = self.part("pre_classifier")(encoded.last_hidden_state[:, 0]).relu()
        logits_BC = self.part("classifier")(self.dropout(pooled)).unflatten(0, choices.shape[:2]).squeeze(-1)
        loss = None if labels is None else token_loss(logits_BC, labels)
        return self.answer(encoded, return_dict, loss=loss, logits=logits_BC)


class DistilBertForTokenClassification(HeadModel):
    """Labels every token."""

    head = "token-classification"

    def __init__(self, config: Config, *, attn_implementation: str = "sdpa") -> None:
        super().__init__(config, attn_implementation=attn_implementation)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

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
    ) -> Output:
        """``labels`` (B, L), -100 where none counts; returns ``loss`` and ``logits`` (B, L, C)."""
        inputs = (input_ids, attention_mask, head_mask, inputs_embeds, position_ids)
        encoded = self.base_model(*inputs, output_attentions, output_hidden_states, True, token_type_ids)
        logits_BLC = self.part("classifier")(self.dropout(encoded.last_hidden_state))
        loss = None if labels is None else token_loss(logits_BLC, labels)
        return self.answer(encoded, return_dict, loss=loss, logits=logits_BLC)


class DistilBertForQuestionAnswering(HeadModel):
    """Marks where in a text the answer to a question starts and ends."""

    head = "question-answering"

    def __init__(self, config: Config, *, attn_implementation: str = "sdpa") -> None:
        super().__init__(config, attn_implementation=attn_implementation)
        self.dropout = nn.Dropout(config.qa_dropout)

    def forward(
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
    ) -> Output:
        """Positions (B,), see ``span_loss``; returns ``loss``, ``start_logits`` and ``end_logits`` (B, L)."""
        inputs = (input_ids, attention_mask, head_mask, inputs_embeds, position_ids)
        encoded = self.base_model(*inputs, output_attentions, output_hidden_states, True, token_type_ids)
        spans_BL2 = self.part("spans")(self.dropout(encoded.last_hidden_state))
        start_BL, end_BL = (logits.contiguous() for logits in spans_BL2.unbind(-1))
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = span_loss(start_BL, end_BL, start_positions, end_positions)
        return self.answer(encoded, return_dict, loss=loss, start_logits=start_BL, end_logits=end_BL)
