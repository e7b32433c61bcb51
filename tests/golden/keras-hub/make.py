"""Made the presets beside it and golden.npz, with keras-hub 0.32.0, Keras 3.15.1 and TensorFlow 2.21."""

import os
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import keras_hub
import numpy as np

HERE = Path(__file__).parent
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij", "##a", "##b", "é", "ab", "!"]
SIZES = {
    "vocabulary_size": len(VOCABULARY),
    "num_heads": 2,
    "hidden_dim": 8,
    "intermediate_dim": 12,
    "max_sequence_length": 10,
}

models = keras_hub.models
tokenizer = models.DistilBertTokenizer(vocabulary=VOCABULARY, lowercase=True)
generator = np.random.default_rng(0)


def randomised(model: keras.Model) -> keras.Model:
    """Every value drawn anew: KerasHub's own are too small to show a mistake, and its biases are zeros."""
    for weight in model.weights:
        weight.assign(generator.normal(1.0 if "gamma" in weight.path else 0.0, 0.4, weight.shape))
    return model


classifier = randomised(
    models.DistilBertTextClassifier(
        backbone=models.DistilBertBackbone(num_layers=2, **SIZES),
        num_classes=3,
        preprocessor=models.DistilBertTextClassifierPreprocessor(tokenizer, sequence_length=9),
    )
)
masked_lm = randomised(
    models.DistilBertMaskedLM(backbone=models.DistilBertBackbone(num_layers=1, dropout=0.2, **SIZES))
)
backbone = randomised(models.DistilBertBackbone(num_layers=1, dtype="bfloat16", **SIZES))

classifier.save_to_preset(HERE / "classifier")
masked_lm.save_to_preset(HERE / "masked-lm")
backbone.save_to_preset(HERE / "backbone", max_shard_size=1000 / 1024**3)  # in several files

lengths = np.array([10, 7, 1])
padding_mask = (np.arange(10) < lengths[:, None]).astype("int32")
token_ids = np.where(padding_mask, generator.integers(1, len(VOCABULARY), (3, 10)), 0).astype("int32")
inputs = {"token_ids": token_ids, "padding_mask": padding_mask}
positions = np.tile(np.arange(10, dtype="int32"), (3, 1))
whole = models.DistilBertBackbone(num_layers=1, **SIZES)
whole.set_weights([np.asarray(value, "float32") for value in backbone.get_weights()])
np.savez(
    HERE / "golden.npz",
    token_ids=token_ids,
    padding_mask=padding_mask,
    classifier=np.asarray(classifier(inputs)),
    masked_lm=np.asarray(masked_lm(inputs | {"mask_positions": positions})),
    backbone=np.asarray(whole(inputs)),  # computed in float32
    text=np.array("Ab é!ba"),
    text_ids=np.asarray(classifier.preprocessor(["Ab é!ba"])["token_ids"])[0],
)
