"""Every backend against transformers 4.57.6, case by case (tests/golden, made by its own classes)."""

import shutil
from itertools import product

import numpy as np
import pytest
import torch
from backends import (
    BACKENDS,
    BERT_CASES,
    CASES,
    EVERY_CASE,
    HEADS,
    WHOLE,
    assert_close,
    at_tokens,
    flatten,
    folder_of,
    golden,
    head_of,
    inputs_of,
    load,
)
from conftest import GOLDEN

from distilbert.core import checkpoint
from distilbert.core.spec import BERT, DISTILBERT

FILES = ("model.safetensors", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack")


def check_outputs(backend, model, case, attentions=True):
    values = golden(case)
    output = model(**inputs_of(backend, values), output_hidden_states=True, output_attentions=attentions)
    actual = flatten(backend, output)
    expected = {name[4:]: value for name, value in values.items() if name.startswith("out/")}
    if not attentions:
        expected = {name: value for name, value in expected.items() if not name.startswith("attentions")}
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(actual[name], value, 1e-5, name)


def check_gradients(backend, model, case):
    values = golden(case)
    if "out/loss" not in values:
        return
    gradients = BACKENDS[backend].gradients(model, inputs_of(backend, values))
    for name, value in values.items():
        if name.startswith("grad/"):
            # A bias that shifts every score alike (a key's, a choice's) has no gradient: what is there is rounding.
            atol = 1e-6 if np.abs(value).max() < 1e-6 else 1e-4 * np.abs(value).max()
            actual = gradients[name.removeprefix("grad/")]
            np.testing.assert_allclose(actual, value, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("case", EVERY_CASE)
@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_and_gradients(backend, case):
    model = load(backend, case)
    check_outputs(backend, model, case)
    check_gradients(backend, model, case)


@pytest.mark.parametrize("case", EVERY_CASE)
def test_fused_attention(case):
    model = load("torch", case, attn_implementation="sdpa")
    check_outputs("torch", model, case, attentions=False)
    check_gradients("torch", model, case)


@pytest.mark.parametrize("case", [*CASES, "bert-base", "bert-nsp", "bert-seqcls"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_without_hidden_states(backend, case):
    """The way most calls go, where a classifier's last layer may compute the first token only."""
    values = golden(case)
    mask = values["in/attention_mask"]
    actual = flatten(backend, load(backend, case)(**inputs_of(backend, values, labels=False)))
    expected = at_tokens({name: values[f"out/{name}"] for name in actual}, case, mask)
    for name, value in at_tokens(actual, case, mask).items():
        assert_close(value, expected[name], 1e-5, name)


def tensors_of(case, folder):
    """What every backend is given to fill its parameters with."""
    family = BERT if case in BERT_CASES else DISTILBERT
    options = {"config": None, "overrides": {}, "ignore_mismatched_sizes": False}
    return checkpoint.load(folder, head_of(case), family=family, **options)[1]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "backend, case",
    # Some files leave out a sinusoidal table, which the backends compute.
    [*product([None], sorted(EVERY_CASE.keys() - {"sinusoidal"})), *product(BACKENDS, ["mlm", "sinusoidal", WHOLE])],
)
def test_every_format_gives_the_same_parameters(backend, case, file, tmp_path):
    def read(folder):
        return BACKENDS[backend].parameters(load(backend, case, folder)) if backend else tensors_of(case, folder)

    for filename in ("config.json", file):
        shutil.copy(folder_of(case) / filename, tmp_path)
    expected, actual = read(folder_of(case)), read(tmp_path)
    assert sorted(actual) == sorted(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


@pytest.mark.parametrize(
    "backend, options",
    [("torch", {}), ("tf", {}), ("tf", {"format": "h5"}), ("flax", {}), ("flax", {"format": "msgpack"})],
)
@pytest.mark.parametrize("case, size", [*((case, "5GB") for case in HEADS), (WHOLE, "20KB"), (WHOLE, "5GB")])
def test_saved_models_come_back(backend, options, case, size, tmp_path):
    model = load(backend, case)
    written = model.save_pretrained(tmp_path, max_shard_size=size, **options)
    assert (len(written) > 2) == (size == "20KB")
    loaded, report = load(backend, case, tmp_path, output_loading_info=True)
    assert not report.missing and not report.unexpected and not report.mismatched
    expected = BACKENDS[backend].parameters(model)
    for name, value in BACKENDS[backend].parameters(loaded).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("folder", ["sharded", "sharded-h5", "sharded-msgpack"])
def test_shards_written_by_transformers(backend, folder):
    model = load(backend, "mlm", GOLDEN / "distilbert-mlm" / folder)
    values = golden("mlm")
    actual = flatten(backend, model(**inputs_of(backend, values)))
    assert_close(actual["logits"], values["out/logits"], 1e-5)


@pytest.mark.parametrize("case", EVERY_CASE)
def test_state_dict_loads_strictly(case):
    state = torch.load(folder_of(case) / "pytorch_model.bin", weights_only=True)
    load("torch", case).load_state_dict(state, strict=True)
