"""What the bare encoder and every head have in common: making, loading, saving and changing a model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from distilbert.core import checkpoint
from distilbert.core.checkpoint import LoadReport
from distilbert.core.config import Config
from distilbert.core.errors import InputError
from distilbert.core.outputs import ModelOutput
from distilbert.core.spec import Family, Parameter, parameters
from distilbert.pt import loading, surgery
from distilbert.pt.attention import IMPLEMENTATIONS
from distilbert.pt.parameters import FromSpec, initialize, tie
from distilbert.pt.products import forget_layouts


class PreTrainedModel(FromSpec):
    """The base of the encoder and of the heads. ``head`` is the spec's name for what the class computes."""

    family: ClassVar[Family]
    head: str
    # Trainer and accelerate ask for these of any Hugging Face model.
    main_input_name: ClassVar[str] = "input_ids"
    supports_gradient_checkpointing: ClassVar[bool] = True

    def __init__(self, config: Config, *, attn_implementation: str = "sdpa") -> None:
        super().__init__()
        if not isinstance(config, expected := self.family.config):
            found, owner = type(config).__name__, type(config).__module__.partition(".")[0]
            if owner != "distilbert":
                found = f"{found} of {owner}, which distilbert.{expected.__name__}.from_dict(config.to_dict()) reads"
            raise InputError(f"config is a {found}, expected a {expected.__name__}")
        config.validate()
        if attn_implementation not in IMPLEMENTATIONS:
            raise InputError(
                f"attn_implementation is {attn_implementation!r}, expected one of {', '.join(IMPLEMENTATIONS)}"
            )
        self.config = copy.deepcopy(config)  # its own: resizing and pruning change it
        self.attn_implementation = attn_implementation
        self.is_gradient_checkpointing = False

    def parameter_list(self) -> tuple[Parameter, ...]:
        """The spec's rows for this model's config and head."""
        return parameters(self.config, self.head, self.family)

    @property
    def base_model(self) -> PreTrainedModel:
        """The encoder: the model itself, or the part of it below the head."""
        is_encoder = self.family.heads[self.head].is_encoder
        return self if is_encoder else self.get_submodule(self.family.prefix)  # type: ignore[return-value]

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameters."""
        return next(self.parameters()).dtype

    @property
    def is_padding_free(self) -> bool:
        """Whether padding is taken out of a batch before it is computed on, by default True; assign False to keep it.

        Tokens see no padding, so at every token the outputs stay what they are. Where padding was, vectors and logits
        are 0, and the logits of question answering the lowest number of their type, so that no argmax falls there.
        Modules inside the model then see (tokens, hidden_size), not (batch, length, hidden_size).

        Padding stays in where something could tell the difference, or nothing would be won: in training; where the
        model looks at every place for its loss, or attentions, hidden states or head masks are asked for; with
        ``"eager"`` attention; where a layer is not the library's own; with a mask that is a float; with text
        classifiers, if padding comes first, as they read the first place; on devices other than CPUs and CUDA; and
        where shapes may not depend on values, as in ``torch.compile``, ``torch.export``, tracing and ``vmap``.
        """
        return self.base_model._is_padding_free  # type: ignore[return-value]

    @is_padding_free.setter
    def is_padding_free(self, value: bool) -> None:
        self.base_model._is_padding_free = value

    @property
    def num_labels(self) -> int:
        """How many labels the config has."""
        return self.config.num_labels

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the model holds, tied ones counted once; perhaps without those of ``nn.Embedding``."""
        embeddings = {id(part.weight) for part in self.modules() if exclude_embeddings and type(part) is nn.Embedding}
        counted = (value for value in self.parameters() if id(value) not in embeddings)
        return sum(value.numel() for value in counted if value.requires_grad or not only_trainable)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        config: Config | str | Path | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        device_map: str | torch.device | Mapping[str, Any] | None = None,
        attn_implementation: str | None = None,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        add_pooling_layer: bool | None = None,
        **overrides: Any,
    ) -> Self | tuple[Self, LoadReport]:
        """Load a checkpoint from a folder or from the Hub, in evaluation mode.

        Args:
            name_or_path: a folder, or a Hub id.
            config: used instead of the stored one; or the folder or Hub id that has it.
            dtype: of the parameters, float32 by default; ``"auto"`` keeps the stored one (``torch_dtype`` is
                understood too).
            device: where to put the model, the CPU by default.
            device_map: as ``device``; ``"auto"`` takes a GPU where there is one.
            attn_implementation: as of ``DistilBertModel``.
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
            InputError: an unknown dtype, device or attention.
        """
        dtype = overrides.pop("torch_dtype", dtype)
        target = loading.parse_device(device if device is not None else device_map)
        where = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        head = cls.family.pooled(cls.head, add_pooling_layer)
        config = checkpoint.load_config(name_or_path, config, overrides, cls.family, **where)
        given = {"add_pooling_layer": add_pooling_layer, "attn_implementation": attn_implementation}
        options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        # Layers of a user's own subclass begin with the values that it gives them.
        with torch.device("meta") if cls.__module__.partition(".")[0] == "distilbert" else nullcontext():
            model = cls(config, **options)
        _, tensors, report = checkpoint.load(
            name_or_path,
            head,
            config=config,
            overrides={},
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            family=cls.family,
            extras={name: tuple(value.shape) for name, value in loading.extra_tensors(model).items()},
            **where,
        )
        loading.fill(model, tensors, loading.parse_dtype(dtype, tensors), target)
        model.eval()
        return (model, report) if output_loading_info else model

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        max_shard_size: int | str = "5GB",
        state_dict: Mapping[str, Tensor] | None = None,
        is_main_process: bool = True,
        save_function: Callable[..., Any] | None = None,
        safe_serialization: bool = True,
    ) -> list[Path]:
        """Write ``config.json`` and the weights as safetensors, all of it or nothing.

        What a subclass has besides, or a module that was added, is written too; ``from_pretrained`` of the subclass
        reads it.

        Args:
            folder: where to; made if absent.
            max_shard_size: bytes or a text such as ``"200MB"``; larger weights are split, with an index.
            state_dict: values to save in place of the model's own.
            is_main_process: False writes nothing: of several processes one is to write.
            save_function: is not called; accelerate's scripts name one.
            safe_serialization: likewise; only safetensors are written.

        Returns:
            The files written.

        Raises:
            CheckpointError: the folder cannot be written or the disk is full; what was there is unchanged.
            InputError: the model lacks a parameter that its config asks for; or ``safe_serialization`` is False.
        """
        if not safe_serialization:
            raise InputError(
                "safe_serialization is False, but only safetensors are written; `distilbert convert` has others"
            )
        if not is_main_process:
            return []
        config = self.config.from_dict(
            self.config.to_dict(), architectures=[type(self).__name__], dtype=str(self.dtype)
        )
        return checkpoint.write_checkpoint(
            folder,
            config,
            loading.to_arrays(self, state_dict),
            head=self.head,
            max_shard_size=max_shard_size,
            family=self.family,
            extras={name: loading.to_array(value) for name, value in loading.extra_tensors(self, state_dict).items()},
        )

    def train(self, mode: bool = True) -> Self:
        """As every module's; and what was laid out of the weights for inference is forgotten (``products.py``)."""
        forget_layouts(self.modules())
        return super().train(mode)

    def init_weights(self) -> None:
        """Give every parameter a new initial value, as training from nothing does."""
        for parameter in self.parameter_list():
            if parameter.tied_to is None:
                initialize(self.get_parameter(parameter.name), parameter, self.config)

    def tie_weights(self) -> None:
        """Make tied parameters one again, after a tool has replaced one of them."""
        tie(self, self.parameter_list())

    resize_token_embeddings = surgery.resize_token_embeddings
    resize_position_embeddings = surgery.resize_position_embeddings
    prune_heads = surgery.prune_heads

    def get_input_embeddings(self) -> nn.Embedding:
        """The word embeddings."""
        return self._embedding("words")

    def set_input_embeddings(self, embeddings: nn.Embedding) -> None:
        """Replace the word embeddings; an output projection that is tied to them follows."""
        base = self.base_model
        section = base.get_submodule(self.family.embeddings_path)
        section.set_submodule(section.paths["words"], embeddings)  # type: ignore[index, arg-type]
        self.tie_weights()

    def get_output_embeddings(self) -> nn.Module | None:
        """The projection from vectors to the vocabulary; None in models without one."""
        return None

    def get_position_embeddings(self) -> nn.Embedding:
        """The position embeddings, learned or sinusoidal."""
        return self._embedding("positions")

    def _embedding(self, role: str) -> nn.Embedding:
        section = self.base_model.get_submodule(self.family.embeddings_path)
        return section.part(role)  # type: ignore[operator]

    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Trade time for memory in training: keep each layer's input only, and compute the rest again.

        The arguments are those that Trainer gives. The non-reentrant form is always used, in every layer.

        Raises:
            InputError: only some layers are asked for, or that inputs are kept on the CPU.
        """
        if every_n_layers != 1 or offload:
            raise InputError(f"{every_n_layers=}, {offload=}: every layer's input is kept, where the layer computes")
        self.base_model.is_gradient_checkpointing = self.is_gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Undo ``gradient_checkpointing_enable``."""
        self.base_model.is_gradient_checkpointing = self.is_gradient_checkpointing = False


# Lets torch.export, DistributedDataParallel and DataLoader collation look inside an output.
pytree.register_pytree_node(
    ModelOutput,
    lambda output: (list(output.values()), list(output)),
    lambda values, names: ModelOutput(**dict(zip(names, values, strict=True))),
    serialized_type_name="distilbert.ModelOutput",
)
