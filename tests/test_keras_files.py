"""Files of Keras 3: what Keras itself saves is read, what we write Keras loads, and what is hostile is refused."""

import json
import shutil
import struct
import warnings
import zipfile

import h5py
import keras
import numpy as np
import pytest
from backends import HEADS, WHOLE, folder_of
from conftest import GOLDEN

from distilbert import DistilBertModel, tf
from distilbert.conversion import convert, inspect
from distilbert.core.checkpoint import read_checkpoint
from distilbert.core.config import DistilBertConfig
from distilbert.core.errors import CheckpointError, ConfigError
from distilbert.core.formats import keras as keras_files
from distilbert.core.formats import safetensors, same_bits
from distilbert.tf import loading

CLASSES = {
    "bert-base": tf.TFBertModel,
    WHOLE: tf.TFBertForPreTraining,
    "base": tf.TFDistilBertModel,
    "mlm": tf.TFDistilBertForMaskedLM,
    "seqcls": tf.TFDistilBertForSequenceClassification,
    "choice": tf.TFDistilBertForMultipleChoice,
    "tokcls": tf.TFDistilBertForTokenClassification,
    "qa": tf.TFDistilBertForQuestionAnswering,
}


def assert_identical(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert same_bits(np.asarray(actual[name]), np.asarray(value)), name


def stored(folder):
    return safetensors.read(folder / "model.safetensors")


def variables(path):
    """The places of all variables, and the names of their layers, as the HDF5 library reads them."""
    with h5py.File(path) as file:
        found = {}
        file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
        return {name: item.parent.attrs["name"] for name, item in found.items()}


@pytest.fixture
def saved(tmp_path):
    """A classifier as Keras saves it, to damage."""
    model = CLASSES["seqcls"].from_pretrained(GOLDEN / "distilbert-seqcls")
    model.save(tmp_path / "mine.keras")
    model.save_weights(tmp_path / "mine.weights.h5")
    model.config.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "case, dtype", [*((case, "float32") for case in HEADS), *((WHOLE, dtype) for dtype in ("bfloat16", "float16"))]
)
def test_keras_loads_what_is_written(case, dtype, tmp_path):
    source = folder_of(case)
    convert(source, tmp_path / "expected", "safetensors", source_format="safetensors", dtype=dtype)
    expected = stored(tmp_path / "expected")
    convert(tmp_path / "expected", tmp_path / "whole", "keras")
    convert(tmp_path / "expected", tmp_path / "weights", "keras-weights")
    loaded = keras.models.load_model(tmp_path / "whole" / "model.keras")
    assert type(loaded) is CLASSES[case] and loaded.dtype_policy.name == dtype
    assert_identical(loading.to_arrays(loaded), expected)
    filled = CLASSES[case](loaded.config, dtype=dtype)
    filled.load_weights(tmp_path / "weights" / "model.weights.h5")
    assert_identical(loading.to_arrays(filled), expected)
    loaded.save_weights(tmp_path / "own.weights.h5")
    assert variables(tmp_path / "weights" / "model.weights.h5") == variables(tmp_path / "own.weights.h5")


@pytest.mark.parametrize("case, dtype", [*((case, "float32") for case in (*HEADS, "bert-base")), (WHOLE, "bfloat16")])
def test_what_keras_saves_is_read(case, dtype, tmp_path):
    model = CLASSES[case].from_pretrained(folder_of(case), dtype=dtype)
    model.save(tmp_path / "mine.keras")
    model.save_weights(tmp_path / "mine.weights.h5")
    for name in ("mine.keras", "mine.weights.h5"):
        if name == "mine.weights.h5":
            model.config.save_pretrained(tmp_path)
        report = convert(tmp_path / name, tmp_path / f"from-{name}", "safetensors")
        assert report.head == model.head and not any(entry.note for entry in report.entries)
        assert_identical(stored(tmp_path / f"from-{name}"), loading.to_arrays(model))


