"""The encoder of BERT and DistilBERT, in PyTorch.

A post-norm Transformer (Vaswani et al. 2017). DistilBERT (Sanh et al. 2019, https://arxiv.org/abs/1910.01108) is BERT
(Devlin et al. 2018, https://arxiv.org/abs/1810.04805) without segment embeddings and without a pooler. Read from the
top: embeddings, one layer, the stack, the models. Modules are called by their role in the spec
(``distilbert/core/spec.py``), which alone knows their names and shapes.

B batch, L length, D model, H heads, K size of a head, F feed-forward.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distilbert.core import inputs
from distilbert.core.config import Config
from distilbert.core.outputs import ModelOutput
from distilbert.core.spec import BERT, DISTILBERT, Parameter
from distilbert.pt.attention import eager_attention, sdpa_attention, visible_tokens
from distilbert.pt.model import PreTrainedModel
from distilbert.pt.parameters import FromSpec, attach

logger = logging.getLogger("distilbert")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda value: F.gelu(value, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


def get_activation(activation: str | Callable[..., Any]) -> Callable[..., Any]:
    """The function that a config's ``activation`` names, or is."""
    return activation if callable(activation) else ACTIVATIONS[activation]


class Embeddings(FromSpec):
    """Word plus position embeddings, and for BERT segment embeddings, normalised."""

    def __init__(self, listed: list[Parameter], config: Config) -> None:
        super().__init__()
        self.add_parts(listed, config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: Tensor | None,
        position_ids: Tensor,
        inputs_embeds: Tensor | None,
        token_type_ids: Tensor | None,
    ) -> Tensor:
        """Ids (B, L), or word vectors (B, L, D) in their place, to vectors (B, L, D)."""
        positions_1LD = self.part("positions")(position_ids)
        words_BLD = self.part("words")(input_ids) if inputs_embeds is None else inputs_embeds.to(positions_1LD.dtype)
        if "types" in self.paths:
            words_BLD = words_BLD + self.part("types")(
                torch.zeros_like(position_ids) if token_type_ids is None else token_type_ids
            )
        summed_BLD = words_BLD + positions_1LD
        return self.dropout(self.part("norm")(summed_BLD))


