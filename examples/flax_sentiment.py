"""Fine-tune DistilBERT on labelled texts with JAX, as an NNX module or as a pure function; stop and resume exactly.

    python examples/flax_sentiment.py CHECKPOINT TRAIN.tsv DEV.tsv OUTPUT [--style nnx]

CHECKPOINT is a folder or a Hub id with weights in any format and a tokenizer. The files hold one text and its label
(0, 1, …) a line, with a tab between. OUTPUT gets the trained checkpoint, and in ``state`` what a run that was stopped
needs to go on: run the same command again. A resumed run ends with the very weights of one that was never stopped.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx

from distilbert import DistilBertTokenizer, FlaxDistilBertForSequenceClassification
from distilbert.flax import pad_to_bucket

BATCH = 32
LENGTHS = (16, 32, 64, 128)  # one program each
Batch = dict[str, np.ndarray]


def read(tokenizer: DistilBertTokenizer, path: str) -> tuple[list[list[int]], np.ndarray]:
    """Ids and labels of a file."""
    lines = [line.rsplit("\t", 1) for line in Path(path).read_text("utf-8").strip("\n").split("\n")]
    ids = tokenizer([text for text, _ in lines], truncation=True, max_length=LENGTHS[-1])["input_ids"]
    return ids, np.array([int(label) for _, label in lines])


def batches(ids: list[list[int]], labels: np.ndarray, order: np.ndarray) -> Iterator[Batch]:
    """The texts in an order, padded to one of a few shapes."""
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        batch = np.zeros((len(rows), max(len(ids[row]) for row in rows)), np.int32)
        mask = np.zeros_like(batch)
        for index, row in enumerate(rows):
            batch[index, : len(ids[row])] = ids[row]
            mask[index, : len(ids[row])] = 1
        given = {"input_ids": batch, "attention_mask": mask, "labels": labels[rows]}
        yield pad_to_bucket(given, LENGTHS, batch_size=BATCH)


class PureTraining:
    """Parameters and the optimiser's state go in and come out: ``jax.value_and_grad`` and plain optax."""

    def __init__(self, model: Any, transformation: optax.GradientTransformation) -> None:
        params = jax.tree.map(jnp.copy, model.params)  # the step gives its inputs' memory away
        self.state = {"params": params, "optimizer": transformation.init(params)}

        def step(state: Any, batch: Batch, key: jax.Array) -> tuple[Any, jax.Array]:
            loss, gradients = jax.value_and_grad(
                lambda params: model(**batch, params=params, dropout_rng=key, train=True).loss
            )(state["params"])
            updates, optimizer = transformation.update(gradients, state["optimizer"], state["params"])
            return {"params": optax.apply_updates(state["params"], updates), "optimizer": optimizer}, loss

        self.step = jax.jit(step, donate_argnums=0)

    def __call__(self, batch: Batch, key: jax.Array) -> jax.Array:
        """One step; returns the loss."""
        self.state, loss = self.step(self.state, batch, key)
        return loss

    def params(self) -> Any:
        """The trained values."""
        return self.state["params"]


class ModuleTraining:
    """The model and an ``nnx.Optimizer`` change in place, under ``nnx.jit``."""

    def __init__(self, model: Any, transformation: optax.GradientTransformation) -> None:
        self.model, self.optimizer = model, nnx.Optimizer(model, transformation, wrt=nnx.Param)

        @nnx.jit
        def step(model: Any, optimizer: nnx.Optimizer, batch: Batch, key: jax.Array) -> jax.Array:
            loss, gradients = nnx.value_and_grad(lambda model: model(**batch, dropout_rng=key, train=True).loss)(model)
            optimizer.update(model, gradients)
            return loss

        self.step = step

    def __call__(self, batch: Batch, key: jax.Array) -> jax.Array:
        """One step; returns the loss."""
        return self.step(self.model, self.optimizer, batch, key)

    @property
    def state(self) -> Any:
        """What has to be kept."""
        return nnx.to_pure_dict(nnx.state((self.model, self.optimizer), nnx.Not(nnx.RngState)))

    @state.setter
    def state(self, kept: Any) -> None:
        state = nnx.state((self.model, self.optimizer), nnx.Not(nnx.RngState))
        nnx.replace_by_pure_dict(state, kept)
        nnx.update((self.model, self.optimizer), state)

    def params(self) -> Any:
        """The trained values."""
        return self.model.params


STYLES = {"optax": PureTraining, "nnx": ModuleTraining}


def main() -> None:
    """Train, evaluate, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("checkpoint", "train", "dev", "output"):
        parser.add_argument(name)
    parser.add_argument("--style", choices=STYLES, default="optax")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=200, help="steps")
    parser.add_argument("--stop-after", type=int, help="steps; to try the resuming")
    arguments = parser.parse_args()

    tokenizer = DistilBertTokenizer.from_pretrained(arguments.checkpoint)
    ids, labels = read(tokenizer, arguments.train)
    model = FlaxDistilBertForSequenceClassification.from_pretrained(
        arguments.checkpoint, num_labels=int(labels.max()) + 1, seed=arguments.seed
    )
    steps = arguments.epochs * -(-len(ids) // BATCH)
    schedule = optax.warmup_cosine_decay_schedule(0.0, arguments.learning_rate, max(1, steps // 10), steps)
    transformation = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01))
    training = STYLES[arguments.style](model, transformation)

    folder = Path(arguments.output).resolve() / "state"
    key = jax.random.key(arguments.seed)
    step = 0
    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(max_to_keep=1)) as manager:
        if manager.latest_step() is not None:
            step = manager.latest_step()
            kept = jax.tree.map(ocp.utils.to_shape_dtype_struct, training.state)
            training.state = manager.restore(step, args=ocp.args.StandardRestore(kept))
            print(f"resumed at step {step}")
        for epoch in range(arguments.epochs):
            order = np.random.default_rng((arguments.seed, epoch)).permutation(len(ids))
            for number, batch in enumerate(batches(ids, labels, order), epoch * -(-len(ids) // BATCH) + 1):
                if number <= step:
                    continue  # done before the stop
                loss = training(batch, jax.random.fold_in(key, number))  # another mask at each step
                if number % arguments.save_every == 0 or number == arguments.stop_after:
                    manager.save(number, args=ocp.args.StandardSave(training.state))
                    print(f"step {number} of {steps}: loss {loss:.4f}")
                if number == arguments.stop_after:
                    return

    params = training.params()
    ids, labels = read(tokenizer, arguments.dev)
    predict = jax.jit(lambda params, batch: model(**batch, params=params).logits.argmax(-1))
    right = 0
    for batch in batches(ids, labels, np.arange(len(ids))):
        expected = batch.pop("labels")
        right += int((np.asarray(predict(params, batch)) == expected).sum())  # rows added have the label -100
    print(f"accuracy on {arguments.dev}: {right / len(ids):.4f}")
    model.save_pretrained(arguments.output, params=params)
    tokenizer.save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
