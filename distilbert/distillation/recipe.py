"""The numbers of the published distillation."""

from __future__ import annotations

from dataclasses import dataclass, fields

from distilbert.core.errors import ConfigError

TEACHER = "teacher/"  # begins the names of arrays that a teacher answered


@dataclass(frozen=True)
class Recipe:
    """How the losses are weighed and tokens are masked.

    The defaults are those of the run that made distilbert-base-uncased, by the command its authors published: 5 for the
    soft targets, 2 for the masked LM, 1 for the cosine, and temperature 2. The 0.33s that the paper's prose leads to
    are not what was run. The hidden states' squared error was no part of that run, hence 0.

    Args:
        distillation_weight: of ``distillation_loss``.
        masked_lm_weight: of ``token_loss`` on masked tokens.
        cosine_weight: of ``cosine_loss`` on the last hidden states.
        hidden_state_weight: of ``hidden_state_loss``.
        temperature: divides the logits of ``distillation_loss`` (Hinton et al. 2015, section 2).
        mask_probability: share of ordinary tokens to predict (Devlin et al. 2019, section 3.1).
        mask_share: of those, how many the model sees as ``[MASK]``.
        random_share: of those, how many it sees as another token; it sees the rest as they are.
        smoothing: a token is chosen with a probability proportional to its count to the power of minus this
            (Conneau and Lample 2019, section 3.1, who take the square root; the published run took 0.7).
        masked_only: take ``distillation_loss`` at the tokens to predict only, and so spare the vocabulary's logits at
            all others; the published run took all tokens (docs/distillation.md compares).

    Raises:
        ConfigError: a negative number, a temperature of 0, or shares above 1.
    """

    distillation_weight: float = 5.0
    masked_lm_weight: float = 2.0
    cosine_weight: float = 1.0
    hidden_state_weight: float = 0.0
    temperature: float = 2.0
    mask_probability: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    smoothing: float = 0.7
    masked_only: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) >= 0:  # NaN as well
                raise ConfigError(f"{field.name} is {getattr(self, field.name)}, expected at least 0")
        if not self.temperature:
            raise ConfigError("temperature is 0, expected more")
        for names in (("mask_probability",), ("mask_share", "random_share")):
            if sum(getattr(self, name) for name in names) > 1:
                raise ConfigError(f"{' and '.join(names)} exceed 1, expected shares")


@dataclass(frozen=True)
class TaskRecipe:
    """How a teacher's answers to a task are mixed with the labels.

    Args:
        alpha: the share of the teacher's answers in the loss; the rest is the labels'.
        temperature: divides the logits of both (Hinton et al. 2015, section 2).

    Raises:
        ConfigError: a share outside of 0 to 1, or a temperature that is not above 0.
    """

    alpha: float = 0.5
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha is {self.alpha}, expected 0 to 1")
        if not self.temperature > 0:
            raise ConfigError(f"temperature is {self.temperature}, expected above 0")
