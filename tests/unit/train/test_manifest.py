"""Checkpoints are checked when read: what is damaged, or of something else, is named."""

from __future__ import annotations

import hashlib
import json
import os
import re

import h5py
import numpy as np
import pytest

from hpdl_mpi import nn, optim
from hpdl_mpi.base.errors import InputError
from hpdl_mpi.parallel import Replica
from tests.checkpoint_cases import PROGRESS, load, make_replica, rewrite_manifest, save

FILE = {"name": "rank-00000.h5", "sha256": "", "slices": []}


@pytest.mark.parametrize("file", ["rank-00000.h5", "manifest.json"])
@pytest.mark.parametrize("harm", ["truncate", "flip", "remove"])
def test_a_damaged_file_is_named(tmp_path, file, harm):
    path = save(tmp_path, 1) / file
    data = bytearray(path.read_bytes())
    if harm == "remove":
        path.unlink()
    elif harm == "truncate":
        path.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    latest = path.parent
    with pytest.raises(InputError, match=rf"{file}: a damaged checkpoint"):
        load(latest)


@pytest.mark.parametrize(
    "text", ["[]", "{}", "null", "3", '{"format": "1"}', "[" * 10_000, b"\xff", "", '{"format": 2}']
)
def test_a_manifest_of_something_else_is_damaged(tmp_path, text):
    path = save(tmp_path, 1)
    (path / "manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"manifest\.json: a damaged checkpoint.* Remove the folder .*step-0000000001"):
        load(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        *(
            (key, None, f"{key}: missing")
            for key in ("step", "dtype", "input_shape", "parameters", "files", "progress")
        ),
        ("step", "7", "step: input should be a valid integer; found '7'"),
        ("step", -1, "step: input should be greater than or equal to 0"),
        ("dtype", "object", "dtype: input should be 'float32' or 'float64'"),
        ("input_shape", [0], r"input_shape\.0: input should be greater"),
        ("input_shape", 3, "input_shape: input should be a valid array"),
        ("parameters", [], "parameters: input should be an object"),
        ("parameters", {"0.weight": "big"}, r"parameters\.0\.weight: input should be a valid array"),
        ("files", {}, "files: input should be a valid array"),
        ("files", [3], r"files\.0: input should be an object"),
        ("files", [FILE | {"sha256": 3}], r"files\.0\.sha256: input should be a valid string"),
        ("files", [FILE | {"slices": [["params", "0.weight"]]}], r"files\.0\.slices\.0\.2: missing"),
        (
            "files",
            [FILE | {"slices": [["params", "0.weight", -1, 2]]}],
            r"files\.0\.slices\.0\.2: input should be greater",
        ),
        *(
            ("files", [FILE | {"name": name}], r"files\.0\.name: string should match pattern")
            for name in ("../rank-00000.h5", "/etc/passwd", "..", "", "a/b.h5", "rank-00000.h5\n")
        ),
        ("progress", [], "progress: input should be an object"),
        ("progress", {}, "progress: recipe is missing"),
        ("progress", PROGRESS.to_dict() | {"epoch": "last"}, r"progress\.epoch: input should be a valid integer"),
        ("progress", PROGRESS.to_dict() | {"sums": [1.0]}, r"progress\.sums\.1: missing"),
    ],
)
def test_a_manifest_with_a_bad_field_is_damaged_and_the_field_is_named(tmp_path, key, value, message):
    path = save(tmp_path, 1)
    rewrite_manifest(path, **{key: value})
    with pytest.raises(InputError, match=rf"manifest\.json: a damaged checkpoint\. Found {message}") as caught:
        load(path)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "start", "stop"),
    [("2.bias", 0, 3), ("2.bias", 1, 2), ("2.bias", 2, 1), ("0.bias", 0, 2**60)],
    ids=["beyond the end", "a gap", "backwards", "far too large"],
)
def test_slices_outside_their_parameter_are_refused(tmp_path, name, start, stop):
    path = save(tmp_path, 1)
    files = json.loads((path / "manifest.json").read_text())["files"]
    for entry in files[0]["slices"]:
        if entry[:2] == ["params", name]:
            entry[2:] = [start, stop]
    rewrite_manifest(path, files=files)
    with pytest.raises(
        InputError, match=rf"rank-00000\.h5: a damaged checkpoint\. Found params of {name} from {start}"
    ):
        load(path)


