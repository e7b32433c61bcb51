"""What every model returns, in every framework."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

FIELDS = (
    *("loss", "logits", "prediction_logits", "seq_relationship_logits", "start_logits", "end_logits"),
    *("last_hidden_state", "pooler_output", "hidden_states", "attentions"),
)

OF_TEXTS = ("pooler_output", "seq_relationship_logits", "loss")
HEADS_OF_TEXTS = ("sequence-classification", "multiple-choice", "next-sentence")


def is_per_token(name: str, head: str) -> bool:
    """Whether the output ``name`` of a model with that head has an axis of tokens: (B, L, …), not (B, …)."""
    return name not in OF_TEXTS and head not in HEADS_OF_TEXTS


class ModelOutput(dict[str, Any]):
    """A mapping whose values are also attributes and, counted without the absent ones, a tuple.

    ``output.logits``, ``output["logits"]`` and ``output[0]`` are the same thing (``output[1]`` where a loss
    comes first). Fields that a call did not produce are absent from the mapping and None as attributes.
    """

    def __init__(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **named: Any) -> None:
        super().__init__({name: value for name, value in dict(values, **named).items() if value is not None})

    def __getattr__(self, name: str) -> Any:
        if name in FIELDS:
            return self.get(name)
        raise AttributeError(f"ModelOutput has no field {name!r}, only {', '.join(self)}")

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __reduce__(self) -> tuple[Any, ...]:
        return (_restore, (dict(self),))

    def to_tuple(self) -> tuple[Any, ...]:
        """The values in order, without the absent ones."""
        return tuple(self.values())


def flatten(output: Mapping[str, Any]) -> dict[str, Any]:
    """One entry for each tensor: those of ``hidden_states`` become ``hidden_states/0``, ``hidden_states/1``, …"""
    flat: dict[str, Any] = {}
    for name, value in output.items():
        flat |= (
            {f"{name}/{number}": part for number, part in enumerate(value)}
            if isinstance(value, tuple)
            else {name: value}
        )
    return flat


def _restore(values: dict[str, Any]) -> ModelOutput:
    return ModelOutput(**values)


@cache
def register(register_node: Callable[..., None]) -> None:
    """Let a framework look inside an output, once, whichever of its users asks first.

    Args:
        register_node: the framework's function, of a class, from it to (values, names), and the reverse.
    """
    register_node(
        ModelOutput,
        lambda output: (tuple(output.values()), tuple(output)),
        _from_parts,
    )


@cache
def register_with_keys(register_node: Callable[..., None], key: Callable[[str], Any]) -> None:
    """As ``register``, for a framework that also names the values in its messages.

    Args:
        register_node: the framework's function, of a class, from it to (keys and values, names), and the reverse.
        key: what the framework calls a value by.
    """
    register_node(
        ModelOutput,
        lambda output: (tuple((key(name), value) for name, value in output.items()), tuple(output)),
        _from_parts,
    )


def _from_parts(names: tuple[str, ...], values: Iterable[Any]) -> ModelOutput:
    return ModelOutput(zip(names, values, strict=True))
