"""The reference itself: against transformers' outputs and gradients, and its gradients against differences."""

import numpy as np
import pytest
from backends import CASES, assert_close, golden, head_of
from conftest import GOLDEN

from distilbert.core.checkpoint import load
from distilbert.core.errors import InputError
from distilbert.core.spec import DISTILBERT
from distilbert.parity.inputs import batches
from distilbert.parity.reference import Reference


def reference(case, **overrides):
    folder = GOLDEN / f"distilbert-{case}"
    options = {"config": None, "ignore_mismatched_sizes": False, "family": DISTILBERT}
    config, tensors, _ = load(folder, head_of(case), overrides=overrides, **options)
    return Reference(config, head_of(case), tensors)


@pytest.mark.parametrize("case", CASES)
def test_transformers_agrees(case):
    values = golden(case)
    inputs = {name.removeprefix("in/"): value for name, value in values.items() if name.startswith("in/")}
    output = reference(case)(inputs, with_gradients=True)
    steepest = max((np.abs(value).max() for name, value in values.items() if name.startswith("grad/")), default=1)
    for name, value in values.items():
        if name.startswith("out/"):
            assert_close(output[name.removeprefix("out/")], value, 1e-5, name)
        elif name.startswith("grad/"):
            actual = output["gradients/" + name.removeprefix("grad/")]
            np.testing.assert_allclose(actual, value, rtol=0, atol=1e-5 * steepest, err_msg=name)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
@pytest.mark.parametrize("case", ["mlm", "regression", "multilabel", "choice", "tokcls", "qa"])
def test_gradients_are_slopes(case, activation):
    model = reference(case, activation=activation)
    batch = batches(model.config, model.head)["head_mask and position_ids"]
    gradients = model(batch, with_gradients=True)
    generator = np.random.default_rng(0)
    for name, value in model.trained.items():
        place = tuple(generator.integers(0, value.array.shape))
        if name.endswith("word_embeddings.weight"):
            place = (batch["input_ids"].flat[0], place[1])  # a word that occurs
        kept = value.array[place]
        losses = []
        for step in (1e-5, -1e-5):
            value.array[place] = kept + step
            losses.append(model(batch)["loss"])
        value.array[place] = kept
        slope = (losses[0] - losses[1]) / 2e-5
        assert gradients[f"gradients/{name}"][place] == pytest.approx(slope, rel=1e-4, abs=1e-7), name


def test_unknown_activations_are_refused():
    model = reference("base")
    model.config.activation = "mish"
    with pytest.raises(InputError, match="mish"):
        model(batches(model.config, model.head)["ragged"])
