"""Layers with weights laid out for CPUs: of the weights that are there now, and close to what the modules compute."""

import copy
import gc
import sys
from types import SimpleNamespace
from weakref import ref

import numpy as np
import pytest
import torch
from backends import HEADS, flatten, load
from conftest import GOLDEN
from torch.overrides import TorchFunctionMode

import distilbert
from distilbert.core.errors import InputError
from distilbert.pt import encoder, products, quantize
from distilbert.pt.inference import InferenceModel

DTYPES = [
    pytest.param(
        dtype,
        marks=pytest.mark.skipif(
            not products.has_layout(getattr(torch, dtype)), reason=f"PyTorch lays out no {dtype} here"
        ),
    )
    for dtype in ("float32", "bfloat16")
]
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.05}
TYPICAL = {"float32": 1e-6, "bfloat16": 0.02}  # the root of the mean square of errors
IDS = torch.tensor([[1, 5, 9, 4, 2], [1, 7, 3, 2, 0]])
MASK = (IDS != 0).long()


@pytest.fixture
def calls(monkeypatch):
    """How many layers had their weights laid out, and how many layouts were made for that."""
    counted = {"layers": 0, "layouts": 0}
    compute, lay_out = products.LaidOutLayer.__call__, products.product_of

    def counting(self, *arguments):
        counted["layers"] += 1
        return compute(self, *arguments)

    def laying_out(*arguments):
        counted["layouts"] += 1
        return lay_out(*arguments)

    monkeypatch.setattr(products.LaidOutLayer, "__call__", counting)
    monkeypatch.setattr(products, "product_of", laying_out)
    return counted


@torch.no_grad()
def answer(model, ids=IDS, **options):
    return model(ids, attention_mask=(ids != 0).long(), **options)[0].float()


def by_modules(model, ids=IDS):
    with torch.backends.mkldnn.flags(enabled=False):
        return answer(model, ids)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu", torch.tanh])
def test_products_are_those_of_the_modules(activation, dtype, calls):
    model = load("torch", "seqcls", dtype=dtype, activation=activation)
    ids = torch.randint(1, model.config.vocab_size, (64, 5), generator=torch.manual_seed(0))
    exact = by_modules(load("torch", "seqcls", activation=activation).double(), ids)
    found, expected = answer(model, ids), by_modules(model, ids)
    layers = model.config.n_layers
    assert calls == {"layers": layers, "layouts": 4 * layers + 1}  # the last layer asks for one token only
    errors = [((value - exact).square().mean().sqrt() / exact.abs().max()).item() for value in (found, expected)]
    assert errors[0] < max(1.2 * errors[1], TYPICAL[dtype] / 10)
    assert errors[0] < TYPICAL[dtype]
    answer(model, ids)
    assert calls["layouts"] == 4 * layers + 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", HEADS)
def test_every_head(case, dtype, calls):
    model = load("torch", case, dtype=dtype)
    ids, mask = (IDS[None], MASK[None]) if case == "choice" else (IDS, MASK)
    with torch.no_grad():
        found = model(ids, attention_mask=mask)[0].float()
        with torch.backends.mkldnn.flags(enabled=False):
            expected = model(ids, attention_mask=mask)[0].float()
    assert calls["layers"]
    if case == "qa":
        found, expected = found[MASK != 0], expected[MASK != 0]
    torch.testing.assert_close(found, expected, atol=TOLERANCE[dtype] * float(expected.abs().max()), rtol=0)


def in_place(model):
    with torch.no_grad():
        model.distilbert.transformer.layer[0].ffn.lin1.weight.mul_(3)


def by_another(model):
    layer = model.distilbert.transformer.layer[0].attention
    layer.q_lin.weight = torch.nn.Parameter(layer.q_lin.weight * 3)


def by_a_state(model):
    model.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()})


def behind_the_back(model):
    model.distilbert.transformer.layer[0].ffn.lin2.weight.data[1:5].mul_(9)
    model.eval()


