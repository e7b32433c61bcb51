"""The PyTorch backend against transformers 4.57.6, case by case (tests/golden, made by its own classes)."""

import shutil

import numpy as np
import pytest
import torch
from conftest import GOLDEN

import distilbert

CASES = {
    "base": "DistilBertModel",
    "silu": "DistilBertModel",
    "gelu_new": "DistilBertModel",
    "sinusoidal": "DistilBertModel",
    "mlm": "DistilBertForMaskedLM",
    "relu": "DistilBertForMaskedLM",
    "seqcls": "DistilBertForSequenceClassification",
    "regression": "DistilBertForSequenceClassification",
    "multilabel": "DistilBertForSequenceClassification",
    "choice": "DistilBertForMultipleChoice",
    "tokcls": "DistilBertForTokenClassification",
    "qa": "DistilBertForQuestionAnswering",
}


def load(case, **options):
    return getattr(distilbert, CASES[case]).from_pretrained(GOLDEN / f"distilbert-{case}", **options)


def golden(case):
    with np.load(GOLDEN / f"distilbert-{case}" / "golden.npz") as file:
        return dict(file)


def inputs_of(values, labels=True):
    return {
        name.removeprefix("in/"): torch.from_numpy(value)
        for name, value in values.items()
        if name.startswith("in/") and (labels or name in ("in/input_ids", "in/attention_mask"))
    }


def flatten(output):
    flat = {}
    for name, value in output.items():
        flat |= {f"{name}/{i}": v for i, v in enumerate(value)} if isinstance(value, tuple) else {name: value}
    return {name: value.detach().numpy() for name, value in flat.items()}


def assert_close(actual, expected, tolerance, name=""):
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(actual / scale, expected / scale, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients(case, attention):
    model, values = load(case, attn_implementation=attention), golden(case)
    output = model(**inputs_of(values), output_hidden_states=True, output_attentions=attention == "eager")
    actual = flatten(output)
    expected = {name[4:]: value for name, value in values.items() if name.startswith("out/")}
    if attention == "sdpa":
        expected = {name: value for name, value in expected.items() if not name.startswith("attentions")}
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(actual[name], value, 1e-5, name)
    if output.loss is None:
        return
    output.loss.backward()
    parameters = dict(model.named_parameters())
    for name, value in values.items():
        if name.startswith("grad/"):
            gradient = parameters[name.removeprefix("grad/")].grad.numpy()
            # A bias that shifts every score alike (a key's, a choice's) has no gradient: what is there is rounding.
            atol = 1e-6 if np.abs(value).max() < 1e-6 else 1e-4 * np.abs(value).max()
            np.testing.assert_allclose(gradient, value, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_every_format_gives_the_same_parameters(case, tmp_path):
    expected = load(case).state_dict()
    for filename in ("config.json", "pytorch_model.bin"):
        shutil.copy(GOLDEN / f"distilbert-{case}" / filename, tmp_path)
    load(case).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    for folder in (tmp_path, tmp_path / "sharded"):
        actual = getattr(distilbert, CASES[case]).from_pretrained(folder).state_dict()
        assert list(actual) == list(expected)
        for name, value in expected.items():
            assert torch.equal(actual[name], value), name


def test_shards_written_by_transformers():
    model = distilbert.DistilBertForMaskedLM.from_pretrained(GOLDEN / "distilbert-mlm" / "sharded")
    values = golden("mlm")
    assert_close(model(**inputs_of(values)).logits.detach().numpy(), values["out/logits"], 1e-5)


@pytest.mark.parametrize("case", CASES)
def test_state_dict_loads_strictly(case):
    state = torch.load(GOLDEN / f"distilbert-{case}" / "pytorch_model.bin", weights_only=True)
    load(case).load_state_dict(state, strict=True)
