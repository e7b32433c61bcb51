"""What the bare encoder and every head have in common: making, loading, saving and changing a model."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Self

import keras
import numpy as np
import optree

from distilbert.core import checkpoint, outputs
from distilbert.core.checkpoint import LoadReport
from distilbert.core.config import Config
from distilbert.core.errors import InputError
from distilbert.core.inputs import as_array
from distilbert.core.outputs import ModelOutput
from distilbert.core.spec import Family, Parameter, parameters
from distilbert.tf import loading, surgery
from distilbert.tf.parameters import FromSpec, no_initial_values, variable


class PreTrainedModel(FromSpec, keras.Model):
    """The base of the encoder and of the heads. ``head`` is the spec's name for what the class computes.

    Args:
        config: shapes and rates.
        options: Keras's ``name``, ``dtype`` (a policy such as ``"mixed_bfloat16"``) and ``trainable``.
    """

    family: ClassVar[Family]
    head: str
    input_rank: ClassVar[int] = 2  # of input_ids

    def __init__(self, config: Config, **options: Any) -> None:
        if not isinstance(config, self.family.config):
            raise InputError(f"config is a {type(config).__name__}, expected a {self.family.config.__name__}")
        config.validate()
        super().__init__(**options)
        self.config = copy.deepcopy(config)  # its own: resizing and pruning change it
        if keras.backend.backend() == "tensorflow":
            # XLA compiles anew for each length, and on CPUs oneDNN's kernels are faster than its own.
            self.jit_compile = False

    def compile(
        self, optimizer: Any = "adamw", loss: Any = None, *, jit_compile: bool | str = "auto", **options: Any
    ) -> None:
        """As ``keras.Model.compile``; without a ``loss`` a head trains on its own.

        ``jit_compile="auto"`` is off on TensorFlow, where XLA is slower on CPUs and compiles for every length.
        """
        if jit_compile == "auto" and keras.backend.backend() == "tensorflow":
            jit_compile = False
        super().compile(optimizer, loss, jit_compile=jit_compile, **options)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile a loaded model as it was; Keras leaves that to classes with a ``compile`` of their own."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.build_optimizer()

    def make_train_function(self, force: bool = False) -> Any:
        """What ``fit`` calls before its first step: a trace that also made the optimiser's variables comes twice."""
        if keras.backend.backend() == "tensorflow":
            with self.distribute_strategy.scope():
                self.build_optimizer()
        return super().make_train_function(force)

    def build_optimizer(self) -> None:
        """Make the optimiser's variables, but where a subclass has layers that Keras makes at their first call."""
        if self.optimizer is None or self.optimizer.built:
            return
        if all(layer.built for layer in self._flatten_layers()):
            self.optimizer.build(self.trainable_variables)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the model with keyword arguments, one tensor, a list in the order of ``call``, or a mapping.

        Arrays may be tensors of the backend, numpy's, or nested lists.

        Raises:
            InputError: an unknown or doubled argument, lists of different lengths, or a ragged tensor.
        """
        return super().__call__(**self.gather_arguments(arguments, named))

    def gather_arguments(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
        """Every way to pass inputs, as keyword arguments."""
        order = list(inspect.signature(self.call).parameters)
        first = arguments[0] if arguments else named.get("input_ids")
        rest: Mapping[str, Any] = dict(zip(order[1:], arguments[1:], strict=False)) if arguments else {}
        named = {name: value for name, value in named.items() if arguments or name != "input_ids"}
        if isinstance(first, Mapping):
            given = dict(first)
        elif isinstance(first, (list, tuple)) and first and rank(first[0]) >= self.input_rank:
            given = dict(zip(order, first, strict=False))
        else:
            first, given = None, {} if first is None else {"input_ids": first}
        if len(arguments) > len(order) or (isinstance(first, (list, tuple)) and len(first) > len(order)):
            raise InputError(f"too many inputs of {type(self).__name__}, expected at most {', '.join(order)}")
        for more in (rest, named):
            if doubled := given.keys() & more.keys():
                raise InputError(f"{', '.join(sorted(doubled))}: given twice to {type(self).__name__}")
            given |= more
        if unknown := given.keys() - set(order):
            raise InputError(
                f"{', '.join(sorted(map(str, unknown)))}: not an input of {type(self).__name__}, "
                f"expected some of {', '.join(order)}"
            )
        for name, value in given.items():
            if hasattr(value, "row_splits"):
                raise InputError(
                    f"{name} is ragged, expected rows of one length; give {name}.to_tensor(), and as attention_mask "
                    f"tf.ones_like({name}).to_tensor()"
                )
        return {name: as_array(name, value) for name, value in given.items()}

    def stateless_call(
        self, trainable: Any, non_trainable: Any, *arguments: Any, return_losses: bool = False, **named: Any
    ) -> Any:
        """As ``keras.Layer.stateless_call``, which goes past ``__call__``, with the same ways to pass inputs."""
        given = self.gather_arguments(arguments, named)
        return super().stateless_call(trainable, non_trainable, return_losses=return_losses, **given)

    @property
    def own_options(self) -> dict[str, Any]:
        """What the class was made with besides what all classes take."""
        return {}

    def parameter_list(self) -> tuple[Parameter, ...]:
        """The spec's rows for this model's config and head."""
        return parameters(self.config, self.head, self.family)

    def part_list(self, config: Config | None = None) -> Iterator[tuple[FromSpec, tuple[Parameter, ...]]]:
        """Each part's rows (as ``config`` has them, by default the model's own) and the section it stands in."""
        listed = parameters(config or self.config, self.head, self.family)
        for _, group in groupby(listed, key=lambda parameter: (parameter.section, parameter.layer, parameter.path)):
            rows = tuple(group)
            yield self.section(rows[0]), rows

    def added_list(self) -> list[str]:
        """The names of layers with weights that are none of the spec's: those that a subclass adds."""
        own = {id(section.parts[rows[0].path]) for section, rows in self.part_list()}
        layers = self._flatten_layers(include_self=False)
        return [
            each.name
            for each in layers
            if id(each) not in own and (each._trainable_variables or each._non_trainable_variables)
        ]

    def section(self, parameter: Parameter) -> FromSpec:
        """What ``parameter`` stands in: the embeddings, a layer, or for the pooler and the head a model."""
        if parameter.section == "head":
            return self
        base = self.get_base_model()
        if parameter.section == "pooler":
            return base
        return base.embeddings if parameter.layer is None else base.stack[parameter.layer]

    def variable_list(self) -> Iterator[tuple[Parameter, keras.Variable]]:
        """Each row that has values of its own with the variable that holds them."""
        for section, rows in self.part_list():
            for row in rows:
                if row.tied_to is None:
                    yield row, variable(section.parts[row.path], row)

    def get_base_model(self) -> PreTrainedModel:
        """The encoder: the model itself, or the part of it below the head."""
        return self if self.family.heads[self.head].is_encoder else getattr(self, self.family.prefix)

    def num_parameters(self, only_trainable: bool = False) -> int:
        """How many numbers the model holds, tied ones counted once."""
        weights = self.trainable_weights if only_trainable else self.weights
        return sum(int(np.prod(value.shape)) for value in weights)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        config: Config | None = None,
        dtype: str | keras.DTypePolicy | None = None,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        add_pooling_layer: bool | None = None,
        **overrides: Any,
    ) -> Self | tuple[Self, LoadReport]:
        """Load a checkpoint from a folder or from the Hub.

        Args:
            name_or_path: a folder, or a Hub id.
            config: used instead of the stored one.
            dtype: a Keras policy such as ``"bfloat16"`` or ``"mixed_float16"``, by default Keras's global one;
                ``"auto"`` is the type that is stored.
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
        options: dict[str, Any] = {} if add_pooling_layer is None else {"add_pooling_layer": add_pooling_layer}
        with no_initial_values():
            model = cls(config, dtype=loading.parse_dtype(dtype, tensors), **options)
        loading.fill(model, tensors)
        return (model, report) if output_loading_info else model

    def save_pretrained(
        self, folder: str | Path, *, format: str = "safetensors", max_shard_size: int | str = "5GB"
    ) -> list[Path]:
        """Write ``config.json`` and the weights, all of it or nothing.

        Args:
            folder: where to; made if absent.
            format: ``"safetensors"``; ``"h5"`` for the TensorFlow classes of transformers 4; ``"keras"`` or
                ``"keras-weights"`` for ``model.keras`` or ``model.weights.h5``.
            max_shard_size: bytes or a text such as ``"200MB"``; larger weights are split, with an index, but not
                those for Keras.

        Returns:
            The files written.

        Raises:
            CheckpointError: the folder cannot be written or the disk is full; what was there is unchanged.
            InputError: an unknown format or size, or a model with layers that such files have no place for.
        """
        if added := self.added_list():
            raise InputError(
                f"a checkpoint has no place for what was added to this model: {', '.join(added)}; keep it with "
                "model.save('x.keras'), or save_weights"
            )
        config = self.config.from_dict(
            self.config.to_dict(), architectures=[type(self).__name__.removeprefix("TF")], dtype=self.variable_dtype
        )
        return checkpoint.write_checkpoint(
            folder,
            config,
            loading.to_arrays(self),
            head=self.head,
            file_format=format,
            max_shard_size=max_shard_size,
            family=self.family,
        )

    def save(self, filepath: str | Path, *arguments: Any, **options: Any) -> None:
        """As ``keras.Model.save``.

        Raises:
            InputError: the model is quantised.
        """
        self.get_config()  # Keras asks for it when it has emptied the file
        super().save(filepath, *arguments, **options)

    def get_config(self) -> dict[str, Any]:
        """What ``keras.models.load_model`` makes the model from.

        Raises:
            InputError: the model is quantised.
        """
        if any(section.parts[rows[0].path].quantization_mode for section, rows in self.part_list()):
            raise InputError(
                "a quantised model is saved by save_weights('x.weights.h5'), which a model that was quantised in the "
                "same way loads; or save it before you quantise it"
            )
        return {
            "config": self.config.to_dict(),
            "name": self.name,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "trainable": self.trainable,
            # A kernel with LoRA is no variable but a sum, and a kernel like others once it is saved.
            "frozen": [row.name for row, value in self.variable_list() if not getattr(value, "trainable", True)],
            **self.own_options,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The reverse of ``get_config``."""
        values = dict(config)
        values["dtype"] = keras.dtype_policies.deserialize(values["dtype"])
        frozen = values.pop("frozen", ())
        model = cls(cls.family.config.from_dict(values.pop("config")), **values)
        model.freeze(frozen)
        if not all(layer.built for layer in model._flatten_layers()):  # of a subclass, which a call makes
            model(np.zeros((1,) * (cls.input_rank - 1) + (2,), "int32"))
        return model

    def freeze(self, names: Collection[str]) -> None:
        """Exclude parameters from training, by their names; and whole layers of which nothing is left."""
        layers: list[keras.layers.Layer] = [self.get_base_model()]
        for section, rows in self.part_list():
            part = section.parts[rows[0].path]
            for row in rows:
                if row.name in names and row.tied_to is None:
                    variable(part, row).trainable = False
            layers += [section, part]
        for layer in layers:
            if layer.weights and not any(value.trainable for value in layer.weights):
                layer.trainable = False

    def export(self, filepath: str | Path, format: str = "tf_saved_model", **options: Any) -> None:
        """As ``keras.Model.export``, for Keras on TensorFlow.

        The default signature takes ``input_ids``, ``attention_mask`` and of BERT ``token_type_ids``, int32 (B, L).

        Raises:
            InputError: Keras runs on another framework, or the config asks for hidden states or attentions.
        """
        for field in ("output_hidden_states", "output_attentions"):
            if getattr(self.config, field):
                raise InputError(
                    f"export: the config says {field}=True, expected False: only single tensors are served"
                )
        if keras.backend.backend() != "tensorflow":
            raise InputError(
                f"export: Keras runs on {keras.backend.backend()}, expected TensorFlow; save the model, and export it "
                "in a process with KERAS_BACKEND=tensorflow"
            )
        shape = (None,) * self.input_rank
        names = ("input_ids", "attention_mask", *(["token_type_ids"] if self.family.has_segments else []))
        signature = {name: keras.InputSpec("int32", shape, name=name) for name in names}
        options.setdefault("input_signature", [signature])
        super().export(str(filepath), format=format, **options)

    def predict(self, x: Any, *arguments: Any, **options: Any) -> Any:
        """As ``keras.Model.predict``; ``x`` may also be what a tokenizer gives, and hold lists."""
        return super().predict(self.as_arrays(x), *arguments, **options)

    def predict_on_batch(self, x: Any) -> Any:
        """As ``keras.Model.predict_on_batch``, with inputs as for ``predict``."""
        return super().predict_on_batch(self.as_arrays(x))

    def as_arrays(self, x: Any) -> Any:
        """Inputs as Keras takes them: arrays by name. A data set stays as it is."""
        return self.gather_arguments((x,), {}) if isinstance(x, (Mapping, list, tuple)) else x

    def predict_step(self, *arguments: Any) -> Any:
        """One batch of ``predict``. A loss, which labels among the inputs cause, is no prediction."""
        stepped = super().predict_step(*arguments)
        output = stepped[0] if keras.backend.backend() == "jax" else stepped
        if isinstance(output, ModelOutput):
            output.pop("loss", None)
        return stepped

    resize_token_embeddings = surgery.resize_token_embeddings
    resize_position_embeddings = surgery.resize_position_embeddings
    prune_heads = surgery.prune_heads

    def get_input_embeddings(self) -> keras.layers.Embedding:
        """The word embeddings."""
        return self.get_base_model().embeddings.part("words")

    def get_position_embeddings(self) -> keras.layers.Embedding:
        """The position embeddings, learned or sinusoidal."""
        return self.get_base_model().embeddings.part("positions")

    def word_table(self) -> keras.Variable:
        """The values of the word embeddings, (V, D)."""
        return self.get_input_embeddings().embeddings


def rank(value: Any) -> int:
    """How many dimensions a tensor, an array or a nested list has."""
    if hasattr(value, "shape"):
        return len(value.shape)
    return 1 + rank(value[0]) if isinstance(value, (list, tuple)) and value else 0


# Lets Keras look inside an output, as predict and functional models must; on JAX and PyTorch also theirs.
outputs.register(partial(optree.register_pytree_node, namespace="keras"))
if keras.backend.backend() == "jax":
    import jax

    outputs.register_with_keys(jax.tree_util.register_pytree_with_keys, jax.tree_util.DictKey)
elif keras.backend.backend() == "torch":
    importlib.import_module("distilbert.pt.model")  # registers it

# Keras would bury the one line of an error under its account of the arguments.
InputError._keras_call_info_injected = True  # type: ignore[attr-defined]
