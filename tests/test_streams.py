"""What ``distilbert run`` reads and writes: formats, compression, damage, and going on after a crash."""

import csv
import gzip
import json

import numpy as np
import pytest
import zstandard
from conftest import GOLDEN
from typer.testing import CliRunner

from distilbert.cli import make_app
from distilbert.cli.answers import Output
from distilbert.core import records
from distilbert.core.errors import InputError
from distilbert.core.records import Layout, count_records, open_records
from distilbert.pipelines import pipeline

MODEL = GOLDEN / "distilbert-seqcls"
TEXTS = ["a wonderful film", 'the "plot", is a mess', "", "bad\u2028 film"]


def read(path, size=2, **layout):
    with open_records(str(path), size, Layout(**layout)) as windows:
        return [record for window in windows for record in window]


def lines_of(records):
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.mark.parametrize("suffix, pack", [("", bytes), (".gz", gzip.compress), (".zst", zstandard.compress)])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "tsv"])
def test_every_format_gives_the_same_texts(kind, suffix, pack, tmp_path):
    texts = TEXTS if kind != "tsv" else [text.replace('"', "'") for text in TEXTS]
    path, layout = tmp_path / f"in.{kind}{suffix}", {}
    if kind == "txt":
        content = "\n".join(texts)
    elif kind == "jsonl":
        content, layout = "\n" + lines_of({"review": text} for text in texts), {"text_field": "review"}
    else:
        rows = [["id", "review"], *([str(number), text] for number, text in enumerate(texts))]
        quoted = '"{}"' if kind == "csv" else "{}"
        separator = "," if kind == "csv" else "\t"
        cells = [separator.join(quoted.format(cell.replace('"', '""')) for cell in row) for row in rows]
        content, layout = "\r\n".join(cells), {"column": "review"}
    path.write_bytes(pack(content.encode()))
    assert read(path, **layout) == texts
    assert count_records(str(path), Layout(**layout)) == len(texts)


def test_a_compressed_bomb_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "LINE_BYTES", 1 << 20)
    for name, pack in (("in.gz", gzip.compress), ("in.zst", zstandard.compress)):
        (tmp_path / name).write_bytes(pack(bytes(1 << 25)))
        with pytest.raises(InputError, match="has a line of more than 1 MiB"):
            read(tmp_path / name)


def test_several_frames_are_one_text(tmp_path):
    for name, pack in (("in.gz", gzip.compress), ("in.zst", zstandard.compress)):
        (tmp_path / name).write_bytes(pack(b"a film\nb") + pack(b"ad\n"))
        assert read(tmp_path / name) == ["a film", "bad"]


def test_rows_and_objects_are_given_whole(tmp_path):
    (tmp_path / "in.csv").write_text('\n\nquestion,context\nwho?,"one\nor two"\n')
    assert read(tmp_path / "in.csv") == [{"question": "who?", "context": "one\nor two"}]
    (tmp_path / "in.jsonl").write_text(lines_of(["a", {"text": "b"}, ["c", "d"]]))
    assert read(tmp_path / "in.jsonl") == ["a", {"text": "b"}, ["c", "d"]]
    (tmp_path / "plain").write_text("x,1\ny,2\n")
    assert read(tmp_path / "plain", column="2") == ["1", "2"]
    assert read(tmp_path / "plain", column="1", header=True) == ["y"]


@pytest.mark.parametrize(
    "name, content, layout, message",
    [
        ("in.jsonl", b'{"a": 1}\n{"a": ', {}, "in.jsonl:2: is not valid JSON"),
        ("in.jsonl", b'{"a": 1}\n', {"text_field": "b"}, "in.jsonl:1: has no field 'b', only a"),
        ("in.jsonl", b"3\n", {"text_field": "b"}, "has no field 'b', only a JSON int"),
        ("in.jsonl", b"[" * 100_000, {}, "is not valid JSON"),
        ("in.csv", b"a,b\n1,2,3\n", {}, "in.csv:2: has 3 columns, expected 2"),
        ("in.csv", b"a,b\n", {"column": "3"}, "in.csv:1: has 2 columns, expected a column 3"),
        ("in.csv", b"a,b\n1,2\n", {"column": "c"}, "in.csv:2: has no field 'c', only a, b"),
        ("in.csv", b"a\n", {"header": False}, "name the column by its number"),
        ("in.gz", gzip.compress(b"a film\n" * 9999)[:-20], {}, "in.gz: is not complete, or damaged"),
        ("in.gz", b"no gzip", {}, "in.gz: is not complete, or damaged"),
        ("in.zst", b"no zstd", {}, "in.zst: is not complete, or damaged"),
        ("in.ZST", zstandard.compress(b"a film\n" * 9999)[:-20], {}, "in.ZST: is not complete, or damaged"),
        ("in.csv", b'a\n"b\nc\n', {}, "in.csv:2: is not valid csv"),
        ("in.csv", b"a,a\n1,2\n", {}, "in.csv:1: two columns are called 'a'"),
        ("in.csv", b"a\n1\n", {"column": "9" * 5000}, "has no field '999"),
        ("in.bz2", b"BZh", {}, "in.bz2: is not read here"),
        ("in.csv", b"a\n", {"text_field": "a"}, "a text field belongs to jsonl, the format is csv"),
        ("in.jsonl", b"a\n", {"column": "a"}, "a column or header belongs to csv and tsv, the format is jsonl"),
    ],
)
def test_damage_is_named_with_its_line(name, content, layout, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path / name, **layout)


