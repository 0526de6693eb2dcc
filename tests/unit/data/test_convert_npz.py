from __future__ import annotations

import io
import pickle
import zipfile

import h5py
import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data import Dataset
from hpdl_mpi.data.convert import Options, convert
from hpdl_mpi.data.convert import limits as limits_module


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_arrays_keep_names_types_and_order(tmp_path) -> None:
    arrays = {
        "images": np.random.default_rng(0).normal(size=(30, 4, 4, 2)).astype(np.float32),
        "labels": np.arange(30, dtype=np.int16),
        "weights": np.asfortranarray(np.arange(60.0).reshape(30, 2)),
    }
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    (folder,) = convert(tmp_path / "a.npz", tmp_path / "out", Options(shards=2))
    for index in range(2):
        with h5py.File(folder / f"train-0000{index}-of-00002.h5") as file:
            for name, array in arrays.items():
                assert np.array_equal(file[name][:], array[15 * index : 15 * index + 15])
                assert file[name].dtype == array.dtype
    assert Dataset.open(folder, inputs="images", targets="labels").num_samples == 30


def test_names_with_train_and_test_become_splits(tmp_path) -> None:
    np.savez(
        tmp_path / "a.npz",
        x_train=np.ones((6, 2)),
        y_train=np.arange(6),
        x_test=np.zeros((3, 2)),
        y_test=np.arange(3),
    )
    assert convert(tmp_path / "a.npz", tmp_path / "out") == [tmp_path / "out/train", tmp_path / "out/test"]
    assert Dataset.open(tmp_path / "out/train").num_samples == 6
    assert Dataset.open(tmp_path / "out/test").num_samples == 3


def test_a_test_fraction_is_cut_by_the_seed_alone(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(50.0)[:, None], y=np.arange(50))

    def test_labels(name: str, seed: int) -> list[int]:
        convert(tmp_path / "a.npz", tmp_path / name, Options(test_fraction=0.3, seed=seed))
        labels = []
        for split in ("train", "test"):
            with h5py.File(tmp_path / name / split / f"{split}-00000-of-00001.h5") as file:
                assert np.array_equal(file["x"][:, 0], file["y"][:])
                labels.append(file["y"][:].tolist())
        assert sorted(labels[0] + labels[1]) == list(range(50))
        assert len(labels[1]) == 15
        return labels[1]

    assert test_labels("a", 1) == test_labels("b", 1)
    assert test_labels("c", 1 + 1) != test_labels("d", 1)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"x": np.zeros((4, 2)), "y": np.zeros(3)},
            r"do not fit. Found x \(4, 2\), y \(3,\); expected the same number",
        ),
        ({"x": np.zeros((4, 2)), "n": np.float32(4)}, r"do not fit. Found x \(4, 2\), n \(\)"),
        ({}, "do not fit. Found no arrays"),
        ({"x": np.array(["a", "b"])}, r"x\.npy: not an array of numbers. Found <U1"),
        ({"x": np.zeros(2, [("a", "f4")])}, r"x\.npy: not an array of numbers"),
        ({"x": np.zeros((0, 2))}, "cannot make 0 shards of the split 'train'"),
    ],
)
def test_arrays_that_are_no_samples_are_refused(tmp_path, arrays, message) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=message):
        convert(tmp_path / "a.npz", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pickled_objects_are_refused_and_never_run(tmp_path) -> None:
    touched = tmp_path / "touched"

    class Malicious:
        def __reduce__(self) -> tuple:
            return (touched.touch, ())

    payload = np.empty(1, object)
    payload[0] = Malicious()
    np.savez(tmp_path / "a.npz", x=payload)
    with pytest.raises(InputError, match=r"x\.npy: not an array of numbers. Found object"):
        convert(tmp_path / "a.npz", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("x.npy", pickle.dumps(Malicious()))
    with pytest.raises(InputError, match=r"b\.npz: cannot be read as NPZ"):
        convert(tmp_path / "b.npz", tmp_path / "out")
    assert not touched.exists()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"x.npy": npy(np.zeros(4))[:-8]}, r"x\.npy: size does not fit its header. Found 24 bytes; expected 32"),
        ({"x.npy": npy(np.zeros(4)) + bytes(8)}, "size does not fit its header. Found 40 bytes; expected 32"),
        ({"x.npy": npy(np.zeros(4)).replace(b"(4,)", b"(4e9,)")}, "cannot be read as NPZ"),
        ({"x.npy": npy(np.zeros(4)).replace(b"(4,), }", b"(9999,)")}, "cannot be read as NPZ"),
        ({"x.npy": npy(np.zeros((2, 2))).replace(b"(2, 2)", b"(-2,2)")}, "size does not fit its header"),
        ({"x.npy": npy(np.zeros((2, 2))).replace(b"(2, 2), ", b"(-2,-2),")}, "cannot be read as NPZ"),
        ({"readme.txt": b"hello"}, "cannot be read as NPZ"),
        ({"x.npy": b"\x93NUMPY\x09\x00" + bytes(100)}, "cannot be read as NPZ|unknown version"),
    ],
)
def test_lying_members_are_refused(tmp_path, members, message) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(InputError, match=message):
        convert(tmp_path / "a.npz", tmp_path / "out")


def test_a_damaged_archive_is_refused(tmp_path) -> None:
    np.savez_compressed(tmp_path / "whole.npz", x=np.random.default_rng(0).normal(size=(100, 10)), y=np.arange(100))
    whole = (tmp_path / "whole.npz").read_bytes()
    for data in (whole[: len(whole) // 2], b"not a zip", whole[:400] + b"\xff" * 50 + whole[450:]):
        (tmp_path / "a.npz").write_bytes(data)
        with pytest.raises(InputError, match=r"a\.npz: cannot be read as NPZ.*numpy\.savez"):
            convert(tmp_path / "a.npz", tmp_path / "out")


def test_a_claim_beyond_what_zip_can_hold_is_refused(tmp_path) -> None:
    # A member of zeros packs near the bound of deflate, 1032 to 1; a size above that in the directory is a lie.
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy(np.zeros(2**17)))
        packed, size = archive.infolist()[0].compress_size, archive.infolist()[0].file_size
    data = (tmp_path / "a.npz").read_bytes()
    lie = (packed * 1032 + 1).to_bytes(4, "little")
    (tmp_path / "a.npz").write_bytes(data.replace(size.to_bytes(4, "little"), lie))
    with pytest.raises(InputError, match=r"x\.npy: claims more data than it can hold"):
        convert(tmp_path / "a.npz", tmp_path / "out")


def test_arrays_that_do_not_fit_in_memory_together_are_refused(tmp_path, monkeypatch) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(1000), y=np.zeros(1000))
    monkeypatch.setattr(limits_module.os, "sysconf", lambda name: 100)
    with pytest.raises(InputError, match=r"a\.npz: does not fit in memory\. Found 16256 bytes; expected at most 10000"):
        convert(tmp_path / "a.npz", tmp_path / "out")
