"""``distilbert evaluate``: metrics by hand, files as people have them, and golden checkpoints."""

import gzip
import json
import math
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from rich.console import Console
from typer.testing import CliRunner

import distilbert
from distilbert import DistilBertForMaskedLM, pipeline
from distilbert.cli import evaluate as command
from distilbert.cli import make_app
from distilbert.core.backends import BACKENDS
from distilbert.core.config import DistilBertConfig
from distilbert.core.errors import CheckpointError, InputError, MissingBackendError
from distilbert.core.tokenizer import DistilBertTokenizer
from distilbert.evaluation import data, evaluate, evaluation, metrics
from distilbert.evaluation.tasks import HiddenTokens, TextClassification, TokenClassification, WordLabels

sys.path.insert(0, str(GOLDEN / "pipelines"))
import make

TEXTS = ["a wonderful film", "the plot is a mess", "a sad child was loved", "not good at all", "the actor played it"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Makes a golden checkpoint with a tokenizer, and with changes of its config."""

    def make_folder(case, **changes):
        made = tmp_path_factory.mktemp(case)
        shutil.copy(GOLDEN / f"distilbert-{case}" / "model.safetensors", made)
        for name in ("vocab.txt", "tokenizer_config.json"):
            shutil.copy(GOLDEN / "distilbert-seqcls" / name, made)
        config = json.loads((GOLDEN / f"distilbert-{case}" / "config.json").read_text())
        (made / "config.json").write_text(json.dumps(config | changes))
        return made

    return make_folder


@pytest.fixture
def write(tmp_path):
    def write_file(name, content):
        (tmp_path / name).write_text(content, encoding="utf-8")
        return tmp_path / name

    return write_file


# Metrics.


def test_two_classes():
    found = metrics.classification([0, 0, 0, 1, 1], [0, 0, 1, 1, 0], ["bad", "good"])
    assert found.metrics["accuracy"] == pytest.approx(3 / 5)
    assert found.metrics["f1"] == pytest.approx(1 / 2)
    assert found.metrics["macro_f1"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found.metrics["matthews_correlation"] == pytest.approx((2 * 1 - 1 * 1) / math.sqrt(2 * 2 * 3 * 3))
    assert found.details["confusion"] == [[2, 1], [1, 1]]
    bad = {
        "label": "bad",
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(2 / 3),
    }
    assert found.details["classes"][0] == bad | {"support": 3}


def test_a_class_that_never_occurs_is_shown_and_does_not_count():
    found = metrics.classification([0, 1], [0, 1], ["a", "b", "c"])
    assert "f1" not in found.metrics and found.metrics["macro_f1"] == 1
    assert found.details["classes"][2]["support"] == 0 and found.details["confusion"][2] == [0, 0, 0]


def test_several_labels():
    true, predicted = np.array([[1, 0], [1, 1], [0, 0]]), np.array([[1, 0], [1, 0], [1, 0]])
    found = metrics.multi_label(true, predicted, ["a", "b"]).metrics
    assert found == pytest.approx({"micro_f1": 2 / 3, "macro_f1": (4 / 5 + 0) / 2, "subset_accuracy": 1 / 3})


def test_regression():
    found = metrics.regression([1, 2, 3], [1, 2, 6]).metrics
    assert found == pytest.approx({"pearson": 5 / math.sqrt(2 * 14), "spearman": 1, "mean_squared_error": 3})
    assert math.isnan(metrics.regression([1, 1], [1, 2]).metrics["pearson"])
    assert math.isnan(metrics.regression([1], [2]).metrics["spearman"])


def test_entities_are_right_as_a_whole():
    true = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC", "O"]]
    predicted = [["B-PER", "O", "O", "B-LOC"], ["B-LOC", "B-LOC"]]
    found = metrics.entities(true, predicted)
    assert found.metrics == pytest.approx({"precision": 2 / 4, "recall": 2 / 3, "f1": 4 / 7, "accuracy": 4 / 6})
    assert [(one["label"], one["support"]) for one in found.details["classes"]] == [("LOC", 2), ("PER", 1)]
    nothing = metrics.entities([["O"]], [["O"]])
    assert nothing.metrics == {"precision": 0, "recall": 0, "f1": 0, "accuracy": 1}


def test_entities_by_other_letters():
    found = metrics.entities(
        [["U-PER", "U-PER", "O", "B-LOC", "M-LOC", "L-LOC"]], [["U-PER", "O", "O", "B-LOC", "I-LOC", "E-LOC"]]
    )
    assert found.metrics["precision"] == 1 and found.metrics["recall"] == pytest.approx(2 / 3)


def test_two_labels_of_words_are_judged_by_the_one_that_is_not_outside():
    config = SimpleNamespace(id2label={0: "ERR", 1: "O"})
    found = TokenClassification().measure([["O", "ERR", "O"]], [(["O", "O", "O"], 0)], config)
    assert found.metrics["f1"] == 0 and [one["label"] for one in found.details["classes"]] == ["O", "ERR"]


def test_perplexity():
    found = metrics.perplexity([math.log(1 / 2), math.log(1 / 8)]).metrics
    assert found == pytest.approx({"perplexity": 4, "cross_entropy": math.log(4)})
    assert metrics.perplexity([-1e4]).metrics["perplexity"] == math.inf


@pytest.mark.parametrize(
    "answer, normal",
    [
        ("The  Cat!", "cat"),
        ("a\tcat, an apple", "cat apple"),
        ("U.S.A.", "usa"),
        ("theatre and Anna", "theatre and anna"),  # articles are words, not letters
        ("well-known", "wellknown"),
        ("a-b", "ab"),  # punctuation goes first, so this a is none
        ("“the” …", "“ ” …"),  # only ASCII's punctuation is punctuation
        ("the", ""),
        ("¿A?", "¿"),
    ],
)
def test_answers_are_compared_in_a_normal_form(answer, normal):
    assert metrics.normalize(answer) == normal


@pytest.mark.parametrize(
    "prediction, answers, old, new",
    [
        ("the cat", ["Cat."], (100, 100), (100, 100)),
        ("black cat", ["the black dog"], (0, 50), (0, 50)),
        ("cat cat", ["cat"], (0, 200 / 3), (0, 200 / 3)),  # one of the two is one too many
        ("cat", ["dog", "the cat", "cat cat"], (100, 100), (100, 100)),  # the closest counts
        ("", ["cat"], (0, 0), (0, 0)),
        ("the", ["a"], (100, 0), (100, 100)),  # nothing is left of either: only 2.0 says that nothing is nothing
        ("cat", ["the", "dog"], (0, 0), (0, 0)),
        ("an", ["the", "dog"], (100, 0), (0, 0)),  # 2.0 leaves out answers of which nothing is left
        ("", [], None, (100, 100)),
        ("cat", [], None, (0, 0)),
        ("a", [], None, (100, 100)),
    ],
)
def test_squad(prediction, answers, old, new):
    for wanted, may_be_unanswerable in ((old, False), (new, True)):
        if wanted is not None:
            found = metrics.squad([prediction], [answers], may_be_unanswerable=may_be_unanswerable).metrics
            assert (found["exact_match"], found["f1"]) == pytest.approx(wanted)


def test_squad_with_and_without_answers():
    found = metrics.squad(["cat", "black cat", "", "x"], [["cat"], ["cat"], [], []], may_be_unanswerable=True)
    assert found.metrics == pytest.approx(
        {
            "exact_match": 50,
            "f1": 100 * (1 + 2 / 3 + 1 + 0) / 4,
            "has_answer_exact_match": 50,
            "has_answer_f1": 100 * (1 + 2 / 3) / 2,
            "no_answer_exact_match": 50,
            "no_answer_f1": 50,
        }
    )
    assert found.details == {"has_answer_count": 2, "no_answer_count": 2}
    only = metrics.squad(["cat"], [["cat"]], may_be_unanswerable=True)
    assert "no_answer_f1" not in only.metrics


# Files.


@pytest.mark.parametrize(
    "name, content",
    [
        ("x.tsv", 'say "hi\t1\n\nbad\t0\n'),
        ("x", 'say "hi\t1\nbad\t0'),
        ("x.tsv", 'sentence\tlabel\nsay "hi\t1\nbad\t0\n'),
        ("x.csv", '"say ""hi",1\nbad,0\n'),
        ("x.csv", 'id,Label,Text\n7,1,"say ""hi"\n8,0,bad\n'),
        ("x.csv", 'Label,Text,,\n1,"say ""hi",,\n0,bad,,\n'),
        ("x.jsonl", '{"text": "say \\"hi", "label": 1}\n\n{"text": "bad", "label": 0}\n'),
        ("x.json", '\ufeff{"text": "say \\"hi", "label": 1}\r\n{"text": "bad", "label": 0}\r\n'),
    ],
)
def test_texts_as_files_have_them(name, content, write):
    read = [(one.text, one.text_pair, str(one.label)) for one in data.read_texts(str(write(name, content)))]
    assert read == [('say "hi', None, "1"), ("bad", None, "0")]


def test_fields_by_name_and_number_and_compressed(tmp_path, write):
    with gzip.open(tmp_path / "x.csv.gz", "wt") as file:
        file.write('gold,premise,hypothesis\nyes,"a\nb",c\n')
    (one,) = data.read_texts(str(tmp_path / "x.csv.gz"), label_field="gold")
    assert (one.text, one.text_pair, one.label) == ("a\nb", "c", "yes")
    assert one.where == f"{tmp_path / 'x.csv.gz'}:2"
    (one,) = data.read_texts(str(write("pair.tsv", "a\tb\t1\n")))
    assert (one.text, one.text_pair, one.label) == ("a", "b", "1")
    (one,) = data.read_texts(str(write("four.tsv", "7\t1\tx\ta\n")), text_field="4", label_field="2")
    assert (one.text, one.text_pair, one.label) == ("a", None, "1")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("x.tsv", "good\t1\nbad\n", r"x.tsv:2: has 1 columns, expected 2"),
        ("x.tsv", "1\t2\t3\t4\n", r"x.tsv:1: 4 columns without known names"),
        ("x.tsv", "only\n", r"x.tsv:1: 1 columns without known names"),
        ("x.CSV", "text,stars\na,1\n", r"x.CSV:1: is 'text, stars' a header\? Then name the columns with --text-field"),
        ("x.csv", "tweet,label\na,1\n", r"x.csv:1: is 'tweet, label' a header\?"),
        ("x.csv", "text,label,label\na,1,2\n", r"x.csv:1: two columns are called 'label'"),
        ("x.csv", 'good,1\n"bad,0\n', r"x.csv:2: expected comma-separated values"),
        ("x.jsonl", '{"text": "a"}\n', r"x.jsonl:1: which of text is the label\? Name it with --label-field"),
        ("x.jsonl", '{"words": "a", "label": 1}\n', r"which of words, label is the text"),
        ("x.jsonl", '{"text": "a", "label": 1}\n{"text": "a"}\n', r"x.jsonl:2: no field 'label', only text"),
        ("x.jsonl", '{"text": 5, "label": 1}\n', r"x.jsonl:1: text is of type int, expected str"),
        ("x.jsonl", '{"text": "\\ud800", "label": 1}\n', r"x.jsonl:1: text has half a surrogate pair"),
        ("x.jsonl", "[1]\n", r"x.jsonl:1: expected a JSON object"),
        ("x.jsonl", "[" * 100_000 + "\n", r"x.jsonl:1: expected JSON"),
        ("x.jsonl", "{\n", r"x.jsonl:1: expected JSON"),
        ("x.csv.gz", "text,label\n", r"x.csv.gz: is not complete, or damaged"),
    ],
)
def test_bad_texts_are_named_by_their_line(name, content, message, write):
    with pytest.raises(InputError, match=message) as caught:
        list(data.read_texts(str(write(name, content))))
    assert "\n" not in str(caught.value)


def test_what_unfolds_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "LARGEST", 1 << 20)
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(b"words\n" * (1 << 18)))
    with pytest.raises(InputError, match="holds more than 1 million characters"):
        list(data.read_lines(str(tmp_path / "x.txt.gz")))


def test_sentences_with_irregular_lines(write, caplog):
    content = "-DOCSTART- -X- O O\n\nEU NNP B-ORG\nof  O\n\tO\nit\tO\nlost\n\nNew York\tB-LOC\n\ufeff"
    found = list(data.read_sentences(str(path := write("x.conll", content))))
    assert [(one.line, one.words, one.labels) for one in found] == [
        (3, ["EU", "of"], ["B-ORG", "O"]),
        (6, ["it"], ["O"]),
        (9, ["New York"], ["B-LOC"]),
    ]
    assert f"{path}:5: holds no word and label, as 2 other lines" in caplog.text


def squad_document(*questions):
    return json.dumps({"version": "x", "data": [{"paragraphs": [{"context": "a cat", "qas": list(questions)}]}]})


def test_questions(write):
    who = {"question": "who?", "answers": [{"text": "cat", "answer_start": 2}, {"text": "a cat"}]}
    none = {"question": "why?", "answers": [], "is_impossible": True, "plausible_answers": [{"text": "cat"}]}
    found = list(data.read_questions(str(write("x.json", squad_document(who, none)))))
    assert [(one.question, one.context, one.answers) for one in found] == [
        ("who?", "a cat", ["cat", "a cat"]),
        ("why?", "a cat", []),
    ]
    assert [one.may_be_unanswerable for one in found] == [False, True]
    lines = [
        {"question": "q", "context": "c", "answers": answers} for answers in (["a"], {"text": ["a"]}, [{"text": "a"}])
    ]
    found = list(data.read_questions(str(write("x.jsonl", "\n".join(map(json.dumps, lines))))))
    assert [one.answers for one in found] == [["a"]] * 3


@pytest.mark.parametrize(
    "content, message",
    [
        ("{}", "data is None, expected a list"),
        ("[]", "data is None, expected a list"),
        ('{"data": [5]}', "article 1: paragraphs is None"),
        (squad_document({"question": "who?"}), "paragraph 1, question 1: answers is None"),
        (squad_document({"answers": []}), "question 1: has no 'question'"),
        (squad_document(7), "question 1: found 7, expected an object"),
        ('{"data": [', "expected JSON"),
    ],
)
def test_bad_questions_are_named(content, message, write):
    with pytest.raises(InputError, match=message):
        list(data.read_questions(str(write("x.json", content))))


# Labels.


@pytest.mark.parametrize(
    "names, label, problem_type, wanted",
    [
        (["NEG", "POS"], "POS", None, 1),
        (["NEG", "POS"], "pos", None, 1),
        (["NEG", "POS"], "1", None, 1),
        (["NEG", "POS"], 1.0, None, 1),
        (["1", "2"], "1", None, 0),
        (["1", "2"], "0", None, "label is '0', expected one of the model's: 1, 2$"),
        (["a", "A"], "A", None, 1),
        (["NEG", "POS"], "2", None, "label is '2', expected one of the model's: NEG, POS or 0 to 1"),
        (["NEG", "POS"], None, None, "label is 'None'"),
        (["x"], "2.5", None, 2.5),
        (["x"], "nan", None, "expected a number"),
        (["x", "y"], "1", "regression", "gives 2 numbers"),
        (["a", "b", "c"], "a,2", "multi_label_classification", {0, 2}),
        (["a", "b", "c"], "", "multi_label_classification", set()),
        (["a", "b", "c"], ["b"], "multi_label_classification", {1}),
        (["a", "b", "c"], [1.0, 0, 1], "multi_label_classification", {0, 2}),
    ],
)
def test_labels(names, label, problem_type, wanted, write):
    config = SimpleNamespace(id2label=dict(enumerate(names)), num_labels=len(names), problem_type=problem_type)
    path = str(write("x.jsonl", json.dumps({"text": "t", "label": label})))
    if isinstance(wanted, str):
        with pytest.raises(InputError, match=wanted):
            TextClassification().read(path, config)
    else:
        assert TextClassification().read(path, config)[0].truth == wanted


# Models.


def test_text_classification(folder, write):
    model = folder("seqcls")
    expected = [answer["label"] for answer in pipeline("text-classification", model)(TEXTS)]
    names = list(json.loads((model / "config.json").read_text())["id2label"].values())
    labels = [*expected[:4], next(name for name in names if name != expected[4])]
    path = write("x.tsv", "".join(f"{text}\t{label}\n" for text, label in zip(TEXTS, labels, strict=True)))
    report = evaluate("text-classification", model, path, batch_size=2)
    assert report.metrics["accuracy"] == pytest.approx(4 / 5)
    assert report.count == 5 and report.per_second > 0
    assert np.sum(report.details["confusion"]) == 5


def test_several_labels_and_a_regression(folder, write):
    model = folder("multilabel")
    asked = pipeline("text-classification", model, top_k=None)(TEXTS)
    lines = [
        {"text": text, "label": [one["label"] for one in of if one["score"] > 0.5]}
        for text, of in zip(TEXTS, asked, strict=True)
    ]
    report = evaluate("text-classification", model, write("x.jsonl", "\n".join(map(json.dumps, lines))))
    assert report.metrics["subset_accuracy"] == 1
    model = folder("regression")
    asked = pipeline("text-classification", model, function_to_apply="none")(TEXTS)
    table = "".join(f"{text}\t{one['score'] + 2}\n" for text, one in zip(TEXTS, asked, strict=True))
    found = evaluate("text-classification", model, write("x.tsv", table), batch_size=2).metrics
    assert found == pytest.approx({"pearson": 1, "spearman": 1, "mean_squared_error": 4}, abs=1e-3)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    made = tmp_path_factory.mktemp("tagger")
    make.checkpoint(made)
    return pipeline(
        "token-classification", made, aggregation_strategy="none", ignore_labels=(), is_split_into_words=True
    )


def first_labels(tagger, words):
    """By the pipeline's answer for every token: what the first in each word got."""
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])
    found = {entity["start"]: entity["entity"] for entity in tagger(words)}
    return [found.get(start, "O") for start in starts[:-1]]


