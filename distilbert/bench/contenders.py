"""What is timed: a classifier of texts, ours in each framework and type, and what people would take instead."""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distilbert.core.backends import choose_backend
from distilbert.core.batches import pad
from distilbert.core.checkpoint import write_checkpoint
from distilbert.core.config import Config, DistilBertConfig, read_config
from distilbert.core.errors import DistilBertError, InputError
from distilbert.core.spec import initial_value, parameters
from distilbert.pipelines.batching import run_by_length

HEAD = "sequence-classification"
BATCH = 32  # sequences of a peer's batch, sorted by length and padded to the longest
# Shape and scale of the gamma distributions that lengths are drawn from, and how many: like the sentences of SST-2 (23
# tokens in the mean), and like the paragraphs of wikitext up to 512 tokens (145).
MIXES = {"short": (4.6, 5.0, 512), "long": (1.5, 97.0, 128)}
LONGEST = 512

Sequences = Sequence[Sequence[int]]
Run = Callable[[Sequences], object]  # of all sequences, in whatever batches suit it
Call = Callable[[np.ndarray, np.ndarray], object]  # of the ids and the mask of a padded batch


class Contender:
    """Someone in a process of its own. Threads of several in one get into each other's way: where there are more than
    cores, OpenMP's go to sleep between any two steps, and short texts take PyTorch half as long again.

    Args:
        name: whose.
        make: makes what runs sequences, there.
        arguments: of ``make``.

    Raises:
        DistilBertError: what ``make`` fails with, or the process has ended.
    """

    def __init__(self, name: str, make: Callable[..., Run], *arguments: Any) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self.process.start()
        theirs.close()
        try:
            self._receive()
        except BaseException:
            self.close()
            raise

    def __call__(self, sequences: Sequences, times: int = 1) -> list[float]:
        """Run all sequences, so many times in a row: how many seconds each took.

        Raises:
            DistilBertError: what it fails with, or its process has ended.
        """
        with suppress(ConnectionError):  # then there is nothing to receive either
            self.connection.send((sequences, times))
        return self._receive()

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.terminate()
        self.process.join()

    def _receive(self) -> Any:
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            raise InputError(f"{self.name}: its process has ended with status {self.process.exitcode}") from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def _serve(connection: Connection, make: Callable[..., Run], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asked ends this
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that what was made for it is taken away
    # Each would take most of a GPU for itself.
    os.environ |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    with suppress(EOFError, ConnectionError):  # nobody asks any more
        run = _result(make, *arguments)
        connection.send(run if isinstance(run, Exception) else None)
        while True:
            connection.send(_result(_seconds, run, *connection.recv()))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends by itself


def _result(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call gives, or what it fails with."""
    try:
        return call(*arguments)
    except DistilBertError as error:
        return error
    except Exception as error:
        return InputError(f"{type(error).__name__}: {error}".splitlines()[0])


def _seconds(run: Run, sequences: Sequences, times: int) -> list[float]:
    return [timed(run, sequences) for _ in range(times)]  # contenders give arrays, and so wait for their devices


def timed(run: Callable[[Any], object], given: Any, device: str = "cpu") -> float:
    """How many seconds a run takes, until the device is done."""
    start = time.perf_counter()
    run(given)
    if device != "cpu":
        import torch

        torch.accelerator.synchronize(torch.device(device))
    return time.perf_counter() - start


class Peer(NamedTuple):
    """What people would take instead."""

    make: Callable[[str | Path, str, str], Call]  # from a model's folder, a type and a device
    needs: tuple[str, ...]  # packages
    dtypes: tuple[str, ...]


def drawn_lengths(mix: str, config: Config, share: float = 1.0) -> list[list[int]]:
    """Sequences of random ids whose lengths are those of a mix of ``MIXES``, the same each time.

    Args:
        mix: its name.
        config: of the model they are for.
        share: how much of the mix.
    """
    shape, scale, count = MIXES[mix]
    rng = np.random.default_rng(0)
    lengths = rng.gamma(shape, scale, count).astype(int).clip(3, min(LONGEST, config.max_position_embeddings))
    return [random_ids(length, config, rng) for length in lengths[: max(1, round(count * share))]]


def random_ids(length: int, config: Config, rng: np.random.Generator) -> list[int]:
    """Ids that are not those of padding."""
    return rng.integers(min(5, config.vocab_size - 1), config.vocab_size, length).tolist()


@contextmanager
def random_model() -> Iterator[Path]:
    """A folder with a classifier of distilbert-base's shape and random weights, on which speed does not depend."""
    config = DistilBertConfig()
    rng = np.random.default_rng(0)
    tensors = {row.name: initial_value(row, config, rng) for row in parameters(config, HEAD) if row.tied_to is None}
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(folder, config, tensors, head=HEAD)
        # CTranslate2 does not convert a model without one.
        words = [
            *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
            *(f"[unused{n}]" for n in range(config.vocab_size - 5)),
        ]
        (Path(folder) / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
        yield Path(folder)


@contextmanager
def make_contenders(
    model: str | Path,
    backends: Iterable[str],
    dtypes: Sequence[str],
    device: str,
    *,
    peers: bool = False,
    skip: Callable[[str, str], None] = lambda name, why: None,
) -> Iterator[dict[str, Contender]]:
    """Who runs sequences, by name; each in a process that imports the main module, as ``multiprocessing`` says.

    Args:
        model: a folder with a text classifier.
        backends: ``"torch"``, ``"tf"``, ``"flax"``.
        dtypes: of all: ``"float32"``, ``"bfloat16"``, ``"float16"``, ``"int8"``.
        device: where ours compute; of the peers only transformers can follow.
        peers: also those of ``PEERS`` that are installed.
        skip: is told who cannot take part, and why.

    Raises:
        CheckpointError: the model is absent, damaged, or no text classifier.
        InputError: a type or device that a backend has not, or nobody is left.
    """
    made: dict[str, Contender] = {}
    with ExitStack() as stack:
        for backend, dtype in ((backend, dtype) for backend in backends for dtype in dtypes):
            if dtype == "int8" and backend != "torch":
                skip(f"{backend} int8", "int8 is for PyTorch")
                continue
            name = f"{backend} {dtype}"
            made[name] = stack.enter_context(closing(Contender(name, _ours, backend, model, dtype, device)))
        taking_part = ((kind, peer, dtype) for kind, peer in PEERS.items() for dtype in peer.dtypes if dtype in dtypes)
        for kind, peer, dtype in taking_part if peers else ():
            name = f"{kind} {dtype}"
            missing = [package for package in peer.needs if importlib.util.find_spec(package) is None]
            if missing:
                skip(name, f"{missing[0]} is not installed")
            elif device != "cpu" and kind != "transformers":
                skip(name, "is timed on CPUs only")
            else:
                try:
                    made[name] = stack.enter_context(closing(Contender(name, _padded, peer.make, model, dtype, device)))
                except DistilBertError as error:  # what a peer fails with is its own affair; the others go on
                    skip(name, str(error))
        if not made:
            raise InputError("nobody is left to time; choose other backends or types")
        yield made


def _ours(backend: str, folder: str | Path, dtype: str, device: str) -> Run:
    inference = importlib.import_module(f"{choose_backend(backend)}.inference").InferenceModel
    model = inference.from_pretrained(HEAD, folder, dtype=dtype, device=device)
    return lambda sequences: run_by_length(model, sequences, lambda number, outputs: outputs["logits"])


def _padded(make: Callable[[str | Path, str, str], Call], folder: str | Path, dtype: str, device: str) -> Run:
    """Batches of 32, sorted by length: what peers are good at."""
    logging = importlib.import_module("transformers").logging  # it reports what it loads
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    call, config = make(folder, dtype, device), read_config(folder)

    def run(sequences: Sequences) -> list[object]:
        rows = sorted(sequences, key=len, reverse=True)
        batches = (pad(rows[start : start + BATCH], None, HEAD, config) for start in range(0, len(rows), BATCH))
        return [call(batch["input_ids"], batch["attention_mask"]) for batch in batches]

    return run


def _transformers(model: str | Path, dtype: str, device: str) -> Call:
    import torch
    from transformers import AutoModelForSequenceClassification

    loaded = AutoModelForSequenceClassification.from_pretrained(model, dtype=getattr(torch, dtype)).to(device).eval()

    @torch.inference_mode()
    def call(ids: np.ndarray, mask: np.ndarray) -> object:
        given = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        return loaded(**{name: value.to(device) for name, value in given.items()}).logits.float().cpu()

    return call


def for_export(model: str | Path) -> tuple[Any, dict[str, Any]]:
    """transformers' classifier as exporters want it, and what it takes."""
    import torch
    from transformers import AutoModelForSequenceClassification

    options = {"attn_implementation": "eager", "return_dict": False}
    loaded = AutoModelForSequenceClassification.from_pretrained(model, **options).eval()
    return loaded, dict.fromkeys(("input_ids", "attention_mask"), torch.ones(2, 16, dtype=torch.long))


def export_onnx(model: str | Path, path: str) -> list[str]:
    """Write transformers' classifier as ONNX; returns what it takes."""
    import torch

    loaded, given = for_export(model)
    axes = {name: {0: "batch", 1: "length"} for name in given}
    options: dict[str, Any] = {"input_names": list(given), "dynamic_axes": axes, "opset_version": 17}
    torch.onnx.export(loaded, tuple(given.values()), path, dynamo=False, **options)
    return list(given)


def _onnx_runtime(model: str | Path, dtype: str, device: str) -> Call:
    import onnxruntime
    import torch

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        names = export_onnx(model, path)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    return lambda ids, mask: session.run(None, dict(zip(names, (ids, mask), strict=True)))


def _openvino(model: str | Path, dtype: str, device: str) -> Call:
    import openvino
    import torch

    loaded, given = for_export(model)
    converted = openvino.convert_model(loaded, example_input=given)
    precision = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    threads = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    options = {"INFERENCE_PRECISION_HINT": precision, **threads}
    request = openvino.Core().compile_model(converted, "CPU", options).create_infer_request()
    return lambda ids, mask: request.infer({0: ids, 1: mask})


def _ctranslate2(model: str | Path, dtype: str, device: str) -> Call:
    import ctranslate2
    import torch

    with tempfile.TemporaryDirectory() as folder:
        ctranslate2.converters.TransformersConverter(str(model)).convert(folder, force=True)
        threads = torch.get_num_threads()
        encoder = ctranslate2.Encoder(folder, device="cpu", compute_type=dtype, intra_threads=threads)

    def call(ids: np.ndarray, mask: np.ndarray) -> object:
        rows = [row[:length].tolist() for row, length in zip(ids, mask.sum(1), strict=True)]
        return np.array(encoder.forward_batch(rows).last_hidden_state)

    return call


PEERS = {
    "transformers": Peer(_transformers, ("transformers", "torch"), ("float32", "bfloat16")),
    "ONNX Runtime": Peer(_onnx_runtime, ("onnxruntime", "onnx", "transformers", "torch"), ("float32",)),
    "OpenVINO": Peer(_openvino, ("openvino", "transformers", "torch"), ("float32", "bfloat16")),
    "CTranslate2": Peer(_ctranslate2, ("ctranslate2", "transformers", "torch"), ("float32", "int8")),
}
