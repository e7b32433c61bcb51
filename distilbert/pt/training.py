"""Training: what a step computes, and PyTorch's own optimiser, alone or on several processes (``torchrun``).

B batch, L length, D model, N places in a batch where words are scored, V vocabulary.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from distilbert.core.errors import CheckpointError, ConfigError, InputError
from distilbert.core.spec import is_decayed
from distilbert.distillation.recipe import TEACHER, Recipe, TaskRecipe
from distilbert.pt import losses
from distilbert.pt.inference import InferenceModel, load
from distilbert.pt.loading import DTYPES, parse_device
from distilbert.pt.model import PreTrainedModel

if TYPE_CHECKING:
    from distilbert.training.run import Run
    from distilbert.training.settings import Settings
    from distilbert.training.steps import Part

STATE_FILE = "state.pt"
TINY = 1e-12

Arrays = Mapping[str, Tensor]
Shares = Mapping[str, float]
Losses = dict[str, Tensor]


class TokenDistillation(nn.Module):
    """The losses of a masked LM, alone or beside a teacher (Sanh et al. 2019, section 3).

    The vocabulary is scored at the places of a batch that a loss looks at, and nowhere else.
    """

    def __init__(self, student: PreTrainedModel, recipe: Recipe, teacher: PreTrainedModel | None = None) -> None:
        super().__init__()
        self.student, self.recipe = student, recipe
        self.teachers = () if teacher is None else (teacher,)  # in a tuple: neither trained nor saved

    def forward(self, arrays: Arrays, shares: Shares) -> Losses:
        """Each loss, weighed by its share, and their sum ``loss``; the arrays are those of ``MaskedTexts``."""
        recipe = self.recipe
        is_place = arrays["positions"] >= 0
        at = is_place.nonzero(as_tuple=True)[0], arrays["positions"][is_place]
        hidden_BLD = encode(self.student, arrays)
        logits_NV = self.student.score_words(hidden_BLD[at])  # type: ignore[operator]
        found = {"masked_lm": shares["masked"] * losses.token_loss(logits_NV, arrays["labels"][is_place])}
        total = recipe.masked_lm_weight * found["masked_lm"]
        for teacher in self.teachers:
            with torch.no_grad():
                taught_BLD = encode(teacher, arrays)
                taught_NV = teacher.score_words(taught_BLD[at])  # type: ignore[operator]
            everywhere = torch.ones_like(at[0])
            divergence = losses.distillation_loss(logits_NV, taught_NV, everywhere, recipe.temperature)
            found["distillation"] = shares["places"] * divergence
            total = total + recipe.distillation_weight * found["distillation"]
            for name, weight, compare in (
                ("cosine", recipe.cosine_weight, losses.cosine_loss),
                ("hidden_state", recipe.hidden_state_weight, losses.hidden_state_loss),
            ):
                if weight:
                    mask = arrays.get("attention_mask", torch.ones_like(arrays["input_ids"]))
                    found[name] = shares["tokens"] * compare(hidden_BLD, taught_BLD, mask)
                    total = total + weight * found[name]
        return {"loss": total, **found}


def encode(model: PreTrainedModel, arrays: Arrays) -> Tensor:
    """The last hidden states (B, L, D)."""
    return model.base_model(arrays["input_ids"], arrays.get("attention_mask"), return_dict=True).last_hidden_state


class Finetuning(nn.Module):
    """The loss of a head, alone or mixed with what a teacher answered."""

    def __init__(self, student: PreTrainedModel, recipe: TaskRecipe) -> None:
        super().__init__()
        self.student, self.recipe = student, recipe

    def forward(self, arrays: Arrays, shares: Shares) -> Losses:
        """Each loss, weighed by its share, and their mix ``loss``; the arrays are those of ``Examples``."""
        taught = {name.removeprefix(TEACHER): value for name, value in arrays.items() if name.startswith(TEACHER)}
        inputs = {name: value for name, value in arrays.items() if not name.startswith(TEACHER)}
        mask = inputs.pop("soft_mask", None)
        output = self.student(**inputs, return_dict=True)
        if mask is None:
            return {"loss": shares["hard"] * output.loss}
        hard = shares["hard"] / max(shares["soft"], TINY) * output.loss
        logits = [output[name] for name in taught]
        recipe = self.recipe
        mixed = losses.task_distillation_loss(
            logits, list(taught.values()), mask, hard, recipe.temperature, recipe.alpha
        )
        return {"loss": shares["soft"] * mixed, "hard": shares["hard"] * output.loss}


class Trainer:
    """A model, and what changes it.

    Under ``torchrun`` every process has a share of each batch. Gradients are those of one process with the whole batch,
    and so are the losses it reports.

    Args:
        head: the spec's name for what to train.
        name_or_path: a folder, or a Hub id.
        settings: how.
        recipe: of the losses: a ``Recipe`` for masked LMs, a ``TaskRecipe`` for all others.
        teacher: of a masked LM, whom to learn from.
        device: for example ``"cpu"``, ``"cuda:1"`` or ``"auto"``.
        overrides: config fields.

    Raises:
        CheckpointError: the checkpoint is absent, damaged, or does not fit the config.
        ConfigError: settings of another framework.
        InputError: a role to freeze that the model has not.
    """

    def __init__(
        self,
        head: str,
        name_or_path: str | Path,
        settings: Settings,
        recipe: Recipe | TaskRecipe,
        *,
        teacher: str | Path | None = None,
        device: str | None = "auto",
        **overrides: Any,
    ) -> None:
        if settings.model_parallel > 1:
            raise ConfigError("model_parallel is for Flax; PyTorch splits a model with sharded")
        self.settings = settings
        self.rank, self.world_size = join_processes(device)
        self.parts = self.world_size * settings.accumulation
        self.is_primary = self.rank == 0
        if device == "auto" and torch.accelerator.is_available() and self.world_size > 1:
            device = f"{torch.accelerator.current_accelerator()}:{os.environ.get('LOCAL_RANK', 0)}"
        self.device = parse_device(device)
        torch.manual_seed(settings.seed)  # of a new head
        self.model: PreTrainedModel = load(
            head, name_or_path, device=self.device, ignore_mismatched_sizes=True, **overrides
        )
        if settings.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()
        limit = self.model.config.max_position_embeddings
        self.buckets = (*range(8, limit, 8), limit)
        self.freeze(settings.freeze)
        if isinstance(recipe, TaskRecipe):
            self.objective: nn.Module = Finetuning(self.model, recipe)
        else:
            dtype = settings.dtype if self.device.type != "cpu" else None
            taught = None if teacher is None else load("masked-lm", teacher, device=self.device, dtype=dtype)
            self.objective = TokenDistillation(self.model, recipe, taught)
        self.module = self.spread(self.objective)
        self.optimizer = self.make_optimizer()

    def freeze(self, roles: Sequence[str]) -> None:
        """Exclude parameters from training, by their role in the spec.

        Raises:
            InputError: the model has no such role.
        """
        listed = self.model.parameter_list()
        if unknown := set(roles) - {row.role for row in listed}:
            known = ", ".join(dict.fromkeys(row.role for row in listed))
            raise InputError(f"freeze: no {', '.join(sorted(unknown))} among the model's roles: {known}")
        for row in listed:
            if row.role in roles:
                self.model.get_parameter(row.name).requires_grad = False

    def spread(self, objective: nn.Module) -> nn.Module:
        """The objective, over several processes where there are some."""
        if self.world_size == 1:
            return objective
        if self.settings.sharded:
            from torch.distributed.fsdp import fully_shard

            for layer in self.model.base_model.layers():  # type: ignore[operator]
                fully_shard(layer)
            return fully_shard(objective)  # type: ignore[return-value]
        return nn.parallel.DistributedDataParallel(
            objective, device_ids=None if self.device.type == "cpu" else [self.device]
        )

    def make_optimizer(self) -> torch.optim.AdamW:
        """AdamW, with weight decay where the spec says."""
        settings = self.settings
        groups: dict[bool, list[Tensor]] = {True: [], False: []}
        for row in self.model.parameter_list():
            value = self.model.get_parameter(row.name)
            if row.tied_to is None and value.requires_grad:
                groups[is_decayed(row)].append(value)
        return torch.optim.AdamW(
            [
                {"params": values, "weight_decay": settings.weight_decay if decayed else 0.0}
                for decayed, values in groups.items()
            ],
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            fused=True,
        )

    def train(self, run: Run) -> None:
        """Take the run's steps."""
        for step in run.steps():
            rate = self.settings.rate(step.number, len(run.all_steps))
            if not run.after_step(self.update(step.number, step.parts, rate)):
                break

    def update(self, number: int, parts: Sequence[Part], rate: float) -> Losses:
        """One step of the optimiser; the losses are those of all processes, before it."""
        self.model.train()
        own = range(self.rank, len(parts), self.world_size)
        totals: Losses = {}
        for index in own:
            # What dropout does follows from the step and the part: a resumed run does the same.
            torch.manual_seed(int(np.random.SeedSequence([self.settings.seed, number, index]).generate_state(1)[0]))
            with self.synchronizing(index == own[-1]):
                found = self.losses(parts[index])
                (found["loss"] * self.world_size).backward()  # several processes take the mean of their gradients
            totals = {name: value.detach() + totals.get(name, 0) for name, value in found.items()}
        trained = [value for group in self.optimizer.param_groups for value in group["params"]]
        norm = nn.utils.clip_grad_norm_(trained, self.settings.max_gradient_norm or math.inf)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {**self.summed(totals), "gradient_norm": whole(norm)}

    def losses(self, part: Part) -> Losses:
        """Those of a part of a batch."""
        tensors = {
            name: torch.from_numpy(value).to(self.device, non_blocking=True)
            for name, value in part.arrays.items()
            # Without a mask attention has a faster kernel.
            if not (name == "attention_mask" and value.all())
        }
        with torch.autocast(self.device.type, DTYPES[self.settings.dtype], self.settings.dtype != "float32"):
            return self.module(tensors, part.shares)

    @torch.no_grad()
    def evaluate(self, parts: Sequence[Part]) -> dict[str, float]:
        """The losses of a whole batch, in evaluation mode."""
        self.model.eval()
        totals: Losses = {}
        for part in parts[self.rank :: self.world_size]:
            totals = {name: value + totals.get(name, 0) for name, value in self.losses(part).items()}
        return {name: float(value) for name, value in self.summed(totals).items()}

    def synchronizing(self, is_last: bool) -> AbstractContextManager[None]:
        """Whether gradients are shared with other processes after what follows."""
        if isinstance(self.module, nn.parallel.DistributedDataParallel):
            return nullcontext() if is_last else self.module.no_sync()
        if self.world_size > 1:
            self.module.set_requires_gradient_sync(is_last)  # type: ignore[operator]
        return nullcontext()

    def summed(self, values: Losses) -> Losses:
        """Scalars, summed over the processes."""
        if self.world_size == 1:
            return values
        stacked = torch.stack(list(values.values()))
        dist.all_reduce(stacked)
        return dict(zip(values, stacked.unbind(), strict=True))

    def inference(self) -> InferenceModel:
        """The model as it is now, for pipelines."""
        if not (self.settings.sharded and self.world_size > 1):
            return InferenceModel(self.model)
        model = type(self.model)(self.model.config).to(self.device)
        model.load_state_dict(self.values())
        return InferenceModel(model)

    def values(self) -> dict[str, Tensor]:
        """The parameters, whole on this process, by canonical name."""
        return {name: whole(value) for name, value in self.model.state_dict().items()}

    def save_model(self, folder: Path) -> None:
        """Write a checkpoint."""
        values = self.values()
        if self.is_primary:
            self.model.save_pretrained(folder, state_dict=values)

    def save_state(self, folder: Path) -> None:
        """Write parameters and the optimiser's state: what a step draws at random follows from its number."""
        stored = self.optimizer.state_dict()
        state = {
            number: {name: whole(value).cpu() for name, value in values.items()}
            for number, values in stored["state"].items()
        }
        model = {name: value.cpu() for name, value in self.values().items()}
        if self.is_primary:
            torch.save({"model": model, "optimizer": state}, folder / STATE_FILE)

    @torch.no_grad()
    def load_state(self, folder: Path) -> None:
        """The reverse of ``save_state``; the number of processes may be another.

        Raises:
            CheckpointError: the file is damaged, or of another model.
        """
        path = folder / STATE_FILE
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
            for name, value in self.model.state_dict(keep_vars=True).items():
                value.copy_(spread_like(value, stored["model"][name]))
            own = self.optimizer.state_dict()
            trained = [value for group in self.optimizer.param_groups for value in group["params"]]
            state = {
                number: {
                    name: spread_like(trained[number], value) if value.dim() else value
                    for name, value in stored["optimizer"][number].items()
                }
                for number in range(len(trained))
                if number in stored["optimizer"]
            }
            self.optimizer.load_state_dict({**own, "state": state})
        except Exception as error:  # what a damaged file ends in is the unpickler's affair
            raise CheckpointError(f"{path}: is no state of this model: {error}".split("\n")[0]) from error


def join_processes(device: str | None) -> tuple[int, int]:
    """Join the processes that ``torchrun`` started, if it did; returns this one's number, and how many there are."""
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count > 1 and not dist.is_initialized():
        is_on_gpu = device != "cpu" and torch.cuda.is_available()
        if is_on_gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        dist.init_process_group("nccl" if is_on_gpu else "gloo")
    return (dist.get_rank(), dist.get_world_size()) if count > 1 else (0, 1)


def whole(value: Tensor) -> Tensor:
    """All of a tensor that may be spread over processes."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value.detach()


def spread_like(parameter: Tensor, value: Tensor) -> Tensor:
    """A whole tensor, spread over processes and devices as a parameter is."""
    if not hasattr(parameter, "device_mesh"):
        return value.to(parameter.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)  # type: ignore[attr-defined]