def test_the_state_of_training_is_left_behind(tmp_path):
    model = CLASSES["seqcls"].from_pretrained(GOLDEN / "distilbert-seqcls", dtype="mixed_float16", n_layers=1)
    model.compile(keras.optimizers.AdamW(1e-3, use_ema=True), metrics=["accuracy"])
    model.fit(np.array([[5, 6, 7, 8]]), np.array([1]), verbose=0)
    model.save(tmp_path / "trained.keras")
    report = convert(tmp_path / "trained.keras", tmp_path / "out", "safetensors")
    assert_identical(stored(tmp_path / "out"), loading.to_arrays(model))
    dropped = {entry.source.partition("/")[0] for entry in report.entries if entry.note}
    assert dropped == {"optimizer"}


def test_changed_models(tmp_path):
    model = CLASSES["mlm"].from_pretrained(GOLDEN / "distilbert-mlm")
    model.prune_heads({0: [1], 2: [0, 3]})
    model.resize_token_embeddings(101)
    model.save(tmp_path / "changed.keras")
    convert(tmp_path / "changed.keras", tmp_path / "out", "safetensors")
    assert_identical(stored(tmp_path / "out"), loading.to_arrays(model))
    convert(tmp_path / "out", tmp_path / "back", "keras")
    loaded = keras.models.load_model(tmp_path / "back" / "model.keras")
    assert_identical(loading.to_arrays(loaded), loading.to_arrays(model))


def test_an_untied_output_is_a_layer_like_others(tmp_path):
    config = DistilBertConfig.from_pretrained(GOLDEN / "distilbert-mlm", tie_word_embeddings=False)
    model = CLASSES["mlm"](config)
    model.save(tmp_path / "untied.keras")
    convert(tmp_path / "untied.keras", tmp_path / "out", "safetensors")
    assert_identical(stored(tmp_path / "out"), loading.to_arrays(model))
    convert(tmp_path / "out", tmp_path / "back", "keras-weights")
    model.load_weights(tmp_path / "back" / "model.weights.h5")


def test_dtypes_that_differ_are_kept_under_the_wider_one(tmp_path):
    tensors = {name: np.array(value) for name, value in stored(GOLDEN / "distilbert-base").items()}
    narrow = "transformer.layer.1.ffn.lin1.weight"
    tensors[narrow] = tensors[narrow].astype(np.float16)
    shutil.copy(GOLDEN / "distilbert-base" / "config.json", tmp_path)
    safetensors.write(tmp_path / "model.safetensors", tensors)
    convert(tmp_path, tmp_path / "out", "keras")
    loaded = loading.to_arrays(keras.models.load_model(tmp_path / "out" / "model.keras"))
    for name, value in tensors.items():
        np.testing.assert_array_equal(loaded[name], value)
    convert(tmp_path / "out", tmp_path / "back", "safetensors")
    assert_identical(stored(tmp_path / "back"), tensors)


@pytest.mark.parametrize("file_format", ["keras", "keras-weights"])
def test_a_folder_with_such_a_file_is_a_checkpoint(file_format, tmp_path):
    folder = GOLDEN / "distilbert-seqcls"
    model = CLASSES["seqcls"].from_pretrained(folder)
    written = model.save_pretrained(tmp_path, format=file_format, max_shard_size="1KB")  # one file all the same
    assert len(written) == 2
    expected = loading.to_arrays(model)
    assert_identical(loading.to_arrays(CLASSES["seqcls"].from_pretrained(tmp_path)), expected)
    state = DistilBertModel.from_pretrained(tmp_path).state_dict()
    for name, value in state.items():
        np.testing.assert_array_equal(value.numpy(), expected[f"distilbert.{name}"])


def test_equal_weights_make_equal_files(tmp_path):
    for file_format, name in (("keras", "model.keras"), ("keras-weights", "model.weights.h5")):
        contents = []
        for folder in ("one", "two"):
            convert(GOLDEN / "distilbert-qa" / "model.safetensors", tmp_path / file_format / folder, file_format)
            assert len(list((tmp_path / file_format / folder).iterdir())) == 2
            contents.append((tmp_path / file_format / folder / name).read_bytes())
        assert contents[0] == contents[1]


def test_only_a_keras_file_brings_its_config(saved):
    (saved / "config.json").unlink()
    (saved / "notes.txt").write_text("mine")
    assert inspect(saved / "mine.keras").head == "sequence-classification"
    with pytest.raises(CheckpointError, match=r"no config.json there"):
        inspect(saved / "mine.weights.h5")
    with pytest.raises(CheckpointError, match=r"expected one of .*, \*.keras, \*.weights.h5"):
        inspect(saved / "notes.txt")


