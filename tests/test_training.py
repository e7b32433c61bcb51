"""Training: the same on every backend, whatever a batch is split into, and after a crash as if there had been none."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import matplotlib.image
import numpy as np
import pytest
from conftest import GOLDEN
from typer.testing import CliRunner

import distilbert
from distilbert.cli import make_app
from distilbert.core.backends import choose_backend
from distilbert.core.checkpoint import load, write_checkpoint
from distilbert.core.config import read_config
from distilbert.core.errors import CheckpointError, ConfigError, InputError
from distilbert.core.spec import DISTILBERT, parameters
from distilbert.core.tokenizer import DistilBertTokenizer
from distilbert.distillation.corpus import prepare_corpus
from distilbert.distillation.masked_texts import MaskedTexts
from distilbert.distillation.masking import IGNORED
from distilbert.training import Recipe, Settings, TaskRecipe, distill, finetune
from distilbert.training.examples import LABELLED
from distilbert.training.log import draw_curves, read
from distilbert.training.run import FOLDER
from distilbert.training.steps import Steps

BACKENDS = ("pt", "tf", "flax")
WORDS = ["a", "wonderful", "film", "is", "mess", "the", "plot", "i", "do", "not", "know"]
HEADS = {
    "sequence-classification": "seqcls",
    "multiple-choice": "choice",
    "token-classification": "tokcls",
    "question-answering": "qa",
    "masked-lm": "mlm",
}
STILL = {"dropout": 0.0, "attention_dropout": 0.0, "qa_dropout": 0.0, "seq_classif_dropout": 0.0}
QUICK = {"batch_size": 4, "max_steps": 4, "learning_rate": 1e-3, "log_every": 1}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A golden checkpoint by head, of one layer, with a tokenizer and without dropout unless asked."""
    made = {}

    def make(head, **fields):
        key = (head, *fields.items())
        if key not in made:
            made[key] = tmp_path_factory.mktemp("tiny")
            options = {"overrides": STILL | {"n_layers": 1} | fields, "ignore_mismatched_sizes": False}
            config, tensors, _ = load(
                GOLDEN / f"distilbert-{HEADS[head]}", head, config=None, family=DISTILBERT, **options
            )
            kept = {row.name: tensors[row.name] for row in parameters(config, head) if row.name in tensors}
            write_checkpoint(made[key], config, kept, head=head)
            DistilBertTokenizer.from_pretrained(GOLDEN / "distilbert-seqcls").save_pretrained(made[key])
        return made[key]

    return make


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """Drawing takes longer than most runs here."""
    monkeypatch.setattr("distilbert.training.log.draw_curves", lambda records, path: path.touch())


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Something to train each task on."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)

    def text(least=7, most=9):  # of one bucket: JAX compiles for each
        return " ".join(rng.choice(WORDS, rng.integers(least, most)))

    rows = {
        "text-classification": "\n".join(f"{text()}\t{number % 2}" for number in range(16)),
        "token-classification": "\n\n".join(
            "\n".join(f"{word}\t{'B-x' if word == 'film' else 'O'}" for word in text().split()) for _ in range(16)
        ),
        "question-answering": "\n".join(
            json.dumps({"question": "film is", "context": f"{text()} mess", "answers": {"text": ["mess"]}})
            for _ in range(16)
        ),
        "multiple-choice": "\n".join(
            json.dumps({"prompt": text(), "choices": [text(), text()], "label": number % 2}) for number in range(16)
        ),
        "fill-mask": "\n".join(text() for _ in range(16)),
        "corpus": "\n".join(text(9, 30) for _ in range(40)),
    }
    suffixes = {"text-classification": "tsv", "token-classification": "conll", "fill-mask": "txt", "corpus": "txt"}
    paths = {task: folder / f"{task}.{suffixes.get(task, 'jsonl')}" for task in rows}
    for task, content in rows.items():
        paths[task].write_text(content + "\n")
    return paths


