"""The contract of all backends: the reference's numbers, for every head, attention, type, device and kind of input."""

import functools

import numpy as np
import pytest
import torch
from backends import HEADS, head_of

import distilbert.pt.encoder
from distilbert import DistilBertConfig
from distilbert.parity.comparison import BACKENDS, REFERENCE, compare
from distilbert.parity.inputs import batches, many_rows

device = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")),
    ],
)


@pytest.fixture
def run(shallow):
    def compared(case, make=batches, backends=BACKENDS, **options):
        every = make(DistilBertConfig.from_pretrained(shallow(case)), head_of(case))
        return compare(shallow(case), head_of(case), every, backends=backends, **options)

    return compared


def one_batch(config, head):
    return {"ragged": batches(config, head)["ragged"]}


@device
@pytest.mark.parametrize("case", HEADS)
def test_float32(run, case, device):
    found = run(case, device=device)
    assert not found.outside
    quantities = {difference.quantity.split("/")[0] for difference in found.differences}
    assert quantities >= {"hidden_states", "attentions"} | ({"loss", "gradients"} if case != "base" else set())
    assert {(difference.backend, difference.other) for difference in found.differences} >= {
        (backend, REFERENCE) for backend in BACKENDS
    }


@device
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", HEADS)
def test_low_precision(run, case, dtype, device):
    assert not run(case, many_rows, dtype=dtype, device=device).outside


def test_who_is_off_is_named(run, monkeypatch):
    """The one backend, not the others, and the first layer, not all that follow from it."""
    tanh = functools.partial(torch.nn.functional.gelu, approximate="tanh")
    monkeypatch.setitem(distilbert.pt.encoder.ACTIVATIONS, "gelu", tanh)
    found = run("seqcls", one_batch, backends=("torch", "tf"))
    off = [difference for difference in found.outside if difference.other == REFERENCE]
    assert {difference.backend for difference in off} == {"torch"}
    assert off[0].quantity == "hidden_states/1"


def test_nan_is_outside(run, monkeypatch):
    monkeypatch.setitem(distilbert.pt.encoder.ACTIVATIONS, "gelu", lambda value: value * np.nan)
    assert run("base", one_batch, backends=("torch",)).outside