def test_the_class_decides_where_weights_fit_two_heads(tmp_path):
    base = DistilBertConfig.from_pretrained(GOLDEN / "distilbert-base")
    CLASSES["choice"](DistilBertConfig.from_dict(base.to_dict(), num_labels=1)).save(tmp_path / "x.keras")
    assert inspect(tmp_path / "x.keras").head == "multiple-choice"


def test_what_is_not_of_the_model_is_named(saved):
    path = saved / "mine.weights.h5"
    with h5py.File(path, "r+") as file:
        file["distilbert/embeddings/dropout/seed_generator/vars/0"] = np.zeros(2, "u4")
        file["layers/dense_2/vars/0"] = np.zeros((2, 2), "f4")
        file["layers/dense_2/vars"].attrs["name"] = "mine"
    assert inspect(path).unused == ("layers/dense_2/vars/0",)
    with pytest.raises(CheckpointError, match=r"layers/dense_2/vars/0 would be left over"):
        convert(path, saved / "out", "torch")
    report = convert(path, saved / "out", "torch", allow_unused=["layers/dense_2/vars/0"])
    assert sum(entry.note == "dropped" for entry in report.entries) == 2


def test_names_may_be_of_fixed_length(saved):
    path = saved / "mine.weights.h5"
    expected = keras_files.read_weights(path)
    with h5py.File(path, "r+") as file:
        file["layers/dense/vars"].attrs["name"] = np.bytes_("pre_classifier")
        file["layers/dense_1/vars"].attrs["näme"] = "of another alphabet"
    assert_identical(keras_files.read_weights(path), expected)


def no_name(file):
    del file["layers/dense/vars"].attrs["name"]


def same_name(file):
    file["layers/dense_1/vars"].attrs["name"] = "pre_classifier"


def number_for_name(file):
    file["layers/dense/vars"].attrs["name"] = 3


def list_for_name(file):
    file["layers/dense/vars"].attrs["name"] = ["a", "b"]


def long_name(file):
    file["layers/dense/vars"].attrs["name"] = "x" * 1000


def nothing_of_ours(file):
    file.move("layers", "others")
    file.move("distilbert", "another")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (no_name, "does not say what layers/dense/vars/0 is called"),
        (same_name, "holds pre_classifier/bias more than once|holds pre_classifier/kernel more than once"),
        (number_for_name, "attribute b'name' is not one text"),
        (list_for_name, "attribute b'name' is not one text"),
        (long_name, "damaged, or longer than 256 bytes"),
        (nothing_of_ours, "holds no layers of distilbert.tf"),
    ],
)
def test_weights_that_do_not_fit_are_refused(spoil, message, saved):
    with h5py.File(saved / "mine.weights.h5", "r+") as file:
        spoil(file)
    with pytest.raises(CheckpointError, match=message) as raised:
        keras_files.read_weights(saved / "mine.weights.h5")
    assert "\n" not in str(raised.value)


def heap_beyond_the_end(content):
    struct.pack_into("<Q", content, content.find(b"GCOL") + 8, 1 << 40)


def text_beyond_its_heap(content):
    struct.pack_into("<Q", content, content.find(b"GCOL") + 16 + 8, 1 << 40)


def heap_elsewhere(content):
    content[content.find(b"GCOL") : content.find(b"GCOL") + 4] = b"HEAP"


@pytest.mark.parametrize("spoil", [heap_beyond_the_end, text_beyond_its_heap, heap_elsewhere])
def test_damaged_lists_of_texts_are_refused(spoil, saved):
    content = bytearray((saved / "mine.weights.h5").read_bytes())
    spoil(content)
    (saved / "mine.weights.h5").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a list of texts is damaged|damaged, or longer"):
        keras_files.read_weights(saved / "mine.weights.h5")


