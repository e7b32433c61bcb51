"""The encoder of BERT and DistilBERT, in Flax NNX.

A post-norm Transformer (Vaswani et al. 2017). DistilBERT (Sanh et al. 2019, https://arxiv.org/abs/1910.01108) is BERT
(Devlin et al. 2018, https://arxiv.org/abs/1810.04805) without segment embeddings and without a pooler. Read from the
top: embeddings, one layer, the stack, the models. Modules are called by their role in the spec
(``distilbert/core/spec.py``), which alone knows their names and shapes.

B batch, L length, D model, H heads, K size of a head, F feed-forward.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from distilbert.core import inputs
from distilbert.core.config import Config
from distilbert.core.outputs import ModelOutput
from distilbert.core.spec import BERT, DISTILBERT, Parameter, padding_row
from distilbert.flax.attention import eager_attention, visible_tokens
from distilbert.flax.model import BertModelCall, PreTrainedModel
from distilbert.flax.parameters import FromSpec, Precision, attach, find, is_pure

logger = logging.getLogger("distilbert")

Array = jax.Array


def gelu(value: Array) -> Array:
    """The exact GELU, in float32 at least. JAX's own takes erfc, for which XLA needs 2.5 times as long on CPUs."""
    wide = value.astype(jnp.promote_types(value.dtype, jnp.float32))
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(value.dtype)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def get_activation(activation: str | Callable[..., Any]) -> Callable[..., Any]:
    """The function that a config's ``activation`` names, or is."""
    return activation if callable(activation) else ACTIVATIONS[activation]


class Embeddings(FromSpec):
    """Word plus position embeddings, and for BERT segment embeddings, normalised."""

    def __init__(self, listed: list[Parameter], config: Config, precision: Precision, rngs: nnx.Rngs) -> None:
        super().__init__()
        self.add_parts(listed, config, precision, rngs)
        self.padding_row = next((row for each in listed if (row := padding_row(each, config)) is not None), None)
        self.dtype = precision.dtype
        self.dropout = nnx.Dropout(config.hidden_dropout_prob, deterministic=True)

    def __call__(
        self,
        input_ids: Array | None,
        position_ids: Array,
        inputs_embeds: Array | None,
        token_type_ids: Array | None,
        rngs: nnx.Rngs | None,
    ) -> Array:
        """Ids (B, L), or word vectors (B, L, D) in their place, to vectors (B, L, D)."""
        words_BLD = self.part("words")(input_ids) if inputs_embeds is None else inputs_embeds
        if input_ids is not None and self.padding_row is not None:
            # See spec.padding_row; PyTorch calls it padding_idx.
            is_padding = (input_ids == self.padding_row)[:, :, None]
            words_BLD = jnp.where(is_padding, jax.lax.stop_gradient(words_BLD), words_BLD)
        words_BLD = words_BLD.astype(self.dtype)
        if "types" in dict(self.paths):
            types = jnp.zeros_like(position_ids) if token_type_ids is None else token_type_ids
            words_BLD = words_BLD + self.part("types")(types).astype(self.dtype)
        summed_BLD = words_BLD + self.part("positions")(position_ids).astype(self.dtype)
        return self.dropout(self.part("norm")(summed_BLD), deterministic=rngs is None, rngs=rngs)


class Layer(FromSpec):
    """Self-attention and a feed-forward network, each with a residual and a norm after it."""

    def __init__(self, listed: list[Parameter], config: Config, precision: Precision, rngs: nnx.Rngs) -> None:
        super().__init__()
        self.add_parts(listed, config, precision, rngs)
        self.head_size = config.hidden_size // config.num_attention_heads
        self.attention_dropout = nnx.Dropout(config.attention_probs_dropout_prob, deterministic=True)
        self.attention_output_dropout = nnx.Dropout(config.attention_output_dropout, deterministic=True)
        self.activation = get_activation(config.hidden_act)
        self.dropout = nnx.Dropout(config.hidden_dropout_prob, deterministic=True)

    def __call__(
        self,
        hidden_BLD: Array,
        visible: Array | None,
        head_mask: Array | None,
        rngs: nnx.Rngs | None,
        first_token_only: bool = False,
    ) -> tuple[Array, Array]:
        """Vectors (B, L, D) to vectors (B, Q, D), and the attention probabilities; Q is L, or 1 on request."""
        random: dict[str, Any] = {"deterministic": rngs is None, "rngs": rngs}
        asking_BQD = hidden_BLD[:, :1] if first_token_only else hidden_BLD
        query_BHQK = self.split_heads(self.part("query")(asking_BQD))
        key_BHLK = self.split_heads(self.part("key")(hidden_BLD))
        value_BHLK = self.split_heads(self.part("value")(hidden_BLD))
        dropout = partial(self.attention_dropout, **random)
        context_BHQK, probability_BHQL = eager_attention(query_BHQK, key_BHLK, value_BHLK, visible, dropout, head_mask)
        context_BQHK = context_BHQK.transpose(0, 2, 1, 3)
        width = context_BQHK.shape[2] * self.head_size  # spelt out for the sake of empty batches
        attended_BQD = self.part("attention_out")(context_BQHK.reshape(*context_BQHK.shape[:2], width))
        attended_BQD = self.attention_output_dropout(attended_BQD, **random)
        attended_BQD = self.part("attention_norm")(attended_BQD + asking_BQD)
        inner_BQF = self.activation(self.part("feed_forward_in")(attended_BQD))
        outer_BQD = self.dropout(self.part("feed_forward_out")(inner_BQF), **random)
        return self.part("feed_forward_norm")(outer_BQD + attended_BQD), probability_BHQL

    def split_heads(self, projected: Array) -> Array:
        """(B, L, H * K) to (B, H, L, K); pruning leaves a layer fewer heads."""
        heads = projected.shape[-1] // self.head_size
        return projected.reshape(*projected.shape[:2], heads, self.head_size).transpose(0, 2, 1, 3)


