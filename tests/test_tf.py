"""What Keras users do with the TensorFlow backend, beyond the golden cases."""

import functools
import json
import os
import subprocess
import sys
from collections import UserDict

import backends
import keras
import numpy as np
import pytest
import tensorflow as tf
from backends import HEADS, arrays_of
from conftest import GOLDEN

import distilbert
from distilbert import DistilBertConfig
from distilbert.core.errors import CheckpointError, InputError
from distilbert.tf.inference import InferenceModel

IDS = np.ones((2, 4), int)
TINY = {"vocab_size": 50, "max_position_embeddings": 16, "n_layers": 1, "n_heads": 2, "dim": 16, "hidden_dim": 32}


def load(case, folder=None, **options):
    return backends.load("tf", case, folder, **options)


def flatten(output):
    return backends.flatten("tf", output)


def assert_same(actual, expected, atol=1e-6):
    assert list(actual) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=0, atol=atol, err_msg=name)


# How inputs may be passed


@pytest.mark.parametrize("case", ["seqcls", "choice"])
def test_every_way_to_pass_inputs(case):
    model, given = load(case), arrays_of(case)
    ids, mask = given["input_ids"], given["attention_mask"]
    expected = flatten(model(input_ids=ids, attention_mask=mask))
    for arguments, named in (
        ((ids, mask), {}),
        ((ids,), {"attention_mask": mask}),
        (([ids, mask],), {}),
        (((tf.constant(ids), tf.constant(mask)),), {}),
        ((given,), {}),
        (({"input_ids": ids},), {"attention_mask": mask}),
        ((), {"input_ids": given}),
        ((ids.tolist(), mask.tolist()), {}),
        (([ids.tolist(), mask.tolist()],), {}),
        ((ids.astype(np.int32), mask.astype(bool)), {}),
        ((tf.constant(ids, tf.int32), tf.constant(mask, tf.float32)), {}),
    ):
        assert_same(flatten(model(*arguments, **named)), expected)
    alone = flatten(model(ids))
    assert_same(flatten(model([ids])), alone)
    assert_same(flatten(model(ids.tolist())), alone)


def test_an_output_is_a_mapping_and_a_tuple():
    model = load("seqcls")
    output = model(**arrays_of("seqcls", labels=True), output_hidden_states=True, output_attentions=True)
    assert list(output) == ["loss", "logits", "hidden_states", "attentions"]
    assert output[1] is output.logits is output["logits"]
    plain = model(**arrays_of("seqcls"), return_dict=False)
    assert isinstance(plain, tuple) and len(plain) == 1
    inside = tf.function(lambda given: model(given, output_hidden_states=True))(arrays_of("seqcls"))
    assert list(inside) == ["logits", "hidden_states"]
    np.testing.assert_allclose(inside.logits, output.logits, rtol=0, atol=1e-5)


def test_functional_model():
    ids = keras.Input((None,), dtype="int32", name="input_ids")
    mask = keras.Input((None,), dtype="int32", name="attention_mask")
    encoder = load("base")
    pooled = keras.layers.GlobalAveragePooling1D()(encoder(ids, attention_mask=mask).last_hidden_state)
    model = keras.Model([ids, mask], keras.layers.Dense(2)(pooled))
    given = arrays_of("base")
    assert model.predict(given, verbose=0).shape == (3, 2)
    assert len(model.trainable_variables) == len(encoder.trainable_variables) + 2


# Training