def by_a_fused_optimizer(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model(IDS).logits.sum().backward()
    answer(model)
    optimizer.step()


class Doubled(torch.nn.Linear):
    def forward(self, value):
        return 2 * super().forward(value)


def replace(model):
    old = model.distilbert.transformer.layer[0].ffn.lin1
    new = Doubled(old.in_features, old.out_features, dtype=old.weight.dtype)
    new.load_state_dict(old.state_dict())
    model.distilbert.transformer.layer[0].ffn.lin1 = new


def hook(model):
    model.distilbert.transformer.layer[0].ffn.lin1.register_forward_hook(lambda module, given, found: 2 * found)


def patch(model):
    part = model.distilbert.transformer.layer[0].ffn.lin1
    forward = part.forward
    part.forward = lambda value: 2 * forward(value)


def drop_out(model):
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.train().p = 0.9


def hook_the_layer(model):
    model.distilbert.transformer.layer[0].register_forward_hook(lambda module, given, found: (2 * found[0], None))


def through_data(model):
    model.distilbert.transformer.layer[0].ffn.lin1.weight.data *= 3


def by_storage(model):
    """As collectives of torch.distributed write: nothing is counted."""
    weight = model.distilbert.transformer.layer[0].ffn.lin1.weight
    weight.untyped_storage().copy_((weight.detach() * 3).untyped_storage())


def normalize_otherwise(model):
    model.distilbert.transformer.layer[0].output_layer_norm.weight.data.mul_(0.5)


def activate_otherwise(model):
    model.distilbert.transformer.layer[0].hidden_act = "relu"


def wrap(model):
    layer = model.distilbert.transformer.layer[0]
    layer.ffn = Wrapper(layer.ffn)


class Wrapper(torch.nn.Module):
    """As PEFT's: what it has not, its module has."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        module.lin1.weight.data.mul_(3)

    def __getattr__(self, name):
        return self._modules["module"] if name == "module" else getattr(self._modules["module"], name)


def write_while_wrapped(model):
    layer = model.distilbert.transformer.layer[0]
    plain = layer.ffn
    wrap(model)
    answer(model)
    plain.lin1.weight.data.mul_(3)
    layer.ffn = plain


def freeze(model):
    part = model.distilbert.transformer.layer[0].ffn.lin1
    weight = part.weight.detach().clone()
    del part.weight
    part.register_buffer("weight", weight)
    answer(model)
    part.weight.mul_(3)


CHANGES = (
    *(in_place, by_another, by_a_state, behind_the_back, by_a_fused_optimizer, replace, hook, patch, drop_out),
    *(
        through_data,
        by_storage,
        hook_the_layer,
        normalize_otherwise,
        activate_otherwise,
        wrap,
        write_while_wrapped,
        freeze,
    ),
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("change", CHANGES)
def test_weights_and_modules_that_change_are_noticed(change, dtype):
    model = load("torch", "seqcls", dtype=dtype)
    before = answer(model)
    change(model)
    torch.manual_seed(0)
    after = answer(model)
    assert not torch.allclose(before, after, atol=0.02)
    torch.manual_seed(0)
    torch.testing.assert_close(after, by_modules(model), atol=TOLERANCE[dtype] * float(after.abs().max()), rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_modules_run_where_gradients_or_graphs_may_be_asked_for(dtype, calls):
    model = load("torch", "seqcls", dtype=dtype)
    model(IDS).logits.sum().backward()
    assert model.distilbert.transformer.layer[0].attention.q_lin.weight.grad is not None
    torch.compile(model, backend="eager", fullgraph=True)(IDS)
    with torch.no_grad(), torch.autocast("cpu"):
        model(IDS)
    with torch.no_grad():
        load("torch", "seqcls", dtype="float64" if dtype == "float32" else "float16")(IDS)
    assert calls["layers"] == 0


@pytest.mark.parametrize("kind", [torch.nn.Linear, torch.nn.LayerNorm])
def test_classes_that_are_patched_and_modes_are_noticed(kind, monkeypatch):
    model, forward, seen = load("torch", "seqcls"), kind.forward, []
    before = answer(model)

    class Mode(TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), options=None):
            seen.append(function)
            return function(*arguments, **(options or {}))

    with Mode():
        answer(model)
    assert seen.count(torch.nn.functional.linear) > 6 * model.config.n_layers
    monkeypatch.setattr(kind, "forward", lambda self, value: 1.5 * forward(self, value))
    assert not torch.allclose(answer(model), before, atol=0.02)


def test_weights_can_be_swapped_after_a_first_answer():
    """PyTorch swaps what nothing else refers to, even weakly."""
    model = load("torch", "seqcls")
    answer(model)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert answer(model).dtype == torch.float32 and model.dtype == torch.float64


def test_an_activation_that_has_no_hash():
    class Activation:
        __hash__ = None

        def __call__(self, value):
            return value.relu()

    for dtype in ("float32", "bfloat16"):
        model = load("torch", "seqcls", dtype=dtype, activation=Activation())
        torch.testing.assert_close(answer(model), by_modules(model), atol=0.2, rtol=0)


def test_what_is_never_called_takes_no_place():
    layer = load("torch", "seqcls").distilbert.transformer.layer[0]
    with pytest.raises(InputError, match=r"ffn only holds its parts and is never called: replace ffn\.lin1, ffn\.lin2"):
        layer.ffn = torch.nn.Sequential(layer.ffn)
    attention = load("torch", "bert-seqcls").bert.encoder.layer[0].attention
    with pytest.raises(InputError, match="self only holds its parts"):
        attention.self = torch.nn.Sequential()


@pytest.mark.parametrize("dtype", DTYPES)
def test_copies_and_pruned_heads(dtype):
    model = load("torch", "seqcls", dtype=dtype)
    answer(model)
    copied = copy.deepcopy(model)
    copied.prune_heads({0: [1]})
    torch.testing.assert_close(answer(copied), by_modules(copied), atol=4 * TOLERANCE[dtype], rtol=0)
    layer = ref(model.distilbert.transformer.layer[0])
    assert layer() in products.LAID_OUT
    model.train()
    model(IDS)
    assert layer() not in products.LAID_OUT
    answer(model.eval())
    model.classifier.register_full_backward_hook(lambda *_, model=model: None)
    layer().ffn.register_full_backward_hook(lambda *_, model=model: None)
    del model
    gc.collect()
    assert layer() is None  # nothing keeps it


@pytest.mark.parametrize("head", ["sequence-classification", "masked-lm"])
def test_int8_is_close(head):
    folder = GOLDEN / f"distilbert-{'seqcls' if head == 'sequence-classification' else 'mlm'}"
    rows = [[1, 5, 9, 4, 2], [1, 7, 2]]
    exact = InferenceModel.from_pretrained(head, folder)(rows)
    model = InferenceModel.from_pretrained(head, folder, dtype="int8")
    for one, other in zip(exact, model(rows), strict=True):
        np.testing.assert_allclose(one["logits"], other["logits"], atol=0.15 * np.abs(one["logits"]).max())
    with pytest.raises(InputError, match="is int8, expected floats: a quantised model"):
        model.model.save_pretrained("anywhere")


def test_int8_beside_float32(calls):
    exact, model = load("torch", "seqcls"), quantize(load("torch", "seqcls"))
    answer(model)
    assert calls["layers"] == model.config.n_layers
    model.distilbert.transformer.layer[0].attention.k_lin = exact.distilbert.transformer.layer[0].attention.k_lin
    torch.testing.assert_close(answer(model), by_modules(exact), atol=0.15 * float(answer(exact).abs().max()), rtol=0)
    assert calls["layers"] == 3 * model.config.n_layers - 1  # with those of the exact one


@pytest.mark.parametrize("ids", [IDS, IDS[:, :3]], ids=["packed", "rectangle"])
def test_wherever_tensors_are_made(ids):
    model = quantize(load("torch", "seqcls"))
    expected = answer(model, ids)
    with torch.device("meta"):
        torch.testing.assert_close(answer(model.eval(), ids), expected)


@pytest.fixture
def rows(monkeypatch):
    """The numbers of rows that products were asked for."""
    asked, product_of = set(), products.product_of

    def asking(*arguments):
        product = product_of(*arguments)

        def multiply(value, *more):
            asked.add(value.shape[:-1].numel())
            return product(value, *more)

        return multiply

    monkeypatch.setattr(products, "product_of", asking)
    return asked


@pytest.mark.parametrize("dtype", [*DTYPES[1:], "int8"])
@pytest.mark.parametrize(
    ("case", "options"),
    [("seqcls", {}), ("tokcls", {}), ("bert-base", {}), ("seqcls", {"output_hidden_states": True})],
)
def test_batches_are_filled_up_and_nothing_else_changes(case, options, dtype, rows, monkeypatch):
    """oneDNN compiles a kernel for each number of rows: tokens, and in the last layer of a classifier texts."""

    def outputs(flip):
        model = quantize(load("torch", case)) if dtype == "int8" else load("torch", case, dtype=dtype)
        for texts, length in ((1, 1), (1, 3), (1, 33), (2, 7), (35, 11), (35, 32), (40, 13)):
            ids = torch.randint(1, 90, (texts, length), generator=torch.manual_seed(length))
            ragged = (torch.arange(length) < torch.arange(texts)[:, None] % length + 1).long()
            for mask in (ragged.flip(1),) if flip else (None, ragged):
                with torch.inference_mode():
                    yield flatten("torch", model(ids, attention_mask=mask, **options))

    filled = list(outputs(False))
    assert options or all(products.missing_rows(count) == 0 for count in rows)
    filled += outputs(True)  # a classifier keeps padding that comes first
    monkeypatch.setattr(products, "fill_up", lambda value: value)
    rows.clear()
    for found, expected in zip(filled, (*outputs(False), *outputs(True)), strict=True):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(
                found[name], value, atol=(1e-5 if dtype == "int8" else 0.02) * np.abs(value).max()
            )
    assert options or 40 * 13 in rows


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
@pytest.mark.parametrize("has_limits", [True, False])
def test_memory_of_large_results_is_kept(has_limits, monkeypatch):
    """Whether pages are kept depends on all that a process did before; that glibc is told, once, does not."""
    told = []
    library = SimpleNamespace(**{"mallopt": lambda *arguments: told.append(arguments)} if has_limits else {})
    monkeypatch.setattr(products.ctypes, "CDLL", lambda name: library)
    products.keep_freed_memory.cache_clear()
    answer(load("torch", "seqcls"))
    assert told == [(-3, 32 << 20), (-1, 64 << 20)] * has_limits


@pytest.mark.parametrize(("dtype", "rows"), [("float32", 16), ("bfloat16", 32)])
def test_batches_fit_caches(dtype, rows):
    model = InferenceModel.from_pretrained("base", GOLDEN / "distilbert-base", dtype=dtype)
    assert model.batch_rows(64) == rows


def test_activations_in_place_are_those_of_the_encoder():
    assert products.IN_PLACE.keys() == encoder.ACTIVATIONS.keys()


def test_int8_of_what_is_no_number():
    model = quantize(distilbert.DistilBertModel.from_pretrained(GOLDEN / "distilbert-base"))
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = np.nan
    found = InferenceModel(model)([[1, 5, 2]])[0]["last_hidden_state"]
    assert np.isnan(found).all()


def test_int8_of_what_has_none():
    with pytest.raises(InputError, match="dtype is int8, which is for CPUs, not meta"):
        InferenceModel.from_pretrained("base", GOLDEN / "distilbert-base", dtype="int8", device="meta")


def test_quantize_wants_float32():
    with pytest.raises(InputError, match=r"the model is torch.bfloat16 on cpu, expected float32"):
        quantize(load("torch", "base", dtype="bfloat16"))


def test_quantize_leaves_embeddings_and_heads():
    model = quantize(distilbert.DistilBertForSequenceClassification.from_pretrained(GOLDEN / "distilbert-seqcls"))
    assert type(model.classifier) is torch.nn.Linear
    assert model.get_input_embeddings().weight.dtype == torch.float32
