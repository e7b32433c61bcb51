"""Fine-tune DistilBERT on labelled texts with Keras: text in, tf.data, model.fit, evaluation, export, prediction.

    python examples/keras_sentiment.py CHECKPOINT TRAIN.tsv DEV.tsv OUTPUT

CHECKPOINT is a folder or a Hub id with weights in any format and a tokenizer. The files hold one text and its label
(0, 1, …) a line, with a tab between. OUTPUT gets the trained checkpoint and a SavedModel for TensorFlow Serving.
"""

import argparse
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from distilbert import DistilBertTokenizer, TFDistilBertForSequenceClassification

BATCH = 32


def read(path: str) -> tuple[list[str], list[int]]:
    """Texts and labels of a file."""
    lines = [line.rsplit("\t", 1) for line in Path(path).read_text("utf-8").splitlines()]
    return [text for text, _ in lines], [int(label) for _, label in lines]


def dataset(tokenizer: DistilBertTokenizer, path: str, shuffle: bool = False) -> tf.data.Dataset:
    """Batches padded to their longest text: one graph serves them all, whatever their lengths."""
    texts, labels = read(path)
    ids = tf.ragged.constant(tokenizer(texts, truncation=True, max_length=128)["input_ids"], dtype=tf.int32)
    rows = tf.data.Dataset.from_tensor_slices((ids, labels))
    if shuffle:
        rows = rows.shuffle(len(labels))

    def pad(ids: tf.RaggedTensor, labels: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        padded = ids.to_tensor(tokenizer.pad_token_id)
        return {"input_ids": padded, "attention_mask": tf.sequence_mask(ids.row_lengths(), dtype=tf.int32)}, labels

    return rows.ragged_batch(BATCH).map(pad).prefetch(tf.data.AUTOTUNE)


def main() -> None:
    """Train, evaluate, save, serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("checkpoint", "train", "dev", "output"):
        parser.add_argument(name)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    keras.utils.set_random_seed(arguments.seed)

    tokenizer = DistilBertTokenizer.from_pretrained(arguments.checkpoint)
    train, dev = dataset(tokenizer, arguments.train, shuffle=True), dataset(tokenizer, arguments.dev)
    labels = len(set(read(arguments.train)[1]))
    model = TFDistilBertForSequenceClassification.from_pretrained(arguments.checkpoint, num_labels=labels)
    steps = arguments.epochs * len(train)
    schedule = keras.optimizers.schedules.PolynomialDecay(arguments.learning_rate, steps, end_learning_rate=0.0)
    model.compile(keras.optimizers.AdamW(schedule, weight_decay=0.01), metrics=["accuracy"])  # on the model's own loss
    model.fit(train, epochs=arguments.epochs, validation_data=dev, shuffle=False)  # the data set shuffles itself
    scores = model.evaluate(dev, verbose=0, return_dict=True)
    print(f"accuracy on {arguments.dev}: {scores['accuracy']:.4f}")

    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    model.export(Path(arguments.output) / "serving", verbose=False)

    served = tf.saved_model.load(Path(arguments.output) / "serving").signatures["serving_default"]
    texts = ["a wonderful film", "the plot is a mess"]
    encoded = tokenizer(texts, padding=True, return_tensors="np")
    names = ("input_ids", "attention_mask")
    logits = served(**{name: tf.constant(encoded[name], tf.int32) for name in names})["logits"]
    for text, label in zip(texts, np.argmax(logits, -1), strict=True):
        print(f"{text!r}: {model.config.id2label[int(label)]}")


if __name__ == "__main__":
    main()
