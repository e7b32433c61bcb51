"""Between numpy arrays under canonical names and the parameters of a PyTorch model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from distilbert.core.errors import InputError
from distilbert.core.formats import forget
from distilbert.pt.parameters import initialize, replace_value, tie

if TYPE_CHECKING:
    from distilbert.pt.model import PreTrainedModel

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


def fill(model: PreTrainedModel, tensors: Mapping[str, np.ndarray], dtype: torch.dtype, device: torch.device) -> None:
    """Give a model made on the meta device its values: the checkpoint's, or initial ones where it has none."""
    listed, more = model.parameter_list(), own_ties(model)
    extras = tensors.keys() - {parameter.name for parameter in listed}
    for parameter in listed:
        if parameter.tied_to is not None:
            continue
        if parameter.name in tensors:
            value = to_tensor(tensors[parameter.name]).to(device, dtype)
            forget(tensors[parameter.name])
        else:
            value = torch.empty(parameter.shape, dtype=dtype, device=device)
            initialize(value, parameter, model.config)
        replace_value(model, parameter.name, value)
    tie(model, listed, more)
    model.load_state_dict({name: to_tensor(tensors[name]) for name in extras}, strict=False)
    model.to(device, dtype)


def extra_tensors(model: PreTrainedModel, state_dict: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """What the state dict of a user's own subclass, or of a model that got further modules, has besides the spec's."""
    known = {parameter.name for parameter in model.parameter_list()} | own_ties(model).keys()
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor) and name not in known}
    return own if state_dict is None else {name: state_dict[name] for name in own if name in state_dict}


def own_ties(model: PreTrainedModel) -> dict[str, str]:
    """Other names that a user's own subclass has for the spec's parameters, with the spec's."""
    named = dict(model.named_parameters(remove_duplicate=False))
    listed = [parameter.name for parameter in model.parameter_list() if parameter.name in named]
    names = {id(named[name]): name for name in reversed(listed)}
    return {name: names[id(value)] for name, value in named.items() if id(value) in names and name not in listed}


def to_arrays(model: PreTrainedModel, state_dict: Mapping[str, Tensor] | None = None) -> dict[str, np.ndarray]:
    """A model's values, or those of a state dict of it, by canonical name; tied ones once.

    Raises:
        InputError: the state dict lacks a parameter of the model.
    """
    state_dict = model.state_dict() if state_dict is None else state_dict
    own = [parameter.name for parameter in model.parameter_list() if parameter.tied_to is None]
    absent = [name for name in own if name not in state_dict]
    if absent:
        raise InputError(f"the state dict to save lacks {', '.join(absent[:20])}")
    return {name: to_array(state_dict[name]) for name in own}


def to_tensor(array: np.ndarray) -> Tensor:
    """A copy of an array as a tensor of the same type; bfloat16, which numpy lacks, included."""
    copied = np.array(array, order="C")
    if copied.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(copied.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(copied)


def to_array(tensor: Tensor) -> np.ndarray:
    """A tensor's values on the CPU as an array of the same type, shared where they are there already."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def parse_dtype(dtype: str | torch.dtype | None, tensors: Mapping[str, np.ndarray]) -> torch.dtype:
    """The type to load in: float32 unless asked; ``"auto"`` is the type that the checkpoint stores.

    Raises:
        InputError: not one of the types a model can have.
    """
    if dtype is None:
        return torch.float32
    if dtype == "auto":
        dtype = next((array.dtype.name for array in tensors.values()), "float32")
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise InputError(f"dtype is {name!r}, expected auto or one of {', '.join(DTYPES)}")
    return DTYPES[name]


def parse_device(device: Any) -> torch.device:
    """The one device that ``device`` or ``device_map`` names.

    Raises:
        InputError: not a device, one this machine lacks, or a map over several.
    """
    if isinstance(device, Mapping):
        if set(device) != {""}:
            raise InputError(f"device_map is {dict(device)!r}, expected one device for the whole model")
        device = device[""]
    if device is None:
        return torch.device("cpu")
    if device == "auto":
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    try:
        parsed = torch.device(device)
        torch.empty(0, device=parsed)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device is {device!r}, which PyTorch cannot use here: {reason}") from None
    return parsed
