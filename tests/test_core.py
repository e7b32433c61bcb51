"""Config, spec, checkpoint files and imports: all that needs no framework."""

import copy
import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import GOLDEN

from distilbert import BertConfig, DistilBertConfig
from distilbert.core import checkpoint, files, hub
from distilbert.core.config import config_from_dict, read_config
from distilbert.core.errors import CheckpointError, ConfigError, InputError
from distilbert.core.spec import BERT, DISTILBERT, FLAX, TENSORFLOW, TORCH, Kind, parameters, sinusoidal_positions

TINY = DistilBertConfig(vocab_size=11, max_position_embeddings=7, n_layers=2, n_heads=2, dim=4, hidden_dim=6)


def test_import_needs_no_framework():
    code = "import sys, distilbert; print([m for m in ('torch', 'tensorflow', 'jax', 'keras', 'flax') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_missing_framework_names_the_extra():
    code = "import sys, importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *a: None if n == 'torch' else f(n, *a)\nimport distilbert\ndistilbert.DistilBertModel"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'pip install "distilbert[torch]"' in result.stderr.splitlines()[-1]


def test_config_defaults_aliases_and_unknown_keys(tmp_path):
    config = DistilBertConfig(hidden_size=48, num_attention_heads=4, house_style="plain")
    assert (config.dim, config.n_heads, config.num_hidden_layers) == (48, 4, 6)
    assert config.house_style == "plain"
    config.num_labels = 3
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    config.save_pretrained(tmp_path)
    assert DistilBertConfig.from_pretrained(tmp_path) == config
    assert json.loads((tmp_path / "config.json").read_text())["house_style"] == "plain"
    assert DistilBertConfig.from_pretrained(tmp_path, num_labels=5).id2label[4] == "LABEL_4"
    assert DistilBertConfig(id2label={0: "a", 1: "b", 2: "c"}).label2id == {"a": 0, "b": 1, "c": 2}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dim": 10, "n_heads": 3}, "divisible"),
        ({"n_layers": -1}, "n_layers is -1"),
        ({"n_layers": 10**9}, "n_layers is 1000000000, expected at most 10000"),
        ({"num_labels": 10**9}, "num_labels is 1000000000, expected at most 1000000"),
        ({"vocab_size": 2.5}, "vocab_size"),
        ({"activation": "swash"}, "gelu_new"),
        ({"model_type": "bert"}, '"bert"'),
        ({"dropout": 1.5}, "probability"),
        ({"pad_token_id": 40000}, "pad_token_id"),
        ({"problem_type": "poetry"}, "problem_type"),
        ({"id2label": {0: "a", 2: "b"}}, "id2label"),
        ({"pruned_heads": {9: [0]}}, "layer 9"),
        ({"pruned_heads": {0: [[1]]}}, "pruned_heads of layer 0 is"),
        ({"pruned_heads": {0: [1, "a"]}}, "pruned_heads of layer 0 is"),
        ({"id2label": {0: ["a"], 1: "b"}}, "id2label of 0 is \\['a'\\], expected a name"),
        ({"vocab_size": 1 << 62}, "vocab_size is 4611686018427387904, expected at most 100000000"),
        ({"max_position_embeddings": 10**13}, "max_position_embeddings is 10000000000000, expected at most 1000000"),
        ({"num_labels": 0}, "num_labels"),
        ({"num_labels": 3, "id2label": {0: "a"}}, "num_labels is 3"),
    ],
)
def test_config_says_what_is_wrong(values, message):
    with pytest.raises(ConfigError, match=message):
        DistilBertConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"position_embedding_type": "relative_key"}, 'position_embedding_type is .*, expected "absolute"'),
        ({"is_decoder": True}, "is_decoder is set"),
        ({"add_cross_attention": True}, "add_cross_attention is set"),
        ({"type_vocab_size": 0}, "type_vocab_size is 0"),
        ({"classifier_dropout": 2}, "classifier_dropout is 2, expected a probability"),
        ({"layer_norm_eps": 0}, "layer_norm_eps is 0"),
        ({"hidden_size": 10, "num_attention_heads": 3}, "hidden_size divisible by num_attention_heads"),
        ({"hidden_act": "swash"}, "hidden_act is 'swash'"),
    ],
)
def test_the_config_of_bert_says_what_is_wrong(values, message):
    with pytest.raises(ConfigError, match=message):
        BertConfig(**values)


