"""Time the Keras classifier, or transformers 4's TensorFlow one, on the same batches: one figure a run.

    python benchmarks/keras_speed.py {ours,transformers} TEXTS VOCABULARY [--dtype bfloat16] [--train]

TEXTS has one text a line. The model is distilbert-base with random weights, on which speed does not depend. Inference
takes batches of 32 sorted by length and padded to their longest; --train takes one step on 32 x 128 tokens instead.
``transformers`` runs in an environment of its own (transformers 4.57, tensorflow 2.19, tf-keras). Machines are noisy:
alternate the runs and compare medians.
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # what transformers needs; Keras 3 imported as such ignores it

import numpy as np
import tensorflow as tf
from common import batches, seconds


def make(peer, dtype):
    if peer == "ours":
        import keras

        from distilbert import DistilBertConfig, TFDistilBertForSequenceClassification

        return TFDistilBertForSequenceClassification(DistilBertConfig(), dtype=dtype), keras
    import tf_keras
    from transformers import DistilBertConfig, TFDistilBertForSequenceClassification

    return TFDistilBertForSequenceClassification(DistilBertConfig()), tf_keras


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=["ours", "transformers"])
    parser.add_argument("texts")
    parser.add_argument("vocabulary")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    model, keras = make(arguments.peer, arguments.dtype)
    if arguments.train:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-5), loss=loss)
        ids = np.random.default_rng(0).integers(5, 30000, (32, 128))
        given, labels = {"input_ids": ids, "attention_mask": np.ones_like(ids)}, np.arange(32) % 2
        taken = seconds(lambda: model.train_on_batch(given, labels), arguments.repeats)
        print(f"{arguments.peer} {arguments.dtype}: {taken:.3f} s a training step of 32 x 128 tokens")
        return
    work = list(batches(arguments.texts, arguments.vocabulary))

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int64)] * 2)
    def call(ids, mask):
        return model(ids, attention_mask=mask, training=False).logits

    def everything():
        for ids, mask in work:
            call(ids, mask).numpy()

    taken = seconds(everything, arguments.repeats)
    print(f"{arguments.peer} {arguments.dtype}: {sum(len(ids) for ids, _ in work) / taken:.1f} sequences/s")


if __name__ == "__main__":
    main()