def toy(count=64, length=8, seed=0):
    """Texts of class 1 hold token 7, which the others lack."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(10, 50, (count, length))
    labels = rng.integers(0, 2, count)
    ids[labels == 1, rng.integers(1, length, count)[labels == 1]] = 7
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}, labels


def new_model(seed=0, **options):
    keras.utils.set_random_seed(seed)
    return distilbert.TFDistilBertForSequenceClassification(DistilBertConfig(**TINY, **options))


def as_pairs(x, y):
    for start in range(0, len(y), 16):
        yield {name: value[start : start + 16] for name, value in x.items()}, y[start : start + 16]


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.items = list(as_pairs(x, y))

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


FEEDS = {
    "labels as y": lambda x, y: {"x": x, "y": y, "batch_size": 16},
    "labels among inputs": lambda x, y: {"x": {**x, "labels": y}, "batch_size": 16},
    "tf.data": lambda x, y: {"x": tf.data.Dataset.from_tensor_slices((x, y)).batch(16)},
    "tf.data with labels among inputs": lambda x, y: {
        "x": tf.data.Dataset.from_tensor_slices({**x, "labels": y}).batch(16)
    },
    "tf.data with weights": lambda x, y: {"x": tf.data.Dataset.from_tensor_slices((x, y, np.ones(len(y)))).batch(16)},
    "generator": lambda x, y: {"x": as_pairs(x, y)},
    "PyDataset": lambda x, y: {"x": Batches(x, y)},
}


@pytest.fixture(scope="module")
def unchanging():
    """A compiled model that fitting leaves as it is, with its own loss or one of Keras."""

    @functools.cache
    def make(own_loss):
        model = new_model(dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0)
        loss = None if own_loss else {"logits": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
        model.compile(keras.optimizers.SGD(0.0), loss=loss, metrics=["accuracy"])
        return model

    return make


@pytest.mark.parametrize(
    "feed, own_loss", [*((feed, True) for feed in FEEDS), ("labels as y", False), ("labels among inputs", False)]
)
def test_every_feed_gives_the_same_loss(feed, own_loss, unchanging):
    (x, y), model = toy(), unchanging(own_loss)
    expected = float(model(x, labels=y).loss)
    history = model.fit(**FEEDS[feed](x, y), verbose=0, shuffle=False).history
    assert history["loss"][0] == pytest.approx(expected, abs=1e-5)
    scores = model.evaluate(**FEEDS[feed](x, y), verbose=0, return_dict=True)
    assert scores["loss"] == pytest.approx(expected, abs=1e-5)
    assert scores["accuracy"] == pytest.approx(np.mean(np.argmax(model(x).logits, -1) == y))


def test_lists_are_taken_wherever_arrays_are(unchanging):
    (x, y), model = toy(), unchanging(True)
    weights = np.where(y == 1, 3.0, 0.5)
    expected = model.evaluate(x, y, sample_weight=weights, verbose=0)[0]
    texts, labels, weighed = UserDict({name: value.tolist() for name, value in x.items()}), y.tolist(), weights.tolist()
    for held_out in ((texts, {"logits": tuple(labels)}, weighed), [UserDict(texts, labels=labels), None, weighed]):
        history = model.fit(texts, labels, sample_weight=weighed, validation_data=held_out, verbose=0).history
        assert [history["loss"][0], history["val_loss"][0]] == pytest.approx([expected] * 2, abs=1e-5)
    for method in (model.train_on_batch, model.test_on_batch):
        assert method(texts, labels, weighed)[0] == pytest.approx(expected, abs=1e-5)
    logits = model.predict(x, verbose=0)["logits"]
    pair = [texts["input_ids"], texts["attention_mask"]]
    for found in (model.predict(pair, verbose=0), model.predict_on_batch(texts)):
        np.testing.assert_allclose(found["logits"], logits, rtol=0, atol=1e-5)


def test_a_separable_task_is_learnt():
    x, y = toy(512)
    model = new_model(initializer_range=0.2)
    model.compile(keras.optimizers.Adam(3e-3), metrics=["accuracy"])
    stop = keras.callbacks.EarlyStopping("val_accuracy", patience=8, restore_best_weights=True)
    held_out = toy(128, seed=1)
    model.fit(x, y, epochs=40, batch_size=32, verbose=0, validation_data=held_out, callbacks=[stop])
    assert model.evaluate(*held_out, verbose=0, return_dict=True)["accuracy"] == 1.0


@pytest.mark.parametrize("own_loss", [True, False])
def test_weights_of_samples_and_classes(own_loss):
    x, y = toy()
    model = new_model(dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0)
    loss = None if own_loss else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss=loss)
    weights = np.where(y == 1, 3.0, 0.5)
    weighted = model.fit(x, y, sample_weight=weights, batch_size=64, verbose=0).history["loss"][0]
    classes = model.fit(x, y, class_weight={0: 0.5, 1: 3.0}, batch_size=64, verbose=0).history["loss"][0]
    per_text = keras.losses.sparse_categorical_crossentropy(y, model(x).logits, from_logits=True)
    assert weighted == pytest.approx(float(np.mean(weights * per_text)), abs=1e-5)
    assert classes == pytest.approx(weighted, abs=1e-5)


@pytest.mark.parametrize("case", [case for case in HEADS if case != "base"])
def test_every_head_trains_and_predicts(case):
    no_dropout = dict.fromkeys(("dropout", "attention_dropout", "seq_classif_dropout", "qa_dropout"), 0.0)
    model, given = load(case, n_layers=1, **no_dropout), arrays_of(case, labels=True)
    labels = {name: value for name, value in given.items() if name not in ("input_ids", "attention_mask")}
    model.compile(keras.optimizers.Adam(1e-3))
    among_inputs = model.fit(given, epochs=5, verbose=0).history["loss"]
    assert among_inputs[-1] < among_inputs[0]
    given = arrays_of(case)
    y = labels if len(labels) > 1 else next(iter(labels.values()))
    if case in ("seqcls", "qa"):  # one label, and two
        apart = model.fit(given, y, epochs=1, verbose=0).history["loss"]
        assert apart[0] < among_inputs[0]
    expected = flatten(model(given))
    predicted = model.predict({**given, **labels}, batch_size=2, verbose=0)
    assert_same(predicted, expected, 5e-5)


def test_question_answering_takes_keras_losses():
    model, given = load("qa"), arrays_of("qa", labels=True)
    start, end = given.pop("start_positions"), given.pop("end_positions").clip(0, 10)
    expected = float(model(given, start_positions=start, end_positions=end).loss)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    metrics = ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(11)]  # of 11 places
    model.compile("sgd", loss={"start_logits": cross_entropy, "end_logits": cross_entropy}, metrics=metrics)
    once = np.ones(len(start))
    for y, weight in (
        ((start, end), None),
        ({"start_positions": start, "end_positions": end}, once),
        ({"end_logits": end, "start_logits": start.tolist()}, {"start_logits": once, "end_logits": once}),
    ):
        scores = model.evaluate(given, y, sample_weight=weight, verbose=0, return_dict=True)
        assert scores["loss"] == pytest.approx(2 * expected, abs=1e-5)
        for name, positions in (("start_logits", start), ("end_logits", end)):
            right = np.mean(np.argmax(model(given)[name], -1) == positions)
            assert scores[f"{name}_accuracy"] == pytest.approx(right)
            assert scores[f"{name}_sparse_top_k_categorical_accuracy"] == 1


def test_callbacks_and_resume(tmp_path):
    x, y = toy()
    callbacks = [
        keras.callbacks.ModelCheckpoint(tmp_path / "best.weights.h5", save_weights_only=True),
        keras.callbacks.ModelCheckpoint(tmp_path / "best.keras"),
        keras.callbacks.TensorBoard(tmp_path / "logs"),
        keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False),
    ]
    model = new_model()
    model.compile("adam")
    model.fit(x, y, epochs=2, verbose=0, callbacks=callbacks)
    expected = flatten(model(x))
    assert any((tmp_path / "logs").rglob("events*"))
    resumed = new_model(seed=1)
    resumed.compile("adam")
    resumed.fit(x, y, epochs=2, verbose=0, callbacks=callbacks[-1:])  # nothing is left to do
    assert_same(flatten(resumed(x)), expected)
    again = new_model(seed=2)
    again.load_weights(tmp_path / "best.weights.h5")
    assert_same(flatten(again(x)), expected)
    assert_same(flatten(keras.models.load_model(tmp_path / "best.keras")(x)), expected)


@pytest.mark.parametrize("own_loss", [True, False])
def test_a_loaded_model_trains_on(own_loss, tmp_path):
    x, y = toy()
    model = new_model(dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0)
    loss = None if own_loss else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss=loss, metrics=["accuracy"])
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    expected = model.fit(x, y, epochs=2, shuffle=False, verbose=0).history
    history = loaded.fit(x, y, epochs=2, shuffle=False, verbose=0).history
    assert int(loaded.optimizer.iterations) == int(model.optimizer.iterations)
    assert history["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_every_variable_has_its_own_path():
    paths = [value.path for value in load("mlm").weights]
    assert len(set(paths)) == len(paths)
    assert any(path.endswith("distilbert/layer_1/q_lin/kernel") for path in paths)


def test_training_needs_named_outputs():
    model = load("seqcls", return_dict=False)
    model.compile("sgd")
    with pytest.raises(InputError, match="the config says return_dict=False"):
        model.fit(IDS, np.array([0, 1]), verbose=0)


def test_dropout_is_at_work_in_training_only():
    x, _ = toy(4)
    model = new_model(dropout=0.5)
    assert np.array_equal(model(x).logits, model(x).logits)
    assert not np.array_equal(model(x, training=True).logits, model(x, training=True).logits)


# Graphs


def count_traces(model, monkeypatch):
    traces = []
    call = type(model).call

    def counted(self, *arguments, **named):
        traces.append(1)
        return call(self, *arguments, **named)

    counted.__signature__ = __import__("inspect").signature(call)
    monkeypatch.setattr(type(model), "call", counted)
    return traces


class WithLayerOfItsOwn(distilbert.TFDistilBertForSequenceClassification):
    def __init__(self, config, **options):
        super().__init__(config, **options)
        self.own = keras.layers.Dense(config.dim)

    def text_vector(self, encoded):
        return self.own(super().text_vector(encoded))


def test_a_layer_that_is_built_at_its_first_call_is_trained_and_not_lost(tmp_path):
    x, y = toy(8)
    model = WithLayerOfItsOwn(DistilBertConfig(**TINY))
    model.compile("adam", run_eagerly=True)
    model.fit(x, y, verbose=0)
    assert len(model.optimizer.variables) == 2 * len(model.trainable_variables) + 2
    with pytest.raises(InputError, match="no place for what was added to this model: dense"):
        model.save_pretrained(tmp_path)
    model.save(tmp_path / "own.keras")
    loaded = keras.models.load_model(tmp_path / "own.keras", custom_objects={"WithLayerOfItsOwn": WithLayerOfItsOwn})
    np.testing.assert_array_equal(loaded(x).logits, model(x).logits)


def test_lengths_do_not_retrace(monkeypatch):
    model = new_model()
    model.compile("adam")
    traces = count_traces(model, monkeypatch)

    def batches():
        for length in range(4, 15):
            yield toy(8, length)

    signature = {name: tf.TensorSpec((None, None), tf.int64) for name in ("input_ids", "attention_mask")}
    dataset = tf.data.Dataset.from_generator(batches, output_signature=(signature, tf.TensorSpec((None,), tf.int64)))
    model.fit(dataset, verbose=0, epochs=2)
    assert len(traces) <= 3
    traces.clear()
    model.predict(dataset, verbose=0)
    assert len(traces) <= 2
    traces.clear()
    model.fit(batches(), verbose=0)
    assert len(traces) <= 3


@pytest.mark.parametrize("jit_compile", [False, True])
def test_jit_compile(jit_compile):
    x, y = toy()
    model = new_model(dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0)
    model.compile(keras.optimizers.SGD(0.1), jit_compile=jit_compile)
    assert model.jit_compile is jit_compile
    expected = float(model(x, labels=y).loss)
    assert model.fit(x, y, batch_size=64, verbose=0).history["loss"][0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("case, dtype", [*((case, "mixed_bfloat16") for case in HEADS), ("mlm", "mixed_float16")])
def test_mixed_precision(case, dtype):
    expected = flatten(load(case)(**arrays_of(case)))
    given = arrays_of(case)
    given["attention_mask"] = given["attention_mask"].copy()
    actual = flatten(load(case, dtype=dtype)(**given))
    for name, value in expected.items():
        assert np.isfinite(actual[name]).all()
        scale = np.abs(value).max()
        assert np.abs(actual[name] - value).max() < (0.15 if "bfloat16" in dtype else 0.02) * scale, name
    given["attention_mask"][...] = 0
    assert all(np.isfinite(value).all() for value in flatten(load(case, dtype=dtype)(**given)).values())


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_learns(dtype):
    x, y = toy(256)
    keras.utils.set_random_seed(0)
    model = distilbert.TFDistilBertForSequenceClassification(
        DistilBertConfig(**TINY, initializer_range=0.2), dtype=dtype
    )
    model.compile(keras.optimizers.Adam(3e-3))
    losses = model.fit(x, y, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0] / 2
    assert all(value.dtype == "float32" for value in model.trainable_variables)


# Saving


def test_keras_files_in_a_fresh_process(shallow, tmp_path):
    cases = ("base", "mlm", "choice", "qa")  # the other heads have these inputs, these outputs and no other parts
    for case in cases:
        model, given, folder = load(case, shallow(case)), arrays_of(case), tmp_path / case
        folder.mkdir()
        np.savez(folder / "given.npz", **given)
        np.savez(folder / "expected.npz", **flatten(model(given)))
        model.save(folder / "model.keras")
        model.save_weights(folder / "model.weights.h5")
        model.export(folder / "exported", verbose=False)
    names = {case: type(load(case)).__name__ for case in cases}
    script = f"""
