"""Batches without padding, in PyTorch: at every token the numbers of padded ones, for every head."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from backends import EVERY_CASE, arrays_of, assert_close, at_tokens, flatten, folder_of, head_of, load

from distilbert.core.errors import InputError
from distilbert.core.outputs import is_per_token
from distilbert.pt import attention, products
from distilbert.pt.attention import Packing, Sequences
from distilbert.pt.inference import InferenceModel


def tensors(arrays):
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def masks(shape):
    """Some masks by name, for batches of that shape."""
    made = {
        name: np.ones(shape, np.int64).reshape(-1, shape[-1]) for name in ("ragged", "full", "holes", "left", "empty")
    }
    made["ragged"][0, 1:] = made["ragged"][1, 5:] = 0  # a text of one token
    made["holes"][0, 3:5] = made["holes"][1, 7:9] = 0
    made["left"][0, :4] = made["left"][1, :2] = 0
    made["empty"][0] = made["empty"][1, 6:] = 0
    return {name: mask.reshape(shape) for name, mask in made.items()}


def both_ways(model, batch, **options):
    """The outputs of a batch without padding, and with it."""
    for is_padding_free in (True, False):
        model.is_padding_free = is_padding_free
        yield model(**batch, **options)


@pytest.mark.parametrize("case", EVERY_CASE)
def test_no_token_notices(case):
    model, arrays, head = load("torch", case), arrays_of(case), head_of(case)
    model.prune_heads({0: [1]})
    for name, mask in masks(arrays["input_ids"].shape).items():
        packed, padded = (flatten("torch", out) for out in both_ways(model, tensors(arrays | {"attention_mask": mask})))
        assert packed.keys() == padded.keys()
        seen = mask | ~mask.any(-1, keepdims=True)  # where no token counts, all do
        wanted = at_tokens(padded, case, seen)
        for output, value in at_tokens(packed, case, seen).items():
            assert_close(value, wanted[output], 1e-5, f"{name}: {output}")
        if name == "left" and "pooler" in model.base_model.paths:
            continue  # its first token is padding, and so padding stays
        filler = np.finfo(np.float32).min if head == "question-answering" else 0
        for output, value in at_tokens(packed, case, 1 - seen).items():
            assert not is_per_token(output, head) or (value == filler).all(), f"{name}: {output}"


@pytest.mark.parametrize("case", ["base", "mlm", "seqcls", "qa", "bert-base", "bert-choice"])
def test_gradients(case):
    model, arrays = load("torch", case), arrays_of(case)
    mask = masks(arrays["input_ids"].shape)["ragged"]
    found = []
    for output in both_ways(model, tensors(arrays | {"attention_mask": mask})):
        model.zero_grad()
        seen = torch.from_numpy(mask).bool()
        kept = [value[seen] if is_per_token(name, head_of(case)) else value for name, value in output.items()]
        sum(value.square().sum() for value in kept).backward()
        found.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    largest = max(float(value.abs().max()) for value in found[1].values())
    for name, value in found[1].items():
        torch.testing.assert_close(found[0][name], value, rtol=0, atol=1e-5 * largest, msg=name)


@pytest.mark.parametrize("case", EVERY_CASE)
def test_packed_batches(case):
    model, arrays = load("torch", case), arrays_of(case)
    shape = arrays["input_ids"].shape
    ragged = masks(shape)["ragged"]
    with torch.inference_mode():
        padded = flatten("torch", model(**tensors(arrays | {"attention_mask": ragged})))
    rows = [
        ids[: mask.sum()].tolist()
        for ids, mask in zip(*(a.reshape(-1, shape[-1]) for a in (arrays["input_ids"], ragged)), strict=True)
    ]
    types = arrays.get("token_type_ids")
    if types is not None:
        types = [row[: len(ids)].tolist() for row, ids in zip(types.reshape(-1, shape[-1]), rows, strict=True)]
    found = InferenceModel(model)(rows, types)
    for output, wanted in padded.items():
        if is_per_token(output, head_of(case)):
            wanted = [row[: len(ids)] for row, ids in zip(wanted, rows, strict=True)]
        for number, outputs in enumerate(found):
            row = np.ravel(wanted)[number : number + 1] if head_of(case) == "multiple-choice" else wanted[number]
            assert_close(outputs[output], row, 1e-5, output)


def in_a_new_thread(call):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


@pytest.fixture(params=[1, 3])
def cores(request):
    """How many PyTorch computes on."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    if products.workers.cache_info().currsize:
        products.workers(request.param).shutdown()
    products.workers.cache_clear()
    torch.set_num_threads(before)


