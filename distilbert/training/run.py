"""One run of training: its steps, evaluations, logs and checkpoints, and going on after a crash.

In the folder of a run the best model so far is a checkpoint like any other. ``training`` in it holds ``run.json``,
which says what the run is and whether it is complete; ``state-*``, what is needed to go on; and what ``log`` writes.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from distilbert.core.errors import CheckpointError, DistilBertError, InputError
from distilbert.core.files import flush, hold
from distilbert.core.tokenizer import DistilBertTokenizer
from distilbert.training.log import EVALUATED, TRAINED, Log
from distilbert.training.settings import Settings
from distilbert.training.steps import Part, Step, Steps

FOLDER = "training"
RUN_FILE = "run.json"
POSITION_FILE = "position.json"
STATE_PREFIX = "state-"
UNFINISHED = ".unfinished"
SHOWN_INDICES = 8
CONTENTS = "contents."  # begins the names of hashes of files, in the identity of a run


class Trainer(Protocol):
    """What a backend's ``training.py`` contributes."""

    model: Any
    parts: int  # that each step's batch is split into
    buckets: Sequence[int]  # the lengths that batches are padded to
    is_primary: bool  # the one of several processes that writes

    def train(self, run: Run) -> None:
        """Take the run's steps, and tell it after each."""

    def evaluate(self, parts: Sequence[Part]) -> dict[str, float]:
        """The losses of a whole batch, without training on it."""

    def inference(self) -> Any:
        """The model as it is now, for pipelines."""

    def save_state(self, folder: Path) -> None:
        """Write the parameters and the optimiser's state. All processes call this, and the primary one writes."""

    def load_state(self, folder: Path) -> None:
        """The reverse."""

    def save_model(self, folder: Path) -> None:
        """Write a checkpoint, all of it or nothing. All processes call this, and the primary one writes."""


class Evaluation(NamedTuple):
    """How good the model is now, and which of the figures decides."""

    metrics: dict[str, float]
    decisive: str
    is_loss: bool  # less is better


@dataclass
class Position:
    """How far a run has come."""

    step: int = 0  # updates done
    best: float | None = None
    best_step: int = 0
    waited: int = 0  # evaluations since the best one


class Progress(NamedTuple):
    """What is shown while a run goes on."""

    step: int
    steps: int
    tokens_per_second: float
    values: Mapping[str, float]


