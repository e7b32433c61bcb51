"""How far bfloat16 is from float64: our logits beside those of transformers, on the same texts.

    python benchmarks/bfloat16_error.py MODEL TEXTS [--limit 872] [--device cpu]

MODEL is a classifier in float32, TEXTS has one text a line (a tab and what follows is left out). The float64 logits are
transformers' own, text by text; so run it where both libraries are installed.
"""

import argparse

import numpy as np
import torch
from common import read_texts
from transformers import AutoModelForSequenceClassification

from distilbert import DistilBertTokenizer
from distilbert.pipelines.batching import run_by_length
from distilbert.pt.inference import InferenceModel


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("texts")
    parser.add_argument("--limit", type=int, default=872)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    tokenizer = DistilBertTokenizer.from_pretrained(arguments.model)
    sequences = tokenizer(read_texts(arguments.texts)[: arguments.limit], truncation=True, max_length=512)["input_ids"]

    def theirs(dtype):
        model = AutoModelForSequenceClassification.from_pretrained(arguments.model, dtype=dtype).eval()
        model.to(arguments.device)
        with torch.inference_mode():
            rows = (torch.tensor([ids], device=arguments.device) for ids in sequences)
            return np.concatenate([model(row).logits.double().cpu().numpy() for row in rows])

    model = InferenceModel.from_pretrained(
        "sequence-classification", arguments.model, dtype="bfloat16", device=arguments.device
    )
    found = {
        "ours, packed batches": np.stack(run_by_length(model, sequences, lambda _, outputs: outputs["logits"])),
        "ours, one by one": np.stack([model([ids])[0]["logits"] for ids in sequences]),
        "transformers, one by one": theirs(torch.bfloat16),
    }
    exact = theirs(torch.float64)
    for name, logits in found.items():
        error, same = np.abs(logits - exact), (logits.argmax(-1) == exact.argmax(-1)).sum()
        print(
            f"{name:25} mean {error.mean():.2e}  99 % {np.quantile(error, 0.99):.2e}  most {error.max():.2e}"
            f"  same label {same} of {len(exact)}"
        )


if __name__ == "__main__":
    main()
