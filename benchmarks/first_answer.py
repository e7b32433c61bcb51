"""From the start of a process to its first answer, in seconds: a text classifier in each framework, and beside peers.

    python benchmarks/first_answer.py MODEL [--rounds 7] [--python PYTHON]

PYTHON is of an environment with transformers, ONNX Runtime and OpenVINO besides this library; those two are given files
that were exported before, and a tokenizer. Everyone takes its turn in every round; what counts are medians.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

TEXT = "a gorgeous, witty, seductive movie"
EXPORT = """
import sys, openvino
from distilbert.bench.contenders import export_onnx, for_export
model, folder = sys.argv[1:]
export_onnx(model, folder + "/model.onnx")
loaded, given = for_export(model)
openvino.save_model(openvino.convert_model(loaded, example_input=given), folder + "/model.xml", compress_to_fp16=False)
"""
TOKENIZE = """
import sys
import numpy as np
from tokenizers import BertWordPieceTokenizer
model, folder, text = sys.argv[1:]
encoded = BertWordPieceTokenizer(model + "/vocab.txt", lowercase=True).encode(text)
ids, mask = np.array([encoded.ids]), np.array([encoded.attention_mask])
"""
OURS = """
import sys
from distilbert import pipeline
print(pipeline("text-classification", sys.argv[1], backend="{}")(sys.argv[3]))
"""
CODES = {
    "PyTorch": OURS.format("pt"),
    "Keras on TensorFlow": OURS.format("tf"),
    "Flax": OURS.format("flax"),
    "transformers": """
import sys
from transformers import pipeline
print(pipeline("text-classification", sys.argv[1], device="cpu")(sys.argv[3]))
""",
    "ONNX Runtime": TOKENIZE
    + """
import onnxruntime
session = onnxruntime.InferenceSession(folder + "/model.onnx", providers=["CPUExecutionProvider"])
print(session.run(None, {"input_ids": ids, "attention_mask": mask}))
""",
    "OpenVINO": TOKENIZE
    + """
import openvino
options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
print(openvino.Core().compile_model(folder + "/model.xml", "CPU", options).create_infer_request().infer([ids, mask])[0])
""",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--python", default=sys.executable)
    arguments = parser.parse_args()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryDirectory() as folder:

        def run(code, *more):
            command = [arguments.python, "-c", code, arguments.model, folder, *more]
            start = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                sys.exit(done.stderr)
            return time.perf_counter() - start

        run(EXPORT)
        times = {name: [] for name in CODES}
        for number in range(-1, arguments.rounds):
            for name, code in CODES.items():
                taken = run(code, TEXT)
                times[name] += [taken] if number >= 0 else []
    print("| | median, s | from | to |\n|---|---|---|---|")
    for name, taken in times.items():
        print(f"| {name} | {statistics.median(taken):.2f} | {min(taken):.2f} | {max(taken):.2f} |")


if __name__ == "__main__":
    main()