@pytest.mark.skipif(not products.has_layout(torch.float32), reason="PyTorch lays out no float32 here")
@pytest.mark.parametrize("case", ["base", "mlm", "seqcls", "qa", "bert-base", "bert-choice"])
def test_large_batches_go_by_pieces(case, cores, monkeypatch):
    model, arrays = load("torch", case), arrays_of(case)
    given = [tensors(arrays | {"attention_mask": mask}) for mask in masks(arrays["input_ids"].shape).values()]
    sizes, hooked, compute = [], [], products.LaidOutLayer.__call__

    def note(self, layer, hidden, *arguments):
        sizes.append(hidden.shape[:-1])
        return compute(self, layer, hidden, *arguments)

    @torch.no_grad()
    def outputs():
        return [flatten("torch", model(**batch)) for batch in given]

    whole = outputs()
    monkeypatch.setattr(products.LaidOutLayer, "__call__", note)
    monkeypatch.setattr(products, "cached_tokens", lambda itemsize: 8)
    for found, wanted in zip(outputs(), whole, strict=True):
        for output, value in found.items():
            assert_close(value, wanted[output], 1e-5, output)
    layers = len(model.base_model.layers())
    assert len(sizes) > layers * len(given)
    rows = arrays["input_ids"].reshape(-1, arrays["input_ids"].shape[-1]).shape
    assert {size for size in sizes if len(size) == 2} <= {(1, rows[1]), rows}  # whole where a mask stays
    model.base_model.layers()[0].register_forward_pre_hook(lambda layer, given: hooked.append(given[0].shape[:-1]))
    outputs()
    assert len(hooked) == len(given)  # who looks on sees all at once


@pytest.fixture
def threads(monkeypatch):
    """The names of those that layers ran in."""
    names, compute = set(), products.LaidOutLayer.__call__

    def note(*arguments):
        names.add(threading.current_thread().name.partition("_")[0])
        return compute(*arguments)

    monkeypatch.setattr(products.LaidOutLayer, "__call__", note)
    monkeypatch.setattr(products, "PIECE", 4)
    return names


@pytest.mark.skipif(not products.has_layout(torch.float32), reason="PyTorch lays out no float32 here")
@pytest.mark.parametrize("cores", [3], indirect=True)
@pytest.mark.parametrize(
    ("lengths", "runs_in"),
    [
        ([12, 12, 12], "distilbert"),
        ([6, 7, 5, 6, 2, 3, 7, 4, 6, 6], "distilbert"),
        ([5, 5, 5], "MainThread"),  # too little to do
        ([30, 3, 3], "MainThread"),  # two cores would wait for one
        ([40], "MainThread"),
    ],
)
@pytest.mark.parametrize("first_token_only", [False, True])
def test_equal_pieces_run_on_a_core_each(lengths, runs_in, first_token_only, cores, threads):
    model, generator = load("torch", "base"), torch.manual_seed(0)
    vectors = torch.randn(sum(lengths), model.config.dim, generator=generator)
    ends = torch.tensor([0, *lengths]).cumsum(0)
    given = {"inputs_embeds": vectors, "cu_seqlens": ends, "first_token_only": first_token_only}
    wanted = model(**given).last_hidden_state.detach()  # the modules, as it may ask for gradients
    assert not threads
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = model(**given).last_hidden_state
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
        assert found.is_inference() == (mode is torch.inference_mode)
        assert threads == {runs_in}
    assert torch.get_num_threads() == cores
    assert in_a_new_thread(torch.get_num_threads) == cores  # what users compute in threads of their own
    with torch.profiler.profile() as profile, torch.no_grad():
        model(**given)
    names = [event.key for event in profile.key_averages()]
    assert any("scaled_dot_product" in name for name in names)  # who measures sees everything


@pytest.mark.skipif(not products.has_layout(torch.float32), reason="PyTorch lays out no float32 here")
@pytest.mark.parametrize("cores", [3], indirect=True)
@pytest.mark.parametrize("first_token_only", [False, True])
def test_weights_are_laid_out_for_all_cores(first_token_only, cores, threads, monkeypatch):
    """MKL's layouts are for as many threads as made them: one text would run on one core, ever after."""
    model, made_for, lay_out = load("torch", "base"), [], products.product_of

    def note(*arguments):
        made_for.append(torch.get_num_threads())
        return lay_out(*arguments)

    monkeypatch.setattr(products, "product_of", note)
    given = {"inputs_embeds": torch.randn(3, 12, model.config.dim), "first_token_only": first_token_only}
    with torch.no_grad():
        model(**given)
        assert threads != {"MainThread"} and made_for == [cores] * len(made_for)
        count = len(made_for)
        assert count == 4 * model.config.n_layers + first_token_only
        for now in (cores - 1, cores, cores + 1, cores):
            torch.set_num_threads(now)
            model(**given)
    assert made_for[count:] == [cores + 1] * count  # what was made for more serves fewer