def test_words_have_the_label_of_their_first_token(tagger, write):
    sentences = [["the", "worsts", "film", "is", "U.S.", "made"], ["slowed", "\u200b", "wonderful!"]]
    expected = [first_labels(tagger, words) for words in sentences]
    lines = (
        "".join(f"{word}\t{label}\n" for word, label in zip(*pair, strict=True))
        for pair in zip(sentences, expected, strict=True)
    )
    report = evaluate("token-classification", tagger, write("x.conll", "\n".join(lines)))
    assert report.metrics["accuracy"] == 1 and report.count == 2
    assert report.details["words"] == 9


def test_words_behind_the_limit_are_nothing(tagger, write, caplog):
    report = evaluate("token-classification", tagger, write("x.conll", "film B-PER\n" * 50))
    assert "12 of 50 words, in 1 sentences, lie behind what the model can read; they count as O" in caplog.text
    assert "cut" not in caplog.text
    assert report.details["words_behind_limit"] == 12
    ask = WordLabels(tagger.model, tagger.tokenizer, is_split_into_words=True)
    labels, behind = ask([["film"] * 50])[0]
    assert (labels[38:], behind) == (["O"] * 12, 12) and labels[:38] == first_labels(tagger, ["film"] * 38)


def test_labels_without_entities_are_compared_word_by_word(folder, write):
    changes = {
        "id2label": dict(enumerate(names := ["NN", "VB", "JJ", "DT", "X"])),
        "label2id": {n: i for i, n in enumerate(names)},
    }
    report = evaluate("token-classification", folder("tokcls", **changes), write("x.conll", "film NN\nis VB\n"))
    assert {"accuracy", "macro_f1"} <= set(report.metrics)


