"""What a comparison must not overlook."""

import json
from math import nan

import numpy as np
import pytest
from conftest import GOLDEN

import distilbert.pt.probe
from distilbert.cli.terminal import print_json
from distilbert.conversion.verification import Layer, Verification
from distilbert.core.errors import CheckpointError, InputError
from distilbert.parity import reporting
from distilbert.parity.bounds import low_precision_bound
from distilbert.parity.comparison import REFERENCE, Error, compare
from distilbert.parity.inputs import batches, from_texts

MODEL = GOLDEN / "distilbert-seqcls"


def run(names=("ragged",), head="sequence-classification", **options):
    from distilbert import DistilBertConfig

    every = batches(DistilBertConfig.from_pretrained(MODEL), "sequence-classification")
    chosen = {name: every[name] for name in names}
    return compare(MODEL, head, chosen, **{"backends": ("torch", "torch:sdpa")} | options)


def spoil(monkeypatch, change):
    """Change what the PyTorch probe gives for the first batch only."""
    outputs, calls = distilbert.pt.probe.Probe.outputs, []

    def changed(self, inputs, *, details=True):
        calls.append(inputs)
        found = outputs(self, inputs, details=details)
        return change(found) if len(calls) == 1 else found

    monkeypatch.setattr(distilbert.pt.probe.Probe, "outputs", changed)


def test_a_nan_in_one_batch_of_several(monkeypatch):
    spoil(monkeypatch, lambda found: found | {"hidden_states/2": found["hidden_states/2"] * np.nan})
    found = run(("ragged", "one token"))
    assert {entry.quantity for entry in found.outside} == {"hidden_states/2"}
    assert "nan" in reporting.verdict(found) and "layer 2" in reporting.verdict(found)
    assert any("nan (!)" in cell for line in reporting.table(found)[1] for cell in line)


def test_what_a_backend_does_not_give_is_outside(monkeypatch):
    spoil(monkeypatch, lambda found: {name: value for name, value in found.items() if name != "hidden_states/1"})
    monkeypatch.setattr(distilbert.pt.probe.Probe, "gradients", lambda self, inputs: {})
    kinds = {entry.quantity.split("/")[0] for entry in run().outside if entry.other == REFERENCE}
    assert kinds == {"hidden_states", "gradients"}


def test_errors_add_up_in_any_order():
    for values in ((nan, 1.0), (1.0, nan)):
        error = Error()
        for number, value in enumerate(values):
            error.add(np.array([value, 0.0]), str(number))
        assert np.isnan(error.largest) and error.batch == str(values.index(nan))
    layer = Layer("head", 0.0, nan)
    assert Verification("torch", "tf", 1e-5, (layer,)).first_outside is layer


def test_low_precision_is_judged_by_other_frameworks():
    found = run(dtype="bfloat16")
    assert not found.is_judged and not found.outside
    assert reporting.verdict(found).startswith("nothing was judged")
    assert "Not judged." in reporting.page(found, str(MODEL), {})
    assert low_precision_bound([nan, 0.1], 1000) == low_precision_bound([0.1, nan], 1000) == pytest.approx(0.15)


@pytest.mark.parametrize("dtype", ["float64", "auto", "int8"])
def test_other_types_are_refused(dtype):
    with pytest.raises(InputError, match="expected one of float32, bfloat16, float16"):
        run(dtype=dtype)


def test_an_untrained_head_is_refused():
    with pytest.raises(CheckpointError, match="no trained masked-lm head"):
        run(head="masked-lm")


def test_json_has_no_infinity(capsys):
    print_json({"bound": float("inf"), "of": [nan, 1.0, (2.0,)]})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"bound": None, "of": [None, 1.0, [2.0]]}


def test_batches_of_texts_depend_on_the_texts_only():
    from distilbert import DistilBertConfig, DistilBertTokenizer

    config, tokenizer = DistilBertConfig.from_pretrained(MODEL), DistilBertTokenizer.from_pretrained(MODEL)
    made = from_texts([f"film {n}" for n in range(10)], tokenizer, config, "multiple-choice")
    assert list(made) == ["texts 1 to 8", "texts 9 to 10"]
    assert made["texts 1 to 8"]["input_ids"].shape[:2] == (1, 8)
