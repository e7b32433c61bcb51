"""What every backend promises beyond the numbers of the golden cases: one contract, three times."""

import importlib

import numpy as np
import pytest
from backends import BACKENDS, HEADS, WHOLE, arrays_of, assert_close, at_tokens, flatten, golden, load, model_class
from conftest import GOLDEN

from distilbert import BertConfig, DistilBertConfig
from distilbert.core.backends import choose_backend
from distilbert.core.errors import CheckpointError, ConfigError, InputError
from distilbert.core.spec import sinusoidal_positions

IDS = np.ones((2, 4), int)
TINY = {"vocab_size": 50, "max_position_embeddings": 16, "n_layers": 2, "n_heads": 2, "dim": 16, "hidden_dim": 32}
TINY_BERT = {
    **{"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    **{"max_position_embeddings": 16, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def answer(backend, model, **arrays):
    """The outputs, as numpy arrays by name."""
    tensors = {name: BACKENDS[backend].tensor(value) for name, value in arrays.items()}
    return flatten(backend, model(**tensors))


def assert_same(actual, expected, atol=1e-5):
    assert list(actual) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=0, atol=atol, err_msg=name)


def test_an_output_is_a_mapping_and_a_tuple(backend):
    model, given = load(backend, "seqcls"), arrays_of("seqcls", labels=True)
    tensors = {name: BACKENDS[backend].tensor(value) for name, value in given.items()}
    output = model(**tensors, output_hidden_states=True, output_attentions=True)
    assert list(output) == ["loss", "logits", "hidden_states", "attentions"]
    assert output[1] is output.logits is output["logits"]
    plain = model(**tensors, return_dict=False)
    assert isinstance(plain, tuple) and len(plain) == 2


def test_padding_changes_nothing(backend):
    model = load(backend, "base")
    alone = answer(backend, model, input_ids=np.array([[5, 6, 7]]))
    padded = answer(backend, model, input_ids=np.array([[5, 6, 7, 0, 0]]), attention_mask=np.array([[1, 1, 1, 0, 0]]))
    assert_close(padded["last_hidden_state"][:, :3], alone["last_hidden_state"], 1e-5)


@pytest.mark.parametrize("case, dtype", [("base", "float16"), ("choice", "float16"), (WHOLE, "bfloat16")])
def test_half_precision(backend, case, dtype):  # every head and type: parity/test_matrix.py
    given = arrays_of(case)
    mask = given["attention_mask"]
    expected = at_tokens(answer(backend, load(backend, case), **given), case, mask)
    model = load(backend, case, dtype=dtype)
    for name, value in at_tokens(answer(backend, model, **given), case, mask).items():
        assert (
            np.abs(value - expected[name]).max()
            < (0.15 if dtype == "bfloat16" else 0.02) * np.abs(expected[name]).max()
        )
    given["attention_mask"] = np.zeros_like(given["attention_mask"])
    assert all(np.isfinite(value).all() for value in answer(backend, model, **given).values())


def test_word_vectors_and_positions(backend):
    model, given = load(backend, "base"), arrays_of("base")
    table = BACKENDS[backend].parameters(model)["embeddings.word_embeddings.weight"]
    positions = np.arange(given["input_ids"].shape[1])[None]
    expected = answer(backend, model, **given)
    vectors = {"inputs_embeds": table[given["input_ids"]], "attention_mask": given["attention_mask"]}
    assert_same(answer(backend, model, **vectors), expected)
    assert_same(answer(backend, model, **given, position_ids=positions), expected)


def test_a_head_mask_does_what_pruning_does(backend):
    model, given = load(backend, "base"), arrays_of("base")
    pruned = load(backend, "base")
    pruned.prune_heads({1: [0]})
    pruned.prune_heads({1: [3]})
    assert pruned.config.pruned_heads == {1: [0, 3]}
    mask = np.ones((3, 4), np.float32)
    mask[1, [0, 3]] = 0

    def vectors(model, **options):
        return at_tokens(answer(backend, model, **given, **options), "base", given["attention_mask"])

    assert_same(vectors(model, head_mask=mask), vectors(pruned))
    assert_same(vectors(model, head_mask=mask[0]), vectors(model))


@pytest.mark.parametrize("case", [*HEADS, WHOLE])
def test_pruned_heads_are_saved(backend, case, tmp_path):
    model, given = load(backend, case), arrays_of(case)
    model.prune_heads({0: [1], 2: [0, 3]})
    model.save_pretrained(tmp_path)
    again = load(backend, case, tmp_path)
    assert again.num_parameters() < load(backend, case).num_parameters()
    assert_same(answer(backend, again, **given), answer(backend, model, **given), 1e-6)


def test_pruning_everything_is_refused(backend):
    with pytest.raises(ConfigError, match="not all"):
        load(backend, "base").prune_heads({0: [0, 1, 2, 3]})


@pytest.mark.parametrize("case, logits", [("mlm", "logits"), (WHOLE, "prediction_logits")])
def test_resized_vocabulary(backend, case, logits, tmp_path):
    model, given = load(backend, case), arrays_of(case)
    before = answer(backend, model, **given)[logits]
    model.resize_token_embeddings(100, pad_to_multiple_of=8)
    assert model.config.vocab_size == 104
    after = answer(backend, model, **given)
    assert_close(after[logits][..., :97], before, 1e-5)
    assert answer(backend, model, input_ids=np.array([[103]]))[logits].shape == (1, 1, 104)
    model.save_pretrained(tmp_path)
    assert_same(answer(backend, load(backend, case, tmp_path), **given), after)
    model.resize_token_embeddings(97)
    assert_close(answer(backend, model, **given)[logits], before, 1e-5)


@pytest.mark.parametrize("case", ["base", "sinusoidal"])
def test_resized_positions(backend, case):
    model, given = load(backend, case), arrays_of(case)
    before = answer(backend, model, **given)
    model.resize_position_embeddings(60)
    assert_same(answer(backend, model, **given), before)
    if case == "sinusoidal":
        table = BACKENDS[backend].parameters(model)["embeddings.position_embeddings.weight"]
        np.testing.assert_array_equal(table[40:], sinusoidal_positions(60, 32)[40:])
    answer(backend, model, input_ids=np.ones((1, 60), int))


@pytest.mark.parametrize(
    "case, config",
    [
        ("mlm", DistilBertConfig(**TINY, dropout=0.0, attention_dropout=0.0, tie_word_embeddings=False)),
        ("bert-mlm", BertConfig(**TINY_BERT, tie_word_embeddings=False)),
    ],
)
def test_an_untied_output_projection(backend, case, config, tmp_path):
    model = model_class(backend, case)(config)
    model.save_pretrained(tmp_path)
    loaded = load(backend, case, tmp_path)
    expected = answer(backend, model, input_ids=IDS)
    assert_same(answer(backend, loaded, input_ids=IDS), expected, 1e-6)
    loaded.resize_token_embeddings(60)
    assert_close(answer(backend, loaded, input_ids=IDS)["logits"][..., :50], expected["logits"], 1e-6)


def test_a_new_model_has_the_initial_values_of_the_spec(backend):
    model = model_class(backend, "mlm")(DistilBertConfig(n_layers=1))
    values = BACKENDS[backend].parameters(model)
    words = values["distilbert.embeddings.word_embeddings.weight"]
    assert not words[0].any() and abs(words[1:].std() - 0.02) < 1e-3
    assert (values["vocab_layer_norm.weight"] == 1).all() and not values["vocab_projector.bias"].any()
    query, key = (values[f"distilbert.transformer.layer.0.attention.{name}_lin.weight"] for name in "qk")
    assert abs(query.std() - 0.02) < 1e-3 and np.abs(query - key).max() > 0.01


def test_padding_is_never_trained(backend):
    model, values = load(backend, "seqcls"), golden("seqcls")
    given = {name[3:]: BACKENDS[backend].tensor(value) for name, value in values.items() if name.startswith("in/")}
    assert (values["in/input_ids"] == 0).any()
    assert not BACKENDS[backend].gradients(model, given)["distilbert.embeddings.word_embeddings.weight"][0].any()


def test_sinusoidal_positions_are_never_trained(backend):
    model = load(backend, "seqcls", GOLDEN / "distilbert-sinusoidal")
    given = {"input_ids": IDS, "labels": np.array([0, 1])}
    tensors = {name: BACKENDS[backend].tensor(value) for name, value in given.items()}
    gradient = BACKENDS[backend].gradients(model, tensors).get("distilbert.embeddings.position_embeddings.weight")
    assert gradient is None or not gradient.any()


def test_heads_load_from_other_heads_with_a_warning(backend, caplog):
    model = load(backend, "tokcls", GOLDEN / "distilbert-base", num_labels=7)
    assert answer(backend, model, input_ids=IDS)["logits"].shape == (2, 4, 7)
    assert "classifier.weight" in caplog.text
    caplog.clear()
    load(backend, "base", GOLDEN / "distilbert-qa")
    assert "qa_outputs.weight" in caplog.text


def test_mismatched_shapes_are_an_error_unless_ignored(backend):
    with pytest.raises(CheckpointError, match=r"classifier.weight is \(3, 32\), expected \(9, 32\)"):
        load(backend, "seqcls", num_labels=9)
    model, report = load(backend, "seqcls", num_labels=9, ignore_mismatched_sizes=True, output_loading_info=True)
    assert sorted(report.mismatched) == ["classifier.bias", "classifier.weight"]
    assert BACKENDS[backend].parameters(model)["classifier.weight"].std() > 0
    assert answer(backend, model, input_ids=IDS)["logits"].shape == (2, 9)
    with pytest.raises(CheckpointError, match="encoder weights are missing"):
        load(backend, "seqcls", n_layers=5)


@pytest.mark.parametrize(
    "given, message",
    [
        ({}, "expected exactly one of input_ids and inputs_embeds"),
        ({"input_ids": IDS[0]}, r"input_ids has shape .*4.*, expected \(batch, length\)"),
        ({"input_ids": IDS[None]}, r"input_ids has shape .*1, 2, 4.*, expected \(batch, length\)"),
        ({"input_ids": IDS * 97}, r"input_ids has the value 97, expected 0 to 96 \(vocab_size=97\)"),
        ({"input_ids": -IDS}, "input_ids has the value -1"),
        ({"input_ids": IDS, "attention_mask": IDS[:1]}, "attention_mask has shape .*1, 4.*, expected .*2, 4"),
        ({"input_ids": IDS, "position_ids": IDS * 40}, "position_ids has the value 40, expected 0 to 39"),
        ({"input_ids": np.ones((1, 41), int)}, "a sequence of 41 tokens is longer than max_position_embeddings=40"),
        ({"input_ids": IDS, "position_ids": np.zeros((3, 4), int)}, "position_ids has shape .*3, 4.*, expected .*2, 4"),
        ({"input_ids": IDS, "head_mask": np.ones((2, 2))}, "head_mask has shape .*2, 2.*, expected"),
        ({"input_ids": IDS, "head_mask": np.ones((3, 2))}, "head_mask has shape .*3, 2.*, expected"),
        (
            {"inputs_embeds": np.ones((2, 4, 8), np.float32)},
            r"inputs_embeds has shape .*, expected \(batch, length, 32",
        ),
    ],
)
def test_bad_input_is_explained(backend, given, message):
    with pytest.raises(InputError, match=message) as raised:
        answer(backend, load(backend, "base"), **given)
    assert "\n" not in str(raised.value)


def test_bad_options_are_explained(backend):
    with pytest.raises(InputError, match="dtype is 'int3', expected auto or one of"):
        load(backend, "base", dtype="int3")
    with pytest.raises(ConfigError, match="nlabels"):
        load(backend, "base", nlabels=3)


def test_token_type_ids_are_ignored(backend):
    model = load(backend, "base")
    expected = answer(backend, model, input_ids=IDS)
    assert_same(answer(backend, model, input_ids=IDS, token_type_ids=IDS), expected, 0)


def test_segments_count(backend):
    model, given = load(backend, "bert-base"), arrays_of("bert-base")
    types = given.pop("token_type_ids")
    zeros = answer(backend, model, **given, token_type_ids=np.zeros_like(types))
    assert_same(answer(backend, model, **given), zeros)
    assert (
        np.abs(answer(backend, model, **given, token_type_ids=types)["pooler_output"] - zeros["pooler_output"]).max()
        > 0.1
    )
    for bad, message in (
        (types + 2, r"token_type_ids has the value 3, expected 0 to 1"),
        (types[:2], "token_type_ids has shape"),
    ):
        with pytest.raises(InputError, match=message):
            answer(backend, model, **given, token_type_ids=bad)


def test_arguments_have_the_order_of_their_family(backend):
    given = [BACKENDS[backend].tensor(value) for value in (IDS, IDS, IDS, IDS * 0)]
    names = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
    model = load(backend, "bert-seqcls")
    expected = flatten(backend, model(**dict(zip(names, given, strict=True))))
    assert_same(flatten(backend, model(*given)), expected)


def test_a_bert_without_its_pooler(backend, tmp_path):
    model = load(backend, "bert-base", add_pooling_layer=False)
    expected = answer(backend, load(backend, "bert-base"), input_ids=IDS)
    assert_same(answer(backend, model, input_ids=IDS), {"last_hidden_state": expected["last_hidden_state"]})
    model.save_pretrained(tmp_path)
    _, report = load(backend, "bert-base", tmp_path, add_pooling_layer=False, output_loading_info=True)
    assert not report.missing and not report.unexpected
    assert load(backend, "bert-base", tmp_path, output_loading_info=True)[1].missing
    with pytest.raises(InputError, match="add_pooling_layer: no argument of"):
        load(backend, "bert-qa", add_pooling_layer=False)


@pytest.mark.parametrize("case", ["mlm", "bert-mlm"])
def test_words_are_scored_at_places_alone(backend, case):
    """As fill-mask asks for, of texts with more places than others, and longer ones."""
    loaded = load(backend, case)
    run = importlib.import_module(f"{choose_backend('pt' if backend == 'torch' else backend)}.inference").InferenceModel
    model, sequences = run(loaded), [[1, 5, 7, 2], [9], [1, 6, 6, 2, 3, 8, 4, 5, 2]]
    segments = [[0] * (len(row) // 2) + [1] * (len(row) - len(row) // 2) for row in sequences]
    given, places = (sequences, segments if case != "mlm" else None), [[2], [0], [8, 3, 0]]
    for whole, only, wanted in zip(model(*given), model(*given, places), places, strict=True):
        assert list(only) == ["logits"]
        np.testing.assert_allclose(only["logits"], whole["logits"][wanted], rtol=0, atol=1e-5)


def test_families_are_not_confused(backend):
    with pytest.raises(ConfigError, match='model_type is "bert", expected "distilbert"'):
        load(backend, "base", GOLDEN / "bert-base")
    with pytest.raises(InputError, match="config is a DistilBertConfig, expected a BertConfig"):
        model_class(backend, "bert-base")(DistilBertConfig(**TINY))


def test_a_config_is_each_models_own(backend, tmp_path):
    config = load(backend, "mlm").config
    cls = model_class(backend, "mlm")
    resized, other = cls(config), cls(config)
    resized.resize_token_embeddings(120)
    assert (config.vocab_size, other.config.vocab_size, resized.config.vocab_size) == (97, 97, 120)
    other.save_pretrained(tmp_path / "other")
    cls.from_pretrained(tmp_path / "other")
    getattr(resized, resized.family.prefix).resize_token_embeddings(130)
    with pytest.raises(InputError, match=r"\(120,\), expected \(130,\)"):
        resized.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32"])
def test_labels_of_any_integers(dtype, backend):
    """In uint8, -100 is 156."""
    model = model_class(backend, "seqcls")(DistilBertConfig(**TINY, num_labels=200))
    labels = BACKENDS[backend].tensor(np.array([156, 3], dtype))
    model = model.eval() if backend == "torch" else model
    logits = answer(backend, model, input_ids=IDS)["logits"]
    wanted = (np.log(np.exp(logits).sum(1)) - logits[[0, 1], [156, 3]]).mean()
    found = model(BACKENDS[backend].tensor(IDS), labels=labels).loss
    assert_close(BACKENDS[backend].array(found), wanted, 1e-5)


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_integers_of_minus_100_do_not_count_and_floats_do(problem, backend):
    labels = np.array([[-100, 1], [1, 0]])
    model = model_class(backend, "seqcls")(DistilBertConfig(**TINY, num_labels=2, problem_type=problem))
    model = model.eval() if backend == "torch" else model
    logits = answer(backend, model, input_ids=IDS)["logits"].astype(np.float64)
    for dtype, counts in ((np.int64, labels != -100), (np.float32, np.full((2, 2), True))):
        each = np.square(logits - labels) if problem == "regression" else np.log1p(np.exp(logits)) - labels * logits
        found = model(BACKENDS[backend].tensor(IDS), labels=BACKENDS[backend].tensor(labels.astype(dtype))).loss
        assert_close(BACKENDS[backend].array(found), each[counts].mean(), 1e-5 * max(1, each[counts].mean()))


@pytest.mark.parametrize("labels", [np.array([0.3, 2.0]), np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])])
def test_losses_are_computed_in_float32(labels, backend):
    config = DistilBertConfig(**TINY, num_labels=labels[0].size)
    dtype = {"flax": {"dtype": "bfloat16"}, "tf": {"dtype": "bfloat16"}}.get(backend, {})
    model = model_class(backend, "seqcls")(config, **dtype)
    model = model.bfloat16() if backend == "torch" else model
    tensors = [BACKENDS[backend].tensor(array) for array in (IDS, labels.astype(np.float32))]
    output = model(tensors[0], labels=tensors[1])
    assert "float32" in str(output.loss.dtype)
    logits = BACKENDS[backend].array(output.logits).astype(np.float64)
    if labels.ndim == 1:
        wanted = np.square(logits[:, 0] - labels).mean()
    else:
        wanted = (np.log1p(np.exp(logits)) - labels * logits).mean()
    assert_close(BACKENDS[backend].array(output.loss), wanted, 5e-4)  # rounded to bfloat16: up to 4e-3


def test_batches_of_nothing(backend):
    model = model_class(backend, "seqcls")(DistilBertConfig(**TINY))
    assert answer(backend, model, input_ids=np.zeros((0, 4), int))["logits"].shape == (0, 2)
    with pytest.raises(InputError, match="expected at least one token in a row"):
        model(BACKENDS[backend].tensor(np.zeros((2, 0), int)))
