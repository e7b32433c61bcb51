"""The encoder of BERT and DistilBERT, in PyTorch.

A post-norm Transformer (Vaswani et al. 2017). DistilBERT (Sanh et al. 2019, https://arxiv.org/abs/1910.01108) is BERT
(Devlin et al. 2018, https://arxiv.org/abs/1810.04805) without segment embeddings and without a pooler. Read from the
top: embeddings, one layer, the stack, the models. Modules are called by their role in the spec
(``distilbert/core/spec.py``), which alone knows their names and shapes.

B batch, L length, D model, H heads, K size of a head, F feed-forward; T tokens of N sequences without padding. Where a
name has the suffix of a padded batch, (B, L, …), a packed one takes its place as (T, …).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distilbert.core.config import Config
from distilbert.core.errors import InputError
from distilbert.core.inputs import check_cu_seqlens, check_head_mask, check_packed_shapes, check_range, check_shapes
from distilbert.core.outputs import ModelOutput
from distilbert.core.spec import BERT, DISTILBERT, Parameter
from distilbert.pt.attention import (
    Packing,
    Sequences,
    eager_attention,
    first_tokens,
    fused_attention,
    visible_tokens,
)
from distilbert.pt.model import PreTrainedModel
from distilbert.pt.parameters import FromSpec, attach
from distilbert.pt.products import LaidOutLayer, can_be_laid_out, is_traced, lay_out, run_laid_out

logger = logging.getLogger("distilbert")

Inputs = dict[str, Any]  # of the encoder, by name: so that the order in which its family takes them does not matter
INPUTS = (
    *("input_ids", "attention_mask", "token_type_ids", "position_ids", "head_mask", "inputs_embeds"),
    *("output_attentions", "output_hidden_states", "cu_seqlens"),
)
SHAPED = ("input_ids", "attention_mask", "inputs_embeds", "position_ids", "token_type_ids", "cu_seqlens")
PER_TOKEN = ("input_ids", "position_ids", "inputs_embeds", "token_type_ids")  # in the order of the embeddings

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda value: F.gelu(value, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


def get_activation(activation: str | Callable[..., Any]) -> Callable[..., Any]:
    """The function that a config's ``activation`` names, or is."""
    return activation if callable(activation) else ACTIVATIONS[activation]


def positions_of(given: Tensor) -> Tensor:
    """The positions (1, L) of ids (B, L) or vectors (B, L, D)."""
    return torch.arange(given.shape[1], device=given.device)[None]


