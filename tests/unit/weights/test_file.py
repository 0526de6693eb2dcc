"""Files of tensors: what is written is read, what is harmed is told."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from safetensors import TensorSpec, safe_open, serialize
from safetensors.numpy import load

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.weights import TensorFile, encode
from hpdl_mpi.weights.file import REAL

NAMES = st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__" and name.isprintable())
ARRAYS = npst.arrays(
    st.sampled_from(["<f2", "<f4", "<f8"]),
    npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    elements=st.floats(-100, 100, width=16),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@given(arrays=st.dictionaries(NAMES, ARRAYS, max_size=5))
def test_what_is_written_is_read(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    path = folder / "whole.safetensors"
    path.write_bytes(encode(arrays, {"step": "7"}))
    file = TensorFile(path)
    assert file.entries.keys() == arrays.keys()
    for name, array in arrays.items():
        assert file.entries[name].shape == array.shape
        found = file.read(name)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
    assert load(path.read_bytes()).keys() == arrays.keys()


def test_brain_floats_are_the_upper_halves_of_floats(tmp_path: Path) -> None:
    halves = np.array([0x3F80, 0xC000, 0x7F7F, 0x0001, 0x8000], np.uint16)
    spec = TensorSpec(dtype="bfloat16", shape=[5], data_ptr=halves.ctypes.data, data_len=halves.nbytes)
    path = tmp_path / "x.safetensors"
    path.write_bytes(bytes(serialize({"x": spec})))
    found = TensorFile(path).read("x")
    assert found.dtype == np.float32
    # 1, -2, the largest (2 - 2^-7) 2^127, the smallest 2^-133, and -0
    np.testing.assert_array_equal(found, np.array([1.0, -2.0, (2 - 2.0**-7) * 2.0**127, 2.0**-133, -0.0]))
    assert np.signbit(found[-1])


@given(data=st.data())
def test_a_harmed_file_is_refused_or_harmless(folder: Path, data: st.DataObject) -> None:
    """No damage leads to anything but an `InputError`, or to other names, numbers or shapes of the same size."""
    whole = bytearray(encode({"one": np.ones((2, 3), np.float32), "two": np.zeros(4)}, {}))
    if data.draw(st.booleans()):
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del whole[data.draw(st.integers(0, len(whole) - 1)) :]
    path = folder / "harmed.safetensors"
    path.write_bytes(whole)
    try:
        file = TensorFile(path)
    except InputError:
        return
    for name, entry in file.entries.items():
        if entry.dtype in REAL:
            assert file.read(name).shape == entry.shape


@pytest.mark.parametrize("content", [b"", b"\x80\x02}q\x00.", b"\xff" * 100, b"PK\x03\x04" + bytes(60)])
def test_something_else_is_no_such_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(
        InputError, match=r"model\.pth: not a whole \.safetensors file\. .*safetensors\.torch\.save_file"
    ):
        TensorFile(tmp_path / "model.pth")


def test_what_is_not_there_or_a_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.safetensors: no such file"):
        TensorFile(tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="is a folder"):
        TensorFile(tmp_path)
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(InputError, match="is no regular file"):
        TensorFile(tmp_path / "pipe.safetensors")


def test_a_file_that_has_shrunk_or_gone_since_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(encode({"x": np.ones(100)}, {}))
    file = TensorFile(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"the file has changed\. Found 99 of 100 numbers"):
        file.read("x")
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        file.read("x")


def test_the_same_tensors_are_the_same_bytes(tmp_path: Path) -> None:
    tensors = {f"layer.{i}": np.full(i, i, np.float32) for i in range(5)}
    metadata = {f"key {i}": str(i) for i in range(8)}
    assert len({encode(tensors, metadata) for _ in range(20)}) == 1
    (tmp_path / "a.safetensors").write_bytes(encode(tensors, metadata))
    with safe_open(tmp_path / "a.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt", **metadata}
        for name, values in tensors.items():
            np.testing.assert_array_equal(file.get_tensor(name), values)


def test_file_that_is_exchanged_after_it_was_checked_is_not_read_as_that_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / "weights.safetensors", tmp_path / "other"
    path.write_bytes(encode({"sound": np.zeros(3, np.float32)}, {}))
    header = b'{"harmful":{"dtype":"F32","shape":[99999],"data_offsets":[0,8]}}'
    other.write_bytes(len(header).to_bytes(8, "little") + header)

    def check(*arguments: object, **keywords: object) -> object:
        checked = safe_open(*arguments, **keywords)
        other.replace(path)
        return checked

    monkeypatch.setattr("hpdl_mpi.weights.file.safe_open", check)
    assert list(TensorFile(path).entries) == ["sound"]
