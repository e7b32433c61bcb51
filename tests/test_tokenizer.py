"""The tokenizer against transformers 4.57.6: by digest on real text, by stored answers on calls and old files."""

import copy
import hashlib
import json
import pickle
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from conftest import GOLDEN

from distilbert import BertTokenizer, BertTokenizerFast, DistilBertTokenizer, DistilBertTokenizerFast
from distilbert.core.errors import CheckpointError, InputError

DIGESTS = json.loads((GOLDEN / "tokenizer" / "ids.json").read_text())
STORED = json.loads((GOLDEN / "tokenizer" / "transformers.json").read_text(encoding="utf-8"))
FOLDER = GOLDEN / "distilbert-seqcls"


@pytest.fixture
def tokenizer():
    return DistilBertTokenizer.from_pretrained(FOLDER)


def strings(value):
    if isinstance(value, str):
        return [value]
    return [text for entry in (value.values() if isinstance(value, dict) else value) for text in strings(entry)]


def lines_of(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return strings(json.loads(text))
    return [line.split("\t")[0] if path.suffix == ".tsv" else line for line in text.split("\n")]


@pytest.mark.parametrize("name", DIGESTS)
def test_ids_on_real_text(name, shared):
    filename, casing = name.split(" ")
    tokenizer = DistilBertTokenizer(shared / "data" / "bert-base-uncased-vocab.txt", do_lower_case=casing == "uncased")
    ids = tokenizer(lines_of(shared / "data" / filename))["input_ids"]
    assert hashlib.sha256(json.dumps(ids).encode()).hexdigest() == DIGESTS[name]


def plain(value):
    """A result as JSON has it."""
    if isinstance(value, np.ndarray):
        return {"shape": list(value.shape), "dtype": str(value.dtype), "values": value.tolist()}
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("case", STORED["cases"], ids=lambda case: case["method"])
def test_answers_as_transformers(case, tokenizer):
    found = getattr(tokenizer, case["method"])(*case["arguments"], **case["options"])
    assert plain(found) == case["gives"]


@pytest.mark.parametrize("case", STORED["encodings"])
def test_details_of_encodings_as_transformers(case, tokenizer):
    encoded = tokenizer(*case["arguments"], **case["options"])
    expected = case["gives"]
    assert (encoded.n_sequences, encoded.is_fast) == (expected["n_sequences"], expected["is_fast"])
    for name in ("tokens", "word_ids", "sequence_ids"):
        assert [getattr(encoded, name)(index) for index in range(len(encoded.encodings))] == expected[name]
    for name, texts in expected["positions"].items():
        for index, sequences in enumerate(texts):
            for sequence, answers in enumerate(sequences):
                which = [] if name.startswith("token") else [sequence]
                found = [getattr(encoded, name)(index, position, *which) for position in range(len(answers))]
                assert plain(found) == answers, (name, index, sequence)


@pytest.mark.parametrize("case", STORED["checkpoints"], ids=lambda case: case["name"])
def test_files_of_older_versions_are_read_as_transformers_does(case, tmp_path):
    (tmp_path / "vocab.txt").write_text((FOLDER / "vocab.txt").read_text() + case["vocabulary"])
    for name, content in case["files"].items():
        (tmp_path / name).write_text(json.dumps(content))
    tokenizer = DistilBertTokenizer.from_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for again in (tokenizer, DistilBertTokenizer.from_pretrained(tmp_path)):
        ids = again(STORED["text"]).input_ids
        assert {
            "input_ids": ids,
            "size": len(again),
            "special_tokens_map": again.special_tokens_map,
            "special": again.get_special_tokens_mask(ids, already_has_special_tokens=True),
        } == case["gives"]


@pytest.mark.parametrize(
    ("tokens", "message"), [({"zebra": 99}, "97, expected 99"), ({"zebra": "x"}, "ids to tokens"), ({"": 97}, "None")]
)
def test_added_tokens_that_do_not_fit_are_refused(tokens, message, tmp_path):
    (tmp_path / "vocab.txt").write_text((FOLDER / "vocab.txt").read_text())
    (tmp_path / "added_tokens.json").write_text(json.dumps(tokens))
    with pytest.raises(InputError, match=message):
        DistilBertTokenizer.from_pretrained(tmp_path)


def test_text_to_ids_and_back(tokenizer):
    encoded = tokenizer("A wonderful film!")
    assert tokenizer.convert_ids_to_tokens(encoded.input_ids) == ["[CLS]", "a", "wonderful", "film", "!", "[SEP]"]
    assert list(encoded) == ["input_ids", "attention_mask"]
    assert tokenizer.decode(encoded.input_ids) == "[CLS] a wonderful film! [SEP]"
    assert tokenizer.decode(encoded.input_ids, skip_special_tokens=True) == "a wonderful film!"
    assert tokenizer.tokenize("the films") == ["the", "film", "##s"]
    assert tokenizer.convert_tokens_to_ids(["film", "zebra"]) == [tokenizer.get_vocab()["film"], tokenizer.unk_token_id]
    assert tokenizer.convert_tokens_to_string(["film", "##s"]) == "films"


def test_pairs_and_special_tokens(tokenizer):
    a, b = (tokenizer.encode(text, add_special_tokens=False) for text in ("good film", "bad"))
    encoded = tokenizer("good film", "bad", return_token_type_ids=True, return_special_tokens_mask=True)
    assert encoded.input_ids == tokenizer.build_inputs_with_special_tokens(a, b)
    assert encoded.token_type_ids == tokenizer.create_token_type_ids_from_sequences(a, b)
    assert encoded.special_tokens_mask == tokenizer.get_special_tokens_mask(a, b)
    assert encoded.sequence_ids() == [None, 0, 0, None, 1, None]
    assert tokenizer([("good film", "bad")]).input_ids == [encoded.input_ids]
    assert tokenizer.num_special_tokens_to_add(pair=True) == 3


def test_padding_and_tensors(tokenizer):
    texts = ["good", "a good film"]
    with pytest.raises(InputError, match="padding=True"):
        tokenizer(texts, return_tensors="np")
    batch = tokenizer(texts, padding=True, return_tensors="np")
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch.input_ids.dtype == np.int64
    assert tokenizer(texts, padding=True, pad_to_multiple_of=8, return_tensors="pt").input_ids.shape == (2, 8)
    assert tokenizer(texts, padding="max_length", max_length=7, return_tensors="np").input_ids.shape == (2, 7)
    collated = tokenizer.pad([tokenizer(text) for text in texts], return_tensors="pt")
    assert collated["input_ids"].tolist() == batch.input_ids.tolist()
    assert tokenizer("good").input_ids == tokenizer(texts).input_ids[0], "the padding of one call stays in it"


def test_truncation_and_overflow(tokenizer):
    text = "a good film is a good story"
    assert len(tokenizer.encode(text, truncation=True, max_length=5)) == 5
    pair = tokenizer("good film", text, truncation="only_second", max_length=8)
    assert pair.sequence_ids().count(0) == 2
    windows = tokenizer(text, truncation=True, max_length=5, stride=1, return_overflowing_tokens=True)
    assert windows["overflow_to_sample_mapping"] == [0, 0, 0]
    assert [tokenizer.decode(ids, skip_special_tokens=True) for ids in windows.input_ids] == [
        "a good film",
        "film is a",
        "a good story",
    ]


def test_a_length_alone_cuts_as_in_transformers(tokenizer, caplog):
    whole = tokenizer("a good film and a bad one").input_ids
    for _ in range(2):
        assert tokenizer("a good film and a bad one", max_length=4).input_ids == [*whole[:3], whole[-1]]
    assert caplog.text.count("texts are cut to max_length=4, as with truncation=True") == 1
    assert tokenizer("a good film and a bad one", max_length=4, truncation=False).input_ids == whole
    assert tokenizer("a good film and a bad one", max_length=4, padding="max_length").input_ids == whole


@pytest.mark.parametrize(
    "options",
    [
        *({"do_lower_case": 1}, {"model_max_length": "512x"}, {"model_max_length": float("inf")}),
        *({"never_split": float("nan")}, {"unk_token": 5}),
    ],
)
def test_stored_options_of_another_type_are_explained(options, tokenizer, tmp_path):
    tokenizer.save_vocabulary(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    with pytest.raises(CheckpointError, match="the tokenizer's options make no sense: "):
        DistilBertTokenizer.from_pretrained(tmp_path)


def test_split_words_and_offsets(tokenizer):
    encoded = tokenizer(["good", "films"], is_split_into_words=True)
    assert encoded.word_ids() == [None, 0, 1, 1, None]
    assert tokenizer("good films", return_offsets_mapping=True)["offset_mapping"] == [
        (0, 0),
        (0, 4),
        (5, 9),
        (9, 10),
        (0, 0),
    ]


def test_bad_arguments_are_explained(tokenizer, tmp_path):
    for arguments, options in (
        ((None,), {}),
        ((3,), {}),
        (([3],), {}),
        (("good",), {"padding": "most"}),
        (("good", "bad"), {"truncation": True, "max_length": 5, "stride": 2}),
        (("good", "bad"), {"truncation": "only_second", "max_length": 4}),
        (("good",), {"truncation": True, "max_length": 1}),
        (("good a the", "bad bad bad"), {"truncation": True, "max_length": 6, "stride": 2}),
        (("good",), {"truncation": "all"}),
        (("good",), {"return_tensors": "mx"}),
        ((["good", "bad"], ["film"]), {}),
    ):
        with pytest.raises(InputError):
            tokenizer(*arguments, **options)
    with pytest.raises(CheckpointError, match=r"vocab\.txt"):
        DistilBertTokenizer.from_pretrained(tmp_path)


def test_save_load_copy_and_train(tokenizer, tmp_path):
    text = "A wonderful film!"
    tokenizer.save_pretrained(tmp_path)
    for again in (
        DistilBertTokenizerFast.from_pretrained(tmp_path),
        copy.deepcopy(tokenizer),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert again(text).input_ids == tokenizer(text).input_ids
        assert again.model_max_length == 40
    assert (
        DistilBertTokenizer.from_pretrained(tmp_path, do_lower_case=False)(text).input_ids[1] == tokenizer.unk_token_id
    )
    assert tokenizer.train_new_from_iterator(["zebra zebra"] * 3, vocab_size=40).tokenize("zebra") == ["zebra"]
    assert tokenizer.add_tokens(["quokka"]) == 1
    assert len(tokenizer) == tokenizer.vocab_size + 1
    assert tokenizer.tokenize("a quokka") == ["a", "quokka"]


def test_basic_tokenization_can_be_left_out(tmp_path):
    tokenizer = DistilBertTokenizer(FOLDER / "vocab.txt", do_basic_tokenize=False)
    assert tokenizer.tokenize("a Film films good!") == ["a", "[UNK]", "film", "##s", "[UNK]"]
    (tmp_path / "vocab.txt").write_text((FOLDER / "vocab.txt").read_text() + "Mc-Fly\n")
    tokenizer = DistilBertTokenizer(tmp_path / "vocab.txt", never_split=["Mc-Fly"])
    assert tokenizer.tokenize("a Mc-Fly film") == ["a", "Mc-Fly", "film"]
    with pytest.raises(InputError, match="zebra"):
        DistilBertTokenizer(FOLDER / "vocab.txt", never_split=["zebra"])


def test_the_first_text_needs_no_number(tokenizer):
    encoded = tokenizer(["good films", "bad"])
    assert encoded.char_to_token(9) == encoded.char_to_token(0, 9) == 3
    assert encoded.token_to_chars(3).start == 9
    assert encoded.word_to_tokens(1).end == 4


def test_lists_become_tensors_in_place(tokenizer):
    encoded = tokenizer("good")
    assert encoded.convert_to_tensors("pt", prepend_batch_axis=True) is encoded
    assert encoded.input_ids.shape == (1, 3)
    before = encoded.input_ids
    assert encoded.convert_to_tensors("pt").input_ids is before
    padded = tokenizer.pad([{"input_ids": [2], "labels": 0.5}], return_tensors="pt")
    assert (padded.labels.item(), padded.labels.dtype) == (0.5, torch.float32)
    with pytest.raises(InputError, match="details"):
        padded.word_ids()


def test_special_tokens_can_be_added(tokenizer, tmp_path):
    assert tokenizer.add_special_tokens({"additional_special_tokens": ["<name>"]}) == 1
    assert tokenizer.tokenize("good <name>") == ["good", "<name>"]
    tokenizer.save_pretrained(tmp_path)
    assert DistilBertTokenizer.from_pretrained(tmp_path).tokenize("good <name>") == ["good", "<name>"]
    assert tokenizer.save_vocabulary(tmp_path, "old") == (str(tmp_path / "old-vocab.txt"),)
    assert (tmp_path / "old-vocab.txt").read_text() == (FOLDER / "vocab.txt").read_text()


def test_berts_tokenizer_tells_segments_apart(tmp_path):
    encoded = BertTokenizer(FOLDER / "vocab.txt")("good films", "bad")
    assert list(encoded) == ["input_ids", "token_type_ids", "attention_mask"]
    assert encoded.token_type_ids == [0, 0, 0, 0, 0, 1, 1]
    BertTokenizerFast(FOLDER / "vocab.txt").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "BertTokenizer"
    assert BertTokenizer.from_pretrained(tmp_path)("good").token_type_ids == [0, 0, 0]
