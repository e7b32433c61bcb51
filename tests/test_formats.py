"""The contract of the containers, and what hostile or damaged files may do: raise ``CheckpointError``, no more."""

import gc
import io
import json
import mmap
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from distilbert.core.errors import CheckpointError
from distilbert.core.formats import DTYPES, safetensors, torch_bin

torch = pytest.importorskip("torch")
reference = pytest.importorskip("safetensors.torch")

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*/pytorch_model.bin"))
READERS = {"safetensors": safetensors.read, "zip": torch_bin.read, "legacy": torch_bin.read}
PICKLES = ("zip", "legacy")
LEGACY_START = b"".join(
    pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
)


@pytest.fixture(autouse=True)
def frequent_collection():
    """What an error holds on to is a mapped file, of which there are thousands here: see conftest.py for the rest."""
    usual = gc.get_threshold()
    gc.set_threshold(5000, 10, 10)
    yield
    gc.set_threshold(*usual)


def save(container: str, content: object, path: Path) -> Path:
    """Write ``content`` as the reference implementation does."""
    if container == "safetensors":
        reference.save_file(content, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=container == "zip")
    return path


def wrap(container: str, pickled: bytes, path: Path) -> Path:
    """Put a pickle where the container has its state dict, without storages."""
    if container == "legacy":
        path.write_bytes(LEGACY_START + pickled + pickle.dumps([], protocol=2))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
    return path


def assert_equal(array: np.ndarray, tensor: "torch.Tensor") -> None:
    assert array.shape == tuple(tensor.shape)
    assert array.dtype.name == str(tensor.dtype).removeprefix("torch.")
    assert array.tobytes() == tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def small_state() -> dict[str, "torch.Tensor"]:
    return OrderedDict(weight=torch.arange(6.0).reshape(2, 3), bias=torch.ones(2, dtype=torch.bfloat16))


@pytest.fixture(params=READERS)
def container(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.parent.name)
def test_golden_containers_agree(path: Path) -> None:
    pickled, plain = torch_bin.read(path), safetensors.read(path.with_name("model.safetensors"))
    assert plain.keys() <= pickled.keys()  # safetensors leaves tied weights out
    for name, tensor in torch.load(path).items():
        assert_equal(pickled[name], tensor)
    for name, array in plain.items():
        np.testing.assert_array_equal(array, pickled[name], strict=True)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_dtype(container: str, dtype: str, tmp_path: Path) -> None:
    if container == "safetensors" and dtype == "complex128":
        pytest.skip("the format has no such dtype")
    raw = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 1]], dtype=torch.uint8).repeat(1, 8)
    tensor = raw.view(getattr(torch, dtype))
    assert_equal(READERS[container](save(container, {"x": tensor}, tmp_path / "file"))["x"], tensor)


def test_shapes(container: str, tmp_path: Path) -> None:
    tensors = {
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "none": torch.zeros(0),
        "ones": torch.ones(1, 1, 1),
    }
    arrays = READERS[container](save(container, tensors, tmp_path / "file"))
    assert arrays.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert_equal(arrays[name], tensor)


@pytest.mark.parametrize("container", PICKLES)
def test_strides_and_shared_storages(container: str, tmp_path: Path) -> None:
    base = torch.arange(24).reshape(2, 3, 4)
    tensors = {
        "base": base,
        "transposed": base.transpose(0, 2),
        "slice": base[1:, ::2, 1:3],
        "expanded": base[0, 0, :1].expand(5),
        "end": base[2:],
    }
    arrays = READERS[container](save(container, tensors, tmp_path / "file"))
    for name, tensor in tensors.items():
        assert_equal(arrays[name], tensor)
        assert tensor.numel() == 0 or np.shares_memory(arrays[name], arrays["base"])
    assert list(arrays) == list(tensors)


def test_arrays_are_read_only_views_of_the_file(container: str, tmp_path: Path) -> None:
    for array in READERS[container](save(container, small_state(), tmp_path / "file")).values():
        assert not array.flags.writeable
        base = array
        while isinstance(base, np.ndarray):
            base = base.base
        assert isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)


