"""How to train: everything that is the same in every framework."""

from __future__ import annotations

from dataclasses import dataclass, fields

from distilbert.core.errors import ConfigError

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Settings:
    """The optimiser, its schedule, and what happens on the way.

    Args:
        epochs: times that all sequences are seen.
        max_steps: stop after so many updates instead.
        batch_size: sequences that an update is made of, on all devices together.
        max_tokens: in place of ``batch_size``: tokens, once padded.
        accumulation: parts that each device takes its share of a batch in, one after the other, to spare memory.
        learning_rate: the highest.
        warmup: share of the steps in which it rises linearly to that, before it falls linearly to 0.
        weight_decay: of weights and embeddings, but of no bias and no norm (AdamW, Loshchilov and Hutter 2019).
        beta1: of AdamW, for the mean of gradients.
        beta2: of AdamW, for the mean of their squares.
        epsilon: of AdamW.
        max_gradient_norm: longer gradients are shortened to this; 0 leaves them.
        dtype: what to compute in, ``"float32"`` or ``"bfloat16"``; parameters and optimiser stay float32.
        gradient_checkpointing: compute layers twice, to spare the memory of what is inside them.
        freeze: roles of ``core/spec.py`` that are not trained, such as ``"words"`` or ``"positions"``.
        seed: of the order, the masks, dropout and new heads.
        evaluate_every: steps between evaluations; by default one each epoch.
        patience: stop after so many evaluations without a better one; by default never.
        save_every: steps between checkpoints to go on from.
        log_every: steps between lines of the log.
        sharded: PyTorch on several processes splits parameters, gradients and optimiser among them (FSDP2).
        model_parallel: of JAX's devices, how many share the parameters of one model, as ``core/spec.py`` splits them.

    Raises:
        ConfigError: a value out of range.
    """

    epochs: float = 3.0
    max_steps: int | None = None
    batch_size: int | None = 32
    max_tokens: int | None = None
    accumulation: int = 1
    learning_rate: float = 5e-5
    warmup: float = 0.05
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    max_gradient_norm: float = 1.0
    dtype: str = "float32"
    gradient_checkpointing: bool = False
    freeze: tuple[str, ...] = ()
    seed: int = 0
    evaluate_every: int | None = None
    patience: int | None = None
    save_every: int = 500
    log_every: int = 10
    sharded: bool = False
    model_parallel: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and not value >= 0:
                raise ConfigError(f"{field.name} is {value}, expected at least 0")
        least_one = ("max_steps", "batch_size", "max_tokens", "accumulation", "evaluate_every", "patience")
        for name in (*least_one, "save_every", "log_every", "model_parallel"):
            if getattr(self, name) == 0:
                raise ConfigError(f"{name} is 0, expected at least 1")
        if self.epochs == 0 and self.max_steps is None:
            raise ConfigError("epochs is 0, expected more")
        if (self.batch_size is None) == (self.max_tokens is None):
            raise ConfigError("expected either batch_size or max_tokens")
        for name in ("warmup", "beta1", "beta2"):
            if getattr(self, name) >= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected below 1")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype is {self.dtype!r}, expected {' or '.join(DTYPES)}")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of update ``step``, from 0, of ``steps``.

        It is never 0: the first update has a share of the rise, the last one a share of the fall.
        """
        warmup = int(self.warmup * steps)
        if step < warmup:
            return self.learning_rate * (step + 1) / (warmup + 1)
        return self.learning_rate * (steps - step) / (steps - warmup)