def test_the_family_is_told_from_the_config(tmp_path):
    config = BertConfig(30000, 48, 2, 4, house_style="plain", layer_norm_eps=1e-6)
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (30000, 48, 2)
    assert (config.seq_classif_dropout, BertConfig(classifier_dropout=0.3).seq_classif_dropout) == (0.1, 0.3)
    config.save_pretrained(tmp_path)
    assert read_config(tmp_path) == BertConfig.from_pretrained(tmp_path) == config
    assert type(read_config(GOLDEN / "distilbert-mlm")) is DistilBertConfig
    assert type(config_from_dict({"type_vocab_size": 2})) is BertConfig  # as files of 2019 are
    with pytest.raises(ConfigError, match="model_type is 'gpt2', expected one of distilbert, bert"):
        config_from_dict({"model_type": "gpt2"})


@pytest.mark.parametrize("head", DISTILBERT.heads)
def test_spec_names_and_shapes(head):
    listed = parameters(TINY, head)
    names = [parameter.name for parameter in listed]
    assert len(set(names)) == len(names)
    query = next(p for p in listed if p.role == "query" and p.kind is Kind.WEIGHT and p.layer == 1)
    prefix = "" if head == "base" else "distilbert"
    path = f"{prefix}.transformer.layer.1.attention.q_lin".strip(".")
    assert TORCH.name(query) == path + ".weight"
    assert FLAX.name(query) == path.replace(".", "/") + "/kernel"
    assert TENSORFLOW.name(query) == path.replace(".", "/").replace("layer/1", "layer_._1") + "/kernel"
    assert [layout.is_transposed(query) for layout in (TORCH, TENSORFLOW, FLAX)] == [False, True, True]


def test_spec_follows_pruning_and_ties():
    config = DistilBertConfig.from_dict(TINY.to_dict(), pruned_heads={1: [0]})
    shapes = {p.name: p.shape for p in parameters(config, "base")}
    assert shapes["transformer.layer.0.attention.q_lin.weight"] == (4, 4)
    assert shapes["transformer.layer.1.attention.q_lin.weight"] == (2, 4)
    assert shapes["transformer.layer.1.attention.out_lin.weight"] == (4, 2)
    tied = [p for p in parameters(TINY, "masked-lm") if p.tied_to]
    assert [(p.name, p.tied_to) for p in tied] == [
        ("vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight")
    ]
    untied = DistilBertConfig.from_dict(TINY.to_dict(), tie_word_embeddings=False)
    assert not [p for p in parameters(untied, "masked-lm") if p.tied_to]
    with pytest.raises(InputError, match="masked-lm"):
        parameters(TINY, "poetry")


def test_sinusoids():
    table = sinusoidal_positions(3, 4)
    np.testing.assert_allclose(table[2], [np.sin(2), np.cos(2), np.sin(0.02), np.cos(0.02)], rtol=1e-6)


def values_for(head, config=TINY):
    return {
        p.name: np.full(p.shape, i, np.float32) for i, p in enumerate(parameters(config, head)) if p.tied_to is None
    }


def test_old_names_and_prefixes_are_one_thing():
    values = values_for("masked-lm")
    old = {}
    for name, value in values.items():
        name = name.removeprefix("distilbert.")
        if "orm." in name:
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        old["module." + name] = value
    old["vocab_projector.weight"] = old.pop("module.embeddings.word_embeddings.weight")
    old["embeddings.position_ids"] = np.arange(7)
    found, report = checkpoint.match(old, parameters(TINY, "masked-lm"), source="test")
    assert not report.missing and not report.unexpected
    assert found.keys() == values.keys()
    assert all(np.array_equal(found[name], value) for name, value in values.items())


def test_the_bias_of_berts_projection_has_two_names():
    config = BertConfig(11, 4, 1, 2, 6)
    values = values_for("masked-lm", config)
    assert "cls.predictions.bias" in values
    both = values | {"cls.predictions.decoder.bias": values["cls.predictions.bias"]}
    other = {name.replace("predictions.bias", "predictions.decoder.bias"): value for name, value in values.items()}
    for stored in (values, both, other):
        found, report = checkpoint.match(stored, parameters(config, "masked-lm"), source="test", family=BERT)
        assert found.keys() == values.keys() and not report.missing and not report.unexpected