class Run:
    """A run of training in a folder.

    Args:
        folder: the checkpoint's.
        trainer: the model, and what changes it.
        steps: what from.
        settings: how.
        identity: what else makes this run another than one with the same settings, such as its data; JSON.
        tokenizer: the model's, which is kept with it.
        evaluate: measures the model; by default nothing does, and the last model is kept.
        progress: is told after each step.
        overwrite: begin anew where the folder holds another run or checkpoint.

    Raises:
        CheckpointError: the folder holds another run, or a checkpoint.
    """

    def __init__(
        self,
        folder: str | Path,
        trainer: Trainer,
        steps: Steps,
        settings: Settings,
        identity: Mapping[str, Any],
        *,
        tokenizer: DistilBertTokenizer,
        evaluate: Callable[[], Evaluation] | None = None,
        progress: Callable[[Progress], None] | None = None,
        overwrite: bool = False,
    ) -> None:
        self.model_folder = Path(folder)
        self.folder = self.model_folder / FOLDER
        self.trainer, self.all_steps, self.settings, self.evaluate = trainer, steps, settings, evaluate
        self.tokenizer = tokenizer
        self.progress = progress or (lambda progress: None)
        self.evaluate_every = settings.evaluate_every or steps.per_epoch
        self.identity = {"settings": asdict(settings), **identity}
        self.overwrite = overwrite
        self.complete = begin(self.model_folder, self.identity, overwrite)
        self.position = Position() if overwrite else self._load()
        self.log: Log | None = None
        self._pending: list[tuple[Step, Mapping[str, Any], float]] = []  # with the tokens in a second then
        self._upcoming: dict[int, Step] = {}

    def __call__(self) -> Position:
        """Train to the end, from where an earlier process came to.

        Raises:
            InputError: a loss that is not finite; the last checkpoint is from before.
            CheckpointError: what is to be written cannot be, or another process trains there.
        """
        if self.complete:
            return self.position
        with alone(self.model_folder) if self.trainer.is_primary else nullcontext():
            if not self.overwrite and begin(self.model_folder, self.identity, overwrite=False):
                raise CheckpointError(f"{self.model_folder}: another process has finished this run meanwhile")
            return self._train()

    def _train(self) -> Position:
        if self.trainer.is_primary:
            if self.overwrite:
                shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            _write_json(self.folder / RUN_FILE, {**self.identity, "complete": False})
            self.log = Log(self.folder, self.position.step)
        self._clock, self._tokens = time.perf_counter(), 0
        self.trainer.train(self)
        if self.evaluate is None:
            self._keep()
        if self.log:
            self.log.close()
            _write_json(self.folder / RUN_FILE, {**self.identity, "complete": True, **asdict(self.position)})
            for state in self.folder.glob(f"{STATE_PREFIX}*"):
                shutil.rmtree(state)
        return self.position

    @property
    def remaining(self) -> int:
        """How many steps are left."""
        return len(self.all_steps) - self.position.step

    def steps(self) -> Iterator[Step]:
        """The steps that are left. They may be taken ahead of being done."""
        for step in self.all_steps.starting(self.position.step):
            self._upcoming[step.number] = step
            yield step

    def after_step(self, losses: Mapping[str, Any]) -> bool:
        """Note that the next step is done: write, evaluate and save what is due.

        Args:
            losses: scalars by name, ``loss`` among them, which may still be on a device.

        Returns:
            Whether to go on.
        """
        step = self._upcoming.pop(self.position.step)
        self.position.step += 1
        done, last = self.position.step, self.position.step == len(self.all_steps)
        self._tokens += step.tokens
        speed = self._tokens / (time.perf_counter() - self._clock)
        if done % self.settings.log_every == 0:
            self._clock, self._tokens = time.perf_counter(), 0
        # Looking at a number waits for the device to compute it: so look at those of the step before.
        self._pending.append((step, losses, speed))
        self._look(1)
        goes_on = not last
        started = time.perf_counter()
        if self.evaluate and (done % self.evaluate_every == 0 or last):
            self._look(0)
            goes_on = self._evaluate(step) and goes_on
        if goes_on and done % self.settings.save_every == 0:
            self._look(0)
            self.save()
        if not goes_on:
            self._look(0)
        self._clock += time.perf_counter() - started
        return goes_on

    def _look(self, keep: int) -> None:
        """Look at the losses of all but the last few steps."""
        while len(self._pending) > keep:
            step, losses, speed = self._pending.pop(0)
            values = {name: float(value) for name, value in losses.items()}
            for name, value in values.items():
                if not math.isfinite(value):
                    shown = ", ".join(map(str, step.indices[:SHOWN_INDICES]))
                    and_more = ", …" if len(step.indices) > SHOWN_INDICES else ""
                    raise InputError(
                        f"step {step.number + 1} (epoch {step.epoch + 1}): {name} is {value}, of a batch of the "
                        f"sequences {shown}{and_more}; lower the learning rate, or look at these sequences"
                    )
            self.progress(Progress(step.number + 1, len(self.all_steps), speed, values))
            if self.log and ((step.number + 1) % self.settings.log_every == 0 or step.number == 0):
                rate = self.settings.rate(step.number, len(self.all_steps))
                more = {"learning_rate": rate, "tokens_per_second": round(speed)}
                self.log.add(TRAINED, step.number + 1, {**values, **more}, epoch=step.epoch + 1)

    def _evaluate(self, step: Step) -> bool:
        """Evaluate, and keep the model if it is the best; returns whether to go on."""
        assert self.evaluate is not None
        found, position = self.evaluate(), self.position
        value = found.metrics[found.decisive]
        if self.log:
            finite = {name: value for name, value in found.metrics.items() if math.isfinite(value)}
            self.log.add(EVALUATED, position.step, finite, epoch=step.epoch + 1)
        if math.isnan(value):  # a correlation of what is constant
            value = math.inf if found.is_loss else -math.inf
        is_better = position.best is None or (value < position.best if found.is_loss else value > position.best)
        if is_better:
            position.best, position.best_step, position.waited = value, position.step, 0
            self._keep()
        else:
            position.waited += 1
        return self.settings.patience is None or position.waited < self.settings.patience

    def _keep(self) -> None:
        """Write the model, a checkpoint like any other from the first one on."""
        if self.trainer.is_primary:
            self.tokenizer.save_pretrained(self.model_folder)
        self.trainer.save_model(self.model_folder)

    def save(self) -> None:
        """Write what is needed to go on from here; an earlier state stays until this one is complete.

        Raises:
            CheckpointError: it cannot be written; the earlier state is there.
        """
        name = f"{STATE_PREFIX}{self.position.step:09d}"
        stage, final = self.folder / f"{UNFINISHED}-{name}", self.folder / name
        try:
            if self.trainer.is_primary:
                shutil.rmtree(stage, ignore_errors=True)
                stage.mkdir()
            self.trainer.save_state(stage)
            if self.trainer.is_primary:
                _write_json(stage / POSITION_FILE, asdict(self.position))
                for path in stage.rglob("*"):
                    flush(path)
                shutil.rmtree(final, ignore_errors=True)
                stage.rename(final)
                flush(self.folder)
        except DistilBertError:
            raise
        except Exception as error:  # each framework has its own for a full disk
            shutil.rmtree(stage, ignore_errors=True)
            reason = getattr(error, "strerror", None) or str(error).split("\n", 1)[0]
            earlier = max((path.name for path in self.folder.glob(f"{STATE_PREFIX}*")), default="none")
            raise CheckpointError(f"{final}: cannot be saved: {reason}; kept from before: {earlier}") from error
        if self.trainer.is_primary:
            for older in self.folder.glob(f"{STATE_PREFIX}*"):
                if older != final:
                    shutil.rmtree(older)

    def _load(self) -> Position:
        """Go on from the last state, or from the beginning."""
        if self.complete:
            known = Position.__dataclass_fields__
            stored = json.loads((self.folder / RUN_FILE).read_text("utf-8"))
            return Position(**{name: stored[name] for name in known})
        states = sorted(self.folder.glob(f"{STATE_PREFIX}*"))
        if not states:
            return Position()
        self.trainer.load_state(states[-1])
        return Position(**json.loads((states[-1] / POSITION_FILE).read_text("utf-8")))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder, made if absent, against other processes.

    Raises:
        CheckpointError: another process holds it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = None if os.name == "nt" else os.open(folder, os.O_RDONLY)  # Windows cannot open a folder
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written: {error.strerror}") from None
    try:
        if descriptor is not None and not hold(descriptor):
            raise CheckpointError(f"{folder}: another process trains there; wait for it, or choose another")
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def begin(model_folder: Path, identity: Mapping[str, Any], overwrite: bool) -> bool:
    """Check that a folder is free for a run, or holds the same one; returns whether that is complete.

    Raises:
        CheckpointError: it holds something else.
    """
    path = model_folder / FOLDER / RUN_FILE
    if overwrite or not path.is_file():
        if not overwrite and (model_folder / "config.json").exists():
            raise CheckpointError(f"{model_folder}: has a checkpoint already; choose another folder, or overwrite it")
        return False
    try:
        stored = json.loads(path.read_text("utf-8"))
        complete = stored["complete"]
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path}: is damaged; choose another folder, or overwrite it") from None
    if not complete and not any(path.parent.glob(f"{STATE_PREFIX}*")) and not (model_folder / "config.json").exists():
        return False  # it ended before there was anything to go on with
    known = _flat(stored)
    for name, value in _flat(json.loads(json.dumps(identity))).items():
        if known.get(name) != value:
            if name.startswith(CONTENTS):
                other = f"that began with another content of {name.removeprefix(CONTENTS)}"
            else:
                other = f"with {name} {known.get(name)!r}, not {value!r}"
            raise CheckpointError(f"{model_folder}: holds a run {other}; choose another folder, or overwrite it")
    return bool(complete)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dots in the names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    stage = path.with_name(f"{path.name}{UNFINISHED}")
    stage.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    flush(stage)
    stage.replace(path)