@pytest.mark.parametrize("container", PICKLES)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_surrounds_tensors(container: str, protocol: int, tmp_path: Path) -> None:
    """Parameters, module versions, a wrapping training checkpoint, later pickle protocols."""
    module = torch.nn.BatchNorm1d(3)
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.note = "an attribute"
    state = module.state_dict()
    state["parameter"] = parameter
    content = {
        "epoch": 3,
        "state_dict": state,
        "optimizer": {"state": {0: {"step": 1.5}}, "shape": module.weight.shape},
    }
    path = tmp_path / "file"
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=container == "zip")
    arrays = torch_bin.read(path)
    assert arrays.keys() == state.keys()
    for name, tensor in state.items():
        assert_equal(arrays[name], tensor.detach())


def test_written_files_suit_the_reference_reader(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    arrays = {name: np.ones((3, 5), dtype) for name, dtype in DTYPES.items() if name != "complex128"}
    arrays |= {
        "bfloat16 transposed": np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16).T,
        "every other": np.arange(10.0)[::2],
        "reversed": np.arange(5)[::-1],
        "big-endian": np.arange(5, dtype=">i4"),
        "scalar": np.array(1.5, np.float32),
        "empty": np.zeros((0, 3)),
        'näme\n"quoted"': np.zeros(1, bool),
    }
    safetensors.write(path, arrays)
    tensors = reference.load_file(path)
    read = safetensors.read(path)
    assert tensors.keys() == read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert_equal(read[name], tensors[name])
        np.testing.assert_array_equal(read[name], array)
        assert read[name].flags.aligned
    with reference.safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"}
    safetensors.write(path, {}, {"step": "7"})
    with reference.safe_open(path, "np") as file:
        assert file.metadata() == {"step": "7"}
    assert safetensors.read(path) == {}