@partial(jax.jit, static_argnums=(0, 5))
def run_layer(
    structure: nnx.GraphDef[Layer],
    values: nnx.State[Any, Any],
    hidden_BLD: Array,
    visible: Array | None,
    head_mask: Array | None,
    first_token_only: bool,
) -> tuple[Array, Array]:
    """A layer without dropout. Compiled once for all that are alike, also where the caller is not.

    A call outside of ``jit`` is 2.5 times as fast, and its first one too; inside, only one layer is traced.
    """
    return nnx.merge(structure, values)(hidden_BLD, visible, head_mask, None, first_token_only)


class Encoder(PreTrainedModel):
    """Embeddings, layers, and for a family that has one a pooler. ``family`` says whose rows they are made from."""

    head = "base"
    is_gradient_checkpointing = False  # whether gradients compute layers twice, and keep only what goes into them

    def __init__(self, config: Config, *arguments: Any, is_pooled: bool = False, **options: Any) -> None:
        self.head = self.family.encoder(is_pooled)
        super().__init__(config, *arguments, **options)

    def add_modules(self) -> None:
        """The embeddings, the layers and the pooler."""
        listed = self.parameter_list()
        options = (self.config, self.precision, self.rngs)
        embeddings = Embeddings([p for p in listed if p.section == "embeddings"], *options)
        attach(self, self.family.embeddings_path, embeddings)
        for layer in range(self.config.num_hidden_layers):
            path = self.family.layer_path.format(layer)
            attach(self, path, Layer([p for p in listed if p.layer == layer], *options))
        self.add_parts([p for p in listed if p.section == "pooler"], *options)

    def forward(
        self,
        input_ids: Array | None,
        attention_mask: Array | None,
        head_mask: Array | None,
        position_ids: Array | None,
        inputs_embeds: Array | None,
        token_type_ids: Array | None,
        rngs: nnx.Rngs | None,
        output_attentions: bool,
        output_hidden_states: bool,
        first_token_only: bool = False,
    ) -> ModelOutput:
        """Encode a batch. The arguments are those of a call, but for ``rngs``, which is None where dropout is off.

        ``first_token_only`` spares the last layer the work for all tokens but the first, which is the only one that
        classifiers of texts read: an eighth of the time. ``last_hidden_state`` is then (B, 1, D). Without effect
        where attentions or hidden states are asked for.
        """
        input_ids, position_ids, token_type_ids = self.check_inputs(
            input_ids, attention_mask, inputs_embeds, position_ids, token_type_ids
        )
        embeddings = find(self, self.family.embeddings_path)
        hidden_BLD = embeddings(input_ids, position_ids, inputs_embeds, token_type_ids, rngs)
        visible = None if attention_mask is None else visible_tokens(jnp.asarray(attention_mask))
        head_masks = self.split_head_mask(head_mask, hidden_BLD)

        hidden_states: tuple[Array, ...] = (hidden_BLD,)
        attentions: tuple[Array, ...] = ()
        first_token_only = first_token_only and not (output_attentions or output_hidden_states)
        last = self.config.num_hidden_layers - 1
        for number, layer_head_mask in enumerate(head_masks):
            layer = find(self, self.family.layer_path.format(number))
            only_first = first_token_only and number == last
            given = (hidden_BLD, visible, layer_head_mask)
            structure, values = nnx.split(layer)
            if rngs is None and is_pure(structure):
                run = jax.checkpoint(run_layer, static_argnums=(0, 5)) if self.is_gradient_checkpointing else run_layer
                hidden_BLD, probability_BHQL = run(structure, values, *given, only_first)
            else:
                call = type(layer).__call__
                call = nnx.remat(call, static_argnums=5) if self.is_gradient_checkpointing else call
                hidden_BLD, probability_BHQL = call(layer, *given, rngs, only_first)
            if output_hidden_states:
                hidden_states += (hidden_BLD,)
            if output_attentions:
                attentions += (probability_BHQL,)
        return ModelOutput(
            last_hidden_state=hidden_BLD,
            pooler_output=jnp.tanh(self.part("pooler")(hidden_BLD[:, 0])) if "pooler" in dict(self.paths) else None,
            hidden_states=hidden_states if output_hidden_states else None,
            attentions=attentions if output_attentions else None,
        )

    def split_head_mask(self, head_mask: Array | None, hidden: Array) -> list[Array | None]:
        """One factor (1, H, 1, 1) a layer, from (H,) or (layers, H)."""
        count = self.config.num_hidden_layers
        if head_mask is None:
            return [None] * count
        head_mask = jnp.asarray(head_mask, hidden.dtype)
        if head_mask.ndim == 1:
            head_mask = jnp.tile(head_mask[None], (count, 1))
        inputs.check_head_mask(head_mask.shape, self.config)
        return list(head_mask[:, None, :, None, None])

    def check_inputs(
        self,
        input_ids: Array | None,
        attention_mask: Array | None,
        inputs_embeds: Array | None,
        position_ids: Array | None,
        token_type_ids: Array | None,
    ) -> tuple[Array | None, Array, Array | None]:
        """Explain what the kernels below would answer with nonsense.

        Returns:
            The ids, the positions and the segments to go on with.
        """
        shapes = (input_ids, attention_mask, inputs_embeds, position_ids, token_type_ids)
        inputs.check_shapes(*(None if given is None else known(given.shape) for given in shapes), config=self.config)
        if inputs_embeds is None:
            input_ids = check_values("input_ids", input_ids, self.config.vocab_size)
        given = input_ids if inputs_embeds is None else inputs_embeds
        assert given is not None  # check_shapes
        if position_ids is None:
            position_ids = jnp.arange(given.shape[1])[None]
        else:
            position_ids = check_values("position_ids", position_ids, self.config.max_position_embeddings)
        if token_type_ids is not None and self.family.has_segments:
            token_type_ids = check_values("token_type_ids", token_type_ids, self.config.type_vocab_size)
        elif token_type_ids is not None:
            warn_of_token_types()
        return input_ids, position_ids, token_type_ids