class Embeddings(FromSpec):
    """Word plus position embeddings, and for BERT segment embeddings, normalised."""

    def __init__(self, listed: list[Parameter], config: Config) -> None:
        super().__init__()
        self.add_parts(listed, config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Ids (B, L), or word vectors (B, L, D) in their place, to vectors (B, L, D)."""
        if position_ids is None:
            position_ids = positions_of(inputs_embeds if input_ids is None else input_ids)  # type: ignore[arg-type]
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
        self.hidden_act = config.hidden_act
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_BLD: Tensor,
        visible: Tensor | Sequences | None = None,
        head_mask: Tensor | None = None,
        fused: bool = True,
        first_token_only: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Vectors (B, L, D) to vectors (B, Q, D), and the attention probabilities unless ``fused``.

        Q is L, or 1 with ``first_token_only``. With ``Sequences`` for ``visible``, (T, D) to (T, D) or (N, D).
        """
        asking_BQD = first_tokens(hidden_BLD, visible) if first_token_only else hidden_BLD
        query_BQHK = self.split_heads(self.part("query")(asking_BQD))
        key_BLHK, value_BLHK = (self.split_heads(self.part(role)(hidden_BLD)) for role in ("key", "value"))
        dropout = self.attention_dropout if self.training else 0.0
        probability_BHQL = None
        if fused or isinstance(visible, Sequences):
            context_BQHK = fused_attention(query_BQHK, key_BLHK, value_BLHK, visible, first_token_only, dropout)
        else:
            query_BHQK, key_BHLK, value_BHLK = (each.transpose(1, 2) for each in (query_BQHK, key_BLHK, value_BLHK))
            context_BHQK, probability_BHQL = eager_attention(
                query_BHQK, key_BHLK, value_BHLK, visible, dropout, head_mask
            )
            context_BQHK = context_BHQK.transpose(1, 2)
        attended_BQD = self.part("attention_out")(context_BQHK.flatten(-2))
        attended_BQD = self.part("attention_norm")(self.attention_output_dropout(attended_BQD) + asking_BQD)
        inner_BQF = get_activation(self.hidden_act)(self.part("feed_forward_in")(attended_BQD))
        outer_BQD = self.dropout(self.part("feed_forward_out")(inner_BQF))
        return self.part("feed_forward_norm")(outer_BQD + attended_BQD), probability_BHQL

    def split_heads(self, projected: Tensor) -> Tensor:
        """(B, L, H * K) to (B, L, H, K); pruning leaves a layer fewer heads."""
        return projected.unflatten(-1, (-1, self.head_size))


class Encoder(PreTrainedModel):
    """Embeddings, layers, and for a family that has one a pooler. ``family`` says whose rows they are made from."""

    head = "base"

    def __init__(self, config: Config, *, attn_implementation: str = "sdpa", is_pooled: bool = False) -> None:
        super().__init__(config, attn_implementation=attn_implementation)
        self.head = self.family.encoder(is_pooled)
        self.warned_of_token_types = False
        self._is_padding_free = True
        listed = self.parameter_list()
        attach(self, self.family.embeddings_path, Embeddings([p for p in listed if p.section == "embeddings"], config))
        for layer in range(config.num_hidden_layers):
            path = self.family.layer_path.format(layer)
            attach(self, path, Layer([p for p in listed if p.layer == layer], config))
        self.add_parts([p for p in listed if p.section == "pooler"], config)

    def encode(
        self, inputs: Inputs, return_dict: bool | None, first_token_only: bool, padding_free: bool
    ) -> ModelOutput | tuple[Tensor, ...]:
        """Encode a batch: what ``forward`` of every family does, which only differ in the order of their arguments.

        Args:
            inputs: the following nine, by name.
            input_ids: integers (B, L).
            attention_mask: (B, L), 1 for tokens and 0 for padding; by default all tokens count.
            token_type_ids: integers (B, L) or (1, L), the segment of each token, by default 0; ignored by DistilBERT,
                which has no segments.
            position_ids: integers (B, L) or (1, L), by default 0, 1, 2, …
            head_mask: (H,) or (layers, H), factors on the attention probabilities.
            inputs_embeds: (B, L, D), word vectors in place of ``input_ids``.
            output_attentions: also return ``attentions``, a tuple of (B, H, L, L), one a layer.
            output_hidden_states: also return ``hidden_states``, a tuple of (B, L, D), one more than layers.
            cu_seqlens: integers (N + 1,), rising from 0 to T: the batch is packed. The tokens of its N sequences lie
                end to end, so ids, segments and positions are (T,), word vectors (T, D), and there is no mask.
                Attention is fused, whatever ``attn_implementation`` says, without head masks and probabilities.
                On CPUs it is fastest where sequences of equal length are neighbours.
            return_dict: False for a plain tuple.
            first_token_only: spare the last layer the work for all tokens but the first, which is the only one
                that classifiers of texts read: an eighth of the time. ``last_hidden_state`` is then (B, 1, D).
                Without effect where attentions or hidden states are asked for.
            padding_free: False leaves the padding of this batch in; see ``is_padding_free``.

        Returns:
            ``last_hidden_state`` (B, L, D), with a pooler ``pooler_output`` (B, D), and what was asked for. Where
            padding was left out, the vectors in its place are 0. Of a packed batch ``last_hidden_state`` is (T, D),
            with ``first_token_only`` (N, 1, D), and ``pooler_output`` (N, D).

        Raises:
            InputError: neither or both of ids and embeddings, a sequence longer than the position table, an
                id outside the vocabulary (checked on the CPU; CUDA itself asserts), a mask of another shape,
                ``cu_seqlens`` that do not fit the tokens, or together with what packed batches do not have.
        """
        inputs, packing = self.prepare(inputs, first_token_only, padding_free)
        output_attentions, output_hidden_states = inputs["output_attentions"], inputs["output_hidden_states"]
        first_token_only = first_token_only and not (output_attentions or output_hidden_states)
        mask, sequences, head_mask = inputs["attention_mask"], inputs["cu_seqlens"], inputs["head_mask"]
        embeddings = self.get_submodule(self.family.embeddings_path)
        hidden_BLD = embeddings(*(inputs[name] for name in PER_TOKEN))
        visible = sequences if mask is None else visible_tokens(mask)
        head_masks = self.split_head_mask(head_mask, hidden_BLD)
        fused = self.attn_implementation != "eager" and not output_attentions and head_mask is None

        hidden_states: tuple[Tensor, ...] = (hidden_BLD,)
        attentions: tuple[Tensor | None, ...] = ()
        stack = self.layers()
        layouts: list[LaidOutLayer | None] = [None] * len(stack)
        if fused and can_be_laid_out(stack, hidden_BLD):  # asked before all layers: in between, memory would be cold
            layouts = [lay_out(layer, hidden_BLD.dtype) if type(layer) is Layer else None for layer in stack]
        complete = [laid_out for laid_out in layouts if laid_out is not None]
        if stack and len(complete) == len(stack) and not output_hidden_states:  # nobody looks on
            hidden_BLD = run_laid_out(list(stack), complete, hidden_BLD, visible, first_token_only)
        else:
            for layer, laid_out, layer_head_mask in zip(stack, layouts, head_masks, strict=True):
                only_first = first_token_only and layer is stack[-1]
                arguments = (hidden_BLD, visible, layer_head_mask, fused, only_first)
                if laid_out is not None:
                    found = laid_out(layer, hidden_BLD, visible, only_first)
                elif self.is_gradient_checkpointing and self.training:
                    found = checkpoint(layer, *arguments, use_reentrant=False)
                else:
                    found = layer(*arguments)
                # A user's own layer, or a hook, may give the vectors alone.
                hidden_BLD, probability_BHQL = (found, None) if isinstance(found, Tensor) else (*found, None)[:2]
                if output_hidden_states:
                    hidden_states += (hidden_BLD,)
                if output_attentions:
                    attentions += (probability_BHQL,)
        if sequences is None or first_token_only:
            hidden_BLD = hidden_BLD if sequences is None else hidden_BLD[:, None]
            first_BD = hidden_BLD[:, 0]
        else:
            first_BD = hidden_BLD[sequences.first_tokens]
        pooled_BD = self.part("pooler")(first_BD).tanh() if "pooler" in self.paths else None
        if packing is not None:
            hidden_BLD = packing.unpack_rows(hidden_BLD) if first_token_only else packing.unpack(hidden_BLD)
            pooled_BD = None if pooled_BD is None else packing.unpack_rows(pooled_BD)
        output = ModelOutput(
            last_hidden_state=hidden_BLD,
            pooler_output=pooled_BD,
            hidden_states=hidden_states if output_hidden_states else None,
            attentions=attentions if output_attentions else None,
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def prepare(
        self, inputs: Inputs, first_token_only: bool = False, padding_free: bool = True
    ) -> tuple[Inputs, Packing | None]:
        """Check a batch, complete it, and take its padding out where that may be: see ``is_padding_free``.

        Returns:
            The inputs, with ``Sequences`` for ``cu_seqlens``; and the way back to the padded batch, or None where they
            are padded still, or never were.
        """
        if isinstance(inputs["cu_seqlens"], Sequences):  # a head has done it
            return inputs, None
        self.check_inputs(inputs)
        config, inputs = self.config, dict(inputs)
        for name in ("output_attentions", "output_hidden_states"):
            inputs[name] = getattr(config, name) if inputs[name] is None else inputs[name]
        given = inputs["input_ids"] if inputs["inputs_embeds"] is None else inputs["inputs_embeds"]
        if (cu_seqlens := inputs["cu_seqlens"]) is not None:
            limit = config.max_position_embeddings if inputs["position_ids"] is None else len(given)
            longest = limit if is_traced() else check_cu_seqlens(cu_seqlens.tolist(), len(given), limit)
            inputs["cu_seqlens"] = sequences = Sequences(cu_seqlens.to(given.device, torch.int32), longest)
            if inputs["position_ids"] is None:
                inputs["position_ids"] = sequences.positions(len(given))
            return inputs, None
        if inputs["position_ids"] is None:
            inputs["position_ids"] = positions_of(given)
        if not (padding_free and self.can_pack(inputs)):
            return inputs, None
        visible_BL = visible_tokens(inputs["attention_mask"])[:, 0, 0]
        if visible_BL.all():  # attention has a faster kernel for what needs no mask
            return inputs | {"attention_mask": None}, None
        # What stands for a text is the vector at its first place, even where that is padding.
        if (first_token_only or "pooler" in self.paths) and not visible_BL[:, 0].all():
            return inputs, None
        packing = Packing.of(visible_BL)
        packed = {name: packing.pack(inputs[name]) for name in PER_TOKEN if inputs[name] is not None}
        return inputs | packed | {"attention_mask": None, "cu_seqlens": packing.sequences}, packing

    def can_pack(self, inputs: Inputs) -> bool:
        """Whether the padding of a batch may be taken out: see ``is_padding_free``."""
        mask = inputs["attention_mask"]
        return (
            self.is_padding_free
            and not self.training
            and self.attn_implementation != "eager"
            and not (inputs["output_attentions"] or inputs["output_hidden_states"])
            and inputs["head_mask"] is None
            and mask is not None
            and not mask.is_floating_point()
            and mask.device.type in ("cpu", "cuda")
            and not is_traced()
            and all(isinstance(layer, Layer) for layer in self.layers())  # a user's own layer may want whole rows
        )

    def layers(self) -> nn.ModuleList:
        """The stack, from the embeddings up."""
        return self.get_submodule(self.family.layer_path.removesuffix(".{}"))  # type: ignore[return-value]

    def split_head_mask(self, head_mask: Tensor | None, hidden: Tensor) -> list[Tensor | None]:
        """One factor (1, H, 1, 1) a layer, from (H,) or (layers, H)."""
        if head_mask is None:
            return [None] * len(self.layers())
        if head_mask.dim() == 1:
            head_mask = head_mask.expand(self.config.num_hidden_layers, -1)
        check_head_mask(tuple(head_mask.shape), self.config)
        head_mask = head_mask[: len(self.layers())]
        return list(head_mask.to(hidden.dtype)[:, None, :, None, None].unbind())

    def check_inputs(self, inputs: Inputs) -> None:
        """Explain what the kernels below would only fail on; values are left to them where a graph is traced."""
        for name, value in inputs.items():
            if isinstance(value, (str, list, tuple, np.ndarray)):
                kind = type(value).__name__
                raise InputError(
                    f"{name} is a {kind}, expected a tensor; tokenizers give some with return_tensors='pt'"
                )
        config = self.config
        shapes = {name: None if inputs[name] is None else tuple(inputs[name].shape) for name in SHAPED}
        if shapes["cu_seqlens"] is None:
            check_shapes(**{name: shape for name, shape in shapes.items() if name != "cu_seqlens"}, config=config)
        else:
            check_packed_shapes(**shapes, config=config)
            if inputs["head_mask"] is not None or inputs["output_attentions"]:
                raise InputError("cu_seqlens: packed batches have no head_mask and no attentions; pad the batch")
        if is_traced():
            return
        limits = {"input_ids": config.vocab_size, "position_ids": config.max_position_embeddings}
        if self.family.has_segments:
            limits["token_type_ids"] = config.type_vocab_size
        for name, limit in limits.items():
            ids = inputs[name]
            if ids is not None and ids.device.type == "cpu" and ids.numel():
                low, high = ids.aminmax()
                check_range(name, int(low), int(high), limit)
        types = inputs["token_type_ids"]
        if types is not None and not self.family.has_segments and not self.warned_of_token_types and types.any():
            logger.warning("token_type_ids are ignored: DistilBERT has no segment embeddings")
            self.warned_of_token_types = True


class DistilBertModel(Encoder):
    """The bare DistilBERT: ids to one vector a token.

    Args:
        config: shapes and rates.
        attn_implementation: ``"sdpa"`` (PyTorch's fused attention) or ``"eager"``. They agree; attentions and
            head masks are always computed eagerly. ``"flash_attention_2"`` is another name of ``"sdpa"``, which takes
            FlashAttention wherever type and device allow.
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
        cu_seqlens: Tensor | None = None,
        padding_free: bool = True,
    ) -> ModelOutput | tuple[Tensor, ...]:
        """See ``Encoder.encode``."""
        values = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        inputs = dict(zip(INPUTS, (*values, output_attentions, output_hidden_states, cu_seqlens), strict=True))
        return self.encode(inputs, return_dict, first_token_only, padding_free)


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
        cu_seqlens: Tensor | None = None,
        padding_free: bool = True,
    ) -> ModelOutput | tuple[Tensor, ...]:
        """See ``Encoder.encode``."""
        values = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        inputs = dict(zip(INPUTS, (*values, output_attentions, output_hidden_states, cu_seqlens), strict=True))
        return self.encode(inputs, return_dict, first_token_only, padding_free)