def test_unknown_kinds_of_entities_are_named_by_their_line(tagger, write):
    with pytest.raises(InputError, match=r"x.conll:2: label is 'B-ORG', expected one of the model's: O, B-PER"):
        evaluate("token-classification", tagger, write("x.conll", "film I-PER\nis B-ORG\n"))


@pytest.fixture(scope="module")
def masked(folder):
    """A masked language model, texts, and the loss that it has in training on what is hidden of them."""
    model = folder("mlm")
    texts = [*TEXTS, "the wonderful film is a mess and " * 20]
    ask = HiddenTokens(
        SimpleNamespace(config=DistilBertConfig.from_pretrained(model)),
        DistilBertTokenizer.from_pretrained(model),
        mask_probability=0.3,
    )
    windows = [window for sample in ask.encode(texts, ask.options) for window in sample.windows]
    input_ids = torch.zeros(len(windows), 40, dtype=torch.long)
    attention_mask, labels = torch.zeros_like(input_ids), torch.full_like(input_ids, -100)
    for row, window in enumerate(windows):
        input_ids[row, : len(window)] = torch.tensor(window.ids)
        attention_mask[row, : len(window)] = 1
        labels[row, window.places] = torch.from_numpy(window.hidden)
    with torch.no_grad():
        loss = DistilBertForMaskedLM.from_pretrained(model)(input_ids, attention_mask, labels=labels).loss
    return model, texts, float(loss)