import numpy as np, keras, tensorflow as tf
served = {{}}
for case in {list(cases)!r}:
    given = {{name: value.astype("int32") for name, value in np.load(case + "/given.npz").items()}}
    serve = tf.saved_model.load(case + "/exported").signatures["serving_default"]
    served[case] = given, serve(**{{name: tf.constant(value) for name, value in given.items()}})
    one = serve(**{{name: tf.constant(value[:1, ..., :5]) for name, value in given.items()}})
    assert all(value.shape[0] == 1 for value in one.values())
import distilbert.tf  # registers the classes with Keras
for case, name in {names!r}.items():
    given, exported = served[case]
    loaded = keras.models.load_model(case + "/model.keras")
    assert type(loaded).__name__ == name
    weights = getattr(distilbert, name)(loaded.config)
    weights.load_weights(case + "/model.weights.h5")
    predicted = loaded.predict(given, verbose=0)
    expected = np.load(case + "/expected.npz")
    # In a graph kernels are fused, which rounds differently.
    for output, atol in ((loaded(given), 0), (weights(given), 0), (exported, 1e-5), (predicted, 1e-5)):
        assert set(output) == set(expected), output
        for quantity, value in expected.items():
            np.testing.assert_allclose(output[quantity], value, rtol=1e-5 if atol else 0, atol=atol, err_msg=case)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300, cwd=tmp_path)


