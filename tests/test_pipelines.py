"""The contract of all tasks: transformers 4.57.6's answers (tests/golden/pipelines), and one clear error or an answer."""

import json
import shutil
import sys
from functools import cache

import numpy as np
import pytest
from backends import assert_close
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

import distilbert
from distilbert.core.errors import DistilBertError, InputError
from distilbert.pipelines import TASKS, pipeline

sys.path.insert(0, str(GOLDEN / "pipelines"))
import make

BACKENDS = ("pt", "tf", "flax")


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """A task's pipeline, made once for each backend."""

    @cache
    def folder(task):
        path = tmp_path_factory.mktemp(task)
        make.checkpoint(path, task)
        return path

    @cache
    def ask_pipeline(task, backend="pt"):
        return pipeline(task, folder(task), backend=backend, device="cpu")

    return ask_pipeline


def expected(task):
    return json.loads((GOLDEN / "pipelines" / f"{task}.json").read_text(encoding="utf-8"))["answers"]


def assert_same(actual, wanted):
    if isinstance(wanted, dict):
        assert actual.keys() == wanted.keys()
        actual, wanted = ([answer[name] for name in sorted(wanted)] for answer in (actual, wanted))
    if isinstance(wanted, list):
        assert len(actual) == len(wanted)
        for one, other in zip(actual, wanted, strict=True):
            assert_same(one, other)
    elif isinstance(wanted, float):
        assert actual == pytest.approx(wanted, rel=0, abs=1e-5)
    else:
        assert actual == wanted


