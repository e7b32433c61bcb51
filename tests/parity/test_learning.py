"""Fifty steps of AdamW from the same start, on the same batches, lead to the same losses and weights."""

import itertools

import numpy as np
import pytest
from backends import head_of

from distilbert import DistilBertConfig
from distilbert.parity.bounds import TRAINED_LOSS, TRAINED_WEIGHTS
from distilbert.parity.comparison import make_probe
from distilbert.parity.inputs import batch

STEPS = 50
NO_DROPOUT = dict.fromkeys(("dropout", "attention_dropout", "qa_dropout", "seq_classif_dropout"), 0.0)
# Keras adds epsilon before the correction for the first steps' bias, PyTorch and Optax after it (docs/parity.md).
ADAMW = {"learning_rate": 5e-5, "weight_decay": 0.01, "epsilon": 1e-7}


@pytest.mark.parametrize("case", ["mlm", "qa"])  # words, and places; texts are as words are
def test_training(shallow, case):
    folder = shallow(case)
    config, generator = DistilBertConfig.from_pretrained(folder), np.random.default_rng(0)
    stream = [batch(config, head_of(case), 8, 12, generator) for _ in range(STEPS)]
    start = make_probe("torch", head_of(case), folder).arrays()
    losses, weights = {}, {}
    for backend in ("torch", "tf", "flax"):
        probe = make_probe(backend, head_of(case), folder, **NO_DROPOUT)
        losses[backend] = np.array(probe.train(stream, **ADAMW))
        weights[backend] = probe.arrays()
    assert max(np.abs(value - start[name]).max() for name, value in weights["torch"].items()) > 1e-3  # it has trained
    for one, other in itertools.combinations(losses, 2):
        assert np.abs(losses[one] - losses[other]).max() < TRAINED_LOSS, (one, other)
        for name, value in weights[one].items():
            difference = np.abs(value - weights[other][name]).max()
            assert difference < TRAINED_WEIGHTS * np.abs(value).max(), (one, other, name)
