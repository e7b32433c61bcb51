"""Linear layers on CPUs in bfloat16 and int8: weights that oneDNN has laid out, and neighbours as one product.

Whenever a gradient may be asked for, or a tool looks on, what runs are the modules themselves. So it is in float32 too,
where nothing is gained by a layout: docs/performance.md.

O outputs, D inputs.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as global_hooks
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import _get_current_dispatch_mode

from distilbert.core.backends import has_int8_products
from distilbert.core.errors import InputError

# What oneDNN can do to a product before it leaves the registers, by the config's name: name, and which approximation.
EPILOGUES = {None: ("none", ""), "gelu": ("gelu", "none"), "gelu_new": ("gelu", "tanh"), "relu": ("relu", "")}
ROWS = 1024  # for which oneDNN chooses a layout: a pipeline's batch on a CPU

Quantized = TypeVar("Quantized", bound=nn.Module)


class Int8Linear(nn.Module):
    """A linear layer for inference with weights in int8, and a scale for each of their rows.

    On CPUs what they are multiplied with is rounded to 8 bits too, with one scale for all of it; elsewhere it is not.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, part: nn.Linear) -> None:
        super().__init__()
        scale_O = part.weight.detach().abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.register_buffer("weight", (part.weight.detach() / scale_O[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale_O)
        self.register_buffer("bias", part.bias.detach().clone())
        self.out_features, self.in_features = part.weight.shape

    def forward(self, value: Tensor) -> Tensor:
        """Vectors (…, D) to vectors (…, O)."""
        return F.linear(value, self.weight.to(value.dtype) * self.scale[:, None], self.bias)


def quantize(model: Quantized) -> Quantized:
    """Make the layers of a float32 model on a CPU multiply in int8, in place, for inference.

    Weights get a scale for each of their rows, and what they are multiplied with one for each batch. Embeddings and
    heads stay as they are; prune heads before. docs/performance.md says what it gains and costs.

    Raises:
        InputError: a model of another type, or elsewhere.
    """
    if model.dtype != torch.float32 or model.device.type != "cpu":
        raise InputError(f"the model is {model.dtype} on {model.device}, expected float32 on a CPU: load it so")
    encoder: Any = model.base_model
    for layer in encoder.layers():
        for path, part in list(layer.named_modules()):
            if type(part) is nn.Linear:
                layer.set_submodule(path, Int8Linear(part))
    return model


@dataclass(frozen=True)
class Product:
    """The weights of some linear layers laid out as one, and what they were made from.

    Copies would go unnoticed when their origin changes; so each use asks whether it has. What autograd itself is blind
    to, a change through ``.data`` or through a numpy array of the same memory, this is blind to as well, until
    ``train`` or ``eval`` of the whole model is called, an optimiser takes a step, or a gradient may be asked for.
    """

    origin: tuple[Tensor, ...]
    state: tuple[Any, ...]
    weight: Tensor
    bias: Tensor
    scale: Tensor | None  # of int8, with where its zero is, which is 0
    zero: Tensor | None
    sizes: list[int]

    @classmethod
    def of(cls, parts: Sequence[nn.Module]) -> Product:
        """Lay out the weights of ``parts``, one below the other."""
        weight, bias = (torch.cat([getattr(part, name).detach() for part in parts]) for name in ("weight", "bias"))
        scale = zero = None
        if isinstance(parts[0], Int8Linear):
            scale = torch.cat([part.scale for part in parts])  # type: ignore[misc]
            zero = torch.zeros_like(scale, dtype=torch.int32)
            laid_out = torch.ops.onednn.qlinear_prepack(weight, [ROWS, weight.shape[1]])
        else:
            laid_out = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        origin = tensors_of(parts)
        sizes = [len(part.bias) for part in parts]  # type: ignore[arg-type]
        return cls(origin, state_of(origin), laid_out, bias, scale, zero, sizes)

    def is_of(self, parts: Sequence[nn.Module]) -> bool:
        """Whether these are still the weights of ``parts``."""
        tensors = tensors_of(parts)
        return all(map(operator.is_, self.origin, tensors)) and self.state == state_of(tensors)

    def __call__(self, value: Tensor, activation: str | None = None) -> Sequence[Tensor]:
        """What each part makes of ``value`` (…, D), after the activation of that name."""
        name, variant = EPILOGUES[activation]
        if self.scale is None:
            product = torch.ops.mkldnn._linear_pointwise(value, self.weight, self.bias, name, [], variant)
        else:
            rounded, scale, zero = round_to_bytes(value)
            weights = (self.weight, self.scale, self.zero, self.bias)
            product = torch.ops.onednn.qlinear_pointwise(
                *(rounded, scale, zero, *weights, 1.0, 0, torch.float32, name, [], variant)
            )
        return [product] if len(self.sizes) == 1 else product.split(self.sizes, -1)


def round_to_bytes(value: Tensor) -> tuple[Tensor, float, int]:
    """Values rounded to bytes, and the scale and the zero that give them back: ``(bytes - zero) * scale``."""
    low, high = (float(edge) for edge in value.aminmax())
    if not math.isfinite(high - low):  # one scale for all of it: so all of it is no number
        return torch.zeros_like(value, dtype=torch.uint8), math.nan, 1
    low, high = min(low, 0.0), max(high, 0.0)
    levels = 255 if has_int8_products() else 127  # other CPUs add pairs of products up in 16 bits, which must fit
    scale = max((high - low) / levels, torch.finfo(torch.float32).tiny)
    zero = round(-low / scale)
    return value.mul(1 / scale).add_(zero).round_().clamp_(0, levels).to(torch.uint8), scale, zero


def tensors_of(parts: Sequence[nn.Module]) -> tuple[Tensor, ...]:
    """Weights, scales and biases."""
    return tuple(
        value for part in parts for value in (*part._parameters.values(), *part._buffers.values()) if value is not None
    )


def state_of(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """What changes when values do: where they are, and how often they were written to."""
    return tuple((value.data_ptr(), value._version) for value in tensors)


# By the module that has the layers, and by their roles. Not in the modules: copies and pickles of these need none.
PRODUCTS: WeakKeyDictionary[nn.Module, dict[tuple[str, ...], Product]] = WeakKeyDictionary()


def product_of(owner: nn.Module, roles: tuple[str, ...], parts: Sequence[nn.Module], value: Tensor) -> Product | None:
    """The weights of ``parts``, which have these roles in ``owner``, laid out for ``value``; None to leave them be."""
    if is_traced():
        return None
    if owner.training or torch.is_grad_enabled():
        PRODUCTS.pop(owner, None)
        return None
    if not (all(is_plain(part, value.dtype) for part in parts) and can_be_laid_out(value)):
        return None
    known = PRODUCTS.setdefault(owner, {})
    if roles not in known or not known[roles].is_of(parts):
        known[roles] = Product.of(parts)
    return known[roles]


def can_be_laid_out(value: Tensor) -> bool:
    """Whether nothing looks on at products with ``value`` that would miss the modules."""
    return (
        value.device.type == "cpu"
        and value.numel() > 0
        and type(value) is Tensor
        and forward_ad._current_level < 0
        and not torch.is_autocast_enabled("cpu")
        and has_layouts()
        and _get_current_dispatch_mode() is None
        and not (global_hooks._global_forward_hooks or global_hooks._global_forward_pre_hooks)
    )


def has_layouts() -> bool:
    """Whether oneDNN is part of this PyTorch, switched on, and has products in bfloat16 for this CPU."""
    mkldnn = torch.backends.mkldnn
    return mkldnn.is_available() and bool(mkldnn.enabled) and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def forget_products(model: nn.Module) -> None:
    """Lay a model's weights out anew when it next runs, whatever has happened to them."""
    for module in model.modules():
        PRODUCTS.pop(module, None)


# Fused optimisers write to parameters without counting it.
register_optimizer_step_post_hook(lambda *_: PRODUCTS.clear())


def is_plain(part: nn.Module, dtype: torch.dtype) -> bool:
    """Whether a module is a linear layer whose products with ``dtype`` gain by a layout, and nothing but that."""
    if type(part) is nn.Linear:
        gains = dtype == part.weight.dtype == torch.bfloat16 and type(part.weight) is type(part.bias) is nn.Parameter
    elif type(part) is Int8Linear:
        gains = dtype == torch.float32
    else:
        return False
    has_hooks = part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part)
    # Tensors made in inference mode do not count how often they were written to.
    return gains and not has_hooks and not any(value.is_inference() for value in tensors_of([part]))


def is_traced() -> bool:
    """Whether what runs becomes a graph, or is transformed, so that no shape may depend on values."""
    return (
        torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()  # vmap
    )
