"""What JAX users do with the Flax backend, beyond the golden cases."""

import json
import os
import runpy
import subprocess
import sys
from functools import partial

import backends
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from backends import HEADS, arrays_of
from conftest import GOLDEN
from flax import nnx, serialization
from jax.ad_checkpoint import print_saved_residuals

import distilbert
from distilbert import DistilBertConfig
from distilbert.core.errors import InputError
from distilbert.core.outputs import ModelOutput
from distilbert.flax import model as flax_model
from distilbert.flax import pad_to_bucket
from distilbert.flax.losses import classification_loss

IDS = np.ones((2, 4), int)
TINY = {"vocab_size": 50, "max_position_embeddings": 16, "n_layers": 2, "n_heads": 2, "dim": 16, "hidden_dim": 32}


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Behaviour is looked at here; the golden cases, with all optimisations, look at the numbers."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def load(case, folder=None, **options):
    return backends.load("flax", case, folder, **options)


def flatten(output):
    return backends.flatten("flax", output)


def assert_same(actual, expected, atol=1e-5):
    actual, expected = flatten(actual), flatten(expected)
    assert list(actual) == list(expected)
    for name, value in expected.items():
        backends.assert_close(actual[name], value, atol, name)


def new_model(**options):
    return distilbert.FlaxDistilBertForSequenceClassification(DistilBertConfig(**(TINY | options)))


# A pure function of its arguments


@pytest.mark.parametrize("case", HEADS)
def test_pure_under_jit(case):
    model, given = load(case), arrays_of(case, labels=True)
    expected = model(**given, output_hidden_states=True, output_attentions=True)
    run = jax.jit(lambda params: model(**given, params=params, output_hidden_states=True, output_attentions=True))
    output = run(model.params)
    assert isinstance(output, ModelOutput) and isinstance(output.hidden_states, tuple)
    assert_same(output, expected)
    doubled = jax.tree.map(lambda value: 2 * value, model.params)
    assert not np.allclose(run(doubled)[0], expected[0])


def test_outputs_are_found_by_name():
    output = ModelOutput(loss=1, hidden_states=(2, 3))
    paths, _ = jax.tree.flatten_with_path(output)
    assert [jax.tree_util.keystr(path) for path, _ in paths] == [
        "['loss']",
        "['hidden_states'][0]",
        "['hidden_states'][1]",
    ]


def test_vmap_over_params_and_over_texts():
    model, given = load("seqcls"), arrays_of("seqcls")
    stacked = jax.tree.map(lambda value: jnp.stack([value, 2 * value]), model.params)
    both = jax.jit(jax.vmap(lambda params: model(**given, params=params).logits))(stacked)
    np.testing.assert_allclose(both[0], model(**given).logits, rtol=0, atol=1e-5)
    ids, mask = given["input_ids"], given["attention_mask"]
    alone = jax.vmap(lambda ids, mask: model(ids[None], mask[None]).logits[0])(ids, mask)
    np.testing.assert_allclose(alone, model(ids, mask).logits, rtol=0, atol=1e-5)


def test_params_have_the_layout_of_transformers():
    with (GOLDEN / "distilbert-seqcls" / "flax_model.msgpack").open("rb") as file:
        from flax.serialization import msgpack_restore

        stored = msgpack_restore(file.read())
    params = load("seqcls").params
    assert jax.tree.structure(params) == jax.tree.structure(stored)
    jax.tree.map(np.testing.assert_array_equal, params, stored)


def test_params_are_checked():
    model = load("seqcls")
    params = model.params
    del params["classifier"]["bias"]
    params["classifier"]["kernel"] = jnp.zeros((3, 32))
    params["surplus"] = {"kernel": jnp.zeros(3)}
    message = (
        r"params: classifier/bias is missing; surplus/kernel is not part of this model; "
        r"classifier/kernel has shape \(3, 32\), expected \(32, 3\)"
    )
    with pytest.raises(InputError, match=message):
        model.params = params
    with pytest.raises(InputError, match=message):
        model(IDS, params=params)
    with pytest.raises(InputError, match="params is a list, expected nested mappings"):
        model(IDS, params=[])
    changed = jax.tree.map(lambda value: value * 0, model.params)
    model.params = changed
    assert not np.asarray(model(IDS).logits).any()


