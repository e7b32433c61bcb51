"""Training: what a step computes, for Keras's ``fit`` and its optimiser, on one device or on several of TensorFlow's.

B batch, L length, D model, K places in a row where words are scored, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops
from safetensors.numpy import load_file, save_file

from distilbert.core.errors import CheckpointError, ConfigError, InputError
from distilbert.core.spec import is_decayed
from distilbert.distillation.recipe import TEACHER, Recipe, TaskRecipe
from distilbert.tf import losses
from distilbert.tf.inference import InferenceModel, gather, load, parse_device
from distilbert.tf.loading import to_array
from distilbert.tf.model import PreTrainedModel

if TYPE_CHECKING:
    from distilbert.training.run import Run
    from distilbert.training.settings import Settings
    from distilbert.training.steps import Part

IS_ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
if IS_ON_TENSORFLOW:
    import tensorflow as tf

STATE_FILE = "state.safetensors"
SHARE = "share/"  # begins the names of the rows' shares in a batch
TINY = 1e-12

Tensor = Any
Arrays = Mapping[str, Tensor]
Losses = dict[str, Tensor]


class Objective(keras.Model):
    """What ``fit`` trains: a model of losses around the student.

    Args:
        student: whose parameters are trained.
        accumulation: parts that a batch is computed in, one after the other.
        max_gradient_norm: longer gradients are shortened to this; 0 leaves them.
    """

    def __init__(self, student: PreTrainedModel, accumulation: int, max_gradient_norm: float) -> None:
        # In the student's policy Keras would round shares, labels and a teacher's logits to bfloat16.
        super().__init__(name="objective", dtype="float32")
        self.student = student
        self.accumulation, self.max_gradient_norm = accumulation, max_gradient_norm

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Tensor:
        """The sum that the call has computed."""
        return y_pred["loss"]

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Tensor]:
        """All losses, of this step alone."""
        return dict(y_pred)

    if IS_ON_TENSORFLOW:

        def train_step(self, arrays: Arrays) -> Losses:
            """One update: as Keras's own, but for the sums over parts and replicas before gradients are shortened."""
            context = tf.distribute.get_replica_context()
            replicas = context.num_replicas_in_sync
            variables = [variable.value for variable in self.trainable_variables]
            rows = tf.shape(arrays["input_ids"])[0]
            totals: Any = None
            for number in range(self.accumulation):
                first, last = (rows * edge // self.accumulation for edge in (number, number + 1))
                with tf.GradientTape() as tape:
                    found = self({name: value[first:last] for name, value in arrays.items()}, training=True)
                # A table's gradient may come as the rows that were looked up.
                gradients = [tf.convert_to_tensor(value) for value in tape.gradient(found["loss"], variables)]
                now = {"gradients": gradients, "losses": found}
                totals = now if totals is None else tf.nest.map_structure(tf.add, totals, now)
            if replicas > 1:
                totals = context.all_reduce("sum", totals)
            gradients, found = totals["gradients"], totals["losses"]
            norm = tf.linalg.global_norm(gradients)
            if self.max_gradient_norm:
                gradients, _ = tf.clip_by_global_norm(gradients, self.max_gradient_norm, norm)
            # Keras will add up those of the replicas, which have the sum already.
            gradients = [value / replicas for value in gradients]
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            return {**found, "gradient_norm": norm}


class TokenDistillation(Objective):
    """The losses of a masked LM, alone or beside a teacher (Sanh et al. 2019, section 3).

    The vocabulary is scored at the places of a batch that a loss looks at, and nowhere else.
    """

    def __init__(
        self, student: PreTrainedModel, recipe: Recipe, teacher: PreTrainedModel | None = None, **options: Any
    ) -> None:
        super().__init__(student, **options)
        self.recipe = recipe
        self.teachers = [] if teacher is None else [teacher]
        for model in self.teachers:
            model.trainable = False

    def call(self, arrays: Arrays, training: bool | None = None) -> Losses:
        """Each loss, weighed by its share, and their sum ``loss``; the arrays are those of ``MaskedTexts``."""
        recipe, shares = self.recipe, shares_of(arrays)
        is_place = ops.greater_equal(arrays["positions"], 0)
        at_BK = ops.maximum(arrays["positions"], 0)
        hidden_BLD = encode(self.student, arrays, training)
        logits_BKV = self.student.score_words(gather(hidden_BLD, at_BK))
        found = {"masked_lm": shares["masked"] * losses.token_loss(logits_BKV, arrays["labels"])}
        total = recipe.masked_lm_weight * found["masked_lm"]
        for teacher in self.teachers:
            taught_BLD = ops.stop_gradient(encode(teacher, arrays, False))
            taught_BKV = ops.stop_gradient(teacher.score_words(gather(taught_BLD, at_BK)))
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


def encode(model: PreTrainedModel, arrays: Arrays, training: bool | None) -> Tensor:
    """The last hidden states (B, L, D)."""
    given = {name: arrays[name] for name in ("input_ids", "attention_mask")}
    return model.get_base_model()(**given, training=training, return_dict=True).last_hidden_state


def shares_of(arrays: Arrays) -> Losses:
    """The share of each mean's terms that the rows at hand have."""
    return {name.removeprefix(SHARE): ops.sum(value) for name, value in arrays.items() if name.startswith(SHARE)}


class Finetuning(Objective):
    """The loss of a head, alone or mixed with what a teacher answered."""

    def __init__(self, student: PreTrainedModel, recipe: TaskRecipe, **options: Any) -> None:
        super().__init__(student, **options)
        self.recipe = recipe

    def call(self, arrays: Arrays, training: bool | None = None) -> Losses:
        """Each loss, weighed by its share, and their mix ``loss``; the arrays are those of ``Examples``."""
        shares = shares_of(arrays)
        taught = {name.removeprefix(TEACHER): value for name, value in arrays.items() if name.startswith(TEACHER)}
        inputs = {name: value for name, value in arrays.items() if not name.startswith((TEACHER, SHARE))}
        mask = inputs.pop("soft_mask", None)
        labels = {name: inputs.pop(name) for name in self.student.label_names}
        output = self.student(**inputs, training=training, return_dict=True)
        loss = self.student.own_loss(output, **labels)
        if mask is None:
            return {"loss": shares["hard"] * loss}
        hard = shares["hard"] / ops.maximum(shares["soft"], TINY) * loss
        logits = [output[name] for name in taught]
        recipe = self.recipe
        mixed = losses.task_distillation_loss(
            logits, list(taught.values()), mask, hard, recipe.temperature, recipe.alpha
        )
        return {"loss": shares["soft"] * mixed, "hard": shares["hard"] * loss}


class Reporting(keras.callbacks.Callback):
    """Sets the learning rate of each step, and tells a run about it; which may stop it.

    Keras's own ``BackupAndRestore`` and ``ModelCheckpoint`` know epochs and folders of their own, not a run's.
    """

    def __init__(self, run: Run, settings: Settings) -> None:
        super().__init__()
        self.run, self.settings = run, settings

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """See the class."""
        self.model.optimizer.learning_rate = self.settings.rate(self.run.position.step, len(self.run.all_steps))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """See the class."""
        model = self.model  # on JAX this gives it the values that the step computed
        if not self.run.after_step(logs):
            model.stop_training = True


class Trainer:
    """A model, and what changes it.

    Where TensorFlow sees several devices of the kind asked for, ``MirroredStrategy`` gives each a share of every batch.
    The losses are those of one device.

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
        ConfigError: settings of another framework.
        InputError: a role to freeze that the model has not.
    """

    parts = 1  # the rows of a batch are shared out where they are computed
    is_primary = True

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
        others = {"sharded is for PyTorch": settings.sharded, "model_parallel is for Flax": settings.model_parallel > 1}
        for message, is_set in others.items():
            if is_set:
                raise ConfigError(f"{message}; Keras keeps the whole model on each device")
        if settings.gradient_checkpointing:
            # RematScope fails in graphs (a custom gradient takes no keywords there), and would draw dropout anew.
            raise ConfigError("gradient_checkpointing: Keras cannot compute our layers twice; use accumulation instead")
        if settings.accumulation > 1 and not IS_ON_TENSORFLOW:
            raise ConfigError(f"accumulation needs TensorFlow below Keras, which runs on {keras.backend.backend()}")
        self.settings = settings
        self.device = parse_device(device)
        self.strategy = make_strategy(device, self.device)
        keras.utils.set_random_seed(settings.seed)  # of a new head, and of dropout
        policy = "mixed_bfloat16" if settings.dtype == "bfloat16" else "float32"
        with self.placing():
            options: dict[str, Any] = {"dtype": policy, "ignore_mismatched_sizes": True}
            self.model: PreTrainedModel = load(head, name_or_path, **options, **overrides)
            limit = self.model.config.max_position_embeddings
            self.buckets = (*range(8, limit, 8), limit)
            self.freeze(settings.freeze)
            taught = None if teacher is None else load("masked-lm", teacher, dtype=policy)
            self.optimizer = self.make_optimizer()
        # Outside: of a model made within the strategy, ``fit`` first takes the mean of the devices' batches, which
        # fails where they have different numbers of rows.
        options = {"accumulation": settings.accumulation, "max_gradient_norm": settings.max_gradient_norm}
        if isinstance(recipe, TaskRecipe):
            self.objective: Objective = Finetuning(self.model, recipe, **options)
        else:
            self.objective = TokenDistillation(self.model, recipe, taught, **options)
        self.objective.compile(self.optimizer, jit_compile=not IS_ON_TENSORFLOW)
        self.measure: Any = tf.function(self.objective, reduce_retracing=True) if IS_ON_TENSORFLOW else self.objective

    def placing(self) -> AbstractContextManager[Any]:
        """Where variables are made, and computed with."""
        return keras.device(self.device) if self.strategy is None else self.strategy.scope()

    def freeze(self, roles: Sequence[str]) -> None:
        """Exclude parameters from training, by their role in the spec.

        Raises:
            InputError: the model has no such role.
        """
        listed = self.model.parameter_list()
        if unknown := set(roles) - {row.role for row in listed}:
            known = ", ".join(dict.fromkeys(row.role for row in listed))
            raise InputError(f"freeze: no {', '.join(sorted(unknown))} among the model's roles: {known}")
        self.model.freeze([row.name for row in listed if row.role in roles])

    def make_optimizer(self) -> keras.optimizers.AdamW:
        """AdamW, with weight decay where the spec says."""
        settings = self.settings
        optimizer = keras.optimizers.AdamW(
            settings.learning_rate,
            weight_decay=settings.weight_decay,
            beta_1=settings.beta1,
            beta_2=settings.beta2,
            epsilon=settings.epsilon,
            global_clipnorm=None if IS_ON_TENSORFLOW else settings.max_gradient_norm or None,
        )
        kept = [variable for row, variable in self.model.variable_list() if not is_decayed(row)]
        optimizer.exclude_from_weight_decay(var_list=kept)
        optimizer.build(self.model.trainable_variables)
        return optimizer

    def train(self, run: Run) -> None:
        """Take the run's steps, with Keras's ``fit``."""
        if not run.remaining:
            return

        def batches() -> Iterator[dict[str, np.ndarray]]:  # Keras may look at the first before it begins
            return (batch_of(step.parts[0]) for step in run.steps())

        options: dict[str, Any] = {"steps_per_epoch": run.remaining, "shuffle": False, "verbose": 0}
        with self.placing():
            self.objective.fit(dataset(batches), callbacks=[Reporting(run, self.settings)], **options)

    def evaluate(self, parts: Sequence[Part]) -> dict[str, float]:
        """The losses of a whole batch, in evaluation mode."""
        with keras.device(self.device):
            found = self.measure(batch_of(parts[0]), training=False)
        return {name: float(value) for name, value in found.items()}

    def inference(self) -> InferenceModel:
        """The model as it is now, for pipelines."""
        return InferenceModel(self.model, self.device)

    def save_model(self, folder: Path) -> None:
        """Write a checkpoint."""
        self.model.save_pretrained(folder)

    def save_state(self, folder: Path) -> None:
        """Write parameters, dropout's seeds and the optimiser's state."""
        save_file({name: to_array(variable) for name, variable in self.variables()}, folder / STATE_FILE)

    def load_state(self, folder: Path) -> None:
        """The reverse of ``save_state``.

        Raises:
            CheckpointError: the file is damaged, or of another model.
        """
        path = folder / STATE_FILE
        try:
            stored = load_file(path)
            for name, variable in self.variables():
                variable.assign(stored[name])
        except Exception as error:  # what a damaged file ends in is the library's affair
            raise CheckpointError(f"{path}: is no state of this model: {error}".split("\n")[0]) from error

    def variables(self) -> Iterator[tuple[str, keras.Variable]]:
        """All that training changes, numbered: Keras's own names differ from process to process."""
        for number, variable in enumerate([*self.model.variables, *self.optimizer.variables]):
            yield f"{number:05d}", variable


def make_strategy(device: str | None, chosen: str) -> Any:
    """How several devices work together; None where there is one, or Keras runs on another framework."""
    kind, _, _ = chosen.partition(":")
    if not IS_ON_TENSORFLOW or (device is not None and ":" in device):
        return None
    devices = [found.name for found in tf.config.list_logical_devices(kind.upper())]
    return tf.distribute.MirroredStrategy(devices) if len(devices) > 1 else None


def batch_of(part: Part) -> dict[str, np.ndarray]:
    """What the objective is called with: the arrays of a part, and the share of each row."""
    shares = {f"{SHARE}{name}": rows.astype(np.float32) for name, rows in part.row_shares.items()}
    return {**part.arrays, **shares}


def dataset(batches: Callable[[], Iterator[dict[str, np.ndarray]]]) -> Any:
    """Batches as ``fit`` takes them: for TensorFlow a ``tf.data.Dataset``, with one trace for all shapes."""
    if not IS_ON_TENSORFLOW:
        return ((batch,) for batch in batches())
    first = next(batches())
    signature = {name: tf.TensorSpec([None] * array.ndim, array.dtype) for name, array in first.items()}
    return tf.data.Dataset.from_generator(batches, output_signature=signature)
