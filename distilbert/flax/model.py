"""What the bare encoder and every head have in common: making, calling, loading, saving and changing a model."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from jax import export
from jax.interpreters.partial_eval import DynamicJaxprTracer
from jax.sharding import AxisType

from distilbert.core import checkpoint, outputs
from distilbert.core.config import Config
from distilbert.core.errors import InputError
from distilbert.core.formats.flax_msgpack import unflatten
from distilbert.core.inputs import as_array
from distilbert.core.outputs import ModelOutput
from distilbert.core.spec import FLAX, Family, Kind, Parameter, parameters, partition
from distilbert.flax import loading, surgery
from distilbert.flax.parameters import FromSpec, Precision, find, is_pure, no_initial_values

PIECE = 1024  # tokens; see by_pieces

Array = Any  # of JAX or numpy, or nested lists
Params = dict[str, Any]


class PreTrainedModel(FromSpec):
    """The base of the encoder and of the heads. ``head`` is the spec's name for what the class computes.

    Args:
        config: shapes and rates.
        input_shape: there for transformers' sake; parameters do not depend on it.
        seed: of the initial values, and of dropout where a call is given no key.
        dtype: what to compute in.
        _do_init: False leaves the values out: pass ``params`` to each call.
        rngs: in place of ``seed``, as NNX modules take it.
        param_dtype: the type of the parameters.

    Raises:
        ConfigError: the config is not valid. InputError: an unknown type.
    """

    family: ClassVar[Family]
    head: str
    label_names: ClassVar[tuple[str, ...]] = ()
    forward: Callable[..., ModelOutput]  # what the class computes; a call prepares its arguments

    def __init__(
        self,
        config: Config,
        input_shape: tuple[int, ...] = (1, 1),
        seed: int = 0,
        dtype: Any = jnp.float32,
        _do_init: bool = True,
        *,
        rngs: nnx.Rngs | None = None,
        param_dtype: Any = jnp.float32,
    ) -> None:
        super().__init__()
        if not isinstance(config, self.family.config):
            raise InputError(f"config is a {type(config).__name__}, expected a {self.family.config.__name__}")
        config.validate()
        self.config = copy.deepcopy(config)  # its own: resizing and pruning change it
        self.precision = Precision(loading.parse_dtype(dtype), loading.parse_dtype(param_dtype))
        self.deterministic = True  # what train() and eval() of NNX set
        rngs = nnx.Rngs(seed) if rngs is None else rngs
        dropout = rngs.dropout if hasattr(rngs, "dropout") else rngs.params
        self.rngs = nnx.Rngs(rngs.params(), dropout=dropout())
        if _do_init:
            self.add_modules()
        else:
            with no_initial_values():
                self.add_modules()

    def add_modules(self) -> None:
        """Make what the class consists of."""
        raise NotImplementedError

    def __call__(
        self,
        input_ids: Array | None = None,
        attention_mask: Array | None = None,
        head_mask: Array | None = None,
        position_ids: Array | None = None,
        inputs_embeds: Array | None = None,
        params: Mapping[str, Any] | None = None,
        dropout_rng: jax.Array | None = None,
        train: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        token_type_ids: Array | None = None,
        **labels: Array,
    ) -> ModelOutput | tuple[Array, ...]:
        """Compute a batch. With ``params`` (and ``dropout_rng`` in training) a pure function of its arguments.

        Args:
            input_ids: integers (B, L); for multiple choice, here and below, (B, C, L).
            attention_mask: (B, L), 1 for tokens and 0 for padding; by default all tokens count.
            head_mask: (H,) or (layers, H), factors on the attention probabilities.
            position_ids: integers (B, L) or (1, L), by default 0, 1, 2, …
            inputs_embeds: (B, L, D), word vectors in place of ``input_ids``.
            params: values in place of the model's own, as ``model.params`` gives them.
            dropout_rng: a key for dropout, by default the next of the model's own.
            train: whether dropout is at work; it also is after the model's ``train()``.
            output_attentions: also return ``attentions``, a tuple of (B, H, L, L), one a layer.
            output_hidden_states: also return ``hidden_states``, a tuple of (B, L, D), one more than layers.
            return_dict: False for a plain tuple.
            token_type_ids: integers (B, L) or (1, L), the segment of each token, by default 0; ignored by DistilBERT,
                which has no segments.
            labels: what the head's loss takes (``labels``; ``start_positions`` and ``end_positions``; …).

        Returns:
            What the head's class says, ``loss`` first where labels were given, and what was asked for.

        Raises:
            InputError: neither or both of ids and embeddings, a sequence longer than the position table, a mask or
                params of another shape, labels the head does not know; ids out of range, where their values are
                known (numpy, or JAX on the CPU outside of ``jit``). Where they are not, the outputs of that
                sequence are NaN.
        """
        config = self.config
        if unknown := labels.keys() - set(self.label_names):
            own = " and ".join(self.label_names) or "none"
            raise InputError(f"{', '.join(sorted(unknown))}: no argument of {type(self).__name__}; its labels: {own}")
        rngs = None
        if train or not self.deterministic:
            if params is not None and dropout_rng is None:
                raise InputError("training with params= needs dropout_rng=, a key, to be a pure function")
            rngs = nnx.Rngs(dropout=self.rngs.dropout() if dropout_rng is None else dropout_rng)
        if params is None:
            self.check_has_values()
        model = self if params is None else self.with_params(params)
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "head_mask": head_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "token_type_ids": token_type_ids,
        }
        arrays = {name: as_array(name, value) for name, value in (given | labels).items()}
        run = partial(
            model.forward,
            rngs=rngs,
            output_attentions=config.output_attentions if output_attentions is None else output_attentions,
            output_hidden_states=config.output_hidden_states if output_hidden_states is None else output_hidden_states,
        )
        has_loss = any(value is not None for value in labels.values())
        output = run(**arrays) if rngs or has_loss else by_pieces(model, run, arrays)
        return output if (config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def set_view(self, deterministic: bool | None = None, **more: Any) -> dict[str, Any]:
        """What ``nnx.view`` calls to switch dropout.

        Args:
          deterministic: False where dropout is at work.
        """
        if deterministic is not None:
            self.deterministic = deterministic
        return more

    @property
    def own_options(self) -> dict[str, Any]:
        """What the class was made with besides what all classes take."""
        return {}

    def parameter_list(self) -> tuple[Parameter, ...]:
        """The spec's rows for this model's config and head."""
        return parameters(self.config, self.head, self.family)

    def part_list(self, config: Config) -> Iterator[tuple[FromSpec, tuple[Parameter, ...]]]:
        """Each part's rows, as ``config`` has them, and the section it stands in."""
        listed = parameters(config, self.head, self.family)
        for _, group in groupby(listed, key=lambda parameter: (parameter.section, parameter.layer, parameter.path)):
            rows = tuple(group)
            path = rows[0].section_path.format(rows[0].layer)
            yield (find(self, path) if path else self), rows

    def variable_list(self) -> Iterator[tuple[Parameter, nnx.Variable]]:
        """Each row that has values of its own with the variable that holds them."""
        for parameter in self.parameter_list():
            if parameter.tied_to is None:
                yield parameter, find(self, FLAX.name(parameter).replace("/", "."))

    def trained_list(self) -> Iterator[tuple[Parameter, nnx.Variable]]:
        """The part of ``variable_list`` that optimisers change."""
        return (entry for entry in self.variable_list() if entry[0].kind is not Kind.SINUSOID)

    def added_list(self) -> list[str]:
        """The names of the variables that are none of the spec's: of modules that were added or replaced."""
        own = {id(value) for _, value in self.variable_list()}
        found = nnx.iter_graph(self)
        return [
            "/".join(map(str, path))
            for path, value in found
            if isinstance(value, nnx.Variable)
            and not isinstance(value, nnx.RngState | nnx.Intermediate)
            and id(value) not in own
        ]

    @property
    def base_model(self) -> PreTrainedModel:
        """The encoder: the model itself, or the part of it below the head."""
        return self if self.family.heads[self.head].is_encoder else getattr(self, self.family.prefix)

    @property
    def dtype(self) -> Any:
        """What the model computes in."""
        return self.precision.dtype

    @property
    def params(self) -> Params:
        """The values, in the layout of transformers' Flax checkpoints; assigning checks names and shapes.

        The mappings are new each time: changing them does not change the model. Sinusoidal positions, which are not
        trained, are not among them, nor is what was added to the model, such as adapters: see ``nnx.state``.

        Raises:
            InputError: the model has none (``_do_init=False``); leaves missing, unknown, or of another shape.
        """
        self.check_has_values()
        return unflatten({FLAX.name(parameter): value[...] for parameter, value in self.trained_list()})

    def __setattr__(self, name: str, value: Any) -> None:
        # NNX forbids arrays in a plain mapping as an attribute, so a property's setter would never be reached.
        if name == "params":
            self.set_params(value)
        else:
            super().__setattr__(name, value)

    def set_params(self, params: Mapping[str, Any]) -> None:
        """What assigning ``params`` does.

        Raises:
            InputError: leaves are missing, unknown, or of another shape.
        """
        values = loading.check_params(self.parameter_list(), params)
        for parameter, value in self.variable_list():
            if FLAX.name(parameter) in values:
                value.set_value(jnp.asarray(values[FLAX.name(parameter)]))

    def with_params(self, params: Mapping[str, Any]) -> Self:
        """The same model with other values; nothing is copied, and the model itself stays as it is.

        Raises:
            InputError: leaves are missing, unknown, or of another shape.
        """
        model = nnx.merge(*nnx.split(self), copy=True)
        model.set_params(params)
        return model

    def init_weights(
        self, rng: jax.Array, input_shape: tuple[int, ...] = (1, 1), params: Mapping[str, Any] | None = None
    ) -> Params:
        """New initial values as nested mappings; ``params`` replaces some. The model itself stays as it is."""
        options = {"param_dtype": self.precision.param_dtype, **self.own_options}
        new = type(self)(self.config, rngs=nnx.Rngs(rng), **options).params
        return unflatten(loading.flatten(new) | loading.flatten(params or {}))

    def check_has_values(self) -> None:
        """Refuse to go on without values.

        Raises:
            InputError: the model was made with ``_do_init=False``.
        """
        if isinstance(next(self.variable_list())[1].get_value(), jax.ShapeDtypeStruct):
            raise InputError(f"this {type(self).__name__} was made with _do_init=False, so pass params= to each call")

    def num_parameters(self) -> int:
        """How many numbers the model holds, tied ones counted once."""
        return sum(math.prod(parameter.shape) for parameter in self.parameter_list() if parameter.tied_to is None)

    def shardings(self, mesh: jax.sharding.Mesh) -> Params:
        """How each parameter lies on a mesh: split over its axis ``"model"``, if it has one, as the spec's table says.

        Returns:
            ``jax.sharding.NamedSharding``, nested as ``params`` is: for ``jax.device_put`` or ``in_shardings``.

        Raises:
            InputError: the mesh leaves the layout of what is computed to the model (``AxisType.Explicit``).
        """
        if any(kind != AxisType.Auto for kind in mesh.axis_types):
            raise InputError(
                "the mesh has axes that are not automatic; make it with jax.make_mesh(shape, names, "
                "axis_types=(jax.sharding.AxisType.Auto,) * len(names))"
            )
        found = {}
        for parameter, _ in self.trained_list():
            axes = partition(parameter, self.config, dict(mesh.shape).get("model", 1))
            axes = axes[::-1] if FLAX.is_transposed(parameter) else axes
            found[FLAX.name(parameter)] = jax.NamedSharding(mesh, jax.P(*axes))
        return unflatten(found)

    def shard(self, mesh: jax.sharding.Mesh) -> Self:
        """Lay the parameters out on a mesh as ``shardings`` says, in place."""
        self.set_params(jax.device_put(self.params, self.shardings(mesh)))
        return self

    @property
    def module(self) -> LinenModule:
        """A view for code that is still Linen: ``model.module.apply({"params": model.params}, input_ids, mask)``.

        ``params`` are checked as a call's are. Dropout, with ``train=True``, takes its key from
        ``rngs={"dropout": key}``.
        """
        return LinenModule(self)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        config: Config | None = None,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        seed: int = 0,
        _do_init: bool = True,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        add_pooling_layer: bool | None = None,
        **overrides: Any,
    ) -> Self | tuple[Self, Any]:
        """Load a checkpoint from a folder or from the Hub; the file's format is found out (``from_pt`` is not needed).

        Args:
            name_or_path: a folder, or a Hub id.
            config: used instead of the stored one.
            dtype: what to compute in: ``"float32"``, ``"bfloat16"`` or ``"float16"``, or JAX's name for it.
            param_dtype: the type of the parameters, float32 by default; ``"auto"`` keeps the stored one.
            seed: of the values that the checkpoint lacks, and of dropout.
            _do_init: False returns the model without values, and ``params`` beside it.
            ignore_mismatched_sizes: initialise what has another shape in the checkpoint, instead of failing.
            output_loading_info: also return the report of missing, unexpected and mismatched tensors.
            revision: a branch, tag or commit on the Hub.
            cache_dir: where the Hub's files are kept.
            local_files_only: never ask the network.
            token: a Hub token.
            add_pooling_layer: of a bare BERT, False leaves its pooler out.
            overrides: config fields, such as ``num_labels=3``.

        Raises:
            CheckpointError: the checkpoint is absent, damaged or unsafe, or does not fit the config.
            ConfigError: the config is not valid, or an override is not a config field.
            InputError: an unknown dtype.
        """
        overrides.pop("from_pt", None)
        config, tensors, report = checkpoint.load(
            name_or_path,
            cls.family.pooled(cls.head, add_pooling_layer),
            config=config,
            overrides=overrides,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            family=cls.family,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
        )
        param_dtype = loading.parse_dtype(param_dtype, tensors)
        options: dict[str, Any] = {} if add_pooling_layer is None else {"add_pooling_layer": add_pooling_layer}
        options["param_dtype"] = param_dtype
        model = cls(config, (1, 1), seed, loading.parse_dtype(dtype, tensors), False, **options)
        loading.fill(model, tensors)
        extra: tuple[Any, ...] = ()
        if not _do_init:
            extra = (model.params,)
            for _, value in model.trained_list():
                value.set_value(jax.ShapeDtypeStruct(value.shape, value.dtype))
        extra += (report,) if output_loading_info else ()
        return (model, *extra) if extra else model

    def save_pretrained(
        self,
        folder: str | Path,
        params: Mapping[str, Any] | None = None,
        *,
        format: str = "safetensors",
        max_shard_size: int | str = "5GB",
    ) -> list[Path]:
        """Write ``config.json`` and the weights, all of it or nothing.

        Args:
            folder: where to; made if absent.
            params: values to save in place of the model's own.
            format: ``"safetensors"``, or ``"msgpack"`` for the Flax classes of transformers 4.
            max_shard_size: bytes or a text such as ``"200MB"``; larger weights are split, with an index.

        Returns:
            The files written.

        Raises:
            CheckpointError: the folder cannot be written or the disk is full; what was there is unchanged.
            InputError: an unknown format or size, or ``params`` of another model; without ``params``, a model with
                variables that such a file has no place for.
        """
        if params is None:
            if added := self.added_list():
                raise InputError(
                    f"a checkpoint has no place for what was added to this model: {', '.join(added)}; keep "
                    "nnx.state(model) with orbax, or save the model without it: params=model.params"
                )
            params = self.params
        flat = loading.check_params(self.parameter_list(), params)
        config = self.config.from_dict(
            self.config.to_dict(),
            architectures=[type(self).__name__.removeprefix("Flax")],
            dtype=np.asarray(next(iter(flat.values()))).dtype.name,
        )
        return checkpoint.write_checkpoint(
            folder,
            config,
            loading.to_arrays(self, params),
            head=self.head,
            file_format=format,
            max_shard_size=max_shard_size,
            family=self.family,
        )

    resize_token_embeddings = surgery.resize_token_embeddings
    resize_position_embeddings = surgery.resize_position_embeddings
    prune_heads = surgery.prune_heads

    def gradient_checkpointing_enable(self) -> None:
        """Trade time for memory where gradients are taken: keep each layer's input only, and compute the rest again."""
        self.base_model.is_gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Undo ``gradient_checkpointing_enable``."""
        self.base_model.is_gradient_checkpointing = False

    def get_input_embeddings(self) -> nnx.Embed:
        """The word embeddings."""
        return find(self.base_model, self.family.embeddings_path).part("words")

    def get_position_embeddings(self) -> nnx.Embed:
        """The position embeddings, learned or sinusoidal."""
        return find(self.base_model, self.family.embeddings_path).part("positions")


class LinenModule(linen.Module):
    """A model as Linen has them: without values. It takes the arguments of a call, but for ``params``."""

    model: PreTrainedModel

    @linen.compact
    def __call__(self, *arguments: Any, **options: Any) -> ModelOutput | tuple[Array, ...]:
        """See ``PreTrainedModel``."""
        if self.is_initializing():
            for name, value in self.model.init_weights(self.make_rng("params")).items():
                self.put_variable("params", name, value)
        if self.has_rng("dropout"):
            options["dropout_rng"] = self.make_rng("dropout")
        options["params"] = self.variables.get("params", {})
        return self.model(*arguments, **options)


class BertModelCall(PreTrainedModel):
    """A model called as transformers' BERT is: the arguments in another order."""

    def __call__(  # type: ignore[override]
        self,
        input_ids: Array | None = None,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        head_mask: Array | None = None,
        inputs_embeds: Array | None = None,
        params: Mapping[str, Any] | None = None,
        dropout_rng: jax.Array | None = None,
        train: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **labels: Array,
    ) -> ModelOutput | tuple[Array, ...]:
        """See ``PreTrainedModel``."""
        inputs = (input_ids, attention_mask, head_mask, position_ids, inputs_embeds)
        outputs = (output_attentions, output_hidden_states, return_dict)
        return super().__call__(*inputs, params, dropout_rng, train, *outputs, token_type_ids, **labels)


