"""``distilbert run``, as a shell user meets it."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from conftest import GOLDEN

MODEL = GOLDEN / "distilbert-seqcls"
COMMAND = [sys.executable, "-m", "distilbert", "run", "--task", "text-classification"]


def run(*arguments, stdin=b"", model=MODEL):
    return subprocess.run(
        [*COMMAND, "--model", str(model), *map(str, arguments)], input=stdin, capture_output=True, timeout=120
    )


def answers(result):
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def assert_one_error_line(result, *words):
    assert result.returncode != 0
    assert result.stdout == b""
    lines = result.stderr.decode().splitlines()
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0]


def test_arguments_stdin_and_file_agree(tmp_path):
    texts = ["a wonderful film", "the plot is a mess", "x " * 30, "bad"]
    (tmp_path / "texts").write_text("\n".join(texts))
    (tmp_path / "out").write_text("old")
    expected = answers(run(*texts))
    assert [sorted(answer) for answer in expected] == [["label", "score"]] * 4
    stdin = run("--batch-size", 2, stdin="\r\n".join(texts).encode())
    assert [answer["label"] for answer in answers(stdin)] == [answer["label"] for answer in expected]
    assert run("--input", tmp_path / "texts", "--output", tmp_path / "out").returncode == 0
    written = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert written == expected


def test_progress_names_the_total_of_a_file(tmp_path):
    pty = pytest.importorskip("pty")
    (tmp_path / "texts").write_text("good\nbad\n\na film")
    for arguments, count in ((["--input", tmp_path / "texts"], b" 0 of 4 texts"), ([], b" 0 texts")):
        terminal, stderr = pty.openpty()
        process = subprocess.Popen(
            [*COMMAND, "--model", str(MODEL), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=os.environ | {"TERM": "xterm"},
        )
        os.close(stderr)
        screen = b""
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while chunk := os.read(terminal, 4096):
                screen += chunk
        os.close(terminal)
        assert process.wait(timeout=120) == 0
        assert count in screen


def test_a_terminal_that_is_no_utf8(tmp_path):
    folder = tmp_path / "日本"
    shutil.copytree(MODEL, folder, ignore=lambda *_: ["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"])
    arguments = [sys.executable, "-m", "distilbert", "inspect", folder]
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "COLUMNS": "500"}
    for more in ([], ["--json"]):
        done = subprocess.run([*arguments, *more], capture_output=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert rb"\u65e5\u672c" in done.stdout
    assert json.loads(done.stdout)["path"].startswith(str(folder))


def test_top_k_and_function():
    (ranked,) = answers(run("--top-k", 9, "--function-to-apply", "none", "a film"))
    assert len(ranked) == 3 and ranked[0]["score"] > 1
    assert ranked == sorted(ranked, key=lambda entry: -entry["score"])


def test_odd_lines_each_get_an_answer():
    lines = [
        b"\xef\xbb\xbfa film",
        b"good " * 38,
        b"\xff\xfe bad",
        b"good " * 20000,
        b"",
        "\u2028 \x00 \U0001f600".encode(),
    ]
    result = run(stdin=b"\n".join(lines) + b"\n")
    assert len(answers(result)) == len(lines)
    errors = result.stderr.decode()
    assert "-:3: is not valid UTF-8" in errors
    assert "1 of 6 texts cut to the model's 40 tokens" in errors
    assert answers(run(stdin=b"")) == []


def test_too_long_a_text_is_explained_when_it_may_not_be_cut():
    assert_one_error_line(run("--no-truncation", "good " * 50), "52 tokens", "max_position_embeddings=40")


def test_broken_pipe_is_silent():
    process = subprocess.Popen(
        [*COMMAND, "--model", str(MODEL), "--batch-size", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    errors = finish(process)
    assert errors == b""
    assert process.returncode == 141


def finish(process):
    try:
        process.stdin.write(b"a film\n" * 5000)
        process.stdin.close()
    except BrokenPipeError:
        pass
    errors = process.stderr.read()
    process.wait(timeout=120)
    return errors


def test_interrupt_keeps_what_was_answered(tmp_path):
    interruptible = (  # what background jobs of a shell are not
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from distilbert.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", interruptible, *COMMAND[3:], "--model", str(MODEL), "--output", str(tmp_path / "out")],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdin.write(b"a film\n")
    process.stdin.flush()
    partial = tmp_path / "out.partial"
    while not partial.exists() or not partial.stat().st_size:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    errors = process.stderr.read().decode()
    assert process.wait(timeout=120) == 130
    assert errors.splitlines() == [f"distilbert: warning: {partial} has the answers so far; --resume goes on"]
    assert list(tmp_path.iterdir()) == [partial]
    assert len(partial.read_text().splitlines()) == 1


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def spoil(folder, kind):
    """Copy the golden case and break it in one way; returns what the error must name."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json"):
        (folder / name).write_bytes((MODEL / name).read_bytes())
    weights = folder / "model.safetensors"
    config = json.loads((folder / "config.json").read_text())
    if kind == "no config":
        (folder / "config.json").unlink()
        return ["config.json"]
    if kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif kind == "terabyte header":
        weights.write_bytes((1 << 42).to_bytes(8, "little") + b"{}")
    elif kind == "pickle":
        weights.unlink()
        torch.save({"weight": Payload(folder / "hacked")}, folder / "pytorch_model.bin")
        return ["pytorch_model.bin", "system"]
    elif kind == "shapes":
        (folder / "config.json").write_text(json.dumps(config | {"hidden_dim": 65}))
        return ["ffn.lin1.weight", "(65, 32)"]
    elif kind == "ids":
        (folder / "vocab.txt").write_text((folder / "vocab.txt").read_text() + "zebra\n")
        return ["97", "vocab_size=97"]
    return ["model.safetensors"]


@pytest.mark.parametrize("kind", ["no config", "truncated", "terabyte header", "pickle", "shapes", "ids"])
def test_bad_checkpoints_give_one_clear_line(kind, tmp_path):
    words = spoil(tmp_path / "model", kind)
    before = sorted(tmp_path.rglob("*"))
    assert_one_error_line(run("a zebra film", "--output", tmp_path / "out", model=tmp_path / "model"), *words)
    assert sorted(tmp_path.rglob("*")) == before


def test_unwritable_output_and_absent_input(tmp_path):
    assert_one_error_line(run("a film", "--output", tmp_path / "absent" / "out"), "absent/out", "cannot write")
    assert_one_error_line(run("a film", "--output", tmp_path), str(tmp_path))
    assert_one_error_line(run("--input", tmp_path / "absent"), "absent")
    assert run("a film", "--device", "abacus").returncode == 1
    assert run("a film", "--input", tmp_path / "x").returncode == 2


@pytest.mark.parametrize("framework", ["torch", "tf"])
def test_real_checkpoint_gives_the_stated_accuracy(shared, framework):
    """769 of 872 on SST-2 dev, and transformers' label for every sentence."""
    rows = [line.split("\t") for line in (shared / "data/sst2/dev.tsv").read_text().splitlines()]
    model = shared / "checkpoints/distilbert-sst2"
    found = answers(run("--framework", framework, stdin="\n".join(text for text, _ in rows).encode(), model=model))
    assert (
        sum((answer["label"] == "POSITIVE") == int(label) for answer, (_, label) in zip(found, rows, strict=True))
        == 769
    )
    reference = [json.loads(line) for line in (model / "reference-dev.jsonl").read_text().splitlines()]
    assert [answer["label"] for answer in found] == [answer["label"] for answer in reference]
    assert max(abs(a["score"] - b["score"]) for a, b in zip(found, reference, strict=True)) < 1e-5
