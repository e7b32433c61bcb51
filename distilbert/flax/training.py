"""Training: what a step computes, and optax's optimiser, on one device or on a mesh of all.

B batch, L length, D model, K places in a row where words are scored, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.experimental import multihost_utils

from distilbert.core.errors import CheckpointError, ConfigError, InputError
from distilbert.core.formats.flax_msgpack import unflatten
from distilbert.core.spec import FLAX, is_decayed
from distilbert.distillation.recipe import TEACHER, Recipe, TaskRecipe
from distilbert.flax import losses
from distilbert.flax.inference import LENGTHS, InferenceModel, load, parse_device
from distilbert.flax.model import Params, PreTrainedModel

if TYPE_CHECKING:
    from distilbert.training.run import Run
    from distilbert.training.settings import Settings
    from distilbert.training.steps import Part

STATE_FOLDER = "state"
TINY = 1e-12
# What makes rows that are added count for nothing.
FILLERS = {"positions": -1, "labels": losses.IGNORED, "start_positions": 1 << 30, "end_positions": 1 << 30}

Arrays = Mapping[str, jax.Array]
Shares = Mapping[str, jax.Array]
Losses = dict[str, jax.Array]


class TokenDistillation:
    """The losses of a masked LM, alone or beside a teacher (Sanh et al. 2019, section 3).

    The vocabulary is scored at the places of a batch that a loss looks at, and nowhere else.
    """

    def __init__(self, student: PreTrainedModel, recipe: Recipe, teacher: PreTrainedModel | None = None) -> None:
        self.student, self.recipe = student, recipe
        self.teachers = () if teacher is None else (teacher,)

    def __call__(self, params: Params, taught: Params, arrays: Arrays, shares: Shares, key: Any) -> Losses:
        """Each loss, weighed by its share, and their sum ``loss``; the arrays are those of ``MaskedTexts``."""
        recipe, student = self.recipe, self.student.with_params(params)
        is_place = arrays["positions"] >= 0
        at_BK1 = jnp.maximum(arrays["positions"], 0)[..., None]
        hidden_BLD = encode(student, arrays, key)
        logits_BKV = student.score_words(jnp.take_along_axis(hidden_BLD, at_BK1, 1))  # type: ignore[attr-defined]
        found = {"masked_lm": shares["masked"] * losses.token_loss(logits_BKV, arrays["labels"])}
        total = recipe.masked_lm_weight * found["masked_lm"]
        for model in self.teachers:
            teacher = model.with_params(taught)
            taught_BLD = encode(teacher, arrays)
            taught_BKV = teacher.score_words(jnp.take_along_axis(taught_BLD, at_BK1, 1))  # type: ignore[attr-defined]
            taught_BLD, taught_BKV = jax.lax.stop_gradient((taught_BLD, taught_BKV))
            divergence = losses.distillation_loss(logits_BKV, taught_BKV, is_place, recipe.temperature)
            found["distillation"] = shares["places"] * divergence
            total = total + recipe.distillation_weight * found["distillation"]
            for name, weight, compare in (
                ("cosine", recipe.cosine_weight, losses.cosine_loss),
                ("hidden_state", recipe.hidden_state_weight, losses.hidden_state_loss),
            ):
                if weight:
                    found[name] = shares["tokens"] * compare(hidden_BLD, taught_BLD, arrays["attention_mask"])
                    total = total + weight * found[name]
        return {"loss": total, **found}


def encode(model: PreTrainedModel, arrays: Arrays, key: Any = None) -> jax.Array:
    """The last hidden states (B, L, D)."""
    given = dict.fromkeys(("head_mask", "position_ids", "inputs_embeds", "token_type_ids"))
    given |= {name: arrays[name] for name in ("input_ids", "attention_mask")}
    rngs = None if key is None else nnx.Rngs(dropout=key)
    output = model.base_model.forward(**given, rngs=rngs, output_attentions=False, output_hidden_states=False)
    return output.last_hidden_state


class Finetuning:
    """The loss of a head, alone or mixed with what a teacher answered."""

    def __init__(self, student: PreTrainedModel, recipe: TaskRecipe) -> None:
        self.student, self.recipe = student, recipe

    def __call__(self, params: Params, taught: Params, arrays: Arrays, shares: Shares, key: Any) -> Losses:
        """Each loss, weighed by its share, and their mix ``loss``; the arrays are those of ``Examples``."""
        answers = {name.removeprefix(TEACHER): value for name, value in arrays.items() if name.startswith(TEACHER)}
        inputs: dict[str, Any] = {name: value for name, value in arrays.items() if not name.startswith(TEACHER)}
        mask = inputs.pop("soft_mask", None)
        output: Any = self.student(**inputs, params=params, dropout_rng=key, train=key is not None, return_dict=True)
        if mask is None:
            return {"loss": shares["hard"] * output.loss}
        hard = shares["hard"] / jnp.maximum(shares["soft"], TINY) * output.loss
        logits = [output[name] for name in answers]
        recipe = self.recipe
        mixed = losses.task_distillation_loss(
            logits, list(answers.values()), mask, hard, recipe.temperature, recipe.alpha
        )
        return {"loss": shares["soft"] * mixed, "hard": shares["hard"] * output.loss}


class Trainer:
    """A model, and what changes it.

    All devices of a kind make a mesh: each has a share of every batch, and of the parameters as ``core/spec.py`` splits
    them where ``settings.model_parallel`` says so. The losses are those of one device. Several hosts join where
    ``JAX_COORDINATOR_ADDRESS`` is set (see ``join_processes``).

    Args:
        head: the spec's name for what to train.
        name_or_path: a folder, or a Hub id.
        settings: how.
        recipe: of the losses: a ``Recipe`` for masked LMs, a ``TaskRecipe`` for all others.
        teacher: of a masked LM, whom to learn from.
        device: for example ``"cpu"``, ``"gpu:1"`` for one of several, or ``"auto"``.
        overrides: config fields.

    Raises:
        CheckpointError: the checkpoint is absent, damaged, or does not fit the config.
        ConfigError: settings of another framework, or devices or processes that cannot be shared out so.
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
        if settings.sharded:
            raise ConfigError("sharded is for PyTorch; Flax splits a model with model_parallel")
        self.settings = settings
        self.parts = settings.accumulation
        join_processes()
        self.is_primary = jax.process_index() == 0
        self.mesh = make_mesh(device, settings.model_parallel)
        self.model, params = self.load(head, name_or_path, ignore_mismatched_sizes=True, **overrides)
        limit = self.model.config.max_position_embeddings
        self.buckets = (*(length for length in LENGTHS if length < limit), limit)
        self.model.base_model.is_gradient_checkpointing = settings.gradient_checkpointing
        self.is_trained = self.freeze(settings.freeze)
        self.taught: Params = {}
        if isinstance(recipe, TaskRecipe):
            self.objective: Any = Finetuning(self.model, recipe)
        else:
            model = None
            if teacher is not None:
                model, taught = self.load("masked-lm", teacher)
                self.taught = jax.device_put(taught, model.shardings(self.mesh))
            self.objective = TokenDistillation(self.model, recipe, model)
        self.optimizer = self.make_optimizer()
        layout, state_layout = self.layout(params)
        self.params: Params = jax.device_put(params, layout)
        self.state = jax.jit(self.optimizer.init, out_shardings=state_layout)(self.params)
        self.differentiate = jax.jit(self.gradients, out_shardings=(layout, None))
        self.apply = jax.jit(self.change, donate_argnums=(0, 1), out_shardings=(layout, state_layout, None))
        self.measure = jax.jit(self.objective)

    def load(self, head: str, name_or_path: str | Path, **options: Any) -> tuple[PreTrainedModel, Params]:
        """A model without values, and these beside it, on one of the mesh's devices: from there they are spread."""
        settings = self.settings
        with jax.default_device(self.mesh.local_devices[0]):
            return load(head, name_or_path, dtype=settings.dtype, seed=settings.seed, _do_init=False, **options)

    def freeze(self, roles: Sequence[str]) -> Any:
        """Which parameters are trained, nested as they are: all but those of some roles in the spec.

        Raises:
            InputError: the model has no such role.
        """
        listed = self.model.parameter_list()
        if unknown := set(roles) - {row.role for row in listed}:
            known = ", ".join(dict.fromkeys(row.role for row in listed))
            raise InputError(f"freeze: no {', '.join(sorted(unknown))} among the model's roles: {known}")
        return unflatten({FLAX.name(row): row.role not in roles for row, _ in self.model.trained_list()})

    def make_optimizer(self) -> optax.GradientTransformation:
        """AdamW without its learning rate, with weight decay where the spec says."""
        settings = self.settings
        decayed = unflatten(
            {FLAX.name(r): is_decayed(r) and r.role not in settings.freeze for r, _ in self.model.trained_list()}
        )
        return optax.chain(
            optax.clip_by_global_norm(settings.max_gradient_norm or np.inf),
            optax.scale_by_adam(settings.beta1, settings.beta2, settings.epsilon),
            optax.add_decayed_weights(settings.weight_decay, decayed),
        )

    def layout(self, params: Params) -> tuple[Any, Any]:
        """How the parameters and the optimiser's state lie on the mesh: each mean as the parameter it belongs to."""
        layout = self.model.shardings(self.mesh)
        everywhere = jax.NamedSharding(self.mesh, jax.P())
        state = optax.tree.map_params(
            self.optimizer,
            lambda _, sharding: sharding,
            jax.eval_shape(self.optimizer.init, params),
            layout,
            transform_non_params=lambda _: everywhere,
        )
        return layout, state

    def train(self, run: Run) -> None:
        """Take the run's steps."""
        for step in run.steps():
            rate = self.settings.rate(step.number, len(run.all_steps))
            if not run.after_step(self.update(step.number, step.parts, rate)):
                break

    def update(self, number: int, parts: Sequence[Part], rate: float) -> Losses:
        """One step of the optimiser; the losses are those before it."""
        totals: Any = None
        for index, part in enumerate(parts):
            # What dropout does follows from the step and the part: a resumed run does the same.
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.settings.seed), number), index)
            found = self.differentiate(self.params, self.taught, self.spread(part), part.shares, key)
            totals = found if totals is None else jax.tree.map(jnp.add, totals, found)
        gradients, values = totals
        self.params, self.state, norm = self.apply(self.params, self.state, gradients, rate)
        return {**values, "gradient_norm": norm}

    def gradients(self, params: Params, taught: Params, arrays: Arrays, shares: Shares, key: Any) -> tuple[Any, Losses]:
        """Those of the loss of a part of a batch, 0 for what is frozen; and the losses."""

        def compute(params: Params) -> tuple[jax.Array, Losses]:
            found = self.objective(params, taught, arrays, shares, key)
            return found["loss"], found

        gradients, found = jax.grad(compute, has_aux=True)(params)
        return jax.tree.map(lambda own, trained: own * trained, gradients, self.is_trained), found

    def change(self, params: Params, state: Any, gradients: Any, rate: Any) -> tuple[Params, Any, jax.Array]:
        """What an update makes of the parameters and the optimiser's state; and the norm of the gradients."""
        updates, state = self.optimizer.update(gradients, state, params)
        params = jax.tree.map(lambda value, update: value - rate * update, params, updates)
        return params, state, optax.tree.norm(gradients)

    def spread(self, part: Part) -> Arrays:
        """The arrays of a part, over the devices; rows are added until each has as many."""
        missing = -len(part.arrays["attention_mask"]) % self.mesh.shape["data"]
        arrays = {
            name: np.pad(
                value,
                [(0, missing)] + [(0, 0)] * (value.ndim - 1),
                constant_values=FILLERS.get(name, 0) if value.dtype.kind == "i" else 0,
            ).astype(np.int32 if value.dtype.kind == "i" else value.dtype)
            for name, value in part.arrays.items()
        }
        if missing and part.arrays.get("labels", np.zeros(0, int)).dtype.kind == "f":
            # A row of floats always counts: so each device has the whole part.
            return jax.device_put(part.arrays, jax.NamedSharding(self.mesh, jax.P()))
        return jax.device_put(arrays, jax.NamedSharding(self.mesh, jax.P("data")))

    def evaluate(self, parts: Sequence[Part]) -> dict[str, float]:
        """The losses of a whole batch, in evaluation mode."""
        found = [self.measure(self.params, self.taught, self.spread(part), part.shares, None) for part in parts]
        return {name: float(sum(values[name] for values in found)) for name in found[0]}

    def inference(self) -> InferenceModel:
        """The model as it is now, for pipelines."""
        return InferenceModel(self.model, self.params)

    def save_model(self, folder: Path) -> None:
        """Write a checkpoint."""
        params = self.params
        if jax.process_count() > 1:
            params = multihost_utils.process_allgather(params, tiled=True)
        if self.is_primary:
            self.model.save_pretrained(folder, params=params)

    def save_state(self, folder: Path) -> None:
        """Write parameters and the optimiser's state: what a step draws at random follows from its number."""
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((folder / STATE_FOLDER).absolute(), {"params": self.params, "optimizer": self.state})
            checkpointer.wait_until_finished()

    def load_state(self, folder: Path) -> None:
        """The reverse of ``save_state``; the mesh may be another.

        Raises:
            CheckpointError: the state is damaged, or of another model.
        """
        path = (folder / STATE_FOLDER).absolute()
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, {"params": self.params, "optimizer": self.state})
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                stored = checkpointer.restore(path, shapes)
        except Exception as error:  # what a damaged file ends in is orbax's affair
            raise CheckpointError(f"{path}: is no state of this model: {error}".split("\n")[0]) from error
        self.params, self.state = stored["params"], stored["optimizer"]