def test_values_may_be_left_out():
    model, params = load("seqcls", _do_init=False)
    np.testing.assert_array_equal(model(IDS, params=params).logits, load("seqcls")(IDS).logits)
    for use in (lambda: model(IDS), lambda: model.params, lambda: model.resize_token_embeddings(99)):
        with pytest.raises(InputError, match="made with _do_init=False, so pass params= to each call"):
            use()
    empty = distilbert.FlaxDistilBertForMaskedLM(DistilBertConfig(**TINY), (1, 1), 0, jnp.float32, False)
    params = empty.init_weights(jax.random.key(3), (1, 1))
    assert empty(IDS, params=params).logits.shape == (2, 4, 50)


def test_seeds_and_rngs_decide_the_initial_values():
    config = DistilBertConfig(**TINY)
    cls = distilbert.FlaxDistilBertForSequenceClassification
    one, same, other = cls(config, seed=1), cls(config, rngs=nnx.Rngs(1)), cls(config, seed=2)
    jax.tree.map(np.testing.assert_array_equal, one.params, same.params)
    assert not np.array_equal(one.params["classifier"]["kernel"], other.params["classifier"]["kernel"])
    half = cls(config, param_dtype=jnp.bfloat16)
    assert {value.dtype for value in jax.tree.leaves(half.params)} == {jnp.dtype("bfloat16")}


def test_what_is_out_of_range_is_nan_under_jit():
    model = load("seqcls")
    for values in (IDS * 97, -IDS):
        ids = IDS.copy()
        ids[1] = values[1]
        logits = np.asarray(jax.jit(lambda ids: model(ids).logits)(ids))
        assert np.isfinite(logits[0]).all() and np.isnan(logits[1]).all()


# An NNX module


def test_nnx_tools(capsys):
    model, given = load("seqcls"), arrays_of("seqcls")
    expected = model(**given)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    assert_same(nnx.merge(graphdef, params, rest)(**given), expected)
    assert {path[-3] for path, _ in nnx.to_flat_state(rest)} == {"rngs"}
    jitted = nnx.jit(lambda model, ids, mask: model(ids, mask))
    assert_same(jitted(model, given["input_ids"], given["attention_mask"]), expected)
    hash(graphdef)
    nnx.display(model)
    assert "pre_classifier" in capsys.readouterr().out


def toy(count=64):
    ids = np.random.default_rng(0).integers(3, 50, (count, 8))
    labels = np.arange(count) % 2
    ids[:, 3] = labels + 1
    return ids, labels


def test_nnx_optimizer_learns():
    ids, labels = toy()
    model = new_model(initializer_range=0.2)
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, ids, labels):
        loss, gradients = nnx.value_and_grad(lambda model: model(ids, labels=labels).loss)(model)
        optimizer.update(model, gradients)
        return loss

    model.train()
    losses = [float(step(model, optimizer, ids, labels)) for _ in range(60)]
    model.eval()
    assert losses[-1] < losses[0] / 3
    assert (model(ids).logits.argmax(-1) == labels).mean() > 0.95


