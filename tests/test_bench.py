"""``distilbert bench``: everyone takes part in turns, on the same texts, and what it says adds up."""

import importlib.util
import json
import os
from contextlib import closing

import pytest
from conftest import GOLDEN
from typer.testing import CliRunner

from distilbert.bench import drawn_lengths, throughput
from distilbert.bench.contenders import Contender
from distilbert.bench.measuring import WARM_UP, flops_per_token
from distilbert.cli import make_app
from distilbert.core.config import DistilBertConfig, read_config
from distilbert.core.errors import InputError

MODEL = GOLDEN / "distilbert-seqcls"
QUICK = ["--share", "0.02", "--rounds", "2"]


def run(*arguments):
    return CliRunner().invoke(make_app(["bench"]), ["bench", *map(str, arguments)])


def test_everyone_takes_turns():
    config, order = read_config(MODEL), []
    contenders = {name: lambda sequences, name=name: order.append(name) or [1.0] for name in ("a", "b")}
    sequences = drawn_lengths("short", config, 0.1)
    found = throughput(contenders, sequences, config, 3, lambda text: None)
    assert order == ["a", "b"] * (WARM_UP + 3)
    assert [len(one.seconds) for one in found] == [3, 3]
    assert found[0].tokens == sum(map(len, sequences)) and found[0].sequences == 51


def leave(status):
    return lambda sequences: os._exit(status)


def fail(kind):
    raise kind("on purpose")


def test_a_contender_that_fails():
    with pytest.raises(InputError, match="EOFError: on purpose"):
        Contender("a", fail, EOFError)
    with closing(Contender("a", leave, 3)) as contender:
        for _ in range(2):
            with pytest.raises(InputError, match="a: its process has ended with status 3"):
                contender([[1, 2]])


def test_lengths_are_those_of_the_mix_and_always_the_same():
    config = DistilBertConfig()
    for mix, count, mean in (("short", 512, 23), ("long", 128, 145)):
        sequences = drawn_lengths(mix, config)
        assert len(sequences) == count and abs(sum(map(len, sequences)) / count - mean) < 0.1 * mean
        assert sequences == drawn_lengths(mix, config)
    assert max(map(len, drawn_lengths("long", read_config(MODEL)))) == 40  # the model's positions


def test_operations_are_those_of_distilbert_base():
    assert flops_per_token(DistilBertConfig()) == 2 * 6 * 12 * 768**2


@pytest.mark.parametrize("suffix", ["html", "png"])
def test_a_report(suffix, tmp_path):
    report = tmp_path / f"bench.{suffix}"
    result = run(MODEL, *QUICK, "--backends", "torch", "--dtypes", "float32,int8", "--report", report, "--peers")
    assert result.exit_code == 0, result.output
    assert "torch int8" in result.output and "8 tokens" in result.output
    if importlib.util.find_spec("openvino") is None:
        assert "not measured: OpenVINO float32: openvino is not installed" in result.output
    content = report.read_bytes()
    assert content.startswith(b"<!doctype html>" if suffix == "html" else b"\x89PNG")
    if suffix == "html":
        assert b"<svg" in content and b"torch int8" in content


def test_numbers_for_programs():
    result = run(
        MODEL, *QUICK, "--backends", "torch,flax", "--dtypes", "int8", "--no-latency", "--mixes", "long", "--json"
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert list(found["mixes"]) == ["long"] and found["latencies"] == []
    assert [len(one["seconds"]) for one in found["mixes"]["long"]] == [2]
    assert found["skipped"] == {"flax int8": "int8 is for PyTorch"}
    assert found["environment"]["torch"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mixes", "middling"], "--mixes names 'middling', expected some of short, long"),
        (["--backends", "torch,caffe"], "--backends names 'caffe', expected some of torch, tf, flax"),
        (["--dtypes", "int4"], "--dtypes names 'int4'"),
        (["--report", "bench.pdf"], "bench.pdf: expected the name of a .html or .png"),
        (["--backends", "flax", "--dtypes", "int8"], "nobody is left to time"),
        (["--device", "cuda:77"], "device is 'cuda:77', which PyTorch cannot use here"),
    ],
)
def test_what_makes_no_sense(arguments, message, caplog):
    result = run(MODEL, *QUICK, *arguments)
    assert result.exit_code == 1 and message in caplog.text


def test_a_model_of_another_kind(caplog):
    assert run(GOLDEN / "distilbert-qa", *QUICK, "--backends", "torch").exit_code == 1
    assert "sequence-classification" in caplog.text