def join_processes() -> None:
    """Join the other processes of ``JAX_COORDINATOR_ADDRESS``.

    How many there are, and which this is, say ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``, which JAX itself does not
    read, or a cluster that JAX knows, such as Slurm.

    Raises:
        ConfigError: neither does, or not in numbers that make sense.
    """
    if "JAX_COORDINATOR_ADDRESS" not in os.environ or jax.distributed.is_initialized():
        return
    names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    try:
        count, number = (int(os.environ[name]) if name in os.environ else None for name in names)
        jax.distributed.initialize(num_processes=count, process_id=number)
    except ValueError as error:
        found = ", ".join(f"{name}={os.environ.get(name)}" for name in names)
        raise ConfigError(f"JAX_COORDINATOR_ADDRESS is set, with {found}; expected numbers: {error}") from None


def make_mesh(device: str | None, model_parallel: int) -> jax.sharding.Mesh:
    """All devices of a kind, or one, as a mesh of ``"data"`` and ``"model"``.

    Raises:
        ConfigError: their number is no multiple of ``model_parallel``.
    """
    chosen = parse_device(device)
    one = device is not None and ":" in device
    devices = [chosen] if one else jax.devices(chosen.platform)
    if len(devices) % model_parallel:
        raise ConfigError(f"model_parallel is {model_parallel}, expected a divisor of the {len(devices)} devices")
    shape = (len(devices) // model_parallel, model_parallel)
    kinds = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh(shape, ("data", "model"), axis_types=kinds, devices=devices)