def test_plain_optax_learns_with_donated_buffers():
    ids, labels = toy()
    model = new_model(initializer_range=0.2)
    optimizer = optax.adam(3e-3)

    def step(params, state, key):
        key, dropout = jax.random.split(key)
        loss, gradients = jax.value_and_grad(
            lambda params: model(ids, params=params, labels=labels, dropout_rng=dropout, train=True).loss
        )(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, key, loss

    step = jax.jit(step, donate_argnums=(0, 1))
    params = jax.tree.map(jnp.copy, model.params)
    state, key, losses = optimizer.init(params), jax.random.key(0), []
    for _ in range(60):
        params, state, key, loss = step(params, state, key)
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 3


def test_dropout_follows_the_key():
    model = new_model(dropout=0.5)
    params = model.params
    one, same, other = (
        model(IDS, params=params, dropout_rng=jax.random.key(seed), train=True).logits for seed in (0, 0, 1)
    )
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert np.array_equal(model(IDS).logits, model(IDS).logits)
    assert not np.array_equal(model(IDS, train=True).logits, model(IDS, train=True).logits)
    model.train()
    assert not np.array_equal(model(IDS).logits, model(IDS).logits)
    model.eval()
    assert np.array_equal(model(IDS).logits, model(IDS).logits)
    with pytest.raises(InputError, match="needs dropout_rng="):
        model(IDS, params=params, train=True)


@pytest.mark.parametrize("case", HEADS)
def test_linen_view(case):
    model, given = load(case), arrays_of(case)
    output = model.module.apply({"params": model.params}, given["input_ids"], given["attention_mask"])
    assert_same(output, model(**given))
    fresh = model.module.init(jax.random.key(0), given["input_ids"])["params"]
    assert jax.tree.structure(fresh) == jax.tree.structure(model.params)


def test_linen_view_takes_no_values_but_those_given():
    model = load("sinusoidal")
    table = model.get_position_embeddings().embedding
    table.set_value(table[...] + 1)
    params = model.params
    assert np.array_equal(model.module.apply({"params": params}, IDS)[0], model(IDS)[0])
    del params["embeddings"]["LayerNorm"]
    with pytest.raises(InputError, match="params: embeddings/LayerNorm/scale is missing; embeddings/LayerNorm/bias is"):
        model.module.apply({"params": params}, IDS)


def test_linen_view_drops_by_key():
    model = new_model()
    train = partial(model.module.apply, {"params": model.params}, IDS, train=True)
    assert jax.eval_shape(lambda: train(rngs={"dropout": jax.random.key(3)})).logits.shape == (2, 2)
    with pytest.raises(InputError, match="needs dropout_rng="):
        train()


def test_view_switches_dropout():
    model = new_model(dropout=0.5)
    training = nnx.view(model, deterministic=False)
    assert not np.array_equal(training(IDS).logits, training(IDS).logits)
    assert np.array_equal(model(IDS).logits, model(IDS).logits)


def test_fixed_positions_are_no_parameters():
    model = load("sinusoidal")
    stored = serialization.msgpack_restore((GOLDEN / "distilbert-sinusoidal" / "flax_model.msgpack").read_bytes())
    assert jax.tree.structure(stored) == jax.tree.structure(model.params)
    table = model.get_position_embeddings().embedding
    table.set_value(table[...] + 1)  # a checkpoint may hold others than the formula's
    assert np.array_equal(model(IDS, params=stored)[0], model(IDS)[0])
    optimizer = nnx.Optimizer(model, optax.adamw(0.1, weight_decay=0.5), wrt=nnx.Param)
    before = table[...]
    optimizer.update(model, nnx.grad(lambda model: model(IDS)[0].sum())(model))
    assert np.array_equal(table[...], before)


def test_fixed_positions_are_those_of_the_checkpoint(tmp_path):
    model = load("sinusoidal")
    table = model.get_position_embeddings().embedding
    table.set_value(table[...] + 1)
    for format in ("safetensors", "msgpack"):
        model.save_pretrained(tmp_path / format, format=format)
        assert np.array_equal(load("sinusoidal", tmp_path / format)(IDS)[0], model(IDS)[0])
        empty, params = load("sinusoidal", tmp_path / format, _do_init=False)
        assert np.array_equal(empty(IDS, params=params)[0], model(IDS)[0])


def test_the_encoder_of_a_head_stands_on_its_own():
    model = new_model(dropout=0.5)
    encoder = model.distilbert
    assert not np.array_equal(encoder(IDS, train=True)[0], encoder(IDS, train=True)[0])
    encoder.resize_token_embeddings(60)
    assert model.config.vocab_size == 60 and model(IDS * 59).logits.shape == (2, 2)


def test_an_empty_batch():
    for case in ("base", "seqcls"):
        assert load(case)(np.zeros((0, 4), int))[0].shape[0] == 0


class Count(nnx.Variable):
    pass


class Watched(nnx.Module):
    """What a user puts around a module: it counts, sows and draws."""

    def __init__(self, base):
        self.base, self.count, self.dropout = base, Count(jnp.array(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def __call__(self, vectors):
        self.count.set_value(self.count.get_value() + 1)
        self.sow(nnx.Intermediate, "seen", vectors)
        return self.dropout(self.base(vectors))


class Mean(distilbert.FlaxDistilBertForSequenceClassification):
    def forward(self, **given):
        return ModelOutput(logits=super().forward(**given).logits.mean())


@nnx.jit
def seen_and_said(model, ids):
    return nnx.capture(lambda model: model(ids).logits, nnx.Intermediate)(model)


def test_modules_of_users_keep_what_they_change():
    model = new_model()
    feed_forward = model.distilbert.transformer.layer["0"].ffn
    feed_forward["lin1"] = Watched(feed_forward["lin1"])
    logits, seen = seen_and_said(model, IDS)
    assert seen["distilbert"]["transformer"]["layer"]["0"]["ffn"]["lin1"]["seen"][0].shape == (2, 4, 16)
    assert not np.array_equal(seen_and_said(model, IDS)[0], logits)
    assert feed_forward["lin1"].count.get_value() == 2


def test_pieces_leave_modules_of_users_alone(monkeypatch):
    monkeypatch.setattr(flax_model, "PIECE", 4)
    model = new_model()
    model.classifier = Watched(model.classifier)
    logits, seen = seen_and_said(model, IDS)
    assert logits.shape == (2, 2) and seen["classifier"]["seen"][0].shape == (2, 16)
    assert model.classifier.count.get_value() == 1
    assert jax.eval_shape(lambda ids: Mean(model.config)(ids), IDS).logits.shape == ()


def test_a_new_model_evaluates():
    model = new_model()
    before = nnx.graphdef(model)
    model.eval()
    assert nnx.graphdef(model) == before


@pytest.mark.parametrize("train", [True, False])
def test_gradient_checkpointing_keeps_less(train, capsys):
    model, key = new_model(), jax.random.key(0)

    def loss(params):
        return model(IDS, params=params, labels=np.array([0, 1]), dropout_rng=key, train=train).loss

    def kept():
        print_saved_residuals(loss, model.params)
        return len(capsys.readouterr().out.splitlines())

    everything = kept()
    model.gradient_checkpointing_enable()
    assert kept() < 0.7 * everything
    model.gradient_checkpointing_disable()
    assert kept() == everything


# Losses


def test_losses_stay_finite_where_nothing_counts():
    for case, names in (("mlm", ["labels"]), ("tokcls", ["labels"]), ("seqcls", ["labels"])):
        model, given = load(case), arrays_of(case, labels=True)
        for name in names:
            given[name] = np.full_like(given[name], -100)
        value, gradients = jax.value_and_grad(lambda p, m=model, g=given: m(**g, params=p).loss)(model.params)
        assert value == 0 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    model, given = load("qa"), arrays_of("qa")
    outside = np.full(len(given["input_ids"]), 99)
    assert model(**given, start_positions=outside, end_positions=outside).loss == 0


@pytest.mark.parametrize("problem, classes", [("regression", 1), ("multi_label_classification", 3)])
def test_integers_of_filled_up_rows_do_not_count(problem, classes):
    config = DistilBertConfig(num_labels=classes, problem_type=problem)
    logits, labels = jax.random.normal(jax.random.key(0), (4, classes)), np.eye(4, classes, dtype=np.uint8)
    filled = pad_to_bucket({"input_ids": IDS, "labels": labels[:2]}, batch_size=4)["labels"]
    expected = classification_loss(logits[:2], labels[:2].astype(np.float32), config)
    assert classification_loss(logits[:2], labels[:2], config) == expected
    np.testing.assert_allclose(classification_loss(logits, filled, config), expected, rtol=1e-6)
    assert abs(classification_loss(logits, filled.astype(np.float32), config) - expected) > 0.1


@pytest.mark.parametrize("case", HEADS)
def test_losses_mix_no_types(case):
    model, given = load(case), arrays_of(case, labels=True)
    with jax.numpy_dtype_promotion("strict"):
        output = jax.eval_shape(lambda params: model(**given, params=params), model.params)
    assert case == "base" or output.loss.dtype == jnp.float32


def test_labels_are_checked():
    with pytest.raises(InputError, match="labels has the value 3, expected 0 to 2, or -100 where none counts"):
        load("seqcls")(IDS, labels=np.array([0, 3]))
    with pytest.raises(
        InputError, match="label: no argument of FlaxDistilBertForSequenceClassification; its labels: labels"
    ):
        load("seqcls")(IDS, label=np.array([0, 1]))
    with pytest.raises(InputError, match="no argument of FlaxDistilBertModel; its labels: none"):
        load("base")(IDS, labels=np.array([0, 1]))


def test_wrong_labels():
    model = load("seqcls")
    with pytest.raises(InputError, match=r"labels has shape \(3,\), expected \(2,\)"):
        model(IDS, labels=np.array([0, 1, 2]))
    message = r"float32 \(2,\), expected integers \(2,\) for classes or floats \(2, 3\) for several labels"
    with pytest.raises(InputError, match=message):
        model(IDS, labels=np.zeros(2, np.float32))
    assert np.isnan(jax.jit(lambda labels: model(IDS, labels=labels).loss)(np.array([0, -1])))


def test_inputs_are_checked():
    with pytest.raises(InputError, match="input_ids has dtype float"):
        load("seqcls")(IDS.astype(float))
    with pytest.raises(InputError, match=f"input_ids has the value {2**32 + 5}"):
        load("seqcls")(IDS * (2**32 + 5))
    with pytest.raises(InputError, match="rows of different lengths; pad them"):
        load("seqcls")([[1, 2], [3]])
    assert_same(load("seqcls")(IDS.tolist()), load("seqcls")(IDS))


# Few programs


def test_mixed_lengths_compile_a_handful_of_programs():
    model = new_model()
    run = jax.jit(lambda params, ids, mask: model(ids, mask, params=params).logits)
    generator = np.random.default_rng(0)
    for length in range(1, 17):
        ids = generator.integers(1, 50, (generator.integers(1, 5), length))
        padded = pad_to_bucket({"input_ids": ids}, batch_size=4)
        logits = run(model.params, padded["input_ids"], padded["attention_mask"])
        if length in (3, 8, 13):
            np.testing.assert_allclose(logits[: len(ids)], model(ids).logits, rtol=0, atol=1e-5)
    assert run._cache_size() == 2


@pytest.mark.parametrize("case", HEADS)
def test_padding_to_a_bucket_keeps_the_loss(case):
    model, given = load(case), arrays_of(case, labels=True)
    padded = pad_to_bucket(given, lengths=(32,), batch_size=len(given["input_ids"]) + 2)
    assert padded["input_ids"].shape[-1] == 32
    if case not in ("base", "qa"):
        np.testing.assert_allclose(model(**padded).loss, model(**given).loss, rtol=1e-5)
    with pytest.raises(InputError, match="expected at most batch_size=1"):
        pad_to_bucket(given, batch_size=1)


def test_padding_leaves_the_rest_alone():
    given = {"input_ids": IDS, "position_ids": np.arange(4, dtype=np.int16)[None], "labels": np.array([0, 1], np.uint8)}
    padded = pad_to_bucket(given, batch_size=4)
    assert padded["position_ids"].shape == (1, 8) and padded["labels"].tolist() == [0, 1, -100, -100]
    np.testing.assert_allclose(load("seqcls")(**padded).loss, load("seqcls")(**given).loss, rtol=1e-5)
    with pytest.raises(InputError, match="rows of different lengths"):
        pad_to_bucket({"input_ids": [[1, 2], [3]]})


def test_padding_takes_vectors_and_leaves_out_none():
    padded = pad_to_bucket({"inputs_embeds": np.ones((2, 3, 16)), "token_type_ids": None}, batch_size=4)
    assert {name: value.shape for name, value in padded.items()} == {
        "inputs_embeds": (4, 8, 16),
        "attention_mask": (4, 8),
    }
    with pytest.raises(InputError, match="the batch has labels, expected input_ids or inputs_embeds"):
        pad_to_bucket({"input_ids": None, "labels": [0, 1]})


def test_floats_as_labels_cannot_be_left_out():
    batch = {"input_ids": IDS, "labels": np.array([0.1, 0.2], np.float32)}
    np.testing.assert_array_equal(pad_to_bucket(batch, batch_size=2)["labels"], batch["labels"])
    with pytest.raises(InputError, match="no float means that a row does not count"):
        pad_to_bucket(batch, batch_size=4)


@pytest.mark.parametrize("case", HEADS)
@pytest.mark.parametrize("tokens", [1, 30])
def test_pieces_give_what_the_whole_gives(case, tokens, monkeypatch):
    model, given = load(case), arrays_of(case)
    given = {name: np.concatenate([value, value[::-1], value[:1]]) for name, value in given.items()}
    options = {"output_hidden_states": True, "output_attentions": True}
    expected = model(**given, **options)
    monkeypatch.setattr(flax_model, "PIECE", tokens)
    run = jax.jit(lambda given: model(**given, **options))
    assert "while" in run.lower(given).as_text()
    assert_same(run(given), expected)
    head_mask, positions = np.ones((3, 4), np.float32), np.arange(given["input_ids"].shape[-1])[None]
    if case != "choice":
        more = jax.jit(lambda given: model(**given, head_mask=head_mask, position_ids=positions))(given)
        assert_same(more, model(**given))


# Several devices, other processes

COMMON = """
import sys
sys.path.insert(0, "tests")
import jax, jax.numpy as jnp, numpy as np
import distilbert
from distilbert import DistilBertConfig
from jax.sharding import NamedSharding, PartitionSpec as P
config = DistilBertConfig(vocab_size=56, max_position_embeddings=16, n_layers=2, n_heads=4, dim=32, hidden_dim=64)
model = distilbert.FlaxDistilBertForMaskedLM(config)
generator = np.random.default_rng(0)
given = {"input_ids": generator.integers(1, 56, (8, 12)), "labels": generator.integers(0, 56, (8, 12)),
         "attention_mask": np.ones((8, 12), int)}
def step(params, given):
    def loss(params):
        output = model(**given, params=params)
        return output.loss, output.logits
    return jax.value_and_grad(loss, has_aux=True)(params)
(loss, logits), gradients = jax.jit(step)(model.params, given)
def check(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)
"""


def run_alone(script, **environment):
    env = {**os.environ, **environment}
    result = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.parametrize("data, model", [(8, 1), (2, 4), (4, 2)])
def test_sharded_over_eight_devices(data, model):
    script = f"""{COMMON}
mesh = jax.make_mesh(({data}, {model}), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
single = jax.tree.map(np.asarray, model.params)
model.shard(mesh)
params = model.params
query = params["distilbert"]["transformer"]["layer"]["0"]["attention"]["q_lin"]["kernel"]
assert query.sharding.spec == P(None, "model" if {model} > 1 else None), query.sharding
words = params["distilbert"]["embeddings"]["word_embeddings"]["embedding"]
assert words.addressable_shards[0].data.shape == (56 // {model}, 32)
batch = jax.device_put(given, NamedSharding(mesh, P("data")))
compiled = jax.jit(step, out_shardings=((None, None), model.shardings(mesh))).lower(params, batch).compile()
(sharded_loss, sharded_logits), sharded_gradients = compiled(params, batch)
check(sharded_loss, loss)
check(sharded_logits, logits)
jax.tree.map(check, sharded_gradients, gradients)
assert "all-reduce" in compiled.as_text()
forward = jax.jit(lambda params, batch: model(**batch, params=params).logits).lower(params, batch).compile()
print(forward.as_text().count("all-reduce("))
"""
    reductions = int(run_alone(script, JAX_NUM_CPU_DEVICES="8"))
    assert (reductions > 0) == (model > 1)  # data alone needs none to predict


def test_a_mesh_with_explicit_axes_is_refused():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with pytest.raises(InputError, match=r"the mesh has axes that are not automatic; make it with jax.make_mesh"):
        load("base").shard(mesh)


def test_shard_map_over_eight_devices():
    script = f"""{COMMON}
mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
part = jax.shard_map(lambda params, ids: model(ids, params=params).logits, mesh=mesh,
                     in_specs=(P(), P("data")), out_specs=P("data"))
check(jax.jit(part)(model.params, given["input_ids"]), logits)
"""
    run_alone(script, JAX_NUM_CPU_DEVICES="8")


def test_export_reloads_in_a_fresh_process(shallow, tmp_path):
    for case in HEADS:
        model, given = load(case, shallow(case)), arrays_of(case)
        dims = jax.export.symbolic_shape("b, 2, l" if case == "choice" else "b, l")
        ids = jax.ShapeDtypeStruct(dims, jnp.int32)
        call = jax.jit(lambda params, ids, mask, model=model: model(ids, mask, params=params))
        exported = jax.export.export(call)(
            jax.tree.map(lambda value: jax.ShapeDtypeStruct(value.shape, value.dtype), model.params), ids, ids
        )
        (tmp_path / f"{case}.program").write_bytes(exported.serialize())
        ids, mask = (given[name].astype(np.int32) for name in ("input_ids", "attention_mask"))
        np.savez(tmp_path / f"{case}.npz", **flatten(call(model.params, ids, mask)))
    folders = {case: str(shallow(case)) for case in HEADS}
    script = f"""
import sys
sys.path.insert(0, "tests")
from pathlib import Path
import jax, numpy as np, backends, distilbert.flax
for case, folder in {folders!r}.items():
    program = jax.export.deserialize(bytearray(Path({str(tmp_path)!r}, case + ".program").read_bytes()))
    given = backends.arrays_of(case)
    ids, mask = (given[name].astype(np.int32) for name in ("input_ids", "attention_mask"))
    params = backends.load("flax", case, folder).params
    output = program.call(params, ids, mask)
    expected = np.load(Path({str(tmp_path)!r}, case + ".npz"))
    for name, value in backends.flatten("flax", output).items():
        np.testing.assert_array_equal(value, expected[name])
    assert program.call(params, ids[:1], mask[:1])[0].shape[0] == 1
"""
    run_alone(script, JAX_DISABLE_MOST_OPTIMIZATIONS="1")  # as here


# Files


# transformers' Flax classes read no sharded safetensors
@pytest.mark.parametrize("format, size", [("msgpack", "5GB"), ("msgpack", "30KB"), ("safetensors", "5GB")])
@pytest.mark.parametrize("case", HEADS)
def test_files_are_those_that_transformers_has_read(case, format, size, tmp_path):
    """read_by_transformers.json says how far its Flax classes' outputs were from the golden ones."""
    evidence = json.loads((GOLDEN / "read_by_transformers.json").read_text())["flax"][f"{case} {format} {size}"]
    load(case).save_pretrained(tmp_path, format=format, max_shard_size=size)
    assert backends.digest(tmp_path) == evidence["digest"]
    assert evidence["largest_difference"] < 1e-5


def test_saving_other_params(tmp_path):
    model = load("seqcls")
    params = jax.tree.map(lambda value: value * 2, model.params)
    model.save_pretrained(tmp_path, params=params)
    jax.tree.map(np.testing.assert_array_equal, load("seqcls", tmp_path).params, params)


def test_what_a_file_has_no_place_for_is_named(tmp_path):
    model = new_model()
    model.classifier = nnx.LoRALinear(16, 2, lora_rank=2, rngs=nnx.Rngs(1))
    with pytest.raises(InputError, match="added to this model: classifier/lora/lora_a, classifier/lora/lora_b; keep"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    model.save_pretrained(tmp_path, params=model.params)
    attention = model.distilbert.transformer.layer["0"].attention
    attention["q_lin"] = nnx.LoRA(16, 4, 16, base_module=attention["q_lin"], rngs=nnx.Rngs(1))
    for use in (lambda: model.params, lambda: model.save_pretrained(tmp_path)):
        with pytest.raises(
            InputError, match=r"layer\.0\.attention\.q_lin is a LoRA, expected a module that has kernel"
        ):
            use()


def test_stored_types_are_kept_on_request(tmp_path):
    half = load("seqcls", param_dtype="bfloat16")
    half.save_pretrained(tmp_path, format="msgpack")
    again = load("seqcls", tmp_path, param_dtype="auto")
    assert {value.dtype for value in jax.tree.leaves(again.params)} == {jnp.dtype("bfloat16")}
    jax.tree.map(np.testing.assert_array_equal, again.params, half.params)
    assert load("seqcls", tmp_path).params["classifier"]["kernel"].dtype == jnp.float32


def test_mixed_precision_learns():
    ids, labels = toy()
    for dtype in (jnp.bfloat16, jnp.float16):
        model = distilbert.FlaxDistilBertForSequenceClassification(
            DistilBertConfig(**TINY, initializer_range=0.2), dtype=dtype
        )
        optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            loss, gradients = nnx.value_and_grad(lambda model: model(ids, labels=labels, train=True).loss)(model)
            optimizer.update(model, gradients)
            return loss

        losses = [float(step(model, optimizer)) for _ in range(60)]
        assert losses[-1] < losses[0] / 2
        assert {value.dtype for value in jax.tree.leaves(model.params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("style", ["optax", "nnx"])
def test_the_example_resumes_exactly(style, shallow, tmp_path, monkeypatch, capsys):
    texts = ["a wonderful film", "the plot is a mess", "i do not know"]
    (tmp_path / "texts.tsv").write_text("".join(f"{text}\t{label}\n" for label, text in enumerate(texts)) * 40)
    example = GOLDEN.parents[1] / "examples" / "flax_sentiment.py"

    def run(output, *options):
        files = [shallow("seqcls"), tmp_path / "texts.tsv", tmp_path / "texts.tsv", tmp_path / output]
        command = [example, *files, "--epochs", "2", "--learning-rate", "1e-3", "--style", style, *options]
        monkeypatch.setattr(sys, "argv", [str(word) for word in command])
        runpy.run_path(str(example), run_name="__main__")
        return capsys.readouterr().out

    run("stopped", "--stop-after", "3")
    assert "resumed at step 3" in run("stopped")
    assert "accuracy" in run("whole")
    whole, resumed = load("seqcls", tmp_path / "whole").params, load("seqcls", tmp_path / "stopped").params
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    given = load("seqcls", shallow("seqcls")).params
    assert not np.array_equal(whole["classifier"]["kernel"], given["classifier"]["kernel"])
