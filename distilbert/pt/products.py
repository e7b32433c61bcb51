"""Layers for inference on CPUs: weights that MKL or oneDNN has laid out, and neighbours as one product.

Whenever a gradient may be asked for, or a tool looks on, what runs are the modules themselves. What is gained:
docs/performance.md.

O outputs, D inputs; the rest as in ``encoder.py``.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from heapq import heapreplace
from threading import Barrier, BrokenBarrierError
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as global_hooks
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode

from distilbert.core.backends import has_int8_products
from distilbert.core.batches import cached_tokens
from distilbert.core.errors import InputError
from distilbert.pt.attention import Sequences, first_tokens, fused_attention, keys_to_read
from distilbert.pt.parameters import Container

# What oneDNN can do to a product before it leaves the registers, by the config's name: name, and which approximation.
EPILOGUES = {None: ("none", ""), "gelu": ("gelu", "none"), "gelu_new": ("gelu", "tanh"), "relu": ("relu", "")}
# The same without memory for a result: giving that back and taking it anew is as much work.
IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": torch.ops.aten.gelu_.default,
    "gelu_new": partial(torch.ops.aten.gelu_.default, approximate="tanh"),
    "relu": torch.relu_,
    "silu": partial(F.silu, inplace=True),
}
ROWS = 1024  # for which oneDNN chooses a layout: about a piece of a large batch
MKL_ROWS = 256  # for which MKL does: of its two layouts the one that is as fast as any, from 2 rows to 1,536
# Pieces of a batch that run on a core each have at least so many tokens for each of all cores, since they wait for each
# other at Python's lock; and no core has more than so many times the mean of all. Otherwise cores share products.
PIECE, UNEQUAL = 128, 1.15
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h

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

    Weights get a scale for each of their rows, and what they are multiplied with one for each batch, or each part of
    one. Embeddings and heads stay as they are; prune heads before. docs/performance.md says what it gains and costs.

    Raises:
        InputError: a model of another type, or elsewhere.
    """
    if model.dtype != torch.float32 or model.device.type != "cpu":
        raise InputError(f"the model is {model.dtype} on {model.device}, expected float32 on a CPU: load it so")
    encoder: Any = model.base_model
    for layer in encoder.layers():
        for path, part in list(layer.named_modules()):
            if type(part) is nn.Linear:
                layer.set_submodule(path, Int8Linear(part).train(part.training))
    return model


Product = Callable[..., Tensor]  # values (…, D) to values (…, O), and what to add to these, if anything
Activation = str | Callable[[Tensor], Tensor] | None  # what a config calls one, or is one

LINEAR = (nn.Linear, Int8Linear)
LEAVES = (*LINEAR, nn.LayerNorm, nn.Dropout)
FORWARDS = {kind: kind.forward for kind in LEAVES}  # before anybody replaces one


