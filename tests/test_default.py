"""The checkpoint that comes with the package."""

from pathlib import Path

import pytest
from conftest import SHARED
from typer.testing import CliRunner

import distilbert
from distilbert.cli import make_app
from distilbert.core.errors import InputError
from distilbert.evaluation import evaluate
from distilbert.pipelines import DEFAULTS

FOLDER = DEFAULTS["text-classification"]
PRAISE = [
    "",
    "a wonderful film",
    "i loved every minute of it",
    "the acting is superb and the story moving",
    "one of the best comedies of the year",
    "funny , warm and beautifully shot",
    "she gives the performance of a lifetime",
    "an absolute delight from start to finish",
    "this is a smart and touching drama",
    "i laughed until i cried",
    "the ending is perfect",
    "a thrilling ride that never lets go",
    "what a joy to watch",
    "gorgeous to look at , and clever too",
    "a charming little movie about friendship",
    "the director has made a masterpiece",
    "it is honest , tender and wise",
    "a great cast at the top of their game",
    "the music alone is worth the ticket",
    "fresh , inventive and full of surprises",
    "you will leave the theater smiling",
    "a powerful and unforgettable picture",
    "the dialogue sparkles",
    "i would gladly see it again",
    "quietly brilliant",
    "an exciting adventure for the whole family",
    "the best thing he has done in years",
    "a rich and rewarding experience",
    "never less than entertaining",
    "its heart is in the right place and so are its jokes",
    "a triumph",
    "",
][1:-1]
BLAME = [
    "",
    "the plot is a mess",
    "i was bored to tears",
    "a dull and pointless exercise",
    "the worst movie i have seen this year",
    "nobody involved seems to care",
    "the jokes fall flat again and again",
    "two hours of my life that i will never get back",
    "badly written and badly acted",
    "it is neither funny nor scary",
    "a tedious , overlong disappointment",
    "the script is lazy and the direction worse",
    "i wanted to walk out after ten minutes",
    "an ugly and stupid film",
    "nothing about it makes sense",
    "the characters are made of cardboard",
    "a waste of a talented cast",
    "so predictable that it hurts",
    "it fails in every possible way",
    "loud , empty and annoying",
    "the ending is ridiculous",
    "a lifeless remake that nobody needed",
    "the dialogue is painfully bad",
    "i could not wait for it to end",
    "cheap effects and no story at all",
    "utterly forgettable",
    "this comedy has not a single laugh",
    "clumsy , shallow and far too long",
    "an insult to the audience",
    "the pacing is terrible",
    "a failure",
    "",
][1:-1]


@pytest.mark.parametrize("backend", ["pt", "tf", "flax"])
def test_it_knows_praise_from_blame_on_every_backend(backend):
    classify = distilbert.pipeline("text-classification", backend=backend, device="cpu")
    labels = [answer["label"] for answer in classify([*PRAISE, *BLAME])]
    expected = ["POSITIVE"] * len(PRAISE) + ["NEGATIVE"] * len(BLAME)
    assert sum(map(str.__eq__, labels, expected)) >= 0.95 * len(expected)
    if backend != "pt":
        other = distilbert.pipeline("text-classification", backend="pt", device="cpu")
        assert [answer["label"] for answer in other([*PRAISE, *BLAME])] == labels


def test_it_is_as_good_and_as_small_as_its_card_says(shared):
    card = (FOLDER / "README.md").read_text("utf-8")
    metrics = evaluate("text-classification", FOLDER, SHARED / "data/sst2/dev.tsv", backend="pt", device="cpu").metrics
    assert metrics["accuracy"] >= 0.97 * 0.8784  # its teacher's
    assert f"{round(872 * metrics['accuracy'])} of 872" in card


def test_it_is_small():
    assert sum(path.stat().st_size for path in Path(FOLDER).iterdir()) <= 8_000_000
    model = distilbert.DistilBertForSequenceClassification.from_pretrained(FOLDER)
    assert f"{model.num_parameters():,}" in (FOLDER / "README.md").read_text("utf-8")


def test_the_command_line_needs_no_model():
    result = CliRunner().invoke(make_app(), ["run", "--task", "text-classification", "a wonderful film"])
    assert result.exit_code == 0, result.output
    assert '"label": "POSITIVE"' in result.output
    with pytest.raises(InputError, match="no model comes with the library for fill-mask"):
        distilbert.pipeline("fill-mask")