@pytest.mark.parametrize("size", ["5GB", "30KB"])
@pytest.mark.parametrize("format", ["h5", "safetensors"])
@pytest.mark.parametrize("case", HEADS)
def test_files_are_those_that_transformers_has_read(case, format, size, tmp_path):
    """read_by_transformers.json says how far its TensorFlow classes' outputs were from the golden ones."""
    evidence = json.loads((GOLDEN / "read_by_transformers.json").read_text())["files"][f"{case} {format} {size}"]
    load(case).save_pretrained(tmp_path, format=format, max_shard_size=size)
    assert backends.digest(tmp_path) == evidence["digest"]
    assert evidence["largest_difference"] < 1e-5


def test_the_example_runs(shallow, tmp_path):
    texts = ["a wonderful film", "the plot is a mess", "i do not know"]
    (tmp_path / "texts.tsv").write_text("".join(f"{text}\t{label}\n" for label, text in enumerate(texts)) * 20)
    example = GOLDEN.parents[1] / "examples" / "keras_sentiment.py"
    files = [shallow("seqcls"), tmp_path / "texts.tsv", tmp_path / "texts.tsv", tmp_path / "out"]
    command = [sys.executable, example, *files, "--epochs", "2", "--learning-rate", "1e-3"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    assert "'a wonderful film': LABEL_" in shown
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_summary(capsys):
    model = load("seqcls")
    model.summary(line_length=100)
    shown = capsys.readouterr().out
    for text in ("distilbert", "pre_classifier", "classifier", f"{model.num_parameters():,}"):
        assert text in shown


def test_frozen_layers_do_not_change_names(tmp_path):
    model = load("seqcls")
    model.distilbert.stack[0].trainable = False
    model.save_pretrained(tmp_path, format="h5")
    assert_same(flatten(load("seqcls", tmp_path)(arrays_of("seqcls"))), flatten(model(arrays_of("seqcls"))))
    assert len(model.trainable_variables) == len(model.variables) - 16 - len(
        [value for value in model.variables if "seed" in value.path]
    )


def test_a_folder_is_not_left_with_two_models(tmp_path):
    model = load("seqcls")
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"holds model.safetensors, which would be read instead"):
        model.save_pretrained(tmp_path, format="h5")
    with pytest.raises(InputError, match="format is 'pickle', expected one of safetensors, torch, h5, msgpack"):
        model.save_pretrained(tmp_path, format="pickle")


