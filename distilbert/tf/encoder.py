"""The encoder of BERT and DistilBERT, in Keras 3.

A post-norm Transformer (Vaswani et al. 2017). DistilBERT (Sanh et al. 2019, https://arxiv.org/abs/1910.01108) is BERT
(Devlin et al. 2018, https://arxiv.org/abs/1810.04805) without segment embeddings and without a pooler. Read from the
top: embeddings, one layer, the stack, the models. Layers are called by their role in the spec
(``distilbert/core/spec.py``), which alone knows their names and shapes.

B batch, L length, N tokens of the whole batch, D model, H heads, K size of a head, F feed-forward.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
from keras import ops

from distilbert.core import inputs
from distilbert.core.config import Config
from distilbert.core.outputs import ModelOutput
from distilbert.core.spec import BERT, DISTILBERT, Parameter, padding_row
from distilbert.tf.attention import eager_attention, visible_tokens
from distilbert.tf.model import PreTrainedModel
from distilbert.tf.parameters import FromSpec

logger = logging.getLogger("distilbert")

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

Tensor = Any

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda value: ops.gelu(value, approximate=False),
    "gelu_new": lambda value: ops.gelu(value, approximate=True),
    "relu": ops.relu,
    "silu": ops.silu,
}


def get_activation(activation: str | Callable[..., Any]) -> Callable[..., Any]:
    """The function that a config's ``activation`` names, or is."""
    return activation if callable(activation) else ACTIVATIONS[activation]


class Embeddings(FromSpec):
    """Word plus position embeddings, and for BERT segment embeddings, normalised."""

    def __init__(self, listed: list[Parameter], config: Config, **options: Any) -> None:
        super().__init__(**options)
        self.add_parts(listed, config)
        self.padding_row = next((row for each in listed if (row := padding_row(each, config)) is not None), None)
        self.dropout = keras.layers.Dropout(config.hidden_dropout_prob, name="dropout", dtype=self.dtype_policy)

    def call(
        self,
        input_ids: Tensor | None,
        position_ids: Tensor,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        training: bool | None = None,
    ) -> Tensor:
        """Ids (B, L), or word vectors (B, L, D) in their place, to vectors (B, L, D)."""
        words_BLD = self.part("words")(input_ids) if inputs_embeds is None else inputs_embeds
        if training is not False and inputs_embeds is None and self.padding_row is not None:
            # See spec.padding_row; PyTorch calls it padding_idx.
            is_padding = ops.equal(input_ids, self.padding_row)[:, :, None]
            words_BLD = ops.where(is_padding, ops.stop_gradient(words_BLD), words_BLD)
        words_BLD = ops.cast(words_BLD, self.compute_dtype)
        if "types" in self.paths:
            types = ops.zeros_like(position_ids) if token_type_ids is None else token_type_ids
            words_BLD = words_BLD + self.part("types")(types)
        summed_BLD = words_BLD + self.part("positions")(position_ids)
        return self.dropout(self.part("norm")(summed_BLD), training=training)