class LaidOutLayer:
    """A layer for inference: its weights laid out, neighbours as one product, and none of its modules called.

    The weights are copies, which do not follow when the layer changes; so each use asks whether it has. What autograd
    does not count, such as changes through ``.data``, through a numpy array of the same memory or by
    ``torch.distributed``, is seen by two samples of the values of each tensor; where it leaves these as they were,
    not before ``train`` or ``eval`` of the whole model is called, an optimiser takes a step, or a gradient may be
    asked for.

    It keeps nothing of the layer alive: hooks may know the model, and the model would be kept with them.

    Args:
        layer: whose modules are all plain.
        modules: those below it.
        dtype: of what it is given.
    """

    def __init__(self, layer: Any, modules: Sequence[nn.Module], dtype: torch.dtype) -> None:
        tensors = tensors_of(modules)
        self.settings = settings_of(layer, dtype)
        self.modules = list(map(ref, modules))
        self.kinds = [type(module) for module in modules]
        self.is_by_onednn = dtype != torch.float32 or Int8Linear in self.kinds  # see fill_up
        self.state, self.sampled = state_of(tensors), sampled_places(tensors)
        self.samples = [place.value for place in self.sampled]
        self.products: dict[tuple[str, ...], Product] = {}
        self.threads = torch.get_num_threads()  # see product_in_float32

    def is_of(self, layer: Any, modules: list[nn.Module], dtype: torch.dtype) -> bool:
        """Whether this is still what ``layer`` computes, with ``modules`` below it, of values in ``dtype``."""
        return (
            self.settings == settings_of(layer, dtype)
            and self.threads >= torch.get_num_threads()
            and [known() for known in self.modules] == modules
            and self.kinds == [type(module) for module in modules]
            and self.state == state_of(tensors_of(modules))  # so the memory is still there
            and self.samples == [place.value for place in self.sampled]
        )

    def __call__(
        self, layer: Any, hidden_BLD: Tensor, visible: Tensor | Sequences | None, first_token_only: bool = False
    ) -> Tensor:
        """Vectors (B, L, D) to vectors (B, Q, D), as the ``forward`` of ``layer``.

        Of a packed batch that is filled up, to as many more.
        """
        if first_token_only:
            asking_BQD = first_tokens(hidden_BLD, visible)
            if self.is_by_onednn and isinstance(visible, Sequences):
                asking_BQD = fill_up(asking_BQD)
            (query_BQHK,) = self.project(layer, ("query",), asking_BQD)
            key_BLHK, value_BLHK = self.project(layer, ("key", "value"), hidden_BLD)
        else:
            asking_BQD = hidden_BLD
            query_BQHK, key_BLHK, value_BLHK = self.project(layer, ("query", "key", "value"), hidden_BLD)
        context_BQHK = fused_attention(query_BQHK, key_BLHK, value_BLHK, visible, first_token_only)
        attended_BQD = self.product(layer, ("attention_out",))(context_BQHK.flatten(-2), asking_BQD)
        attended_BQD = normalize(layer.part("attention_norm"), attended_BQD)
        inner_BQF = self.product(layer, ("feed_forward_in",), layer.hidden_act)(attended_BQD)
        outer_BQD = self.product(layer, ("feed_forward_out",))(inner_BQF, attended_BQD)
        return normalize(layer.part("feed_forward_norm"), outer_BQD)

    def project(self, layer: Any, roles: tuple[str, ...], value: Tensor) -> tuple[Tensor, ...]:
        """The heads (B, L, H, K) of each role, in one product."""
        heads = self.product(layer, roles)(value).view(*value.shape[:-1], len(roles), -1, layer.head_size)
        return heads.unbind(-3)

    def make_products(self, layer: Any, first_token_only: bool) -> None:
        """What ``__call__`` multiplies by, before threads that have one core each would make it."""
        projections = (("query",), ("key", "value")) if first_token_only else (("query", "key", "value"),)
        for roles in (*projections, ("attention_out",), ("feed_forward_out",)):
            self.product(layer, roles)
        self.product(layer, ("feed_forward_in",), layer.hidden_act)

    def product(self, layer: Any, roles: tuple[str, ...], activation: Activation = None) -> Product:
        """The product with the weights of some roles, one below the other, and the activation after it."""
        if roles not in self.products:
            self.products[roles] = product_of([layer.part(role) for role in roles], activation)
        return self.products[roles]


def run_laid_out(
    stack: Sequence[nn.Module],
    layouts: Sequence[LaidOutLayer],
    hidden_BLD: Tensor,
    visible: Tensor | Sequences | None,
    first_token_only: bool,
) -> Tensor:
    """Vectors (B, L, D) through all layers; with ``first_token_only`` to (B, 1, D), of a packed batch to (N, D)."""

    def run(part_BLD: Tensor, seen: Tensor | Sequences | None) -> Tensor:
        for layer, laid_out in zip(stack, layouts, strict=True):
            part_BLD = laid_out(layer, part_BLD, seen, first_token_only and layer is stack[-1])
        return part_BLD

    def run_piece(part_BLD: Tensor, seen: Tensor | Sequences | None) -> Tensor:
        shape = part_BLD.shape[:-1]
        if seen is None and is_better_packed(shape, layouts[0].is_by_onednn):
            seen = Sequences.of_rectangle(shape, part_BLD.device)
        if not isinstance(seen, Sequences):
            return run(part_BLD, seen)
        rows = len(seen.first_tokens) if first_token_only else shape.numel()
        part_BLD = part_BLD.flatten(0, -2)
        part_BLD = fill_up(part_BLD) if layouts[0].is_by_onednn else part_BLD
        found = run(part_BLD, replace(seen, reads_on=True))[:rows]
        if not found.sum().isfinite():  # one sequence may be no number: see Sequences
            found = run(part_BLD, seen)[:rows]
        return found.unflatten(0, (*shape[:-1], -1))

    cores = torch.get_num_threads()
    if pieces := one_for_each_core(hidden_BLD, visible, cores):
        for layer, laid_out in zip(stack, layouts, strict=True):
            laid_out.make_products(layer, first_token_only and layer is stack[-1])
        return torch.cat(on_all_cores(run_piece, pieces, cores))
    count = hidden_BLD.shape[:-1].numel() // cached_tokens(hidden_BLD.element_size())
    done = [run_piece(*piece) for piece in by_pieces(hidden_BLD, visible, count)]
    return done[0] if len(done) == 1 else torch.cat(done)


