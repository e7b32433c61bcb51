"""Native modules and initial values for the rows of the spec."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import nn

from distilbert.core.config import Config
from distilbert.core.errors import InputError
from distilbert.core.spec import Kind, Parameter, constant, padding_row, sinusoidal_positions, standard_deviation

# What PyTorch's own modules call the two dimensions of their weight.
SIZES = {nn.Linear: ("out_features", "in_features"), nn.Embedding: ("num_embeddings", "embedding_dim")}


class Container(nn.Module):
    """What hangs between a module and its parts, such as ``attention``; like ``nn.ModuleList`` it is never called."""

    def __setattr__(self, name: str, value: Any) -> None:
        old = self.__dict__.get("_modules", {}).get(name)
        if type(old) is Container and isinstance(value, nn.Module) and type(value).forward is not nn.Module.forward:
            held = ", ".join(f"{name}.{part}" for part in old._modules)
            raise InputError(f"{name} only holds its parts and is never called: replace {held}, or what it hangs on")
        super().__setattr__(name, value)


class FromSpec(Container):
    """A module whose parts are made from rows of the spec, and are called by their role.

    The parts hang at the paths of the spec, so the state dict's keys are the canonical names; what runs is
    whatever part hangs there, so tools that replace modules (LoRA, quantisation) work as usual.
    """

    def __init__(self) -> None:
        super().__init__()
        self.paths: dict[str, str] = {}

    def add_parts(self, listed: Iterable[Parameter], config: Config) -> None:
        """Make the modules of the rows ``listed``, with initial values."""
        for path, group in groupby(listed, key=lambda parameter: parameter.path):
            rows = tuple(group)
            self.paths[rows[0].role] = path
            part = make_part(rows, config)
            attach(self, path, part)
            for row in rows:
                if row.file_path is not None:
                    leaf = row.name.rpartition(".")[2]
                    self.get_submodule(row.file_path).register_parameter(leaf, part.get_parameter(leaf))

    def part(self, role: str) -> nn.Module:
        """The module that plays ``role``, for example ``"query"``."""
        return reduce(getattr, self.paths[role].split("."), self)  # as get_submodule, in half the time


def attach(root: nn.Module, path: str, module: nn.Module) -> None:
    """Hang ``module`` at a dotted path below ``root``; what is missing on the way is made."""
    parts = path.split(".")
    for name, below in pairwise(parts):
        if name not in root._modules:
            root.add_module(name, nn.ModuleList() if below.isdecimal() else Container())
        root = root.get_submodule(name)
    root.add_module(parts[-1], module)


def make_part(rows: tuple[Parameter, ...], config: Config) -> nn.Module:
    """PyTorch's own module for one row's parameters, with its initial values.

    Not by ``skip_init``: on the meta device that imports PyTorch's compiler and SymPy, which takes two seconds.
    """
    kind, shape = rows[0].kind, rows[0].shape
    part: nn.Module
    if kind is Kind.WEIGHT:
        part = nn.Linear(shape[1], shape[0], device="meta")
        if (device := torch.get_default_device()).type != "meta":
            part.to_empty(device=device)
    elif kind is Kind.NORM_SCALE:
        part = nn.LayerNorm(shape, eps=config.layer_norm_eps)
    else:
        padding_idx = padding_row(rows[0], config)
        part = nn.Embedding.from_pretrained(torch.empty(shape), freeze=False, padding_idx=padding_idx)
    for row in rows:
        value = part.get_parameter(row.name.rpartition(".")[2])
        value.requires_grad = row.kind is not Kind.SINUSOID
        initialize(value, row, config)
    return part


@torch.no_grad()
def initialize(value: torch.Tensor, parameter: Parameter, config: Config) -> None:
    """Fill ``value`` in place with the values that the spec gives a new ``parameter``."""
    if value.is_meta:
        return
    if parameter.kind is Kind.SINUSOID:
        value.copy_(torch.from_numpy(sinusoidal_positions(*parameter.shape)))
    elif spread := standard_deviation(parameter, config):
        value.normal_(constant(parameter), spread)
    else:
        value.fill_(constant(parameter))
    if (row := padding_row(parameter, config)) is not None:
        value[row] = 0


def replace_value(root: nn.Module, name: str, value: torch.Tensor) -> None:
    """Put ``value`` in the place of the parameter called ``name``; sizes and ``requires_grad`` follow."""
    path, _, leaf = name.rpartition(".")
    part = root.get_submodule(path)
    put_value(part, leaf, nn.Parameter(value, requires_grad=part.get_parameter(leaf).requires_grad))


def put_value(part: nn.Module, leaf: str, value: nn.Parameter) -> None:
    """Make ``value`` the parameter called ``leaf`` of a module, whose sizes follow."""
    setattr(part, leaf, value)
    if value.dim() == 2 and type(part) in SIZES:
        for attribute, size in zip(SIZES[type(part)], value.shape, strict=True):
            setattr(part, attribute, size)


def tie(root: nn.Module, listed: Iterable[Parameter], more: Mapping[str, str] | None = None) -> None:
    """Make each tied parameter of ``listed``, and those that ``more`` names, the very object it is tied to."""
    ties = {parameter.name: parameter.tied_to for parameter in listed if parameter.tied_to is not None}
    for name, other in {**ties, **(more or {})}.items():
        path, _, leaf = name.rpartition(".")
        put_value(root.get_submodule(path), leaf, root.get_parameter(other))