class FlaxDistilBertModel(Encoder):
    """The bare DistilBERT: ids to one vector a token. Returns ``last_hidden_state`` (B, L, D)."""

    family = DISTILBERT


class FlaxBertModel(BertModelCall, Encoder):
    """The bare BERT. Returns ``last_hidden_state`` (B, L, D) and ``pooler_output`` (B, D), the vector of the text.

    Args:
        config: shapes and rates.
        arguments: see ``PreTrainedModel``.
        add_pooling_layer: False leaves out ``pooler_output``.
        options: see ``PreTrainedModel``.
    """

    family = BERT

    def __init__(self, config: Config, *arguments: Any, add_pooling_layer: bool = True, **options: Any) -> None:
        super().__init__(config, *arguments, is_pooled=add_pooling_layer, **options)

    @property
    def own_options(self) -> dict[str, Any]:
        """See ``PreTrainedModel``."""
        return {"add_pooling_layer": self.family.heads[self.head].is_pooled}


def known(shape: tuple[Any, ...]) -> inputs.Shape:
    """A shape with None for what is a symbol, as in ``jax.export``."""
    return tuple(size if isinstance(size, int) else None for size in shape)


@cache
def warn_of_token_types() -> None:
    """Say so once."""
    logger.warning("token_type_ids are ignored: DistilBERT has no segment embeddings")


def check_values(name: str, values: Any, limit: int, ignored: int | None = None) -> Array:
    """Check that integers lie in 0 to ``limit`` - 1, or are ``ignored``, where they are known and on the host.

    Returns:
        ``values``; where they are not known, with those below 0 made ``limit``: JAX looks up NaN past the end of a
        table, but counts negative numbers from there.

    Raises:
        InputError: they do not, or are not integers.
    """
    inputs.check_integers(name, str(values.dtype))
    is_known = isinstance(values, np.ndarray) or (
        isinstance(values, jax.Array)
        and not isinstance(values, jax.core.Tracer)
        and values.is_fully_addressable
        and all(device.platform == "cpu" for device in values.devices())  # elsewhere it would wait for the device
    )
    if not is_known:
        values = values.astype(jnp.promote_types(values.dtype, jnp.int32))  # smaller types cannot hold ``limit``
        return jnp.where((values < 0) & (values != ignored), limit, values)
    judged = np.asarray(values)
    judged = judged if ignored is None else judged[judged != ignored]
    if judged.size:
        inputs.check_range(name, int(judged.min()), int(judged.max()), limit)
    return jnp.asarray(values)
