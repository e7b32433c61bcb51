"""``flax_model.msgpack`` without Flax: what Flax wrote is read, what is unsafe is refused."""

import resource
import subprocess
import sys

import ml_dtypes
import msgpack
import numpy as np
import pytest
from conftest import GOLDEN
from flax import serialization

from distilbert.core.errors import CheckpointError
from distilbert.core.formats import DTYPES, flax_msgpack

FILE = GOLDEN / "distilbert-seqcls" / "flax_model.msgpack"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "flax_model.msgpack"


def array(shape, dtype, values):
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, values)))


@pytest.mark.parametrize("dtype", [name for name in DTYPES if "float8" not in name])
def test_every_dtype_both_ways(dtype, path):
    values = np.arange(12).astype(DTYPES[dtype]).reshape(3, 4)
    tensors = {"a/b": values, "a/c": values.T, "d": np.array(values[1, 0]), "e": values[:0]}
    flax_msgpack.write(path, tensors)
    back = serialization.msgpack_restore(path.read_bytes())
    path.write_bytes(serialization.to_bytes(back))
    read = flax_msgpack.read(path)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and read[name].shape == tensor.shape and not read[name].flags.writeable
        assert read[name].tobytes() == tensor.tobytes()


def test_large_arrays_are_split_as_flax_splits_them(path, monkeypatch):
    tensors = {"layer/kernel": np.arange(1000, dtype=np.float32).reshape(10, 100), "bias": np.ones(3, np.float16)}
    monkeypatch.setattr(flax_msgpack, "MAX_PIECE", 512)
    flax_msgpack.write(path, tensors)
    assert len(msgpack.unpackb(path.read_bytes())["layer"]["kernel"]["chunks"]) == 8
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 512)
    restored = serialization.msgpack_restore(path.read_bytes())
    assert serialization.to_bytes(restored) == path.read_bytes()
    for read in (flax_msgpack.read(path), {"layer/kernel": restored["layer"]["kernel"], "bias": restored["bias"]}):
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(read[name], tensor)


def test_byte_order_of_this_machine_does_not_matter(path):
    flax_msgpack.write(path, {"a": np.arange(3, dtype=">f4")})
    np.testing.assert_array_equal(flax_msgpack.read(path)["a"], [0, 1, 2])


def deep(depth):
    content = array([1], "float32", bytes(4))
    for _ in range(depth):
        content = {"a": content}
    return content


@pytest.mark.parametrize(
    "content, message",
    [
        ([1, 2], "it holds no mapping of names to weights"),
        ({"a": 1}, "a is a int, expected an array"),
        ({"a": [1] * 100}, "exceeds max_array_len"),
        ({1: array([1], "float32", bytes(4))}, "int is not allowed for map key"),
        ({"a/b": array([1], "float32", bytes(4))}, "it holds the name 'a/b', expected a plain text"),
        ({"a\nb": array([1], "float32", bytes(4))}, "expected a plain text"),
        ({"a": array([2], "float32", bytes(4))}, r"an array of it, \[2\], needs 8 bytes and has 4"),
        ({"a": array([1 << 60, 1 << 60], "float32", b"")}, "an array of it has the shape"),
        ({"a": array([1 << 39, 1 << 39], "float32", b"")}, "needs .* bytes and has 0"),
        ({"a": array([-1], "float32", b"")}, "an array of it has the shape"),
        ({"a": array([0, 1 << 39, 1 << 39], "float32", b"")}, "not a flax_model.msgpack that can be read"),
        ({"a": array([1], "object", bytes(8))}, "an array of it has dtype 'object', expected one of bool"),
        ({"a": array([1], "V4", bytes(4))}, "an array of it has dtype 'V4'"),
        ({"a": msgpack.ExtType(1, msgpack.packb([1, 2]))}, "lacks shape, dtype or values"),
        ({"a": msgpack.ExtType(2, b"")}, r"data of type 2, expected arrays \(type 1\)"),
        ({"a": msgpack.ExtType(1, msgpack.packb(msgpack.ExtType(1, b"")))}, "not a flax_model.msgpack"),
        (deep(40), "nested deeper than 32"),
        ({"a": {flax_msgpack.PIECES: True}}, "a lacks its shape"),
        ({"a": {flax_msgpack.PIECES: True, "shape": {"0": 5}, "chunks": {"0": 1}}}, "a is damaged"),
        (
            {"a": {flax_msgpack.PIECES: True, "shape": {"0": 5}, "chunks": {"0": array([1], "int8", b"1")}}},
            r"a has pieces that do not make \[5\]",
        ),
    ],
)
def test_what_is_unsafe_is_refused(content, message, path):
    path.write_bytes(msgpack.packb(content))
    with pytest.raises(CheckpointError, match=message) as raised:
        flax_msgpack.read(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "content",
    [
        b"\xdd\xff\xff\xff\xff",  # a list of 4 billion entries
        b"\xdf\xff\xff\xff\xff",  # a mapping of as many
        b"\x81\xa1a\xc9\xff\xff\xff\xff\x01",  # an extension of 4 GiB
        b"\x81\xa1a\xc6\xff\xff\xff\xff",  # bytes
        b"\xdd\x00\x00\xff\xff" * 10000,  # lists within lists
        b"\x91" * 100000,
        b"\x81\xa1a" * 100000,
        FILE.read_bytes()[:-1],
        FILE.read_bytes() + b"\0",
        b"text",
    ],
)
def test_lengths_are_not_believed(content, path):
    path.write_bytes(content)
    script = f"""
import resource
from pathlib import Path
from distilbert.core.errors import CheckpointError
from distilbert.core.formats import flax_msgpack
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
try:
    flax_msgpack.read(Path({str(path)!r}))
except CheckpointError as error:
    assert "\\n" not in str(error)
else:
    raise SystemExit("it was read")
"""
    assert resource  # POSIX only, as this test is
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_random_damage(path):
    whole, generator = bytearray(FILE.read_bytes()), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for place in generator.integers(0, 2000, generator.integers(1, 5)):
            damaged[place] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            for tensor in flax_msgpack.read(path).values():
                assert tensor.nbytes <= len(whole)
        except CheckpointError:
            pass


def test_bfloat16_is_named_as_flax_names_it(path):
    flax_msgpack.write(path, {"a": np.ones(2, ml_dtypes.bfloat16)})
    assert serialization.msgpack_restore(path.read_bytes())["a"].dtype == ml_dtypes.bfloat16
