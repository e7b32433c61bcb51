"""KerasHub's presets: those that keras-hub saved are read, ours are like them, and what does not fit is refused."""

import json
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from conftest import GOLDEN

import distilbert
from distilbert import DistilBertConfig, DistilBertTokenizer
from distilbert.conversion import convert, inspect
from distilbert.core.errors import CheckpointError, ConfigError, InputError
from distilbert.core.files import COMMITTED, current_file, replace_files
from distilbert.core.formats import safetensors, same_bits

PRESETS = GOLDEN / "keras-hub"
CLASSES = {
    "backbone": "DistilBertModel",
    "classifier": "DistilBertForSequenceClassification",
    "masked-lm": "DistilBertForMaskedLM",
}
ROUND_TRIPS = ("base", "mlm", "seqcls", "regression", "multilabel")


def stored(folder):
    return safetensors.read(folder / "model.safetensors")


def assert_identical(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert same_bits(actual[name], value), name


def read_json(path):
    return json.loads(path.read_text())


def edit_json(path, edit):
    content = read_json(path)
    edit(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def preset(tmp_path):
    """A classifier with its tokenizer, to damage."""
    shutil.copytree(PRESETS / "classifier", tmp_path / "preset")
    return tmp_path / "preset"


@pytest.fixture
def checkpoint(tmp_path):
    """A classifier of ours with its tokenizer, to change."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json"):
        shutil.copy(GOLDEN / "distilbert-seqcls" / name, folder)
    return folder


@pytest.mark.parametrize("name", CLASSES)
def test_presets_of_keras_hub_compute_what_they_did(name, tmp_path):
    golden = np.load(PRESETS / "golden.npz")
    report = convert(PRESETS / name, tmp_path, "safetensors", dtype="float32", overwrite=True)
    assert report.source_format == "keras-hub"
    model = getattr(distilbert, CLASSES[name]).from_pretrained(tmp_path).eval()
    if name == "masked-lm":
        model.vocab_layer_norm.eps = 1e-5  # KerasHub's; DistilBERT's is 1e-12
    ids, mask = (torch.from_numpy(golden[key]).long() for key in ("token_ids", "padding_mask"))
    with torch.no_grad():
        output = model(ids, mask)
    actual = output.last_hidden_state if name == "backbone" else output.logits
    expected = torch.from_numpy(golden[name.replace("-", "_")])
    kept = slice(None) if name == "classifier" else mask.bool()
    torch.testing.assert_close(actual[kept], expected[kept], rtol=0, atol=1e-5)


def test_the_tokenizer_comes_along(tmp_path):
    golden = np.load(PRESETS / "golden.npz")
    convert(PRESETS / "classifier", tmp_path / "out", "safetensors")
    tokenizer = DistilBertTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.model_max_length == 9
    encoded = tokenizer(str(golden["text"]), padding="max_length")["input_ids"]
    assert encoded == golden["text_ids"].tolist()
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def described(folder):
    """What a preset says, without the names and dates that KerasHub gives by the hour, and what we add."""

    def plain(value):
        if isinstance(value, dict):
            return {
                key: plain(entry) for key, entry in value.items() if key not in ("name", "date_saved", "distilbert")
            }
        return value

    texts = {
        str(path.relative_to(folder)): plain(read_json(path))
        for path in folder.rglob("*.json")
        if path.name != "model.weights.json"
    }
    for name in texts:  # whose name is a policy's, not an object's
        dtype = (read_json(folder / name).get("config") or {}).get("dtype")
        texts[name] = (texts[name], dtype)
    for path in sorted(folder.rglob("*.txt")):
        texts[path.name] = path.read_text()
    variables = {}
    for path in sorted(folder.glob("*.weights.h5")):
        with h5py.File(path) as file:
            file.visititems(
                lambda name, item: (
                    variables.update({name: (item[()].tobytes(), item.shape, dict(item.attrs))})
                    if isinstance(item, h5py.Dataset) and not name.startswith("optimizer")
                    else None
                )
            )
    return texts, variables


@pytest.mark.parametrize("name", CLASSES)
def test_what_is_written_is_what_keras_hub_writes(name, tmp_path):
    convert(PRESETS / name, tmp_path / "middle", "torch")
    convert(tmp_path / "middle", tmp_path / "out", "keras-hub")
    assert described(tmp_path / "out") == described(PRESETS / name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("case", ROUND_TRIPS)
def test_there_and_back(case, dtype, tmp_path):
    source = GOLDEN / f"distilbert-{case}"
    convert(source, tmp_path / "first", "safetensors", source_format="safetensors", dtype=dtype)
    planned = convert(tmp_path / "first", tmp_path / "preset", "keras-hub", dry_run=True)
    assert not (tmp_path / "preset").exists()
    assert planned == convert(tmp_path / "first", tmp_path / "preset", "keras-hub")
    files = [path.relative_to(tmp_path / "preset") for path in (tmp_path / "preset").rglob("*") if path.is_file()]
    assert sorted(planned.files) == sorted(map(str, files))
    policy = read_json(tmp_path / "preset" / "config.json")["config"]["dtype"]["config"]
    assert policy == {"name": dtype}
    assert inspect(tmp_path / "preset").head == planned.head
    convert(tmp_path / "preset", tmp_path / "back", "safetensors")
    assert_identical(stored(tmp_path / "back"), stored(tmp_path / "first"))
    assert (tmp_path / "back" / "config.json").read_text() == (tmp_path / "first" / "config.json").read_text()


def test_what_their_config_lacks_survives_unless_theirs_was_changed(checkpoint, tmp_path):
    own = {"id2label": {"0": "good", "1": "bad", "2": "ugly"}, "label2id": {"good": 0, "bad": 1, "ugly": 2}}
    own |= {"attention_dropout": 0.3, "seq_classif_dropout": 0.4, "qa_dropout": 0.5, "a_key_of_mine": [1]}
    edit_json(checkpoint / "config.json", lambda config: config.update(own))
    convert(checkpoint, tmp_path / "preset", "keras-hub")
    convert(tmp_path / "preset", tmp_path / "same", "safetensors")
    assert read_json(tmp_path / "same" / "config.json").items() >= own.items()

    def changed(task):
        task["config"].update(num_classes=2, dropout=0.25)

    edit_json(tmp_path / "preset" / "task.json", changed)
    edit_json(tmp_path / "preset" / "config.json", lambda config: config["config"].update(dropout=0.15))
    with pytest.raises(CheckpointError, match=r"classifier/kernel is \(32, 3\), which contradicts the config"):
        convert(tmp_path / "preset", tmp_path / "out", "safetensors")
    with h5py.File(tmp_path / "preset" / "task.weights.h5", "r+") as file:
        for name in ("layers/dense_1/vars/0", "layers/dense_1/vars/1"):
            values = file[name][..., :2]
            del file[name]
            file[name] = values
    convert(tmp_path / "preset", tmp_path / "other", "safetensors")
    config = DistilBertConfig.from_pretrained(tmp_path / "other")
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1"} and config.a_key_of_mine == [1]
    assert (config.dropout, config.attention_dropout, config.seq_classif_dropout) == (0.15, 0.3, 0.25)


def test_a_preset_without_our_fields(preset, tmp_path):
    convert(preset, tmp_path / "out", "safetensors")
    config = DistilBertConfig.from_pretrained(tmp_path / "out")
    assert (config.num_labels, config.attention_dropout, config.pad_token_id) == (3, 0.1, 0)
    vocabulary = (preset / "assets" / "tokenizer" / "vocabulary.txt").read_text().split("\n")
    vocabulary[0], vocabulary[5] = vocabulary[5], vocabulary[0]
    (preset / "assets" / "tokenizer" / "vocabulary.txt").write_text("\n".join(vocabulary))
    assert inspect(preset).config["pad_token_id"] == 5


def test_names_of_older_versions(preset, tmp_path):
    convert(preset, tmp_path / "expected", "safetensors")
    with h5py.File(preset / "model.weights.h5", "r+") as file:
        for number in ("", "_1"):
            attention = f"layers/transformer_encoder{number}/_self_attention_layer"
            for name in ("query_dense", "key_dense", "value_dense", "output_dense"):
                file.move(f"{attention}/{name}", f"{attention}/_{name}")
            file[f"{attention}/_dropout_layer/seed_generator/vars/0"] = np.zeros(2, "u4")
    for name in ("config.json", "task.json"):
        path = preset / name
        path.write_text(path.read_text().replace("keras_hub>", "keras_nlp>"))
    convert(preset, tmp_path / "out", "safetensors")
    assert_identical(stored(tmp_path / "out"), stored(tmp_path / "expected"))


@pytest.mark.parametrize("case", ["choice", "tokcls", "qa"])
def test_heads_that_keras_hub_lacks_are_refused(case, tmp_path):
    with pytest.raises(InputError, match=r"KerasHub has no .* model of DistilBert, expected one of base, masked-lm"):
        convert(GOLDEN / f"distilbert-{case}" / "model.safetensors", tmp_path / "out", "keras-hub")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "case, changes, message",
    [
        ("relu", {}, "activation is 'relu', expected 'gelu'"),
        ("gelu_new", {}, "activation is 'gelu_new', expected 'gelu'"),
        ("sinusoidal", {}, "sinusoidal_pos_embds is True, expected False"),
        ("mlm", {"tie_word_embeddings": False}, "tie_word_embeddings is False, expected True"),
        ("base", {"pruned_heads": {0: [1]}}, r"pruned_heads is \{0: \[1\]\}, expected \{\}"),
    ],
)
def test_models_that_keras_hub_lacks_are_refused(case, changes, message, tmp_path):
    model_class = {"mlm": "MaskedLM", "relu": "MaskedLM"}.get(case)
    name = f"DistilBertFor{model_class}" if model_class else "DistilBertModel"
    config = DistilBertConfig.from_pretrained(GOLDEN / f"distilbert-{case}", **changes)
    getattr(distilbert, name)(config).save_pretrained(tmp_path / "source")
    with pytest.raises(InputError, match=message) as raised:
        convert(tmp_path / "source", tmp_path / "out", "keras-hub")
    assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tokenize_chinese_chars": False}, "keeps CJK characters together"),
        ({"do_basic_tokenize": False}, "splits at white space only"),
        ({"added_tokens_decoder": {"97": {"content": "<mine>"}}}, "has added tokens"),
        ({"mask_token": "[CLS]"}, r"special tokens are .*, expected \[PAD\] \[UNK\]"),
    ],
)
def test_tokenizers_that_keras_hub_lacks_are_refused(options, message, checkpoint, tmp_path):
    edit_json(checkpoint / "tokenizer_config.json", lambda config: config.update(options))
    with pytest.raises(InputError, match=message) as raised:
        convert(checkpoint, tmp_path / "out", "keras-hub")
    assert "\n" not in str(raised.value)


def test_the_two_kinds_of_tokenizer_json_are_kept_apart(checkpoint, tmp_path):
    original = DistilBertTokenizer.from_pretrained(checkpoint)
    original.save_pretrained(checkpoint)
    (checkpoint / "vocab.txt").unlink()
    convert(checkpoint, tmp_path / "preset", "keras-hub")
    written = read_json(tmp_path / "preset" / "tokenizer.json")
    assert written["registered_name"] == "keras_hub>DistilBertTokenizer" and written["config"]["strip_accents"]
    convert(tmp_path / "preset", tmp_path / "back", "safetensors")
    again = DistilBertTokenizer.from_pretrained(tmp_path / "back")
    assert again.backend_tokenizer.get_vocab() == original.backend_tokenizer.get_vocab()
    assert again("Éa b!")["input_ids"] == original("Éa b!")["input_ids"]


def set_in(name, **values):
    return lambda folder: edit_json(folder / name, lambda content: content["config"].update(values))


def without(name, key):
    return lambda folder: edit_json(folder / name, lambda content: content["config"].pop(key))


def shards(weight_map):
    def spoil(folder):
        (folder / "model.weights.h5").rename(folder / "model_00000.weights.h5")
        (folder / "model.weights.json").write_text(json.dumps({"weight_map": weight_map}))

    return spoil


def surplus(folder):
    with h5py.File(folder / "model.weights.h5", "r+") as file:
        file["layers/adapter/vars/0"] = np.zeros(3, "f4")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (set_in("task.json", activation="softmax"), r"task.json: its activation is 'softmax', expected linear"),
        (set_in("task.json", activation={"class_name": "F"}), r"expected linear, as ours gives logits"),
        (set_in("task.json", hidden_dim=24), r"task.json: its hidden_dim is 24, expected the backbone's 8"),
        (
            without("config.json", "num_layers"),
            r"config.json: lacks num_layers, expected a config as KerasHub saves it",
        ),
        (set_in("config.json", num_heads=4, hidden_dim=16), r"hidden_dim is 8, expected the backbone's 16"),
        (lambda folder: (folder / "model.weights.h5").unlink(), r"expected model.weights.h5 or model.weights.json"),
        (lambda folder: (folder / "task.weights.h5").unlink(), r"pre_classifier.weight is missing"),
        (
            lambda folder: (folder / "task.weights.h5").write_bytes(b"HDF"),
            r"task.weights.h5: not a .weights.h5 that can",
        ),
        (lambda folder: (folder / "task.json").write_text("{}"), r"expected DistilBertMaskedLM or DistilBertTextClass"),
        (lambda folder: (folder / "task.json").write_text("["), r"task.json: is not valid JSON"),
        (shards({"/vars": "../outside.weights.h5"}), r"names the shard '../outside.weights.h5', expected a plain"),
        (
            shards({"/vars": ["model_00000.weights.h5", "other.weights.h5"]}),
            r"the shard other.weights.h5, which is not",
        ),
        (shards([1]), r"has no weight_map"),
        (set_in("preprocessor.json", sequence_length="long"), r"its sequence_length is 'long', expected an integer"),
        (set_in("preprocessor.json", sequence_length=True), r"its sequence_length is True, expected an integer"),
        (set_in("tokenizer.json", suffix_indicator="@@"), r"its suffix_indicator is '@@', expected '##'"),
        (set_in("tokenizer.json", oov_token="<unk>"), r"its oov_token is '<unk>', expected '\[UNK\]'"),
        (set_in("tokenizer.json", split=False), r"its split is False, expected True"),
        (surplus, r"model.weights.h5/layers/adapter/vars/0 would be left over"),
    ],
)
def test_presets_that_are_no_model_of_ours_are_refused(spoil, message, preset, tmp_path):
    spoil(preset)
    with pytest.raises(CheckpointError, match=message) as raised:
        convert(preset, tmp_path / "out", "safetensors")
    assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()


def test_values_that_no_model_has_are_refused(preset):
    set_in("config.json", num_heads=0)(preset)
    with pytest.raises(ConfigError, match="n_heads"):
        inspect(preset)
    set_in("config.json", num_heads=2, num_layers=10**12)(preset)
    with pytest.raises(ConfigError, match="n_layers is 1000000000000, expected at most 10000"):
        inspect(preset)
    edit_json(preset / "config.json", lambda config: config.update(distilbert={"id2label": 5}))
    set_in("config.json", num_layers=2)(preset)
    with pytest.raises(ConfigError, match="id2label is 5"):
        inspect(preset)


def test_a_preset_is_no_checkpoint_but_says_what_to_do(preset):
    with pytest.raises(ConfigError, match=r"turn a KerasHub preset into a checkpoint with `distilbert convert`"):
        distilbert.DistilBertModel.from_pretrained(preset)


def test_a_preset_may_be_named_by_its_folder_or_a_file(preset):
    assert inspect(preset).parameters == inspect(preset / "model.weights.h5").parameters
    assert inspect(preset, file_format="keras-hub").file_format == "keras-hub"
    with pytest.raises(CheckpointError, match=r"is a KerasHub preset, expected tf_model.h5"):
        inspect(preset, file_format="h5")
    with pytest.raises(CheckpointError, match="no weights there; expected a KerasHub preset"):
        inspect(GOLDEN / "distilbert-seqcls", file_format="keras-hub")


def test_a_checkpoint_and_a_preset_do_not_share_a_folder(checkpoint, preset, tmp_path):
    for folder, to in ((checkpoint, "keras-hub"), (preset, "safetensors")):
        with pytest.raises(CheckpointError, match=r"holds the source, whose config.json is of another kind"):
            convert(folder, folder, to, overwrite=True)
    (preset / "notes.txt").write_text("mine")
    convert(checkpoint, preset, "keras-weights", overwrite=True)
    assert inspect(preset).file_format == "keras-weights"
    assert {path.name for path in preset.rglob("*") if path.is_file()} == {
        *("config.json", "model.weights.h5", "notes.txt", "tokenizer_config.json", "vocab.txt"),
    }
    convert(checkpoint, preset, "keras-hub", overwrite=True)
    assert inspect(preset).file_format == "keras-hub" and (preset / "notes.txt").read_text() == "mine"
    convert(preset, preset, "keras-hub", overwrite=True, dtype="float16")
    assert inspect(preset).dtypes == {"float16": 56}
    assert (preset / "assets" / "tokenizer" / "vocabulary.txt").is_file()


def test_a_save_with_folders_that_a_crash_cut_short_is_finished(tmp_path):
    committed = tmp_path / COMMITTED / "assets"
    committed.mkdir(parents=True)
    (committed / "new.txt").write_text("new")
    (committed / "old.txt.superseded").touch()
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "old.txt").write_text("old")
    assert current_file(tmp_path, "assets/new.txt").read_text() == "new"
    assert not current_file(tmp_path, "assets/old.txt").exists()
    with replace_files(tmp_path):
        pass
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"new.txt"}


def test_from_the_shell(preset, tmp_path):
    command = [sys.executable, "-m", "distilbert", "convert", str(preset), str(tmp_path / "out"), "--to", "keras"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert shown.startswith("40 tensors, 2 dropped; config.json, model.keras, vocab.txt, tokenizer_config.json written")