@pytest.mark.parametrize("task", [task for task in make.ASKED if task != "feature-extraction"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_answers_of_transformers(backend, task, ask):
    items, every_option = make.ASKED[task]
    if backend != "pt":  # options are for what the arrays mean, whoever made them
        every_option = every_option[:1]
    for options, wanted in zip(every_option, expected(task), strict=False):
        assert_same(ask(task, backend)(items, **options), wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_choices_score_as_in_transformers(backend, ask):
    answers = ask("multiple-choice", backend)(make.CHOOSING)
    assert [[c["choice"] for c in answer] for answer in answers] == [item["choices"] for item in make.CHOOSING]
    assert_same([[c["score"] for c in answer] for answer in answers], expected("multiple-choice"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_states_are_those_of_transformers(backend, ask):
    texts, _ = make.ASKED["feature-extraction"]
    for states, (wanted,) in zip(
        ask("feature-extraction", backend)(texts), *expected("feature-extraction"), strict=True
    ):
        assert_close(states, np.array(wanted), 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pooling_leaves_padding_out(backend, ask):
    texts = ["a film", "the plot is a mess, but the actor was wonderful"]
    pipe = ask("feature-extraction", backend)
    states = [pipe(text) for text in texts]
    assert [vectors.shape for vectors in states] == [(4, 32), (13, 32)] and states[0].dtype == np.float32
    for pooling, pool in {"cls": lambda h: h[0], "mean": lambda h: h.mean(0), "max": lambda h: h.max(0)}.items():
        plain = [pool(vectors) for vectors in states]
        np.testing.assert_allclose(pipe(texts, pooling=pooling, normalize=False), plain, rtol=0, atol=1e-5)
        unit = [vector / np.linalg.norm(vector) for vector in plain]
        np.testing.assert_allclose(pipe(texts, pooling=pooling), unit, rtol=0, atol=1e-5)


def test_questions_come_in_many_forms(ask):
    pipe, (first, second, _) = ask("question-answering"), make.QUESTIONS
    answers = pipe([first, second])
    assert pipe(**first) == answers[0] == pipe(first)
    questions, contexts = ([item[name] for item in (first, second)] for name in ("question", "context"))
    assert pipe(question=questions, context=contexts) == answers
    both = pipe(question=questions, context=contexts[0])
    assert both == pipe([first, {"question": questions[1], "context": contexts[0]}])
    # A list of one stays a list, and a text that allows one answer only too.
    assert pipe([{"question": "who?", "context": "film"}], top_k=3)[0][0]["answer"] == "film"


def test_calls_that_transformers_takes(ask):
    class Dataset:  # as PyTorch's: no iterator
        def __len__(self):
            return 2

        def __getitem__(self, number):
            return ["a good film", "a bad film"][range(2)[number]]

    classify, choose = ask("text-classification"), ask("zero-shot-classification")
    both = classify(["a good film", "a bad film"])
    assert list(classify(Dataset(), num_workers=2)) == both
    assert classify("a good film and more", padding=True, truncation=True, max_length=5) == both[0]
    assert choose("a film", ["good", "bad"]) == choose(sequences="a film", candidate_labels="good,bad")
    answer = ask("question-answering")
    assert answer("who?", "the cat sat") == answer({"question": "who?", "context": "the cat sat"})
    by_number = pipeline("text-classification", classify.model.model, tokenizer=classify.tokenizer, device=-1)
    assert by_number("a good film") == both[0]


def test_long_questions_are_cut(ask, caplog):
    item = {"question": "film " * 20, "context": "the actor was wonderful"}
    cut = ask("question-answering")(item, max_question_len=5)
    assert cut == ask("question-answering")(item | {"question": "film " * 5})
    assert "1 questions cut to max_question_len=5 tokens" in caplog.text


def test_labels_come_with_the_call_or_the_text(ask):
    pipe, labels = ask("zero-shot-classification"), ["funny", "slow"]
    assert pipe({"text": "a film", "candidate_labels": labels}) == pipe("a film", candidate_labels="funny, slow")


def test_a_model_without_entailment_is_pointed_out_once(tmp_path, caplog):
    make.checkpoint(tmp_path, "text-classification")
    pipe = pipeline("zero-shot-classification", tmp_path, device="cpu", candidate_labels=["funny", "slow"])
    assert pipe("a film") == pipe("a film")
    assert caplog.text.count("POSITIVE begins with entail; the last is taken for it") == 1


def test_targets_outside_the_vocabulary_are_pointed_out_once(ask, caplog):
    pipe = ask("fill-mask")
    for _ in range(2):
        assert [filling["token_str"] for filling in pipe("a [MASK]", targets="slowful")] == ["slow"]
    assert caplog.text.count("first piece 'slow' is") == 1
    with pytest.raises(InputError, match="at least one word with a token"):
        pipe("a [MASK]", targets=["\ufeff"])


ITEM = {"question": "who?", "context": "the actor"}
LABELS = {"candidate_labels": ["good"]}


@pytest.mark.parametrize(
    "task, item, options, message",
    [
        ("question-answering", {"question": "who?"}, {}, "input 2: has no 'context', only question"),
        ("question-answering", "who?", {}, "input 2: is of type str, expected a mapping with question and context"),
        ("question-answering", ITEM | {"context": ""}, {}, "input 2: context is empty"),
        ("question-answering", ITEM | {"context": " "}, {}, "the context ' ' holds nothing to read"),
        ("question-answering", ITEM | {"question": "film " * 38}, {}, "it leaves none to the context"),
        ("question-answering", ITEM, {"top_k": 0}, "top_k is 0, expected an integer of at least 1"),
        ("question-answering", ITEM, {"doc_stride": 500}, "doc_stride is 500, expected at most max_seq_len=384"),
        ("fill-mask", "the film", {}, r"input 2: has no \[MASK\] to fill"),
        ("fill-mask", "[MASK] film " * 20, {}, "a text of 42 tokens.* the model reads at most 40"),
        ("fill-mask", "[MASK]", {"targets": ()}, "targets is .*, expected at least one word"),
        ("fill-mask", "[MASK]", {"targets": 1}, "targets is 1, expected a list of words"),
        ("feature-extraction", "film", {"pooling": "sum"}, "pooling is 'sum', expected one of cls, mean, max"),
        ("feature-extraction", "film " * 39, {"truncation": False}, "a text of 41 tokens.*allow truncation"),
        ("multiple-choice", {"prompt": "a", "choices": []}, {}, r"input 2: choices is \[\], expected a list"),
        ("multiple-choice", {"prompt": "a", "choices": [1]}, {}, "input 2: a choice is of type int"),
        ("zero-shot-classification", "film", {}, "input 2: has no candidate_labels"),
        ("zero-shot-classification", "film", {"candidate_labels": " ,"}, "candidate_labels is .*, expected at least"),
        ("zero-shot-classification", "film", LABELS | {"hypothesis_template": "It is."}, "'It is.', expected a text"),
        ("zero-shot-classification", "film", {"candidate_labels": ["film " * 40]}, "leaves no room"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(task, item, options, message, ask):
    good = {"question-answering": ITEM, "fill-mask": "[MASK]", "multiple-choice": make.CHOOSING[0]}.get(
        task, {"text": "film", **LABELS}
    )
    with pytest.raises(InputError, match=message) as caught:
        ask(task)([good, item], **options)
    assert "\n" not in str(caught.value)


words = st.sampled_from(
    ["film", "actor", " ", "[MASK]", "[CLS]", "[SEP]", "[PAD]", "\0", "\u0301", "\ufeff", "日", "İ"]
)
texts = st.builds(
    lambda parts, times: "".join(parts) * times,
    st.lists(words | st.text(max_size=6), max_size=8),
    st.sampled_from([1, 90]),
)
masked = st.builds("[MASK]".join, st.tuples(texts, texts))
things = st.recursive(
    st.none() | st.booleans() | st.floats() | texts | st.just("\ud800"),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.sampled_from(["text", "choices", "prompt"]), part),
    max_leaves=4,
)
ITEMS = {
    "question-answering": st.fixed_dictionaries({"question": texts, "context": texts}),
    "multiple-choice": st.fixed_dictionaries({"prompt": texts, "choices": st.lists(texts, max_size=3)}),
    "zero-shot-classification": st.fixed_dictionaries(
        {"text": texts, "candidate_labels": texts | st.lists(texts, max_size=3)}
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_anything_is_answered_or_explained(task, ask):
    pipe = ask(task)
    options = {"top_k": 3, "handle_impossible_answer": True} if task == "question-answering" else {}

    @settings(max_examples=20, deadline=None, database=None)
    @given(ITEMS.get(task, masked if task == "fill-mask" else texts), things)
    def check(good, thing):
        for item in (good, thing):
            try:
                (answer,) = pipe([item], **options)
            except DistilBertError as error:
                assert "\n" not in str(error)
            else:
                check_answer(task, item, answer)

    check()


def check_answer(task, item, answer):
    if task == "question-answering":
        assert 1 <= len(answer) <= 3
        for one in answer:
            assert one["answer"] == item["context"][one["start"] : one["end"]]
            assert bool(one["answer"]) == (one["end"] > one["start"])
        assert sum(not one["answer"] for one in answer) <= 1  # that there is none
    elif task == "token-classification":
        text = item["text"] if isinstance(item, dict) else item
        assert all(0 <= entity["start"] < entity["end"] <= len(text) for entity in answer)
    elif task == "zero-shot-classification":
        assert np.isfinite(answer["scores"]).all() and len(answer["labels"]) == len(answer["scores"]) > 0
    elif task == "multiple-choice":
        assert [one["choice"] for one in answer] == item["choices"]
        assert sum(one["score"] for one in answer) == pytest.approx(1)
    elif task == "feature-extraction":
        assert np.isfinite(answer).all() and answer.shape[1:] == (32,)
    else:
        assert answer


@pytest.mark.parametrize("backend, prefix", [("pt", ""), ("tf", "TF"), ("flax", "Flax")])
def test_a_loaded_model_answers_too(backend, prefix, ask, tmp_path):
    make.checkpoint(tmp_path, "fill-mask")
    model = getattr(distilbert, f"{prefix}DistilBertForMaskedLM").from_pretrained(tmp_path)
    loaded = pipeline("fill-mask", model, tokenizer=tmp_path)
    assert_same(loaded("a [MASK] film"), ask("fill-mask", backend)("a [MASK] film"))
    with pytest.raises(InputError, match="expected one of ours for base, or where it is"):
        pipeline("feature-extraction", model, tokenizer=tmp_path)
    with pytest.raises(InputError, match="needs a tokenizer="):
        pipeline("fill-mask", model)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bert_is_told_its_segments(backend, tmp_path):
    shutil.copytree(GOLDEN / "bert-seqcls", tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.npz"))
    tokenizer = distilbert.BertTokenizer.from_pretrained(GOLDEN / "distilbert-seqcls")
    tokenizer.save_pretrained(tmp_path)
    encoded = tokenizer("a film", "the plot was good", return_tensors="pt")
    logits = distilbert.BertForSequenceClassification.from_pretrained(tmp_path)(**encoded).logits.detach()
    classify = pipeline("text-classification", tmp_path, backend=backend, device="cpu", top_k=None)
    scores = {
        answer["label"]: answer["score"] for answer in classify({"text": "a film", "text_pair": "the plot was good"})
    }
    np.testing.assert_allclose([scores[f"LABEL_{n}"] for n in range(3)], logits.softmax(-1)[0], rtol=0, atol=1e-5)
    embed = pipeline("feature-extraction", tmp_path, backend=backend, device="cpu")
    assert embed(["a film"])[0].shape == (4, 32)


def test_what_came_before_a_failure_is_answered(ask):
    def items():
        yield from ("a film", "a mess", "a plot")
        raise OSError("the disk is gone")

    answers = ask("text-classification")(items())
    assert [next(answers)["label"] for _ in range(3)]
    with pytest.raises(OSError, match="the disk is gone"):
        next(answers)
