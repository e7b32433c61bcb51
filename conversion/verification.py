"""Whether a converted checkpoint computes what its source does, each in the framework that its format belongs to."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distilbert.conversion.source import EVERY_FORMAT, Source, open_source
from distilbert.core.backends import choose_backend
from distilbert.core.checkpoint import FORMATS, match, write_checkpoint
from distilbert.core.errors import CheckpointError
from distilbert.core.spec import parameters
from distilbert.parity.comparison import layer_of, make_probe
from distilbert.parity.inputs import batch

SHAPES = ((3, 12), (4, 7))  # rows and tokens of the batches
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Layer:
    """The largest differences from the source in what one layer computes, over both batches.

    In units of the largest value of each output where that is more than 1.
    """

    name: str  # "embeddings", "layer 1", …, "head"
    converted: float
    reloaded: float  # after the target's framework has saved and loaded it once more

    @property
    def largest(self) -> float:
        """The larger of both; NaN if one is."""
        return float(np.maximum(self.converted, self.reloaded))


@dataclass(frozen=True)
class Verification:
    """What ``compare`` found."""

    source_framework: str
    target_framework: str
    atol: float
    layers: tuple[Layer, ...]

    @property
    def first_outside(self) -> Layer | None:
        """The first layer with a difference above ``atol``, or with a NaN."""
        return next((layer for layer in self.layers if not layer.largest <= self.atol), None)


class VerificationError(CheckpointError):
    """The target computes something else than the source."""

    def __init__(self, verification: Verification, target: Path) -> None:
        layer = verification.first_outside
        assert layer is not None
        super().__init__(
            f"{target}: {layer.name} differs by {layer.largest:.1e} from the source, expected "
            f"at most {verification.atol:.1e}; nothing was written"
        )
        self.verification = verification


def require_frameworks(source_format: str, target_format: str) -> tuple[str, str]:
    """The frameworks that two formats belong to.

    Raises:
        MissingBackendError: one of them is not installed.
    """
    wanted = (EVERY_FORMAT[source_format].framework, EVERY_FORMAT[target_format].framework)
    for framework in wanted:
        choose_backend(framework)
    return wanted


def compare(source: Source, written: Path, target_format: str, atol: float) -> Verification:
    """Run two ragged batches through source and target, and through the target saved and loaded once more.

    Every output, hidden state and attention is compared. KerasHub's presets are run by our Keras classes.

    Args:
        source: what was converted.
        written: the folder with the result.
        target_format: what it is in.
        atol: the largest difference allowed, see ``Layer``.

    Raises:
        MissingBackendError: a framework is not installed.
    """
    of_source, of_target = require_frameworks(source.file_format, target_format)
    made = [batch(source.config, source.head, *shape, np.random.default_rng(0)) for shape in SHAPES]
    target = open_source(written, file_format=target_format, head=source.head)
    with ExitStack() as stack:
        original = make_probe(of_source, source.head, stack.enter_context(_loadable(source)))
        converted = make_probe(of_target, source.head, stack.enter_context(_loadable(target)))
        again = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        converted.save(again)
        reloaded = make_probe(of_target, source.head, again)
        found: dict[str, list[float]] = {}
        for inputs in made:
            expected = original.outputs(inputs)
            for column, probe in enumerate((converted, reloaded)):
                for name, difference in _differences(probe.outputs(inputs), expected).items():
                    columns = found.setdefault(name, [0.0, 0.0])
                    columns[column] = float(np.maximum(columns[column], difference))  # which keeps a NaN
    return Verification(of_source, of_target, atol, tuple(Layer(name, *columns) for name, columns in found.items()))


def _differences(actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The largest difference by layer, in the order of the computation."""
    layers = sum(name.startswith("attentions/") for name in expected)
    found = dict.fromkeys(["embeddings", *(f"layer {number + 1}" for number in range(layers)), "head"], 0.0)
    for quantity, value in expected.items():
        name = layer_of(quantity)
        difference = np.abs(actual[quantity] - value).max() / max(1.0, np.abs(value).max())
        found[name] = float(np.maximum(found[name], difference))
    return found


@contextmanager
def _loadable(source: Source) -> Iterator[Path]:
    """A folder from which ``from_pretrained`` takes the weights that were opened."""
    preferred = next((form for form in FORMATS.values() if form.is_in(source.folder)), None)
    if preferred is EVERY_FORMAT[source.file_format] and preferred.has_name(source.path):
        yield source.folder
        return
    # A preset, a .keras with a name of its own, or one of several formats in its folder: the same bits once more.
    listed = parameters(source.config, source.head, source.family)
    tensors, _ = match(source.tensors, listed, source=str(source.path), family=source.family)
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(folder, source.config, tensors, head=source.head, family=source.family)
        yield Path(folder)