class Layer(FromSpec):
    """Self-attention and a feed-forward network, each with a residual and a norm after it."""

    def __init__(self, listed: list[Parameter], config: Config) -> None:
        super().__init__()
        self.add_parts(listed, config)
        self.head_size = config.hidden_size // config.num_attention_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.attention_output_dropout = nn.Dropout(config.attention_output_dropout)
        self.activation = get_activation(config.hidden_act)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_BLD: Tensor,
        visible: Tensor | None,
        head_mask: Tensor | None,
        fused: bool,
        first_token_only: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Vectors (B, L, D) to vectors (B, Q, D), and the attention probabilities unless ``fused``.

        Q is L, or 1 with ``first_token_only``.
        """
        asking_BQD = hidden_BLD[:, :1] if first_token_only else hidden_BLD
        query_BHQK = self.split_heads(self.part("query")(asking_BQD))
        key_BHLK = self.split_heads(self.part("key")(hidden_BLD))
        value_BHLK = self.split_heads(self.part("value")(hidden_BLD))
        dropout = self.attention_dropout if self.training else 0.0
        probability_BHQL = None
        if fused:
            context_BHQK = sdpa_attention(query_BHQK, key_BHLK, value_BHLK, visible, dropout)
        else:
            context_BHQK, probability_BHQL = eager_attention(
                query_BHQK, key_BHLK, value_BHLK, visible, dropout, head_mask
            )
        attended_BQD = self.part("attention_out")(context_BHQK.transpose(1, 2).flatten(2))
        attended_BQD = self.part("attention_norm")(self.attention_output_dropout(attended_BQD) + asking_BQD)
        inner_BQF = self.activation(self.part("feed_forward_in")(attended_BQD))
        outer_BQD = self.dropout(self.part("feed_forward_out")(inner_BQF))
        return self.part("feed_forward_norm")(outer_BQD + attended_BQD), probability_BHQL

    def split_heads(self, projected: Tensor) -> Tensor:
        """(B, L, H * K) to (B, H, L, K); pruning leaves a layer fewer heads."""
        return projected.unflatten(-1, (-1, self.head_size)).transpose(1, 2)


class Encoder(PreTrainedModel):
    """Embeddings, layers, and for a family that has one a pooler. ``family`` says whose rows they are made from."""

    head = "base"

    def __init__(self, config: Config, *, attn_implementation: str = "sdpa", is_pooled: bool = False) -> None:
        super().__init__(config, attn_implementation=attn_implementation)
        self.head = self.family.encoder(is_pooled)
        self.warned_of_token_types = False
        listed = self.parameter_list()
        attach(self, self.family.embeddings_path, Embeddings([p for p in listed if p.section == "embeddings"], config))
        for layer in range(config.num_hidden_layers):
            path = self.family.layer_path.format(layer)
            attach(self, path, Layer([p for p in listed if p.layer == layer], config))
        self.add_parts([p for p in listed if p.section == "pooler"], config)

    def encode(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        head_mask: Tensor | None,
        inputs_embeds: Tensor | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        return_dict: bool | None,
        first_token_only: bool,
    ) -> ModelOutput | tuple[Tensor, ...]:
        """Encode a batch: what ``forward`` of every family does, which only differ in the order of their arguments.

        Args:
            input_ids: integers (B, L).
            attention_mask: (B, L), 1 for tokens and 0 for padding; by default all tokens count.
            token_type_ids: integers (B, L) or (1, L), the segment of each token, by default 0; ignored by DistilBERT,
                which has no segments.
            position_ids: integers (B, L) or (1, L), by default 0, 1, 2, …
            head_mask: (H,) or (layers, H), factors on the attention probabilities.
            inputs_embeds: (B, L, D), word vectors in place of ``input_ids``.
            output_attentions: also return ``attentions``, a tuple of (B, H, L, L), one a layer.
            output_hidden_states: also return ``hidden_states``, a tuple of (B, L, D), one more than layers.
            return_dict: False for a plain tuple.
            first_token_only: spare the last layer the work for all tokens but the first, which is the only one
                that classifiers of texts read: an eighth of the time. ``last_hidden_state`` is then (B, 1, D).
                Without effect where attentions or hidden states are asked for.

        Returns:
            ``last_hidden_state`` (B, L, D), with a pooler ``pooler_output`` (B, D), and what was asked for.

        Raises:
            InputError: neither or both of ids and embeddings, a sequence longer than the position table, an
                id outside the vocabulary (checked on the CPU; CUDA itself asserts), a mask of another shape.
        """
        config = self.config
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return_dict = config.return_dict if return_dict is None else return_dict
        self.check_inputs(input_ids, attention_mask, inputs_embeds, position_ids, token_type_ids)

        given = input_ids if inputs_embeds is None else inputs_embeds
        assert given is not None  # check_inputs
        if position_ids is None:
            position_ids = torch.arange(given.shape[1], device=given.device)[None]
        embeddings = self.get_submodule(self.family.embeddings_path)
        hidden_BLD = embeddings(input_ids, position_ids, inputs_embeds, token_type_ids)
        visible = None if attention_mask is None else visible_tokens(attention_mask)
        head_masks = self.split_head_mask(head_mask, hidden_BLD)
        fused = self.attn_implementation == "sdpa" and not output_attentions and head_mask is None

        hidden_states: tuple[Tensor, ...] = (hidden_BLD,)
        attentions: tuple[Tensor, ...] = ()
        first_token_only = first_token_only and not (output_attentions or output_hidden_states)
        stack = self.layers()
        for layer, layer_head_mask in zip(stack, head_masks, strict=True):
            arguments = (hidden_BLD, visible, layer_head_mask, fused, first_token_only and layer is stack[-1])
            if self.is_gradient_checkpointing and self.training:
                hidden_BLD, probability_BHQL = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                hidden_BLD, probability_BHQL = layer(*arguments)
            if output_hidden_states:
                hidden_states += (hidden_BLD,)
            if output_attentions:
                attentions += (probability_BHQL,)
        output = ModelOutput(
            last_hidden_state=hidden_BLD,
            pooler_output=self.part("pooler")(hidden_BLD[:, 0]).tanh() if "pooler" in self.paths else None,
            hidden_states=hidden_states if output_hidden_states else None,
            attentions=attentions if output_attentions else None,
        )
        return output if return_dict else output.to_tuple()

    def layers(self) -> nn.ModuleList:
        """The stack, from the embeddings up."""
        return self.get_submodule(self.family.layer_path.removesuffix(".{}"))  # type: ignore[return-value]

    def split_head_mask(self, head_mask: Tensor | None, hidden: Tensor) -> list[Tensor | None]:
        """One factor (1, H, 1, 1) a layer, from (H,) or (layers, H)."""
        count = self.config.num_hidden_layers
        if head_mask is None:
            return [None] * count
        if head_mask.dim() == 1:
            head_mask = head_mask.expand(count, -1)
        inputs.check_head_mask(tuple(head_mask.shape), self.config)
        return list(head_mask.to(hidden.dtype)[:, None, :, None, None].unbind())

    def check_inputs(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        inputs_embeds: Tensor | None,
        position_ids: Tensor | None,
        token_type_ids: Tensor | None,
    ) -> None:
        """Explain what the kernels below would only fail on; values are left to them where a graph is traced."""
        shapes = (input_ids, attention_mask, inputs_embeds, position_ids, token_type_ids)
        inputs.check_shapes(*(None if given is None else tuple(given.shape) for given in shapes), config=self.config)
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return
        if inputs_embeds is None and input_ids is not None and input_ids.device.type == "cpu" and input_ids.numel():
            low, high = input_ids.aminmax()
            inputs.check_range("input_ids", int(low), int(high), self.config.vocab_size)
        if position_ids is not None and position_ids.device.type == "cpu" and position_ids.numel():
            low, high = position_ids.aminmax()
            inputs.check_range("position_ids", int(low), int(high), self.config.max_position_embeddings)
        if token_type_ids is not None and self.family.has_segments:
            if token_type_ids.device.type == "cpu" and token_type_ids.numel():
                low, high = token_type_ids.aminmax()
                inputs.check_range("token_type_ids", int(low), int(high), self.config.type_vocab_size)
        elif token_type_ids is not None and not self.warned_of_token_types and token_type_ids.any():
            logger.warning("token_type_ids are ignored: DistilBERT has no segment embeddings")
            self.warned_of_token_types = True


class DistilBertModel(Encoder):
    """The bare DistilBERT: ids to one vector a token.

    Args:
        config: shapes and rates.
        attn_implementation: ``"sdpa"`` (PyTorch's fused attention) or ``"eager"``. They agree; attentions and
            head masks are always computed eagerly.
    """

    family = DISTILBERT

    def __init__(self, config: Config, *, attn_implementation: str = "sdpa") -> None:
        super().__init__(config, attn_implementation=attn_implementation)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        token_type_ids: Tensor | None = None,
        first_token_only: bool = False,
    ) -> ModelOutput | tuple[Tensor, ...]:
        """See ``Encoder.encode``."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        return self.encode(*inputs, output_attentions, output_hidden_states, return_dict, first_token_only)


class BertModel(Encoder):
    """The bare BERT: ids to one vector a token, and one of the whole text.

    Args:
        config: shapes and rates.
        add_pooling_layer: False leaves out the vector of the whole text, ``pooler_output``.
        attn_implementation: as of ``DistilBertModel``.
    """

    family = BERT

    def __init__(self, config: Config, add_pooling_layer: bool = True, *, attn_implementation: str = "sdpa") -> None:
        super().__init__(config, attn_implementation=attn_implementation, is_pooled=add_pooling_layer)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        first_token_only: bool = False,
    ) -> ModelOutput | tuple[Tensor, ...]:
        """See ``Encoder.encode``."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        return self.encode(*inputs, output_attentions, output_hidden_states, return_dict, first_token_only)