def test_tensors_can_be_written_over_the_file_they_are_views_of(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.write(path, {"x": np.arange(100_000)})
    safetensors.write(path, {"y": safetensors.read(path)["x"]})
    np.testing.assert_array_equal(safetensors.read(path)["y"], np.arange(100_000))


@pytest.mark.parametrize(
    "tensors", [{"x": np.ones(2, np.complex128)}, {"x": np.array(["a"])}, {"__metadata__": np.ones(1)}]
)
def test_write_refuses_what_the_format_lacks(tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot store"):
        safetensors.write(tmp_path / "model.safetensors", tensors)
    assert not list(tmp_path.iterdir())


def test_import_needs_no_framework() -> None:
    code = "import sys; from distilbert.core.formats import safetensors, torch_bin; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# Damage, and files of another kind


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html></html>", "web page"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "server's error"),
        (b"", "empty file"),
        (b"some text", "expected a"),
        (b"\x00" * 100, "expected a"),
        (b"\xff" * 100, "expected a"),
    ],
)
def test_other_kinds_of_files(container: str, content: bytes, hint: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=hint) as error:
        READERS[container](path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_no_file_at_all(container: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="folder"):
        READERS[container](tmp_path)
    with pytest.raises(FileNotFoundError):
        READERS[container](tmp_path / "absent")


def test_truncated_anywhere(container: str, tmp_path: Path) -> None:
    whole = save(container, small_state(), tmp_path / "file").read_bytes()
    path = tmp_path / "truncated"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            READERS[container](path)


def test_random_damage(container: str, tmp_path: Path) -> None:
    whole = save(container, small_state(), tmp_path / "file").read_bytes()
    path = tmp_path / "damaged"
    choice = random.Random(0)
    for _ in range(500):
        damaged = bytearray(whole)
        for _ in range(choice.choice((1, 1, 2, 8))):
            damaged[choice.randrange(len(damaged))] = choice.choice((0, 0x7F, 0xFF, choice.randrange(256)))
        path.write_bytes(damaged)
        try:
            arrays = READERS[container](path)
        except CheckpointError:
            continue
        for array in arrays.values():  # whatever was accepted lies inside the file
            assert array.size == 0 or np.count_nonzero(array) <= array.size


# Safetensors headers that lie


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


@pytest.mark.parametrize(
    ("header", "size"),
    [
        (json.dumps(header) if not isinstance(header, str) else header, size)
        for header, size in [
            ([], 0),
            ({"x": 1}, 0),
            ({"x": {}}, 0),
            ({"x": entry(dtype="F33")}, 8),
            ({"x": entry(dtype=[])}, 8),
            ({"x": entry(shape=[-2])}, 8),
            ({"x": entry(shape=[True, 2])}, 8),
            ({"x": entry(shape=[2.0])}, 8),
            ({"x": entry(shape=2)}, 8),
            ({"x": entry(shape=[3])}, 8),
            ({"x": entry(shape=[1] * 65, data_offsets=[0, 4])}, 4),
            ({"x": entry(shape=[2**32, 2**32], data_offsets=[0, 0])}, 0),
            ({"x": entry(shape=[0, 2**62, 2**62], data_offsets=[0, 0])}, 0),
            ({"x": entry(shape=[2**62], data_offsets=[0, 2**64])}, 8),
            ({"x": entry(data_offsets=[8, 0])}, 8),
            ({"x": entry(data_offsets=[-8, 0])}, 8),
            ({"x": entry(data_offsets=[0])}, 8),
            ({"x": entry()}, 4),
            ({"x": entry()}, 12),
            ({"x": entry(data_offsets=[4, 12])}, 12),
            ({"x": entry(), "overlapping": entry(data_offsets=[4, 12])}, 12),
            ({"x": entry(), "hole": entry(data_offsets=[12, 20])}, 20),
            ({"x": entry(), "same": entry()}, 8),
            ('{"x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "x": {}}', 1),
            ('{"x": {"dtype": "F32", "dtype": "F32", "shape": [], "data_offsets": [0, 4]}}', 4),
            ("[" * 100_000, 0),
            ('{"x": ' * 100_000, 0),
            ('{"x": ' + "9" * 10_000 + "}", 0),
            ('{"x": NaN}', 0),
            ("{", 0),
        ]
    ],
)
def test_safetensors_header_that_lies(header: str, size: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(size))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: expected"):
        safetensors.read(path)


@pytest.mark.parametrize("length", [3, 100_000_001, 2**40, 2**63, 2**64 - 1])
def test_safetensors_header_of_a_terabyte(length: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(CheckpointError, match="expected"):
        safetensors.read(path)


# Pickles that want more than tensors


class Call:
    """Pickled, this is a call of ``function``."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> object:
        return self.call


@pytest.mark.parametrize("container", PICKLES)
@pytest.mark.parametrize("protocol", range(6))
def test_code_is_refused_and_not_run(container: str, protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    call = Call(Path.touch, marker)
    for number, content in enumerate((call, {"x": call}, OrderedDict(a=[(call,)]), {"state_dict": {"x": call}})):
        path = wrap(container, pickle.dumps(content, protocol), tmp_path / str(number))
        with pytest.raises(CheckpointError, match="refused, nothing in it ran"):
            torch_bin.read(path)
    (tmp_path / "bare").write_bytes(pickle.dumps(call, protocol))
    with pytest.raises(CheckpointError, match="refused, nothing in it ran"):
        torch_bin.read(tmp_path / "bare")
    assert not marker.exists()


LONG_TUPLE = (
    b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000NK\x08" + b"N" * 500_000 + b"tq\x00"
)

ATTACKS = {
    "global": (b"cos\nsystem\n(S'true'\ntR.", "'os.system'"),
    "after good ones": (b"\x80\x02ccollections\nOrderedDict\n)Rcbuiltins\neval\n.", "'builtins.eval'"),
    "torch itself": (b"\x80\x02ctorch\nload\n.", "'torch.load'"),
    "dotted": (b"\x80\x04\x8c\x05torch\x8c\x0ahub.os.abort\x93.", "expected"),
    "stack global": (b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93.", "'os.system'"),
    "stack global from memo": (b"\x80\x04\x8c\x06system\x94\x8c\x02os\x94\x86h\x01h\x00\x93.", "'os.system'"),
    "stack global of numbers": (b"\x80\x04K\x01K\x02\x93.", "malformed"),
    "inst": (b"(ios\nsystem\n.", "os system"),
    "extension": (b"\x80\x02\x82\x01.", "opcode EXT1"),
    "newobj": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "opcode NEWOBJ"),
    "call of a dtype": (b"\x80\x02ctorch\nfloat32\n)R.", "calls a function as PyTorch does not"),
    "attribute of a class": (b"\x80\x02ccollections\nOrderedDict\n}b.", "the type global where dict belongs"),
    "attribute of nothing": (b"\x80\x02}b.", "malformed"),
    "absent memo": (b"\x80\x02h\x07.", "malformed"),
    "8-byte length": (b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.", "expected"),
    "8-byte length of a bytearray": (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.", "expected"),
    "negative length": (b"\x80\x02T\xff\xff\xff\xffx.", "expected"),
    "huge integer": (b"\x80\x02}\x8b" + struct.pack("<I", 100_000) + b"\x11" * 100_000 + b"Ns.", "expected"),
    "deep key": (b"\x80\x02})" + b"\x85" * 500_000 + b"Ns.", "a key of type tuple"),
    "deep list": (b"\x80\x02" + b"]" * 400_000 + b"a" * 399_999 + b".", "the type list where dict belongs"),
    "deep storage": (b"\x80\x02)" + b"\x85" * 500_000 + b"Q.", "storage of an unknown kind"),
    "too large": (b"\x80\x02" + b"N" * 1_000_000 + b".", "expected"),
    # Each use of the long tuple, and each hash of the long number, must not take long
    "long storage": (LONG_TUPLE + b"h\x00Q" * 100_000 + b".", "the type storage where dict belongs"),
    "long number": (
        b"\x80\x02}\x8b" + struct.pack("<I", 500_000) + b"\x11" * 500_000 + b"q\x00Ns.",
        "a key of type int",
    ),
    "underflow": (b"\x80\x02\x87.", "takes more than"),
    "no mark": (b"\x80\x02u.", "malformed"),
    "nothing": (b"\x80\x02.", "malformed"),
    "unknown opcode": (b"\x80\x02\xfe.", "expected"),
    "odd items": (b"\x80\x02}(Nu.", "expected"),
    "not text": (b"\x80\x02}X\x01\x00\x00\x00\xffNs.", "expected"),
    "a number": (b"\x80\x02}X\x01\x00\x00\x00xK\x01s.", "'x' is no tensor but of type int"),
    "a number as a name": (b"\x80\x02}K\x01K\x01s.", "is no tensor"),
}


@pytest.mark.parametrize("container", PICKLES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_pickle(container: str, attack: str, tmp_path: Path) -> None:
    pickled, message = ATTACKS[attack]
    with pytest.raises(CheckpointError, match="expected") as error:
        torch_bin.read(wrap(container, pickled, tmp_path / "file"))
    assert message in str(error.value)


def test_legacy_storage_key_of_deep_tuples(tmp_path: Path) -> None:
    """Its hash would overflow the C stack."""
    path = tmp_path / "file"
    path.write_bytes(LEGACY_START + b"\x80\x02}." + b"\x80\x02])" + b"\x85" * 500_000 + b"a.")
    with pytest.raises(CheckpointError, match="the type tuple where str belongs"):
        torch_bin.read(path)


@pytest.mark.parametrize("container", PICKLES)
def test_a_huge_memo_index_costs_nothing(container: str, tmp_path: Path) -> None:
    """The C unpickler would allocate 32 GB for this."""
    assert torch_bin.read(wrap(container, b"\x80\x02}r\xff\xff\xff\xff.", tmp_path / "file")) == {}


@pytest.mark.parametrize("container", PICKLES)
@pytest.mark.parametrize(
    "content",
    [
        torch.ones(2),
        {"x": 1.5},
        {"model": {"x": torch.ones(2)}},
        {"x": torch.ones(2).to_sparse()},
        [torch.ones(2)],
    ],
)
def test_what_is_no_state_dict(container: str, content: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected"):
        torch_bin.read(save(container, content, tmp_path / "file"))


# Tensors and storages that lie


def rebuilt(offset: object, shape: object, strides: object, *rest: object) -> Call:
    storage = torch.arange(8.0)._typed_storage()
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, shape, strides, False, OrderedDict(), *rest)


@pytest.mark.parametrize("container", PICKLES)
@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (9,), (1,)),
        (1, (8,), (1,)),
        (8, (1,), (1,)),
        (0, (5,), (2,)),
        (0, (5,), (2**62,)),  # bytes from the start: 2**64 * 4, which is 0 in numpy's arithmetic
        (0, (5,), (2**60,)),
        (2**62, (1,), (1,)),
        (0, (3, 3), (3, 1)),
        (0, (2**31, 2**31, 2), (0, 0, 1)),
        (0, (0, 2**62, 2**62), (1, 1, 1)),
        (-1, (2,), (1,)),
        (7, (2,), (-1,)),
        (0, (-2,), (1,)),
        (0, (2**70,), (0,)),
        (0, (2,), (2**70,)),
        (0, (2,), ()),
        (0, 2, 1),
        (0, [2], [1]),
        (0, (2.0,), (1,)),
        (True, (2,), (1,)),
        (0, (1,) * 65, (1,) * 65),
    ],
)
def test_tensor_outside_its_storage(
    container: str, offset: object, shape: object, strides: object, tmp_path: Path
) -> None:
    path = save(container, {"x": rebuilt(offset, shape, strides)}, tmp_path / "file")
    with pytest.raises(CheckpointError, match="tensor 'x'"):
        torch_bin.read(path)


@pytest.mark.parametrize("container", PICKLES)
def test_numbers_still_to_be_conjugated_are_refused(container: str, tmp_path: Path) -> None:
    path = save(container, {"x": torch.ones(2, dtype=torch.complex64).conj()}, tmp_path / "file")
    with pytest.raises(CheckpointError, match="expected"):
        torch_bin.read(path)
    path = save(container, {"x": rebuilt(0, (2,), (1,), {"neg": False})}, tmp_path / "file")
    with pytest.raises(CheckpointError, match="expected"):
        torch_bin.read(path)


def test_legacy_storage_that_is_shorter_than_said(tmp_path: Path) -> None:
    path = save("legacy", {"x": torch.ones(8)}, tmp_path / "file")
    whole = path.read_bytes()
    for count in (0, 7, 9, 2**40, 2**63, 2**64 - 1):
        path.write_bytes(whole[:-40] + struct.pack("<Q", count) + whole[-32:])
        with pytest.raises(CheckpointError, match="8 numbers is incomplete"):
            torch_bin.read(path)


def rezip(path: Path, edit: dict[str, bytes | None], compression: int = zipfile.ZIP_STORED) -> None:
    """Write the zip file again, with some of its entries replaced (or, with None, left out)."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()} | edit
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            if data is not None:
                archive.writestr(name, data)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"file/data/0": b"123"}, "has a storage of 3 bytes"),
        ({"file/data/0": None}, "is absent"),
        ({"file/data.pkl": None}, "0 files called data.pkl"),
        ({"other/data.pkl": b""}, "2 files called data.pkl"),
        ({"file/byteorder": b"big"}, "big-endian"),
    ],
)
def test_zip_entries_that_do_not_fit(edit: dict[str, bytes | None], message: str, tmp_path: Path) -> None:
    path = save("zip", {"x": torch.ones(8)}, tmp_path / "file")
    rezip(path, {})
    assert_equal(torch_bin.read(path)["x"], torch.ones(8))
    rezip(path, edit)
    with pytest.raises(CheckpointError, match=message):
        torch_bin.read(path)