@pytest.mark.parametrize("backend", BACKENDS)
def test_perplexity_is_that_of_training_on_every_backend(backend, masked, write):
    model, texts, loss = masked
    path = write("x.txt", "\n\n".join(texts))
    report = evaluate("fill-mask", model, path, backend=backend, mask_probability=0.3, batch_size=4)
    assert report.count == 6
    assert report.metrics == pytest.approx({"cross_entropy": loss, "perplexity": math.exp(loss)}, rel=1e-4)


class Uniform:
    """A model to which all tokens are alike, and which remembers what it read."""

    config = distilbert.DistilBertConfig(max_position_embeddings=40)

    def __init__(self):
        self.seen = []

    def batch_rows(self, length):
        return 8

    def __call__(self, sequences, places):
        self.seen += sequences
        return [{"logits": np.zeros((len(of_text), 97), np.float32)} for of_text in places]


def test_which_tokens_are_hidden(masked):
    tokenizer, model = DistilBertTokenizer.from_pretrained(masked[0]), Uniform()
    ask = HiddenTokens(model, tokenizer, mask_probability=0.5, seed=3)
    vocabulary = ["the", "film", "is", "mess", "and", "wonderful", "actor", "good", "not", "was"]
    words = np.random.default_rng(0).choice(vocabulary, (20, 100))
    texts = [" ".join(of_text) for of_text in words]
    answers = ask(texts)
    assert answers[0] == pytest.approx([math.log(1 / 97)] * len(answers[0]))
    assert all([row[0], row[-1]] == [tokenizer.cls_token_id, tokenizer.sep_token_id] for row in model.seen)
    read = [number for row in model.seen for number in row[1:-1]]
    assert len(read) == words.size  # in windows, nothing is lost
    hidden = sum(map(len, answers))
    assert hidden / words.size == pytest.approx(0.5, abs=0.05)
    assert read.count(tokenizer.mask_token_id) / hidden == pytest.approx(0.8, abs=0.05)
    assert len(set(read) - set(tokenizer.convert_tokens_to_ids(words.flatten().tolist()))) > 10  # random ones
    assert ask(texts[::-1], batch_size=1)[::-1] == answers
    assert ask(texts, seed=4) != answers


