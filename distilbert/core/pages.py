"""Pages of HTML from templates that lie in the package."""

from __future__ import annotations

from importlib import resources
from typing import Any


def render(package: str, name: str, /, **values: Any) -> str:
    """The template ``name`` of a package of ours with ``values``, which are escaped unless it says otherwise."""
    import jinja2  # slow to import, which every command would pay for

    template = resources.files(package).joinpath(name).read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(**values)
