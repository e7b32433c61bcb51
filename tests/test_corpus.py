"""What distillation trains on: texts to shards, also through crashes; masking; batches, also for several ranks."""

import errno
import gzip
import json
import pickle
import random

import numpy as np
import pytest
from conftest import GOLDEN
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from distilbert.cli import make_app
from distilbert.core.errors import CheckpointError, InputError
from distilbert.core.records import Layout
from distilbert.core.tokenizer import DistilBertTokenizer
from distilbert.distillation import corpus as module
from distilbert.distillation.batches import LengthGroupedBatches, collate, padded_length
from distilbert.distillation.corpus import Corpus, fingerprint, prepare_corpus
from distilbert.distillation.masking import mask_tokens, token_weights

WORDS = ["a", "wonderful", "film", "is", "mess", "xyz"]  # the last is unknown
LIMITS = {"max_length": 9, "min_tokens": 5, "max_unknown": 1 / 3, "shard_tokens": 60}


@pytest.fixture(scope="module")
def tokenizer():
    return DistilBertTokenizer.from_pretrained(GOLDEN / "distilbert-seqcls")


@pytest.fixture
def texts():
    choose = random.Random(0)
    return [" ".join(choose.choices(WORDS, k=choose.randrange(30))) for _ in range(60)]


@pytest.fixture
def inputs(texts, tmp_path, monkeypatch):
    """Files with the texts, of which few make a group."""
    monkeypatch.setattr(module, "GROUP_CHARACTERS", 200)
    monkeypatch.setattr(module, "flush", lambda path: None)  # the disk's time, and no machine crashes here
    (tmp_path / "one.txt").write_text("\n".join(texts[:25]))
    (tmp_path / "two.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, texts[25:])).encode()))
    return [tmp_path / "one.txt", tmp_path / "two.jsonl.gz"]


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_corpus_holds_the_texts_in_pieces(inputs, texts, tokenizer, tmp_path):
    seen = []
    summary = prepare_corpus(inputs, tmp_path / "out", tokenizer, progress=lambda *told: seen.append(told), **LIMITS)
    expected, dropped = [], {"short": 0, "unknown": 0}
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for start in range(0, max(len(ids), 1), 7):
            piece = [tokenizer.cls_token_id, *ids[start : start + 7], tokenizer.sep_token_id]
            if len(piece) < 5:
                dropped["short"] += 1
            elif piece.count(tokenizer.unk_token_id) >= len(piece) / 3:
                dropped["unknown"] += 1
            else:
                expected.append(piece)
    corpus = Corpus(tmp_path / "out")
    assert [row.tolist() for row in corpus] == expected
    assert min(dropped.values()) > 2
    tokens = sum(map(len, expected))
    assert summary == {
        "texts": 60,
        "sequences": len(expected),
        "tokens": tokens,
        "shards": len(corpus._tokens),
        "dropped": dropped,
    }
    assert summary["shards"] > 5
    assert corpus.lengths.tolist() == list(map(len, expected))
    assert corpus.counts.tolist() == np.bincount(np.concatenate(expected), minlength=len(tokenizer)).tolist()
    assert set(corpus.special_ids) == set(tokenizer.all_special_ids)
    size = sum(path.stat().st_size for path in inputs)
    assert seen[-1][:2] == (size, size) and seen == sorted(seen)

    assert corpus[0].base is not None and corpus[0].dtype == np.uint16 and not corpus[0].flags.writeable
    assert corpus[-1].tolist() == expected[-1] and [row.tolist() for row in corpus[1:3]] == expected[1:3]
    with pytest.raises(IndexError):
        corpus[len(corpus)]
    copied = pickle.dumps(corpus)
    assert len(copied) < 500 and pickle.loads(copied)[3].tolist() == expected[3]


def test_a_very_long_line_is_taken_as_several_texts(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TEXT_CHARACTERS", 100)
    (tmp_path / "in.txt").write_text("a wonderful film " * 50 + "x" * 250)
    prepare_corpus([tmp_path / "in.txt"], tmp_path / "out", tokenizer, max_length=512, min_tokens=0)
    ordinary = [token for row in Corpus(tmp_path / "out") for token in row[1:-1] if token != tokenizer.unk_token_id]
    assert ordinary == tokenizer("a wonderful film " * 50, add_special_tokens=False)["input_ids"]


def test_large_vocabularies_take_more_bytes(tokenizer, tmp_path):
    words = [*tokenizer.all_special_tokens, "a", "film", *(f"word{number}" for number in range(1 << 16))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    larger = DistilBertTokenizer(tmp_path / "vocab.txt")
    (tmp_path / "in.txt").write_text("a film word65535")
    prepare_corpus([tmp_path / "in.txt"], tmp_path / "out", larger, min_tokens=0)
    row = Corpus(tmp_path / "out")[0]
    assert row.dtype == np.uint32 and row.tolist() == larger("a film word65535")["input_ids"]
    assert fingerprint(larger) != fingerprint(tokenizer)


class Crash(BaseException):
    """Nothing that anybody catches."""


@pytest.mark.parametrize("is_in_place", [False, True])
def test_wherever_a_crash_comes_the_bytes_are_the_same(inputs, tokenizer, tmp_path, monkeypatch, is_in_place):
    prepare_corpus(inputs, tmp_path / "whole", tokenizer, **LIMITS)
    whole, write, crashes = content(tmp_path / "whole"), module._write, 0
    for every in (1, 2, 3, 5):  # only each third write, say, gets through, so that crashes follow on crashes
        out, left, is_complete = tmp_path / f"{every}", every, False

        def crashing_write(path, parts, out=out):
            nonlocal left, crashes
            left -= 1
            if left >= 0 or is_in_place:
                write(path, parts)
            if left < 0:
                crashes += 1
                (out / ".tokens-00000.npy.1.unfinished").write_bytes(b"half")
                raise Crash

        monkeypatch.setattr(module, "_write", crashing_write)
        while not is_complete:
            try:
                prepare_corpus(inputs, out, tokenizer, **LIMITS)
                is_complete = True
            except Crash:
                if not is_complete and out.is_dir() and len(content(out)) > 2:
                    with pytest.raises(CheckpointError, match="is not complete"):
                        Corpus(out)
                left = max(every, 3)  # a shard and that it is there
        assert content(out) == whole
        monkeypatch.setattr(module, "_write", write)
    assert crashes > 15


def test_a_full_disk_is_told_and_survived(inputs, tokenizer, tmp_path, monkeypatch):
    prepare_corpus(inputs, tmp_path / "whole", tokenizer, **LIMITS)
    flush = module.flush

    def full(path):
        if "tokens-00003" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(path)

    monkeypatch.setattr(module, "flush", full)
    with pytest.raises(CheckpointError, match=r"tokens-00003.npy: cannot write: No space left on device; the same com"):
        prepare_corpus(inputs, tmp_path / "out", tokenizer, **LIMITS)
    assert not list((tmp_path / "out").glob(".*"))
    with pytest.raises(CheckpointError, match="it has 3 shards so far"):
        Corpus(tmp_path / "out")
    monkeypatch.setattr(module, "flush", flush)
    prepare_corpus(inputs, tmp_path / "out", tokenizer, **LIMITS)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_another_corpus_is_not_mixed_in(inputs, tokenizer, tmp_path):
    out = tmp_path / "out"
    prepare_corpus(inputs, out, tokenizer, **LIMITS)
    before = content(out)
    prepare_corpus(inputs, out, tokenizer, **LIMITS)
    assert content(out) == before
    for options, name in (
        (LIMITS | {"max_length": 8}, "max_length"),
        (LIMITS | {"layout": Layout(format="text")}, "layout"),
    ):
        with pytest.raises(InputError, match=f"{out}: holds a corpus made with other {name}"):
            prepare_corpus(inputs, out, tokenizer, **options)
    inputs[0].write_text("another film\n")
    with pytest.raises(InputError, match="other files"):
        prepare_corpus(inputs, out, tokenizer, **LIMITS)
    assert content(out) == before
    prepare_corpus(inputs[:1], out, tokenizer, overwrite=True, min_tokens=0)
    assert sorted(content(out)) == ["counts.npy", "meta.json", "offsets-00000.npy", "tokens-00000.npy"]
    assert len(Corpus(out)) == 1


@pytest.mark.parametrize(
    "files, options, message",
    [
        (["absent.txt"], {}, "absent.txt: no such file"),
        (["-"], {}, "-: is not a plain file; expected one that can be read again"),
        (["one.txt"], {"max_length": 11}, "max_length is 11, expected more than 2 and at least min_tokens=12"),
        (["one.txt"], {"max_length": 2, "min_tokens": 0}, "max_length is 2"),
        (["in.jsonl"], {}, "in.jsonl: record 2 is a dict, expected a text; name its field or column"),
        (["one.txt"], {"out": "."}, "holds something else than a corpus, expected a new or empty folder"),
        (["one.txt"], {"out": "one.txt"}, "one.txt: is a file, expected a folder to write"),
    ],
)
def test_what_cannot_be_done_is_told(files, options, message, inputs, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text('"a"\n{"text": "b"}\n')
    with pytest.raises(InputError, match=message):
        prepare_corpus(files, options.pop("out", "out"), tokenizer, **options)


def change(name, value):
    def damage(folder):
        meta = json.loads((folder / "meta.json").read_text())
        place = meta["configuration"] if name in meta["configuration"] else meta
        place[name] = value
        (folder / "meta.json").write_text(json.dumps(meta))

    return damage


def store(name, array):
    return lambda folder: np.save(folder / name, array, allow_pickle=True)


def cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


@pytest.mark.parametrize(
    "damage",
    [
        change("format", 2),
        change("complete", "yes"),
        change("shards", [{"sequences": 10**30, "tokens": 1}]),
        change("shards", [{"sequences": -1, "tokens": 1}]),
        change("shards", [{"sequences": 0, "tokens": 0}]),
        change("shards", {"sequences": 1}),
        change("vocabulary_size", 98),
        change("vocabulary_size", 1 << 40),
        change("vocabulary_size", None),
        change("special_ids", [97]),
        change("special_tokens", {"pad_token": 97}),
        change("special_tokens", []),
        change("max_length", 5),
        change("dropped", 3),
        change("configuration", []),
        change("more", 1),
        cut("meta.json", 30),
        cut("meta.json", 0),
        lambda folder: (folder / "meta.json").write_text("[" * 100_000),
        lambda folder: (folder / "meta.json").write_bytes(b"\xff"),
        lambda folder: (folder / "meta.json").unlink(),
        cut("tokens-00000.npy", 150),
        cut("tokens-00000.npy", 20),
        cut("offsets-00000.npy", 0),
        lambda folder: (folder / "offsets-00001.npy").unlink(),
        store("tokens-00000.npy", np.zeros(5, np.uint16)),
        store("tokens-00000.npy", np.zeros((2, 2), np.uint16)),
        store("tokens-00000.npy", np.array([print])),
        store("offsets-00000.npy", np.zeros(5, np.int64)),
        store("counts.npy", np.zeros(97)),
    ],
)
def test_damage_is_refused(damage, inputs, tokenizer, tmp_path):
    prepare_corpus(inputs, tmp_path / "out", tokenizer, **LIMITS)
    damage(tmp_path / "out")
    with pytest.raises(CheckpointError, match=str(tmp_path / "out")):
        Corpus(tmp_path / "out")


def test_offsets_are_not_trusted(inputs, tokenizer, tmp_path):
    prepare_corpus(inputs, tmp_path / "out", tokenizer, **LIMITS)
    path = tmp_path / "out" / "offsets-00001.npy"
    good = np.load(path)
    for index, value in ((0, 1), (-1, good[-1] + 1), (3, good[2]), (3, 1 << 63), (2, good[1] - 1)):
        bad = good.copy()
        bad[index] = value
        np.save(path, bad)
        with pytest.raises(CheckpointError, match=r"offsets-00001\.npy: expected offsets that rise from 0 to"):
            Corpus(tmp_path / "out")


def command(*arguments):
    return CliRunner().invoke(make_app(["prepare-corpus", "run"]), ["prepare-corpus", *map(str, arguments)])


def test_the_command(inputs, tokenizer, tmp_path):
    path = GOLDEN / "distilbert-seqcls"
    arguments = (*inputs, tmp_path / "out", "--tokenizer", path, "--min-tokens", 5, "--max-length", 9)
    done = command(*arguments, "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["texts"] == 60
    assert json.loads(done.stdout)["sequences"] == len(Corpus(tmp_path / "out"))
    shown = command(*arguments)
    assert shown.exit_code == 0 and "dropped: unknown" in shown.stdout
    assert command(*arguments, "--max-unknown", 0.2).exit_code == 1
    assert command(*arguments, "--max-unknown", 0.2, "--overwrite").exit_code == 0
    assert command(inputs[0]).exit_code == 2
    assert "After a crash" in command("--help").output


# Masking

SPECIAL_IDS = [0, 1, 2, 3, 4]
V = 50
PREDICTED = 103


def batch(rows=200, length=50):
    rng = np.random.default_rng(0)
    ids = rng.choice(V, (rows, length), p=np.arange(1, V + 1) / (V * (V + 1) / 2))
    ids[:, 0], ids[:, -5:] = 2, 0
    return ids


def test_masking_follows_its_definition():
    ids = batch()
    original = ids.copy()
    weights = token_weights(np.bincount(ids.ravel(), minlength=V), SPECIAL_IDS)
    inputs, labels = mask_tokens(ids, weights, 3, rng=np.random.default_rng(7))
    np.testing.assert_array_equal(ids, original)
    is_special = np.isin(ids, SPECIAL_IDS)
    is_chosen = labels != -100
    assert is_chosen.sum() == np.ceil(0.15 * (~is_special).sum())
    assert not (is_chosen & is_special).any()
    np.testing.assert_array_equal(labels[is_chosen], ids[is_chosen])
    np.testing.assert_array_equal(inputs[~is_chosen], ids[~is_chosen])
    is_hidden, is_same = (inputs == 3)[is_chosen], (inputs == ids)[is_chosen]
    assert is_hidden.mean() == pytest.approx(0.8, abs=0.04)
    assert is_same.mean() == pytest.approx(0.1 + 0.1 / 45, abs=0.03)
    replaced = inputs[is_chosen][~is_hidden & ~is_same]
    assert not np.isin(replaced, SPECIAL_IDS).any() and len(set(replaced)) > 35
    assert inputs.dtype == labels.dtype == ids.dtype and inputs.shape == labels.shape == ids.shape

    again = mask_tokens(ids, weights, 3, rng=np.random.default_rng(7))
    np.testing.assert_array_equal(again, (inputs, labels))
    other = mask_tokens(ids, weights, 3, rng=np.random.default_rng(8))
    assert (other[1] != labels).any()


def test_tokens_are_chosen_one_after_the_other_in_proportion():
    """Two of four are chosen: the probabilities of all pairs, by their definition."""
    weights = np.array([0, 1.0, 2.0, 3.0, 6.0])
    ids = np.array([[0, 1, 2, 3, 4]])
    rng, found, draws = np.random.default_rng(0), np.zeros((5, 5)), 20_000
    for _ in range(draws):
        _, labels = mask_tokens(ids, weights, 0, rng=rng, mask_probability=0.5)
        first, second = np.flatnonzero(labels[0] != -100)
        found[first, second] += 1 / draws
    share = weights / weights.sum()
    for first in range(1, 5):
        for second in range(first + 1, 5):
            expected = share[first] * share[second] * (1 / (1 - share[first]) + 1 / (1 - share[second]))
            assert found[first, second] == pytest.approx(expected, abs=0.015)


def test_rare_tokens_weigh_more():
    weights = token_weights(np.array([9, 9, 9, 9, 9, 0, 1, 100, 10**6], np.uint64), SPECIAL_IDS)
    np.testing.assert_allclose(weights, [0, 0, 0, 0, 0, 1, 1, 100**-0.7, 1e6**-0.7])


def test_masking_takes_every_batch():
    weights = token_weights(np.ones(V), SPECIAL_IDS)
    for ids in (np.zeros((2, 3), np.int64), np.zeros((0, 4), np.int64)):
        inputs, labels = mask_tokens(ids, weights, 3, rng=np.random.default_rng(0))
        assert (inputs == ids).all() and (labels == -100).all()
    ids = np.full((1, 1), 9)
    assert mask_tokens(ids, weights, 3, rng=np.random.default_rng(0))[1].item() == 9
    for share, expected in ((1.0, 3), (0.0, 9)):
        options = {"mask_probability": 1, "mask_share": share, "random_share": 0}
        assert (
            mask_tokens(np.full((3, 4), 9), weights, 3, rng=np.random.default_rng(0), **options)[0] == expected
        ).all()
    for wrong in (V, -1):
        with pytest.raises(InputError, match="input_ids has the values"):
            mask_tokens(np.array([[5, wrong]]), weights, 3, rng=np.random.default_rng(0))


# Batches


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(1, 70), max_size=200),
    st.integers(1, 5),
    st.one_of(
        st.tuples(st.just("batch_size"), st.integers(1, 9)), st.tuples(st.just("max_tokens"), st.integers(72, 400))
    ),
    st.integers(0, 3),
    st.integers(0, 99),
)
@example([9] * 5, 2, ("batch_size", 2), 0, 1)  # less than a sequence for each rank is left
@example([70] * 2 + [9] * 17, 2, ("max_tokens", 72), 0, 1)
def test_each_rank_has_its_own_sequences_and_all_have_all(lengths, world_size, limit, epoch, start):
    lengths = np.array(lengths, np.uint32)
    options = {limit[0]: limit[1], "world_size": world_size, "seed": 5}
    try:
        ranks = [LengthGroupedBatches(lengths, rank=rank, **options) for rank in range(world_size)]
    except InputError as error:
        assert "cannot be shared out" in str(error)
        # Only where it cannot be: too few, or batches of one sequence.
        assert len(lengths) < world_size or limit[1] == 1 or (limit[0] == "max_tokens" and limit[1] < 2 * 72)
        return
    batches = [list(rank.epoch(epoch)) for rank in ranks]
    assert {len(rank) for rank in batches} == {len(ranks[0])}
    everything = np.concatenate([np.zeros(0, np.int64), *(batch for rank in batches for batch in rank)])
    np.testing.assert_array_equal(np.sort(everything), np.arange(len(lengths)))
    for step in zip(*batches, strict=True):
        sizes = [len(batch) for batch in step]
        assert min(sizes) > 0 and max(sizes) - min(sizes) <= 1
        for batch in step:
            width = collate([np.zeros(lengths[index]) for index in batch], 0)["input_ids"].shape[1]
            assert (len(batch) if limit[0] == "batch_size" else len(batch) * width) <= limit[1]
    start %= len(batches[0]) + 1
    resumed = list(ranks[-1].epoch(epoch, start))
    assert [batch.tolist() for batch in resumed] == [batch.tolist() for batch in batches[-1][start:]]


def test_batches_hold_one_length_and_differ_from_epoch_to_epoch():
    lengths = np.random.default_rng(0).integers(1, 129, 3000)
    batches = LengthGroupedBatches(lengths, batch_size=20)
    first, second = list(batches.epoch(0)), list(batches.epoch(1))
    assert sum(len(batch) < 20 for batch in first) == 0 and len(first) == 150
    padded = sum(len(batch) * lengths[batch].max() for batch in first)
    assert padded < 1.1 * lengths.sum()
    assert {tuple(sorted(batch)) for batch in first}.isdisjoint(tuple(sorted(batch)) for batch in second)
    means = [lengths[batch].mean() for batch in first]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3
    other = next(LengthGroupedBatches(lengths, batch_size=20, seed=1).epoch(0))
    assert other.tolist() != first[0].tolist()


def test_batches_padded_to_buckets_keep_within_their_tokens():
    lengths = np.random.default_rng(0).integers(1, 129, 3000)
    buckets = (16, 64, 128)
    batches = list(LengthGroupedBatches(lengths, max_tokens=512, buckets=buckets).epoch(0))
    shapes = {(len(batch), padded_length(lengths[batch].max(), buckets)) for batch in batches}
    assert max(rows * width for rows, width in shapes) <= 512
    # One program for each bucket; and a batch that begins in one may end in the next, or the epoch.
    assert {(4, 128), (8, 64), (32, 16)} <= shapes and len(shapes) <= 4


def test_a_limit_that_is_no_multiple_takes_as_many_tokens_as_it_has():
    batches = LengthGroupedBatches(np.array([50, 49, 3]), max_tokens=50, buckets=(8, 16, 50)).epoch(0)
    assert sorted(map(list, batches)) == [[0], [1], [2]]


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "either batch_size or max_tokens"),
        ({"batch_size": 2, "max_tokens": 99}, "either batch_size or max_tokens"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_tokens": 15}, "max_tokens is 15, expected at least 16 for the longest sequence"),
        ({"batch_size": 2, "rank": 2, "world_size": 2}, "rank is 2, expected 0 to 1"),
        ({"batch_size": 2, "world_size": 4}, "3 sequences cannot be shared out among 4 ranks"),
        ({"batch_size": 1, "world_size": 2}, "3 sequences cannot be shared out among 2 ranks"),
    ],
)
def test_batches_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        LengthGroupedBatches(np.array([3, 9, 5]), **options)


def test_collating_pads_behind():
    rows = [np.array([5, 6, 7], np.uint16), np.array([8], np.uint16)]
    found = collate(rows, 1, pad_to_multiple_of=1)
    assert found["input_ids"].tolist() == [[5, 6, 7], [8, 1, 1]] and found["input_ids"].dtype == np.int64
    assert found["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert collate(rows, 1)["input_ids"].shape == (2, 8)