class Layer(FromSpec):
    """Self-attention and a feed-forward network, each with a residual and a norm after it."""

    def __init__(self, listed: list[Parameter], config: Config, **options: Any) -> None:
        super().__init__(**options)
        self.add_parts(listed, config)
        self.head_size = config.hidden_size // config.num_attention_heads
        self.attention_dropout = keras.layers.Dropout(
            config.attention_probs_dropout_prob, name="attention_dropout", dtype=self.dtype_policy
        )
        self.attention_output_dropout = keras.layers.Dropout(
            config.attention_output_dropout, name="attention_output_dropout", dtype=self.dtype_policy
        )
        self.activation = get_activation(config.hidden_act)
        self.dropout = keras.layers.Dropout(config.hidden_dropout_prob, name="dropout", dtype=self.dtype_policy)

    def call(
        self,
        hidden_BLD: Tensor,
        visible: Tensor | None = None,
        head_mask: Tensor | None = None,
        first_token_only: bool = False,
        training: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Vectors (B, L, D) to vectors (B, Q, D), and the attention probabilities; Q is L, or 1 on request."""
        batch, length, size = ops.shape(hidden_BLD)
        asking_BQD = hidden_BLD[:, :1] if first_token_only else hidden_BLD
        asking = 1 if first_token_only else length
        # As one matrix of tokens: products of two matrices are what oneDNN fuses with the bias and the GELU.
        asking_ND, hidden_ND = ops.reshape(asking_BQD, (-1, size)), ops.reshape(hidden_BLD, (-1, size))
        query_BHQK = self.split_heads(self.part("query")(asking_ND), batch, asking)
        key_BHLK = self.split_heads(self.part("key")(hidden_ND), batch, length)
        value_BHLK = self.split_heads(self.part("value")(hidden_ND), batch, length)
        dropout = partial(self.attention_dropout, training=training)
        context_BHQK, probability_BHQL = eager_attention(query_BHQK, key_BHLK, value_BHLK, visible, dropout, head_mask)
        context_BQHK = ops.transpose(context_BHQK, (0, 2, 1, 3))
        attended_ND = self.part("attention_out")(
            ops.reshape(context_BQHK, (-1, context_BQHK.shape[2] * self.head_size))
        )
        attended_ND = self.attention_output_dropout(attended_ND, training=training)
        attended_ND = self.part("attention_norm")(attended_ND + asking_ND)
        inner_NF = self.activation(self.part("feed_forward_in")(attended_ND))
        outer_ND = self.dropout(self.part("feed_forward_out")(inner_NF), training=training)
        output_ND = self.part("feed_forward_norm")(outer_ND + attended_ND)
        return ops.reshape(output_ND, (batch, asking, size)), probability_BHQL

    def split_heads(self, projected_ND: Tensor, batch: Any, length: Any) -> Tensor:
        """(B * L, H * K) to (B, H, L, K); pruning leaves a layer fewer heads."""
        heads = projected_ND.shape[1] // self.head_size
        return ops.transpose(ops.reshape(projected_ND, (batch, length, heads, self.head_size)), (0, 2, 1, 3))


class Encoder(PreTrainedModel):
    """Embeddings, layers, and for a family that has one a pooler. ``family`` says whose rows they are made from."""

    head = "base"

    def __init__(self, config: Config, *, is_pooled: bool = False, **options: Any) -> None:
        super().__init__(config, **options)
        self.head = self.family.encoder(is_pooled)
        self.warned_of_token_types = False
        listed = self.parameter_list()
        policy = self.dtype_policy
        with keras.name_scope(self.name):
            rows = [p for p in listed if p.section == "embeddings"]
            self.embeddings = Embeddings(rows, config, name="embeddings", dtype=policy)
            self.stack = [
                Layer([p for p in listed if p.layer == layer], config, name=f"layer_{layer}", dtype=policy)
                for layer in range(config.num_hidden_layers)
            ]
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
        training: bool | None,
        first_token_only: bool,
    ) -> ModelOutput | tuple[Tensor, ...]:
        """Encode a batch: what ``call`` of every family does, which only differ in the order of their arguments.

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
            training: whether dropout is at work.
            first_token_only: spare the last layer the work for all tokens but the first, which is the only one
                that classifiers of texts read: an eighth of the time. ``last_hidden_state`` is then (B, 1, D).
                Without effect where attentions or hidden states are asked for.

        Returns:
            ``last_hidden_state`` (B, L, D), with a pooler ``pooler_output`` (B, D), and what was asked for.

        Raises:
            InputError: neither or both of ids and embeddings, a sequence longer than the position table, an id
                outside the vocabulary, a mask of another shape. In a TensorFlow graph, values out of range end
                in ``tf.errors.InvalidArgumentError``, and in NaN where JAX compiles; TensorFlow's own XLA
                (``jit_compile=True``) cannot check them.
        """
        config = self.config
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return_dict = config.return_dict if return_dict is None else return_dict
        input_ids, position_ids, token_type_ids = self.check_inputs(
            input_ids, attention_mask, inputs_embeds, position_ids, token_type_ids
        )
        hidden_BLD = self.embeddings(input_ids, position_ids, inputs_embeds, token_type_ids, training=training)
        visible = None if attention_mask is None else visible_tokens(attention_mask)
        head_masks = self.split_head_mask(head_mask, hidden_BLD)

        hidden_states: tuple[Tensor, ...] = (hidden_BLD,)
        attentions: tuple[Tensor, ...] = ()
        first_token_only = first_token_only and not (output_attentions or output_hidden_states)
        for layer, layer_head_mask in zip(self.stack, head_masks, strict=True):
            only_first = first_token_only and layer is self.stack[-1]
            hidden_BLD, probability_BHQL = layer(
                hidden_BLD, visible, layer_head_mask, first_token_only=only_first, training=training
            )
            if output_hidden_states:
                hidden_states += (hidden_BLD,)
            if output_attentions:
                attentions += (probability_BHQL,)
        output = ModelOutput(
            last_hidden_state=hidden_BLD,
            pooler_output=ops.tanh(self.part("pooler")(hidden_BLD[:, 0])) if "pooler" in self.paths else None,
            hidden_states=hidden_states if output_hidden_states else None,
            attentions=attentions if output_attentions else None,
        )
        return output if return_dict else output.to_tuple()

    def split_head_mask(self, head_mask: Tensor | None, hidden: Tensor) -> list[Tensor | None]:
        """One factor (1, H, 1, 1) a layer, from (H,) or (layers, H)."""
        count = self.config.num_hidden_layers
        if head_mask is None:
            return [None] * count
        head_mask = ops.cast(head_mask, hidden.dtype)
        if len(head_mask.shape) == 1:
            head_mask = ops.tile(head_mask[None], (count, 1))
        inputs.check_head_mask(tuple(head_mask.shape), self.config)
        return [head_mask[layer][None, :, None, None] for layer in range(count)]

    def check_inputs(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        inputs_embeds: Tensor | None,
        position_ids: Tensor | None,
        token_type_ids: Tensor | None,
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Explain what the kernels below would only fail on, or worse, would answer with nonsense.

        Returns:
            The ids, the positions and the segments to go on with.
        """
        tensors = (input_ids, attention_mask, inputs_embeds, position_ids, token_type_ids)
        inputs.check_shapes(*(None if given is None else known_shape(given) for given in tensors), config=self.config)
        if inputs_embeds is None:
            input_ids = check_values("input_ids", input_ids, self.config.vocab_size)
        given = input_ids if inputs_embeds is None else inputs_embeds
        assert given is not None  # check_shapes
        length = known_shape(given)[1]
        if position_ids is not None or length is None:  # a known length was checked by check_shapes
            numbered = ops.arange(ops.shape(given)[1])[None] if position_ids is None else position_ids
            position_ids = check_values("position_ids", numbered, self.config.max_position_embeddings)
        else:
            position_ids = ops.arange(length)[None]
        if token_type_ids is not None and self.family.has_segments:
            token_type_ids = check_values("token_type_ids", token_type_ids, self.config.type_vocab_size)
        elif token_type_ids is not None and not self.warned_of_token_types:
            logger.warning("token_type_ids are ignored: DistilBERT has no segment embeddings")
            self.warned_of_token_types = True
        return input_ids, position_ids, token_type_ids


@keras.saving.register_keras_serializable("distilbert")
class TFDistilBertModel(Encoder):
    """The bare DistilBERT: ids to one vector a token."""

    family = DISTILBERT

    def __init__(self, config: Config, **options: Any) -> None:
        super().__init__(config, **options)

    def call(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
        token_type_ids: Tensor | None = None,
        first_token_only: bool = False,
    ) -> ModelOutput | tuple[Tensor, ...]:
        """See ``Encoder.encode``."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        return self.encode(*inputs, output_attentions, output_hidden_states, return_dict, training, first_token_only)


@keras.saving.register_keras_serializable("distilbert")
class TFBertModel(Encoder):
    """The bare BERT: ids to one vector a token, and one of the whole text.

    Args:
        config: shapes and rates.
        add_pooling_layer: False leaves out the vector of the whole text, ``pooler_output``.
        options: see ``PreTrainedModel``.
    """

    family = BERT

    def __init__(self, config: Config, add_pooling_layer: bool = True, **options: Any) -> None:
        super().__init__(config, is_pooled=add_pooling_layer, **options)

    def call(
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
        training: bool | None = None,
        first_token_only: bool = False,
    ) -> ModelOutput | tuple[Tensor, ...]:
        """See ``Encoder.encode``."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        return self.encode(*inputs, output_attentions, output_hidden_states, return_dict, training, first_token_only)

    @property
    def own_options(self) -> dict[str, Any]:
        """See ``PreTrainedModel``."""
        return {"add_pooling_layer": self.family.heads[self.head].is_pooled}


def known_shape(tensor: Tensor) -> inputs.Shape:
    """A tensor's shape, None for lengths that are not known yet, which on JAX are symbols."""
    return tuple(length if isinstance(length, int) else None for length in tensor.shape)


def check_values(name: str, values: Tensor, limit: int, ignored: int | None = None) -> Tensor:
    """Check that integers lie in 0 to ``limit`` - 1, or are ``ignored``: at once, or when a TensorFlow graph runs.

    On CPUs TensorFlow's own kernels would raise, but on GPUs they return zeros, and JAX takes what is nearest.

    Returns:
        ``values``, in a graph only after the check.

    Raises:
        InputError: they do not, or are not integers.
    """
    if keras.backend.backend() == "tensorflow" and not tf.executing_eagerly():
        # Keras itself traces a model that trains on several devices with floats; what counts is what comes later.
        integers = tf.cast(values, tf.int32)
        within = (integers >= 0) & (integers < limit) & (tf.cast(integers, values.dtype) == values)
        within = within if ignored is None else within | (integers == ignored)
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(within), [inputs.range_message(name, limit)])]):
            return tf.identity(integers)
    inputs.check_integers(name, keras.backend.standardize_dtype(values.dtype))
    # Smaller types cannot hold -100, or ``limit``.
    values = ops.cast(values, keras.backend.result_type(values.dtype, "int32"))
    if 0 in tuple(values.shape):
        return values
    judged = values if ignored is None else ops.where(ops.equal(values, ignored), 0, values)
    try:
        low, high = int(ops.min(judged)), int(ops.max(judged))
    except (TypeError, ValueError):  # not known yet: another framework is tracing a graph
        # JAX answers NaN past the end of a table, but counts negative numbers from there.
        return values if ignored is not None else ops.where(values < 0, limit, values)
    inputs.check_range(name, low, high, limit)
    return values
