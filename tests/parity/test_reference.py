"""The reference itself: against transformers' outputs and gradients, and its gradients against differences."""

import numpy as np
import pytest
from backends import EVERY_CASE, WHOLE, assert_close, folder_of, golden, head_of

from distilbert.core.checkpoint import load
from distilbert.core.config import read_config
from distilbert.core.errors import InputError
from distilbert.core.spec import family_of
from distilbert.parity.inputs import batches
from distilbert.parity.reference import Reference


def reference(case, **overrides):
    config = read_config(folder_of(case))
    options = {"config": config, "ignore_mismatched_sizes": False, "family": family_of(config)}
    config, tensors, _ = load(folder_of(case), head_of(case), overrides=overrides, **options)
    return Reference(config, head_of(case), tensors)


@pytest.mark.parametrize("case", EVERY_CASE)
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
@pytest.mark.parametrize("case", ["mlm", "regression", "multilabel", "choice", "tokcls", "qa", WHOLE])
def test_gradients_are_slopes(case, activation):
    model = reference(case, **{"hidden_act" if case == WHOLE else "activation": activation})
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
