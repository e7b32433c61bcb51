"""One way to drive every backend, so that a contract is written once: arrays in, arrays out, canonical names."""

import hashlib
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import h5py
import numpy as np
from conftest import GOLDEN

import distilbert
from distilbert.core.outputs import is_per_token
from distilbert.core.spec import BERT, DISTILBERT

CASES = {
    "base": "DistilBertModel",
    "silu": "DistilBertModel",
    "gelu_new": "DistilBertModel",
    "sinusoidal": "DistilBertModel",
    "mlm": "DistilBertForMaskedLM",
    "relu": "DistilBertForMaskedLM",
    "seqcls": "DistilBertForSequenceClassification",
    "regression": "DistilBertForSequenceClassification",
    "multilabel": "DistilBertForSequenceClassification",
    "choice": "DistilBertForMultipleChoice",
    "tokcls": "DistilBertForTokenClassification",
    "qa": "DistilBertForQuestionAnswering",
}
BERT_CASES = {
    "bert-base": "BertModel",
    "bert-pretraining": "BertForPreTraining",
    "bert-mlm": "BertForMaskedLM",
    "bert-nsp": "BertForNextSentencePrediction",
    "bert-seqcls": "BertForSequenceClassification",
    "bert-choice": "BertForMultipleChoice",
    "bert-tokcls": "BertForTokenClassification",
    "bert-qa": "BertForQuestionAnswering",
}
EVERY_CASE = CASES | BERT_CASES
WHOLE = "bert-pretraining"  # has a row of every kind: segments, a pooler, an output projection with its bias elsewhere
INPUTS = ("in/input_ids", "in/attention_mask", "in/token_type_ids")  # the rest of a case's are labels
HEADS = ("base", "mlm", "seqcls", "choice", "tokcls", "qa")  # one case of each


class Torch:
    prefix = ""

    @staticmethod
    def tensor(array):
        import torch

        return torch.from_numpy(np.asarray(array))

    @staticmethod
    def array(tensor):
        return tensor.detach().float().numpy()

    @staticmethod
    def parameters(model):
        tied = {p.name for p in model.parameter_list() if p.tied_to is not None}
        return {name: value.detach().numpy() for name, value in model.state_dict().items() if name not in tied}

    @staticmethod
    def gradients(model, inputs):
        model(**inputs).loss.backward()
        return {name: value.grad.numpy() for name, value in model.named_parameters() if value.grad is not None}


class Keras:
    prefix = "TF"

    @staticmethod
    def tensor(array):
        import tensorflow as tf

        return tf.constant(array)

    @staticmethod
    def array(tensor):
        import keras

        return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))

    @staticmethod
    def parameters(model):
        from distilbert.tf.loading import to_arrays

        return to_arrays(model)

    @staticmethod
    def gradients(model, inputs):
        import tensorflow as tf

        from distilbert.core.spec import KERAS

        with tf.GradientTape() as tape:
            loss = model(**inputs).loss
        rows = {row: value for row, value in model.variable_list() if value.trainable}
        gradients = tape.gradient(loss, [value.value for value in rows.values()])
        return {
            row.name: np.asarray(tf.convert_to_tensor(gradient)).T
            if KERAS.is_transposed(row)
            else np.asarray(tf.convert_to_tensor(gradient))
            for row, gradient in zip(rows, gradients, strict=True)
            if gradient is not None
        }


class Flax:
    prefix = "Flax"

    @staticmethod
    def tensor(array):
        import jax.numpy as jnp

        return jnp.asarray(array)

    @staticmethod
    def array(tensor):
        return np.asarray(tensor, np.float32)

    @staticmethod
    def parameters(model):
        from distilbert.flax.loading import to_arrays

        return to_arrays(model, model.params)

    @staticmethod
    def gradients(model, inputs):
        import jax

        from distilbert.flax.loading import to_arrays

        gradients = jax.jit(jax.grad(lambda params: model(**inputs, params=params).loss))(model.params)
        names = {parameter.name for parameter, _ in model.trained_list()}
        return {name: value for name, value in to_arrays(model, gradients).items() if name in names}


BACKENDS = {"torch": Torch, "tf": Keras, "flax": Flax}


def head_of(case):
    """The spec's name for what a case's model computes."""
    family = BERT if case in BERT_CASES else DISTILBERT
    return next(name for name in family.heads if family.class_name(name) == EVERY_CASE[case])


def folder_of(case):
    return GOLDEN / (case if case in BERT_CASES else f"distilbert-{case}")


def model_class(backend, case):
    return getattr(distilbert, BACKENDS[backend].prefix + EVERY_CASE[case])


def load(backend, case, folder=None, **options):
    return model_class(backend, case).from_pretrained(folder or folder_of(case), **options)


def golden(case):
    with np.load(folder_of(case) / "golden.npz") as file:
        return dict(file)


def arrays_of(case, labels=False):
    return {
        name.removeprefix("in/"): value
        for name, value in golden(case).items()
        if name.startswith("in/") and (labels or name in INPUTS)
    }


def inputs_of(backend, values, labels=True):
    return {
        name.removeprefix("in/"): BACKENDS[backend].tensor(value)
        for name, value in values.items()
        if name.startswith("in/") and (labels or name in INPUTS)
    }


def flatten(backend, output):
    flat = {}
    for name, value in output.items():
        flat |= {f"{name}/{i}": v for i, v in enumerate(value)} if isinstance(value, tuple) else {name: value}
    return {name: BACKENDS[backend].array(value) for name, value in flat.items()}


def at_tokens(values, case, mask):
    """The outputs at tokens only, where they have an axis of tokens: in place of padding they mean nothing."""
    return {
        name: value[mask.astype(bool)] if is_per_token(name, head_of(case)) else value for name, value in values.items()
    }


def assert_close(actual, expected, tolerance, name=""):
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(actual / scale, expected / scale, rtol=0, atol=tolerance, err_msg=name)


def digest(folder):
    """A fingerprint of the weights that a folder holds: names, lists of names, values."""
    total = hashlib.sha256()

    def add(name, item):
        lists = {key: np.atleast_1d(value).tolist() for key, value in sorted(item.attrs.items())}
        total.update(repr((name, lists)).encode())
        if isinstance(item, h5py.Dataset):
            total.update(item[()].tobytes())

    for path in sorted(folder.glob("*model*")):
        total.update(path.name.encode())
        if path.suffix == ".h5":
            with h5py.File(path) as file:
                add("", file)
                file.visititems(add)
        else:
            total.update(path.read_bytes())
    return total.hexdigest()