@pytest.fixture(scope="session")
def corpus(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "corpus"
    tokenizer = DistilBertTokenizer.from_pretrained(GOLDEN / "distilbert-seqcls")
    prepare_corpus([files["corpus"]], folder, tokenizer, max_length=16, min_tokens=10)
    return folder


# Keras adds epsilon before the bias is corrected, the others after it: hence one that is next to nothing.
STRAIGHT = QUICK | {"max_steps": 6, "evaluate_every": 6, "max_gradient_norm": 0.5, "epsilon": 1e-12}


@pytest.fixture(scope="session")
def straight(tiny, corpus, tmp_path_factory):
    """By backend, where a run is that others are compared with: on one device, in one go."""
    made = {}

    def make(backend):
        if backend not in made:
            made[backend] = tmp_path_factory.mktemp("straight") / backend
            options = {"settings": Settings(**STRAIGHT), "backend": backend, "device": "cpu", "dev": corpus}
            distill(tiny("masked-lm"), made[backend], corpus, teacher=tiny("masked-lm", n_layers=2), **options)
        return made[backend]

    return make


def curve(folder, name="loss"):
    return [record[name] for record in read(folder / FOLDER) if record["kind"] == "train"]


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


class CrashError(Exception):
    pass


def crash_at(step):
    def progress(told):
        if told.step == step:
            raise CrashError

    return progress


# Steps


def test_the_learning_rate_rises_falls_and_never_is_zero():
    rates = [Settings(learning_rate=1.0, warmup=0.25).rate(step, 8) for step in range(8)]
    np.testing.assert_allclose(rates, [1 / 3, 2 / 3, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate is -1.0, expected at least 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"accumulation": 0}, "accumulation is 0, expected at least 1"),
        ({"max_tokens": 64}, "either batch_size or max_tokens"),
        ({"dtype": "float16"}, "dtype is 'float16', expected float32 or bfloat16"),
        ({"warmup": 1.0}, "warmup is 1.0, expected below 1"),
        ({"epochs": 0}, "epochs is 0, expected more"),
    ],
)
def test_settings_out_of_range(fields, message):
    with pytest.raises(ConfigError, match=message):
        Settings(**fields)


def masked_texts(recipe=None):
    tokenizer = DistilBertTokenizer.from_pretrained(GOLDEN / "distilbert-seqcls")
    rng = np.random.default_rng(1)
    lines = [" ".join(rng.choice(WORDS, rng.integers(3, 20))) for _ in range(30)]
    return MaskedTexts.of_lines(lines, recipe or Recipe(), tokenizer, 40)


def test_the_places_of_masked_texts_are_those_of_hidden_tokens():
    source = masked_texts()
    indices = np.arange(8)
    batch = source.batch(indices, np.random.default_rng(0))
    lengths = source.lengths[indices]
    found = 0
    for row, number in enumerate(indices):
        for place, label in zip(batch["positions"][row], batch["labels"][row], strict=True):
            assert (place == -1) == (label == IGNORED)
            if place >= 0:
                assert source.sequences[number][place] == label
                found += 1
    totals = {name: rows.sum() for name, rows in source.terms(batch).items()}
    assert totals == {"places": found, "masked": found, "tokens": lengths.sum()}
    # Hidden anew the next time.
    again = source.batch(indices, np.random.default_rng(1))
    assert (again["input_ids"] != batch["input_ids"]).any()


def test_the_places_of_all_tokens():
    batch = masked_texts(Recipe(masked_only=False)).batch(np.arange(8), np.random.default_rng(0))
    assert ((batch["positions"] >= 0).sum(1) == batch["attention_mask"].sum(1)).all()
    only = masked_texts().batch(np.arange(8), np.random.default_rng(0))
    assert sorted(batch["labels"][batch["labels"] != IGNORED]) == sorted(only["labels"][only["labels"] != IGNORED])


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_are_the_whole_batch_and_their_shares_add_up(parts):
    source, settings = masked_texts(), Settings(batch_size=8, epochs=2)
    whole, split = list(Steps(source, settings, 1).starting(0)), list(Steps(source, settings, parts).starting(0))
    assert len(whole) == len(split) == 8
    for one, other in zip(whole, split, strict=True):
        assert one.tokens == other.tokens
        assert len(other.parts) == parts
        for name, array in one.parts[0].arrays.items():
            np.testing.assert_array_equal(array, np.concatenate([part.arrays[name] for part in other.parts]))
        for name in ("places", "masked", "tokens"):
            assert one.parts[0].shares[name] == pytest.approx(1)
            assert sum(part.shares[name] for part in other.parts) == pytest.approx(1)


def test_steps_from_the_middle_are_the_same():
    steps = Steps(masked_texts(), Settings(batch_size=8, epochs=3), 1)
    every, rest = list(steps.starting(0)), list(steps.starting(7))
    assert [step.number for step in rest] == list(range(7, len(every)))
    for one, other in zip(every[7:], rest, strict=True):
        np.testing.assert_array_equal(one.parts[0].arrays["input_ids"], other.parts[0].arrays["input_ids"])
    assert {tuple(sorted(step.indices)) for step in every[:4]} == {
        tuple(sorted(step.indices)) for step in every[8:]
    } or (sorted(np.concatenate([step.indices for step in every[:4]])) == list(range(30)))


def test_a_batch_smaller_than_its_parts():
    with pytest.raises(ConfigError, match="batch_size is 2, expected at least 4"):
        Steps(masked_texts(), Settings(batch_size=2), 4)


