"""What the PyTorch models promise beyond the numbers of the golden cases."""

import copy
import io
import pickle

import backends
import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from backends import EVERY_CASE, golden

import distilbert
from distilbert.core.errors import ConfigError, InputError
from distilbert.core.outputs import ModelOutput

HEADS = ("base", "mlm", "seqcls", "choice", "tokcls", "qa")


def load(case, **options):
    return backends.load("torch", case, **options)


def inputs_of(values, **options):
    return backends.inputs_of("torch", values, **options)


def first(output):
    return output[0].detach()


@pytest.mark.parametrize("case", ["base", "mlm", "choice", "qa"])  # the others are made as these are
def test_compile_without_graph_break(case):
    model, inputs = load(case), inputs_of(golden(case))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = first(compiled(**inputs))
    model.is_padding_free = False
    torch.testing.assert_close(found, first(model(**inputs)))
    if case == "base":
        assert compiled(**inputs, output_attentions=True).attentions[0].ndim == 4


@pytest.mark.parametrize("case", HEADS)
def test_export_with_dynamic_length(case):
    model, inputs = load(case), inputs_of(golden(case), labels=False)
    dynamic = {name: {value.dim() - 1: torch.export.Dim.DYNAMIC} for name, value in inputs.items()}
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (), inputs, dynamic_shapes=dynamic), file)
    file.seek(0)
    exported = torch.export.load(file).module()
    shorter = {name: value[..., :9] for name, value in inputs.items()}
    model.is_padding_free = False
    torch.testing.assert_close(first(exported(**shorter)), first(model(**shorter)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("case", HEADS)
def test_masks_give_no_nan(case, attention, dtype):
    model, inputs = (
        load(case, dtype=dtype, attn_implementation=attention),
        inputs_of(golden(case), labels=False),
    )
    inputs["attention_mask"][0] = 0
    assert model.dtype == getattr(torch, dtype)
    output = model(**inputs)
    assert all(value.isfinite().all() for value in output.values())
    if dtype == "float32":
        model.is_padding_free = False
        output = model(**inputs)
        other = load(case, attn_implementation={"eager": "sdpa", "sdpa": "eager"}[attention])
        other.is_padding_free = False
        torch.testing.assert_close(first(output), first(other(**inputs)), rtol=1e-4, atol=1e-5)


def test_autocast():
    model, inputs = load("seqcls"), inputs_of(golden("seqcls"))
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**inputs)
    assert output.logits.dtype == torch.bfloat16
    output.loss.backward()


def test_output_is_mapping_and_tuple():
    model, inputs = load("seqcls"), inputs_of(golden("seqcls"))
    output = model(**inputs)
    assert list(output) == ["loss", "logits"]
    assert output.loss is output["loss"] is output[0]
    assert output[1:][0] is output.logits
    assert output.hidden_states is None
    with pytest.raises(AttributeError):
        output.logit  # noqa: B018
    assert isinstance(pickle.loads(pickle.dumps(output)), ModelOutput)
    _loss, logits = model(**inputs, return_dict=False)
    torch.testing.assert_close(logits, output.logits)


def test_resize_token_embeddings_keeps_rows_and_ties():
    model = load("mlm")
    before = model.get_input_embeddings().weight.clone()
    assert model.resize_token_embeddings(100, pad_to_multiple_of=8).num_embeddings == 104
    assert torch.equal(model.get_input_embeddings().weight[:97], before)
    assert model.vocab_projector.weight is model.get_input_embeddings().weight
    assert model(torch.tensor([[103]])).logits.shape == (1, 1, 104)
    model.resize_token_embeddings(50)
    assert model.config.vocab_size == 50
    assert torch.equal(model.get_input_embeddings().weight, before[:50])


class WithMore(distilbert.DistilBertForSequenceClassification):
    """What users make of a model: a layer and buffers of their own."""

    def __init__(self, config):
        super().__init__(config)
        self.second = torch.nn.Linear(config.dim, 3)
        self.register_buffer("count", torch.tensor(7))
        self.words = torch.nn.Linear(config.dim, config.vocab_size, bias=False)
        self.words.weight = self.get_input_embeddings().weight
        self.backbone = self.distilbert
        self.register_buffer("scales", torch.arange(3.0), persistent=False)


def test_what_a_subclass_has_besides_is_saved_and_loaded(tmp_path, caplog):
    model = WithMore(load("seqcls").config)
    model.count += 1
    model.save_pretrained(tmp_path)
    loaded = WithMore.from_pretrained(tmp_path, dtype="bfloat16")
    assert torch.equal(loaded.second.weight, model.second.weight.bfloat16())
    assert loaded.count == 8 and loaded.scales.tolist() == [0, 1, 2] and not caplog.records
    assert loaded.words.weight is loaded.get_input_embeddings().weight and loaded.backbone is loaded.distilbert
    assert loaded.scales.dtype == torch.bfloat16
    plain = load("seqcls")
    plain.save_pretrained(tmp_path)
    loaded, report = WithMore.from_pretrained(tmp_path, output_loading_info=True)
    assert report.missing == ["count", "second.weight", "second.bias"] and "newly initialised" in caplog.text
    assert not loaded.second.weight.is_meta and torch.equal(loaded.classifier.weight, plain.classifier.weight)
    model.save_pretrained(tmp_path)
    _, report = type(plain).from_pretrained(tmp_path, output_loading_info=True)
    assert report.unexpected == ["count", "second.weight", "second.bias"]


def test_what_scripts_for_transformers_ask_of_saving(tmp_path):
    model = load("seqcls")
    assert model.save_pretrained(tmp_path / "other", is_main_process=False, save_function=torch.save) == []
    assert not (tmp_path / "other").exists()
    model.save_pretrained(tmp_path, is_main_process=True, save_function=torch.save, safe_serialization=True)
    assert type(model).from_pretrained(tmp_path, config=tmp_path, attn_implementation=None).num_labels == 3
    with pytest.raises(InputError, match="only safetensors are written"):
        model.save_pretrained(tmp_path, safe_serialization=False)


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("give", [lambda hidden: hidden, lambda hidden: (hidden,)], ids=["tensor", "tuple"])
def test_layers_of_ones_own_and_fewer_of_them(give, is_training):
    class Own(torch.nn.Module):
        def forward(self, hidden_BLD, *masks):
            assert hidden_BLD.dim() == 3  # whole rows, with their padding
            return give(-hidden_BLD)

    model, mask = load("base").train(is_training), torch.tensor([[1, 1, 1], [1, 1, 0]])
    with torch.no_grad():
        model.transformer.layer = model.transformer.layer[:2]
        model.transformer.layer[1] = Own()
        found = model(torch.ones(2, 3, dtype=torch.long), mask)
        first = model(torch.ones(2, 3, dtype=torch.long), mask, head_mask=torch.ones(3, 4), output_hidden_states=True)
    assert found.last_hidden_state.shape == (2, 3, model.config.dim)
    if not is_training:
        assert torch.equal(first.hidden_states[2], -first.hidden_states[1])
        torch.testing.assert_close(found.last_hidden_state[0], first.last_hidden_state[0])


def test_an_output_projection_that_is_replaced():
    model, ids = load("mlm"), torch.ones(1, 3, dtype=torch.long)
    expected, projection = model(ids).logits, torch.nn.Linear(32, 97)
    projection.bias = model.get_output_embeddings().bias
    model.set_output_embeddings(projection)
    assert not torch.equal(model(ids).logits, expected)
    model.tie_weights()
    torch.testing.assert_close(model(ids).logits, expected)


def test_parts_that_are_called_alone():
    model, ids = load("seqcls"), torch.ones(2, 3, dtype=torch.long)
    hidden = model.distilbert(ids, output_hidden_states=True).hidden_states
    assert torch.equal(model.distilbert.embeddings(ids), hidden[0])
    torch.testing.assert_close(model.distilbert.transformer.layer[0](hidden[0])[0], hidden[1])
    assert model.get_output_embeddings() is None
    embeddings = sum(part.weight.numel() for part in model.modules() if isinstance(part, torch.nn.Embedding))
    assert model.num_parameters(exclude_embeddings=True) == model.num_parameters() - embeddings


def test_gradient_checkpointing_gives_the_same_gradients():
    def gradients(checkpointing):
        model = load("seqcls", dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**inputs_of(golden("seqcls"))).loss.backward()
        return {name: value.grad for name, value in model.named_parameters()}

    plain, saved = gradients(False), gradients(True)
    for name, value in plain.items():
        torch.testing.assert_close(saved[name], value, msg=name)


def test_learns_a_toy_task():
    torch.manual_seed(0)
    model = load("seqcls", dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0).train()
    ids = torch.randint(5, 97, (60, 8))
    labels = torch.arange(60) % 3
    ids[:, 1] = 10 + labels
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(150):
        optimizer.zero_grad()
        model(ids, labels=labels).loss.backward()
        optimizer.step()
    assert (model.eval()(ids).logits.argmax(-1) == labels).all()


@pytest.mark.parametrize("case", EVERY_CASE)
def test_deepcopy_keeps_ties_and_numbers(case):
    model, inputs = load(case), inputs_of(golden(case))
    torch.testing.assert_close(first(copy.deepcopy(model)(**inputs)), first(model(**inputs)))


def test_bad_inputs_are_explained():
    model = load("base")
    for arguments, message in (
        ({}, "exactly one"),
        ({"input_ids": torch.tensor([[97]])}, "0 to 96"),
        ({"input_ids": torch.tensor([[-1]])}, "0 to 96"),
        ({"input_ids": torch.ones(1, 41, dtype=torch.long)}, "max_position_embeddings=40"),
        ({"input_ids": torch.tensor([5])}, "batch, length"),
        ({"input_ids": torch.tensor([[5]]), "attention_mask": torch.ones(1, 2)}, "attention_mask"),
    ):
        with pytest.raises(InputError, match=message):
            model(**arguments)
    with pytest.raises(InputError, match="expected one of sdpa"):
        load("base", attn_implementation="flash")
    with pytest.raises(InputError, match="dtype"):
        load("base", dtype="int3")
    with pytest.raises(ConfigError, match="nlabels"):
        load("base", nlabels=3)


def test_token_type_ids_are_ignored_with_one_warning(caplog):
    model, inputs = load("base"), inputs_of(golden("base"))
    types = torch.ones_like(inputs["input_ids"])
    expected = first(model(**inputs))
    for _ in range(2):
        torch.testing.assert_close(first(model(**inputs, token_type_ids=types)), expected)
    assert len(caplog.records) == 1


def distributed_worker(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    replica = torch.nn.parallel.DistributedDataParallel(load("mlm"))
    ids = torch.randint(5, 97, (4, 9), generator=torch.Generator().manual_seed(0))
    half = ids[2 * rank : 2 * rank + 2]
    replica(input_ids=half, labels=half).loss.backward()
    torch.save({name: value.grad for name, value in replica.module.named_parameters()}, f"{folder}/{rank}.pt")
    # Both must be through before either tears its connections down, or gloo's threads abort the other process.
    torch.distributed.barrier()
    del replica
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this PyTorch was built without gloo")
def test_distributed_data_parallel_gives_the_gradients_of_one_process(tmp_path):
    torch.multiprocessing.spawn(distributed_worker, (str(tmp_path),), nprocs=2)
    model = load("mlm")
    ids = torch.randint(5, 97, (4, 9), generator=torch.Generator().manual_seed(0))
    model(input_ids=ids, labels=ids).loss.backward()
    for rank in range(2):
        gradients = torch.load(tmp_path / f"{rank}.pt")
        for name, value in model.named_parameters():
            torch.testing.assert_close(gradients[name], value.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("value", ["a film", [[1, 2]], np.ones((1, 2), int)])
def test_what_is_no_tensor(value):
    with pytest.raises(InputError, match=f"input_ids is a {type(value).__name__}, expected a tensor; tokenizers give"):
        load("seqcls")(value)


def test_labels_out_of_range():
    model = load("seqcls")
    with pytest.raises(InputError, match="labels has the value 7, expected 0 to 2"):
        model(torch.ones(1, 4, dtype=torch.long), labels=torch.tensor([7]))