def rezip(path, compression=zipfile.ZIP_STORED, **edit):
    """Write the archive again with some entries exchanged, added or (with None) left out; dots are spelt ``_``."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries |= {name.replace("_", "."): content for name, content in edit.items()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            if content is not None:
                archive.writestr(name, content)


def directory_entry(path, name):
    """Where the table of contents describes an entry."""
    content = bytearray(path.read_bytes())
    return content, content.rindex(name.encode()) - 46


def compressed(path):
    rezip(path, zipfile.ZIP_DEFLATED)


def encrypted(path):
    content, place = directory_entry(path, "model.weights.h5")
    content[place + 8] |= 1
    path.write_bytes(content)


def twice(path):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("config.json", "{}")


def overlapping(path):
    content, place = directory_entry(path, "config.json")
    struct.pack_into("<2I", content, place + 20, 5000, 5000)
    path.write_bytes(content)


def out_of_range(path):
    content, place = directory_entry(path, "model.weights.h5")
    struct.pack_into("<2I", content, place + 20, 1 << 30, 1 << 30)
    path.write_bytes(content)


def truncated(path):
    path.write_bytes(path.read_bytes()[:-40])


def without_weights(path):
    rezip(path, model_weights_h5=None)


def with_weights_of_another_kind(path):
    rezip(path, model_weights_h5=b"PK\x03\x04" * 100)


def no_zip(path):
    path.write_bytes(b"nothing of the kind")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (compressed, "is compressed or encrypted"),
        (encrypted, "is compressed or encrypted"),
        (twice, "is damaged, or there twice"),
        (overlapping, "lies within another one"),
        (out_of_range, "is damaged, or there twice"),
        (truncated, "is incomplete or damaged"),
        (without_weights, "it has no model.weights.h5"),
        (with_weights_of_another_kind, "it does not begin as one"),
        (no_zip, "is incomplete or damaged"),
    ],
)
def test_unsafe_archives_are_refused(spoil, message, saved):
    spoil(saved / "mine.keras")
    with pytest.raises(CheckpointError, match=message) as raised:
        keras_files.read_archive(saved / "mine.keras")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "config, message",
    [
        (b"[" * 100_000, "not a .keras that can be read"),
        (b"\xff\xfe\x00", "not a .keras that can be read"),
        (b" " * 10_000_001, "config.json is larger than 10000000 bytes"),
        (b"[]", "holds another model than those of distilbert.tf"),
        (b'{"registered_name": "x", "config": {"layers": []}}', "holds another model than those of distilbert.tf"),
    ],
)
def test_configs_of_others_are_refused(config, message, saved):
    rezip(saved / "mine.keras", config_json=config)
    with pytest.raises(CheckpointError, match=message) as raised:
        inspect(saved / "mine.keras")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


def test_a_config_is_data_only(saved):
    with zipfile.ZipFile(saved / "mine.keras") as archive:
        config = json.loads(archive.read("config.json"))
    hostile = {"class_name": "Lambda", "config": {"function": "evil"}, "registered_name": None}
    rezip(saved / "mine.keras", config_json=json.dumps(config | {"compile_config": hostile}).encode())
    assert inspect(saved / "mine.keras").head == "sequence-classification"
    config["config"]["config"]["dim"] = "large"
    rezip(saved / "mine.keras", config_json=json.dumps(config).encode())
    with pytest.raises(ConfigError):
        inspect(saved / "mine.keras")


@pytest.mark.parametrize("name", ["mine.keras", "mine.weights.h5"])
def test_any_damage_ends_in_one_kind_of_error(name, saved):
    original = (saved / name).read_bytes()
    generator = np.random.default_rng(0)
    read = keras_files.read_archive if name == "mine.keras" else keras_files.read_weights
    outcomes = set()
    for _ in range(300):
        content = bytearray(original)
        for place in generator.integers(0, len(content), 30):
            content[place] = generator.integers(0, 256)
        (saved / name).write_bytes(content)
        try:
            read(saved / name)
            outcomes.add("read")
        except CheckpointError:
            outcomes.add("refused")
    assert "refused" in outcomes


def test_other_formats_come_first(saved):
    convert(GOLDEN / "distilbert-seqcls" / "model.safetensors", saved, "keras", overwrite=True)
    (saved / "mine.keras").unlink()
    assert read_checkpoint(saved)[1].name == "model.keras"
    convert(GOLDEN / "distilbert-seqcls" / "model.safetensors", saved, "h5", overwrite=True)
    assert read_checkpoint(saved)[1].name == "tf_model.h5"
    assert not (saved / "model.keras").exists()
