"""Explanations: contributions that add up, the same on every backend; a page that shows the user's own text, safely."""

import importlib
import re
import sys

import numpy as np
import pytest
from conftest import GOLDEN
from typer.testing import CliRunner

import distilbert
from distilbert.cli import make_app
from distilbert.core.backends import BACKENDS
from distilbert.core.errors import InputError
from distilbert.explanation import explain
from distilbert.explanation.page import pieces

sys.path.insert(0, str(GOLDEN / "pipelines"))
import make

TASKS = ("text-classification", "token-classification", "question-answering")
TEXT = "A wonderful Film, but the plot is a mess"
SMOOTH = "A film like the child"  # on the way to others this model of large random weights has cliffs
HOSTILE = "</script><script>alert(1)</script> <b onclick='x'>&amp; film \x00\x1b[31m \u202e cafe\u0301 🎬 \u2028"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for task in TASKS:
        found[task] = tmp_path_factory.mktemp(task)
        make.checkpoint(found[task], task)
    return found


def explained(folders, task, text=TEXT, **options):
    question = "who is bad?" if task == "question-answering" else None
    return explain(folders[task], text, question=question, **options)


@pytest.mark.parametrize("task", TASKS)
def test_contributions_add_up_and_backends_agree(task, folders):
    text = SMOOTH if task == "text-classification" else TEXT
    first = explained(folders, task, text, steps=128)
    for backend in ("tf", "flax"):
        other = explained(folders, task, text, steps=128, backend=backend)
        assert other.answers[0].label == first.answers[0].label
        for one, two in zip(first.targets, other.targets, strict=True):
            assert (one.answer.start, one.answer.end) == (two.answer.start, two.answer.end)
            largest = abs(one.contributions).max()
            np.testing.assert_allclose(one.contributions, two.contributions, rtol=0, atol=2e-5 * max(1, largest))
        for one, two in zip(first.attentions, other.attentions, strict=True):
            np.testing.assert_allclose(one, two, rtol=0, atol=1e-5)
    assert first.targets
    for target in first.targets:
        assert abs(target.gap) < 2e-3
        assert abs(target.contributions).max() > 0.01


def test_steps_are_added_until_contributions_add_up(folders):
    for target in explained(folders, "text-classification", SMOOTH).targets:
        assert abs(target.gap) <= 0.01 * abs(target.value - target.baseline_value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pull_back_is_the_derivative(backend):
    probe = importlib.import_module(f"{BACKENDS[backend][1]}.probe").Probe(
        "token-classification", GOLDEN / "distilbert-tokcls"
    )
    generator = np.random.default_rng(0)
    vectors, direction = (generator.normal(size=(2, 5, 32)).astype(np.float32) for _ in range(2))
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])

    def logits(step):
        given = {"inputs_embeds": vectors + np.float32(step) * direction, "attention_mask": mask}
        return probe.outputs(given, details=False)["logits"]

    factors = generator.normal(size=logits(0).shape).astype(np.float32)
    found = probe.pull_back({"inputs_embeds": vectors, "attention_mask": mask}, {"logits": factors})
    step = 1e-2
    expected = ((logits(step) - logits(-step)) * factors).sum() / (2 * step)
    assert (found * direction).sum() == pytest.approx(expected, rel=5e-3)


def test_the_answers_are_those_of_the_pipelines(folders):
    ask = {task: distilbert.pipeline(task, folders[task], device="cpu") for task in TASKS}
    label = explained(folders, "text-classification").answers[0]
    assert ask["text-classification"](TEXT)["label"] == label.label
    entities = ask["token-classification"](TEXT, aggregation_strategy="first")
    found = explained(folders, "token-classification").answers
    assert [(entity["start"], entity["end"]) for entity in entities] == [(one.start, one.end) for one in found]
    span = ask["question-answering"](question="who is bad?", context=TEXT)
    (answer,) = explained(folders, "question-answering").answers
    assert (span["start"], span["end"]) == (answer.start, answer.end)
    assert span["score"] == pytest.approx(answer.probability, abs=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_a_hostile_text_is_shown_and_not_run(task, folders):
    found = explained(folders, task, HOSTILE, steps=2)
    page = found.to_html()
    assert page.count("<script") == 1 and "alert(1)</script" not in page
    assert not re.search(r"(src|href)=[\"'](?!data:)", page) and "@import" not in page and "url(" not in page
    assert "\x00" not in page and "\x1b" not in page
    shown = "".join(piece.text for piece in pieces(found.texts[-1], len(found.texts) - 1, found.tokens))
    assert shown.replace("\u2400", "\x00").replace("\u241b", "\x1b") == HOSTILE


@pytest.mark.parametrize(
    "task, text, options, message",
    [
        ("text-classification", "film " * 50, {}, "has 52 tokens, expected at most the model's 40"),
        ("text-classification", "\u200b", {}, "has no tokens"),
        ("text-classification", "film", {"question": "who?"}, "only question-answering takes one"),
        ("question-answering", "film", {}, "no question is given"),
        ("text-classification", "film", {"task": "fill-mask"}, "task is 'fill-mask', expected one of"),
        ("text-classification", "film", {"steps": 0}, "steps is 0"),
    ],
)
def test_what_cannot_be_explained_is_said(task, text, options, message, folders):
    with pytest.raises(InputError, match=message):
        explain(folders[task], text, **options)


def test_the_command_writes_the_page(folders, tmp_path):
    page = tmp_path / "page.html"
    model = str(folders["token-classification"])
    arguments = ["explain", "--model", model, "--steps", "4", "--output", str(page), TEXT]
    done = CliRunner().invoke(make_app(["explain"]), arguments)
    assert done.exit_code == 0 and f"{page}: written" in done.output
    assert "<mark" in page.read_text(encoding="utf-8")
    done = CliRunner().invoke(make_app(["explain"]), [*arguments[:-2], str(tmp_path), TEXT])
    assert done.exit_code == 1 and list(tmp_path.iterdir()) == [page]
