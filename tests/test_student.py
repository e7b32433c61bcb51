"""Students made from layers of a BERT: with all layers they compute what it does."""

import shutil

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from typer.testing import CliRunner

import distilbert
from distilbert.cli import make_app
from distilbert.core.errors import CheckpointError, InputError
from distilbert.distillation.student import evenly, init_student

CASES = {
    "base": ("BertModel", "DistilBertModel", "base"),
    "mlm": ("BertForMaskedLM", "DistilBertForMaskedLM", "masked-lm"),
    "pretraining": ("BertForPreTraining", "DistilBertForMaskedLM", "masked-lm"),
    "tokcls": ("BertForTokenClassification", "DistilBertForTokenClassification", "token-classification"),
    "qa": ("BertForQuestionAnswering", "DistilBertForQuestionAnswering", "question-answering"),
    "seqcls": ("BertForSequenceClassification", "DistilBertModel", "base"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_student_with_all_layers_computes_the_same(case, tmp_path):
    teacher_class, student_class, head = CASES[case]
    folder = tmp_path / "teacher"
    shutil.copytree(GOLDEN / f"bert-{case}", folder, ignore=shutil.ignore_patterns("*.h5", "*.bin", "*.msgpack"))
    init_student(folder, tmp_path / "student", layers="all")
    teacher = getattr(distilbert, teacher_class).from_pretrained(folder)
    student = getattr(distilbert, student_class).from_pretrained(tmp_path / "student")
    assert student.head == head
    ids = torch.tensor([[2, 5, 9, 40, 3], [2, 7, 3, 0, 0]])
    options = {"attention_mask": (ids != 0).long(), "output_hidden_states": True}
    with torch.no_grad():
        expected, found = teacher(ids, **options), student(ids, **options)
    for one, other in zip(expected.hidden_states, found.hidden_states, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    for name in ("logits", "start_logits", "end_logits"):
        wanted = expected.prediction_logits if (case, name) == ("pretraining", "logits") else getattr(expected, name)
        if case != "seqcls" and wanted is not None:
            np.testing.assert_allclose(getattr(found, name), wanted, rtol=0, atol=1e-5)


def test_chosen_layers_are_the_teachers(tmp_path):
    folder = tmp_path / "teacher"
    shutil.copytree(GOLDEN / "bert-mlm", folder, ignore=shutil.ignore_patterns("*.h5", "*.bin", "*.msgpack"))
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(GOLDEN / "distilbert-seqcls" / name, folder)
    init_student(folder, tmp_path / "student", layers=[2, 0], file_format="msgpack")
    student = distilbert.DistilBertForMaskedLM.from_pretrained(tmp_path / "student")
    teacher = distilbert.BertForMaskedLM.from_pretrained(folder)
    for new, old in enumerate([2, 0]):
        one = student.get_parameter(f"distilbert.transformer.layer.{new}.ffn.lin1.weight")
        assert torch.equal(one, teacher.get_parameter(f"bert.encoder.layer.{old}.intermediate.dense.weight"))
    assert len(distilbert.DistilBertTokenizer.from_pretrained(tmp_path / "student")) == 97


def test_layers_are_spread_as_the_published_model_has_them():
    assert evenly(12) == [0, 2, 4, 7, 9, 11]
    assert [evenly(count) for count in (1, 2, 3, 4, 6)] == [[0], [0], [0], [0, 3], [0, 2, 5]]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layers": [0, 3]}, "layers: 3 is none of the teacher's, expected 0 to 2"),
        ({"layers": []}, "none is chosen"),
        ({"head": "question-answering"}, "can have the head masked-lm or base"),
    ],
)
def test_what_the_teacher_has_not_is_said(options, message, tmp_path):
    (tmp_path / "teacher").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / "bert-mlm" / name, tmp_path / "teacher")
    with pytest.raises(InputError, match=message):
        init_student(tmp_path / "teacher", tmp_path / "student", **options)
    assert not (tmp_path / "student").exists()


def test_the_command(tmp_path):
    (tmp_path / "teacher").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / "bert-mlm" / name, tmp_path / "teacher")
    arguments = ["init-student", str(tmp_path / "teacher"), str(tmp_path / "student"), "--layers", "0,2"]
    assert CliRunner().invoke(make_app(["init-student"]), arguments).exit_code == 0
    assert distilbert.DistilBertConfig.from_pretrained(tmp_path / "student").n_layers == 2
    assert CliRunner().invoke(make_app(["init-student"]), arguments).exit_code == 1  # is there already
    with pytest.raises(CheckpointError, match="is a distilbert, expected a BERT"):
        init_student(tmp_path / "student", tmp_path / "other")


def test_convert_makes_another_family(tmp_path):
    bert = tmp_path / "bert"
    shutil.copytree(GOLDEN / "bert-mlm", bert, ignore=shutil.ignore_patterns("*.h5", "*.bin", "*.msgpack"))
    arguments = ["convert", str(bert), str(tmp_path / "out"), "--to-family", "distilbert"]
    result = CliRunner().invoke(make_app(), [*arguments, "--to", "msgpack"])
    assert result.exit_code == 0, result.output
    init_student(bert, tmp_path / "expected", layers="all", file_format="msgpack")
    written = [(tmp_path / name / "flax_model.msgpack").read_bytes() for name in ("out", "expected")]
    assert written[0] == written[1]
    result = CliRunner().invoke(make_app(), [*arguments, "--to", "msgpack", "--verify"])
    assert result.exit_code == 2 and "does not go with --to-family" in result.output