def test_everything_wrong_is_reported_at_once():
    values = values_for("base")
    del values["embeddings.LayerNorm.weight"], values["transformer.layer.0.ffn.lin1.bias"]
    values["transformer.layer.1.ffn.lin2.weight"] = np.zeros((3, 3), np.float32)
    values["pooler"] = np.zeros(1)
    with pytest.raises(CheckpointError) as error:
        checkpoint.match(values, parameters(TINY, "base"), source="here")
    for text in ("here", "LayerNorm.weight", "lin1.bias", "(3, 3), expected (4, 6)", "pooler"):
        assert text in str(error.value)
    with pytest.raises(CheckpointError, match="more than once"):
        checkpoint.match(
            {"a.weight": np.zeros(1), "distilbert.a.weight": np.zeros(1)}, parameters(TINY, "base"), source="here"
        )


def test_sharded_round_trip_and_replacement(tmp_path):
    values = values_for("base")
    for size, expected in (("300B", ".index.json"), ("5GB", "model.safetensors"), (200, ".index.json")):
        checkpoint.write_checkpoint(tmp_path, TINY, values, head="base", max_shard_size=size)
        stored, path = checkpoint.read_checkpoint(tmp_path)
        assert path.name.endswith(expected)
        assert stored.keys() == values.keys()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = {path.name for path in tmp_path.glob("model-*.safetensors")}
    assert shards == set(index["weight_map"].values())
    with pytest.raises(InputError, match="max_shard_size"):
        checkpoint.write_checkpoint(tmp_path, TINY, values, head="base", max_shard_size="big")


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "absent.safetensors"])
def test_an_index_may_not_point_elsewhere(tmp_path, shard):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(CheckpointError, match="shard"):
        checkpoint.read_checkpoint(tmp_path)


def test_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    checkpoint.write_checkpoint(tmp_path / "model", TINY, values_for("base"), head="base")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.safetensors, "write", fail)
    for folder in ("model", "new/folder"):
        with pytest.raises(CheckpointError, match="No space left"):
            checkpoint.write_checkpoint(tmp_path / folder, TINY, values_for("base"), head="base")
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("crash_at", range(5))
def test_a_crash_leaves_all_of_the_old_or_all_of_the_new(tmp_path, monkeypatch, crash_at):
    old = values_for("base")
    new = {name: value + 1000 for name, value in old.items()}
    checkpoint.write_checkpoint(tmp_path, TINY, old, head="base")

    class Killed(BaseException):
        pass

    moves = iter(range(100))

    def replace(self, target):
        if next(moves) == crash_at:
            raise Killed
        os.replace(self, target)  # noqa: PTH105 - Path.replace is what is being replaced

    for name in ("rename", "replace"):
        monkeypatch.setattr(files.Path, name, replace)
    with pytest.raises(Killed):
        checkpoint.write_checkpoint(tmp_path, TINY, new, head="base", max_shard_size="200B")
    stored, _ = checkpoint.read_checkpoint(tmp_path)
    expected = old if crash_at == 0 else new
    assert stored.keys() == expected.keys()
    assert all(np.array_equal(stored[name], value) for name, value in expected.items())
    monkeypatch.undo()
    checkpoint.write_checkpoint(tmp_path, TINY, new, head="base")
    assert not (tmp_path / files.COMMITTED).exists()


@pytest.mark.parametrize("link", ["parent", "file", "all"])
def test_nothing_is_written_through_links(link, tmp_path):
    """Whoever made a folder may have put a save into it that seems to be unfinished, and links beside it."""
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    (outside / "inner").mkdir(parents=True)
    (outside / "inner" / "key").write_text("mine")
    folder.mkdir()
    if link == "all":
        (folder / files.COMMITTED).symlink_to(outside)
    else:
        (folder / files.COMMITTED / "inner").mkdir(parents=True)
        if link == "parent":
            (folder / "inner").symlink_to(outside / "inner")
        theirs = folder / files.COMMITTED / "inner" / "key"
        theirs.symlink_to(outside / "inner" / "key") if link == "file" else theirs.write_text("theirs")
    with pytest.raises(CheckpointError, match="a symbolic link leads out of"):
        TINY.save_pretrained(folder)
    assert (outside / "inner" / "key").read_text() == "mine"