# Changing a model


def test_resized_vocabulary(tmp_path):
    model, given = load("mlm"), arrays_of("mlm")
    before = flatten(model(given))["logits"]
    assert model.predict(given, verbose=0)["logits"].shape[-1] == 97
    table = model.resize_token_embeddings(100, pad_to_multiple_of=8)
    assert table.embeddings.shape == (104, 32) and model.config.vocab_size == 104
    after = flatten(model(given))["logits"]
    np.testing.assert_allclose(after[..., :97], before, rtol=0, atol=1e-5)
    assert model.predict(given, verbose=0)["logits"].shape[-1] == 104  # not the graph traced before
    model.save(tmp_path / "model.keras")
    assert_same(flatten(keras.models.load_model(tmp_path / "model.keras")(given)), {"logits": after})
    model.save_pretrained(tmp_path / "saved")
    assert_same(flatten(load("mlm", tmp_path / "saved")(given)), {"logits": after})
    model.resize_token_embeddings(97)
    np.testing.assert_allclose(flatten(model(given))["logits"], before, rtol=0, atol=1e-5)


def test_pruned_heads_are_saved(tmp_path):
    model, given = load("seqcls"), arrays_of("seqcls")
    model.prune_heads({0: [1], 2: [0, 2]})
    model.prune_heads({0: [3]})
    assert model.distilbert.stack[0].part("query").kernel.shape == (32, 16)
    assert model.config.pruned_heads == {0: [1, 3], 2: [0, 2]}
    expected = flatten(model(given))
    for options in ({}, {"format": "h5"}):
        folder = tmp_path / options.get("format", "safetensors")
        model.save_pretrained(folder, **options)
        assert_same(flatten(load("seqcls", folder)(given)), expected)
    model.save(tmp_path / "model.keras")
    assert_same(flatten(keras.models.load_model(tmp_path / "model.keras")(given)), expected)