def is_better_packed(shape: torch.Size, is_by_onednn: bool) -> bool:
    """Whether a batch (B, L) without padding gains by what only packed ones have: see ``fill_up`` and ``Sequences``."""
    rows, length = shape
    return (rows > 1 and keys_to_read(length) > length) or (
        is_by_onednn and any(map(missing_rows, (shape.numel(), rows)))
    )


Piece = tuple[Tensor, Tensor | Sequences | None]  # vectors, and what is visible of them


def by_pieces(hidden_BLD: Tensor, visible: Tensor | Sequences | None, count: int) -> list[Piece]:
    """A batch in at most so many parts of about equally many tokens, or whole where a mask says what is visible.

    Parts that fit a CPU's caches are the fastest: about 1,024 tokens in float32 (measured: docs/performance.md).
    """
    if isinstance(visible, Tensor) or count < 2:
        return [(hidden_BLD, visible)]
    if visible is None:
        return [(part, None) for part in hidden_BLD.split(-(-len(hidden_BLD) // count))]
    return [(hidden_BLD[place], sequences) for place, sequences in visible.split(count)]


def one_for_each_core(hidden_BLD: Tensor, visible: Tensor | Sequences | None, cores: int) -> list[Piece]:
    """A batch in pieces that cores run at the same time; none where that is not faster.

    It is faster than sharing every product, as nobody waits for others after each step, nor for what they have
    computed, if there is enough to do and each core has about as much (measured: docs/performance.md).
    """
    tokens, most = hidden_BLD.shape[:-1].numel(), cached_tokens(hidden_BLD.element_size())
    is_profiled = torch.autograd._profiler_enabled()  # by what sees the caller's thread only
    if cores == 1 or tokens < cores * min(PIECE * cores, most // 2) or is_profiled:
        return []
    pieces = by_pieces(hidden_BLD, visible, cores * -(-tokens // (cores * most)))
    loads = [0] * cores
    for part, _ in pieces:  # who is done first takes the next
        heapreplace(loads, loads[0] + part.shape[:-1].numel())
    return pieces if max(loads) * cores <= UNEQUAL * tokens else []


def on_all_cores(run: Callable[..., Tensor], pieces: Sequence[Piece], cores: int) -> list[Tensor]:
    """What ``run`` makes of each piece."""
    is_inference = torch.is_inference_mode_enabled()  # here; every thread has its own

    def run_there(piece: Piece) -> Tensor:
        with torch.inference_mode(is_inference), torch.no_grad():  # inference_mode(False) asks for gradients
            return run(*piece)

    try:
        pool = workers(cores)
        futures = [pool.submit(run_there, piece) for piece in pieces]
    except RuntimeError:  # the interpreter ends, or the system gives no more threads
        return [run(*piece) for piece in pieces]
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()


@cache
def workers(cores: int) -> ThreadPoolExecutor:
    """As many threads, each of which computes on one core.

    Raises:
        RuntimeError: there can be no more threads.
    """
    ready = Barrier(cores + 1)

    def start() -> None:
        torch.get_num_threads()  # a thread that has not asked yet takes the number that was set last, by whomever
        torch.set_num_threads(1)
        with suppress(BrokenBarrierError):
            ready.wait()

    pool = ThreadPoolExecutor(cores, "distilbert", start)
    try:
        for _ in range(cores):
            pool.submit(int)  # starts a thread, as none is idle yet
        ready.wait()
    except BaseException:
        ready.abort()
        pool.shutdown()
        raise
    finally:
        torch.set_num_threads(cores)  # for threads that users start later
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=workers.cache_clear)  # threads do not come along


def fill_up(value_TD: Tensor) -> Tensor:
    """Rows, and as many copies of the last as make a round number of them.

    oneDNN compiles a kernel for each number of rows that a product has, in one to two milliseconds, and keeps a
    thousand of them, half a MiB each. Copies go through a layer as what they are copies of, which leaves the range
    that int8 has to cover as it is.
    """
    missing = missing_rows(len(value_TD))
    return torch.cat((value_TD, value_TD[-1:].expand(missing, -1))) if missing else value_TD


def missing_rows(count: int) -> int:
    """How many to the next round number: 16 of them from each power of two to the next, from 512 on multiples of 32."""
    return -count % min(32, 1 << max(0, count.bit_length() - 5))


def settings_of(layer: Any, dtype: torch.dtype) -> tuple[Any, ...]:
    """What ``layer`` computes by, besides its modules."""
    return layer.head_size, layer.hidden_act, dtype


def normalize(norm: Any, value: Tensor) -> Tensor:
    """What a plain norm makes of ``value``."""
    return torch.layer_norm(value, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def product_of(parts: Sequence[Any], activation: Activation = None) -> Product:
    """The product with the weights of ``parts``, one below the other, and the activation after it."""
    weight_OD, bias_O = (torch.cat([getattr(part, kind).detach() for part in parts]) for kind in ("weight", "bias"))
    is_fused = weight_OD.dtype != torch.float32 and not callable(activation) and activation in EPILOGUES
    epilogue = EPILOGUES[activation if is_fused else None]  # type: ignore[index]
    if weight_OD.dtype == torch.int8:
        scale_O = torch.cat([part.scale for part in parts])
        product = product_in_int8(weight_OD, scale_O, bias_O, epilogue)
    elif weight_OD.dtype == torch.float32:
        product = product_in_float32(weight_OD, bias_O)
    else:
        product = product_in_bfloat16(weight_OD, bias_O, epilogue)
    if activation is None or is_fused:
        return product
    activate = activation if callable(activation) else IN_PLACE[activation]
    return lambda value: activate(product(value))


def product_in_float32(weight_OD: Tensor, bias_O: Tensor) -> Product:
    """By MKL, which otherwise lays out weights anew for every product.

    It does so for as many threads as there are now, and products of a few hundred rows never take more; with fewer
    they are as fast (measured: docs/performance.md).
    """
    laid_out = torch.ops.mkl._mkl_reorder_linear_weight(weight_OD, MKL_ROWS)
    # All that is asked of the original is its shape, and so it need not be kept.
    shape_OD = weight_OD.new_full((), math.nan).expand_as(weight_OD)
    multiplied = torch.ops.mkl._mkl_linear.default  # an operator without its overload's name looks for it in every call

    def multiply(value: Tensor, residual: Tensor | None = None) -> Tensor:
        rows = value.shape[:-1].numel()  # PyTorch wants to hear that it was laid out for as many; MKL takes any
        product = multiplied(value, laid_out, shape_OD, bias_O, rows)
        return product if residual is None else product.add_(residual)

    return multiply


def product_in_bfloat16(weight_OD: Tensor, bias_O: Tensor, epilogue: tuple[str, str]) -> Product:
    """By oneDNN."""
    laid_out, (name, variant) = torch.ops.mkldnn._reorder_linear_weight(weight_OD, ROWS), epilogue
    activated, added = torch.ops.mkldnn._linear_pointwise.default, torch.ops.mkldnn._linear_pointwise.binary

    def multiply(value: Tensor, residual: Tensor | None = None) -> Tensor:
        if residual is None:
            return activated(value, laid_out, bias_O, name, [], variant)
        return added(value, residual, laid_out, bias_O, "add")  # rounded once, not twice

    return multiply


def product_in_int8(weight_OD: Tensor, scale_O: Tensor, bias_O: Tensor, epilogue: tuple[str, str]) -> Product:
    """By oneDNN, of values that are rounded each time."""
    laid_out, (name, variant) = torch.ops.onednn.qlinear_prepack(weight_OD, [ROWS, weight_OD.shape[1]]), epilogue
    weights = (laid_out, scale_O, torch.zeros_like(scale_O, dtype=torch.int32))  # where zero is: at 0
    output = (1.0, 0, torch.float32)
    activated, added = torch.ops.onednn.qlinear_pointwise.default, torch.ops.onednn.qlinear_pointwise.binary
    with warnings.catch_warnings(action="ignore"):  # see round_to_bytes
        round_to_bytes(torch.zeros(1, dtype=torch.float32, device=weight_OD.device))

    def multiply(value: Tensor, residual: Tensor | None = None) -> Tensor:
        if residual is None:
            return activated(*round_to_bytes(value), *weights, bias_O, *output, name, [], variant)
        return added(*round_to_bytes(value), *weights, residual, bias_O, *output, 1.0, 0, "add", 1.0, "none", [], "")

    return multiply


def round_to_bytes(value: Tensor) -> tuple[Tensor, float, int]:
    """Values rounded to bytes, and the scale and the zero that give them back: ``(bytes - zero) * scale``."""
    low, high = (float(edge) for edge in value.aminmax())
    if not math.isfinite(high - low):  # one scale for all of it: so all of it is no number
        return torch.zeros_like(value, dtype=torch.uint8), math.nan, 1
    low, high = min(low, 0.0), max(high, 0.0)
    levels = 255 if has_int8_products() else 127  # other CPUs add pairs of products up in 16 bits, which must fit
    scale = max((high - low) / levels, torch.finfo(torch.float32).tiny)
    zero = round(-low / scale)
    # It is about to go, and says so once; nothing else does it in one pass: a third of the time.
    rounded = torch.quantize_per_tensor(value.contiguous(), scale, zero, torch.quint8)
    memory = rounded.untyped_storage()  # int_repr copies it, slowly
    return value.new_empty(0, dtype=torch.uint8).set_(memory, 0, rounded.shape, rounded.stride()), scale, zero


def modules_below(module: nn.Module) -> list[nn.Module]:
    """Each that hangs below, from the top; ``modules`` takes several times as long, and this runs for every layer."""
    found = []
    for child in module._modules.values():
        if child is not None:
            found.append(child)
            if type(child) not in LEAVES:
                found += modules_below(child)
    return found


def tensors_of(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Weights, scales and biases of the linear layers among ``modules``."""
    linear = [each._parameters or each._buffers for each in modules if type(each) in LINEAR]
    return [value for values in linear for value in values.values() if value is not None]


def state_of(tensors: Iterable[Tensor]) -> list[int]:
    """What changes when values do: which tensors they are, where, how large, and how often they were written to.

    Not the tensors themselves: PyTorch swaps only those (``swap_tensors``) that nothing knows, not even weakly.
    """
    return [fact for value in tensors for fact in (id(value), value.data_ptr(), value.numel(), value._version)]


def sampled_places(tensors: Iterable[Tensor]) -> list[ctypes.c_uint64]:
    """8 bytes of each tensor's first values and of those in its middle, where these are; they keep no memory alive."""
    kept = [value for value in tensors if value.is_cpu and value.is_contiguous() and value.nbytes >= 16]
    starts = [value.data_ptr() + start for value in kept for start in (0, value.nbytes // 16 * 8)]
    return list(map(ctypes.c_uint64.from_address, starts))


def is_watched(module: nn.Module) -> bool:
    """Whether something would miss a call of ``module``, or has replaced it, or it is there for training."""
    own = module.__dict__  # to ask for attributes takes twice as long
    seen = own.get("_forward_hooks") or own.get("_forward_pre_hooks") or own.get("training")
    return bool(seen) or own.get("_compiled_call_impl") is not None or "forward" in own


# Not in the modules: copies and pickles of these need none.
LAID_OUT: WeakKeyDictionary[nn.Module, LaidOutLayer] = WeakKeyDictionary()


def lay_out(layer: nn.Module, dtype: torch.dtype) -> LaidOutLayer | None:
    """What computes as ``layer`` does; None if only ``layer`` itself can. Ask ``can_be_laid_out`` before."""
    modules, known = modules_below(layer), LAID_OUT.get(layer)
    watched = any(map(is_watched, (layer, *modules)))
    if known is not None and not watched and known.is_of(layer, modules, dtype):
        return known
    LAID_OUT.pop(layer, None)
    kinds = {type(module) for module in modules if type(module) in LINEAR}
    if watched or len(kinds) != 1 or not all(is_plain(module, dtype) for module in modules):
        return None
    keep_freed_memory()
    known = LAID_OUT[layer] = LaidOutLayer(layer, modules, dtype)
    return known


@cache
def keep_freed_memory() -> None:
    """Let the C library keep up to 64 MiB that are free, instead of giving back what each large result had.

    Taking that anew costs a page fault for every 4 KiB: a tenth of the time in int8 (docs/performance.md). glibc keeps
    what is below two limits, which otherwise follow what a program happens to free (mallopt(3)).
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # not glibc
            set_limit = ctypes.CDLL(None).mallopt
            set_limit(M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
            set_limit(M_TRIM_THRESHOLD, 64 << 20)


def is_plain(module: nn.Module, dtype: torch.dtype) -> bool:
    """Whether a module below a layer is as it was made, computes in ``dtype``, and has a layout if it needs one."""
    if type(module) not in (Container, *LEAVES):
        return False
    # Nobody counts how often tensors made in inference mode are written to, or what other processes write.
    if not all(
        type(value) in (Tensor, nn.Parameter) and not value.is_inference() and not value.is_shared()
        for value in tensors_of([module])
    ):
        return False
    if type(module) is Int8Linear:
        return dtype == torch.float32 and has_layout(torch.int8)
    if type(module) is nn.Linear:
        own = [module._parameters.get(name) for name in ("weight", "bias")]
        return has_layout(dtype) and all(value is not None and value.dtype == dtype for value in own)
    return True


def has_layout(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has a layout for weights of ``dtype`` on this CPU: MKL's, or oneDNN's."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.float32:  # "medium" asks for products in bfloat16, which MKL's are not
        return torch.backends.mkl.is_available() and torch.get_float32_matmul_precision() != "medium"
    return dtype in (torch.bfloat16, torch.int8) and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def can_be_laid_out(stack: nn.ModuleList, value: Tensor) -> bool:
    """Whether nobody looks on at how ``stack`` computes with ``value``, or may ask for a gradient."""
    if is_traced():
        return False
    if stack.training or torch.is_grad_enabled() or value.device.type != "cpu":
        forget_layouts(stack)
        return False
    return (
        value.numel() > 0
        and type(value) is Tensor
        and bool(torch.backends.mkldnn.enabled)
        and forward_ad._current_level < 0
        and all(kind.forward is forward for kind, forward in FORWARDS.items())
        and all(isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack())  # set_default_device
        and not torch.is_autocast_enabled("cpu")
        and _get_current_dispatch_mode() is None
        and not (global_hooks._global_forward_hooks or global_hooks._global_forward_pre_hooks)
    )


def forget_layouts(modules: Iterable[nn.Module]) -> None:
    """Lay the weights of the layers among ``modules`` out anew when they next run, whatever has happened to them."""
    for module in modules:
        LAID_OUT.pop(module, None)


def _forget_trained(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Fused optimisers write to parameters without counting it."""
    if LAID_OUT:
        trained = {id(value) for group in optimizer.param_groups for value in group["params"]}
        # Other threads may add to it meanwhile, or take away.
        layers = [layer for known in LAID_OUT.keyrefs() if (layer := known()) is not None]
        states = [(layer, laid_out.state) for layer in layers if (laid_out := LAID_OUT.get(layer)) is not None]
        forget_layouts([layer for layer, state in states if not trained.isdisjoint(state)])


register_optimizer_step_post_hook(_forget_trained)


def is_traced() -> bool:
    """Whether what runs becomes a graph, or is transformed, so that no shape may depend on values."""
    return (
        torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()  # vmap
    )
