"""``distilbert convert --verify``: what is written computes what was read, or nothing is written."""

import importlib.util
import shutil

import numpy as np
import pytest
from conftest import GOLDEN

from distilbert.conversion import VerificationError, convert
from distilbert.core.errors import InputError, MissingBackendError


def source(folder, *files, case="seqcls"):
    folder.mkdir()
    for name in ("config.json", *files):
        shutil.copy(GOLDEN / f"distilbert-{case}" / name, folder)
    return folder


@pytest.mark.parametrize(
    "file, to, frameworks",
    [
        ("model.safetensors", "h5", ("torch", "tf")),
        ("tf_model.h5", "msgpack", ("tf", "flax")),
        ("flax_model.msgpack", "torch", ("flax", "torch")),
        ("model.safetensors", "keras", ("torch", "tf")),
        ("model.safetensors", "keras-hub", ("torch", "tf")),
    ],
)
def test_each_in_its_own_framework(file, to, frameworks, tmp_path):
    found = convert(source(tmp_path / "source", file), tmp_path / "target", to, verify=True).verification
    assert (found.source_framework, found.target_framework) == frameworks
    assert [layer.name for layer in found.layers] == ["embeddings", "layer 1", "layer 2", "layer 3", "head"]
    assert all(0 < max(layer.converted, layer.reloaded) < 1e-5 for layer in found.layers)


def test_the_first_layer_that_differs_is_named(monkeypatch, tmp_path):
    """Weights that are changed on their way."""
    from distilbert.conversion import convert as public
    from distilbert.core import checkpoint

    arrange = checkpoint.Format.arrange

    def wrong(self, tensors, owner):
        name = "distilbert.transformer.layer.1.ffn.lin1.bias"
        return arrange(self, {**tensors, name: tensors[name] + np.float32(0.01)}, owner)

    monkeypatch.setattr(checkpoint.Format, "arrange", wrong)
    with pytest.raises(VerificationError, match=r"layer 2 differs by .* nothing was written") as caught:
        public(source(tmp_path / "source", "model.safetensors"), tmp_path / "target", "torch", verify=True)
    assert not (tmp_path / "target").exists()
    layers = caught.value.verification.layers
    assert next(layer.name for layer in layers if layer.converted > 1e-5) == "layer 2"
    assert layers[1].converted == 0


def test_one_of_several_formats_is_what_is_verified(tmp_path):
    """The other one, which would be loaded first, holds something else."""
    folder = source(tmp_path / "source", "tf_model.h5")
    shutil.copy(GOLDEN / "distilbert-multilabel" / "model.safetensors", folder)
    found = convert(folder, tmp_path / "target", "safetensors", source_format="h5", verify=True).verification
    assert found.first_outside is None


def test_a_cast_is_a_difference(tmp_path):
    folder = source(tmp_path / "source", "model.safetensors")
    with pytest.raises(VerificationError, match="embeddings"):
        convert(folder, tmp_path / "target", "torch", dtype="float16", verify=True)
    convert(folder, tmp_path / "target", "torch", dtype="float16", verify=True, atol=0.02)


def test_what_cannot_be_verified_is_refused_first(monkeypatch, tmp_path):
    folder = source(tmp_path / "source", "model.safetensors")
    with pytest.raises(InputError, match="allow_missing"):
        convert(folder, tmp_path / "target", "h5", verify=True, allow_missing=["classifier.bias"])
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorflow" else find(name))
    with pytest.raises(MissingBackendError, match=r"distilbert\[tf\]"):
        convert(folder, tmp_path / "target", "h5", verify=True)
    assert not (tmp_path / "target").exists()