@pytest.mark.skipif(not products.has_layout(torch.float32), reason="PyTorch lays out no float32 here")
@pytest.mark.parametrize("cores", [3], indirect=True)
def test_what_fails_on_a_core_fails(cores, threads, monkeypatch):
    model = load("torch", "base")

    def fail(*arguments):
        raise MemoryError("full")

    monkeypatch.setattr(products, "normalize", fail)
    with torch.no_grad(), pytest.raises(MemoryError, match="full"):
        model(inputs_embeds=torch.randn(3, 12, model.config.dim))


@pytest.mark.skipif(not products.has_layout(torch.float32), reason="PyTorch lays out no float32 here")
@pytest.mark.parametrize("cores", [3], indirect=True)
@pytest.mark.parametrize("threads_left", [0, 2])
def test_without_threads_one_core_after_the_other(threads_left, cores, threads, monkeypatch):
    model, start, started = load("torch", "base"), threading.Thread.start, []

    def start_few(thread):
        if len(started) == threads_left:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_few)
    with torch.no_grad():
        model(inputs_embeds=torch.randn(3, 12, model.config.dim))
    assert threads == {"MainThread"}
    assert not any(thread.is_alive() for thread in started)  # none waits for what will never come
    monkeypatch.undo()
    assert in_a_new_thread(torch.get_num_threads) == cores


@pytest.mark.parametrize("cores", [3], indirect=True)
def test_workers_compute_on_one_core(cores):
    pool = products.workers(cores)

    def compute():
        torch.layer_norm(torch.randn(512, 64), [64])  # PyTorch settles on a number when it first needs it
        return torch.get_num_threads()

    assert [pool.submit(compute).result() for _ in range(9)] == [1] * 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("cores", [3], indirect=True)
def test_a_forked_process_has_threads_of_its_own(cores):
    parents = products.workers(cores)
    child = os.fork()
    if not child:
        pool = products.workers(1)
        os._exit(0 if pool is not parents and pool.submit(int).result(60) == 0 else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not products.has_layout(torch.float32), reason="PyTorch lays out no float32 here")
@pytest.mark.parametrize(
    ("cores", "case", "dtype", "parts"),
    [
        (1, "seqcls", "float32", 1),
        (3, "seqcls", "float32", 12),
        (3, "seqcls", "int8", 12),
        (24, "seqcls", "float32", 48),  # vectors of more would take much memory
        (80, "seqcls", "float32", 80),
        (3, "mlm", "float32", 1),  # and so would scores for all words
        (3, "seqcls", "float16", 6),  # is not laid out, and shares its products; half as large
    ],
    indirect=["cores"],
)
def test_batches_have_something_for_every_core(cores, case, dtype, parts):
    assert InferenceModel.from_pretrained(head_of(case), folder_of(case), dtype=dtype).batch_rows(100) == parts * 10