def test_low_rank_adapters_are_saved_merged(tmp_path):
    model = load("seqcls", n_layers=1)
    query = model.distilbert.stack[0].part("query")
    query.enable_lora(2)
    model.compile(keras.optimizers.Adam(1e-2))
    model.fit(IDS, np.array([0, 1]), epochs=3, verbose=0)
    assert np.abs(np.asarray(query.lora_kernel_b)).max() > 0
    model.save_pretrained(tmp_path)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for saved in (load("seqcls", tmp_path), loaded):
        assert_same(flatten(saved(IDS)), flatten(model(IDS)), 1e-5)
    assert loaded.distilbert.stack[0].part("query").kernel.trainable
    loaded.distilbert.stack[0].part("query").quantize("int8")
    with pytest.raises(InputError, match="a quantised model is saved by save_weights"):
        loaded.save(tmp_path / "model.keras")
    assert (tmp_path / "model.keras").stat().st_size


# Several devices


def run_alone(script, **environment):
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    result = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


COMMON = """
import sys, numpy as np, keras, distilbert
from distilbert import DistilBertConfig
sys.path.insert(0, "tests")
config = DistilBertConfig(vocab_size=50, max_position_embeddings=16, n_layers=1, n_heads=2, dim=16, hidden_dim=32,
                          dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0)
rng = np.random.default_rng(0)
ids = rng.integers(1, 50, (32, 8))
x, y = {"input_ids": ids, "attention_mask": np.ones_like(ids)}, rng.integers(0, 2, 32)
def train(**options):
    keras.utils.set_random_seed(0)
    model = distilbert.TFDistilBertForSequenceClassification(config)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), **options)
    losses = model.fit(x, y, epochs=4, batch_size=16, shuffle=False, verbose=0).history["loss"]
    return losses, model
"""


def test_mirrored_strategy_gives_the_curve_of_one_device():
    run_alone(
        COMMON
        + """
import tensorflow as tf
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})  # spares a fifth of the time
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
one, _ = train()
for options in ({}, {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}):  # which is the same loss
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        two, model = train(**options)
    np.testing.assert_allclose(two, one, rtol=1e-5)
"""
    )


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_keras_backends(backend):
    golden_case = GOLDEN / "distilbert-seqcls"
    run_alone(
        COMMON
        + f"""
losses, model = train()
assert losses[-1] < losses[0]
assert keras.backend.backend() == {backend!r}
values = np.load({str(golden_case / "golden.npz")!r})
given = {{"input_ids": values["in/input_ids"], "attention_mask": values["in/attention_mask"]}}
for dtype in ("float32", "bfloat16"):
    model = distilbert.TFDistilBertForSequenceClassification.from_pretrained({str(golden_case)!r}, dtype=dtype)
    predicted = model.predict(given, verbose=0)
    assert np.abs(np.asarray(predicted["logits"], "float32") - values["out/logits"]).max() < (1e-5 if dtype == "float32" else 0.2)
try:
    model.export("nowhere")
    raise SystemExit("exported")
except distilbert.core.errors.InputError as error:
    assert "expected TensorFlow" in str(error)
if keras.backend.backend() == "jax":  # compiled: nothing can be raised, but nothing is made up either
    for wrong in (97, -1):
        assert np.isnan(model.predict(np.full((1, 4), wrong), verbose=0)["logits"]).all()
    model.compile("sgd")
    assert np.isnan(model.test_on_batch(np.ones((2, 4), int), np.array([0, 3]))).all()
    inputs = keras.Input((None,), dtype="int32")
    assert model(inputs).logits.shape == (None, 3)
try:
    model(np.full((1, 4), 97))
    raise SystemExit("an id outside the vocabulary was accepted")
except distilbert.core.errors.InputError as error:
    assert "vocab_size=97" in str(error)
""",
        KERAS_BACKEND=backend,
    )


