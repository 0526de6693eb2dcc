"""Weights from a file: what fits is read, what does not is told at once, and nothing else is touched."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from hpdl_mpi import nn
from hpdl_mpi.base.errors import InputError
from hpdl_mpi.models import gpt
from hpdl_mpi.nn import Layer
from hpdl_mpi.weights import TensorFile, check, encode, fill, tensors

SHAPE = (4, 4, 2)


def model_of(classes: int = 3) -> Layer:
    model = nn.Sequential(conv=nn.Conv2d(2, 3), bn=nn.BatchNorm2d(), flat=nn.Flatten(), fc=nn.Linear(classes))
    model.build(SHAPE)
    return model


def weights(model: Layer, dtype: type = np.float32) -> dict[str, np.ndarray]:
    """Return different small integers for each tensor, in PyTorch's shapes: any type holds them."""
    rng = np.random.default_rng(0)
    return {name: rng.integers(1, 100, tensor.shape).astype(dtype) for name, tensor in tensors(model).items()}


def blank(model: Layer, dtype: type = np.float32) -> dict[str, np.ndarray]:
    return {name: np.full(tensor.parameter.shape, -1, dtype) for name, tensor in tensors(model).items()}


def write(path: Path, arrays: dict[str, np.ndarray]) -> TensorFile:
    path.write_bytes(encode(arrays, {}))
    return TensorFile(path)


@pytest.mark.parametrize("stored", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("wanted", [np.float32, np.float64])
def test_every_tensor_is_read_and_converted(tmp_path: Path, stored: type, wanted: type) -> None:
    model = model_of()
    file = write(tmp_path / "w.safetensors", weights(model, stored) | {"bn.num_batches_tracked": np.array(7)})
    arrays = blank(model, wanted)
    fill(file, model, arrays)
    for name, tensor in tensors(model).items():
        np.testing.assert_array_equal(tensor.outward(arrays[name]), weights(model)[name])


def test_a_rank_reads_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    file = write(tmp_path / "w.safetensors", weights(model))
    read: list[str] = []
    monkeypatch.setattr(file, "read", lambda name: (read.append(name), TensorFile.read(file, name))[1])
    mine = {name: array for name, array in blank(model).items() if name.startswith("fc.")}
    fill(file, model, mine)
    assert sorted(read) == ["fc.bias", "fc.weight"]
    assert min(array.min() for array in mine.values()) > 0


def test_what_is_skipped_stays_as_it_is(tmp_path: Path) -> None:
    """The file may have it with another shape, or not at all; the model may lack it too."""
    model, other = model_of(), weights(model_of(classes=9))
    for lacking in ([], ["fc.weight"]):
        arrays = {name: array for name, array in other.items() if name not in lacking} | {"aux.x": np.zeros(3)}
        target = blank(model)
        fill(write(tmp_path / "w.safetensors", arrays), model, target, ["fc.*", "aux.*"])
        untouched = {name for name, array in target.items() if (array == -1).all()}
        assert untouched == {"fc.weight", "fc.bias"}


def test_all_that_does_not_fit_is_told_in_one_message(tmp_path: Path) -> None:
    model = model_of()
    arrays = weights(model_of(classes=9)) | {"conv.bias": np.arange(2)} | {f"more.{i}": np.zeros(i) for i in range(7)}
    del arrays["bn.running_var"], arrays["bn.weight"]
    file = write(tmp_path / "w.safetensors", arrays)
    target = blank(model)
    with pytest.raises(InputError) as caught:
        fill(file, model, target)
    assert re.sub(r"^.*/", "", str(caught.value)) == (
        "w.safetensors: the tensors are not those of the model. Found missing: bn.weight (2,), bn.running_var (2,); "
        "unexpected: more.0 (0,), more.1 (1,), more.2 (2,), more.3 (3,), more.4 (4,) and 2 more; different: conv.bias "
        "of type I64, not F64 or F32 or F16 or BF16, fc.weight (9, 8), not (3, 8), fc.bias (9,), not (3,); expected "
        "the names and shapes of PyTorch's state_dict of this model. Take the model that they were made for, or leave "
        "tensors out on both sides: --init-skip 'NAME.*'."
    )
    assert all((array == -1).all() for array in target.values())


def test_nothing_is_allocated_before_it_fits(tmp_path: Path) -> None:
    """Shapes of a model that no machine could hold are compared, not made."""
    model = nn.Linear(2**40)
    model.build((2**20,))
    with pytest.raises(InputError, match=r"different: weight \(2, 3\), not \(1099511627776, 1048576\)"):
        check(write(tmp_path / "w.safetensors", {"weight": np.zeros((2, 3)), "bias": np.zeros(2)}), model)


def test_a_pattern_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "w.safetensors", weights(model_of()))
    with pytest.raises(
        InputError, match=r"init\.skip: nothing has such a name\. Found head\.\*; expected conv\.weight"
    ):
        check(file, model_of(), ["fc.*", "head.*"])