LABELS = [{"label": f'l"{number}\n', "score": number / 8} for number in range(6)]
ENTITIES = [[], [{"word": "a", "start": 0}], [{"word": "b", "start": 1}, {"word": "c", "start": 3}], [], [], []]


def write(path, answers, **options):
    first = next((entry for answer in answers for entry in ([answer] if isinstance(answer, dict) else answer)), None)
    columns = tuple(first) if isinstance(first, dict) else ()
    with Output(str(path), None, columns, **options).open() as writer:
        for answer in answers[writer.done :]:
            writer.write([""], [answer])


@pytest.mark.parametrize(
    "name, answers",
    [
        ("out.jsonl", LABELS),
        ("out.csv", LABELS),
        ("out.jsonl", ENTITIES),
        ("out.csv", ENTITIES),
        ("out.npy", list(np.arange(24, dtype=np.float32).reshape(6, 4))),
    ],
)
def test_resuming_loses_and_doubles_nothing(name, answers, tmp_path):
    """Wherever the crash came, also within a line."""
    whole, path = tmp_path / f"whole.{name}", tmp_path / name
    write(whole, answers)
    content = whole.read_bytes()
    for size in range(len(content) + 1):
        partial = path.with_name(f"{name}.partial")
        partial.write_bytes(content[:size])
        write(path, answers, resume=True)
        assert path.read_bytes() == content
        assert not partial.exists()
        path.unlink()
    path.write_bytes(content[:-3])  # what a shell's > left
    write(path, answers, resume=True)
    assert path.read_bytes() == content


def test_a_failure_keeps_the_answers_and_the_old_file(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("old\n")
    with pytest.raises(ZeroDivisionError), Output(str(path), None, ("label", "score")).open() as writer:
        writer.write(["", ""], LABELS[:2])
        raise ZeroDivisionError
    assert path.read_text() == "old\n"
    with pytest.raises(InputError, match=r"out.jsonl.partial is there, .* go on with --resume, or delete it"):
        write(path, LABELS)
    write(path, LABELS, resume=True)
    assert [json.loads(line) for line in path.read_text().splitlines()] == LABELS


def test_a_run_that_began_meanwhile_is_left_alone(tmp_path, caplog):
    late = Output(str(tmp_path / "out.jsonl"), None, ("label", "score"))
    with Output(str(tmp_path / "out.jsonl"), None, ("label", "score")).open() as writer:
        with pytest.raises(InputError, match=r"out.jsonl.partial is there by now, of another run"), late.open():
            pass
        writer.write([""] * len(LABELS), LABELS)
        again = Output(str(tmp_path / "out.jsonl"), None, ("label", "score"), resume=True)
        with pytest.raises(InputError, match=r"out.jsonl.partial: another run writes there"), again.open():
            pass
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == LABELS
    assert not caplog.records


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("out.jsonl", b"input,label,score\n1,A,0.5\n", "expected JSON to go on with"),
        ("out.csv", b'{"label": "x"}\n', "expected input,label,score to go on with"),
        ("out.csv", b"input,label,score\nA,A,0.5\n", "expected one of input,label,score"),
        ("out.npz", b"PK", "only jsonl, csv and npy can be resumed"),
        ("out.npy", b"x" * 200, "is no npy file"),
        ("out.npy", None, "is an array .* of float64"),
    ],
)
def test_what_cannot_be_gone_on_with_stays_as_it_is(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content or b"")
    if content is None:
        np.save(path, np.zeros((1, 7)))
    before = path.read_bytes()
    answers = [np.zeros(4, np.float32)] if name.endswith(("npy", "npz")) else LABELS
    with pytest.raises(InputError, match=message):
        write(path, answers, resume=True)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_arrays_and_tables(tmp_path):
    vectors = [np.full((length, 3), length, np.float32) for length in (2, 5)]
    write(tmp_path / "out.npz", vectors)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        for name, vector in zip(("0", "1"), vectors, strict=True):
            np.testing.assert_array_equal(found[name], vector)
    ranking = {"sequence": "a", "labels": ["x", "y"], "scores": [0.75, 0.25]}
    filling = [{"score": 1}]
    for columns, answers, expected in (
        (("sequence", "label", "score"), [ranking], ["input,sequence,label,score", "1,a,x,0.75", "1,a,y,0.25"]),
        (("mask", "score"), [filling, [filling, filling]], ["input,mask,score", "1,0,1", "2,0,1", "2,1,1"]),
        (("word",), [[]], ["input,word"]),
    ):
        with Output(str(tmp_path / "out.csv"), None, columns).open() as writer:
            writer.write([""] * len(answers), answers)
        assert (tmp_path / "out.csv").read_text().splitlines() == expected


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("new.csv", {}, "features make no table"),
        ("new.jsonl.gz", {}, "answers are not compressed"),
        ("absent/new.jsonl", {}, "expected the name of a file in a folder that is there"),
        ("", {}, "expected the name of a file"),
        ("-", {"resume": True}, "resume needs an output file"),
        ("new.jsonl", {"pretty": True}, "pretty prints tables on standard output"),
        ("new.npy", {"columns": ("label",)}, "npy is for features"),
        ("input", {"source": "input"}, "is the input, and would be overwritten"),
    ],
)
def test_outputs_that_make_no_sense(name, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "input").write_text("good\n")
    with pytest.raises(InputError, match=message):
        Output(name, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["input"]


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "real.jsonl").write_text("old\n")
    (tmp_path / "link.jsonl").symlink_to("real.jsonl")
    write(tmp_path / "link.jsonl", LABELS[:1])
    assert (tmp_path / "link.jsonl").is_symlink()
    assert json.loads((tmp_path / "real.jsonl").read_text()) == LABELS[0]


