"""``tf_model.h5`` without TensorFlow: what transformers wrote is read by name, what is unsafe is refused."""

import shutil
import struct

import h5py
import ml_dtypes
import numpy as np
import pytest
from conftest import GOLDEN

from distilbert.core import checkpoint
from distilbert.core.config import DistilBertConfig
from distilbert.core.errors import CheckpointError
from distilbert.core.formats import h5, hdf5
from distilbert.core.spec import parameters

FILE = GOLDEN / "distilbert-seqcls" / "tf_model.h5"
TOP = "classifier/tf_distil_bert_for_sequence_classification/classifier"


@pytest.fixture
def file(tmp_path):
    """A copy to damage."""
    shutil.copy(FILE, tmp_path / "tf_model.h5")
    shutil.copy(GOLDEN / "distilbert-seqcls" / "config.json", tmp_path)
    return tmp_path / "tf_model.h5"


def load(path, **options):
    config = DistilBertConfig.from_pretrained(path.parent)
    tensors, source = checkpoint.read_checkpoint(path.parent)
    listed = parameters(config, "sequence-classification")
    return checkpoint.match(tensors, listed, source=str(source), **options)


def test_values_are_views_of_the_mapped_file():
    for value in h5.read(FILE).values():
        assert not value.flags.writeable and not value.flags.owndata


def test_order_and_scope_do_not_matter(file):
    expected, _ = load(file)
    with h5py.File(file, "r+") as opened:
        opened.move("classifier/tf_distil_bert_for_sequence_classification", "classifier/something_else_3")
        opened.attrs["layer_names"] = opened.attrs["layer_names"][::-1]
    found, report = load(file)
    assert not report.missing and not report.unexpected
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_a_tied_weight_may_stand_twice_but_only_with_one_value(tmp_path):
    path = GOLDEN / "distilbert-mlm" / "tf_model.h5"
    assert "distilbert/embeddings/word_embeddings/weight" in h5.read(path)
    shutil.copy(path, tmp_path)
    with h5py.File(tmp_path / "tf_model.h5", "r+") as opened:
        repeated = "vocab_projector/tf_distil_bert_for_masked_lm/distilbert/embeddings/word_embeddings/weight:0"
        opened[repeated][0, 0] += 1
    with pytest.raises(CheckpointError, match="word_embeddings/weight more than once, with different values"):
        h5.read(tmp_path / "tf_model.h5")


def test_missing_extra_and_misshapen_weights_are_named(file, caplog):
    with h5py.File(file, "r+") as opened:
        del opened[f"{TOP}/bias:0"]
        opened[f"{TOP}/surplus:0"] = np.zeros(3)
    _, report = load(file)
    assert report.missing == ["classifier.bias"] and "surplus" in report.unexpected[0]
    assert "classifier.bias" in caplog.text and "surplus" in caplog.text
    with h5py.File(file, "r+") as opened:
        del opened[f"{TOP}/kernel:0"]
        opened[f"{TOP}/kernel:0"] = np.zeros((3, 32))
    with pytest.raises(CheckpointError, match=r"classifier.weight is \(32, 3\), expected \(3, 32\)"):
        load(file)
    with h5py.File(file, "r+") as opened:
        del opened["distilbert"]
    with pytest.raises(CheckpointError, match=r"encoder weights are missing: distilbert\.embeddings"):
        load(file, ignore_mismatched_sizes=True)


def external_link(opened, outside):
    opened[f"{TOP}/stolen:0"] = h5py.ExternalLink(str(outside), "secret")


def soft_link(opened, outside):
    opened[f"{TOP}/stolen:0"] = h5py.SoftLink(f"/{TOP}/bias:0")


def external_storage(opened, outside):
    opened.create_dataset(f"{TOP}/stolen:0", (4,), "u1", external=[(str(outside), 0, 4)])


def virtual_dataset(opened, outside):
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource(str(outside), "secret", (4,))
    opened.create_virtual_dataset(f"{TOP}/stolen:0", layout)


def circle(opened, outside):
    opened[f"{TOP}/again"] = opened["/"]


def too_large(opened, outside):
    opened.create_dataset(f"{TOP}/huge:0", (1 << 40,), "f4", chunks=(1 << 10,), compression="gzip")


def never_written(opened, outside):
    opened.create_dataset(f"{TOP}/huge:0", (1 << 40,), "f4")


def objects(opened, outside):
    opened.create_dataset(f"{TOP}/texts:0", data=["a", "b"], dtype=h5py.string_dtype())


def compound(opened, outside):
    opened.create_dataset(f"{TOP}/pairs:0", (2,), np.dtype([("a", "f4"), ("b", "i4")]))


def unknown_filter(opened, outside):
    opened.create_dataset(f"{TOP}/packed:0", data=np.zeros(64, "f4"), chunks=(64,), compression="lzf")


def no_dataspace(opened, outside):
    opened[f"{TOP}/nothing:0"] = h5py.Empty("f4")


