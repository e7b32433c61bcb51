"""The token classification pipeline against transformers 4.57.6's (tests/golden/pipelines)."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import GOLDEN

import distilbert
from distilbert.core.errors import InputError
from distilbert.pipelines.token_classification import STRATEGIES

sys.path.insert(0, str(GOLDEN / "pipelines"))
import make

EXPECTED = json.loads((GOLDEN / "pipelines" / "token-classification.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokcls")
    make.checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(folder):
    return load("torch", folder)


def load(backend, folder):
    return distilbert.pipeline("ner", folder, backend=backend)


def assert_same(actual, expected):
    assert len(actual) == len(expected)
    for entities, wanted in zip(actual, expected, strict=True):
        assert [entity | {"score": 0} for entity in entities] == [entity | {"score": 0} for entity in wanted]
        scores = [[entity["score"] for entity in found] for found in (entities, wanted)]
        np.testing.assert_allclose(*scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    # How tokens become entities does not depend on who has scored them.
    "backend, strategy",
    [*(("torch", strategy) for strategy in STRATEGIES), ("tf", "average"), ("flax", "average")],
)
def test_the_entities_of_transformers(backend, strategy, folder):
    ask, expected = load(backend, folder), EXPECTED[strategy]
    assert_same(ask(make.TEXTS, aggregation_strategy=strategy, batch_size=4), expected["texts"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_options_mean_what_they_mean_in_transformers(strategy, pipeline):
    expected = EXPECTED[strategy]
    words = pipeline(make.WORDS, aggregation_strategy=strategy, is_split_into_words=True)
    assert_same(words, [of_words[0] for of_words in expected["words"]])
    everything = pipeline(make.TEXTS[:1], aggregation_strategy=strategy, ignore_labels=())
    assert_same(everything, [expected["everything"]])
    if strategy != "none":
        assert_same(pipeline([make.LONG], aggregation_strategy=strategy, stride=8), [expected["stride"]])


def test_places_are_in_the_text(pipeline):
    """Also where the tokenizer strips accents that are characters of their own: there transformers glues words."""
    text = "the cafe\u0301 🎬 wonderful"
    found = pipeline([text], aggregation_strategy="first", ignore_labels=())[0]
    assert "".join(text[entity["start"] : entity["end"]] for entity in found).replace(" ", "") == text.replace(" ", "")


def test_cut_texts_are_counted(pipeline, caplog):
    pipeline([make.LONG, "a film"])
    assert "1 of 2 texts cut to the model's 40 tokens; stride reads them whole" in caplog.text


@pytest.mark.parametrize(
    "options, message",
    [
        ({"aggregation_strategy": "last"}, "aggregation_strategy is 'last', expected one of none, simple"),
        ({"stride": 8}, "stride needs an aggregation_strategy"),
        ({"stride": 38, "aggregation_strategy": "simple"}, "max_length=40 with stride=38"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_bad_options_are_explained(options, message, pipeline):
    with pytest.raises(InputError, match=message):
        pipeline(["a film"], **options)


def test_nothing_to_do(pipeline):
    assert pipeline([]) == []


def run(*arguments):
    command = [sys.executable, "-m", "distilbert", "run", "--task", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120)


def test_from_the_shell(folder):
    options = ("--aggregation-strategy", "simple", "--stride", "8")
    done = run("token-classification", "--model", folder, *options, make.LONG, make.TEXTS[0])
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert_same(answers, [EXPECTED["simple"]["stride"], EXPECTED["simple"]["texts"][0]])


def test_options_of_another_task_are_refused(folder):
    done = run("text-classification", "--model", folder, "--stride", "8", "a film")
    assert done.returncode == 2 and "--stride belongs to token-classification" in done.stderr