def run(*arguments, **options):
    return CliRunner().invoke(make_app(), ["run", "--model", str(MODEL), "--task", *map(str, arguments)], **options)


def test_the_command_reads_and_writes_them(tmp_path):
    expected = pipeline("text-classification", MODEL, device="cpu")(TEXTS, top_k=None)
    (tmp_path / "in.csv").write_text(
        "n,text\n" + "".join(f'1,"{text.replace(chr(34), chr(34) * 2)}"\n' for text in TEXTS)
    )
    arguments = ("text-classification", "--input", tmp_path / "in.csv", "--top-k", 0)
    assert run(*arguments, "--output", tmp_path / "out.csv").exit_code == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [entry["label"] for answer in expected for entry in answer]
    assert [row["input"] for row in rows] == [str(number) for number in (1, 2, 3, 4) for _ in range(3)]
    shown = run(*arguments, "--pretty")
    assert shown.exit_code == 0 and f"{expected[0][0]['score']:.4f}" in shown.stdout


def test_errors_name_the_input_and_the_file(tmp_path, caplog):
    (tmp_path / "in.jsonl").write_text(lines_of(["good", "bad", 3, "good"]))
    (tmp_path / "out.jsonl").write_text('{"label": "LABEL_0", "score": 0.5}\n')
    arguments = ("text-classification", "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    assert run(*arguments, "--resume").exit_code == 1
    assert "input 3: text is of type int, expected str" in caplog.text
    caplog.clear()
    assert run("text-classification", "--input", tmp_path / "absent", "--output", tmp_path / "new").exit_code == 1
    assert f"{tmp_path / 'absent'}: cannot be read: No such file" in caplog.text
    (tmp_path / "many.jsonl").write_text("{}\n" * 9)
    done = run("text-classification", "good", "--output", tmp_path / "many.jsonl", "--resume")
    assert done.exit_code == 1 and "has answers for 9 inputs, of which only 1 are there" in caplog.text


def test_terminals_are_not_steered_by_texts():
    shown = run("text-classification", "--pretty", "bad \x1b[31mred\x1b]0;x\x07 :heart:").stdout
    assert "\x1b]0" not in shown and "\x07" not in shown and ":heart:" in shown and "\u241b[31mred" in shown


def test_a_head_of_another_task_is_refused(caplog):
    assert CliRunner().invoke(make_app(), ["run", "--task", "ner", "--model", str(MODEL), "a film"]).exit_code == 1
    assert "is a DistilBertForSequenceClassification, expected a DistilBertForTokenClassification" in caplog.text


def test_options_belong_to_tasks(tmp_path):
    for options, message in (
        (("--stride", 8), "--stride belongs to token-classification"),
        (("--question", "who"), "--question belongs to question-answering"),
        (("--batch-size", "none"), "is not auto"),
    ):
        done = run("text-classification", *options, "a film")
        assert done.exit_code == 2
        assert message in " ".join(done.output.replace("│", " ").split())


def test_help_shows_examples_and_completion():
    shown = run("ner", "--help").output
    assert "Examples" in shown and "--resume" in shown
    assert "--install-completion" in CliRunner().invoke(make_app(), ["--help"]).output
