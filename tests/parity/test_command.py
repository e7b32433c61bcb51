"""``distilbert parity`` as users call it, and its page."""

import functools
import html.parser
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import GOLDEN
from typer.testing import CliRunner

import distilbert.pt.encoder
from distilbert.cli import make_app

MODEL = str(GOLDEN / "distilbert-seqcls")


def run(*arguments):
    return CliRunner().invoke(make_app(), ["parity", *arguments])


def test_a_table_and_a_verdict():
    result = run(MODEL, "--backends", "pt,torch:sdpa", "--text", "a film", "--text", "a wonderful film")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert ["torch", "torch:sdpa", "bound"] in lines
    assert [line[0] for line in lines if line and line[-1] == "1.0e-05"][:1] == ["embeddings"]
    assert "within the bounds" in result.output


@pytest.mark.parametrize("backends", ["torch,keras", "", "torch,torch:flash"])
def test_unknown_backends(backends, caplog):
    assert run(MODEL, "--backends", backends).exit_code == 1
    assert "expected some of torch, torch:sdpa, tf, flax" in caplog.text


def test_texts_from_a_file_and_json(tmp_path):
    (tmp_path / "texts").write_text("".join(f"film number {number}\n" for number in range(10)))
    result = run(MODEL, "--backends", "torch", "--input", str(tmp_path / "texts"), "--json")
    found = json.loads(result.output)
    assert found["head"] == "sequence-classification" and "date" in found["environment"]
    batches = {difference["error"]["batch"] for difference in found["differences"]}
    assert batches <= {"texts 1 to 8", "texts 9 to 10"} and batches


def test_no_texts(tmp_path, caplog):
    (tmp_path / "texts").touch()
    assert run(MODEL, "--backends", "torch", "--input", str(tmp_path / "texts")).exit_code == 1
    assert "found none" in caplog.text


class Page(html.parser.HTMLParser):
    """Fetches nothing, closes what it opens."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.fetched += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_page_about_who_is_off(monkeypatch, tmp_path):
    tanh = functools.partial(torch.nn.functional.gelu, approximate="tanh")
    monkeypatch.setitem(distilbert.pt.encoder.ACTIVATIONS, "gelu", tanh)
    page = tmp_path / "page.html"
    result = run(MODEL, "--backends", "torch,tf", "--text", "a film <b>", "--report", str(page))
    assert result.exit_code == 1
    assert "torch off; first in layer 1" in result.output
    parsed = Page()
    parsed.feed(page.read_text())
    assert parsed.open == []
    assert all(address.startswith("#") for address in parsed.fetched)
    assert "Not the same numbers." in parsed.text and "layer 3" in parsed.text
    assert "http" not in page.read_text().replace("http://www.w3.org/", "").replace("http://purl.org/", "").replace(
        "http://creativecommons.org/", ""
    )


def test_keras_on_jax():
    """As on machines that have a GPU but no TensorFlow for it."""
    command = [
        sys.executable,
        "-m",
        "distilbert",
        "parity",
        MODEL,
        "--backends",
        "torch,tf",
        "--text",
        "a film",
        "--json",
    ]
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    quantities = {
        (entry["backend"], entry["quantity"].split("/")[0]) for entry in json.loads(done.stdout)["differences"]
    }
    assert {("tf", "hidden_states"), ("tf", "gradients")} <= quantities