def named_type(opened, outside):
    opened[f"{TOP}/type"] = np.dtype("f4")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (external_link, "group newer than Keras writes"),
        (soft_link, "is a link to another name"),
        (external_storage, "in another file, expected it in one piece here"),
        (virtual_dataset, "in another file, expected it in one piece here"),
        (circle, "reached by two ways, or in a circle"),
        (too_large, "is compressed, chunked"),
        (never_written, "lies past its end"),
        (objects, "has a type that weights do not have"),
        (compound, "has a type that weights do not have"),
        (unknown_filter, "is compressed, chunked"),
        (no_dataspace, "has no shape, or no values"),
        (named_type, "is neither a group nor an array"),
    ],
)
def test_what_is_unsafe_is_refused(file, spoil, message, tmp_path):
    outside = tmp_path / "outside.h5"
    with h5py.File(outside, "w") as secret:
        secret["secret"] = np.arange(4, dtype="f4")
    with h5py.File(file, "r+") as opened:
        spoil(opened, outside)
    with pytest.raises(CheckpointError, match=message) as raised:
        h5.read(file)
    assert "\n" not in str(raised.value)


def test_types_are_spelt_as_the_library_spells_them():
    for code, dtype in hdf5.TYPES.items():
        assert h5py.h5t.py_create(dtype).encode()[2:] == code


def tree_within_itself(content):
    """The HDF5 library crashes on this one."""
    tree = content.find(b"TREE\0")
    content[tree + 5] = 1
    struct.pack_into("<Q", content, tree + 32, tree)


def headers_without_end(content):
    """An object whose header goes on at its own beginning."""
    (root,) = struct.unpack_from("<Q", content, 64)
    struct.pack_into("<HHI2Q", content, root + 16, hdf5.MORE, 16, 0, root + 16, 24)


def no_numbers(content):
    """A list that claims more entries than the file has bytes."""
    struct.pack_into("<H", content, content.find(b"SNOD") + 6, 0xFFFF)


@pytest.mark.parametrize("spoil", [tree_within_itself, headers_without_end, no_numbers])
def test_files_that_lead_nowhere_end_soon(file, spoil):
    content = bytearray(file.read_bytes())
    spoil(content)
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"circle|overlap|past its end"):
        h5.read(file)


def test_a_damaged_list_of_free_places_does_not_matter(file):
    """It matters to the HDF5 library only, which never returns from a list that leads to itself."""
    expected = h5.read(FILE)
    content = bytearray(file.read_bytes())
    heap = content.find(b"HEAP")
    size, free, start = struct.unpack_from("<3Q", content, heap + 8)
    assert free < size
    struct.pack_into("<Q", content, start + free, free)
    file.write_bytes(content)
    assert h5.read(file).keys() == expected.keys()


def test_one_array_under_many_names_is_one_array(tmp_path):
    path = tmp_path / "tf_model.h5"
    with h5py.File(path, "w") as opened:
        opened.attrs["layer_names"] = [b"a"]
        opened["a/scope/w0:0"] = np.zeros(1000, "f4")
        for number in range(1, 2000):
            opened[f"a/scope/w{number}:0"] = opened["a/scope/w0:0"]
    read = h5.read(path)
    assert len(read) == 2000 and len({id(value) for value in read.values()}) == 1


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "tf_model.h5"
    for content in (b"", b"text", FILE.read_bytes()[:2000], b"version https://git-lfs.github.com/spec/v1\n"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            h5.read(path)
    with h5py.File(path, "w") as opened:
        opened["layers/dense/vars/0"] = np.zeros(3)
    with pytest.raises(CheckpointError, match=r"of Keras 3\? Then its name ends in .weights.h5"):
        h5.read(path)


@pytest.mark.parametrize("size", [300, 3_000])
def test_truncated_files_are_refused(tmp_path, size):
    path = tmp_path / "tf_model.h5"
    path.write_bytes(FILE.read_bytes()[:-size])
    with pytest.raises(CheckpointError):
        h5.read(path)


def test_half_precision_and_big_endian_weights(tmp_path):
    path = tmp_path / "tf_model.h5"
    values = np.random.default_rng(0).normal(size=(64, 8))
    with h5py.File(path, "w") as opened:
        opened.attrs["layer_names"] = [b"a"]
        opened.create_group("a").attrs["weight_names"] = [b"scope/x:0", b"scope/y:0"]
        opened.create_dataset("a/scope/x:0", data=values.astype("f2"))
        opened.create_dataset("a/scope/y:0", data=values.astype(">f8"))
    read = h5.read(path)
    np.testing.assert_array_equal(read["x"], values.astype("f2"))
    np.testing.assert_array_equal(read["y"], values)


def test_a_long_list_of_names_is_spread_over_attributes(tmp_path):
    path = tmp_path / "tf_model.h5"
    tensors = {f"layer/{'x' * 200}{number}": np.full(2, number) for number in range(1000)}
    h5.write_shard(path, tensors)
    assert h5.read(path).keys() == tensors.keys()


def test_bfloat16_is_not_a_type_of_hdf5(tmp_path):
    config = DistilBertConfig.from_pretrained(GOLDEN / "distilbert-base")
    tensors = {p.name: np.zeros(p.shape, ml_dtypes.bfloat16) for p in parameters(config, "base")}
    with pytest.raises(CheckpointError, match="HDF5 has no bfloat16; save as safetensors, or load as float32 before"):
        checkpoint.write_checkpoint(tmp_path / "new", config, tensors, head="base", file_format="h5")
    assert not (tmp_path / "new").exists()