def test_zip_names_are_never_paths(tmp_path: Path) -> None:
    path = save("zip", {"x": torch.ones(8)}, tmp_path / "file")
    rezip(path, {"../escaped": b"1", "/absolute": b"2", "file/data/../../up": b"3"})
    assert_equal(torch_bin.read(path)["x"], torch.ones(8))
    assert [file.name for file in tmp_path.rglob("*")] == ["file"]


def test_compressed_zip(tmp_path: Path) -> None:
    path = save("zip", {"x": torch.zeros(1000)}, tmp_path / "file")
    rezip(path, {}, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed or encrypted"):
        torch_bin.read(path)


@pytest.mark.parametrize(
    ("place", "field"),
    [
        (8, b"\x01\x00"),
        (20, b"\xff\xff\xff\x7f"),
        (24, b"\xff\xff\xff\x7f"),
        (42, b"\x07\x00\x00\x00"),
        (42, b"\xff" * 4),
    ],
    ids=["encrypted", "compressed size", "size", "offset", "offset outside"],
)
def test_zip_directory_that_lies(place: int, field: bytes, tmp_path: Path) -> None:
    path = save("zip", {"x": torch.ones(8)}, tmp_path / "file")
    rezip(path, {})
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\x01\x02") + place
    data[start : start + len(field)] = field
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="expected"):
        torch_bin.read(path)


def test_zip_with_an_entry_twice(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("file/data.pkl", b"\x80\x02}.")
        archive.writestr("file/data.pkl", b"\x80\x02}.")
    path = tmp_path / "file"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match="there twice"):
        torch_bin.read(path)


def test_zip_with_a_huge_directory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(20):
            archive.writestr(f"{number:060000}", b"")
    with pytest.raises(CheckpointError, match="table of contents"):
        torch_bin.read(path)