def by_pieces(model: PreTrainedModel, run: Callable[..., ModelOutput], arrays: dict[str, Any]) -> ModelOutput:
    """``run(**arrays)`` of ``model``, on CPUs a few rows at a time where the batch is larger than their caches.

    XLA's matrix products are fastest there on about 1,024 tokens (measured: docs/measurements.md). Only where
    ``jit`` traces the inputs, as the loop would otherwise be compiled at every call; not where several devices may
    share the batch; not where a size is a symbol; and not where a user's module or subclass may want the whole batch.
    The process decides, not the platform that ``jax.export`` is asked for: that would be to trace the model twice.
    """
    given = arrays["input_ids"] if arrays["inputs_embeds"] is None else arrays["inputs_embeds"]
    is_compiled = isinstance(given, DynamicJaxprTracer)
    if not is_compiled or jax.default_backend() != "cpu" or jax.device_count() > 1:
        return run(**arrays)
    shape = given.shape if arrays["inputs_embeds"] is None else given.shape[:-1]
    if len(shape) < 2 or not all(isinstance(size, int) and size for size in shape):
        return run(**arrays)
    count = shape[0]
    most = min(count, max(1, PIECE // math.prod(shape[1:])))
    rows = min(range(most, (most - 1) // 2, -1), key=lambda rows: -count % rows)  # the least rows to add
    if rows >= count or not is_pure(nnx.graphdef(model)):
        return run(**arrays)
    split = {n: v for n, v in arrays.items() if v is not None and n != "head_mask" and v.shape[:1] == (count,)}
    whole = {name: value for name, value in arrays.items() if name not in split}
    added = -count % rows

    def pieces(value: Array) -> Array:
        padded = jnp.pad(value, [(0, added)] + [(0, 0)] * (value.ndim - 1))
        return padded.reshape(-1, rows, *value.shape[1:])

    output = jax.lax.map(lambda piece: run(**piece, **whole), {name: pieces(value) for name, value in split.items()})

    def joined(value: Array) -> Array:
        each = value.shape[1] // rows  # 1, or the number of choices
        return value.reshape(-1, *value.shape[2:])[: count * each]

    return jax.tree.map(joined, output)


# Lets jit, grad and vmap return an output, and jax.export store how to make one.
outputs.register_with_keys(jax.tree_util.register_pytree_with_keys, jax.tree_util.DictKey)
export.register_pytree_node_serialization(
    ModelOutput,
    serialized_name="distilbert.ModelOutput",
    serialize_auxdata=lambda names: json.dumps(names).encode(),
    deserialize_auxdata=lambda text: tuple(json.loads(text)),
)
