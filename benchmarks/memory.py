"""Peak memory of loading a classifier and of running it, ours in each framework beside transformers'.

    python benchmarks/memory.py MODEL [--peers pt,tf,flax,transformers] [--length 128] [--rows 8] [--python PYTHON]

A process each: what the imports take is told apart from what loading adds at its peak (as a share of the weights' file,
too) and what running adds. Mapped pages count as long as they are there. PYTHON is of transformers' environment.
"""

import argparse
import subprocess
import sys
from pathlib import Path

OURS = """
from distilbert.{package}.inference import InferenceModel
after("imports")
model = InferenceModel.from_pretrained("sequence-classification", folder)
after("loading")
model([[5] * length] * rows)
after("running")
"""
THEIRS = """
import torch
from transformers import AutoModelForSequenceClassification
from transformers.models.distilbert import modeling_distilbert
after("imports")
model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
after("loading")
with torch.inference_mode():
    model(input_ids=torch.full((rows, length), 5), attention_mask=torch.ones((rows, length), dtype=torch.int64))
after("running")
"""
MEASURED = """
import sys
folder, length, rows = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def after(name):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    print(name, *(int(lines[field].split()[0]) for field in ("VmHWM", "VmRSS")))
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--peers", default="pt,tf,flax,transformers")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--python", default=sys.executable)
    arguments = parser.parse_args()
    size = (arguments.model / "model.safetensors").stat().st_size / 2**20
    print(f"weights {size:.0f} MiB; {arguments.rows} texts of {arguments.length} tokens; MiB")
    print(f"{'':12} {'imports':>8} {'loading, at its peak':>21} {'held':>6} {'running':>8} {'all, at its peak':>17}")
    for peer in arguments.peers.split(","):
        script = MEASURED + (THEIRS if peer == "transformers" else OURS.format(package=peer))
        python = arguments.python if peer == "transformers" else sys.executable
        given = [str(arguments.model), str(arguments.length), str(arguments.rows)]
        done = subprocess.run([python, "-c", script, *given], check=True, capture_output=True, text=True)
        lines = [line.split() for line in done.stdout.splitlines()]
        peaks, held = ([int(line[column]) / 1024 for line in lines] for column in (1, 2))
        loading = peaks[1] - held[0]
        print(
            f"{peer:12} {held[0]:8.0f} {loading:+11.0f} ({loading / size:.2f} x) {held[1] - held[0]:+9.0f}"
            f" {peaks[2] - held[1]:+8.0f} {max(peaks):17.0f}"
        )


if __name__ == "__main__":
    main()