# Every head on every backend


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "task", ["text-classification", "token-classification", "question-answering", "multiple-choice", "fill-mask"]
)
def test_finetuning_every_head(task, backend, tiny, files, tmp_path):
    head = distilbert.pipelines.TASKS[task].head
    settings = Settings(**QUICK | {"max_steps": 12, "learning_rate": 3e-3, "evaluate_every": 6})
    options = {"settings": settings, "backend": backend, "device": "cpu"}
    position = finetune(tiny(head), tmp_path / "out", task, files[task], dev=files[task], **options)
    assert position.step == 12 and position.best_step in (6, 12)
    losses = curve(tmp_path / "out")
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    evaluated = [record for record in read(tmp_path / "out" / FOLDER) if record["kind"] == "dev"]
    assert [record["step"] for record in evaluated] == [6, 12]
    # What is kept is the best model, loads like any other, and answers with the labels of the file.
    answer = distilbert.pipeline(task, tmp_path / "out", backend=backend, device="cpu")
    if task == "token-classification":
        assert set(answer.config.id2label.values()) == {"O", "B-x"}
    assert finetune(tiny(head), tmp_path / "out", task, files[task], dev=files[task], **options) == position  # complete


def test_curves_are_drawn(straight, tmp_path):
    draw_curves(read(straight("pt") / FOLDER), tmp_path / "curves.png")
    height, width, _ = matplotlib.image.imread(tmp_path / "curves.png").shape
    assert width > height > 800  # nine panels
    draw_curves([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "pt"])
def test_training_is_the_same_on_every_backend(backend, straight, tiny, files, tmp_path):
    for name in ("pt", backend):
        finetune(
            *(tiny("sequence-classification"), tmp_path / name, "text-classification"),
            *(files["text-classification"],),
            teacher=tiny("sequence-classification", n_layers=2),
            unlabelled=[files["fill-mask"]],
            settings=Settings(**STRAIGHT | {"evaluate_every": None}),
            backend=name,
            device="cpu",
        )
    np.testing.assert_allclose(curve(tmp_path / backend), curve(tmp_path / "pt"), rtol=2e-5)
    np.testing.assert_allclose(curve(straight(backend)), curve(straight("pt")), rtol=2e-5)
    assert {"masked_lm", "distillation", "cosine"} < set(read(straight(backend) / FOLDER)[0])


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "tf"])  # it accumulates on several devices
def test_accumulation_changes_nothing(backend, straight, tiny, corpus, tmp_path):
    options = {"settings": Settings(**STRAIGHT, accumulation=2), "backend": backend, "device": "cpu"}
    distill(tiny("masked-lm"), tmp_path / "out", corpus, teacher=tiny("masked-lm", n_layers=2), **options)
    for name in ("loss", "cosine", "gradient_norm"):
        np.testing.assert_allclose(curve(tmp_path / "out", name), curve(straight(backend), name), rtol=1e-5)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "tf"])
def test_checkpointing_of_gradients_changes_nothing(backend, tiny, corpus, tmp_path):
    for on in (False, True):
        settings = Settings(**QUICK | {"max_steps": 2}, gradient_checkpointing=on)
        distill(tiny("masked-lm"), tmp_path / str(on), corpus, settings=settings, backend=backend, device="cpu")
    np.testing.assert_allclose(curve(tmp_path / "True"), curve(tmp_path / "False"), rtol=1e-6)


@pytest.mark.parametrize(
    ("backend", "fields", "message"),
    [
        ("pt", {"model_parallel": 2}, "model_parallel is for Flax"),
        ("tf", {"sharded": True}, "sharded is for PyTorch"),
        ("tf", {"model_parallel": 2}, "model_parallel is for Flax"),
        ("tf", {"gradient_checkpointing": True}, "Keras cannot compute our layers twice"),
        ("flax", {"sharded": True}, "sharded is for PyTorch"),
        ("flax", {"model_parallel": 3}, "expected a divisor of the 1 devices"),
    ],
)
def test_settings_of_other_frameworks(backend, fields, message, tiny, corpus, tmp_path):
    settings = Settings(**QUICK, **fields)
    with pytest.raises(ConfigError, match=message):
        distill(tiny("masked-lm"), tmp_path / "out", corpus, settings=settings, backend=backend, device="cpu")


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_frozen_stays(backend, tiny, files, tmp_path):
    settings = Settings(**QUICK | {"max_steps": 2}, freeze=("words", "positions"))
    model, out = tiny("sequence-classification"), tmp_path / "out"
    finetune(
        model,
        out,
        "text-classification",
        files["text-classification"],
        settings=settings,
        backend=backend,
        device="cpu",
    )
    options = {"config": None, "overrides": {}, "ignore_mismatched_sizes": False, "family": DISTILBERT}
    before, after = (load(folder, "sequence-classification", **options)[1] for folder in (model, out))
    same = {name for name in before if (before[name] == after[name]).all()}
    assert same == {f"distilbert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position")}