def test_leaving_out_all_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "w.safetensors", weights(model_of()))
    with pytest.raises(InputError, match=r"init\.skip: leaves nothing to begin with\. Found \*\. Leave out init"):
        check(file, model_of(), ["*"])


def test_a_variance_below_zero_is_refused(tmp_path: Path) -> None:
    model = model_of()
    arrays = weights(model)
    arrays["bn.running_mean"][1] = arrays["bn.running_var"][1] = -1.0
    file = write(tmp_path / "w.safetensors", arrays)
    with pytest.raises(InputError, match=r"bn\.running_var: a number is too small\. Found -1\.0; expected at least 0"):
        fill(file, model, blank(model))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_numbers_that_are_none_are_refused(tmp_path: Path, value: float) -> None:
    model = model_of()
    arrays = weights(model, np.float64)
    arrays["fc.weight"][1, 2] = value
    file = write(tmp_path / "w.safetensors", arrays)
    with pytest.raises(InputError, match=r"w\.safetensors: fc\.weight: a number is not finite"):
        fill(file, model, blank(model))


@pytest.mark.parametrize("names", [["0.weight"], ["2.weight"], ["0.weight", "2.weight"]])
def test_tied_parameters_are_read_under_either_name(tmp_path: Path, names: list[str]) -> None:
    model = nn.Sequential(nn.Linear(3, bias=False), nn.ReLU(), nn.Linear(3, bias=False)).tie("2.weight", to="0.weight")
    model.build((3,))
    target = blank(model)
    fill(write(tmp_path / "w.safetensors", {name: np.eye(3) for name in names}), model, target)
    np.testing.assert_array_equal(target["0.weight"], np.eye(3))


def test_what_is_tied_must_be_the_same_in_a_file(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, bias=False), nn.ReLU(), nn.Linear(3, bias=False)).tie("2.weight", to="0.weight")
    model.build((3,))
    file = write(tmp_path / "w.safetensors", {"0.weight": np.eye(3), "2.weight": np.ones((3, 3))})
    message = r"two tensors differ that are one in the model\. Found 0\.weight and 2\.weight; .* --init-skip 2\.weight"
    with pytest.raises(InputError, match=message):
        fill(file, model, blank(model))
    target = blank(model)
    fill(file, model, target, ["2.*"])
    np.testing.assert_array_equal(target["0.weight"], np.eye(3))
    with pytest.raises(InputError, match=r"different: 2\.weight"):
        check(write(tmp_path / "w.safetensors", {"0.weight": np.eye(3), "2.weight": np.ones((3, 2))}), model)


def test_the_published_files_of_gpt2_are_read(tmp_path: Path) -> None:
    model = gpt(11, 5, layers=2, heads=2, width=8)
    model.build((5,))
    arrays = weights(model, np.float32)
    bare = {name.removeprefix("transformer."): array for name, array in arrays.items()}
    masks = {f"h.{i}.attn.bias": np.tri(5)[None, None] for i in range(2)}
    target = blank(model)
    fill(write(tmp_path / "w.safetensors", bare | masks), model, target)
    for name, array in arrays.items():
        np.testing.assert_array_equal(target[name], array)
    for pattern in ("wpe.*", "transformer.wpe.*"):
        target = blank(model)
        fill(write(tmp_path / "w.safetensors", bare | masks), model, target, [pattern])
        assert (target["transformer.wpe.weight"] == -1).all()
        assert (target["transformer.wte.weight"] != -1).all()
    head = {"lm_head.weight" if name == "wte.weight" else name: array for name, array in bare.items()}
    fill(write(tmp_path / "w.safetensors", head), model, target)
    np.testing.assert_array_equal(target["transformer.wte.weight"], arrays["transformer.wte.weight"])
    with pytest.raises(InputError, match=r"missing: transformer\.wpe\.weight"):
        check(write(tmp_path / "w.safetensors", {key: bare[key] for key in bare if key != "wpe.weight"}), model)