def test_what_would_be_written_through_a_link_is_found_out_before(tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.mkdir()
    folder.mkdir()
    (folder / "inner").symlink_to(outside)
    with pytest.raises(CheckpointError, match="a symbolic link leads out of"), files.replace_files(folder) as stage:
        (stage / "inner").mkdir()
        (stage / "inner" / "key").write_text("theirs")
    assert not any(outside.iterdir()) and [path.name for path in folder.iterdir()] == ["inner"]
    TINY.save_pretrained(folder)  # which a save that was half done would not let through


def test_attributes_of_a_config_are_kept(tmp_path):
    config = DistilBertConfig(**TINY.to_dict())
    config.threshold = 0.5
    config.save_pretrained(tmp_path)
    loaded = DistilBertConfig.from_pretrained(tmp_path)
    assert loaded.threshold == 0.5 and loaded == config != TINY
    changed = copy.copy(config)
    changed.threshold = 0.25
    assert config.threshold == 0.5 and changed != config
    del changed.threshold
    assert not hasattr(changed, "threshold")
    changed._private = 1
    assert "_private" not in changed.to_dict()
    config.note = "\ud800"
    with pytest.raises(ConfigError, match="cannot be written as UTF-8"):
        config.save_pretrained(tmp_path)


class OwnConfig(DistilBertConfig):
    def __init__(self, own=1, **fields):
        self.own = own
        super().__init__(**fields)


def test_fields_of_ones_own_are_kept(tmp_path):
    OwnConfig(own=5, **TINY.to_dict()).save_pretrained(tmp_path)
    assert OwnConfig.from_pretrained(tmp_path).own == 5
    assert OwnConfig.from_pretrained(tmp_path).dim == TINY.dim


def test_a_device_is_written_to_and_not_replaced(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with files.replace_file(tmp_path / "link") as file:
        file.write("a page")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "a page"
    (tmp_path / "circle").symlink_to(tmp_path / "circle")  # leads to nothing that could be kept
    with files.replace_file(tmp_path / "circle") as file:
        file.write("a page")
    assert (tmp_path / "circle").read_text() == "a page"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with files.replace_file(tmp_path / "pipe") as file:
        file.write("a page")
    assert os.read(reader, 100) == b"a page" and (tmp_path / "pipe").is_fifo()
    os.close(reader)


def test_names_that_are_not_folders(tmp_path):
    for name in (tmp_path / "absent", "./absent", "a/b/c"):
        with pytest.raises(CheckpointError, match="no such folder"):
            hub.find_file(name, "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        DistilBertConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        DistilBertConfig.from_pretrained(tmp_path)


def test_hub_offline_is_explained(tmp_path):
    with pytest.raises(CheckpointError, match="not in the local Hub cache"):
        hub.find_file("nobody/nothing", "config.json", cache_dir=tmp_path, local_files_only=True)


def test_golden_config_reads():
    config = DistilBertConfig.from_pretrained(GOLDEN / "distilbert-multilabel")
    assert config.num_labels == 4
    assert config.problem_type == "multi_label_classification"


@pytest.mark.parametrize("layout", [TENSORFLOW, FLAX], ids=["tensorflow", "flax"])
@pytest.mark.parametrize(
    ("case", "head"),
    [
        ("base", "base"),
        ("mlm", "masked-lm"),
        ("seqcls", "sequence-classification"),
        ("choice", "multiple-choice"),
        ("tokcls", "token-classification"),
        ("qa", "question-answering"),
    ],
)
def test_native_names_are_those_in_transformers_files(case, head, layout):
    """Names and shapes of tf_model.h5 and flax_model.msgpack, as transformers 4.57.6 wrote them."""
    framework = "tensorflow" if layout is TENSORFLOW else "flax"
    names = json.loads((GOLDEN / "native_names.json").read_text())[f"distilbert-{case}"][framework]
    config = DistilBertConfig.from_pretrained(GOLDEN / f"distilbert-{case}")
    derived = {}
    for parameter in parameters(config, head):
        if parameter.tied_to is None:
            shape = parameter.shape[::-1] if layout.is_transposed(parameter) else parameter.shape
            derived[layout.name(parameter)] = list(shape)
    if head == "base":  # TensorFlow gives a bare encoder its prefix too
        names = {name.removeprefix("distilbert/"): shape for name, shape in names.items()}
    else:  # a masked LM's output group repeats the tied embeddings
        names = {name: shape for name, shape in names.items() if not name.startswith("embeddings/")}
    assert derived == names


def test_the_epsilon_of_norms_is_no_option():
    """It is the same in every DistilBERT of transformers, whatever stands in a config; the key is kept."""
    config = DistilBertConfig.from_dict({"layer_norm_eps": 1e-3})
    assert config.layer_norm_eps == 1e-12
    assert config.to_dict()["layer_norm_eps"] == 1e-3
