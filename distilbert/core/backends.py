"""Which frameworks are installed. Imports none of them."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from pathlib import Path

from distilbert.core.errors import InputError, MissingBackendError

# By the name of the extra: what has to be installed, and our package for it. The first is the default.
BACKENDS = {
    "torch": ("torch", "distilbert.pt"),
    "tf": (os.environ.get("KERAS_BACKEND", "tensorflow"), "distilbert.tf"),  # which Keras runs on
    "flax": ("flax", "distilbert.flax"),
}


def choose_backend(extra: str | None = None) -> str:
    """Our package for a framework, by default (or ``"auto"``) for the first that is installed.

    Raises:
        InputError: none of ours.
        MissingBackendError: the framework, or any at all, is not installed.
    """
    extra = {"auto": None, "pt": "torch"}.get(extra or "auto", extra)
    if extra not in (None, *BACKENDS):
        raise InputError(f"backend is {extra!r}, expected auto, pt, tf or flax")
    for name, (module, package) in BACKENDS.items():
        if extra in (None, name) and importlib.util.find_spec(module) is not None:
            return package
    wanted = BACKENDS[extra][0] if extra else " or ".join(module for module, _ in BACKENDS.values())
    raise MissingBackendError(f'{wanted} is not installed; try: pip install "distilbert[{extra or "torch"}]"')


def installed() -> list[str]:
    """The extras whose frameworks are there."""
    return [name for name, (module, _) in BACKENDS.items() if importlib.util.find_spec(module) is not None]


def require_backend(module: str, extra: str) -> None:
    """Say which extra to install where a framework is missing.

    Raises:
        MissingBackendError: ``module`` is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise MissingBackendError(f'{module} is not installed; try: pip install "distilbert[{extra}]"')


def has_bfloat16_products() -> bool:
    """Whether this machine's CPU multiplies matrices of bfloat16 itself: faster than those of float32, not slower."""
    return bool(cpu_features() & {"amx_bf16", "avx512_bf16", "bf16"})


def has_int8_products() -> bool:
    """Whether this machine's CPU adds up products of 8 bits in 32, where others have to make do with 7 bits."""
    return bool(cpu_features() & {"amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp"})


@functools.cache
def cpu_features() -> frozenset[str]:
    """What this machine's CPU can do, in Linux's words; nothing is known elsewhere."""
    try:
        known = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        return frozenset()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", known, re.MULTILINE)
    return frozenset(found[1].split() if found else ())