def test_an_answerer_of_questions_is_asked_and_measured(write, monkeypatch):
    """With a pipeline that knows the answers: that of the task is tested with the task."""
    asked = []

    class Oracle(WordLabels):
        task = head = "question-answering"

        def __init__(self, model, tokenizer, *, batch_size, **options):
            asked.append(options)

        look_ahead = 2

        def answer_windows(self, windows):
            for window in windows:
                yield [
                    {"score": 1.0, "start": 0, "end": 3, "answer": "The cat" if item["question"] == "who?" else ""}
                    for item in window
                ]

    monkeypatch.setitem(
        evaluation.EVALUATIONS["question-answering"].answerer.__globals__["TASKS"], "question-answering", Oracle
    )
    given = Oracle.__new__(Oracle)
    given.model = given.tokenizer = given.batch_size = given.config = None
    who, why = ({"question": question, "answers": [{"text": "cat"}]} for question in ("who?", "why?"))
    report = evaluate("question-answering", given, write("x.json", squad_document(who, why, who)))
    assert report.metrics == pytest.approx({"exact_match": 200 / 3, "f1": 200 / 3})
    none = {"question": "why?", "answers": [], "is_impossible": True}
    report = evaluate("question-answering", given, write("y.json", squad_document(who, none)), max_answer_len=7)
    assert report.metrics["no_answer_f1"] == 100
    assert asked == [
        {"max_answer_len": 30, "handle_impossible_answer": False},
        {"max_answer_len": 7, "handle_impossible_answer": True},
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_accuracy_of_choices_is_that_of_what_the_pipeline_prefers(backend, folder, write):
    model = folder("choice")
    sides = [(text, [other for other in TEXTS if other != text][: 2 + number]) for number, text in enumerate(TEXTS[:3])]
    items = [{"prompt": prompt, "choices": choices} for prompt, choices in sides]  # not equally many in all
    answers = pipeline("multiple-choice", model)(items)
    right = [
        max(range(len(scores)), key=scores.__getitem__) for scores in ([one["score"] for one in a] for a in answers)
    ]
    right[0] = (right[0] + 1) % 2
    lines = (json.dumps(item | {"label": label}) for item, label in zip(items, right, strict=True))
    report = evaluate("multiple-choice", model, write("x.jsonl", "\n".join(lines)), backend=backend)
    assert (report.count, report.metrics) == (3, {"accuracy": 2 / 3})


@pytest.mark.parametrize(
    "changed, expected",
    [
        ({"label": 2}, r"x.jsonl:1: expected choices, a list, and label, the number of one from 0"),
        ({"label": True}, r"x.jsonl:1: expected choices, a list, and label, the number of one from 0"),
        ({"choices": "a,b"}, r"x.jsonl:1: expected choices, a list, and label, the number of one from 0"),
        ({"choices": ["a", 7]}, r"x.jsonl:1: a choice is of type int, expected str"),
        ({"prompt": None}, r"x.jsonl:1: prompt is of type NoneType, expected str"),
    ],
)
def test_choices_that_are_none(changed, expected, folder, write):
    record = {"prompt": "a", "choices": ["b", "c"], "label": 1} | changed
    with pytest.raises(InputError, match=expected):
        evaluate("multiple-choice", folder("choice"), write("x.jsonl", json.dumps(record)))


def test_misuse_is_explained(tagger, folder, write, monkeypatch):
    path = write("x.tsv", "good\t1\n")
    with pytest.raises(InputError, match="task is 'translation', expected one of text-classification"):
        evaluate("translation", "nowhere", path)
    with pytest.raises(
        InputError, match="fill-mask has no option 'label_field'; its options are: mask_probability, seed"
    ):
        evaluate("fill-mask", "nowhere", path, label_field="x")
    with pytest.raises(InputError, match="the pipeline is for token-classification, expected one for fill-mask"):
        evaluate("fill-mask", tagger, path)
    with pytest.raises(InputError, match="mask_probability is 0, expected above 0"):
        evaluate("fill-mask", folder("mlm"), path, mask_probability=0)
    with pytest.raises(InputError, match="no token was chosen"):
        evaluate("fill-mask", folder("mlm"), path, mask_probability=1e-9)
    with pytest.raises(InputError, match="holds no examples"):
        evaluate("text-classification", folder("seqcls"), write("empty.tsv", "\n"))
    with pytest.raises(CheckpointError, match="no such folder"):
        evaluate("text-classification", "/nowhere", path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        MissingBackendError, match=r'sklearn is not installed; try: pip install "distilbert\[evaluate\]"'
    ):
        evaluate("text-classification", "/nowhere", path)


# The shell.


def run(*arguments):
    return CliRunner().invoke(make_app(["evaluate"]), ["evaluate", "--task", *map(str, arguments)])


def test_json(folder, write):
    table = "".join(f"{text}\t{number % 3}\n" for number, text in enumerate(TEXTS))
    done = run("text-classification", "--model", folder("seqcls"), "--data", write("x.tsv", table), "--json")
    found = json.loads(done.output)
    assert found["count"] == 5 and 0 <= found["metrics"]["accuracy"] <= 1 and found["per_second"] > 0


def test_tables(folder, write, tagger):
    done = run(
        "text-classification", "--model", folder("seqcls"), "--data", write("x.tsv", "a film\tLABEL_1\nbad\t0\n")
    )
    assert done.exit_code == 0
    for shown in ("accuracy", "macro F1", "precision", "true labels in rows", "2 texts; "):
        assert shown in done.output


def test_one_line_for_a_bad_one(folder, write, caplog):
    path = write("x.tsv", "good\t1\nbad\t9\n")
    done = run("text-classification", "--model", folder("seqcls"), "--data", path)
    assert done.exit_code == 1 and done.output == ""
    expected = f"{path}:2: label is '9', expected one of the model's: LABEL_0, LABEL_1, LABEL_2 or 0 to 2"
    assert [record.getMessage() for record in caplog.records] == [expected]


def test_options_of_another_task_are_refused(write):
    done = run("fill-mask", "--model", "nowhere", "--data", "nothing", "--label-field", "x")
    assert done.exit_code == 2 and "--label-field belongs to" in done.output


def test_another_name_of_a_task_takes_its_options(folder, write):
    path = write("x.tsv", "a film\tLABEL_1\nbad\t0\n")
    done = run("sentiment-analysis", "--model", folder("seqcls"), "--data", path, "--label-field", "2", "--json")
    assert done.exit_code == 0 and json.loads(done.output)["task"] == "text-classification"


@pytest.mark.parametrize(
    "count, width, shown", [(2, 80, "x0"), (20, 80, "in % of the row"), (20, 240, "1000"), (60, 80, "confused most")]
)
def test_a_matrix_fits_the_terminal(count, width, shown, capsys, monkeypatch):
    monkeypatch.setattr(command, "open_console", lambda: Console(width=width))
    counts = np.full((count, count), 1) + np.eye(count, dtype=int) * 999
    command._show_confusion([f"x{number}" for number in range(count)], counts.tolist())
    printed = capsys.readouterr().out
    assert shown in printed and max(map(len, printed.splitlines())) <= width
