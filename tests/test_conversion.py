"""Conversion between formats: strict, bit for bit, all of it or nothing."""

import json
import shutil
import signal
import subprocess
import sys

import h5py
import ml_dtypes
import numpy as np
import pytest
import torch
from backends import EVERY_CASE, HEADS, WHOLE, folder_of, load
from conftest import GOLDEN

from distilbert.conversion import convert, inspect
from distilbert.core.checkpoint import FORMATS
from distilbert.core.errors import CheckpointError, InputError
from distilbert.core.formats import flax_msgpack, h5, keras, safetensors, torch_bin
from distilbert.core.tokenizer import DistilBertTokenizer

READERS = {
    "safetensors": safetensors.read,
    "torch": torch_bin.read,
    "h5": h5.read,
    "msgpack": flax_msgpack.read,
    "keras": keras.read_archive,
    "keras-weights": keras.read_weights,
}
OF_TRANSFORMERS = ("safetensors", "torch", "h5", "msgpack")


def read(folder, file_format):
    return READERS[file_format](folder / FORMATS[file_format].filename)


def assert_identical(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (value.dtype, value.shape), name
        assert actual[name].tobytes() == value.tobytes(), name


@pytest.fixture
def checkpoint(tmp_path):
    """A classifier with one format of weights and a tokenizer, to damage."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / "distilbert-seqcls" / name, folder)
    for path in (GOLDEN / "distilbert-seqcls").glob("*vocab*"):
        shutil.copy(path, folder)
    return folder


def change(folder, **changes):
    """Exchange, add or (with None) remove tensors."""
    tensors = {name: np.array(value) for name, value in read(folder, "safetensors").items()} | changes
    safetensors.write(folder / "model.safetensors", {k: v for k, v in tensors.items() if v is not None})


@pytest.mark.parametrize("to", OF_TRANSFORMERS)
@pytest.mark.parametrize("case", EVERY_CASE)
def test_files_hold_what_those_of_transformers_hold(case, to, tmp_path):
    folder = folder_of(case)
    report = convert(folder, tmp_path / "out", to, source_format="safetensors")
    actual, expected = read(tmp_path / "out", to), read(folder, to)
    if to in ("h5", "msgpack") and case == "sinusoidal":  # transformers has no such branch, or does not store it
        expected = {name: value for name, value in expected.items() if "position_embeddings" not in name}
        actual = {name: value for name, value in actual.items() if "position_embeddings" not in name}
    assert_identical(actual, expected)
    assert report.head == inspect(tmp_path / "out").head
    assert not any(entry.note for entry in report.entries)


@pytest.mark.parametrize("size", ["5GB", "30KB"])
@pytest.mark.parametrize("middle", FORMATS)
@pytest.mark.parametrize("first", OF_TRANSFORMERS)
@pytest.mark.parametrize("case", [*HEADS, WHOLE])
def test_any_path_returns_the_same_bits(case, first, middle, size, tmp_path):
    folder = folder_of(case)
    convert(folder, tmp_path / "middle", middle, source_format=first, max_shard_size=size)
    convert(tmp_path / "middle", tmp_path / "back", first)
    convert(folder, tmp_path / "direct", first, source_format=first)
    assert_identical(read(tmp_path / "back", first), read(tmp_path / "direct", first))
    assert (tmp_path / "back" / "config.json").read_text() == (tmp_path / "direct" / "config.json").read_text()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("to", FORMATS)
def test_half_precision_stays(dtype, to, checkpoint, tmp_path):
    convert(checkpoint, tmp_path / "half", "safetensors", dtype=dtype)
    expected = read(tmp_path / "half", "safetensors")
    assert {value.dtype.name for value in expected.values()} == {dtype}
    if to == "h5" and dtype == "bfloat16":
        with pytest.raises(CheckpointError, match="HDF5 has no bfloat16"):
            convert(tmp_path / "half", tmp_path / "out", to)
        assert not (tmp_path / "out").exists()
        return
    convert(tmp_path / "half", tmp_path / "out", to)
    convert(tmp_path / "out", tmp_path / "back", "safetensors")
    assert_identical(read(tmp_path / "back", "safetensors"), expected)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["dtype"] == dtype


def test_bits_that_are_no_numbers_stay(checkpoint, tmp_path):
    odd = np.frombuffer(bytes(range(0x70, 0x80)) * 24, np.float32).reshape(3, 32)  # infinities and NaNs among them
    change(checkpoint, **{"classifier.weight": odd})
    for to in FORMATS:
        convert(checkpoint, tmp_path / to, to)
        convert(tmp_path / to, tmp_path / f"{to}-back", "safetensors")
        assert read(tmp_path / f"{to}-back", "safetensors")["classifier.weight"].tobytes() == odd.tobytes()


@pytest.mark.parametrize("case", [*HEADS, WHOLE])
def test_pytorch_itself_reads_its_files(case, tmp_path):
    convert(folder_of(case), tmp_path / "out", "torch", source_format="msgpack")
    path = tmp_path / "out" / "pytorch_model.bin"
    expected = torch.load(folder_of(case) / "pytorch_model.bin", weights_only=True)
    for options in ({}, {"mmap": True}):
        state = torch.load(path, weights_only=True, **options)
        assert state.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(state[name], value), name
    load("torch", case).load_state_dict(state, strict=True)
    if case == "mlm":
        words = state["distilbert.embeddings.word_embeddings.weight"]
        assert state["vocab_projector.weight"].data_ptr() == words.data_ptr()


def test_tensors_must_come_out_even(checkpoint, tmp_path):
    change(checkpoint, **{"classifier.bias": None, "surplus": np.zeros(3, np.float32)})
    with pytest.raises(CheckpointError, match=r"as token-classification: .*pre_classifier.weight would be left over"):
        convert(checkpoint, tmp_path / "out", "h5", head="token-classification", allow_missing=["classifier.bias"])
    options = {"head": "sequence-classification"}
    with pytest.raises(CheckpointError, match=r"classifier.bias is missing; surplus would be left over"):
        convert(checkpoint, tmp_path / "out", "h5", **options)
    with pytest.raises(CheckpointError, match=r"classifier.bias is missing$"):
        convert(checkpoint, tmp_path / "out", "h5", **options, allow_unused=["surplus"])
    assert not (tmp_path / "out").exists()
    options |= {"allow_unused": ["surplus"], "allow_missing": ["classifier.bias"]}
    notes = {
        entry.source or entry.target: entry.note
        for entry in convert(checkpoint, tmp_path / "out", "h5", **options).entries
    }
    assert notes["surplus"] == "dropped" and notes["classifier/bias"] == "initialised"
    assert not read(tmp_path / "out", "h5")["classifier/bias"].any()


def test_names_of_strangers_stay_on_one_line(checkpoint, tmp_path):
    change(checkpoint, **{"sur\nplus\x1b[31m" + "x" * 1000: np.zeros(3, np.float32)})
    with pytest.raises(CheckpointError, match="would be left over") as raised:
        convert(checkpoint, tmp_path / "out", "h5")
    assert str(raised.value).isprintable() and len(str(raised.value)) < 600


def test_shapes_must_fit_the_config(checkpoint, tmp_path):
    change(checkpoint, **{"pre_classifier.bias": np.zeros(5, np.float32)})
    with pytest.raises(CheckpointError, match=r"pre_classifier.bias is \(5,\), which contradicts the config"):
        convert(checkpoint, tmp_path / "out", "h5", head="sequence-classification")


def test_a_tied_tensor_must_repeat_what_it_is_tied_to(tmp_path):
    folder = tmp_path / "source"
    shutil.copytree(GOLDEN / "distilbert-mlm", folder)
    words = np.array(read(folder, "safetensors")["distilbert.embeddings.word_embeddings.weight"])
    change(folder, **{"vocab_projector.weight": words})
    report = convert(folder, tmp_path / "out", "msgpack", source_format="safetensors")
    assert [entry.source for entry in report.entries if entry.note == "tied"] == ["vocab_projector.weight"]
    words[0, 0] += 1
    change(folder, **{"vocab_projector.weight": words})
    with pytest.raises(CheckpointError, match=r"vocab_projector.weight differs from .*word_embeddings.weight"):
        convert(folder, tmp_path / "again", "msgpack", source_format="safetensors")


def test_what_is_ambiguous_is_asked_for(tmp_path):
    folder = GOLDEN / "distilbert-seqcls"
    with pytest.raises(CheckpointError, match=r"several formats, .*safetensors \(model.safetensors\), torch"):
        convert(folder, tmp_path / "out", "h5")
    assert convert(folder / "tf_model.h5", tmp_path / "out", "torch").source_format == "h5"
    folder = tmp_path / "one"
    shutil.copytree(GOLDEN / "distilbert-regression", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": None}))
    with pytest.raises(CheckpointError, match=r"fits several heads, .*: sequence-classification, multiple-choice"):
        inspect(folder, file_format="h5")
    assert inspect(folder, file_format="h5", head="multiple-choice").head == "multiple-choice"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"to": "keras2"}, "the format is 'keras2', expected one of safetensors, torch, h5, msgpack"),
        ({"source_format": "h5"}, "no weights there; expected tf_model.h5$"),
        ({"source_format": "hdf"}, "the format is 'hdf', expected one of"),
        ({"head": "lm"}, "no head 'lm'; expected one of base, masked-lm"),
        ({"dtype": "int8"}, "dtype is 'int8', expected one of float32, float16"),
        ({"max_shard_size": "big"}, "max_shard_size is 'big'"),
    ],
)
def test_bad_options_are_explained(options, message, checkpoint, tmp_path):
    with pytest.raises((InputError, CheckpointError), match=message):
        convert(checkpoint, tmp_path / "out", **{"to": "h5", **options})
    assert not (tmp_path / "out").exists()


def test_config_and_tokenizer_travel(checkpoint, tmp_path):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"a_key_of_mine": [1, "two"]}))
    for name in ("vocab.txt", "tokenizer_config.json", "special_tokens_map.json"):
        (checkpoint / name).write_text(f'{{"{name}": 1}}')
    convert(checkpoint, tmp_path / "out", "msgpack")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["a_key_of_mine"] == [1, "two"] and written["id2label"] == config["id2label"]
    for name in ("vocab.txt", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / "out" / name).read_text() == (checkpoint / name).read_text()


def test_what_is_there_is_not_overwritten_by_accident(checkpoint, tmp_path):
    target = tmp_path / "out"
    convert(checkpoint, target, "torch")
    (target / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is there already; choose another place, or overwrite it"):
        convert(checkpoint, target, "h5")
    convert(checkpoint, target, "h5", overwrite=True)
    assert (target / "notes.txt").read_text() == "mine"
    assert inspect(target).file_format == "h5"  # and no other weights beside it


def test_into_the_same_folder(checkpoint):
    convert(checkpoint, checkpoint, "h5", overwrite=True)
    assert (checkpoint / "model.safetensors").is_file()
    assert_identical(read(checkpoint, "h5"), read(GOLDEN / "distilbert-seqcls", "h5"))


def test_whole_weights_give_way_to_shards(checkpoint):
    convert(checkpoint, checkpoint, "safetensors", overwrite=True, max_shard_size="30KB")
    assert inspect(checkpoint).path.name == "model.safetensors.index.json"
    assert not (checkpoint / "model.safetensors").exists()


def test_a_dry_run_writes_nothing(checkpoint, tmp_path):
    planned = convert(checkpoint, tmp_path / "out", "h5", max_shard_size="30KB", dry_run=True)
    assert not (tmp_path / "out").exists() and list(tmp_path.iterdir()) == [checkpoint]
    assert planned == convert(checkpoint, tmp_path / "out", "h5", max_shard_size="30KB")
    assert sorted(planned.files) == sorted(path.name for path in (tmp_path / "out").iterdir())


def test_no_framework_is_needed(tmp_path):
    script = f"""
import sys
for name in ("torch", "tensorflow", "keras", "keras_hub", "jax", "flax"):
    sys.modules[name] = None
from distilbert.conversion import convert, inspect
for first in ("safetensors", "torch", "h5", "msgpack"):
    for then in ("safetensors", "torch", "h5", "msgpack", "keras", "keras-weights", "keras-hub"):
        convert({str(GOLDEN / "distilbert-mlm")!r}, f"{tmp_path}/{{first}}-{{then}}", then, source_format=first)
        assert inspect(f"{tmp_path}/{{first}}-{{then}}").parameters == 31297
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


KILLED_AFTER = """
import os, signal, sys
from distilbert.conversion import convert

left = int(sys.argv[1])

def count(*_):  # every call and return, also of C functions, so that no moment depends on the clock
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

sys.setprofile(count)
convert(*sys.argv[2:])
sys.setprofile(None)
print(-left)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_kill_leaves_nothing_or_everything(checkpoint, tmp_path):
    def convert_and_kill(after, target):
        command = [sys.executable, "-c", KILLED_AFTER, str(after), checkpoint, target, "h5"]
        return subprocess.run(command, stdout=subprocess.PIPE, timeout=60)

    calls = int(convert_and_kill(0, tmp_path / "whole").stdout)
    absent = 0
    for number, after in enumerate(np.linspace(1, calls, 20).astype(int)):
        target = tmp_path / f"out{number}"
        process = convert_and_kill(after, target)
        if target.exists():
            assert inspect(target).missing == ()
            assert (target / "config.json").is_file()
        else:
            assert process.returncode == -signal.SIGKILL
            absent += 1
    assert absent > 10


def cli(*arguments):
    command = [sys.executable, "-m", "distilbert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_commands(checkpoint, tmp_path):
    shown = cli("convert", checkpoint, tmp_path / "out", "--to", "h5", "--dry-run")
    assert shown.returncode == 0 and "classifier/kernel" in shown.stdout and "transposed" in shown.stdout
    assert not (tmp_path / "out").exists()
    shown = cli("convert", checkpoint, tmp_path / "out", "--to", "h5")
    assert shown.stdout.startswith("56 tensors; config.json, tf_model.h5")
    again = cli("convert", checkpoint, tmp_path / "out", "--to", "h5")
    assert again.returncode == 1 and again.stderr.count("\n") == 1 and "is there already" in again.stderr
    plan = json.loads(cli("convert", checkpoint, tmp_path / "b", "--to", "msgpack", "--dry-run", "--json").stdout)
    assert plan["head"] == "sequence-classification" and len(plan["entries"]) == 56
    shown = cli("inspect", tmp_path / "out")
    assert "31,235" in shown.stdout and "DistilBert, sequence-classification" in shown.stdout
    found = json.loads(cli("inspect", tmp_path / "out", "--json").stdout)
    assert found["file_format"] == "h5" and found["dtypes"] == {"float32": 56}
    nothing = cli("inspect", tmp_path / "nothing")
    assert nothing.returncode == 1 and "no such file or folder" in nothing.stderr


def test_bfloat16_is_cast_to_float32_exactly(checkpoint, tmp_path):
    convert(checkpoint, tmp_path / "half", "torch", dtype="bfloat16")
    convert(tmp_path / "half", tmp_path / "whole", "safetensors", dtype="float32")
    expected = read(checkpoint, "safetensors")["classifier.weight"].astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(read(tmp_path / "whole", "safetensors")["classifier.weight"], expected)


@pytest.mark.parametrize("file_format", ["safetensors", "h5"])
def test_a_cast_is_that_of_each_number(file_format, checkpoint, tmp_path):
    """From a source of either orientation; what a dry run announces is what is written."""
    source = tmp_path / "other"
    convert(checkpoint, source, file_format)
    options = {"dtype": "float16", "max_shard_size": "20KB"}
    announced = convert(source, tmp_path / "half", "safetensors", dry_run=True, **options)
    assert announced == convert(source, tmp_path / "half", "safetensors", **options)
    assert sorted(announced.files) == sorted(path.name for path in (tmp_path / "half").iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half", "other", "source"]
    convert(tmp_path / "half", tmp_path / "whole", "safetensors")
    expected = {name: value.astype(np.float16) for name, value in read(checkpoint, "safetensors").items()}
    assert_identical(read(tmp_path / "whole", "safetensors"), expected)


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("size", ["20KB", "5GB"])
def test_progress_adds_up(to, size, checkpoint, tmp_path):
    seen = []
    convert(checkpoint, tmp_path / "target", to, max_shard_size=size, progress=lambda *bytes: seen.append(bytes))
    (total,) = {total for _, total in seen}
    assert sum(size for size, _ in seen) == total == sum(v.nbytes for v in read(checkpoint, "safetensors").values())


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_cast_that_would_overflow_is_refused(dtype, checkpoint, tmp_path):
    tensors = {name: value.astype(dtype) for name, value in safetensors.read(checkpoint / "model.safetensors").items()}
    tensors["classifier.bias"] = np.full_like(tensors["classifier.bias"], 1e6)
    safetensors.write(tmp_path / "new", tensors)
    (tmp_path / "new").replace(checkpoint / "model.safetensors")
    with pytest.raises(InputError, match=r"classifier.bias has values too large for float16; choose bfloat16"):
        convert(checkpoint, tmp_path / "half", "safetensors", dtype="float16")
    assert not (tmp_path / "half").exists()
    convert(checkpoint, tmp_path / "half", "safetensors", dtype="bfloat16")


def test_the_tokenizer_of_what_was_there_goes(checkpoint, tmp_path):
    before = DistilBertTokenizer.from_pretrained(checkpoint)
    words = before.convert_ids_to_tokens(range(len(before)))
    (checkpoint / "vocab.txt").write_text("".join(f"{word}\n" for word in [*words[:5], *words[:4:-1]]))
    convert(checkpoint, tmp_path / "target", "torch")
    before.save_pretrained(tmp_path / "target")  # with a tokenizer.json, which comes first
    convert(checkpoint, tmp_path / "target", "torch", overwrite=True)
    new = DistilBertTokenizer.from_pretrained(tmp_path / "target")
    assert new.vocab == DistilBertTokenizer.from_pretrained(checkpoint).vocab != before.vocab


def test_a_dry_run_cannot_be_verified(checkpoint, tmp_path):
    with pytest.raises(InputError, match="dry run writes nothing"):
        convert(checkpoint, tmp_path / "target", "torch", dry_run=True, verify=True)


@pytest.mark.parametrize("to", ["h5", "keras", "keras-weights"])
def test_errors_of_hdf5_are_one_line(to, checkpoint, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("Disable slist on flush dest failure\n(file write failed: errno = 28, buf = 0x1)")

    monkeypatch.setattr("h5py.Group.create_dataset", fail)
    with pytest.raises(CheckpointError, match=r"cannot write: No space left on device; nothing was changed$"):
        convert(checkpoint, tmp_path / "target", to)
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_names_in_tensorflow_files_are_those_of_transformers(tmp_path):
    """Scopes too, which reading passes over: transformers finds weights by them."""

    def names(path):
        with h5py.File(path) as file:
            listed = ((layer, name) for layer, group in file.items() for name in group.attrs["weight_names"])
            return {(layer, name.decode() if isinstance(name, bytes) else name) for layer, name in listed}

    convert(folder_of(WHOLE), tmp_path / "out", "h5", source_format="safetensors")
    assert names(tmp_path / "out" / "tf_model.h5") == names(folder_of(WHOLE) / "tf_model.h5")


def test_bert_has_no_presets(tmp_path):
    with pytest.raises(InputError, match="DistilBERT's only"):
        convert(folder_of("bert-base"), tmp_path / "out", "keras-hub", source_format="torch")