@pytest.mark.skipif(not products.has_layout(torch.bfloat16), reason="PyTorch lays out no bfloat16 here")
@pytest.mark.parametrize("cores", [2, 3, 8, 20, 40, 64], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batches_of_pipelines_are_divided_among_all_cores(cores, dtype):
    model = InferenceModel(load("torch", "seqcls", dtype=dtype))
    for length in (5, 23, 100, 200, 256, 300, 343, 384, 450, 512):
        rows = model.batch_rows(length)
        packed = Sequences.of_rectangle(torch.Size((rows, length)), torch.device("cpu"))
        for shape, visible in (((rows, length, 4), None), ((rows * length, 4), packed)):
            pieces = products.one_for_each_core(torch.empty(shape, dtype=dtype), visible, cores)
            assert len(pieces) >= cores


@pytest.mark.parametrize(("texts", "pieces"), [(15, [1200, 800] * 3), (5, [])])  # the first core would have 3 of 5
def test_cores_have_equally_much_if_not_equal_pieces(texts, pieces):
    ends = torch.arange(0, 400 * texts + 1, 400)
    found = products.one_for_each_core(torch.empty(400 * texts, 4), Sequences(ends, 400), 2)
    assert [len(part) for part, _ in found] == pieces


@pytest.mark.skipif(not products.has_layout(torch.float32), reason="PyTorch lays out no float32 here")
@pytest.mark.parametrize("first_token_only", [False, True])
def test_keys_of_neighbours_may_be_read_and_do_not_count(first_token_only, monkeypatch):
    model, generator = load("torch", "base"), torch.manual_seed(0)
    lengths = [*range(1, 33), 31, 31, 31, 5, 5]
    vectors = torch.randn(sum(lengths), model.config.dim, generator=generator).split(lengths)
    ends = torch.tensor([0, *lengths]).cumsum(0)
    masked, compute = [], attention.sdpa_attention

    def note(query, key, value, visible, *more):
        masked.append(visible is not None)
        return compute(query, key, value, visible, *more)

    @torch.inference_mode()
    def outputs(vectors):
        given = {"inputs_embeds": torch.cat(vectors), "cu_seqlens": ends, "first_token_only": first_token_only}
        found = model(**given).last_hidden_state
        return found.split(1 if first_token_only else lengths)

    with torch.inference_mode():
        alone = [model(inputs_embeds=each[None]).last_hidden_state[0] for each in vectors]
    wanted = [each[:1, None] if first_token_only else each for each in alone]
    monkeypatch.setattr(attention, "sdpa_attention", note)
    for found, expected in zip(outputs(vectors), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert any(masked) and not all(masked)
    broken = (*vectors[:20], vectors[20] * torch.nan, *vectors[21:])
    for number, found in enumerate(outputs(broken)):
        expected = wanted[number] * torch.nan if number == 20 else wanted[number]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5, equal_nan=True)


def test_where_padding_stays(monkeypatch):
    def refuse(visible):
        raise AssertionError("packed")

    monkeypatch.setattr(Packing, "of", refuse)
    for case in ("base", "qa", "seqcls", "bert-base"):
        model, arrays = load("torch", case), arrays_of(case, labels=True)
        labels = {name: array for name, array in arrays.items() if name.endswith(("labels", "positions"))}
        ragged = arrays | {"attention_mask": masks(arrays["input_ids"].shape)["ragged"]}
        plain = tensors({name: array for name, array in ragged.items() if name not in labels})
        with pytest.raises(AssertionError, match="packed"):
            model(**plain)
        heads = torch.ones(model.config.num_attention_heads)
        for options in ({"output_hidden_states": True}, {"output_attentions": True}, {"head_mask": heads}):
            model(**plain, **options)
        model(**plain | {"attention_mask": plain["attention_mask"].float()})
        if case == "qa":  # its loss looks at every place
            model(**tensors(ragged))
        if case != "base":
            left = torch.from_numpy(masks(arrays["input_ids"].shape)["left"])
            (model if case != "qa" else load("torch", "qa", attn_implementation="eager"))(
                **plain | {"attention_mask": left}
            )
        model.train()(**plain)
        model.eval().is_padding_free = False
        model(**plain)
        model.is_padding_free = True
        scaled = torch.func.vmap(lambda factor, model=model, plain=plain: model(**plain)[0] * factor)
        scaled(torch.ones(2))


@pytest.mark.parametrize(
    "cu_seqlens, more, message",
    [
        ([0, 3, 5], {}, "rise from 0 to 6"),
        ([1, 6], {}, "rise from 0 to 6"),
        ([0, 4, 3, 6], {}, r"cu_seqlens is \[0, 4, 3, 6\]"),
        ([0, 3, 3, 6], {}, "rise from 0"),
        ([[0, 6]], {}, "sequences . 1"),
        ([0, 6], {"attention_mask": torch.ones(6, dtype=torch.long)}, "no padding"),
        ([0, 6], {"position_ids": torch.zeros(1, 6, dtype=torch.long)}, "position_ids has shape"),
        ([0, 6], {"output_attentions": True}, "no head_mask and no attentions"),
        ([0, 6], {"input_ids": torch.ones(1, 6, dtype=torch.long)}, "input_ids has shape"),
        ([0, 41], {"input_ids": torch.ones(41, dtype=torch.long)}, "max_position_embeddings=40"),
        ([0, 6], {"inputs_embeds": torch.ones(6, 3)}, "exactly one"),
    ],
)
def test_bad_packed_batches_are_explained(cu_seqlens, more, message):
    with pytest.raises(InputError, match=message):
        load("torch", "base")(
            **{"input_ids": torch.ones(6, dtype=torch.long), "cu_seqlens": torch.tensor(cu_seqlens)} | more
        )
