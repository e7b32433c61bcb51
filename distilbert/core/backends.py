"""Which frameworks are installed. Imports none of them."""

from __future__ import annotations

import importlib.util

from distilbert.core.errors import MissingBackendError


def require_backend(module: str, extra: str) -> None:
    """Say which extra to install where a framework is missing.

    Raises:
        MissingBackendError: ``module`` is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise MissingBackendError(f'{module} is not installed; try: pip install "distilbert[{extra}]"')
