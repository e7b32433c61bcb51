"""The losses of distillation: one definition in float64, and what each framework makes of it."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
import torch

import distilbert.flax.losses
import distilbert.pt.losses
import distilbert.tf.losses
from distilbert.core.errors import ConfigError
from distilbert.distillation.recipe import Recipe

T = 2.0


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def mean(values, mask):
    return values[mask != 0].mean() if mask.any() else 0.0


def distillation_loss(student, teacher, mask):
    log_p, log_q = log_softmax(teacher / T), log_softmax(student / T)
    return T**2 * mean((np.exp(log_p) * (log_p - log_q)).sum(-1), mask)


def cosine_loss(student, teacher, mask):
    norms = np.linalg.norm(student, axis=-1) * np.linalg.norm(teacher, axis=-1)
    return mean(1 - (student * teacher).sum(-1) / np.maximum(norms, 1e-16), mask)


def hidden_state_loss(student, teacher, mask):
    return mean(np.square(student - teacher).mean(-1), mask)


def token_loss(student, teacher, mask):
    return mean(-np.take_along_axis(log_softmax(student), LABELS[..., None], -1)[..., 0], mask)


def gradient(function, x):
    """By central differences."""
    found = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[index] = 1e-5
        found[index] = (function(x + step) - function(x - step)) / 2e-5
    return found


# How each framework computes a value and its gradient, compiled.


def by_torch(loss, student, *constants, dtype=None):
    student = torch.tensor(student, dtype=torch.bfloat16 if dtype else None, requires_grad=True)
    torch.compiler.reset()  # it would count the cases, and give up at eight
    value = torch.compile(loss, backend="eager", fullgraph=True)(student, *map(torch.tensor, constants))
    value.backward()
    return value.dtype, value.item(), student.grad.float().numpy()


def by_tensorflow(loss, student, *constants, dtype=None):
    student = tf.constant(student, dtype=tf.bfloat16 if dtype else None)

    @tf.function
    def both(student, *constants):
        with tf.GradientTape() as tape:
            tape.watch(student)
            value = loss(student, *constants)
        return value, tape.gradient(value, student)

    value, found = both(student, *map(tf.constant, constants))
    return value.dtype, value.numpy(), tf.cast(found, tf.float32).numpy()


def by_jax(loss, student, *constants, dtype=None):
    student = jnp.asarray(student, jnp.bfloat16 if dtype else None)
    value, found = jax.jit(jax.value_and_grad(loss))(student, *map(jnp.asarray, constants))
    return value.dtype, value.item(), np.asarray(found, np.float32)


BACKENDS = [
    pytest.param(distilbert.pt.losses, by_torch, id="pt"),
    pytest.param(distilbert.tf.losses, by_tensorflow, id="tf"),
    pytest.param(distilbert.flax.losses, by_jax, id="flax"),
]
LOSSES = {
    "distillation_loss": (distillation_loss, (T,)),
    "cosine_loss": (cosine_loss, ()),
    "hidden_state_loss": (hidden_state_loss, ()),
    "token_loss": (token_loss, ()),
}
SHAPE = (2, 3, 5)
LABELS = np.random.default_rng(1).integers(0, 5, SHAPE[:-1])
MASK = np.array([[1, 1, 0], [0, 1, 1]])


def arrays(scale=1.0):
    rng = np.random.default_rng(0)
    return [(scale * rng.normal(size=SHAPE)).astype(ml_dtypes.bfloat16).astype(np.float32) for _ in range(2)]


def compute(backend, run, name, student, teacher, mask, **options):
    loss = getattr(backend, name)
    if name == "token_loss":
        return run(loss, student, np.where(mask, LABELS, -100), **options)
    extra = LOSSES[name][1]
    return run(lambda student, teacher, mask: loss(student, teacher, mask, *extra), student, teacher, mask, **options)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("backend, run", BACKENDS)
def test_values_and_gradients_are_those_of_the_definition(backend, run, name, dtype):
    student, teacher = arrays()
    found_dtype, value, found = compute(backend, run, name, student, teacher, MASK, dtype=dtype)
    exact_student, exact_teacher = student.astype(np.float64), teacher.astype(np.float64)
    reference = LOSSES[name][0]
    assert "float32" in str(found_dtype)
    assert value == pytest.approx(reference(exact_student, exact_teacher, MASK), rel=1e-6)
    expected = gradient(lambda student: reference(student, exact_teacher, MASK), exact_student)
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-3 if dtype else 1e-6)
    assert not found[MASK == 0].any()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("backend, run", BACKENDS)
def test_what_is_large_zero_or_absent_stays_finite(backend, run, name):
    student, teacher = arrays(scale=1e3)
    student[0, 0] = teacher[0, 1] = 0
    for mask in (MASK.astype(bool), np.ones_like(MASK)):
        _, value, found = compute(backend, run, name, student, teacher, mask)
        expected = LOSSES[name][0](student.astype(np.float64), teacher.astype(np.float64), mask)
        assert value == pytest.approx(expected, rel=2e-6) and np.isfinite(found).all()
    _, value, found = compute(backend, run, name, student, teacher, np.zeros_like(MASK))
    assert value == 0 and not found.any()
    if name != "token_loss":
        teacher = student.copy()
        teacher[0, 0] = student[0, 0] = 1
        assert compute(backend, run, name, student, teacher, MASK)[1] == pytest.approx(0, abs=2e-7)


@pytest.mark.parametrize("backend, run", BACKENDS)
def test_a_task_mixes_soft_and_hard(backend, run):
    """One output, and the two of an answer."""
    start, end = arrays()
    hard = np.float32(0.25)

    def loss(start, end, mask, hard):
        one = backend.task_distillation_loss([start], [end], mask, hard, T, 0.75)
        two = backend.task_distillation_loss((start, end), (end, start), mask, hard, T, 0.75)
        return one + 8 * two

    there, back = (distillation_loss(*pair, MASK) for pair in ((start, end), (end, start)))
    expected = 0.75 * there + 0.0625 + 8 * (0.75 * (there + back) / 2 + 0.0625)
    assert run(loss, start, end, MASK, hard)[1] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("backend, run", BACKENDS)
def test_a_mask_of_another_shape_is_refused(backend, run):
    student, teacher = arrays()
    with pytest.raises(Exception, match=r"shape|size|element"):
        compute(backend, run, "cosine_loss", student, teacher, MASK[:1])


def test_the_recipe_is_the_published_one():
    recipe = Recipe()
    assert (recipe.distillation_weight, recipe.masked_lm_weight, recipe.cosine_weight) == (5, 2, 1)
    assert (recipe.hidden_state_weight, recipe.temperature, recipe.smoothing) == (0, 2, 0.7)
    for wrong, message in (
        ({"cosine_weight": -1}, "cosine_weight is -1"),
        ({"smoothing": float("nan")}, "smoothing is nan"),
        ({"temperature": 0}, "temperature is 0"),
        ({"mask_share": 0.8, "random_share": 0.3}, "mask_share and random_share exceed 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            Recipe(**wrong)