def test_data_parallel_on_jax():
    run_alone(
        COMMON
        + """
one, _ = train()
keras.distribution.set_distribution(keras.distribution.DataParallel())
two, model = train()
assert len(model.word_table().value.sharding.device_set) == 2
np.testing.assert_allclose(two, one, rtol=1e-5)
""",
        KERAS_BACKEND="jax",
        JAX_NUM_CPU_DEVICES="2",
    )


# Bad input: one line that says what is wrong


@pytest.mark.parametrize(
    "given, message",
    [
        ({"input_ids": IDS.astype(float)}, "input_ids has dtype float(32|64), expected int32 or int64"),
        ({"input_ids": IDS[0]}, r"input_ids has shape \(4,\), expected \(batch, length\)"),
        ({"input_ids": IDS[None]}, r"input_ids has shape \(1, 2, 4\), expected \(batch, length\)"),
        ({"input_ids": IDS * 97}, r"input_ids has the value 97, expected 0 to 96 \(vocab_size=97\)"),
        ({"input_ids": -IDS}, "input_ids has the value -1"),
        ({"input_ids": IDS, "attention_mask": IDS[:1]}, r"attention_mask has shape \(1, 4\), expected \(2, 4\)"),
        ({"input_ids": IDS, "position_ids": IDS * 40}, "position_ids has the value 40, expected 0 to 39"),
        ({"input_ids": np.ones((1, 41), int)}, "a sequence of 41 tokens is longer than max_position_embeddings=40"),
        ({}, "expected exactly one of input_ids and inputs_embeds"),
        ({"input_ids": IDS, "head_mask": np.ones((2, 2))}, r"head_mask has shape \(2, 2\), expected"),
        ({"input_ids": IDS, "labels": np.array([0, 3])}, "labels has the value 3, expected 0 to 2"),
        (
            {"input_ids": IDS, "labels": np.array([0, 1], np.float32)},
            r"labels are float32 \(2,\), expected integers \(2,\), or floats \(2, 3\) for several labels a text",
        ),
        ({"input_ids": IDS, "labels": np.eye(3, dtype=int)[:2]}, r"labels are int\d\d \(2, 3\), expected integers"),
        ({"input_ids": IDS, "label": np.array([0, 1])}, "label: not an input of TFDistilBertForSequenceClass"),
        ({"input_ids": [IDS] * 12}, "too many inputs of TFDistilBertForSequenceClassification"),
        ({"input_ids": [[1, 2], [3]]}, "input_ids has rows of different lengths; pad them"),
        ({"input_ids": tf.ragged.constant([[1, 2], [3]])}, r"input_ids is ragged, .* give input_ids.to_tensor\(\)"),
    ],
)
def test_bad_input_is_explained(given, message):
    with pytest.raises(InputError, match=message) as raised:
        load("seqcls")(**given)
    assert "\n" not in str(raised.value)


def test_what_cannot_be_served_is_explained(tmp_path):
    with pytest.raises(InputError, match="the config says output_attentions=True, expected False"):
        load("seqcls", output_attentions=True).export(tmp_path / "exported")


@pytest.mark.parametrize(
    "options, message", [({"device": "gpu:7"}, "gpu:7.*Keras cannot use"), ({"dtype": "int8"}, "dtype is 'int8'")]
)
def test_bad_devices_and_types_are_explained(options, message):
    with pytest.raises(InputError, match=message):
        InferenceModel.from_pretrained("sequence-classification", GOLDEN / "distilbert-seqcls", **options)


