"""Which frameworks are installed. Imports none of them."""

from __future__ import annotations

import importlib.util
import os

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


def require_backend(module: str, extra: str) -> None:
    """Say which extra to install where a framework is missing.

    Raises:
        MissingBackendError: ``module`` is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise MissingBackendError(f'{module} is not installed; try: pip install "distilbert[{extra}]"')