def rewrite_files(path, files):
    """Let the manifest say `files`, with the checksum that the first one has now."""
    files[0]["sha256"] = hashlib.sha256((path / files[0]["name"]).read_bytes()).hexdigest()
    rewrite_manifest(path, files=files)


def test_the_same_slice_twice_does_not_stand_in_for_another(tmp_path):
    path = save(tmp_path, 1)
    with h5py.File(path / "rank-00000.h5", "a") as file:
        half = file["params/0.weight/0"][:6]
        del file["params/0.weight/0"]
        file["params/0.weight/0"] = half
    files = json.loads((path / "manifest.json").read_text())["files"]
    place = files[0]["slices"].index(["params", "0.weight", 0, 12])
    files[0]["slices"][place : place + 1] = [["params", "0.weight", 0, 6]] * 2
    rewrite_files(path, files)
    with pytest.raises(InputError, match=r"a damaged checkpoint\. Found params of 0\.weight from 0 to 6"):
        load(path)


@pytest.mark.parametrize("content", ["absent", "group", "longer", "texts", "external", "link", "virtual"])
def test_a_file_whose_arrays_are_not_what_the_manifest_says_is_damaged(tmp_path, content):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.zeros(4, np.float32)
    path = save(tmp_path / "run", 1)
    with h5py.File(path / "rank-00000.h5", "a") as file:
        del file["params/0.bias/0"]
        group = file["params/0.bias"]
        if content == "group":
            group.create_group("0")
        elif content == "longer":
            group.create_dataset("0", (2**50,), np.float32, chunks=(1024,))
        elif content == "texts":
            group["0"] = np.array([b"text"] * 4)
        elif content == "external":
            group.create_dataset("0", (4,), np.float32, external=[(os.fspath(secret), 0, 16)])
        elif content == "link":
            group["0"] = h5py.ExternalLink(os.fspath(secret), "x")
        elif content == "virtual":
            layout = h5py.VirtualLayout((4,), np.float32)
            layout[:] = h5py.VirtualSource(os.fspath(secret), "x", (4,))
            group.create_virtual_dataset("0", layout)
    files = json.loads((path / "manifest.json").read_text())["files"]
    rewrite_files(path, files)
    with pytest.raises(InputError, match=r"rank-00000\.h5: a damaged checkpoint"):
        load(path)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda: make_replica(width=5),
            r"another model: they differ in 0\.bias\. Found shape \(4,\); expected shape \(5,\)",
        ),
        (lambda: Replica(nn.Linear(2), (3,), optim.Adam(), dtype=np.float32, seed=0), "no such parameter"),
        (lambda: make_replica(optimizer=optim.SGD(0.1, momentum=0.9)), "lacks state.*slot:velocity"),
    ],
)
def test_a_checkpoint_of_another_model_or_optimizer_is_refused(tmp_path, other, message):
    path = save(tmp_path, 1)
    with pytest.raises(InputError, match=message):
        load(path, other())


def test_another_format_is_refused(tmp_path):
    path = save(tmp_path, 1)
    rewrite_manifest(path, format=999, files="elsewhere")
    with pytest.raises(InputError, match=r"another format\. Found 999; expected 2"):
        load(path)


@pytest.mark.parametrize("key", ["step", "epoch", "offset"])
def test_a_manifest_with_another_number_is_damaged(tmp_path, key):
    path = save(tmp_path, 7)
    text, count = re.subn(rf'"{key}": (\d)', rf'"{key}": 1\1', (path / "manifest.json").read_text(), count=1)
    assert count == 1
    (path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="Found another checksum than its own"):
        load(path)
