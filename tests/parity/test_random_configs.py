"""The same contract for configs and inputs that nobody chose."""

import tempfile

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as some

from distilbert import DistilBertConfig
from distilbert.core.checkpoint import write_checkpoint
from distilbert.core.spec import DISTILBERT, parameters
from distilbert.parity.comparison import BACKENDS, compare
from distilbert.parity.inputs import batches


@some.composite
def configs(draw):
    heads, layers = draw(some.integers(1, 4)), draw(some.integers(1, 2))
    pruned = {
        layer: draw(some.sets(some.integers(0, heads - 1), min_size=1, max_size=heads - 1))
        for layer in draw(some.sets(some.integers(0, layers - 1)))
        if heads > 1
    }
    return DistilBertConfig(
        vocab_size=draw(some.integers(3, 60)),
        max_position_embeddings=draw(some.integers(1, 24)),
        n_layers=layers,
        n_heads=heads,
        dim=heads * draw(some.sampled_from([4, 6, 8, 10])),
        hidden_dim=draw(some.integers(1, 40)),
        activation=draw(some.sampled_from(["gelu", "gelu_new", "relu", "silu"])),
        sinusoidal_pos_embds=draw(some.booleans()),
        tie_word_embeddings=draw(some.booleans()),
        num_labels=draw(some.integers(1, 4)),
        pruned_heads={layer: sorted(numbers) for layer, numbers in pruned.items()},
    )


@settings(max_examples=6, deadline=None, derandomize=True)
@given(configs(), some.sampled_from(list(DISTILBERT.heads)), some.data())
def test_random_configs(config, head, data):
    generator = np.random.default_rng(data.draw(some.integers(0, 1000)))
    rows = [row for row in parameters(config, head) if row.tied_to is None]
    tensors = {row.name: generator.normal(0, 0.3, row.shape).astype(np.float32) for row in rows}
    every = batches(config, head)
    name = data.draw(some.sampled_from(list(every)))
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(folder, config, tensors, head=head)
        found = compare(folder, head, {name: every[name]}, backends=BACKENDS)
    assert not found.outside