# Going on after a crash


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_crashed_run_ends_as_one_that_was_not(backend, tiny, corpus, tmp_path):
    student, teacher = tiny("masked-lm", dropout=0.3), tiny("masked-lm", n_layers=2)
    settings = Settings(**QUICK | {"max_steps": 6}, save_every=2, evaluate_every=3, patience=5)
    options = {"teacher": teacher, "dev": corpus, "settings": settings, "backend": backend, "device": "cpu"}
    whole = distill(student, tmp_path / "whole", corpus, **options)
    for step in (3, 5) if backend == "pt" else (5,):  # the others compile for each of them
        with pytest.raises(CrashError):
            distill(student, tmp_path / "broken", corpus, progress=crash_at(step), **options)
    assert distill(student, tmp_path / "broken", corpus, **options) == whole
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")
    times = ("tokens_per_second",)
    logs = [
        [{n: v for n, v in record.items() if n not in times} for record in read(tmp_path / name / FOLDER)]
        for name in ("broken", "whole")
    ]
    assert logs[0] == logs[1]
    assert sorted(path.name for path in (tmp_path / "broken" / FOLDER).iterdir()) == [
        "curves.png",
        "events",
        "metrics.jsonl",
        "run.json",
    ]


def test_a_killed_process_goes_on(tiny, files, tmp_path):
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "distilbert",
        "finetune",
        str(tiny("sequence-classification", dropout=0.2)),
        str(out),
    ]
    command += ["--task", "text-classification", "--data", str(files["text-classification"]), "--backend", "pt"]
    command += ["--device", "cpu", "--max-steps", "200", "--save-every", "5", "--batch-size", "4", "--log-every", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(out.glob(f"{FOLDER}/state-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL and not (out / "model.safetensors").exists()
    result = CliRunner().invoke(make_app(["finetune"]), [*command[3:4], *command[4:]])
    assert result.exit_code == 0, result.output
    whole = CliRunner().invoke(make_app(["finetune"]), [*command[3:5], str(tmp_path / "whole"), *command[6:]])
    assert whole.exit_code == 0, whole.output
    assert weights(out) == weights(tmp_path / "whole")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_full_disk_stops_a_run_with_its_last_state_intact(backend, tiny, corpus, tmp_path, monkeypatch):
    trainer = importlib.import_module(f"{choose_backend(backend)}.training").Trainer
    save, calls = trainer.save_state, []

    def fail_later(self, folder):
        calls.append(folder)
        save(self, folder)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    settings = Settings(**QUICK | {"max_steps": 7}, save_every=2)
    options = {"settings": settings, "backend": backend, "device": "cpu"}
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_state", fail_later)
        with pytest.raises(CheckpointError, match=r"state-000000004: cannot be saved: No space left.*state-000000002"):
            distill(tiny("masked-lm"), tmp_path / "out", corpus, **options)
    assert [path.name for path in (tmp_path / "out" / FOLDER).glob("*state*")] == ["state-000000002"]
    assert distill(tiny("masked-lm"), tmp_path / "out", corpus, **options).step == 7


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loss_that_is_no_number_names_step_and_batch(backend, tiny, files, tmp_path):
    settings = Settings(**QUICK | {"max_steps": 20, "learning_rate": 1e30, "max_gradient_norm": 0.0}, save_every=1)
    options = {"settings": settings, "backend": backend, "device": "cpu"}
    with pytest.raises(
        InputError, match=r"step \d+ \(epoch \d\): (loss|gradient_norm) is (nan|inf), of a batch of the sequences \d+, "
    ):
        finetune(
            tiny("sequence-classification"),
            tmp_path / "out",
            "text-classification",
            files["text-classification"],
            **options,
        )


def test_another_run_in_the_folder(tiny, files, tmp_path):
    arguments = (tiny("sequence-classification"), tmp_path / "out", "text-classification", files["text-classification"])
    finetune(*arguments, settings=Settings(**QUICK), backend="pt", device="cpu")
    with pytest.raises(CheckpointError, match=r"holds a run with settings.seed 0, not 1; choose another"):
        finetune(*arguments, settings=Settings(**QUICK, seed=1), backend="pt", device="cpu")
    finetune(*arguments, settings=Settings(**QUICK, seed=1), backend="pt", device="cpu", overwrite=True)
    with pytest.raises(CheckpointError, match="has a checkpoint already"):
        finetune(arguments[0], arguments[0], *arguments[2:], settings=Settings(**QUICK), backend="pt", device="cpu")


def test_another_content_of_the_data(tiny, files, tmp_path):
    data = shutil.copy(files["text-classification"], tmp_path / "data.tsv")
    arguments = (tiny("sequence-classification"), tmp_path / "out", "text-classification", data)
    options = {"settings": Settings(**{**QUICK, "save_every": 2}), "backend": "pt", "device": "cpu"}
    with pytest.raises(CrashError):
        finetune(*arguments, **options, progress=crash_at(3))
    data.write_text("".join(reversed(data.read_text().splitlines(keepends=True))))
    with pytest.raises(CheckpointError, match=r"began with another content of .*data\.tsv; choose another folder"):
        finetune(*arguments, **options)


def test_a_run_that_never_began_holds_nothing(tiny, files, tmp_path):
    def begin(task="text-classification", **options):
        return finetune(
            *(tiny("sequence-classification"), tmp_path / "out", task, files[task]),
            **{"settings": Settings(**QUICK), "backend": "pt", "device": "cpu", **options},
        )

    (tmp_path / "empty.tsv").write_text("")
    with pytest.raises(InputError, match="holds no examples"):
        begin(dev=tmp_path / "empty.tsv")
    with pytest.raises(CrashError):
        begin(progress=crash_at(1))
    assert begin(settings=Settings(**QUICK, seed=1)).step == 4


# Data, labels and teachers


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        ("text-classification", "a film\tgood\nthe plot\t\n", r"data:2: has no label"),
        ("text-classification", "a film\tgood\nthe plot\tgood\n", r"data: all labels are 'good', expected two classes"),
        ("text-classification", "a film\t0\nthe plot\t0\n", r"data: all labels are '0', expected two classes"),
        ("text-classification", "tweet\tstars\na\t1\nb\t0.5\n", r"data: the first label is 'stars', and all others"),
        ("text-classification", "a\t0.5\nb\tnan\nc\t1.5\n", "data: a label is nan, and the others are numbers"),
        ("text-classification", "".join(f"good\ttext {n}\n" for n in range(30)), "30 different labels for 30 texts"),
        ("token-classification", "a film is\tgood\n", "data: most words are several, such as 'a film is'"),
        ("ner", "", "data: holds no examples"),
    ],
)
def test_data_that_makes_no_sense(task, content, message, tiny, tmp_path):
    (tmp_path / "data").write_text(content)
    with pytest.raises(InputError, match=message):
        finetune(tiny("masked-lm"), tmp_path / "out", task, tmp_path / "data", settings=Settings(**QUICK), backend="pt")


def test_a_corpus_of_nothing(tiny, tmp_path):
    (tmp_path / "empty.txt").write_text("a\n")
    model = tiny("masked-lm")
    prepare_corpus([tmp_path / "empty.txt"], tmp_path / "corpus", distilbert.DistilBertTokenizer.from_pretrained(model))
    with pytest.raises(InputError, match="corpus: holds no sequences"):
        distill(model, tmp_path / "out", tmp_path / "corpus", settings=Settings(**QUICK), backend="pt")


def test_labels_that_replace_those_of_a_trained_head_are_told(tiny, tmp_path, caplog):
    (tmp_path / "data.tsv").write_text("a film\tLABEL_1\nthe plot\tLABEL_0\na mess\tLABLE_0\n" * 4)
    arguments = (tiny("sequence-classification"), tmp_path / "out", "text-classification", tmp_path / "data.tsv")
    finetune(*arguments, settings=Settings(**QUICK), backend="pt")
    assert "its labels are LABEL_0, LABEL_1, LABLE_0; " in caplog.text


def test_labels_of_a_new_head_are_those_of_the_file(tiny, tmp_path):
    (tmp_path / "data.tsv").write_text("a film\tgood\nthe plot\tbad\na mess\tbad\ni know\tfair\n" * 4)
    finetune(
        tiny("masked-lm"),
        tmp_path / "out",
        "text-classification",
        tmp_path / "data.tsv",
        settings=Settings(**QUICK),
        backend="pt",
    )
    assert read_config(tmp_path / "out").id2label == {0: "bad", 1: "fair", 2: "good"}


def write_labels(folder, labels):
    lines = zip(["a film", "the plot", "a mess", "i know"], labels.split(), strict=True)
    (folder / "data.tsv").write_text("".join(f"{text}\t{label}\n" for text, label in lines) * 4)
    return folder / "data.tsv"


@pytest.mark.parametrize(
    "labels, expected",
    [
        ("0 2 0 2", {"num_labels": 3}),
        ("5 1 3 5", {"num_labels": 3, "id2label": {0: "1", 1: "3", 2: "5"}}),
        ("10 9 10 9", {"num_labels": 2, "id2label": {0: "9", 1: "10"}}),
        ("0 0.5 1 1", {"num_labels": 1, "problem_type": "regression"}),
        ("-1 1 -1 1", {"num_labels": 2, "id2label": {0: "-1", 1: "1"}}),
        ("01 1 2 1", {"num_labels": 3, "id2label": {0: "01", 1: "1", 2: "2"}}),
        ("1. 0.5 1E-3 2", {"num_labels": 1, "problem_type": "regression"}),
        ("20002 10001 0 0", {"num_labels": 3, "id2label": {0: "0", 1: "10001", 2: "20002"}}),
    ],
)
def test_what_numbers_are(labels, expected, tmp_path):
    found = LABELLED["text-classification"].labels(str(write_labels(tmp_path, labels)), {})
    assert {name: value for name, value in found.items() if name != "label2id"} == expected


def test_a_trained_regression_takes_any_numbers(tiny, tmp_path):
    options = {"settings": Settings(**QUICK), "backend": "pt"}
    for begin, labels in ((tiny("masked-lm"), "0 0.5 1 1"), (tmp_path / "0 0.5 1 1", "5 1 3 -5")):
        finetune(begin, tmp_path / labels, "text-classification", write_labels(tmp_path, labels), **options)
        found = read_config(tmp_path / labels)
        assert (found.num_labels, found.problem_type) == (1, "regression")


@pytest.mark.parametrize(
    "labels, expected",
    [
        *(("0.5 1.5 0.5 -2", 1), ("0 1 0 1", 3), ("bad good bad fair", 3)),
        *(("2 1 2 1", 3), ("3 1 2 1", ["1", "2", "3"])),  # there are three classes, from 0 to 2
    ],
)
def test_labels_of_a_trained_head_stay_where_the_file_has_no_others(tiny, tmp_path, labels, expected):
    data = write_labels(tmp_path, labels)
    model = shutil.copytree(tiny("sequence-classification"), tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    names = {"id2label": {0: "fair", 1: "bad", 2: "good"}, "label2id": {"fair": 0, "bad": 1, "good": 2}}
    (model / "config.json").write_text(json.dumps(config | names))
    finetune(model, tmp_path / "out", "text-classification", data, settings=Settings(**QUICK), backend="pt")
    found = read_config(tmp_path / "out")
    if expected == 1:
        assert found.num_labels == 1 and found.problem_type == "regression"
    else:
        assert list(found.id2label.values()) == (["fair", "bad", "good"] if expected == 3 else expected)


def test_several_labels_for_a_text(tiny, tmp_path):
    lines = [
        {"text": text, "label": label}
        for text, label in (("a film", ["good"]), ("i know", []), ("the plot", ["bad", "good"]))
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines * 4))
    arguments = ("text-classification", tmp_path / "data.jsonl")
    model = shutil.copytree(tiny("sequence-classification"), tmp_path / "model")
    with pytest.raises(InputError, match="has several labels for a text; begin with a classifier whose config names"):
        finetune(model, tmp_path / "out", *arguments, settings=Settings(**QUICK), backend="pt")
    config = json.loads((model / "config.json").read_text())
    names = {"id2label": {0: "fair", 1: "bad", 2: "good"}, "label2id": {"fair": 0, "bad": 1, "good": 2}}
    names["problem_type"] = "multi_label_classification"
    (model / "config.json").write_text(json.dumps(config | names))
    finetune(model, tmp_path / "out", *arguments, settings=Settings(**QUICK), backend="pt")
    found = read_config(tmp_path / "out")
    assert found.id2label == names["id2label"] and found.problem_type == names["problem_type"]
    (tmp_path / "more.txt").write_text("a mess\n")
    options = {"teacher": tmp_path / "out", "unlabelled": [tmp_path / "more.txt"], "settings": Settings(**QUICK)}
    with pytest.raises(InputError, match="gives numbers or several labels at a time, expected one of several"):
        finetune(model, tmp_path / "student", *arguments, backend="pt", **options)


def test_an_answer_that_does_not_stand_where_the_file_says(tiny, tmp_path):
    record = {"question": "film", "context": "a film", "answers": {"text": ["film"], "answer_start": [1]}}
    (tmp_path / "data.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(InputError, match="the answer 'film' to 'film' does not stand in its context"):
        finetune(
            tiny("question-answering"), tmp_path / "out", "question-answering", tmp_path / "data.jsonl", backend="pt"
        )


def test_a_teacher_of_other_dimensions(tiny, corpus, tmp_path):
    wide = tmp_path / "wide"
    model = distilbert.DistilBertForMaskedLM(distilbert.DistilBertConfig(vocab_size=97, dim=16, n_heads=2, n_layers=1))
    model.save_pretrained(wide)
    with pytest.raises(InputError, match="hidden states have 16 dimensions, the student's 32"):
        distill(tiny("masked-lm"), tmp_path / "out", corpus, teacher=wide, backend="pt")
    recipe = Recipe(cosine_weight=0.0)
    options = {"teacher": wide, "recipe": recipe, "settings": Settings(**QUICK), "backend": "pt"}
    assert distill(tiny("masked-lm"), tmp_path / "out", corpus, **options).step == 4


def cut_at(folder, limit, target):
    """A copy whose tokenizer reads less."""
    path = shutil.copytree(folder, target) / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": limit}))
    return target


def test_a_teacher_reads_the_windows_of_its_student(tiny, tmp_path, caplog):
    model = tiny("token-classification")
    label = read_config(model).id2label[0]
    lines = "\n\n".join("\n".join(f"{word}\t{label}" for word in WORDS[:size]) for size in (11, 3, 9, 4))
    (tmp_path / "data.conll").write_text(lines)
    short = cut_at(model, 8, tmp_path / "short")
    options = {"recipe": TaskRecipe(alpha=1.0), "settings": Settings(**QUICK), "backend": "pt", "device": "cpu"}
    arguments = ("token-classification", tmp_path / "data.conll")
    finetune(short, tmp_path / "out", *arguments, teacher=model, **options)
    assert abs(curve(tmp_path / "out")[0]) < 1e-6  # as it is its own teacher
    assert "2 of 4 texts cut to the model's 8 tokens" in caplog.text
    with pytest.raises(InputError, match=r"a text of 13 tokens, .*: the model reads at most 8"):
        finetune(model, tmp_path / "other", *arguments, teacher=short, **options)


def test_a_teacher_of_other_words(tiny, corpus, tmp_path):
    other = shutil.copytree(tiny("masked-lm"), tmp_path / "other")
    words = DistilBertTokenizer.from_pretrained(other).convert_ids_to_tokens(range(97))
    (other / "tokenizer.json").unlink()
    (other / "vocab.txt").write_text("".join(f"{word}\n" for word in [*words[:5], *words[:4:-1]]))
    with pytest.raises(InputError, match="other: has other words than the student"):
        distill(tiny("masked-lm"), tmp_path / "out", corpus, teacher=other, backend="pt")


def test_a_regression_has_no_teacher(tiny, tmp_path):
    data, options = write_labels(tmp_path, "0 0.5 1 1"), {"settings": Settings(**QUICK), "backend": "pt"}
    finetune(tiny("masked-lm"), tmp_path / "out", "text-classification", data, **options)
    with pytest.raises(InputError, match="out: gives numbers or several labels at a time"):
        finetune(tiny("masked-lm"), tmp_path / "b", "text-classification", data, teacher=tmp_path / "out", **options)


def test_patience_needs_something_to_measure(tiny, files, tmp_path):
    data = files["text-classification"]
    with pytest.raises(ConfigError, match="patience is 2, but nothing is measured"):
        finetune(tiny("masked-lm"), tmp_path / "out", "text-classification", data, settings=Settings(patience=2))


def test_one_process_trains_in_a_folder_and_its_best_model_answers(tiny, files, tmp_path):
    data, model = files["text-classification"], tiny("sequence-classification")
    settings, seen = Settings(**QUICK | {"evaluate_every": 1}), []

    def look(progress):
        if progress.step == 2:
            with pytest.raises(CheckpointError, match="out: another process trains there"):
                finetune(
                    model, tmp_path / "out", "text-classification", data, dev=data, settings=settings, backend="pt"
                )
            seen.append(distilbert.pipeline("text-classification", tmp_path / "out", device="cpu")("a film"))

    options = {"settings": settings, "backend": "pt", "device": "cpu"}
    finetune(model, tmp_path / "out", "text-classification", data, dev=data, progress=look, **options)
    assert len(seen) == 1


def test_blanks_at_the_ends_of_an_answer_belong_to_no_token(tiny, tmp_path):
    lines = (
        {"question": "film is", "context": "the plot is a mess", "answers": {"text": [text], "answer_start": [start]}}
        for text, start in (("plot is", 4), (" plot is ", 3))
    )
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    plain, blank = LABELLED["question-answering"].read(str(tmp_path / "data.jsonl"), None, {})
    assert plain.truth == blank.truth == (4, 11)


def test_lines_hide_all_tokens_alike(tiny, files, tmp_path):
    options = {"settings": Settings(**QUICK), "backend": "pt", "device": "cpu"}
    finetune(tiny("masked-lm"), tmp_path / "out", "fill-mask", files["fill-mask"], **options)
    assert json.loads((tmp_path / "out" / FOLDER / "run.json").read_text())["recipe"]["smoothing"] == 0
    (tmp_path / "out" / "tokenizer_config.json").unlink()  # as of a run that an earlier version began
    finetune(tiny("masked-lm"), tmp_path / "out", "fill-mask", files["fill-mask"], **options)
    assert (tmp_path / "out" / "tokenizer_config.json").exists()


def test_masks_without_a_teacher_are_the_recipes(tiny, corpus, tmp_path):
    arguments = ["distill", tiny("masked-lm"), tmp_path / "out", "--corpus", corpus, "--mask-probability", "0.3"]
    result = CliRunner().invoke(
        make_app(["distill"]), list(map(str, [*arguments, "--max-steps", 1, "--backend", "pt"]))
    )
    assert result.exit_code == 0, result.output
    recipe = json.loads((tmp_path / "out" / FOLDER / "run.json").read_text())["recipe"]
    assert (recipe["mask_probability"], recipe["masked_lm_weight"]) == (0.3, 1.0)


def test_a_teacher_that_scores_no_words(tiny, corpus, tmp_path):
    with pytest.raises(InputError, match="has the head sequence-classification, expected a masked LM's"):
        distill(tiny("masked-lm"), tmp_path / "out", corpus, teacher=tiny("sequence-classification"), backend="pt")


def test_a_perfect_teacher_leaves_nothing_to_learn(tiny, corpus, tmp_path):
    recipe = Recipe(masked_lm_weight=0.0, hidden_state_weight=1.0)
    model = tiny("masked-lm")
    distill(model, tmp_path / "out", corpus, teacher=model, recipe=recipe, settings=Settings(**QUICK), backend="pt")
    for name in ("distillation", "cosine", "hidden_state"):
        assert abs(curve(tmp_path / "out", name)[0]) < 1e-6  # before the first update


# Several processes


@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_are_one_with_the_same_batch(sharded, straight, tiny, corpus, tmp_path):
    student, teacher, one = tiny("masked-lm"), tiny("masked-lm", n_layers=2), straight("pt")
    options = {**STRAIGHT, "save_every": 2, "accumulation": 1 + sharded, "sharded": sharded, "backend": "pt"}
    options |= {"teacher": teacher, "corpus": corpus, "dev": corpus, "device": "cpu"}
    (tmp_path / "run.yaml").write_text(json.dumps(options, default=str))
    arguments = ["-m", "distilbert", "distill", student, tmp_path / "two", "--config", tmp_path / "run.yaml"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, *map(str, arguments)], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("the model is in") == 1
    assert_same(tmp_path / "two", one, ("loss", "distillation", "gradient_norm"), 2e-5)


def assert_same(several, one, names, tolerance):
    for name in names:
        np.testing.assert_allclose(curve(several, name), curve(one, name), rtol=tolerance)
    dev = [[r["perplexity"] for r in read(folder / FOLDER) if r["kind"] == "dev"] for folder in (several, one)]
    np.testing.assert_allclose(dev[0], dev[1], rtol=1e-4)


DEVICES = {
    "flax": """
import os
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
""",
    "tf": """
import tensorflow as tf
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})  # spares a fifth of the time
cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
""",
}
ON_DEVICES = """
import sys
from distilbert.training import Settings, distill, log
log.draw_curves = lambda records, path: path.touch()
backend, student, teacher, corpus = sys.argv[1:]
settings = Settings(batch_size=4, max_steps=6, learning_rate=1e-3, log_every=1, save_every=4, evaluate_every=6,
                    max_gradient_norm=0.5, epsilon=1e-12, accumulation=1 if backend == "flax" else 2,
                    model_parallel=2 if backend == "flax" else 1)
options = {"settings": settings, "backend": backend, "device": "cpu"}
distill(student, "several", corpus, teacher=teacher, dev=corpus, **options)
"""


@pytest.mark.parametrize("backend", DEVICES)
def test_several_devices_are_one_with_the_same_batch(backend, straight, tiny, corpus, tmp_path):
    student, teacher = tiny("masked-lm"), tiny("masked-lm", n_layers=2)
    (tmp_path / "script.py").write_text(DEVICES[backend] + ON_DEVICES)
    arguments = [sys.executable, "script.py", backend, student, teacher, corpus]
    done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(tmp_path / "several", straight(backend), ("loss", "gradient_norm"), 5e-5)


# The command line


def test_options_come_before_those_of_the_file(tiny, files, tmp_path):
    (tmp_path / "run.yaml").write_text(
        f"task: text-classification\ndata: {files['text-classification']}\nlearning-rate: 1e-3\nmax_steps: 3\n"
        "batch_size: 4\nbackend: pt\ndevice: cpu\nfreeze: [words]\ntext_field: 1\nlabel_field: 2\n"
    )
    arguments = [
        "finetune",
        str(tiny("sequence-classification")),
        str(tmp_path / "out"),
        "--config",
        str(tmp_path / "run.yaml"),
    ]
    result = CliRunner().invoke(make_app(), [*arguments, "--max-steps", "2"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("2 steps; the model is in")
    run = json.loads((tmp_path / "out" / FOLDER / "run.json").read_text())
    assert run["settings"]["learning_rate"] == 1e-3 and run["settings"]["freeze"] == ["words"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rat: 1", "no option learning_rat"),
        ("[1, 2]", "holds a list, expected options by name"),
        ("a: [", "is not YAML"),
        ("batch_size: many", "batch_size is 'many', expected int"),
        ("teacher: [a]", "teacher is ['a'], expected one text"),
        ("", "task: is not given"),
    ],
)
def test_a_file_of_options_that_makes_no_sense(content, message, tiny, tmp_path, caplog):
    (tmp_path / "run.yaml").write_text(content)
    arguments = [str(tiny("sequence-classification")), str(tmp_path / "out"), "--config", str(tmp_path / "run.yaml")]
    more = ["--task", "text-classification", "--data", "x.tsv"] if content else []
    result = CliRunner().invoke(make_app(["finetune", "distill"]), ["finetune", *arguments, *more])
    assert result.exit_code == 1 and message in caplog.text
    assert not (tmp_path / "out").exists()