def test_bad_values_in_a_graph_are_explained():
    model = load("seqcls")
    model.compile("sgd")
    for x, y, message in (
        (IDS * 97, [0, 1], "input_ids has a value out of range, expected 0 to 96"),
        (IDS, [0, 3], "labels has a value"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            model.fit(x, np.array(y), verbose=0)
    with pytest.raises(InputError, match=r"labels are float32 \(None,\), expected integers"):
        model.fit(IDS, np.array([0, 1], np.float32), verbose=0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="max_position_embeddings"):
        tf.function(model, input_signature=[tf.TensorSpec((None, None), tf.int32)])(tf.ones((1, 41), tf.int32))


def test_training_needs_labels_once():
    model = load("seqcls")
    model.compile("sgd")
    with pytest.raises(InputError, match="no labels to train on"):
        model.fit({"input_ids": IDS}, verbose=0)
    with pytest.raises(InputError, match="labels: among the inputs and given as y too"):
        model.fit({"input_ids": IDS, "labels": np.array([0, 1])}, np.array([0, 1]), verbose=0)


def test_classes_are_weighed_only_where_keras_can():
    model, weights = load("seqcls"), {0: 1.0, 1: 2.0}
    model.compile("sgd")
    batches = tf.data.Dataset.from_tensors({"input_ids": IDS, "labels": np.array([0, 1])})
    with pytest.raises(InputError, match="class_weight: labels among the inputs of a data set"):
        model.fit(batches, class_weight=weights, verbose=0)
    model = load("tokcls")
    model.compile("sgd")
    with pytest.raises(InputError, match="class_weight: TFDistilBertForTokenClassification has not one class a text"):
        model.train_on_batch(IDS, IDS, class_weight=weights)


def test_what_is_frozen_stays_so(tmp_path):
    """A file says what is frozen, and a table that is never trained is not, whatever is unfrozen."""
    config = DistilBertConfig(**TINY, sinusoidal_pos_embds=True)
    model = distilbert.TFDistilBertForSequenceClassification(config)
    positions = np.array(model.get_position_embeddings().embeddings)
    count = len(model.trainable_weights)
    model.distilbert.trainable = False
    assert len(model.trainable_weights) == 4
    model.compile(keras.optimizers.SGD(0.5))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert len(loaded.trainable_weights) == 4
    words = np.array(loaded.get_input_embeddings().embeddings)
    ids, labels = np.random.default_rng(0).integers(1, 50, (8, 5)), np.arange(8) % 2
    loaded.fit(ids, labels, verbose=0)
    np.testing.assert_array_equal(loaded.get_input_embeddings().embeddings, words)
    loaded.distilbert.trainable = True
    assert len(loaded.trainable_weights) == count
    loaded.compile(keras.optimizers.SGD(0.5))
    loaded.fit(ids, labels, verbose=0)
    np.testing.assert_array_equal(loaded.get_position_embeddings().embeddings, positions)
    assert np.abs(np.array(loaded.get_input_embeddings().embeddings) - words).max() > 1e-5


def test_metrics_leave_labels_out_that_do_not_count():
    model = load("tokcls")
    given = arrays_of("tokcls")
    labels = np.array(keras.ops.argmax(model(given).logits, -1))
    labels[:, ::2] = -100
    wrong = labels.copy()
    wrong[:, 1] = (wrong[:, 1] + 1) % model.config.num_labels
    model.compile(metrics=["accuracy", keras.metrics.SparseCategoricalCrossentropy(from_logits=True)])
    scores = model.evaluate(given, labels, verbose=0, return_dict=True)
    assert scores["accuracy"] == 1
    assert scores["sparse_categorical_crossentropy"] == pytest.approx(scores["loss"], rel=1e-5)
    counted = (labels != -100).sum()
    share = 1 - len(labels) / counted
    assert abs(model.evaluate(given, wrong, verbose=0, return_dict=True)["accuracy"] - share) < 1e-6


@pytest.mark.parametrize("case", ["seqcls", "qa"])
def test_weights_count_wherever_labels_are(case):
    given = {name: array for name, array in arrays_of(case, labels=True).items() if not name.startswith("token_type")}
    model = load(case)
    names = model.label_names
    inputs = {name: array for name, array in given.items() if name not in names}
    labels = {name: given[name] for name in names}
    apart = labels if len(names) > 1 else labels[names[0]]
    model.compile(keras.optimizers.SGD(0.0))
    weights = np.linspace(0, 2, len(given["input_ids"]))
    options = {"sample_weight": weights, "verbose": 0}
    wanted = model.evaluate(inputs, apart, **options)
    assert abs(wanted - model.evaluate(inputs, apart, verbose=0)) > 1e-3
    lists = {name: array.tolist() for name, array in given.items()}
    for x in (given, lists, UserDict(lists)):
        assert abs(model.evaluate(x, **options) - wanted) < 1e-6
        assert model.fit(x, sample_weight=0 * weights, verbose=0).history["loss"] == [0]
    tokens = UserDict({name: array.tolist() for name, array in inputs.items()})
    assert_same(model.predict(tokens, verbose=0), model.predict(inputs, verbose=0))
    if len(names) == 1:
        assert abs(model.evaluate(tokens, apart.tolist(), **options) - wanted) < 1e-6
